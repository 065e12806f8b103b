"""Functions that close over tracers of an enclosing jit, vmap or grad, made functions of them.

The backward rule of a `jax.custom_vjp` runs after the trace in which its function was called. A
tracer that it closes over is dead by then; one that it gets as an argument is not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr


class Opened(NamedTuple):
    """A function, and the tracers that it closed over."""

    function: Callable[..., Any]  # (held, *arguments): the same, of what it closed over too
    held: tuple[jax.Array, ...]
    jaxpr: Jaxpr  # of the function, for the arguments that it was opened with


def open_closure(function: Callable[..., Any], *arguments: Any) -> Opened:
    """Makes explicit what a function closes over, if that is traced.

    Args:
      function: of pytrees of arrays, to one.
      *arguments: what it will be called with, or arrays of these shapes and dtypes. Where it holds
        tracers, `Opened.function` works for these shapes and dtypes only.
    """
    closed, out = jax.make_jaxpr(function, return_shape=True)(*arguments)
    is_held = [isinstance(const, jax.core.Tracer) for const in closed.consts]
    if not any(is_held):
        return Opened(lambda _, *arguments: function(*arguments), (), closed.jaxpr)
    structure = jax.tree.structure(out)

    def call(held, *arguments):
        given = iter(held)
        pairs = zip(closed.consts, is_held, strict=True)
        consts = [next(given) if holds else const for const, holds in pairs]
        flat = jax.core.eval_jaxpr(closed.jaxpr, consts, *jax.tree.leaves(arguments))
        return jax.tree.unflatten(structure, flat)

    held = (const for const, holds in zip(closed.consts, is_held, strict=True) if holds)
    return Opened(call, tuple(held), closed.jaxpr)
