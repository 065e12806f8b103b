"""What a loss function must be for its training run to be differentiated, checked in one place."""

from collections.abc import Callable, Mapping
from typing import Any

from lljax import backward_rules, checks, mixing
from lljax.loss_trials import is_concrete
from lljax.types import Batch, LossFn, Params, SecondOrder


def check_loss_fn(
    loss_fn: LossFn,
    params: Params,
    batch: Batch,
    constants: Any = None,
    *,
    second_order: SecondOrder = "auto",
) -> None:
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
      second_order: as in `build_loss_auc`.

    Returns:
      None, where the loss is fit. Cost: some 30 forward passes of at most 12 examples together,
      compiled once.

    Raises:
      ValueError: a shape or dtype does not fit, or the loss of an example depends on the other
        examples of its batch or on its place among them (batch normalisation, contrastive losses),
        or its backward rule is not the derivative of its value, and `second_order` would need that.
    """
    rest = () if constants is None else (constants,)
    checks.check_choice("second_order", second_order, SecondOrder)
    checks.check_loss_fn(loss_fn, params, batch, "batch", rest=rest)
    if not is_concrete((params, batch, rest)):
        raise ValueError(
            "`params` and `batch` must be known arrays, for their losses to be compared; got "
            "tracers. Call check_loss_fn outside jax.jit, jax.vmap and jax.grad."
        )
    found = mixing.find_mixing(loss_fn, params, batch, rest)
    if found:
        raise ValueError(f"`loss_fn` mixes the examples of a batch: {found}. {mixing.CURE}.")
    if second_order != "reverse_over_reverse":
        backward_rules.check_backward_rules(loss_fn, params, batch, rest)


def check_losses(
    loss_fn: LossFn,
    desired_loss_fn: LossFn | None,
    params: Params,
    train: Batch,
    desired_sets: Mapping[str, Batch],
    microbatch_size: int | None,
    rest: tuple[Any, ...] = (),
    second_order: SecondOrder = "reverse_over_reverse",
    evaluate: bool = True,
    piece_of: Callable[[str, Batch], Batch] = lambda _, batch: batch,
) -> None:
    """What every function that trains checks of its losses: shapes and, evaluating them, the rest.

    Args:
      second_order: how the gradient of `loss_fn` is differentiated.
      evaluate: whether the losses are evaluated too.
      rest: empty or (constants,).
      piece_of: (name, batch) -> what a loss is handed of it at once; shapes and dtypes will do.
    """
    cut_by = None if microbatch_size is None else "pass microbatch_size=None"
    for name, batch in {"train": train, **desired_sets}.items():
        checks.num_examples(batch, name)
        piece = piece_of(name, batch)
        if name == "train":
            checks.check_loss_fn(loss_fn, params, piece, name, rest=rest)
        else:
            checks.check_desired_loss_fn(desired_loss_fn, loss_fn, params, piece, name, rest)
    if evaluate:
        evaluate_losses(
            loss_fn, desired_loss_fn, params, train, desired_sets, second_order, cut_by, rest=rest
        )


def evaluate_losses(
    loss_fn: LossFn,
    desired_loss_fn: LossFn | None,
    params: Params,
    train: Batch,
    desired_sets: Mapping[str, Batch],
    second_order: SecondOrder,
    cut_by: str | None,
    *,
    rest: tuple[Any, ...] = (),
    warn: Callable[[str], None] | None = None,
) -> None:
    """Evaluates losses on a few examples; of what is wrong ValueError, or a warning.

    Args:
      second_order: how the gradient of `loss_fn` is differentiated.
      cut_by, rest, warn: as in `mixing.check_mixing`.
    """
    mixing.check_mixing(loss_fn, params, train, cut_by=cut_by, warn=warn, rest=rest)
    if second_order != "reverse_over_reverse":
        backward_rules.check_backward_rules(loss_fn, params, train, rest)
    desired_loss, argument = loss_fn, "loss_fn"
    if desired_loss_fn is not None:
        desired_loss, argument = desired_loss_fn, "desired_loss_fn"
    for batch in desired_sets.values():
        mixing.check_mixing(
            desired_loss, params, batch, cut_by=cut_by, argument=argument, warn=warn, rest=rest
        )
