"""Loops around a meta-optimiser that are compiled as a whole; `step_control` has their rules."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.simplex import check_simplices
from lljax.slopes import all_known, is_complete, is_finite, mask_of
from lljax.step_control import OuterState, build_step_control, is_better, try_policy
from lljax.types import Batch, MetaOptimizer, Objective, Params


class LoopFn(Protocol):
    def __call__(
        self, policy_or_state: Any, params: Params, train: Batch, desired: Batch
    ) -> OuterState:
        """(gamma or psi, or the state before; theta_0; N examples; K examples) -> state."""
        ...


class OuterLoop(NamedTuple):
    """The two pure functions of a policy optimisation, for a loop of one's own."""

    init: LoopFn  # the state before the first outer step, of a policy
    step: LoopFn  # the state after one more


def build_outer_loop(
    loss_auc: Objective,
    optimizer: MetaOptimizer,
    *,
    grow: float = 1.2,
    shrink: float = 0.5,
    active_loss_auc: Objective | None = None,
    check_every: int = 5,
) -> OuterLoop:
    """One outer step with step-size control, as pure functions.

    A step tries `optimizer.update`; the trial is taken if its AUC is finite and lower and its
    meta-gradient finite. Then the learning rate is multiplied by `grow`, else by `shrink`. After
    three rejections in a row the method forgets its momentum.

    >>> import jax.numpy as jnp, optax, lljax
    >>> loss_auc = lljax.build_loss_auc(lambda w, b: (b["x"] - w) ** 2, optax.sgd(0.1))
    >>> data = jnp.zeros(()), {"x": jnp.array([1.0, -3.0])}, {"x": jnp.ones(2)}
    >>> loop = lljax.build_outer_loop(loss_auc, lljax.exponentiated_gradient(1.0))
    >>> state = loop.init(lljax.uniform_policy(5, 2), *data)
    >>> bool(loop.step(state, *data).objective < state.objective)
    True

    Args:
      loss_auc: from `build_loss_auc`, or any function of the same form, in whose first argument it
        is differentiated: a policy [T, N], or a pytree psi of floating arrays that it makes weights
        of. Where it leaves slopes out, `info.known_slopes` has the form of that argument.
      optimizer: the method.
      grow: >= 1.
      shrink: in (0, 1).
      active_loss_auc: the same objective built with `zero_weight="omit"`: an active set. It is used
        in all outer steps except every `check_every`-th, so that examples that have lost their
        weight cost nothing between two checks. A check looks at all of them, at the policy that
        stays if its trial is taken back. Build `loss_auc` with `zero_weight="slope_only"`, and
        choose a method that writes exact zeros (`cutoff`, or `projected_gradient`).
      check_every: outer steps from one look at all examples to the next.

    Returns:
      `init(policy, params, train, desired) -> OuterState` and
      `step(state, params, train, desired) -> OuterState`. Cost: a meta-gradient each; a rejected
      step costs only the forward sweep of one (not under vmap, where `lax.cond` runs both sides).
      With an active set, one meta-gradient more for a check that is taken back (under vmap for
      every check); the state's `known` then says which entries of `policy_grad` are slopes, and
      without one it is None.

    Raises:
      ValueError: `optimizer` is no meta-optimiser, `loss_auc` no function, or a number is out of
        its range.
    """
    checks.check_count("check_every", check_every)
    form = "(policy, params, train, desired) -> (AUC, info)"
    checks.check_callable(loss_auc, "loss_auc", form)
    if active_loss_auc is not None:
        checks.check_callable(active_loss_auc, "active_loss_auc", form)
    control = build_step_control(optimizer, grow=grow, shrink=shrink)

    def init(policy, params, train, desired):
        (auc, info), policy_grad = jax.value_and_grad(loss_auc, has_aux=True)(
            policy, params, train, desired
        )
        known = mask_of(info, policy)
        if known is None and active_loss_auc is not None:
            known = all_known(policy)
        return control.begin(policy, auc, policy_grad, known)

    def attempt(objective_fn, complete, state, *data):
        def evaluate(policy):
            objective, pull_back, info = jax.vjp(
                lambda policy: objective_fn(policy, *data), policy, has_aux=True
            )
            known = mask_of(info, policy)
            return objective, lambda: (pull_back(jnp.ones_like(objective))[0], known)

        def look_at_all(policy):
            policy_grad, info = jax.grad(loss_auc, has_aux=True)(policy, *data)
            return policy_grad, mask_of(info, policy)

        look = None if active_loss_auc is None else look_at_all
        return try_policy(control, state, evaluate, look, complete=complete)

    check = functools.partial(attempt, loss_auc, True)

    def step(state, params, train, desired):
        data = params, train, desired
        if active_loss_auc is None:
            return check(state, *data)
        active = functools.partial(attempt, active_loss_auc, False)
        trials = state.trials + 1
        after = jax.lax.cond(trials % check_every == 0, check, active, state, *data)
        # Under vmap what a cond returns differs by run; a count that did would make this cond run
        # both its sides.
        return after._replace(trials=trials)

    return OuterLoop(init, step)


