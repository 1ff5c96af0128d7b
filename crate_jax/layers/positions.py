"""Position tables: sine-cosine ones, and how a learned one is moved to another resolution."""

import jax.numpy as jnp
import numpy as np
from jax import Array

RESAMPLINGS = ("torch_bicubic", "linear")


def sincos2d(grid: tuple[int, int], width: int) -> np.ndarray:
    """MoCo-v3 positions of the patches, ``(h w, width)``: [sin x, cos x, sin y, cos y].

    The frequencies are ``10000**(-i/(width/4 - 1))``, i from 0 to width/4 - 1.
    """
    if width % 4:
        raise ValueError(f"sin-cos positions need a width divisible by 4; got {width}.")
    y, x = (axis.reshape(-1, 1) for axis in np.mgrid[: grid[0], : grid[1]])
    omega = 10000.0 ** -np.linspace(0, 1, width // 4)
    return np.concatenate([f(a * omega) for a in (x, y) for f in (np.sin, np.cos)], axis=1)


def _cubic(t, A=-0.75):
    t = np.abs(t)
    near = (A + 2) * t**3 - (A + 3) * t**2 + 1
    far = A * t**3 - 5 * A * t**2 + 8 * A * t - 4 * A
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _torch_bicubic_matrix(old: int, new: int) -> np.ndarray:
    """``(new, old)`` weights of torch's bicubic at the declared scale ``(new + 0.1)/old``.

    The kernel has A = -0.75 and the border is clamped. The 0.1 is in the released code, against
    rounding, and it moves the sample points.
    """
    source = (np.arange(new) + 0.5) * old / (new + 0.1) - 0.5
    base = np.floor(source).astype(int)
    M = np.zeros((new, old))
    for tap in range(-1, 3):
        column = np.clip(base + tap, 0, old - 1)
        np.add.at(M, (np.arange(new), column), _cubic(source - base - tap))
    return M


def _linear_matrix(old: int, new: int) -> np.ndarray:
    """``(new, old)`` weights of linear interpolation with the corners aligned (scipy's zoom)."""
    source = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    base = np.clip(np.floor(source).astype(int), 0, max(old - 2, 0))
    M = np.zeros((new, old))
    rows = np.arange(new)
    np.add.at(M, (rows, base), 1 - (source - base))
    np.add.at(M, (rows, np.minimum(base + 1, old - 1)), source - base)
    return M


def resample(
    table_1ND: Array,
    new_grid: tuple[int, int],
    *,
    method: str = "torch_bicubic",
    old_grid: tuple[int, int] | None = None,
    leading: int = 1,
) -> Array:
    """A learned position table on another grid of patches.

    Args:
      table_1ND: ``(1, leading + h w, d)``.
      new_grid: rows and columns wanted.
      method: ``torch_bicubic`` (CRATE, DINO) or ``linear`` (CRATE-alpha, corners aligned).
      old_grid: rows and columns of the table; None means square.
      leading: tokens before the patches (the class token), kept as they are.

    Returns:
      ``(1, leading + h' w', d)``; the table itself where the grid is the same.
    """
    count = table_1ND.shape[1] - leading
    if old_grid is None:
        side = round(count**0.5)
        old_grid = (side, side)
    if old_grid[0] * old_grid[1] != count:
        raise ValueError(f"a table of {count} patch positions is no grid of {old_grid}.")
    if tuple(old_grid) == tuple(new_grid):
        return table_1ND
    if method not in RESAMPLINGS:
        raise ValueError(f"positions are resampled by one of {RESAMPLINGS}; got {method!r}.")
    matrix = _torch_bicubic_matrix if method == "torch_bicubic" else _linear_matrix
    rows, columns = (
        jnp.asarray(matrix(old, new), table_1ND.dtype)
        for old, new in zip(old_grid, new_grid, strict=True)
    )
    patches = table_1ND[0, leading:].reshape(*old_grid, -1)
    patches = jnp.einsum("Hh,Ww,hwd->HWd", rows, columns, patches, precision="highest")
    return jnp.concatenate(
        [table_1ND[:, :leading], patches.reshape(1, new_grid[0] * new_grid[1], -1)], axis=1
    )
