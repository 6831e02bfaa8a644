"""Properties of a compiled program, from the text of its HLO: kernels, memory traffic, collectives."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

# Operations that run as a kernel or a copy on their own; the others are free (bitcasts, tuples) or part of a fusion.
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
_KERNELS = {
    *("fusion", "custom-call", "convolution", "dot", "reduce", "sort", "scatter", "rng-bit-generator"),
    *("copy", "copy-start", "transpose", "broadcast", "concatenate", "convert"),
    *("dynamic-slice", "dynamic-update-slice"),
    *(kind + suffix for kind in _COLLECTIVES for suffix in ("", "-start")),
}
_SIZES = {"pred": 1, "s4": 1, "u4": 1}  # bytes; the first number in the names of other types is their bits

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(
    r"(?:body|to_apply|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_FUSED = re.compile(r"\bcalls=%?([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|c64|c128|[a-z]+\d+[a-z0-9]*)\[([\d,]*)\]")
_OPERAND = re.compile(r"%([\w.\-]+)")


class Collective(NamedTuple):
    """Uses of one kind of communication in a run of the program."""

    number: int
    bytes: int  # of the results on one device


@dataclass
class Program:
    """Statistics of one run of a program on one of its devices."""

    launches: int = 0  # kernels and copies, those in loops as often as they run
    bytes_moved: int = 0  # bytes that they read and write
    collectives: dict[str, Collective] = field(default_factory=dict)  # by kind, see `_COLLECTIVES`
    permuted_types: set[str] = field(default_factory=set)  # element types in all-to-all or collective-permute
    custom_calls: Counter = field(default_factory=Counter)  # targets of custom calls, with their number in the text


class _Instruction(NamedTuple):
    name: str
    shape: str
    operation: str
    rest: str  # operands and attributes


def analyze(hlo: str) -> Program:
    """Returns the statistics of a compiled program.

    Args:
        hlo: `compiled.as_text()`.
    """
    computations, entry = _parse(hlo)
    shapes = {row.name: row.shape for rows in computations.values() for row in rows}
    program = Program(custom_calls=Counter(re.findall(r'custom_call_target="([^"]+)"', hlo)))
    for row, times in _executed(computations, entry, 1):
        if row.operation in _KERNELS:
            program.launches += times
            program.bytes_moved += times * _bytes_moved(row, computations, shapes)
        kind = row.operation.removesuffix("-done")  # the shape of an asynchronous start has the operands as well
        if kind in _COLLECTIVES:
            old = program.collectives.get(kind, Collective(0, 0))
            program.collectives[kind] = Collective(old.number + times, old.bytes + times * _bytes(row.shape))
            if kind in ("all-to-all", "collective-permute"):
                program.permuted_types |= {element for element, _ in _ARRAY.findall(row.shape)}
    return program


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """Returns the instructions of each computation, and the name of the first one to run."""
    computations: dict[str, list[_Instruction]] = {}
    entry, rows = "", []
    for line in hlo.splitlines():
        if match := _COMPUTATION.match(line):
            rows = computations[match[2]] = []
            entry = match[2] if match[1] else entry
        elif match := _INSTRUCTION.match(line):
            rows.append(_Instruction(*match.groups()))
    return computations, entry


def _executed(computations: dict[str, list[_Instruction]], name: str, times: int) -> Iterator[tuple[_Instruction, int]]:
    """Yields the instructions of a computation and of what it calls, with how often they run.

    Bodies of fusions and reductions are part of their kernel.
    """
    for row in computations[name]:
        yield row, times
        if row.operation in ("while", "call", "conditional"):
            trips = _trips(row, computations) if row.operation == "while" else 1
            for match in _CALLED.finditer(row.rest):
                for called in re.findall(r"[\w.\-]+", match[1] or match[2]):
                    yield from _executed(computations, called, times * trips)


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Returns how often the body of a loop runs; 1 if that is unknown."""
    if known := _TRIPS.search(loop.rest):
        return int(known[1])
    # Programs of TPUs do not say it, but compare a counter that starts at 0 with a constant.
    condition = computations[_CONDITION.findall(loop.rest)[0]]
    limits = [int(row.rest.split(")")[0]) for row in condition if row.operation == "constant" and row.rest[0].isdigit()]
    compares = any(row.operation == "compare" and "direction=LT" in row.rest for row in condition)
    return limits[0] if compares and len(limits) == 1 else 1


def _bytes_moved(row: _Instruction, computations: dict[str, list[_Instruction]], shapes: dict[str, str]) -> int:
    """Returns the bytes that a kernel reads and writes: of arrays that it slices or updates, that part alone."""
    called = _FUSED.search(row.rest)
    if called is None:
        kernel = [row]
        inputs = {operand: shapes.get(operand, "") for operand in _operands(row)}
    else:
        kernel = computations[called[1]]
        inputs = {inner.name: inner.shape for inner in kernel if inner.operation == "parameter"}
    readers: dict[str, list[_Instruction]] = {}
    for inner in kernel:
        for operand in _operands(inner):
            readers.setdefault(operand, []).append(inner)
    reads = sum(_bytes_read(name, shape, readers) for name, shape in inputs.items())
    updates = [inner for inner in kernel if inner.operation == "dynamic-update-slice"]  # in place
    unchanged = sum(_bytes(update.shape) - _bytes(shapes[_operands(update)[1]]) for update in updates)
    return reads + _bytes(row.shape) - unchanged


def _bytes_read(name: str, shape: str, readers: dict[str, list[_Instruction]]) -> int:
    """Returns the bytes that a kernel reads of one of its inputs."""
    total = 0
    for reader in readers.get(name, []):
        if reader.operation == "dynamic-slice" and _operands(reader)[0] == name:
            total += _bytes(reader.shape)
        elif reader.operation == "bitcast":
            total += _bytes_read(reader.name, shape, readers)
        elif reader.operation != "dynamic-update-slice" or _operands(reader)[0] != name:
            return _bytes(shape)
    return min(total, _bytes(shape))


def _operands(row: _Instruction) -> list[str]:
    return _OPERAND.findall(row.rest.split("), ")[0])


def _bytes(shape: str) -> int:
    """Returns the bytes of an array such as `bf16[8,197,768]{2,1,0}`, or of a tuple of arrays."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        element = _SIZES.get(kind) or int(re.findall(r"\d+", kind)[0]) // 8
        total += element * prod(int(size) for size in sizes.split(",") if size)
    return total
