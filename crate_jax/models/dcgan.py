"""Encoder and decoder of closed-loop transcription: mini-DCGAN's, and CSC-CTRL's in their place.

    f: X -> Z    stages that halve the image, then one that takes what is left to nz numbers, which
                 are divided by their norm; features lie on the sphere
    g: Z -> X    the same stages mirrored, as transposed convolutions, tanh at the end

With ``encoder='conv'`` at 32 x 32 pixels and widths 64, 128, 256 this is the net of CTRL's released
code (github.com/Delay-Xili/LDR) on MNIST and CIFAR-10: convolutions without bias from N(0, 0.02),
BatchNorm from N(1, 0.02) but after the first and the last, leaky ReLU of slope 0.2.

With ``encoder='csc'`` each convolution is a sparse-coding layer with BatchNorm behind it, as in
SDNet: codes are non-negative, which does what a ReLU would, and signed in the last stage, which
goes to the sphere. A stage of the decoder is then ``x = A z`` of the layer's problem. CSC-CTRL
(arXiv 2302.09347) has published no code: this composition of its parts is ours. Images whose
correlations with all atoms of a stage lie below lambda have a code of zeros and no gradient; a
fresh decoder of few channels makes such images, and wants a lower lambda.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from crate_jax.config import ConfigError
from crate_jax.layers.batch_norm import BatchNorm
from crate_jax.layers.convolution import conv
from crate_jax.layers.csc import COLLECTION, CSC, Synthesis
from crate_jax.ops import convolutional_sparse_coding as csc
from crate_jax.ops.sphere import unit

VARIANTS = {
    "8": {"image_size": 8, "widths": (32,)},
    "32": {"image_size": 32, "widths": (64, 128, 256)},
    "48": {"image_size": 48, "widths": (64, 128, 256, 512)},
    "64": {"image_size": 64, "widths": (64, 128, 256, 512)},
    "128": {"image_size": 128, "widths": (64, 128, 256, 512, 1024)},
}
"""Widths by the side of the image in pixels."""

ENCODERS = ("conv", "csc")
TIED = ("false", "init", "true")
"""The decoder's dictionaries: its own, its own from the encoder's at the start, the encoder's."""

_normal = nn.initializers.normal(0.02)


def _scale_init(key, shape, dtype=jnp.float32):
    return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


@dataclasses.dataclass(frozen=True)
class Stage:
    """Geometry of one convolution: images of ``side`` and ``channels`` to ``atoms`` a place."""

    side: int
    channels: int
    atoms: int
    kernel: int
    stride: int
    padding: int

    @property
    def code_side(self) -> int:
        """Places along a side of the code."""
        return csc.code_side(self.side, self.kernel, stride=self.stride, padding=self.padding)


class Stages(nn.Module):
    """What encoder, decoder and the whole share: sizes, and the settings of sparse coding.

    Attributes:
      image_size: of the square images.
      widths: channels after each stage but the last.
      encoder: ``conv`` or ``csc``.
      tied: a word of ``TIED``.
      channels: of the images.
      nz: numbers an image becomes.
      kernels, strides, paddings: of these stages, one for all or one each. The last stage's kernel
        is as large as what it sees.
      steps, lmbda: proximal steps and sparsity of each sparse-coding stage, the last included, one
        for all or one each.
      mu, squared, gradient_at, adaptive_lmbda: see ``layers.csc.CSC``.
      remat: ``none``, or anything else to compute a stage's inside again in the backward pass.
    """

    image_size: int
    widths: tuple[int, ...]
    encoder: str = "conv"
    tied: str = "false"
    channels: int = 1
    nz: int = 128
    kernels: tuple[int, ...] = (4,)
    strides: tuple[int, ...] = (2,)
    paddings: tuple[int, ...] = (1,)
    steps: tuple[int, ...] = (2,)
    lmbda: tuple[float, ...] = (0.1,)
    mu: float = 0.0
    squared: bool = True
    gradient_at: str = "code"
    adaptive_lmbda: bool = False
    remat: str = "none"
    dtype: str | None = None
    param_dtype: str = "float32"

    def of_each(self, name: str, count: int) -> tuple:
        """A setting that is one for all or one each, as one each."""
        values = tuple(getattr(self, name))
        if len(values) == 1:
            return values * count
        if len(values) != count:
            raise ConfigError(
                f"config.model.{name} has {len(values)} entries for {count} stages; write one, or "
                f"one a stage."
            )
        return values

    def stages(self) -> tuple[Stage, ...]:
        """The geometry from the image to the features.

        Raises:
          ConfigError: where a stage leaves nothing for the next.
        """
        out, side, channels = [], self.image_size, self.channels
        each = (self.of_each(name, len(self.widths)) for name in ("kernels", "strides", "paddings"))
        for atoms, kernel, stride, padding in zip(self.widths, *each, strict=True):
            stage = Stage(side, channels, atoms, kernel, stride, padding)
            if stage.code_side < 1:
                raise ConfigError(
                    f"config.model.widths={tuple(self.widths)}: images of {self.image_size} pixels "
                    f"have no place left after {len(out)} stages; take fewer."
                )
            out.append(stage)
            side, channels = stage.code_side, atoms
        return (*out, Stage(side, channels, self.nz, side, 1, 0))

    def part_settings(self) -> dict:
        """The fields, for a part that has the same."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(Stages)
                if f.name not in ("parent", "name")}  # fmt: skip


class Encoder(Stages):
    """Images to unit features, by convolutions or by sparse coding."""

    @nn.compact
    def __call__(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """Features ``(B, nz)``; sows each stage's ``codes``."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        stages = self.stages()
        steps, lmbda = self.of_each("steps", len(stages)), self.of_each("lmbda", len(stages))
        Layer = CSC if self.remat == "none" else nn.remat(CSC, prevent_cse=False)
        h = x_BHWC
        for i, stage in enumerate(stages):
            first, last = i == 0, i == len(stages) - 1
            name = f"stage_{i}"
            if self.encoder == "csc":
                h = Layer(
                    stage.atoms, stage.kernel, stage.stride, stage.padding, steps=steps[i],
                    lmbda=lmbda[i], mu=self.mu, non_negative=not last, squared=self.squared,
                    gradient_at=self.gradient_at, adaptive_lmbda=self.adaptive_lmbda, name=name,
                    **dtypes,
                )(h)  # fmt: skip
                self.sow("intermediates", f"codes_{i}", h)
            else:
                h = conv(
                    stage.atoms, stage.kernel, stride=stage.stride, padding=stage.padding,
                    kernel_init=_normal, name=name, **dtypes,
                )(h)  # fmt: skip
            if not last and (self.encoder == "csc" or not first):
                h = BatchNorm(scale_init=_scale_init, name=f"norm_{i}", **dtypes)(h, train=train)
            if not last and self.encoder == "conv":
                h = nn.leaky_relu(h, 0.2)
        return unit(h.reshape(h.shape[0], -1))


