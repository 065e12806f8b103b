"""Whether an optax optimiser has a derivative that a meta-gradient can be made of.

Three updates are done with made-up gradients and pulled back, by the very function that the
backward sweep uses. Training itself shows none of what is found here: its losses are fine.
"""

import dataclasses
import operator
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike

from lljax import checks
from lljax.hyperparams import init_state
from lljax.train_step import apply_optimizer
from lljax.types import MetaOptimizer, Params, TrainState
from lljax.update import Record, pull_back_update, zeros_like

NUM_UPDATES = 3
STEEP = 3e4
"""A derivative at a zero entry this many times that of an ordinary one predicts little: of AdamW,
that is an eps_root below about 4e-10. Measured by `benchmarks.prediction`; see the log."""

_USE_ADAMW = "Use another one, e.g. optax.adamw(learning_rate, eps_root=1e-6)"
_ADAM = (
    "If it takes `eps_root`, as optax.adam, adamw, nadam, lamb and adabelief do, pass "
    "eps_root=1e-6; else use optax.adamw(learning_rate, eps_root=1e-6)"
)
# By the name of an optimiser's state: what its user can do.
_CURES = {
    "ScheduleFreeState": (
        "optax.contrib.schedule_free_adamw has no `eps_root`: build it as "
        "optax.contrib.schedule_free(optax.adamw(rate, b1=0.0, eps_root=1e-6), rate, b1=0.9)"
    ),
    "GaLoreState": f"optax.contrib.galore has no `eps_root`. {_USE_ADAMW}",
    "MuonState": "Pass `adam_eps_root=1e-6` to optax.contrib.muon",
    "FactoredState": "Pass a larger `eps` to optax.adafactor, e.g. eps=1e-6",
    "ScaleByAdamState": _ADAM,
    "ScaleByAmsgradState": _ADAM,
    "ScaleByBeliefState": _ADAM,
    "ScaleByAdanState": _ADAM,
    "ScaleByNovogradState": _ADAM,
    "ScaleByAdemamixState": _ADAM,
    "ScaleBySimplifiedAdEMAMixState": _ADAM,
    **{
        state: f"{name} has no `eps_root`. {_USE_ADAMW}"
        for state, name in (
            ("ProdigyState", "optax.contrib.prodigy"),
            ("DAdaptAdamWState", "optax.contrib.dadapt_adamw"),
            ("MadgradState", "optax.contrib.madgrad"),
            ("MechanicState", "optax.contrib.mechanize"),
        )
    },
}

# By `update` function, for as long as that lives: the parameters it is known to be good for.
_known_good: weakref.WeakKeyDictionary[Callable, set[Hashable]] = weakref.WeakKeyDictionary()


def check_is_optimizer(optimizer: optax.GradientTransformation) -> None:
    """ValueError unless `optimizer` is an optax optimiser, or a pair of functions like one."""
    parts = (getattr(optimizer, name, None) for name in ("init", "update"))
    if all(map(callable, parts)) and not isinstance(optimizer, MetaOptimizer | type):
        return
    cure = ""
    if isinstance(optimizer, MetaOptimizer):
        cure = " A MetaOptimizer is what `optimize_policy` takes, for the outer steps."
    elif callable(optimizer):
        cure = " A schedule belongs inside one: optax.sgd(schedule)."
    raise ValueError(
        f"`optimizer` must be an optax optimiser such as optax.sgd(0.1); got {optimizer!r}.{cure}"
    )


def check_update(optimizer: optax.GradientTransformation, params: Params) -> None:
    """ValueError unless (gradient, state, params) -> (updates, state) is all the optimiser needs.

    Costs a trace of the update.
    """
    try:
        with jax.numpy_dtype_promotion("standard"):
            state = jax.eval_shape(optimizer.init, params)
            _, after = jax.eval_shape(optimizer.update, params, state, params)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        words = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"`optimizer` must work as update(gradient, state, params), and this one does not. "
            f"Some need the value of the loss or the loss itself (line searches as in optax.lbfgs, "
            f"polyak_sgd, momo, sophia, reduce_on_plateau), others parameters of a form of their "
            f"own (lookahead). Use another one, e.g. optax.sgd(learning_rate). What it says: "
            f"{type(error).__name__}: {words}"
        ) from error
    forms = (jax.tree_util.tree_leaves_with_path(tree) for tree in (state, after))
    for (path, before), (_, leaf) in zip(*forms, strict=False):
        if (before.shape, before.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"`optimizer` must keep the form of its state, and an update makes "
                f"{before.dtype}{list(before.shape)} in state{jax.tree_util.keystr(path)} "
                f"{leaf.dtype}{list(leaf.shape)}. Where `params` mix dtypes, keep them in one, or "
                f"give the optimiser the dtype of its moments (`accumulator_dtype`, `mu_dtype`)."
            )


