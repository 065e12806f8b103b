"""Zeros and cotangents of the type that JAX expects where a mesh is at work.

Under `shard_map` and on explicit meshes the type of an array says over which axes of the mesh it
varies or is split, and both branches of a condition, a carry and its next value, a function's value
and its cotangent must agree. Elsewhere nothing is done here.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def as_type_of(value: jax.Array, like: Any) -> jax.Array:
    """A value, varying and split as an array, or its `jax.ShapeDtypeStruct`, is."""
    theirs = like if isinstance(like, jax.ShapeDtypeStruct) else jax.typeof(like)
    missing = _varying(theirs) - _varying(jax.typeof(value))
    if missing:
        value = jax.lax.pcast(value, tuple(sorted(missing)), to="varying")
    if is_explicit(theirs.sharding) and theirs.sharding != jax.typeof(value).sharding:
        value = jax.sharding.reshard(value, theirs.sharding)
    return value


def start_of(zeros: Any, add: Callable, *arguments: Any) -> Any:
    """Zeros of the types that a sum has: those of the first result of `add(zeros, *arguments)`.

    `add` is traced only where the types say something.
    """
    if not any(map(_is_typed, jax.tree.leaves((zeros, arguments)))):
        return zeros
    like, _ = jax.eval_shape(add, zeros, *arguments)
    return jax.tree.map(as_type_of, zeros, like)


def varies_beyond(value: jax.Array, tree: Any) -> bool:
    """Whether a value varies over axes of the mesh over which arrays do not."""
    others = (_varying(jax.typeof(leaf)) for leaf in jax.tree.leaves(tree))
    return bool(_varying(jax.typeof(value)) - frozenset().union(*others))


def largest_over_devices(value: jax.Array) -> jax.Array:
    """The largest of what the devices have, where they may have different numbers."""
    axes = tuple(sorted(_varying(jax.typeof(value))))
    return jax.lax.pmax(value, axes) if axes else value


def summed_as(cotangents: Any, primals: Any) -> Any:
    """Cotangents, added up over the axes of the mesh over which what they belong to does not vary.

    Args:
      cotangents: like `primals`; None in the place of leaves without a derivative.
      primals: arrays.
    """

    def add(primal: jax.Array, cotangent: Any) -> Any:
        if cotangent is None:
            return None
        axes = _varying(jax.typeof(cotangent)) - _varying(jax.typeof(primal))
        return jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent

    form: Any = jax.tree.structure(primals)
    pairs = zip(jax.tree.leaves(primals), form.flatten_up_to(cotangents), strict=True)
    return form.unflatten([add(*pair) for pair in pairs])


def zeros_of(tree: Any) -> Any:
    """Zeros in the form of arrays or shapes, and of their types."""
    return jax.tree.map(lambda leaf: as_type_of(jnp.zeros(leaf.shape, leaf.dtype), leaf), tree)


def _varying(kind: Any) -> frozenset[str]:
    """The manual axes over which an array of the type varies."""
    manual = getattr(kind, "manual_axis_type", None)  # in JAX before 0.10 `vma`
    found = getattr(kind, "vma", None) if manual is None else manual.varying
    return frozenset(found or ())


def _is_typed(leaf: Any) -> bool:
    kind = jax.typeof(leaf)
    return bool(_varying(kind)) or is_explicit(kind.sharding)


def is_explicit(sharding: Any) -> bool:
    """Whether a type says how an array is split."""
    mesh = getattr(sharding, "mesh", None)
    return mesh is not None and bool(mesh.axis_names) and bool(mesh.explicit_axes)
