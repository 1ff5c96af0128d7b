"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a scan once; here it counts as often as it runs. Matrix products
and convolutions only, two operations a multiply-add. Of a step without rematerialisation it is the
numerator of model FLOPs utilisation; with it, recomputed products count too: hardware FLOPs.
Arrays are global, so the count is of all devices together.
"""

import math
from collections.abc import Callable

import jax
from jax.extend import core


def matmul_flops(function: Callable, *args) -> int:
    """FLOPs of the products in ``function(*args)``; arguments may be shapes."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr, inside_kernel=False)[0]


MATRIX_UNIT = 128
"""Side of the matrix unit that a product in a kernel fills, or leaves empty."""


def kernel_flops(function: Callable, *args) -> int:
    """What the products in Pallas kernels cost a matrix unit.

    Their part of :func:`matmul_flops`, with the contracted axis and the last one filled up to
    ``MATRIX_UNIT``: heads of 64 leave half of it idle.
    """
    return _count(jax.make_jaxpr(function)(*args).jaxpr, inside_kernel=False)[1]


def _count(jaxpr, inside_kernel: bool) -> tuple[int, int]:
    """FLOPs of all products, and what those in kernels cost."""
    counts = [_of_equation(equation, inside_kernel) for equation in jaxpr.eqns]
    return sum(c[0] for c in counts), sum(c[1] for c in counts)


def _of_equation(equation, inside_kernel: bool) -> tuple[int, int]:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner = math.prod(shape[axis] for axis in contracted)
        *rows, columns = (1, *equation.outvars[0].aval.shape)
        filled = 2 * math.prod(rows) * _filled(columns) * _filled(inner)
        return 2 * math.prod(rows) * columns * inner, filled * inside_kernel
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = params["dimension_numbers"].rhs_spec[0]
        flops = 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel)
        return flops // kernel[outputs], flops // kernel[outputs] * inside_kernel
    inside_kernel = inside_kernel or name == "pallas_call"
    counts = [_count(j, inside_kernel) for value in params.values() for j in _jaxprs(value)]
    if name == "cond":
        return max(counts)
    times = _repeats(name, params)
    return times * sum(c[0] for c in counts), times * sum(c[1] for c in counts)


def _filled(side: int) -> int:
    return -(-side // MATRIX_UNIT) * MATRIX_UNIT


def _repeats(name: str, params) -> int:
    """How often the jaxprs of an equation run, over all devices."""
    if name == "scan":
        return params["length"]
    if name == "pallas_call":
        return math.prod(params["grid_mapping"].grid)
    if name == "shard_map":  # its arrays are one device's
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _jaxprs(value):
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, core.ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, core.Jaxpr):
            yield item
