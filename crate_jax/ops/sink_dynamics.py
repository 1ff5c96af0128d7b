"""The simplified model of attention sinks: its loss, its gradient flows and their closed forms.

"Active-Dormant Attention Heads" (arXiv 2410.13835). One softmax head on one-hot embeddings: a query
that is the token v attends to ``<s>`` with logit ``alpha_v`` and to everything else with logit 0.
``<s>`` carries the value ``beta``, the token k the value ``xi_k e_k``. The MLP already gives
``log p_v``, the Markov row of v, and the counts of the other tokens are held at their expectation
``W_k``:

    logits_v = log p_v + (e^{alpha_v} beta + B) / (e^{alpha_v} + W),   B_k = W_k xi_k, W = sum_k W_k
    loss     = sum_v pi_v KL(p_v || softmax(logits_v))

Arrays: ``alpha (R,)`` and the weights ``pi (R,)`` have one entry a query token, ``p (R, V)`` one
row; ``beta`` and ``B`` are ``(V,)`` and ``W > 0`` is a scalar. Time ``t`` is that of the gradient
flow ``x' = -dloss/dx``. Everything runs in the dtype it is given and may be jitted, mapped and
differentiated; late times want float64.

The residual peak has a model of two numbers, of the paper's notebook: :func:`alignment` onwards.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def sink_attention(alpha: Array, W: Array | float) -> Array:
    """``a_v = e^{alpha_v} / (e^{alpha_v} + W)``, the attention to ``<s>``; any shape."""
    return jax.nn.sigmoid(alpha - jnp.log(W))


def attention_output(alpha: Array, beta: Array, B: Array, W: Array | float) -> Array:
    """``z_v = (e^{alpha_v} beta + B) / (e^{alpha_v} + W) = a_v beta + (1 - a_v) B / W``, (R, V)."""
    a = sink_attention(alpha, W)[:, None]
    rest = sink_attention(-alpha, 1 / W)[:, None]  # 1 - a, to its own precision
    return a * beta[None, :] + rest * (B / W)[None, :]


def tilt(p: Array, z: Array) -> tuple[Array, Array]:
    """What adding ``z`` to ``log p`` does to the distributions ``p``.

    Exact to rounding however small z is: nothing is a difference of two large numbers. Entries of z
    where p is 0 do not count. The entries of one row may lie some hundreds apart (exp of their
    distance to the mean is taken).

    Args:
      p: ``(..., V)``, rows that sum to 1.
      z: ``(..., V)``.

    Returns:
      ``KL(p || q)``, ``(...)``, and ``q - p``, ``(..., V)``, for ``q = softmax(log p + z)``.
    """
    z = jnp.where(p > 0, z, 0)
    z = z - jnp.sum(p * z, axis=-1, keepdims=True)
    rise = p * jnp.expm1(z)
    total = jnp.sum(rise, axis=-1, keepdims=True)
    return jnp.log1p(total[..., 0]), (rise - p * total) / (1 + total)


def loss(alpha: Array, beta: Array, p: Array, pi: Array, B: Array, W: Array | float) -> Array:
    """``sum_v pi_v KL(p_v || softmax(log p_v + z_v))``."""
    return jnp.sum(pi * tilt(p, attention_output(alpha, beta, B, W))[0])


def gradient(
    alpha: Array, beta: Array, p: Array, pi: Array, B: Array, W: Array | float
) -> tuple[Array, Array]:
    """The gradient of :func:`loss`, for ``q_v = softmax(log p_v + z_v)``:

        dloss/dalpha_v = pi_v a_v (1 - a_v) <q_v - p_v, beta - B / W>
        dloss/dbeta    = sum_v pi_v a_v (q_v - p_v)

    Returns:
      ``(R,)`` and ``(V,)``.
    """
    _, change = tilt(p, attention_output(alpha, beta, B, W))
    a, rest = sink_attention(alpha, W), sink_attention(-alpha, 1 / W)
    return pi * a * rest * (change @ (beta - B / W)), (pi * a) @ change


def variance(p: Array, x: Array) -> Array:
    """``Var_{p_v}(x)``, ``(R,)``, of values ``x (V,)``; 0 exactly where a row has one entry."""
    return jnp.sum(p * _centred(p, x) ** 2, axis=-1)


def third_moment(p: Array, x: Array) -> Array:
    """``E_{p_v}(x - E_{p_v} x)^3``, ``(R,)``."""
    return jnp.sum(p * _centred(p, x) ** 3, axis=-1)


def _centred(p: Array, x: Array) -> Array:
    x = jnp.where(p > 0, jnp.broadcast_to(x, p.shape), 0)
    shift = jnp.max(jnp.where(p > 0, x, -jnp.inf), axis=-1, keepdims=True)
    x = x - shift  # a row of one entry then holds zeros alone
    x = jnp.where(p > 0, x, 0)
    return jnp.where(p > 0, x - jnp.sum(p * x, axis=-1, keepdims=True), 0)


def growth(t: Array, p: Array, pi: Array, B: Array) -> Array:
    """Where alpha goes while beta is constant over the tokens: ``1/2 ln(2 pi_v Var_{p_v}(B) t)``.

    With ``s = 1/(e^alpha + W)`` a row's loss is ``pi (s^2/2 Var + O(s^3))``, so that
    ``(e^{2 alpha})' -> 2 pi Var``: half the logarithm of time, and its constant.

    Args:
      t: scalar or ``(R,)``.

    Returns:
      ``(R,)``, the limit of ``alpha_v(t)`` up to o(1); -inf in rows without variance.
    """
    return jnp.log(2 * pi * variance(p, B) * t) / 2


def growth_lag(p: Array, B: Array, W: Array | float) -> Array:
    """``c_v = 3 W - E(B - EB)^3 / (2 Var B)`` under ``p_v``, ``(R,)``: see :func:`growth_next`."""
    return 3 * W - third_moment(p, B) / (2 * variance(p, B))


def growth_next(t: Array, p: Array, pi: Array, B: Array, W: Array | float) -> Array:
    """:func:`growth` with its next term, ``(R,)``.

    For ``x = e^alpha`` the flow is ``x' = pi Var / x (1 - c/x + O(x^-2))``, so
    ``x^2/2 + c x = pi Var t`` up to a logarithm, and ``alpha - growth = -c / sqrt(2 pi Var t)``
    to first order.
    """
    c = growth_lag(p, B, W)
    return jnp.log(jnp.sqrt(c**2 + 2 * pi * variance(p, B) * t) - c)


def drained_value(
    alpha: Array | float, beta0: Array, B: Array, groups: Array | None = None
) -> Array:
    """Where beta goes while all alpha_v stay equal: ``mean(beta0 + e^-alpha B) - e^-alpha B``.

    The mean of beta never moves. What softmax can see of beta shrinks like ``e^-alpha``: the drain.

    Args:
      alpha: the one logit, a scalar.
      beta0: ``(V,)`` at time 0.
      B: ``(V,)``.
      groups: ``(V,)`` numbers of the classes of tokens that rows connect (two tokens are connected
        where one row emits both); each class keeps its own mean. None is one class: any law with a
        dense row.

    Returns:
      ``(V,)``.
    """
    groups = jnp.zeros(beta0.shape, int) if groups is None else groups
    same = (groups[:, None] == groups[None, :]).astype(beta0.dtype)
    pull = jnp.exp(-alpha) * B
    return (same @ (beta0 + pull)) / same.sum(axis=1) - pull


def visible_size(beta: Array) -> Array:
    """``||beta - mean(beta)||`` over the last axis: the part of a value that softmax can see."""
    return jnp.linalg.norm(beta - beta.mean(axis=-1, keepdims=True), axis=-1)


def stationary_value(alpha: Array | float, shift: Array | float, B: Array) -> Array:
    """``beta = shift - e^-alpha B``, ``(V,)``: with all alpha_v = alpha, no loss and no gradient.

    These pairs are where the joint flow ends: the sink logits meet and stop growing.
    """
    return shift - jnp.exp(-alpha) * B


# ReLU attention: weight max(alpha_v, 0) / n on <s>, and scores of 0, hence weight 0, elsewhere.


def relu_loss(alpha: Array, beta: Array, p: Array, pi: Array, n: Array | float) -> Array:
    """``sum_v pi_v KL(p_v || softmax(log p_v + max(alpha_v, 0) beta / n))``, n visible keys."""
    return jnp.sum(pi * tilt(p, _relu_output(alpha, beta, n))[0])


def relu_gradient(
    alpha: Array, beta: Array, p: Array, pi: Array, n: Array | float
) -> tuple[Array, Array]:
    """The gradient of :func:`relu_loss`:

        dloss/dalpha_v = pi_v 1[alpha_v > 0] <q_v - p_v, beta> / n     (never negative)
        dloss/dbeta    = sum_v pi_v max(alpha_v, 0) (q_v - p_v) / n

    Returns:
      ``(R,)`` and ``(V,)``.
    """
    _, change = tilt(p, _relu_output(alpha, beta, n))
    open_ = (alpha > 0).astype(alpha.dtype)
    return pi * open_ * (change @ beta) / n, (pi * jax.nn.relu(alpha)) @ change / n


def _relu_output(alpha: Array, beta: Array, n: Array | float) -> Array:
    return jax.nn.relu(alpha)[:, None] * beta[None, :] / n


def relu_rate(p: Array, pi: Array, beta: Array, n: Array | float) -> Array:
    """``-(ln alpha_v)' -> pi_v Var_{p_v}(beta) / n^2`` under ReLU with beta fixed, ``(R,)``."""
    return pi * variance(p, beta) / n**2