class OptimizedPolicy(NamedTuple):
    """What `optimize_policy` returns."""

    policy: Any  # like the one that it began from
    auc: jax.Array  # [] its AUC
    policy_grad: Any  # like the policy; 0 where it is not known
    auc_history: jax.Array  # [num_steps + 1] AUC of the best policy so far; first: the start
    accepted: jax.Array  # [num_steps] bool
    finite: jax.Array  # [num_steps + 1] bool: AUC and meta-gradient of the start and of each trial
    known: Any = None  # bools like the policy: of which entries the slope is known; None: of all

    @property
    def complete(self) -> jax.Array:
        """[] bool, whether all slopes are known."""
        return is_complete(self.known)


def optimize_policy(
    loss_auc: Objective,
    policy: Any,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    optimizer: MetaOptimizer,
    num_steps: int,
    grow: float = 1.2,
    shrink: float = 0.5,
    active_loss_auc: Objective | None = None,
    check_every: int = 5,
) -> OptimizedPolicy:
    """Improves a policy by `num_steps` meta-gradients; it never ends worse than it began.

    A pure function of its arrays: compile it with `jax.jit`, and optimise many policies (seeds,
    data sets) in one program with `jax.vmap`, of a closure over the rest. For a loop with
    checkpoints or logs use `build_outer_loop`.

    >>> import jax.numpy as jnp, optax, lljax
    >>> loss_auc = lljax.build_loss_auc(lambda w, b: (b["x"] - w) ** 2, optax.sgd(0.1))
    >>> train, desired = {"x": jnp.array([1.0, -3.0])}, {"x": jnp.ones(2)}
    >>> result = lljax.optimize_policy(
    ...   loss_auc, lljax.uniform_policy(5, 2), jnp.zeros(()), train, desired,
    ...   optimizer=lljax.exponentiated_gradient(1.0), num_steps=3)
    >>> bool(result.auc < result.auc_history[0]), bool((result.policy[:, 1] < 0.1).all())
    (True, True)

    Args:
      loss_auc: from `build_loss_auc`, or any function of the same form, in whose first argument it
        is differentiated, as in `build_outer_loop`: of a family of weights (`static_weights` and
        others), of hyperparameters.
      policy: to start from: gamma [T, N], or a pytree psi of floating arrays. Methods on simplices
        need rows that are distributions.
      params: theta_0.
      train: N examples.
      desired: K examples.
      optimizer: the method, such as `exponentiated_gradient(0.1, momentum=0.8)`.
      num_steps: outer steps, at least 1.
      grow: factor on the learning rate after a step that was taken.
      shrink: factor on it after one that was not.
      active_loss_auc: the same objective built with `zero_weight="omit"`: an active set, as in
        `build_outer_loop`.
      check_every: outer steps from one look at all examples to the next.

    Returns:
      OptimizedPolicy. Cost: num_steps + 1 meta-gradients at most, and with an active set one more
      for each check that is taken back. With an active set `policy_grad` may leave out examples
      without weight, as `known` says: `optimality_gap(policy, policy_grad, known)`.

    Raises:
      ValueError: a shape or dtype does not fit, `optimizer` is no meta-optimiser, or (outside
        jit) a row of `policy` is not on the simplex where the method needs it there, or its AUC or
        meta-gradient is not finite. Under jit `finite` says the last.
    """
    checks.check_count("num_steps", num_steps)
    loop = build_outer_loop(
        loss_auc,
        optimizer,
        grow=grow,
        shrink=shrink,
        active_loss_auc=active_loss_auc,
        check_every=check_every,
    )
    check_arrays(policy)
    if optimizer.on_simplices and not is_traced(policy):
        # What does not fit the data is refused in better words than by its values.
        jax.eval_shape(loss_auc, policy, params, train, desired)
        check_simplices(policy)

    def body(before, _):
        state = loop.step(before, params, train, desired)
        # What was better and yet not taken has a gradient that is not finite.
        finite = jnp.isfinite(state.trial_objective)
        finite &= state.accepted | ~is_better(before, state.trial_objective)
        if active_loss_auc is not None:  # a check that was taken back has a gradient too
            finite &= state.complete | (state.trials % check_every != 0)
        return state, (state.objective, state.accepted, finite)

    start = loop.init(policy, params, train, desired)
    start_finite = jnp.isfinite(start.objective) & is_finite(start.policy_grad)
    if not isinstance(start_finite, jax.core.Tracer) and not start_finite:
        _refuse_start(start, lambda: loss_auc(policy, params, train, desired)[1])
    end, (aucs, accepted, finite) = jax.lax.scan(body, start, length=num_steps)
    return OptimizedPolicy(
        policy=end.policy,
        auc=end.objective,
        policy_grad=end.policy_grad,
        auc_history=jnp.concatenate([start.objective[None], aucs]),
        accepted=accepted,
        finite=jnp.concatenate([start_finite[None], finite]),
        known=end.known,
    )


