"""The rules of an outer step: which trial of a policy is taken, and how large the next one is.

The objective is rough, so a trial that makes it worse or not finite is taken back and the step
shrinks; after a good one it grows. Nothing here computes a meta-gradient.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lljax.checks import check_number
from lljax.meta_optimizer import MetaOptimizer, check_meta_optimizer

RESTART_AFTER = 3  # rejections in a row


class OuterState(NamedTuple):
    """Where an optimisation of a policy stands after an outer step; all arrays."""

    policy: jax.Array  # [T, N] gamma, the best so far
    objective: jax.Array  # [] its AUC, of whatever loss the run is judged by
    policy_grad: jax.Array  # [T, N] its meta-gradient
    optimizer_state: Any
    scale: jax.Array  # [] factor on the learning rate
    trials: jax.Array  # [] int, outer steps so far
    rejections: jax.Array  # [] int, trials taken back since the last one that was not
    trial_objective: jax.Array  # [] of the last trial, possibly not finite
    complete: jax.Array  # [] bool, whether policy_grad holds the examples without weight too

    @property
    def accepted(self) -> jax.Array:
        """[] bool, whether the last trial was taken."""
        return self.rejections == 0


class Begin(Protocol):
    def __call__(
        self, policy: ArrayLike, objective: ArrayLike, policy_grad: ArrayLike
    ) -> OuterState:
        """The state before the first outer step."""
        ...


class Take(Protocol):
    def __call__(
        self,
        state: OuterState,
        objective: ArrayLike,
        policy_grad: ArrayLike,
        complete: ArrayLike = True,
    ) -> OuterState:
        """Moves to the trial, given its objective [] and gradient [T, N].

        It is taken back if it is not better or its gradient not finite. `complete` is False where
        the gradient leaves out the examples without weight.
        """
        ...


class Reject(Protocol):
    def __call__(self, state: OuterState, objective: ArrayLike) -> OuterState:
        """Takes the trial back, given its objective []."""
        ...


class Refresh(Protocol):
    def __call__(self, state: OuterState, policy_grad: ArrayLike) -> OuterState:
        """Gives `state.policy` a gradient [T, N] that holds all examples."""
        ...


class StepControl(NamedTuple):
    """An outer step in parts, for meta-gradients that are computed in one's own way.

    state = control.begin(policy, objective, policy_grad)
    trial = control.propose(state)                              # then its objective and, if that
    state = control.take(state, trial_objective, trial_grad)    # is finite and lower, its gradient;
    state = control.reject(state, trial_objective)              # else this
    state = control.refresh(state, policy_grad)                 # if the gradient is not complete

    `try_policy` puts the parts together.
    """

    begin: Begin
    propose: Callable[[OuterState], jax.Array]
    take: Take
    reject: Reject
    refresh: Refresh


def build_step_control(
    optimizer: MetaOptimizer, *, grow: float = 1.2, shrink: float = 0.5
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
    check_meta_optimizer(optimizer)
    check_number("grow", grow, "finite and >= 1", lambda x: 1 <= x < math.inf)
    check_number("shrink", shrink, "a number in (0, 1)", lambda x: 0 < x < 1)

    def begin(policy, objective, policy_grad):
        zero = jnp.zeros((), jnp.int32)
        return OuterState(
            policy=policy,
            objective=objective,
            policy_grad=policy_grad,
            optimizer_state=optimizer.init(policy),
            scale=jnp.ones((), policy.dtype),
            trials=zero,
            rejections=zero,
            trial_objective=objective,
            complete=jnp.array(True),
        )

    def update(state):
        return optimizer.update(state.policy_grad, state.optimizer_state, state.policy, state.scale)

    def take(state, objective, policy_grad, complete=True):
        trial, optimizer_state = update(state)
        taken = OuterState(
            policy=trial,
            objective=objective,
            policy_grad=policy_grad,
            optimizer_state=optimizer_state,
            scale=state.scale * grow,
            trials=state.trials + 1,
            rejections=jnp.zeros_like(state.rejections),
            trial_objective=objective,
            complete=complete,
        )
        good = is_better(state, objective) & jnp.isfinite(policy_grad).all()
        rejected = reject(state, objective)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, rejected)

    def reject(state, objective):
        rejections = state.rejections + 1
        # Not at the first one: momentum that overshoots is worth more than none.
        stuck = rejections % RESTART_AFTER == 0
        fresh = optimizer.restart(state.optimizer_state)
        optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(stuck, new, old), fresh, state.optimizer_state
        )
        return state._replace(
            optimizer_state=optimizer_state,
            scale=state.scale * shrink,
            trials=state.trials + 1,
            rejections=rejections,
            trial_objective=objective,
        )

    def refresh(state, policy_grad):
        finite = jnp.isfinite(policy_grad).all()
        return state._replace(
            policy_grad=jnp.where(finite, policy_grad, state.policy_grad),
            complete=state.complete | finite,
        )

    return StepControl(begin, lambda state: update(state)[0], take, reject, refresh)


def is_better(state: OuterState, objective: ArrayLike) -> jax.Array:
    """[] bool: whether a trial's objective is finite and below that of the best policy so far."""
    return jnp.isfinite(objective) & (objective < state.objective)


def try_policy(
    control: StepControl,
    state: OuterState,
    evaluate: Callable[[jax.Array], tuple[jax.Array, Callable[[], jax.Array]]],
    look_at_all: Callable[[jax.Array], jax.Array] | None,
    *,
    complete: bool,
    choose: Callable[..., OuterState] = jax.lax.cond,
) -> OuterState:
    """One outer step, by meta-gradients that the caller computes.

    The one rule of all outer loops: of compiled ones, where `choose` is `jax.lax.cond`, and of
    those that compute on the host, where it is `choose_on_host`.

    Args:
      control: from `build_step_control`.
      state: where the optimisation stands.
      evaluate: of a policy [T, N] its objective [], and a function that gives its gradient [T, N].
      look_at_all: of a policy its gradient over all examples; None where every gradient is one.
      complete: whether this step must end with a gradient over all examples.
      choose: (predicate, function, function) -> what one of the two functions returns.
    """
    objective, gradient = evaluate(control.propose(state))
    after = choose(
        is_better(state, objective),
        lambda: control.take(state, objective, gradient(), complete),
        lambda: control.reject(state, objective),
    )
    if not complete or look_at_all is None:
        return after
    return choose(
        after.complete,
        lambda: after,
        lambda: control.refresh(after, look_at_all(after.policy)),
    )


def choose_on_host(
    predicate: ArrayLike, if_true: Callable[[], OuterState], if_false: Callable[[], OuterState]
) -> OuterState:
    """`jax.lax.cond` for a predicate that is known."""
    return if_true() if predicate else if_false()