def relu_balance(alpha: Array, beta: Array) -> Array:
    """``||beta - mean(beta)||^2 - sum_v max(alpha_v, 0)^2``, which the joint ReLU flow conserves.

    Where rows emit every token, attention goes to 0 and the value stays if the balance is positive;
    if it is negative, some attention stays and the value becomes constant over the tokens.
    """
    return visible_size(beta) ** 2 - jnp.sum(jax.nn.relu(alpha) ** 2, axis=-1)


# The residual peak: m, the size that the residual of <s> has gained, and y, the scale of the logits
# that it feeds.


def alignment(m: Array, c: Array | float) -> Array:
    """``n(m) = (m + c) / sqrt(m^2 + 2 m c + 1)``.

    The share of a normalised residual that lies along a direction: a unit vector of cosine c with
    it, after ``m`` times the direction has been added.
    """
    return (m + c) / jnp.sqrt(m**2 + 2 * m * c + 1)


def peak_loss(m: Array, y: Array, c: Array | float) -> Array:
    """``e^{-y n(m)}``, the loss whose gradient flow is :func:`peak_flow` at time 1."""
    return jnp.exp(-y * alignment(m, c))


def peak_flow(
    m: Array, y: Array, c: Array | float, log_t: Array | float = 0.0
) -> tuple[Array, Array]:
    """``(t m', t y')`` with ``t = e^{log_t}``, which stay finite when ``e^{-y n}`` does not:

    m' = y (1 - c^2) (m^2 + 2 m c + 1)^{-3/2} e^{-y n},   y' = n e^{-y n}
    """
    n = alignment(m, c)
    decay = jnp.exp(log_t - y * n)
    return y * (1 - c**2) * (m**2 + 2 * m * c + 1) ** -1.5 * decay, n * decay


def peak_gradient(m: Array, t: Array, scale: Array | float = 1.0) -> Array:
    """The reduced law ``m' = scale ln t / (m^3 t)``: y = ln t, e^{-y} = 1/t and large m.

    For :func:`peak_flow` the scale is ``1 - c^2``.
    """
    return scale * jnp.log(t) / (m**3 * t)


def sgd_peak(t: Array, m0: Array | float, rate: Array | float, t0: Array | float = 1.0) -> Array:
    """``(m0^4 + 2 rate (ln^2 t - ln^2 t0))^{1/4}``: the reduced law times ``rate``, solved.

    Plain gradient descent with the learning rate ``rate``: nearly flat.
    """
    return (m0**4 + 2 * rate * (jnp.log(t) ** 2 - jnp.log(t0) ** 2)) ** 0.25


def adam_rate(g: Array, lr: Array | float, eps: Array | float) -> Array:
    """``lr g / (|g| + eps)``, Adam's step for a gradient that changes slowly.

    ``lr`` a step while ``|g| >> eps``, so that the peak grows linearly; ``lr g / eps`` once
    ``|g| << eps``, where it is gradient descent with the learning rate ``lr / eps``.
    """
    return lr * g / (jnp.abs(g) + eps)
