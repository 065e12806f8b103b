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
from lljax.meta_optimizer import check_meta_optimizer
from lljax.slopes import all_known, is_complete, is_finite
from lljax.types import MetaOptimizer

RESTART_AFTER = 3  # rejections in a row


class OuterState(NamedTuple):
    """Where an optimisation of a policy stands after an outer step; all arrays.

    The policy is gamma [T, N], or any pytree psi that weights are made of.
    """

    policy: Any  # the best so far
    objective: jax.Array  # [] its AUC, of whatever loss the run is judged by
    policy_grad: Any  # like the policy, its meta-gradient; 0 where it is not known
    optimizer_state: Any  # of the meta-optimiser
    scale: jax.Array  # [] factor on the learning rate
    trials: jax.Array  # [] int, outer steps so far
    rejections: jax.Array  # [] int, trials taken back since the last one that was not
    trial_objective: jax.Array  # [] of the last trial, possibly not finite
    known: Any = None  # bools like the policy: of which entries the slope is known; None: of all

    @property
    def accepted(self) -> jax.Array:
        """[] bool, whether the last trial was taken."""
        return self.rejections == 0

    @property
    def complete(self) -> jax.Array:
        """[] bool, whether all slopes are known."""
        return is_complete(self.known)


class Begin(Protocol):
    def __call__(
        self, policy: Any, objective: ArrayLike, policy_grad: Any, known: Any = None
    ) -> OuterState:
        """The state before the first outer step."""
        ...


class Take(Protocol):
    def __call__(
        self, state: OuterState, objective: ArrayLike, policy_grad: Any, known: Any = None
    ) -> OuterState:
        """Moves to the trial, given its objective [], its gradient and what is known of that.

        It is taken back if it is not better or its gradient not finite.
        """
        ...


class Reject(Protocol):
    def __call__(self, state: OuterState, objective: ArrayLike) -> OuterState:
        """Takes the trial back, given its objective []."""
        ...


class Refresh(Protocol):
    def __call__(self, state: OuterState, policy_grad: Any, known: Any = None) -> OuterState:
        """Gives `state.policy` another gradient of which more is known, if that is finite."""
        ...


class StepControl(NamedTuple):
    """An outer step in parts, for meta-gradients that are computed in one's own way.

    >>> import jax, jax.numpy as jnp, lljax
    >>> def auc(policy):
    ...   return jnp.sum(policy @ jnp.array([1.0, 2.0]))
    >>> control = lljax.build_step_control(lljax.exponentiated_gradient(0.5))
    >>> policy = lljax.uniform_policy(num_steps=1, num_examples=2)
    >>> state = control.begin(policy, auc(policy), jax.grad(auc)(policy))
    >>> trial = control.propose(state)
    >>> if auc(trial) < state.objective:
    ...   state = control.take(state, auc(trial), jax.grad(auc)(trial))
    ... else:
    ...   state = control.reject(state, auc(trial))
    >>> bool(state.accepted), bool(state.policy[0, 0] > 0.5)
    (True, True)

    `refresh` gives the policy that stays a gradient of which more is known. Where a gradient leaves
    slopes out, its mask is the last argument; a state whose gradients may do so begins with one:
    `control.begin(policy, objective, policy_grad, known)`. `try_policy` puts the parts together.
    """

    begin: Begin  # the state before the first outer step
    propose: Callable[[OuterState], Any]  # the trial: another policy
    take: Take  # moves to the trial
    reject: Reject  # takes it back
    refresh: Refresh  # gives the policy that stays a fuller gradient


