"""What the inner steps are given: a policy [T, N], or mini-batches with their weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lljax import checks
from lljax.hyperparams import check_hyperparams
from lljax.types import Batch, Params, StepInputs


def as_step_inputs(policy: jax.Array | StepInputs) -> StepInputs:
    """A policy [T, N] as what the T steps are given; StepInputs stay what they are."""
    return policy if isinstance(policy, StepInputs) else StepInputs(policy)


def take(batch: Batch, index: jax.Array) -> Batch:
    """The examples of these numbers [B]; those out of range are replaced, see `is_valid`."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0, mode="clip"), batch)


def is_valid(index: Any, num_examples: int) -> Any:
    """[...] bool: whether there is an example of the number."""
    return (index >= 0) & (index < num_examples)


def check_step_inputs(
    policy: jax.Array | StepInputs,
    train: Batch,
    desired: Batch,
    optimizer: optax.GradientTransformation,
    params: Params,
) -> StepInputs:
    """The inputs of the steps; ValueError unless they fit each other, the data and the optimiser.

    Indices are compared with the number of examples where they are known, outside jit. Inside, a
    step with one that is out of range has weights of NaN, and a loss so measured is NaN.
    """
    given = as_step_inputs(policy)
    inputs = dataclasses.replace(
        given, index=_wide(given.index), desired_index=_wide(given.desired_index)
    )
    if inputs.index is None:
        checks.check_policy_shape(inputs.weights, train)
    else:
        size = checks.num_examples(train, "train")
        _check_weights(inputs.weights)
        shape = inputs.weights.shape
        check_index("index", inputs.index, f"(T, B) = {shape}, that of `weights`", size)
        if jnp.shape(inputs.index) != shape:
            raise ValueError(
                f"`index` must have shape (T, B) = {shape}, that of `weights`; got "
                f"{jnp.shape(inputs.index)}."
            )
    num_steps = inputs.weights.shape[0]
    check_hyperparams(optimizer, params, inputs.hyperparams, num_steps)
    if inputs.desired_index is not None:
        size = checks.num_examples(desired, "desired")
        expected = f"(T+1, K') = ({num_steps + 1}, K')"
        check_index("desired_index", inputs.desired_index, expected, size)
        shape = inputs.desired_index.shape
        if shape[0] != num_steps + 1 or shape[1] == 0:
            raise ValueError(
                f"`desired_index` must have shape {expected}, a batch of K' >= 1 for each of "
                f"theta_0 .. theta_T; got {shape}."
            )
    return inputs


def _wide(index: Any) -> Any:
    """Integers that can be compared with the number of examples, which int8 may not hold."""
    dtype = getattr(index, "dtype", None)
    narrow = dtype is not None and jnp.issubdtype(dtype, jnp.integer) and dtype.itemsize < 4
    return jnp.asarray(index, jnp.int32) if narrow else index


def _check_weights(weights: Any) -> None:
    if not hasattr(weights, "dtype"):
        raise ValueError(f"`weights` must be an array [T, B]; got a {type(weights).__name__}.")
    shape = jnp.shape(weights)
    if len(shape) != 2 or 0 in shape:
        raise ValueError(f"`weights` must have shape (T, B) with T, B >= 1; got {shape}.")
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"`weights` must be floating, e.g. float32; got {weights.dtype}.")


def check_index(name: str, index: Any, expected: str, num_examples: int) -> None:
    dtype = getattr(index, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or index.ndim != 2:
        got = type(index).__name__ if dtype is None else f"{dtype} of shape {index.shape}"
        raise ValueError(f"`{name}` must be an array of integers {expected}; got {got}.")
    if isinstance(index, jax.core.Tracer):
        return
    bad = ~is_valid(np.asarray(index), num_examples)
    if bad.any():
        step, place = (int(axis[0]) for axis in np.nonzero(bad))
        raise ValueError(
            f"`{name}` must be in 0 .. {num_examples - 1}, for {num_examples} examples; got "
            f"{int(np.asarray(index)[step, place])} at step {step}, place {place} ({bad.sum()} "
            f"entries like it)."
        )
