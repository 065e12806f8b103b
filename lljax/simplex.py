"""Probability simplices: rows of weights that are >= 0 and sum to 1, along the last axis."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.types import at_least_32_bits


def project_simplex(policy: jax.Array) -> jax.Array:
    """The Euclidean projection of every row onto the probability simplex.

      Proj(v) = max(v - tau, 0), tau such that the row sums to 1

    tau is found by Michelot's active-set iteration: starting from the entries above max(v) - 1,
    which hold the support, drop those at or below the tau of the others, until none is dropped.
    It is exact, ends after at most N rounds (about ten in practice) and each is one pass over
    memory, where a sort of 2000 x 4096 numbers takes longer than the meta-gradient they come from.

    >>> import jax.numpy as jnp, lljax
    >>> [round(float(weight), 3) for weight in lljax.project_simplex(jnp.array([0.5, 0.7, -3.0]))]
    [0.4, 0.6, 0.0]

    Args:
      policy: [..., N], floating and finite; an entry of -infinity is left out. A row with a NaN
        gives a row of NaN.

    Returns:
      [..., N], rows >= 0 that sum to 1 to rounding. Differentiable where no entry sits exactly on
      the boundary of the support.

    Raises:
      ValueError: `policy` is not floating or has no entries in a row.

    Reference: C. Michelot, J. Optim. Theory Appl. 50 (1986).
    """
    policy = _rows(policy)
    # Shifting a row does not change its projection. With its largest entry at 0 the threshold lies
    # in [-1, 0), so entries of any size leave it exact; narrow dtypes could not count N entries.
    wide = policy.astype(at_least_32_bits(policy.dtype))
    shifted = wide - jax.lax.stop_gradient(wide.max(-1, keepdims=True))

    def threshold(support, values):
        total = jnp.sum(values, -1, keepdims=True, where=support)
        return (total - 1) / support.sum(-1, keepdims=True).astype(values.dtype)

    fixed = jax.lax.stop_gradient(shifted)

    def narrow(carry):
        tau, _ = carry
        # tau only ever rises, so the support only ever shrinks, up to rounding.
        higher = jnp.maximum(tau, threshold(fixed > tau, fixed))
        return higher, jnp.any(higher > tau)

    start = jnp.full_like(fixed[..., :1], -1)
    tau, _ = jax.lax.while_loop(lambda carry: carry[1], narrow, (start, jnp.array(True)))
    projected = jnp.maximum(shifted - threshold(fixed > tau, shifted), 0)
    return projected.astype(policy.dtype)


def effective_sample_size(policy: jax.Array) -> jax.Array:
    """1 / sum_n gamma_{t,n}^2: N for a uniform row, 1 for a row with a single example.

    >>> import jax.numpy as jnp, lljax
    >>> lljax.effective_sample_size(jnp.array([[0.25] * 4, [0.5, 0.5, 0, 0]])).tolist()
    [4.0, 2.0]

    Args:
      policy: [..., N].

    Returns:
      [...]. Cost: O(T N).

    Raises:
      ValueError: `policy` is not floating or has no entries in a row.
    """
    policy = _rows(policy)
    return 1 / jnp.sum(policy**2, axis=-1)


def entropy(policy: jax.Array) -> jax.Array:
    """-sum_n gamma_{t,n} ln gamma_{t,n} in nats, with 0 ln 0 = 0.

    >>> import jax.numpy as jnp, lljax
    >>> round(float(lljax.entropy(jnp.array([0.5, 0.5, 0.0]))), 4)
    0.6931

    Args:
      policy: [..., N].

    Returns:
      [...]. Cost: O(T N).

    Raises:
      ValueError: `policy` is not floating or has no entries in a row.
    """
    policy = _rows(policy)
    return -jnp.sum(jax.scipy.special.xlogy(policy, policy), axis=-1)


def check_policy(policy: jax.Array, tolerance: float | None = None) -> None:
    """Looks at the values of a policy, which a traced function cannot.

    >>> import jax.numpy as jnp, lljax
    >>> lljax.check_policy(lljax.uniform_policy(num_steps=3, num_examples=4))
    >>> try:
    ...   lljax.check_policy(jnp.array([[0.5, 0.6]]))
    ... except ValueError as error:
    ...   print(str(error).partition(" (")[0])
    `policy` must be a distribution over its 2 entries in every row; row 0 does not sum to 1

    Args:
      policy: [T, N], not a tracer.
      tolerance: how far a row's sum may be from 1; 1e-3, or 0.2 in 16-bit types, when None.

    Returns:
      None, where all rows are distributions. Cost: O(T N), on the host.

    Raises:
      ValueError: `policy` is no floating [T, N], an entry is negative or not finite, or a row does
        not sum to 1; the first offending row is named.
    """
    policy = _rows(policy)
    if policy.ndim != 2:
        raise ValueError(f"`policy` must have shape (T, N); got {policy.shape}.")
    if isinstance(policy, jax.core.Tracer):
        raise ValueError("`policy` must be known for its values to be checked; got a tracer.")
    if tolerance is not None:
        expected = "a finite number >= 0"
        checks.check_number("tolerance", tolerance, expected, lambda x: 0 <= x < math.inf)
    _check_distributions(policy, "policy", tolerance)


def check_simplices(tree: Any, name: str = "policy") -> None:
    """ValueError unless all rows of all arrays [..., N] are distributions; tracers are not seen."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name_of_leaf = f"{name}{jax.tree_util.keystr(path)}"
        rows = _rows(leaf, name_of_leaf)
        if not isinstance(rows, jax.core.Tracer):
            _check_distributions(rows, name_of_leaf)


def check_rows(tree: Any, name: str = "policy") -> None:
    """ValueError unless all arrays are floating and have rows [..., N]."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        _rows(leaf, f"{name}{jax.tree_util.keystr(path)}")


def _check_distributions(rows: jax.Array, name: str, tolerance: float | None = None) -> None:
    """ValueError unless every row [..., N] is a distribution."""
    if tolerance is None:
        tolerance = 0.2 if rows.dtype.itemsize == 2 else 1e-3
    values = np.asarray(rows, np.float64).reshape(-1, rows.shape[-1])
    sums = values.sum(axis=1)
    for fault, bad in (
        ("is not finite", ~np.isfinite(values).all(axis=1)),
        ("has a negative entry", (values < 0).any(axis=1)),
        ("does not sum to 1", np.abs(sums - 1) > tolerance),
    ):
        if bad.any():
            row = int(np.argmax(bad))
            which = "it" if rows.ndim == 1 else f"row {row}"
            raise ValueError(
                f"`{name}` must be a distribution over its {rows.shape[-1]} entries"
                f"{'' if rows.ndim == 1 else ' in every row'}; {which} {fault} (minimum "
                f"{values[row].min():.3g}, sum {sums[row]:.6g}; {bad.sum()} of {len(values)} like "
                f"it). Pass it through lljax.project_simplex."
            )


def _rows(policy: Any, name: str = "policy") -> jax.Array:
    """The rows of a policy as a floating array; ValueError where there are none."""
    policy = checks.floating(policy, name)
    if policy.ndim == 0 or policy.shape[-1] == 0:
        raise ValueError(f"`{name}` must have rows of at least one entry; got {policy.shape}.")
    return policy
