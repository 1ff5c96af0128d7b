"""FlatNet's encoder and decoder: a stack of fitted layers, scanned over.

"Representation Learning via Manifold Flattening and Reconstruction" (arXiv 2305.01777). The layers
(``ops.flattening``) are fitted one at a time by ``models.flatnet_build``, never trained. Here all
have the same shape: tangent spaces of fewer than d_max dimensions are filled up with columns of
zeros, which change nothing.

    stack = build(X, n_iter=100).stack
    Z = FlatEncoder.of(stack).apply(encoder_variables(stack), X)
    X_hat = FlatDecoder.of(stack).apply(decoder_variables(stack), Z)

What undoes ``F_L ... F_1`` is ``G_1 ... G_L``, the last layer's G first: ``decoder_order`` is
``reverse``. The released code applies the G in the order in which the layers were made, G_1 first;
``as_shipped`` does so too, to compare with published pictures.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from crate_jax.config import ConfigError, nearest
from crate_jax.ops import flattening
from crate_jax.ops.flattening import num_products

DECODER_ORDERS = ("reverse", "as_shipped")


class Layer(NamedTuple):
    """A layer's parameters; over a stack of L layers each has an L in front.

    Attributes:
      U: ``(D, d)``, orthonormal columns, the tangent space. Columns of zeros change nothing.
      V: ``(D, p)``, p = d (d + 1) / 2, the second fundamental form, in the order of
        ``ops.flattening.products``.
      mu: ``(D,)``, the local mean, where the kernel is centred.
      x_c: ``(D,)``, the anchor, where the patch is centred.
      gamma: ``()``, ln 2 / r^2: the kernel is one half at the distance r.
      alpha: ``()``, below 1, how much of the normal part goes at the centre.
      m: ``(D,)`` and
      s: ``()``, the renormalisation.
    """

    U: Array
    V: Array
    mu: Array
    x_c: Array
    gamma: Array
    alpha: Array
    m: Array
    s: Array


class Stack(NamedTuple):
    """A fitted network.

    Attributes:
      layers: every leaf with L in front, U ``(L, D, d_max)``, V ``(L, D, p_max)``.
      dims: ``(L,)``, the layers' own d.
      centre: ``(D,)`` and
      scale: ``()``: the layers see ``(x - centre) / scale``.
    """

    layers: Layer
    dims: np.ndarray
    centre: Array
    scale: Array

    @property
    def depth(self) -> int:
        return self.dims.shape[0]

    @property
    def intrinsic_dimension(self) -> int:
        """The most frequent d of the layers, the smaller one of two; 0 where there is none."""
        return int(np.bincount(self.dims).argmax()) if self.depth else 0


def pad_products(V: Array, d: int, d_max: int) -> Array:
    """``(D, p)`` of d coordinates as ``(D, p_max)`` of d_max, zero where a product is new."""
    kept = [
        i * d_max - i * (i - 1) // 2 + (j - i) for i in range(d) for j in range(i, d)
    ]  # of the pair (i, j) among those of d_max
    out = np.zeros((V.shape[0], num_products(d_max)), V.dtype)
    out[:, kept] = V
    return out


def stack_layers(layers: list[Layer], centre: Array, scale: Array) -> Stack:
    """Layers of different d as one stack."""
    D, dtype = np.shape(centre)[0], np.asarray(centre).dtype
    dims = np.array([layer.U.shape[1] for layer in layers], np.int64)
    d_max = int(dims.max(initial=1))
    if not layers:
        shapes = ((D, d_max), (D, num_products(d_max)), (D,), (D,), (), (), (D,), ())
        return Stack(
            Layer(*(np.zeros((0, *shape), dtype) for shape in shapes)), dims, centre, scale
        )
    padded = [
        jax.tree.map(np.asarray, layer)._replace(
            U=np.pad(np.asarray(layer.U), ((0, 0), (0, d_max - d))),
            V=pad_products(np.asarray(layer.V), int(d), d_max),
        )
        for layer, d in zip(layers, dims, strict=True)
    ]
    return Stack(jax.tree.map(lambda *x: np.stack(x), *padded), dims, centre, scale)


def encode(stack: Stack, X: Array) -> Array:
    """Features ``(N, D)`` of points ``(N, D)``."""
    x = (X - stack.centre[None]) / stack.scale
    return jax.lax.scan(lambda x, layer: (flattening.flatten(x, layer), None), x, stack.layers)[0]


def decode(stack: Stack, Z: Array, order: str = "reverse") -> Array:
    """Points ``(N, D)`` of features ``(N, D)``; ``order`` is one of :data:`DECODER_ORDERS`."""
    if order not in DECODER_ORDERS:
        raise ConfigError(f"decoder_order={order!r}{nearest(str(order), DECODER_ORDERS)}")
    x, _ = jax.lax.scan(
        lambda z, layer: (flattening.reconstruct(z, layer), None), Z, stack.layers,
        reverse=order == "reverse",
    )  # fmt: skip
    return x * stack.scale + stack.centre[None]


class _Held(nn.Module):
    """Holds a stack's arrays as parameters, which nothing trains.

    Attributes:
      depth: L.
      width: D.
      d_max: columns of every U.
      param_dtype: of the parameters.
    """

    depth: int
    width: int
    d_max: int
    param_dtype: str = "float32"

    @classmethod
    def of(cls, stack: Stack, **settings):
        """The module whose parameters a stack's arrays are."""
        L, D, d_max = stack.layers.U.shape
        dtype = str(np.asarray(stack.centre).dtype)
        return cls(depth=L, width=D, d_max=d_max, param_dtype=dtype, **settings)

    def _stack(self, names: tuple[str, ...]) -> Stack:
        L, D, zeros, ones = self.depth, self.width, nn.initializers.zeros, nn.initializers.ones
        dtype = jnp.dtype(self.param_dtype)
        shapes = {
            "U": (D, self.d_max), "V": (D, num_products(self.d_max)), "mu": (D,), "x_c": (D,),
            "gamma": (), "alpha": (), "m": (D,), "s": (),
        }  # fmt: skip
        held = {}
        for name, shape in shapes.items():
            init = ones if name in ("gamma", "s") else zeros
            held[name] = (
                self.param(name, init, (L, *shape), dtype) if name in names else jnp.zeros((L, 0))
            )
        centre, scale = (
            self.param("centre", zeros, (D,), dtype), self.param("scale", ones, (), dtype),
        )  # fmt: skip
        return Stack(Layer(**held), np.zeros(L, np.int64), centre, scale)


