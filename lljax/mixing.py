"""Whether the loss of an example depends on the examples beside it, or on its place in the batch.

Batch normalisation without running statistics does, and so does a contrastive loss among the
examples of a batch. Such a loss is a function of a batch, not of an example: cut into micro-batches
it is another one. Shapes do not show it, so it is evaluated on a few examples, in two ways.
"""

import warnings
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.loss_trials import Findings, at, confirmed, spread, with_noise
from lljax.types import Batch, LossFn, Params

MOST = 4  # examples whose losses are compared


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


_findings: Findings[Mixing] = Findings()
_warned: weakref.WeakSet[Callable] = weakref.WeakSet()

CURE = (
    "Make the loss of an example its own: freeze the running averages of BatchNorm and close over "
    "them, use LayerNorm or GroupNorm instead, draw the negatives of a contrastive loss from a "
    "fixed set, and let nothing depend on the place in the batch"
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
            f"would change the result: {found}. {CURE}; or {cut_by}."
        )
    words = (
        f"`{argument}` mixes the examples of a batch: {found}. What is computed is exact for these "
        f"very batches; micro-batches, other examples beside them or another order would change "
        f"it. {CURE}."
    )
    if warn is not None:
        warn(words)
    elif _is_first_warning(loss_fn):
        warnings.warn(words, stacklevel=4)


def find_mixing(
    loss_fn: LossFn, params: Params, batch: Batch, rest: tuple[Any, ...] = ()
) -> Mixing | None:
    """The example whose loss changes most with its batch, if one does; None for tracers."""
    if checks.num_examples(batch, "batch") < 2:
        return None
    return _findings.find(loss_fn, params, batch, rest, _compare)


def _compare(loss_fn: LossFn, params: Params, batch: Batch) -> Mixing | None:
    """Compares the losses of a piece with those of its second half in reversed order."""
    size = checks.num_examples(batch, "batch")
    half = min(size // 2, MOST)
    places = spread(size, 2 * half)
    again = np.arange(2 * half)[: half - 1 : -1]

    piece = at(batch, places)

    @checks.compiled_fast
    def losses_of(params, piece, noise):
        theta = with_noise(params, noise)
        part = jax.tree.map(lambda leaf: leaf[again], piece)
        return loss_fn(theta, piece)[again], loss_fn(theta, part)

    # With a last layer of zeros all losses are the same, whatever the batch: so with noise too.
    def look(noise: float) -> tuple[Mixing | None, bool]:
        together, alone = losses_of(params, piece, noise)
        tolerance = _tolerance(together.dtype)
        together, alone = (np.asarray(losses, np.float64) for losses in (together, alone))
        if not (np.isfinite(together).all() and np.isfinite(alone).all()):
            return None, False
        change = np.abs(together - alone)
        worst = int(np.argmax(change))
        size_of_losses = max(np.abs(together).max(), np.abs(alone).max())
        if change[worst] > tolerance * size_of_losses:
            losses = float(together[worst]), float(alone[worst])
            return Mixing(int(places[again[worst]]), losses, (2 * half, half), noise != 0), True
        return None, bool(size_of_losses > 0)

    return confirmed(look)


def _tolerance(dtype: Any) -> float:
    """How far two losses may be apart, relative to the largest: rounding differs with shapes."""
    if jnp.finfo(dtype).bits == 64:
        return float(np.sqrt(np.finfo(np.float64).eps))
    return 1e-3 if jnp.finfo(dtype).bits == 32 else 0.1


def _is_first_warning(loss_fn: LossFn) -> bool:
    try:
        first = loss_fn not in _warned
        _warned.add(loss_fn)
    except TypeError:  # it cannot be remembered
        return True
    return first
