"""Hyperparameters of an inner step, written by name into the state of optax.inject_hyperparams.

optax keeps what `inject_hyperparams` was given as numbers in its state, under their names. There
they are read at every update, so that what is written there before an update is what it uses.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lljax.types import Params

Hyperparams = Mapping[str, Any]
"""By name: the values of one step, or with a leading axis [T] those of all."""


def init_state(optimizer: optax.GradientTransformation, params: Params) -> Any:
    """o_0. optax mixes dtypes, so that a user's strict promotion cannot hold."""
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.init(params)


def write_hyperparams(opt_state: Any, hyperparams: Hyperparams | None) -> Any:
    """The optimiser's state with these hyperparameters wherever it has one of the name."""
    if not hyperparams:
        return opt_state

    def write(node):
        if not is_injected(node):
            return node
        values = {
            name: jnp.asarray(hyperparams.get(name, old), jnp.result_type(old))
            for name, old in node.hyperparams.items()
        }
        inner = write_hyperparams(node.inner_state, hyperparams)
        return node._replace(hyperparams=values, inner_state=inner)

    return jax.tree.map(write, opt_state, is_leaf=is_injected)


def check_hyperparams(
    optimizer: optax.GradientTransformation,
    params: Params,
    hyperparams: Hyperparams | None,
    num_steps: int,
) -> None:
    """ValueError unless the optimiser has numbers of these names, and each is floating [T, ...]."""
    if hyperparams is None:
        return
    if not isinstance(hyperparams, Mapping) or not all(isinstance(k, str) for k in hyperparams):
        raise ValueError(
            f"`hyperparams` must be a dict from names to arrays [T, ...]; got {hyperparams!r}."
        )
    nodes = list(_injected(jax.eval_shape(lambda p: init_state(optimizer, p), params)))
    for name, values in hyperparams.items():
        having = [node for node in nodes if name in node.hyperparams]
        if not having:
            raise ValueError(
                _unknown(name, sorted({n for node in nodes for n in node.hyperparams}))
            )
        if len(having) > 1:
            raise ValueError(
                f"`hyperparams[{name!r}]` is in {len(having)} parts of `optimizer`. Give each a "
                f"name of its own: optax.inject_hyperparams(lambda rate_a: optax.sgd(rate_a))("
                f"rate_a=0.1)."
            )
        (node,) = having
        if name in _schedules(node):
            raise ValueError(
                f"`hyperparams[{name!r}]` would have no effect: the optimiser was built with a "
                f"schedule as its {name}, which is computed anew at every step. Build it with a "
                f"number there, optax.inject_hyperparams(...)({name}=0.1)."
            )
        built_with = node.hyperparams[name]
        if not jnp.issubdtype(built_with.dtype, jnp.floating):
            raise ValueError(
                f"`hyperparams[{name!r}]` would be cut to whole numbers: `optimizer` was built "
                f"with one as its {name}. Build it with {name}=0.0 or the like."
            )
        if not hasattr(values, "dtype"):
            raise ValueError(
                f"`hyperparams[{name!r}]` must be an array [T, ...]; got a {type(values).__name__}."
            )
        expected = (num_steps, *built_with.shape)
        if jnp.shape(values) != expected:
            raise ValueError(
                f"`hyperparams[{name!r}]` must have shape {expected}, one value for each of the "
                f"T = {num_steps} steps; got {jnp.shape(values)}."
            )
        dtype = jnp.result_type(values)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"`hyperparams[{name!r}]` must be floating; got {dtype}.")


def _unknown(name: str, known: list[str]) -> str:
    if not known:
        return (
            f"`hyperparams[{name!r}]` is not a hyperparameter of `optimizer`, whose state holds "
            f"none. Build it as optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)."
        )
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return (
        f"`hyperparams[{name!r}]` is not a hyperparameter of `optimizer`, which has "
        f"{', '.join(known)}.{hint}"
    )


def is_injected(node: Any) -> bool:
    """Whether it is the state of an optax.inject_hyperparams."""
    names = getattr(node, "_fields", ())
    return "hyperparams" in names and "inner_state" in names


def _injected(opt_state: Any) -> Iterator[Any]:
    """All states of an inject_hyperparams, those inside others too."""
    for node in jax.tree.leaves(opt_state, is_leaf=is_injected):
        if is_injected(node):
            yield node
            yield from _injected(node.inner_state)


def _schedules(node: Any) -> list[str]:
    """The names whose values are computed by a schedule at every step."""
    return list(getattr(node, "hyperparams_states", ()))
