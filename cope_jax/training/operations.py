"""Floating-point operations of a traced program, the same for every device that it may be compiled for."""

from collections.abc import Iterator
from math import prod
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_operations(jaxpr: Jaxpr) -> float:
    """Returns the operations of all matrix products and convolutions of a program, on all devices.

    Other operations are left out, as is usual for MFU. Bodies of scans count as often as they run, those of other loops
    once, and of several branches the largest counts.
    """
    return float(sum(map(_equation_operations, jaxpr.eqns)))


def _equation_operations(equation: JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return 2 * prod(_shape(equation.outvars[0])) * prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        products = prod(kernel) / kernel[params["dimension_numbers"].rhs_spec[0]]
        # Zeros between the pixels of a dilated input are not multiplied.
        return 2 * prod(_shape(equation.outvars[0])) * products / prod(params["lhs_dilation"])
    counts = [count_operations(inner) for inner in _inner_programs(params)]
    if name == "cond":
        return max(counts)
    times = params["mesh"].size if name == "shard_map" else params["length"] if name == "scan" else 1
    return times * sum(counts)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner_programs(params: dict[str, Any]) -> Iterator[Jaxpr]:
    """Yields the programs among the parameters of an operation."""
    for value in params.values():
        for inner in value if isinstance(value, tuple | list) else (value,):
            if isinstance(inner, ClosedJaxpr):
                yield inner.jaxpr
            elif isinstance(inner, Jaxpr):
                yield inner
