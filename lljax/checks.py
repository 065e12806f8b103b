"""What is refused at trace time, and in which words.

Shapes and dtypes are known when JAX traces, so these checks cost nothing at run time. Values are
not: `policy.check_policy` looks at those, outside jit.
"""

from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np

from lljax.types import Batch, LossFn, Params, ZeroWeight


def num_examples(batch: Batch, name: str) -> int:
    """The shared leading axis of a batch; ValueError when there is none or it is empty."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"`{name}` must be a pytree of arrays [B, ...]; got no arrays at all.")
    sizes = {}
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"every array of `{name}` needs a leading example axis; "
                f"`{name}{jax.tree_util.keystr(path)}` is a scalar. Close over constants instead."
            )
        sizes[f"{name}{jax.tree_util.keystr(path)}"] = np.shape(leaf)[0]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise ValueError(
            f"the arrays of `{name}` must share their leading example axis; got {listed}."
        )
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"`{name}` is empty: it must hold at least one example.")
    return size


def check_policy_shape(policy: jax.Array, train: Batch) -> None:
    """ValueError unless `policy` is a floating [T, N] that fits the N examples of `train`."""
    if not hasattr(policy, "dtype"):
        raise ValueError(f"`policy` must be an array [T, N]; got a {type(policy).__name__}.")
    size = num_examples(train, "train")
    shape = np.shape(policy)
    if len(shape) != 2:
        raise ValueError(f"`policy` must have shape (T, N) = (T, {size}); got {shape}.")
    if shape[0] == 0:
        raise ValueError(f"`policy` must have at least one inner step, T >= 1; got shape {shape}.")
    if shape[1] != size:
        cure = ": it may be transposed" if shape[0] == size else ""
        raise ValueError(
            f"`policy` must have shape (T, N) = ({shape[1] if cure else shape[0]}, {size}), "
            f"N being the number of examples in `train`; got {shape}{cure}."
        )
    dtype = jnp.result_type(policy)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`policy` must be floating, e.g. float32; got {dtype}.")


def check_params(params: Params) -> None:
    """ValueError unless every leaf of `params` is a floating array."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    if not leaves:
        raise ValueError("`params` holds no arrays: there is nothing to train.")
    for path, leaf in leaves:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = dtype if dtype is not None else type(leaf).__name__
            raise ValueError(
                f"every leaf of `params` must be a floating array; "
                f"`params{jax.tree_util.keystr(path)}` is {what}. Split off what is not "
                f"trained (flax.nnx.split, equinox.partition) and close over it in `loss_fn`."
            )


def check_microbatch_size(size: int | None) -> None:
    """ValueError unless `size` is None or at least 1."""
    if size is not None and size < 1:
        raise ValueError(f"`microbatch_size` must be at least 1, or None for one pass; got {size}.")


def check_zero_weight(zero_weight: ZeroWeight, microbatch_size: int | None) -> None:
    """ValueError unless `zero_weight` is one of the choices and there are micro-batches for it."""
    if zero_weight not in get_args(ZeroWeight):
        raise ValueError(
            f"`zero_weight` must be one of {', '.join(get_args(ZeroWeight))}; got {zero_weight!r}."
        )
    if zero_weight != "compute" and microbatch_size is None:
        raise ValueError(
            f"`zero_weight={zero_weight!r}` leaves out whole micro-batches of examples: give "
            f"`microbatch_size` too, e.g. 32; got None."
        )


def check_loss_fn(
    loss_fn: LossFn, params: Params, batch: Batch, name: str, argument: str = "loss_fn"
) -> None:
    """ValueError unless `loss_fn(params, batch)` is a floating [B]; `argument` is its own name."""
    check_params(params)
    size = num_examples(batch, name)
    losses = jax.eval_shape(loss_fn, params, batch)
    shape = getattr(losses, "shape", None)
    if shape != (size,):
        cure = " Return the losses before taking their mean." if shape == () else ""
        raise ValueError(
            f"`{argument}(params, {name})` must return one loss an example, shape ({size},); got "
            f"{shape if shape is not None else type(losses).__name__}.{cure}"
        )
    if not jnp.issubdtype(losses.dtype, jnp.floating):
        raise ValueError(f"`{argument}(params, {name})` must be floating; got {losses.dtype}.")


def check_desired_loss_fn(
    desired_loss_fn: LossFn | None, loss_fn: LossFn, params: Params, batch: Batch, name: str
) -> None:
    """As `check_loss_fn`, for desired examples, whose losses may be of a function of their own."""
    if desired_loss_fn is None:
        check_loss_fn(loss_fn, params, batch, name)
    else:
        check_loss_fn(desired_loss_fn, params, batch, name, "desired_loss_fn")
