"""Rotary position embeddings (RoPE), with the scalings that released language models use."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import Array

KINDS = ("default", "linear", "dynamic", "llama3")


@dataclasses.dataclass(frozen=True)
class Rope:
    """Frequencies of the rotations.

    Attributes:
      theta: base; pair i of a head of size D turns by ``theta^(-2i/D)`` a token.
      kind: ``default``, ``linear`` (all frequencies divided by ``factor``), ``dynamic`` (a larger
        base for texts longer than ``original_length``) or ``llama3`` (Llama 3.1: long wavelengths
        divided, short ones kept, a ramp in between).
      factor: of the scaling.
      low, high: ``llama3``: turns within ``original_length`` tokens below which a frequency is
        divided by ``factor``, and above which it is kept.
      original_length: tokens of the training before the context was extended.
    """

    theta: float = 10_000.0
    kind: str = "default"
    factor: float = 1.0
    low: float = 1.0
    high: float = 4.0
    original_length: int = 8192


def frequencies(rope: Rope, head_dim: int, length: int, dtype=np.float64) -> np.ndarray:
    """Radians a token of each pair, ``(D/2,)``, for texts of ``length`` tokens.

    Every step is rounded to ``dtype``, as in the code that the models were released with: in
    float32, the position times a last bit is what counts over thousands of tokens.
    """
    dtype = np.dtype(dtype).type
    theta = rope.theta
    if rope.kind == "dynamic" and length > rope.original_length:
        stretch = rope.factor * length / rope.original_length - (rope.factor - 1)
        theta *= stretch ** (head_dim / (head_dim - 2))
    exponents = np.arange(0, head_dim, 2, dtype=dtype) / dtype(head_dim)
    omega = 1 / (theta ** exponents.astype(np.float64)).astype(dtype)
    if rope.kind == "linear":
        return omega / dtype(rope.factor)
    if rope.kind == "llama3":
        turns = rope.original_length / (2 * math.pi / omega)
        kept = np.clip((turns - rope.low) / (rope.high - rope.low), 0, 1)
        return (1 - kept) * omega / dtype(rope.factor) + kept * omega
    return omega


def tables(rope: Rope, length: int, head_dim: int, dtype) -> tuple[Array, Array]:
    """Cosines and sines, each ``(T, D/2)``, of the positions ``0 ... T-1``.

    Frequencies and angles are formed in ``dtype``, float32 or better, as the released models' are.
    """
    omega = jnp.asarray(frequencies(rope, head_dim, length, dtype))
    angles = jnp.arange(length, dtype=dtype)[:, None] * omega[None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BTHD: Array, cos_TP: Array, sin_TP: Array) -> Array:
    """Turns the pairs ``(x_i, x_{i + D/2})`` of every head.

    This is the order of the two halves that Hugging Face's weights are in; the original Llama files
    (and GGUF) pair neighbours ``(x_2i, x_2i+1)`` and need their rows permuted first.

    Returns:
      ``(B, T, H, D)``, in the dtype of the tables where that is the wider one.
    """
    a, b = jnp.split(x_BTHD, 2, axis=-1)
    cos, sin = (table[None, :, None, :] for table in (cos_TP, sin_TP))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
