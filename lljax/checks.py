"""What is refused at trace time, and in which words.

Shapes and dtypes are known when JAX traces, so these checks cost nothing at run time. Values are
not: `policy.check_policy` looks at those, outside jit.
"""

import math
import numbers
import warnings
import weakref
from typing import Any, get_args

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
            cure = "Close over constants instead."
            if isinstance(batch, list) or type(batch) is tuple:  # examples one by one
                cure = (
                    f"If `{name}` is a list of examples, stack them: "
                    f"jax.tree.map(lambda *leaves: jnp.stack(leaves), *{name})."
                )
            raise ValueError(
                f"every array of `{name}` needs a leading example axis; "
                f"`{name}{jax.tree_util.keystr(path)}` is a scalar. {cure}"
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


def check_count(name: str, value: Any, least: int = 1, cure: str = "") -> None:
    """ValueError unless `value` is a whole number, at least `least`."""
    is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not (is_whole and value >= least):
        raise ValueError(f"`{name}` must be an int, at least {least}{cure}; got {value!r}.")


def check_rate(name: str, value: Any) -> None:
    """ValueError unless `value` is a finite number above 0, a schedule, or an array of JAX."""
    if callable(value) or isinstance(value, jax.Array):
        return
    is_number = isinstance(value, numbers.Real | np.ndarray) and not isinstance(value, bool)
    if not (is_number and np.ndim(value) == 0 and 0 < value < math.inf):
        raise ValueError(f"`{name}` must be a finite number above 0, or a schedule; got {value!r}.")


def check_microbatch_size(size: int | None) -> None:
    """ValueError unless `size` is None or at least 1."""
    if size is not None:
        check_count("microbatch_size", size, cure=", or None for one pass")


def check_memory(memory: Any) -> None:
    """ValueError unless `memory` is a MemoryStrategy."""
    parts = (getattr(memory, name, None) for name in ("split", "keep", "fetch"))
    if isinstance(memory, type) or not all(map(callable, parts)):
        got = f"the class {memory.__name__}" if isinstance(memory, type) else repr(memory)
        raise ValueError(
            f"`memory` must be a strategy such as lljax.StoreStates(), lljax.OffloadStates() or "
            f"lljax.RecomputeStates(); got {got}."
        )


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
    if not callable(loss_fn):
        raise ValueError(
            f"`{argument}` must be a function (params, batch) -> losses [B]; got {loss_fn!r}."
        )
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


def look_at_loss_fn(loss_fn: LossFn, params: Params, batch: Batch) -> None:
    """Looks at a loss function with values, which a call under jit cannot; `lljax.check_loss_fn`.

    >>> import jax.numpy as jnp, lljax
    >>> lljax.check_loss_fn(lambda params, batch: batch @ params, jnp.ones(2), jnp.eye(2))

    Args:
      loss_fn: per-example losses, (params, batch of B) -> [B].
      params: theta, values.
      batch: B examples, values; the first eight at most are evaluated, twice.

    Raises:
      ValueError: a shape or dtype does not fit, or the loss of an example depends on the others in
        its batch or on its place, so that micro-batches would change it.
    """
    check_loss_fn(loss_fn, params, batch, "batch")
    check_examples_apart(loss_fn, params, batch, "batch", in_pieces="microbatch_size")


# By loss function, for as long as that lives: the forms of batch for which it was looked at.
_looked_at: weakref.WeakKeyDictionary[Any, set[Any]] = weakref.WeakKeyDictionary()


def check_examples_apart(
    loss_fn: LossFn, params: Params, batch: Batch, name: str, *, in_pieces: str | None
) -> None:
    """Says so where the loss of an example depends on which others are beside it, or on its place.

    A few examples are evaluated in a batch of twice as many, and by themselves in reverse. Batch
    normalisation without running statistics and contrasts within a batch are found so. Values are
    needed: nothing happens where an argument is traced, under jit or vmap.

    Args:
      loss_fn, params, batch: as in `check_loss_fn`, which has been passed.
      name: of the batch.
      in_pieces: what divides the batch, such as "microbatch_size"; None where nothing does.

    Raises:
      ValueError: the loss depends on the batch, which is divided. Where it is not: a warning.
    """
    leaves = jax.tree.leaves((params, batch))
    half = min(num_examples(batch, name) // 2, 4)
    if half == 0 or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
        return
    try:
        known = _looked_at.setdefault(loss_fn, set())
        key: Any = (name, in_pieces, str(jax.tree.map(jnp.shape, (params, batch))))
        if key in known:
            return
    except TypeError:  # a function that cannot be looked up is looked at each time
        known, key = set(), None
    reverse = slice(half - 1, None, -1)

    def aside(leaf):  # a model that begins at zero may not look at its inputs yet
        return leaf + 0.1 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)

    @jax.jit
    def evaluate(params, batch):
        params = jax.tree.map(aside, params)
        return (
            loss_fn(params, jax.tree.map(lambda x: x[: 2 * half], batch)),
            loss_fn(params, jax.tree.map(lambda x: x[reverse], batch)),
        )

    try:
        with jax.ensure_compile_time_eval():
            together, alone = evaluate(params, batch)
            rounding = _rounding(alone.dtype)
            together, alone = (np.asarray(losses, np.float64) for losses in (together, alone))
    except jax.errors.JAXTypeError:  # the function holds something that is traced
        return
    differences = np.abs(together[reverse] - alone)
    if not differences.max() > rounding * np.abs(together).max():  # NaN: said elsewhere
        known.add(key)
        return
    found = (
        f"`loss_fn` gives an example of `{name}` another loss when other examples are beside it: "
        f"{together[half - 1]:.6g} among {2 * half}, {float(alone[0]):.6g} among {half}."
    )
    cure = (
        "Use layer or group normalisation, or running statistics that are frozen, in place of "
        "batch statistics, and no contrasts within a batch"
    )
    if in_pieces is not None:
        raise ValueError(
            f"{found} `{in_pieces}` divides the examples otherwise and would change the result. "
            f"{cure}, or leave `{in_pieces}` out."
        )
    known.add(key)
    warnings.warn(
        f"{found} The result holds for just this batch: with micro-batches, or on other examples, "
        f"it would be another. {cure}.",
        stacklevel=3,
    )


def _rounding(dtype: Any) -> float:
    """How far losses of one example may differ between batches, relative to the largest."""
    # GPUs multiply in TF32 for some shapes of batch and not for others.
    return {8: 1e-8, 4: 1e-3}.get(jnp.dtype(dtype).itemsize, 0.1)
