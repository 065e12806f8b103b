"""A safe loop around a policy optimiser, for an objective that is rough.

A trial step that makes the AUC worse or not finite is taken back and the step shrinks; after a good
one it grows.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lljax import checks
from lljax.loss_auc import LossAuc
from lljax.policy import check_policy
from lljax.policy_optimizer import PolicyOptimizer, check_policy_optimizer
from lljax.types import Batch, Params

RESTART_AFTER = 3  # rejections in a row


class OuterState(NamedTuple):
    """Where an optimisation of a policy stands after an outer step; all arrays."""

    policy: jax.Array  # [T, N] gamma, the best so far
    auc: jax.Array  # [] its AUC
    policy_grad: jax.Array  # [T, N] its meta-gradient
    optimizer_state: Any
    scale: jax.Array  # [] factor on the learning rate
    trials: jax.Array  # [] int, outer steps so far
    rejections: jax.Array  # [] int, trials taken back since the last one that was not
    trial_auc: jax.Array  # [] the AUC of the last trial, possibly not finite
    complete: jax.Array  # [] bool, whether policy_grad holds the examples without weight too

    @property
    def accepted(self) -> jax.Array:
        """[] bool, whether the last trial was taken."""
        return self.rejections == 0


class StepControl(NamedTuple):
    """An outer step in parts, for meta-gradients that are computed in one's own way.

    state = control.begin(policy, auc, policy_grad)
    trial = control.propose(state)                         # then its AUC and, if that is
    state = control.take(state, trial_auc, trial_grad)     # finite and lower, its gradient;
    state = control.reject(state, trial_auc)               # else this
    state = control.refresh(state, policy_grad)            # of state.policy, if it is not complete

    `take(..., complete=False)` says that the gradient leaves the examples without weight out.
    """

    begin: Callable[[ArrayLike, ArrayLike, ArrayLike], OuterState]
    propose: Callable[[OuterState], jax.Array]
    take: Callable[..., OuterState]
    reject: Callable[[OuterState, ArrayLike], OuterState]
    refresh: Callable[[OuterState, ArrayLike], OuterState]


def build_step_control(
    optimizer: PolicyOptimizer, *, grow: float = 1.2, shrink: float = 0.5
) -> StepControl:
    """The rules of `build_outer_loop` as pure functions that evaluate nothing themselves.

    Args:
      optimizer: the method.
      grow: factor on the learning rate after a trial that was taken, >= 1.
      shrink: factor on it after one that was not, in (0, 1).

    Returns:
      StepControl; every function costs O(T N). `take` rejects a trial whose AUC is not better or
      whose gradient is not finite after all.
    """
    check_policy_optimizer(optimizer)
    if grow < 1 or not 0 < shrink < 1:
        raise ValueError(f"`grow` must be >= 1 and `shrink` in (0, 1); got {grow} and {shrink}.")

    def begin(policy, auc, policy_grad):
        zero = jnp.zeros((), jnp.int32)
        return OuterState(
            policy=policy,
            auc=auc,
            policy_grad=policy_grad,
            optimizer_state=optimizer.init(policy),
            scale=jnp.ones((), policy.dtype),
            trials=zero,
            rejections=zero,
            trial_auc=auc,
            complete=jnp.array(True),
        )

    def update(state):
        return optimizer.update(state.policy_grad, state.optimizer_state, state.policy, state.scale)

    def take(state, auc, policy_grad, complete=True):
        trial, optimizer_state = update(state)
        taken = OuterState(
            policy=trial,
            auc=auc,
            policy_grad=policy_grad,
            optimizer_state=optimizer_state,
            scale=state.scale * grow,
            trials=state.trials + 1,
            rejections=jnp.zeros_like(state.rejections),
            trial_auc=auc,
            complete=complete,
        )
        good = is_better(state, auc) & jnp.isfinite(policy_grad).all()
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, reject(state, auc))

    def reject(state, auc):
        rejections = state.rejections + 1
        # Not at the first one: momentum that overshoots is worth more than none.
        stuck = rejections % RESTART_AFTER == 0
        fresh = optimizer.restart(state.optimizer_state)
        kept = jax.tree.map(
            lambda new, old: jnp.where(stuck, new, old), fresh, state.optimizer_state
        )
        return state._replace(
            optimizer_state=kept,
            scale=state.scale * shrink,
            trials=state.trials + 1,
            rejections=rejections,
            trial_auc=auc,
        )

    def refresh(state, policy_grad):
        finite = jnp.isfinite(policy_grad).all()
        return state._replace(
            policy_grad=jnp.where(finite, policy_grad, state.policy_grad),
            complete=state.complete | finite,
        )

    return StepControl(begin, lambda state: update(state)[0], take, reject, refresh)


def is_better(state: OuterState, auc: ArrayLike) -> jax.Array:
    """[] bool: whether a trial's AUC is finite and below that of the best policy so far."""
    return jnp.isfinite(auc) & (auc < state.auc)


class OuterLoop(NamedTuple):
    """The two pure functions of a policy optimisation, for a loop of one's own."""

    init: Callable[[jax.Array, Params, Batch, Batch], OuterState]
    step: Callable[[OuterState, Params, Batch, Batch], OuterState]


