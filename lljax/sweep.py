"""Sweeps along a chain of steps, forward and back, with a tree of kept states.

Nothing here knows of training: a step maps a state and its inputs to the next state, a step back
maps a cotangent, the record of the step and its inputs to the cotangent before it. Which states are
kept is a tuple `counts` = (b_1, .., b_d), from `memory.MemoryStrategy.split`: b_1 segments of b_2
segments ... of b_d steps, with b_1 ... b_d >= T. Places of the tree beyond T are idle.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lljax.array_types import zeros_of

Advance = Callable[[Any, Any], tuple[Any, Any]]
"""(state, inputs of one step) -> (next state, output)."""

StepBack = Callable[[Any, tuple[Any, Any]], tuple[Any, Any]]
"""(cotangent, (record, inputs of the step)) -> (cotangent before the step, output)."""


def forward(
    advance: Advance,
    advance_and_record: Advance,
    start: Any,
    inputs: Any,
    counts: tuple[int, ...],
) -> tuple[Any, Any, Any]:
    """All T steps from a state.

    Args:
      advance: a step.
      advance_and_record: the same step; its output is (the output, the record for the step back).
      start: s_0.
      inputs: leaves [T, ...].
      counts: the tree.

    Returns:
      (s_T; the outputs [T, ...]; what the backward sweep starts from: the records of all steps
      [T, ...] where the tree has one level, else the first states of the top segments [b_1, ...]).
    """
    steps = _nest(inputs, counts)
    if len(counts) == 1:
        end, (outputs, kept) = _scan(advance_and_record, start, steps)
    else:
        end, (outputs, kept) = _advance_and_keep(advance, start, steps, len(counts))
    return end, _flatten(outputs, counts, _length(inputs)), kept


def backward(
    step_back: StepBack,
    advance: Advance,
    advance_and_record: Advance,
    cotangent: Any,
    kept: Any,
    inputs: Any,
    counts: tuple[int, ...],
) -> tuple[Any, Any]:
    """All T steps back, from the cotangent of s_T.

    Args:
      step_back: a step back.
      advance: a step, to come to the first state of a segment.
      advance_and_record: a step whose output is its record.
      cotangent: of s_T.
      kept: what the forward sweep kept.
      inputs: leaves [T, ...].
      counts: the tree, as in the forward sweep.

    Returns:
      (the cotangent of s_0, the outputs of the steps back [T, ...]).
    """

    def back(cotangent, kept, steps, depth):
        if depth == 1:
            with_records = steps._replace(inputs=(kept, steps.inputs))
            return _scan(step_back, cotangent, with_records, reverse=True)

        def segment(cotangent, start_and_steps):
            start, steps = start_and_steps
            if depth == 2:
                _, kept = _scan(advance_and_record, start, steps)
            else:
                _, (_, kept) = _advance_and_keep(advance, start, steps, depth - 1)
            return back(cotangent, kept, steps, depth - 1)

        return jax.lax.scan(segment, cotangent, (kept, steps), reverse=True)

    cotangent, outputs = back(cotangent, kept, _nest(inputs, counts), len(counts))
    return cotangent, _flatten(outputs, counts, _length(inputs))


class _Steps(NamedTuple):
    """The inputs of steps, cut into a tree: leaves [b_1, .., b_d, ...]."""

    inputs: Any
    live: jax.Array | None  # [b_1, .., b_d] bool; None where the tree has no idle places


def _length(inputs: Any) -> int:
    """T."""
    return jax.tree.leaves(inputs)[0].shape[0]


def _nest(inputs: Any, counts: tuple[int, ...]) -> _Steps:
    num_steps, places = _length(inputs), math.prod(counts)

    def nest(leaf):
        if places > num_steps:
            leaf = jnp.pad(leaf, [(0, places - num_steps)] + [(0, 0)] * (leaf.ndim - 1))
        return leaf.reshape(*counts, *leaf.shape[1:])

    live = nest(jnp.ones(num_steps, bool)) if places > num_steps else None
    return _Steps(jax.tree.map(nest, inputs), live)


def _flatten(tree: Any, counts: tuple[int, ...], num_steps: int) -> Any:
    """The reverse of `_nest`, for what its steps gave."""
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[len(counts) :])[:num_steps], tree)


def _scan(body, carry, steps: _Steps, reverse: bool = False):
    """`lax.scan` over a segment of single steps; in idle places nothing happens."""

    def guarded(carry, step):
        if step.live is None:
            return body(carry, step.inputs)
        _, output = jax.eval_shape(body, carry, step.inputs)

        def idle(carry, _):
            return carry, zeros_of(output)

        return jax.lax.cond(step.live, body, idle, carry, step.inputs)

    return jax.lax.scan(guarded, carry, steps, reverse=reverse)


def _advance(advance, state, steps: _Steps, depth: int):
    """All steps of a tree of the given depth."""
    if depth == 1:
        return _scan(advance, state, steps)
    return jax.lax.scan(lambda s, segment: _advance(advance, s, segment, depth - 1), state, steps)


def _advance_and_keep(advance, state, steps: _Steps, depth: int):
    """As `_advance`; beside the outputs the states in which the top segments start, [b_1]."""

    def segment(start, steps):
        end, outputs = _advance(advance, start, steps, depth - 1)
        return end, (outputs, start)

    return jax.lax.scan(segment, state, steps)