ENCODER_PARAMETERS = ("U", "mu", "gamma", "alpha", "m", "s")
"""What F reads of a layer; G reads all of it."""


class FlatEncoder(_Held):
    """``F_L ... F_1`` after the normalisation of the data; see :class:`_Held` for the settings."""

    @nn.compact
    def __call__(self, X: Array) -> Array:
        """``(N, D)`` to ``(N, D)``; the first principal coordinates of the result carry it."""
        return encode(self._stack(ENCODER_PARAMETERS), X)


class FlatDecoder(_Held):
    """``G_1 ... G_L``, then back to the data's own scale.

    Attributes:
      decoder_order: one of :data:`DECODER_ORDERS`; see the top of the file.
    """

    decoder_order: str = "reverse"

    @nn.compact
    def __call__(self, Z: Array) -> Array:
        """``(N, D)`` to ``(N, D)``."""
        return decode(self._stack(Layer._fields), Z, self.decoder_order)


def encoder_variables(stack: Stack) -> dict[str, Any]:
    """The variables of a :class:`FlatEncoder`."""
    return _variables(stack, ENCODER_PARAMETERS)


def decoder_variables(stack: Stack) -> dict[str, Any]:
    """The variables of a :class:`FlatDecoder`."""
    return _variables(stack, Layer._fields)


def _variables(stack: Stack, names: tuple[str, ...]) -> dict[str, Any]:
    of_layers = {name: jnp.asarray(getattr(stack.layers, name)) for name in names}
    return {
        "params": of_layers
        | {"centre": jnp.asarray(stack.centre), "scale": jnp.asarray(stack.scale)}
    }
