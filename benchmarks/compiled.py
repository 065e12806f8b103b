"""What a compiled program does: its collectives and its arithmetic, loops counted as often as run.

XLA's own cost analysis counts the body of an inner loop once; here every operation is multiplied by
the trip counts of the loops around it, which the compiler writes into the program's text.
"""

import collections
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)$")
_CALLED = re.compile(r"(?:to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_OPERAND = re.compile(r"(?:([a-z]+\d*\[[\d,]*\])\S* )?%?([\w.\-]+)")  # perhaps with its shape
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
    found = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
    return [(math.prod(_numbers(sizes)), dtype) for dtype, sizes in found]


def _num_bytes(shape: str) -> int:
    """A dtype's name ends with its bits; that of flags has none, and they take 8."""
    bits = ((count, re.search(r"\d+$", dtype)) for count, dtype in _arrays(shape))
    return sum(count * (int(found[0]) if found else 8) // 8 for count, found in bits)


def _multiplications(operation: _Operation, shapes: dict[str, str]) -> int:
    """Elements of the product times the length of what is summed."""
    operand = _OPERAND.match(operation.rest)
    summed = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", operation.rest)
    assert operand is not None
    sizes = re.search(r"\[([\d,]*)\]", operand[1] or shapes[operand[2]])
    assert sizes is not None
    lengths = _numbers(sizes[1])
    (count, _), *_ = _arrays(operation.shape)
    return count * math.prod(lengths[dim] for dim in _numbers(summed[1] if summed else ""))


def _numbers(listed: str) -> list[int]:
    return [int(number) for number in listed.split(",") if number]
