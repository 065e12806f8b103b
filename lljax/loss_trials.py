"""Evaluations of a loss on a few examples, to see what shapes do not show."""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lljax.types import Batch, Params

# Of a parameter's size: where a loss is evaluated again, and where nothing is fitted any more.
NEAR, FAR = (0.0, 0.1, -0.1), (3.0, -3.0, 1.0, -1.0)

Found = TypeVar("Found")


class Findings(Generic[Found]):
    """What was found of loss functions, for as long as these live, by the forms of their inputs."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[Callable, dict[Hashable, Found | None]]
        self._known = weakref.WeakKeyDictionary()

    def find(
        self,
        loss_fn: Callable,
        params: Params,
        batch: Batch,
        rest: tuple[Any, ...],
        look: Callable[[Callable, Params, Batch], Found | None],
    ) -> Found | None:
        """What `look` finds; None of tracers, and of a loss that cannot be evaluated like that.

        `look` is handed the loss as a function of (params, batch).
        """
        if not is_concrete((params, batch, rest)):
            return None
        key = form(params), form(batch, from_axis=1), form(rest)
        try:
            known = self._known.setdefault(loss_fn, {})
            if key in known:
                return known[key]
        except TypeError:  # a function or structure that cannot be looked up is tried each time
            known = {}
        with jax.core.eval_context(), jax.default_matmul_precision("highest"):
            try:
                known[key] = look(lambda *both: loss_fn(*both, *rest), params, batch)
            except Exception:
                # It closes over tracers, or takes (or asserts) one size of batch: nothing to
                # compare. That it can be called as it will be has been seen by its shape.
                return None
        return known[key]


def confirmed(look: Callable[[float], tuple[Found | None, bool]]) -> Found | None:
    """What shows at these parameters, or slightly other ones, and far from them too.

    Where a model fits its examples, little but rounding is left of the losses.

    Args:
      look: noise -> (what is found there, whether the numbers there can tell).
    """
    near = next((found for found, _ in map(look, NEAR) if found is not None), None)
    if near is None:
        return None
    far = [found for found, can_tell in map(look, FAR) if can_tell]
    # One place is enough: a function that flattens out far away shows nothing there.
    return None if far and all(found is None for found in far) else near


def spread(num_examples: int, count: int) -> np.ndarray:
    """`count` places from all over a batch: neighbours may be the same, and show nothing then."""
    return np.linspace(0, num_examples - 1, count).round().astype(int)


def at(batch: Batch, places: np.ndarray) -> Batch:
    """The examples at these places, the only ones that go to a device."""

    def take(leaf: Any) -> jax.Array:
        return jnp.asarray((leaf if isinstance(leaf, np.ndarray) else jnp.asarray(leaf))[places])

    return jax.tree.map(take, batch)


def with_noise(params: Params, noise: ArrayLike, key: jax.Array | None = None) -> Params:
    """Every parameter changed by about `noise` times the size of those in its array, or of 1."""
    leaves, structure = jax.tree.flatten(params)
    # One draw for all arrays: a program with one for each takes seconds to compile.
    key = jax.random.key(0) if key is None else key
    normal = jax.random.normal(key, (sum(leaf.size for leaf in leaves),), jnp.float32)
    parts = jnp.split(normal, np.cumsum([leaf.size for leaf in leaves])[:-1])

    def add(leaf, part):
        size = jnp.sqrt(jnp.sum(jnp.square(leaf)) / max(leaf.size, 1))
        scale = jnp.where(size > 0, size, 1) * jnp.asarray(noise, leaf.dtype)
        return leaf + scale.astype(leaf.dtype) * part.reshape(leaf.shape).astype(leaf.dtype)

    return jax.tree.unflatten(structure, [add(*pair) for pair in zip(leaves, parts, strict=True)])


def form(tree: Any, from_axis: int = 0) -> Hashable:
    """What is known of a tree without its numbers; its first axes can be left out."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(
        (jnp.shape(leaf)[from_axis:], str(jnp.result_type(leaf))) for leaf in leaves
    )


def is_concrete(tree: Any) -> bool:
    """Whether the numbers of all arrays are known here."""
    return not any(
        isinstance(leaf, jax.core.Tracer) or not getattr(leaf, "is_fully_addressable", True)
        for leaf in jax.tree.leaves(tree)
    )
