"""The simplified model of the theory in "Active-Dormant Attention Heads" (arXiv 2410.13835).

Tokens are one-hot vectors ``e_u`` of R^V, and so are logits: one layer, no residual, no norms,

    logits_n = sum_j A_nj v_j + W_2 ReLU(W_1 e_{x_n})

    s_n0 = alpha_{x_n}         where x_n is no trigger     v_0 = beta, free
    s_n,n-1 = lambda_{x_n}     where x_n is a trigger      v_j = xi_{x_j} e_{x_j}
    s_nj = 0                   at all other j <= n
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from crate_jax.config import ConfigError, nearest
from crate_jax.layers.initializers import torch_uniform
from crate_jax.ops import attention_maps

CAPTURES = ("scores", "attention")


class BackcopySimple(nn.Module):
    """``<s>`` is whatever stands first. ``alpha, lambda, xi, beta ~ N(0, 1)`` at the start.

    Attributes:
      vocab: V, the number of token ids.
      triggers: their ids.
      hidden: hidden units of the MLP.
      attention: one of ``ops.attention_maps.KINDS``.
      param_dtype: dtype of the parameters.
    """

    vocab: int
    triggers: tuple[int, ...]
    hidden: int = 128
    attention: str = "softmax"
    param_dtype: str = "float32"

    @nn.compact
    def __call__(
        self, tokens_BN: Array, capture: Sequence[str] = ()
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Logits of the next token.

        Args:
          tokens_BN: ids.
          capture: ``scores``, before the mask, and ``attention``, both ``(1, B, 1, N, N)``: a layer
            and a head in front as in the transformer.

        Returns:
          ``(B, N, V)``; with ``capture``, also a dict of arrays.
        """
        self._check(capture)
        V, N = self.vocab, tokens_BN.shape[-1]
        alpha_V, lambda_V, xi_V, beta_V = (
            self.param(name, nn.initializers.normal(1.0), (V,), jnp.dtype(self.param_dtype))
            for name in ("alpha", "lambda", "xi", "beta")
        )
        W_1 = self.param("w1", torch_uniform(), (V, self.hidden), jnp.dtype(self.param_dtype))
        W_2 = self.param("w2", torch_uniform(), (self.hidden, V), jnp.dtype(self.param_dtype))

        is_trigger_BN = jnp.asarray(np.isin(np.arange(V), self.triggers))[tokens_BN]
        position = jnp.arange(N)
        key_BN = jnp.where(is_trigger_BN, jnp.maximum(position - 1, 0)[None], 0)
        score_BN = jnp.where(is_trigger_BN, lambda_V[tokens_BN], alpha_V[tokens_BN])
        s_BNN = jax.nn.one_hot(key_BN, N, dtype=score_BN.dtype) * score_BN[..., None]
        A_BNN = attention_maps.attention_map(
            s_BNN, self.attention, attention_maps.causal_mask(N)[None]
        )

        one_hot_BNV = jax.nn.one_hot(tokens_BN, V, dtype=xi_V.dtype)
        v_BNV = jnp.where(
            (position == 0)[None, :, None], beta_V[None, None], xi_V[None, None] * one_hot_BNV
        )
        update_VV = jax.nn.relu(W_1) @ W_2  # one-hot inputs pick a row
        logits_BNV = A_BNN @ v_BNV + update_VV[tokens_BN]
        seen = {"scores": s_BNN[None, :, None], "attention": A_BNN[None, :, None]}
        return (logits_BNV, {name: seen[name] for name in capture}) if capture else logits_BNV

    def _check(self, capture: Sequence[str]) -> None:
        kinds = attention_maps.KINDS
        if self.attention not in kinds:
            raise ConfigError(
                f"attention={self.attention!r} is not one{nearest(self.attention, kinds)}"
            )
        for name in capture:
            if name not in CAPTURES:
                raise ValueError(f"capture={name!r} is not one{nearest(name, CAPTURES)}")
        for t in self.triggers:
            if not 0 <= t < self.vocab:
                raise ConfigError(f"trigger {t} is no id below vocab={self.vocab}.")
