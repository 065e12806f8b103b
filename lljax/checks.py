"""What is refused at trace time, and in which words.

Shapes and dtypes are known when JAX traces, so these checks cost nothing at run time. Values are
not: `simplex.check_policy` looks at those, outside jit.
"""

import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lljax.types import Batch, LossFn, Params, ZeroWeight

compiled_fast = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
"""jax.jit of a program that runs a few times, so that compiling it is its time."""


def num_examples(batch: Batch, name: str) -> int:
    """The shared leading axis of a batch; ValueError when there is none or it is empty."""
    leaves = jax.tree_util.tree_leaves_with_path(batch)
    if not leaves:
        raise ValueError(f"`{name}` must be a pytree of arrays [B, ...]; got no arrays at all.")
    sizes = {}
    for path, leaf in leaves:
        if np.ndim(leaf) == 0:
            cure = _stack_cure(batch, name) or "Close over constants instead."
            raise ValueError(
                f"every array of `{name}` needs a leading example axis; "
                f"`{name}{jax.tree_util.keystr(path)}` is a scalar. {cure}"
            )
        sizes[f"{name}{jax.tree_util.keystr(path)}"] = np.shape(leaf)[0]
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{key}: {size}" for key, size in sizes.items())
        raise ValueError(
            f"the arrays of `{name}` must share their leading example axis; got {listed}. "
            f"{_stack_cure(batch, name)}".rstrip()
        )
    size = next(iter(sizes.values()))
    if size == 0:
        raise ValueError(f"`{name}` is empty: it must hold at least one example.")
    return size


def _stack_cure(batch: Batch, name: str) -> str:
    """What helps where the batch is a list of examples instead of arrays of them; else nothing."""
    if not isinstance(batch, list | tuple) or hasattr(batch, "_fields"):
        return ""
    forms = {str(jax.tree.map(np.shape, example)) for example in batch}
    if len(forms) > 1:
        return ""
    return (
        f"If `{name}` is a list of examples, stack them: "
        f"{name} = jax.tree.map(lambda *leaves: jnp.stack(leaves), *{name})."
    )


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
        is_list = isinstance(train, list | tuple) and len(train) == shape[1]
        stack = _stack_cure(train, "train") if is_list else ""
        raise ValueError(
            f"`policy` must have shape (T, N) = ({shape[1] if cure else shape[0]}, {size}), "
            f"N being the number of examples in `train`; got {shape}{cure}. {stack}".rstrip()
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


def check_count(name: str, value: Any, least: int = 1, cure: str = "") -> None:
    """ValueError unless `value` is a whole number, at least `least`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and value >= least):
        raise ValueError(f"`{name}` must be an int, at least {least}{cure}; got {value!r}.")


def check_number(name: str, value: Any, expected: str, is_valid: Callable[[float], bool]) -> None:
    """ValueError unless `value` is a number, known now, for which `is_valid` holds."""
    kinds = numbers.Real | np.ndarray | jax.Array
    is_number = isinstance(value, kinds) and not isinstance(value, bool | jax.core.Tracer)
    if not (is_number and np.size(value) == 1 and is_valid(float(value))):
        raise ValueError(f"`{name}` must be {expected}; got {value!r}.")


def floating(value: Any, name: str) -> jax.Array:
    """`value` as an array; ValueError unless it is floating: integers would round what follows."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"`{name}` must be floating, e.g. float32; got {array.dtype}.")
    return array


def check_rate(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number above 0, a schedule, or an array of JAX."""
    if callable(value) or isinstance(value, jax.Array):
        return
    is_number = isinstance(value, numbers.Real | np.ndarray) and not isinstance(value, bool)
    if not (is_number and np.ndim(value) == 0 and 0 < value < math.inf):
        raise ValueError(f"`{name}` must be a finite number above 0, or a schedule; got {value!r}.")


def check_callable(function: Any, name: str, form: str = "(params, batch) -> losses [B]") -> None:
    """ValueError unless `function` can be called."""
    if not callable(function):
        raise ValueError(f"`{name}` must be a function {form}; got {function!r}.")


def check_microbatch_size(size: int | None) -> None:
    """ValueError unless `size` is None or at least 1."""
    if size is not None:
        check_count("microbatch_size", size, cure=", or None for one pass")


def check_data_axis(axis: str | None) -> None:
    """ValueError unless `axis` is None or a name."""
    if axis is not None and not isinstance(axis, str):
        raise ValueError(f"`data_axis` must be the name of an axis of the mesh; got {axis!r}.")


def check_memory(memory: Any) -> None:
    """ValueError unless `memory` is a MemoryStrategy."""
    parts = (getattr(memory, name, None) for name in ("split", "keep", "fetch"))
    if isinstance(memory, type) or not all(map(callable, parts)):
        got = f"the class {memory.__name__}" if isinstance(memory, type) else repr(memory)
        raise ValueError(
            f"`memory` must be a strategy such as lljax.StoreStates(), lljax.OffloadStates() or "
            f"lljax.RecomputeStates(); got {got}."
        )


def check_choice(name: str, value: Any, choices: Any) -> None:
    """ValueError unless `value` is one of those of a Literal."""
    if not isinstance(value, str) or value not in get_args(choices):
        raise ValueError(f"`{name}` must be one of {', '.join(get_args(choices))}; got {value!r}.")


def check_zero_weight(zero_weight: ZeroWeight, microbatch_size: int | None) -> None:
    """ValueError unless `zero_weight` is one of the choices and there are micro-batches for it."""
    check_choice("zero_weight", zero_weight, ZeroWeight)
    if zero_weight != "compute" and microbatch_size is None:
        raise ValueError(
            f"`zero_weight={zero_weight!r}` leaves out whole micro-batches of examples: give "
            f"`microbatch_size` too, e.g. 32; got None."
        )


def check_loss_fn(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    name: str,
    argument: str = "loss_fn",
    rest: tuple[Any, ...] = (),
) -> None:
    """ValueError unless `loss_fn(params, batch, *rest)` is a floating [B].

    `argument` is the loss's own name; `rest` is empty or (constants,).
    """
    check_callable(loss_fn, argument)
    check_params(params)
    size = num_examples(batch, name)
    losses = jax.eval_shape(loss_fn, params, batch, *rest)
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
    desired_loss_fn: LossFn | None,
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    name: str,
    rest: tuple[Any, ...] = (),
) -> None:
    """As `check_loss_fn`, for desired examples, whose losses may be of a function of their own."""
    if desired_loss_fn is None:
        check_loss_fn(loss_fn, params, batch, name, rest=rest)
    else:
        check_loss_fn(desired_loss_fn, params, batch, name, "desired_loss_fn", rest)