def check_optimizer(optimizer: optax.GradientTransformation, params: Params) -> None:
    """ValueError if the optimiser's updates have no derivative, or one that is always zero.

    - Not finite where one entry of every array's gradient is zero, as of an unused embedding row:
      Adam divides by sqrt(v + eps_root), and with eps_root = 0 the root's derivative at v = 0 is
      infinite, so that one such entry makes the whole meta-gradient NaN.
    - Zero although the update follows the gradient: a sign (lion, sign_sgd, rprop) is a staircase.
    - The updates themselves are not finite, as of a learning rate that is NaN.

    Warns where it is not finite if the whole gradient of an update is zero, and where at a zero
    entry or gradient it is finite but STEEP: a meta-gradient of such numbers is exact, and may
    predict nothing.

    Not tried: parameters that are all zero, and later steps.

    Compiles a small program, once for an optimiser and parameters of some shapes: what was found
    good is remembered. It needs the memory of three states and gradients.
    """
    leaves, structure = jax.tree.flatten(params)
    shapes = structure, tuple((leaf.shape, jnp.result_type(leaf)) for leaf in leaves)
    try:
        known = _known_good.setdefault(optimizer.update, set())
        key: Hashable = (optimizer.init, shapes)
        if key in known:
            return
    except TypeError:  # an `update` or a structure that cannot be looked up is checked each time
        known, key = set(), None
    shapes_of = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype), params)

    @checks.compiled_fast
    def try_updates(one):
        return _try_updates(optimizer, shapes_of, one)

    with jax.core.eval_context(), jax.numpy_dtype_promotion("standard"):
        try:
            found = try_updates(1.0)
            found = {
                kind: _Found(*values) for kind, values in jax.tree.map(np.asarray, found).items()
            }
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
            return  # a traced learning rate, say: there is no number to look at
    _judge(optimizer, params, found)
    known.add(key)


class _Kind(NamedTuple):
    """Made-up gradients of three updates."""

    scale: ArrayLike = 1.0
    zero_entry: ArrayLike = False  # whether the first entry of every array is zero
    zero_update: ArrayLike = -1  # in which update the whole gradient is zero


_KINDS = {
    "plain": _Kind(),
    "entry": _Kind(zero_entry=True),
    "first": _Kind(zero_update=0),
    "second": _Kind(zero_update=1),
    "small": _Kind(scale=1e-4),
    "opposite": _Kind(scale=-1.0),
}


class _Found(NamedTuple):
    """What the updates of a kind and their pull-back gave; lists have an entry for each array."""

    end_finite: Any  # [] bool: theta_3 and the optimiser's state
    finite: Any  # [] bool: the pulled-back numbers
    moved: Any  # sum of theta_3 - theta_0
    slopes: Any  # the largest derivative in the array's gradients
    steepness: Any  # that where the gradient is zero, over the largest update


def _try_updates(
    optimizer: optax.GradientTransformation, shapes: Params, one: jax.Array
) -> dict[str, _Found]:
    """Does and pulls back the updates of every kind; `one` keeps XLA from folding constants."""
    # Made of an argument: what is made of constants alone would be computed op by op.
    params = jax.tree.map(lambda p: jnp.full(p.shape, one, p.dtype), shapes)

    def advance(state, gradient):
        return apply_optimizer(optimizer, state, gradient), Record(state, gradient)

    def pull_back(cotangent, record):
        return pull_back_update(optimizer, record, cotangent)[:2]

    def try_kind(kind: _Kind) -> _Found:
        gradients = jax.tree.map(lambda p: _gradients(kind, p), params)
        start = TrainState(params, init_state(optimizer, params))
        end, records = jax.lax.scan(advance, start, gradients)
        last = zeros_like(end)._replace(params=params)
        _, slopes = jax.lax.scan(pull_back, last, records, reverse=True)
        changes = jax.tree.leaves(jax.tree.map(jnp.subtract, end.params, params))
        sizes = [jnp.abs(leaf) for leaf in jax.tree.leaves(slopes)]
        return _Found(
            _finite(end),
            _finite(slopes),
            [jnp.sum(change) for change in changes],
            [jnp.max(size, initial=0) for size in sizes],
            [
                jnp.max(jnp.where(gradient == 0, size, 0), initial=0) / _largest(change)
                for size, gradient, change in zip(
                    sizes, jax.tree.leaves(gradients), changes, strict=True
                )
            ],
        )

    values = zip(*_KINDS.values(), strict=True)
    kinds = _Kind(*(one * jnp.array(column, jnp.float32) for column in values))
    found = jax.lax.map(try_kind, kinds)
    # One of each kind: a list of results, as `_KINDS` has them.
    by_kind = (jax.tree.map(operator.itemgetter(i), found) for i in range(len(_KINDS)))
    return dict(zip(_KINDS, by_kind, strict=True))


