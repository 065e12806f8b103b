"""Whether the loss of an example depends on the examples beside it, or on its place in the batch.

Batch normalisation without running statistics does, and so does a contrastive loss among the
examples of a batch. Such a loss is a function of a batch, not of an example: cut into micro-batches
it is another one. Shapes do not show it, so it is evaluated on a few examples, in two ways.
"""

import warnings
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.types import Batch, LossFn, Params

MOST = 4  # examples whose losses are compared
NOISE = 0.1  # of a parameter's size, where the losses are compared a second time


class Mixing(NamedTuple):
    """One example and what it costs in two batches."""

    example: int
    losses: tuple[float, float]
    sizes: tuple[int, int]
    with_noise: bool  # whether it shows at changed parameters only

    def __str__(self) -> str:
        where = ", at slightly other parameters" if self.with_noise else ""
        return (
            f"the loss of example {self.example} is {self.losses[0]:.6g} in a batch of "
            f"{self.sizes[0]} and {self.losses[1]:.6g} in one of {self.sizes[1]} in another order"
            f"{where}"
        )


# By loss function, for as long as that lives: what was found, by parameters and form of the batch.
_found: weakref.WeakKeyDictionary[Callable, dict[Hashable, Mixing | None]]
_found = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[Callable] = weakref.WeakSet()

_CURE = (
    "Make the loss of an example its own: freeze the running averages of BatchNorm and close over "
    "them, use LayerNorm or GroupNorm instead, draw the negatives of a contrastive loss from a "
    "fixed set, and let nothing depend on the place in the batch"
)


def check_loss_fn(loss_fn: LossFn, params: Params, batch: Batch, constants: Any = None) -> None:
    """Checks what `build_loss_auc` needs of a loss function, by evaluating it on a few examples.

    The other functions check shapes whenever they are traced, but evaluate the loss only where
    they are called outside `jax.jit`. A program that compiles all its calls can call this once.

    >>> import jax.numpy as jnp, lljax
    >>> batch = jnp.arange(6.0)
    >>> lljax.check_loss_fn(lambda theta, x: (theta * x) ** 2, jnp.ones(()), batch)
    >>> try:
    ...   lljax.check_loss_fn(lambda theta, x: (theta * (x - x.mean())) ** 2, jnp.ones(()), batch)
    ... except ValueError as error:
    ...   print(str(error).partition(":")[0])
    `loss_fn` mixes the examples of a batch

    Args:
      loss_fn: per-example losses, (params, batch of B) -> [B].
      params: theta, not tracers.
      batch: B examples, not tracers; with B = 1 only shapes and dtypes are checked.
      constants: the third argument of the loss, if it has one.

    Raises:
      ValueError: a shape or dtype does not fit, or the loss of an example depends on the other
        examples of its batch or on its place among them: batch normalisation, contrastive losses.
        Cost: four forward passes of at most 12 examples together, compiled once.
    """
    rest = () if constants is None else (constants,)
    checks.check_loss_fn(loss_fn, params, batch, "batch", rest=rest)
    if not _is_concrete((params, batch, rest)):
        raise ValueError(
            "`params` and `batch` must be known arrays, for their losses to be compared; got "
            "tracers. Call check_loss_fn outside jax.jit, jax.vmap and jax.grad."
        )
    found = find_mixing(loss_fn, params, batch, rest)
    if found:
        raise ValueError(f"`loss_fn` mixes the examples of a batch: {found}. {_CURE}.")


def check_losses(
    loss_fn: LossFn,
    desired_loss_fn: LossFn | None,
    params: Params,
    train: Batch,
    desired_sets: Mapping[str, Batch],
    microbatch_size: int | None,
    rest: tuple[Any, ...] = (),
) -> None:
    """What every function that trains checks of its losses: the shapes, and whether they mix."""
    cut_by = None if microbatch_size is None else "pass microbatch_size=None"
    checks.check_loss_fn(loss_fn, params, train, "train", rest=rest)
    for name, batch in desired_sets.items():
        checks.check_desired_loss_fn(desired_loss_fn, loss_fn, params, batch, name, rest)
    check_mixing(loss_fn, params, train, cut_by=cut_by, rest=rest)
    argument = "desired_loss_fn" if desired_loss_fn else "loss_fn"
    for batch in desired_sets.values():
        check_mixing(
            desired_loss_fn or loss_fn, params, batch, cut_by=cut_by, argument=argument, rest=rest
        )


