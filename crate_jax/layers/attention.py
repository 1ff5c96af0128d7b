"""Multi-head subspace self-attention (MSSA), and the ordinary attention it is compared with."""

from collections.abc import Callable

from flax import linen as nn
from jax import Array

from crate_jax.layers.initializers import torch_uniform
from crate_jax.ops.attention import attend
from crate_jax.ops.products import product
from crate_jax.sharding.mesh import BATCH_AXES
from crate_jax.sharding.rules import MESH_AXES

OUT_MAPS = ("free+bias", "free", "tied")


class Subspaces(nn.Module):
    """The bases ``[U_1 ... U_K]``, each ``d x P``, as one kernel ``(d, K, P)``.

    ``project`` takes tokens to ``U_k^T z`` for every k; ``lift`` goes back, ``sum_k U_k w_k``.
    """

    width: int
    heads: int
    head_dim: int
    kernel_init: Callable = torch_uniform()
    dtype: str | None = None
    param_dtype: str = "float32"

    def setup(self):
        shape = (self.width, self.heads, self.head_dim)
        self.kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)

    def project(self, x_BND: Array) -> Array:
        x_BND, U_DKP = nn.dtypes.promote_dtype(x_BND, self.kernel, dtype=self.dtype)
        # One axis for all heads, so that compilers need no layout by heads.
        w_BNF = product(x_BND, U_DKP.reshape(self.width, -1))
        return w_BNF.reshape(*x_BND.shape[:-1], self.heads, self.head_dim)

    def lift(self, w_BNKP: Array) -> Array:
        w_BNKP, U_DKP = nn.dtypes.promote_dtype(w_BNKP, self.kernel, dtype=self.dtype)
        w_BNF = w_BNKP.reshape(*w_BNKP.shape[:-2], -1)
        return product(w_BNF, U_DKP.reshape(self.width, -1).T)


def merge_heads(x_BNKP: Array, kernel_KPD: Array, dimensions, **settings) -> Array:
    """The product over (K, P) as one over K P: a layout by heads would cost copies."""
    assert dimensions == (((x_BNKP.ndim - 2, x_BNKP.ndim - 1), (0, 1)), ((), ()))
    x_BNF = x_BNKP.reshape(*x_BNKP.shape[:-2], -1)
    kernel_FD = kernel_KPD.reshape(-1, kernel_KPD.shape[-1])
    return product(x_BNF, kernel_FD, **settings)


class MSSA(nn.Module):
    """Multi-head subspace self-attention: one projection is query, key and value.

        w_k = U_k^T z,   SSA_k = softmax(scale w_k w_k^T) w_k,   MSSA = [SSA_1 ... SSA_K] W_o + b_o

    The theory has ``W_o = [U_1 ... U_K]^T`` (``out_map='tied'``); the released code a free map
    with a bias (CRATE) or without (CRATE-alpha). CRATE has no output map at all for a single head
    as wide as the model.

    Attributes:
      heads, head_dim: K and P.
      out_map: ``free+bias``, ``free`` or ``tied``.
      scale: factor on the Gram matrix; None is ``P**-0.5``. The theory's is 1.
      causal: for language models.
      implementation, remat: see ``ops.attention.attend``; capturing attention needs ``einsum``.
      kernel_init, out_init, bias_init: initialisers; ``bias_init`` None is torch's default.
    """

    heads: int
    head_dim: int
    out_map: str = "free+bias"
    scale: float | None = None
    causal: bool = False
    implementation: str = "einsum"
    remat: bool = False
    kernel_init: Callable = torch_uniform()
    out_init: Callable = torch_uniform()
    bias_init: Callable | None = None
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BND: Array) -> tuple[Array, dict[str, Array | None]]:
        """Returns the update of the tokens, and its ``projections`` and ``attention``."""
        K, P, D = self.heads, self.head_dim, x_BND.shape[-1]
        scale = P**-0.5 if self.scale is None else self.scale
        U = Subspaces(D, K, P, self.kernel_init, self.dtype, self.param_dtype, name="subspaces")
        w_BNKP = U.project(x_BND)
        ssa_BNKP, A_BKNN = attend(
            w_BNKP, w_BNKP, w_BNKP,
            scale=scale, causal=self.causal, implementation=self.implementation, remat=self.remat,
            batch_axes=BATCH_AXES, head_axis=MESH_AXES["heads"],
        )  # fmt: skip
        if self.out_map == "tied":
            out_BND = U.lift(ssa_BNKP)
        elif self.out_map == "free+bias" and K == 1 and P == D:
            out_BND = ssa_BNKP[..., 0, :]
        else:
            out_BND = nn.DenseGeneral(
                D,
                axis=(-2, -1),
                use_bias=self.out_map == "free+bias",
                kernel_init=self.out_init,
                bias_init=self.bias_init or torch_uniform(K * P),
                dtype=self.dtype,
                param_dtype=self.param_dtype,
                dot_general=merge_heads,
                name="out",
            )(ssa_BNKP)
        return out_BND, {"projections": w_BNKP, "attention": A_BKNN}


class MHSA(nn.Module):
    """Ordinary multi-head self-attention with its own query, key and value maps (ViT).

    Attributes:
      heads, head_dim: K and P.
      qkv_bias: biases on the three input maps.
      causal, implementation, remat: as in :class:`MSSA`.
      kernel_init, bias_init: initialisers of all four maps.
    """

    heads: int
    head_dim: int
    qkv_bias: bool = True
    causal: bool = False
    implementation: str = "einsum"
    remat: bool = False
    kernel_init: Callable = nn.initializers.xavier_uniform()
    bias_init: Callable = nn.initializers.zeros
    dtype: str | None = None
    param_dtype: str = "float32"

    @nn.compact
    def __call__(self, x_BND: Array) -> tuple[Array, dict[str, Array | None]]:
        """Returns the update of the tokens; ``projections`` are the keys, as the papers compare."""

        def dense(features, axis, use_bias, name):
            return nn.DenseGeneral(
                features, axis=axis, use_bias=use_bias, name=name,
                kernel_init=self.kernel_init, bias_init=self.bias_init,
                dtype=self.dtype, param_dtype=self.param_dtype,
            )  # fmt: skip

        q, k, v = (
            dense((self.heads, self.head_dim), -1, self.qkv_bias, name)(x_BND)
            for name in ("query", "key", "value")
        )
        out_BNKP, A_BKNN = attend(
            q, k, v,
            scale=self.head_dim**-0.5, causal=self.causal,
            implementation=self.implementation, remat=self.remat,
        )  # fmt: skip
        out_BND = dense(x_BND.shape[-1], (-2, -1), True, "out")(out_BNKP)
        return out_BND, {"projections": k, "attention": A_BKNN}
