"""Where along a run the desired loss is measured, and on which examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lljax.array_types import zeros_of
from lljax.types import Params, StepInputs


class Place(NamedTuple):
    """Where along the run a desired loss is measured, and on what."""

    desired_index: jax.Array | None  # [K'] of the desired examples; None for all of them
    is_measured: jax.Array | None  # [] bool; None where every step is


def where_measured(place: Place, compute: Callable[[Params], Any], params: Params) -> Any:
    """What is computed of the parameters; zeros where nothing is measured."""
    if place.is_measured is None:
        return compute(params)
    like = jax.eval_shape(compute, params)

    def nothing(_):
        return zeros_of(like)

    return jax.lax.cond(place.is_measured, compute, nothing, params)


def places(inputs: StepInputs, eval_every: int) -> tuple[Place, Place, Place, Place]:
    """Those of L(theta_0); of theta_0 .. theta_{T-1} [T]; of theta_1 .. theta_T [T]; of theta_T."""
    index, steps = inputs.desired_index, jnp.arange(inputs.weights.shape[0])

    def flags(steps):
        return None if eval_every == 1 else steps % eval_every == 0

    def cut(part):
        return None if index is None else index[part]

    return (
        Place(cut(0), None),
        Place(cut(slice(None, -1)), flags(steps)),
        Place(cut(slice(1, None)), flags(steps + 1)),
        Place(cut(-1), None),
    )