def is_traced(tree: Any) -> bool:
    """Whether there is a tracer among the arrays."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_arrays(policy: Any) -> None:
    """ValueError unless a policy or psi is a pytree of floating arrays."""
    if not jax.tree.leaves(policy):
        raise ValueError("`policy` holds no arrays: there is nothing to optimise.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(policy):
        checks.floating(leaf, f"policy{jax.tree_util.keystr(path)}")


def _refuse_start(start: OuterState, find_info: Callable[[], Any]) -> NoReturn:
    """Says what is not finite of a policy from which nothing can be improved."""
    if jnp.isfinite(start.objective):
        leaves = jax.tree_util.tree_leaves_with_path(start.policy_grad)
        path, leaf = next(pair for pair in leaves if not np.isfinite(pair[1]).all())
        bad = ~np.isfinite(leaf)
        first = tuple(int(place[0]) for place in np.nonzero(bad))
        name = f"policy{jax.tree_util.keystr(path)}"
        if bad.ndim == 2:
            where = (
                f"{bad.any(axis=1).sum()} of {len(bad)} rows, first at step {first[0]}, example "
            )
            where += str(first[1])
        else:
            where = f"{bad.sum()} of {bad.size} entries, first at {first}"
        what = (
            f"the meta-gradient of `{name}` is not finite in {where}, though its AUC is "
            f"{float(start.objective):.6g}"
        )
    else:
        what = f"the AUC of `policy` is {float(start.objective)}"
        losses = getattr(find_info(), "desired_losses", None)
        if losses is not None and not jnp.isfinite(losses).all():
            first_loss = np.argmin(np.isfinite(losses))
            what += f": the desired loss is not finite from t = {first_loss} on"
    raise ValueError(
        f"there is nothing to improve: {what}. Look for NaN or infinite numbers in `params`, "
        f"`train` and `desired`, or lower the learning rate of the inner optimiser."
    )