def check_mixing(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    *,
    cut_by: str | None,
    argument: str = "loss_fn",
    warn: Callable[[str], None] | None = None,
    rest: tuple[Any, ...] = (),
) -> None:
    """Refuses or warns of a loss that mixes examples; nothing is seen of tracers.

    Args:
      loss_fn: the loss.
      params: theta.
      batch: B examples.
      cut_by: how not to cut the batch into pieces or join it with another; None where it is used
        as it is. Then a loss that mixes is exact and only warned of.
      argument: the name of `loss_fn`.
      warn: what a warning is handed to; when None, `warnings.warn` gets the first of each loss.
      rest: empty or (constants,), the further arguments of the loss.

    Raises:
      ValueError: the loss mixes examples, and the batch is cut.
    """
    found = find_mixing(loss_fn, params, batch, rest)
    if found is None:
        return
    if cut_by is not None:
        raise ValueError(
            f"`{argument}` mixes the examples of a batch, so that another division into batches "
            f"would change the result: {found}. {_CURE}; or {cut_by}."
        )
    words = (
        f"`{argument}` mixes the examples of a batch: {found}. What is computed is exact for these "
        f"very batches; micro-batches, other examples beside them or another order would change "
        f"it. {_CURE}."
    )
    if warn is not None:
        warn(words)
    elif _is_first_warning(loss_fn):
        warnings.warn(words, stacklevel=4)


def find_mixing(
    loss_fn: LossFn, params: Params, batch: Batch, rest: tuple[Any, ...] = ()
) -> Mixing | None:
    """The example whose loss changes most with its batch, if one does; None for tracers."""
    if not _is_concrete((params, batch, rest)) or checks.num_examples(batch, "batch") < 2:
        return None
    key = _form(params), _form(batch, from_axis=1), _form(rest)
    try:
        known = _found.setdefault(loss_fn, {})
        if key in known:
            return known[key]
    except TypeError:  # a function or a structure that cannot be looked up is checked each time
        known = {}
    with jax.ensure_compile_time_eval(), jax.default_matmul_precision("highest"):
        try:
            known[key] = _compare(lambda *both: loss_fn(*both, *rest), params, batch)
        except (TypeError, ValueError, IndexError):
            # The loss closes over tracers, or takes batches of one size only: nothing to compare.
            return None
    return known[key]


def _compare(loss_fn: LossFn, params: Params, batch: Batch) -> Mixing | None:
    """Compares the losses of a piece with those of its second half in reversed order."""
    size = checks.num_examples(batch, "batch")
    half = min(size // 2, MOST)
    # From all over the batch, since neighbours may be the same, and equal examples show nothing.
    places = np.linspace(0, size - 1, 2 * half).round().astype(int)
    again = np.arange(2 * half)[: half - 1 : -1]

    @jax.jit
    def losses_of(params, batch, noise):
        theta = _with_noise(params, noise)
        piece = jax.tree.map(lambda leaf: jnp.asarray(leaf)[places], batch)
        part = jax.tree.map(lambda leaf: leaf[again], piece)
        return loss_fn(theta, piece)[again], loss_fn(theta, part)

    # With a last layer of zeros all losses are the same, whatever the batch: so with noise too.
    for noise in (0.0, NOISE):
        together, alone = losses_of(params, batch, noise)
        tolerance = _tolerance(together.dtype)
        together, alone = (np.asarray(losses, np.float64) for losses in (together, alone))
        if not (np.isfinite(together).all() and np.isfinite(alone).all()):
            continue
        change = np.abs(together - alone)
        worst = int(np.argmax(change))
        if change[worst] > tolerance * max(np.abs(together).max(), np.abs(alone).max()):
            losses = float(together[worst]), float(alone[worst])
            return Mixing(int(places[again[worst]]), losses, (2 * half, half), noise > 0)
    return None


def _tolerance(dtype: Any) -> float:
    """How far two losses may be apart, relative to the largest: rounding differs with shapes."""
    if jnp.finfo(dtype).bits == 64:
        return float(np.sqrt(np.finfo(np.float64).eps))
    return 1e-3 if jnp.finfo(dtype).bits == 32 else 0.1


def _with_noise(params: Params, noise: jax.Array) -> Params:
    """Every parameter changed by about `noise` times the size of those in its array, or of 1."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(0), len(leaves))

    def add(leaf, key):
        size = jnp.sqrt(jnp.sum(jnp.square(leaf)) / max(leaf.size, 1))
        scale = jnp.where(size > 0, size, 1) * noise.astype(leaf.dtype)
        return leaf + scale.astype(leaf.dtype) * jax.random.normal(key, leaf.shape, leaf.dtype)

    return jax.tree.unflatten(structure, [add(*pair) for pair in zip(leaves, keys, strict=True)])


def _form(tree: Any, from_axis: int = 0) -> Hashable:
    """What is known of a tree without its numbers; its first axes can be left out."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((leaf.shape[from_axis:], jnp.result_type(leaf)) for leaf in leaves)


def _is_concrete(tree: Any) -> bool:
    """Whether the numbers of all arrays are known here."""
    return not any(
        isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "is_fully_addressable", True)
        for leaf in jax.tree.leaves(tree)
    )


def _is_first_warning(loss_fn: LossFn) -> bool:
    try:
        first = loss_fn not in _warned
        _warned.add(loss_fn)
    except TypeError:  # it cannot be remembered
        return True
    return first
