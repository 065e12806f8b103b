"""Which entries of a gradient are slopes, and which are unknown, as under `zero_weight="omit"`.

A mask is a pytree of bools like the policy, or None where all are known.
"""

from typing import Any

import jax
import jax.numpy as jnp

from lljax import checks
from lljax.policy import neighbours
from lljax.step_inputs import check_index


def known_parameters(
    known: jax.Array, index: jax.Array, size: int, *, num_rows: int | None = None
) -> jax.Array:
    """Of which entries of psi the slope is known, where those of some weights are not.

    A slope in psi is a sum over weights, and unknown as soon as one of them is. For an active set
    over a family, the objective hands the mask on: it returns (auc, info._replace(known_slopes=
    known)), with this function's result of its `info.known_slopes`.

    >>> import jax.numpy as jnp, lljax
    >>> known = jnp.array([[True, False], [True, True]])
    >>> lljax.known_parameters(known, jnp.array([[0, 1], [2, 0]]), size=4).tolist()
    [True, False, True, True]

    Args:
      known: [T, B] bool, `LossAucInfo.known_slopes`.
      index: [T, B], int in 0 .. size-1: of which entry each weight is made: `index` for
        `static_weights`, `groups[index]` for `group_weights`. [B] where all steps have the same:
        `jnp.arange(N)` or `groups` without an index.
      size: N or G.
      num_rows: S of `scheduled_weights`.

    Returns:
      [size] bool, or [S, size]. An entry that no weight is made of is known, its slope being 0. A
      scorer has no unknown slopes: where its softmax is 0, so is what a slope is multiplied by.

    Raises:
      ValueError: a shape or dtype does not fit, or (outside jit) an index is out of range.
    """
    checks.check_count("size", size)
    known = jnp.asarray(known)
    if not jnp.issubdtype(known.dtype, jnp.bool_) or known.ndim != 2:
        raise ValueError(
            f"`known` must be a bool array (T, B); got {known.dtype} of shape {known.shape}."
        )
    index = jnp.asarray(index)
    if index.shape not in (known.shape, known.shape[1:]):
        raise ValueError(
            f"`index` must have the shape (T, B) = {known.shape} of `known`, or (B,) = "
            f"{known.shape[1:]}; got {index.shape}."
        )
    columns = jnp.broadcast_to(index, known.shape)
    check_index("index", columns, f"of shape {index.shape}", size)
    if num_rows is None:
        unknown = jnp.zeros(size, jnp.int32).at[columns].add((~known).astype(jnp.int32))
    else:
        checks.check_count("num_rows", num_rows)
        unknown = jnp.zeros((num_rows, size), jnp.int32)
        for row, share in neighbours(num_rows, known.shape[0]):
            counts = (~known & (share > 0)[:, None]).astype(jnp.int32)
            unknown = unknown.at[row[:, None], columns].add(counts)
    return unknown == 0


def mask_of(info: Any, policy: Any) -> Any:
    """The mask that an objective's info has for the policy; ValueError where it is of another form.

    Args:
      info: what an objective returns beside its value.
      policy: gamma or psi.

    Returns:
      A mask like `policy`, or None.
    """
    known = getattr(info, "known_slopes", None)
    if known is not None:
        check_mask(known, policy, "info.known_slopes")
    return known


def check_mask(known: Any, policy: Any, name: str = "known") -> None:
    """ValueError unless `known` holds bools in the form of `policy`."""
    forms = [jax.tree.map(jnp.shape, tree) for tree in (known, policy)]
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(known)}
    if forms[0] != forms[1] or not all(jnp.issubdtype(dtype, jnp.bool_) for dtype in dtypes):
        raise ValueError(
            f"`{name}` must hold bools in the form of `policy`, {forms[1]}; got {forms[0]} of "
            f"{', '.join(sorted(map(str, dtypes)))}. Where weights are made of fewer numbers, "
            f"lljax.known_parameters(known, index, size) gives the mask of those."
        )


def all_known(policy: Any) -> Any:
    """A mask of a gradient that is known in full."""
    return jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), bool), policy)


def is_complete(known: Any) -> jax.Array:
    """[] bool: whether all entries are known."""
    return all_of(known, jnp.all)


def is_finite(tree: Any) -> jax.Array:
    """[] bool: whether all numbers of all arrays are finite."""
    return all_of(tree, lambda leaf: jnp.isfinite(leaf).all())


def all_of(tree: Any, predicate: Any) -> jax.Array:
    """[] bool: whether the predicate holds for all arrays of a tree, which may have none."""
    holds = jnp.array(True)
    for leaf in jax.tree.leaves(tree):
        holds &= predicate(leaf)
    return holds
