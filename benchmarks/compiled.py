"""What a compiled program does: its collectives and its arithmetic, loops counted as often as run.

XLA's own cost analysis counts the body of an inner loop once; here every operation is multiplied by
the trip counts of the loops around it, which the compiler writes into the program's text.
"""

import collections
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64, "c64": 64, "c128": 128}
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class Work(NamedTuple):
    """Of one device.

    Attributes:
      calls: how often each kind of collective is run.
      bytes: of their results.
      multiplications: floating multiplications of matrix products.
      largest: elements of the largest array that a collective makes.
    """

    calls: collections.Counter
    bytes: collections.Counter
    multiplications: int
    largest: int


class _Operation(NamedTuple):
    name: str
    shape: str
    kind: str
    rest: str  # its arguments and attributes


def count_work(compiled: Any) -> Work:
    """Counts what a program of `jax.jit(...).lower(...).compile()` does.

    Raises:
      ValueError: a loop does not say how often it runs.
    """
    computations, entry = _read(compiled.as_text())
    calls: collections.Counter = collections.Counter()
    sizes: collections.Counter = collections.Counter()
    multiplications = largest = 0
    for times, operation, shapes in _walk(computations, entry, 1):
        kind = operation.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            calls[kind] += times
            sizes[kind] += times * _num_bytes(operation.shape)
            largest = max(largest, *(count for count, _ in _arrays(operation.shape)))
        elif operation.kind == "dot":
            multiplications += times * _multiplications(operation, shapes)
    return Work(calls, sizes, multiplications, largest)


def _read(text: str) -> tuple[dict[str, list[_Operation]], str]:
    """(the operations of each computation, the name of the entry)."""
    computations: dict[str, list[_Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = computations.setdefault(found[2], [])
            entry = found[2] if found[1] else entry
        elif current is not None and (found := _OPERATION.match(line)):
            current.append(_Operation(*found.groups()))
    return computations, entry


def _walk(
    computations: dict[str, list[_Operation]], name: str, times: int
) -> Iterator[tuple[int, _Operation, dict[str, str]]]:
    """(how often it is run, an operation, the shapes of its computation's values by name)."""
    operations = computations.get(name, [])
    shapes = {operation.name: operation.shape for operation in operations}
    for operation in operations:
        yield times, operation, shapes
        inner, repeated = _CALLED.findall(operation.rest), times
        for branches in _BRANCHES.findall(operation.rest):
            inner += [branch.strip().lstrip("%") for branch in branches.split(",")]
        if operation.kind == "while":
            trips = _TRIPS.search(operation.rest)
            if trips is None:
                raise ValueError(f"the loop {operation.name} does not say how often it runs.")
            inner = re.findall(r"body=%?([\w.\-]+)", operation.rest)
            repeated = times * int(trips[1])
        if operation.kind in ("while", "call", "fusion", "conditional"):
            for called in inner:
                yield from _walk(computations, called, repeated)


def _arrays(shape: str) -> list[tuple[int, str]]:
    """(elements, dtype) of the arrays of a shape, which may be a tuple."""
    found = []
    for dtype, sizes in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape):
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        found.append((count, dtype))
    return found


def _num_bytes(shape: str) -> int:
    return sum(
        count * _BITS.get(dtype, int("".join(filter(str.isdigit, dtype)) or 8)) // 8
        for count, dtype in _arrays(shape)
    )


def _multiplications(operation: _Operation, shapes: dict[str, str]) -> int:
    """Elements of the product times the length of what is summed."""
    first = operation.rest.split(",")[0].strip()
    # Operands may come with their shapes in front of their names.
    shape = first if "[" in first else shapes[first.lstrip("%").rstrip(")")]
    if "[" in first:
        shape = re.match(r"[a-z]+\d*\[[\d,]*\]", operation.rest.strip())[0]  # type: ignore[index]
    sizes = [int(size) for size in re.search(r"\[([\d,]*)\]", shape)[1].split(",") if size]  # type: ignore[index]
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.rest)
    length = 1
    for dim in filter(None, (summed[1] if summed else "").split(",")):
        length *= sizes[int(dim)]
    (count, _), *_ = _arrays(operation.shape)
    return count * length