def _gradients(kind: _Kind, like: jax.Array) -> jax.Array:
    """The gradients of one array, [NUM_UPDATES, ...], between 1/2 and 3/2 times the scale."""
    update = jnp.arange(NUM_UPDATES, dtype=jnp.float32)[:, None]
    entry = jnp.arange(like.size, dtype=jnp.float32)[None]
    values = 1 + jnp.cos(entry + 2 * update) / 2
    # An array of one entry keeps its gradient: normalising it may have no derivative at zero.
    is_zero = (kind.zero_entry == 1) & (entry == 0) & (like.size > 1)
    values = jnp.where(is_zero | (update == kind.zero_update), 0, kind.scale * values)
    return values.astype(like.dtype).reshape(NUM_UPDATES, *like.shape)


def _largest(change: jax.Array) -> jax.Array:
    """The largest entry's size; tiny where nothing moves, so that it can be divided by."""
    return jnp.maximum(jnp.max(jnp.abs(change), initial=0), jnp.finfo(change.dtype).tiny)


def _finite(tree: Any) -> jax.Array:
    return jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def _judge(
    optimizer: optax.GradientTransformation, params: Params, found: dict[str, _Found]
) -> None:
    """Says what is wrong, in the order in which a cure helps."""
    skip = "build_loss_auc(..., check_optimizer=False) skips this check."
    if not found["plain"].end_finite:
        raise ValueError(
            f"`optimizer` makes a NaN or an infinity of ordinary numbers in its first "
            f"{NUM_UPDATES} updates: look at its learning rate or schedule, and at its other "
            f"numbers. Tried with parameters of 1 and gradients between 1/2 and 3/2."
        )
    if not found["plain"].finite:
        raise ValueError(
            f"`optimizer` has no finite derivative in its first {NUM_UPDATES} updates, whatever "
            f"the gradients: the meta-gradient would be NaN. (optax.radam and contrib.mechanize, "
            f"for example, compute a NaN and then choose another number.) {_USE_ADAMW}."
        )
    if not found["entry"].finite:
        raise ValueError(
            f"`optimizer` has no finite derivative where one entry of the gradient is zero, so a "
            f"single parameter without gradient would turn the whole meta-gradient NaN. "
            f"{_cure(optimizer, params)}. If no entry can ever be exactly zero, {skip}"
        )
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    stairs = [
        f"params{path}"
        for path, up, down, *slopes in zip(
            paths,
            found["plain"].moved,
            found["opposite"].moved,
            found["plain"].slopes,
            found["small"].slopes,
            strict=True,
        )
        if up != down and not any(slopes)
    ]
    if stairs:
        raise ValueError(
            f"`optimizer` takes only the sign of the gradient of {stairs[0]}"
            f"{_and_more(stairs)}: its update is a "
            f"staircase, whose derivative is zero on every step, and so would be the "
            f"meta-gradient. lion, sign_sgd and rprop are such. {_USE_ADAMW}."
        )
    for kind in ("first", "second"):
        if not (found[kind].finite and found[kind].end_finite):
            warnings.warn(
                f"`optimizer` has no finite derivative where the whole gradient is zero in the "
                f"{kind} update, as it is when no example has weight: the meta-gradient is then "
                f"NaN. {_cure(optimizer, params)}.",
                stacklevel=4,
            )
    at_entry = _steepest(found["entry"])
    at_gradient = max(_steepest(found["first"]), _steepest(found["second"]))
    if max(at_entry, at_gradient) <= STEEP:
        return
    if at_entry > STEEP:
        steepness, where, cure = at_entry, "an entry of the gradient", _cure(optimizer, params)
    else:
        steepness, where = at_gradient, "a whole gradient"
        cure = (
            f"{_cure(optimizer, params)}; that does not help what divides by a norm "
            f"(normalize_by_update_norm, lamb, lars, muon). If no gradient can ever be exactly "
            f"zero, {skip[:-1]}"
        )
    warnings.warn(
        f"`optimizer` is so steep where {where} is zero (its derivative there is {steepness:.0e} "
        f"times that of an ordinary one) that its meta-gradient is exact and may predict nothing. "
        f"{cure}.",
        stacklevel=4,
    )


def _steepest(found: _Found) -> float:
    return max(map(float, found.steepness), default=0.0)


def _and_more(names: list[str]) -> str:
    more = len(names) - 1
    return f" and of {more} more {'array' if more == 1 else 'arrays'}" if more else ""


def _cure(optimizer: optax.GradientTransformation, params: Params) -> str:
    """What a user of this optimiser can do, by the states that it keeps."""
    names = set(_state_names(jax.eval_shape(optimizer.init, params)))
    known = (cure for name, cure in _CURES.items() if name in names)
    return next(known, "Add a small number inside its roots, as Adam's eps_root=1e-6 is one")


def _state_names(state: Any) -> Iterator[str]:
    """The names of the types of states, at any depth."""
    if isinstance(state, tuple | list):
        yield type(state).__name__
        parts = list(state)
    elif isinstance(state, dict):
        parts = list(state.values())
    else:
        parts = list(vars(state).values()) if dataclasses.is_dataclass(state) else []
        yield type(state).__name__
    for part in parts:
        yield from _state_names(part)