class Decoder(Stages):
    """Features to images in [-1, 1], by transposed convolutions."""

    @nn.compact
    def __call__(self, z_BD: Array, shared: tuple = (), *, train: bool = False) -> Array:
        """Images; ``shared`` are the encoder's dictionaries, to use or to start from."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = z_BD[:, None, None, :]
        for i, stage in reversed(tuple(enumerate(self.stages()))):
            init = _normal if self.tied != "init" or not shared else _copy_of(shared[i])
            h = Synthesis(
                stage.channels, stage.side, stage.kernel, stage.stride, stage.padding, init=init,
                name=f"stage_{i}", **dtypes,
            )(h, shared[i] if self.tied == "true" else None)  # fmt: skip
            if i:
                h = BatchNorm(scale_init=_scale_init, name=f"norm_{i}", **dtypes)(h, train=train)
                h = nn.relu(h)
        return jnp.tanh(h)


def _copy_of(w):
    return lambda key, shape, dtype: jnp.asarray(w, dtype)


class DCGANTranscription(Stages):
    """Encoder f and decoder g of one transcription; see the module and :class:`Stages`."""

    def setup(self):
        self.f = Encoder(**self.part_settings())
        self.g = Decoder(**self.part_settings())

    def __call__(self, x_BHWC: Array, *, train: bool = False) -> tuple[Array, Array]:
        """Features Z = f(X) and the transcription g(Z)."""
        z = self.encode(x_BHWC, train=train)
        return z, self.decode(z, train=train)

    def encode(self, x_BHWC: Array, *, train: bool = False) -> Array:
        """``f(X)``, ``(B, nz)``."""
        return self.f(x_BHWC, train=train)

    def decode(self, z_BD: Array, *, train: bool = False) -> Array:
        """``g(Z)``, ``(B, H, W, C)``."""
        shared = ()
        if self.tied == "true" or (self.tied == "init" and self.is_initializing()):
            leaf = "atoms" if self.encoder == "csc" else "kernel"
            own = self.f.variables["params"]
            shared = tuple(own[f"stage_{i}"][leaf] for i in range(len(self.stages())))
        return self.g(z_BD, shared, train=train)

    def project(self, params: dict) -> dict:
        """Parameters with the encoder's atoms at unit norm again, where it has atoms."""
        if self.encoder != "csc":
            return params
        f = {
            name: {**leaves, "atoms": csc.unit_atoms(leaves["atoms"])}
            if "atoms" in leaves
            else leaves
            for name, leaves in params["f"].items()
        }
        return {**params, "f": f}

    def renew(self, variables: dict) -> dict:
        """Variables with every sparse-coding step renewed by a power iteration from the last one's.

        ``eta = 0.9 / L``, L the largest eigenvalue of ``A* A`` of the atoms as they are now. The
        released layer does it before each step, on atoms that the optimizer has moved off the
        sphere; here they are back on it.
        """
        if self.encoder != "csc":
            return variables
        steps = {}
        for i, stage in enumerate(self.stages()):
            name = f"stage_{i}"
            old = variables[COLLECTION]["f"][name]
            L, vector = csc.power_iteration(
                variables["params"]["f"][name]["atoms"], old["vector"],
                side=(stage.side, stage.side), stride=stage.stride, padding=stage.padding,
            )  # fmt: skip
            steps[name] = {"step_size": csc.SAFETY / L, "vector": vector}
        return {**variables, COLLECTION: {"f": steps}}
