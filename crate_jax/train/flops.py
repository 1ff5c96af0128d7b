"""Floating-point operations of a function, counted in its jaxpr.

XLA's own count takes the body of a scan once; here it counts as often as it runs. Matrix products
and convolutions only, two operations a multiply-add. Of a step without rematerialisation it is the
numerator of model FLOPs utilisation; with it, recomputed products count too.
"""

import math
from collections.abc import Callable

import jax
from jax.extend import core


def matmul_flops(function: Callable, *args) -> int:
    """FLOPs of the products in ``function(*args)``; arguments may be shapes."""
    return _count(jax.make_jaxpr(function)(*args).jaxpr)


def _count(jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        inner = math.prod(shape[axis] for axis in contracted)
        return 2 * math.prod(equation.outvars[0].aval.shape) * inner
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = params["dimension_numbers"].rhs_spec[0]
        return 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // kernel[outputs]
    inner = [_count(j) for value in params.values() for j in _jaxprs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _jaxprs(value):
    for item in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(item, core.ClosedJaxpr):
            yield item.jaxpr
        elif isinstance(item, core.Jaxpr):
            yield item
