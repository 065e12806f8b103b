"""Which entries of a gradient are slopes, and which are unknown, as under `zero_weight="omit"`.

A mask is a pytree of bools like the policy, or None where all are known.
"""

from typing import Any

import jax
import jax.numpy as jnp


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
    if forms[0] != forms[1] or any(leaf.dtype != bool for leaf in jax.tree.leaves(known)):
        dtypes = sorted({str(jnp.result_type(leaf)) for leaf in jax.tree.leaves(known)})
        raise ValueError(
            f"`{name}` must hold bools in the form of `policy`, {forms[1]}; got {forms[0]} of "
            f"{', '.join(dtypes)}. Where weights are made of fewer numbers, "
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