def build_step_control(
    optimizer: MetaOptimizer, *, grow: float = 1.2, shrink: float = 0.5
) -> StepControl:
    """The rules of `build_outer_loop` as pure functions that evaluate nothing themselves.

    Args:
      optimizer: the method.
      grow: factor on the learning rate after a trial that was taken, >= 1.
      shrink: factor on it after one that was not, in (0, 1).

    Returns:
      StepControl, which has an example; every function costs O(T N), that is of the size of the
      policy. `take` rejects a trial whose AUC is not better or whose gradient is not finite after
      all.

    Raises:
      ValueError: `optimizer` is no meta-optimiser, or a factor is out of its range.
    """
    check_meta_optimizer(optimizer)
    check_number("grow", grow, "finite and >= 1", lambda x: 1 <= x < math.inf)
    check_number("shrink", shrink, "a number in (0, 1)", lambda x: 0 < x < 1)

    def begin(policy, objective, policy_grad, known=None):
        zero = jnp.zeros((), jnp.int32)
        return OuterState(
            policy=policy,
            objective=objective,
            policy_grad=policy_grad,
            optimizer_state=optimizer.init(policy),
            scale=jnp.ones((), jnp.result_type(*jax.tree.leaves(policy))),
            trials=zero,
            rejections=zero,
            trial_objective=objective,
            known=known,
        )

    def update(state):
        return optimizer.update(
            state.policy_grad, state.optimizer_state, state.policy, state.scale, state.known
        )

    def take(state, objective, policy_grad, known=None):
        trial, optimizer_state = update(state)
        state, known = _of_one_form(state, known)
        taken = OuterState(
            policy=trial,
            objective=objective,
            policy_grad=policy_grad,
            optimizer_state=optimizer_state,
            scale=state.scale * grow,
            trials=state.trials + 1,
            rejections=jnp.zeros_like(state.rejections),
            trial_objective=objective,
            known=known,
        )
        good = is_better(state, objective) & is_finite(policy_grad)
        rejected = reject(state, objective)
        return jax.tree.map(lambda new, old: jnp.where(good, new, old), taken, rejected)

    def reject(state, objective):
        rejections = state.rejections + 1
        # Not at the first one: momentum that overshoots is worth more than none.
        stuck = rejections % RESTART_AFTER == 0
        fresh = optimizer.restart(state.optimizer_state, state.policy)
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

    def refresh(state, policy_grad, known=None):
        state, known = _of_one_form(state, known)
        finite = is_finite(policy_grad)
        new = policy_grad, known
        old = state.policy_grad, state.known
        policy_grad, known = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, old)
        return state._replace(policy_grad=policy_grad, known=known)

    return StepControl(begin, lambda state: update(state)[0], take, reject, refresh)


def _of_one_form(state: OuterState, known: Any) -> tuple[OuterState, Any]:
    """The state and a mask, both with arrays if one of them has any."""
    if known is None and state.known is not None:
        known = all_known(state.policy)
    elif known is not None and state.known is None:
        state = state._replace(known=all_known(state.policy))
    return state, known


def is_better(state: OuterState, objective: ArrayLike) -> jax.Array:
    """[] bool: whether a trial's objective is finite and below that of the best policy so far."""
    return jnp.isfinite(objective) & (objective < state.objective)


def try_policy(
    control: StepControl,
    state: OuterState,
    evaluate: Callable[[Any], tuple[ArrayLike, Callable[[], tuple[Any, Any]]]],
    look_at_all: Callable[[Any], tuple[Any, Any]] | None,
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
      evaluate: of a policy its objective [], and a function that gives (its gradient, which of its
        slopes are known; None: all).
      look_at_all: of a policy the same pair, all slopes known; None where every gradient is such.
      complete: whether this step must end with a gradient of which all slopes are known.
      choose: (predicate, function, function) -> what one of the two functions returns.

    Returns:
      The state after the step. It raises what `evaluate` and `look_at_all` raise.
    """
    objective, gradient = evaluate(control.propose(state))
    after = choose(
        is_better(state, objective),
        lambda: control.take(state, objective, *gradient()),
        lambda: control.reject(state, objective),
    )
    if not complete or look_at_all is None:
        return after
    return choose(
        after.complete,
        lambda: after,
        lambda: control.refresh(after, *look_at_all(after.policy)),
    )


def choose_on_host(
    predicate: ArrayLike, if_true: Callable[[], OuterState], if_false: Callable[[], OuterState]
) -> OuterState:
    """`jax.lax.cond` for a predicate that is known; the `choose` of `try_policy` outside of jit.

    >>> import lljax
    >>> lljax.choose_on_host(True, lambda: "taken", lambda: "not even made")
    'taken'

    Args:
      predicate: a known bool.
      if_true, if_false: without arguments; only one of them is called.

    Returns:
      What that one returns. It raises what that one raises.
    """
    return if_true() if predicate else if_false()