def build_outer_loop(
    loss_auc: LossAuc,
    optimizer: PolicyOptimizer,
    *,
    grow: float = 1.2,
    shrink: float = 0.5,
    active_loss_auc: LossAuc | None = None,
    check_every: int = 5,
) -> OuterLoop:
    """One outer step with step-size control, as pure functions.

    A step tries `optimizer.update`; the trial is taken if its AUC is finite and lower and its
    meta-gradient finite. Then the learning rate is multiplied by `grow`, else by `shrink`. After
    three rejections in a row the method forgets its momentum.

    Args:
      loss_auc: from `build_loss_auc`, or any function of the same form.
      optimizer: the method.
      grow: >= 1.
      shrink: in (0, 1).
      active_loss_auc: the same objective built with `weightless="skip"`: an active set. It is used
        for all outer steps but each `check_every`-th, so that examples that have lost their weight
        cost nothing between the checks. A check looks at all of them, at the policy that stays if
        its trial is taken back. Let `loss_auc` be built with `weightless="slopes"`, and
        the method write exact zeros (`cutoff`, or `projected_gradient`).
      check_every: outer steps from one look at all examples to the next.

    Returns:
      `init(policy, params, train, desired) -> OuterState` and
      `step(state, params, train, desired) -> OuterState`. Cost: a meta-gradient each; a rejected
      step costs only the forward sweep of one (not under vmap, where `lax.cond` runs both sides).
      With an active set, one meta-gradient more for a check that is taken back (under vmap for
      every check); where `complete` is False, `policy_grad` is filled as "skip" says for the
      examples that were left out.
    """
    if check_every < 1:
        raise ValueError(f"`check_every` must be at least 1; got {check_every}.")
    control = build_step_control(optimizer, grow=grow, shrink=shrink)

    def init(policy, params, train, desired):
        (auc, _), policy_grad = jax.value_and_grad(loss_auc, has_aux=True)(
            policy, params, train, desired
        )
        return control.begin(policy, auc, policy_grad)

    def attempt(objective, complete, state, *data):
        auc, pull_back, _ = jax.vjp(
            lambda policy: objective(policy, *data), control.propose(state), has_aux=True
        )

        def take():
            (policy_grad,) = pull_back(jnp.ones_like(auc))
            return control.take(state, auc, policy_grad, complete)

        return jax.lax.cond(is_better(state, auc), take, lambda: control.reject(state, auc))

    def check(state, *data):
        def look():
            policy_grad, _ = jax.grad(loss_auc, has_aux=True)(state.policy, *data)
            return control.refresh(state, policy_grad)

        state = attempt(loss_auc, True, state, *data)
        return jax.lax.cond(state.complete, lambda: state, look)

    def step(state, params, train, desired):
        data = params, train, desired
        if active_loss_auc is None:
            return attempt(loss_auc, True, state, *data)
        active = functools.partial(attempt, active_loss_auc, False)
        trials = state.trials + 1
        after = jax.lax.cond(trials % check_every == 0, check, active, state, *data)
        # Under vmap what a cond returns differs by run; a count that did would make this cond run
        # both its sides.
        return after._replace(trials=trials)

    return OuterLoop(init, step)


class OptimizedPolicy(NamedTuple):
    """What `optimize_policy` returns."""

    policy: jax.Array  # [T, N]
    auc: jax.Array  # [] its AUC
    policy_grad: jax.Array  # [T, N]
    auc_history: jax.Array  # [num_steps + 1] AUC of the best policy so far; first: the start
    accepted: jax.Array  # [num_steps] bool
    complete: jax.Array  # [] bool; False: policy_grad leaves out examples that have no weight


def optimize_policy(
    loss_auc: LossAuc,
    policy: jax.Array,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    optimizer: PolicyOptimizer,
    num_steps: int,
    grow: float = 1.2,
    shrink: float = 0.5,
    active_loss_auc: LossAuc | None = None,
    check_every: int = 5,
) -> OptimizedPolicy:
    """Improves a policy by `num_steps` meta-gradients; it never ends worse than it began.

    A pure function of its arrays. Compile it, and optimise many policies (seeds, data sets) in one
    program, with a closure over the rest:

        jax.jit(jax.vmap(lambda params, train, desired: lljax.optimize_policy(
            loss_auc, policy, params, train, desired, optimizer=optimizer, num_steps=20)))

    For a loop with checkpoints or logs use `build_outer_loop`.

    Args:
      loss_auc: from `build_loss_auc`.
      policy: gamma to start from, [T, N], rows on the simplex.
      params: theta_0.
      train: N examples.
      desired: K examples.
      optimizer: the method, such as `exponentiated_gradient(0.1, momentum=0.8)`.
      num_steps: outer steps, at least 1.
      grow: factor on the learning rate after a step that was taken.
      shrink: factor on it after one that was not.
      active_loss_auc: the same objective built with `weightless="skip"`: an active set, as in
        `build_outer_loop`.
      check_every: outer steps from one look at all examples to the next.

    Returns:
      OptimizedPolicy. Cost: num_steps + 1 meta-gradients at most, and with an active set one more
      for each check that is taken back. With an active set `policy_grad` may leave out examples
      without weight, as `complete` says; for `optimality_gap` take the gradient of `loss_auc` at
      the policy then.

    Raises:
      ValueError: a shape or dtype does not fit, `optimizer` is no policy optimiser, or (outside
        jit) a row of `policy` is not on the simplex.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    checks.check_policy_shape(policy, train)
    if not isinstance(policy, jax.core.Tracer):
        check_policy(policy)
    loop = build_outer_loop(
        loss_auc,
        optimizer,
        grow=grow,
        shrink=shrink,
        active_loss_auc=active_loss_auc,
        check_every=check_every,
    )

    def body(state, _):
        state = loop.step(state, params, train, desired)
        return state, (state.auc, state.accepted)

    start = loop.init(policy, params, train, desired)
    end, (aucs, accepted) = jax.lax.scan(body, start, length=num_steps)
    history = jnp.concatenate([start.auc[None], aucs])
    return OptimizedPolicy(end.policy, end.auc, end.policy_grad, history, accepted, end.complete)
