"""Methods that improve a learning policy from its meta-gradient, and a safe loop around them.

A method is a pair of pure functions in optax's manner. Unlike an optax transformation it returns
the new policy itself, since the rows must stay on the simplex:

    state = optimizer.init(policy)
    policy, state = optimizer.update(policy_grad, state, policy)

`optimize_policy` adds what a rough objective needs: a trial step that makes the AUC worse or not
finite is taken back and the step shrinks; after a good one it grows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lljax import checks
from lljax.loss_auc import LossAuc
from lljax.policy import check_policy, project_simplex
from lljax.types import Batch, Params

RESTART_AFTER = 3  # rejections in a row


class PolicyOptimizer(NamedTuple):
    """A method: `init(policy) -> state` and `update` as in the module's docstring.

    `update` takes a fourth argument, `scale`, by which the learning rate is multiplied (default
    1); a step-size control sets it. `restart` maps a state to one without memory: with momentum
    along a direction that has turned bad no step is small enough.
    """

    init: Callable[[jax.Array], Any]
    update: Callable[..., tuple[jax.Array, Any]]
    restart: Callable[[Any], Any] = lambda state: state


def projected_gradient(learning_rate: optax.ScalarOrSchedule) -> PolicyOptimizer:
    """Projected gradient descent, the paper's method.

      gamma_t <- Proj_simplex[gamma_t - epsilon dAUC/dgamma_t]   (Eq. 6)

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.projected_gradient(learning_rate=0.5)
    >>> policy = lljax.uniform_policy(num_steps=1, num_examples=2)
    >>> gradient = jnp.array([[1., 0.]])
    >>> policy, state = optimizer.update(gradient, optimizer.init(policy), policy)
    >>> policy.tolist()
    [[0.25, 0.75]]

    Args:
      learning_rate: epsilon, for the gradient of the AUC (a mean over T). The paper's rates are
        for J = T AUC: its 5e-6 at T = 2000 is 0.01 here. A number or an optax schedule.
    """

    def update(policy_grad, count, policy, scale=1.0):
        step_size = _at(learning_rate, count) * scale
        moved = (policy - step_size * policy_grad).astype(policy.dtype)
        return project_simplex(moved), count + 1

    return PolicyOptimizer(lambda policy: jnp.zeros((), jnp.int32), update)


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.0, cutoff: float = 0.0
) -> PolicyOptimizer:
    """Mirror descent on the simplex with the entropy as its mirror, normalised row by row.

      d_t = (g_t - <gamma_t, g_t>) / s_t,  g = dAUC/dgamma, s_t the deviation of g_t under gamma_t
      m_t <- mu m_t + d_t
      gamma_t <- softmax[ln gamma_t - epsilon m_t]

    The meta-gradient of an early row is larger than that of a late one by orders of magnitude;
    dividing each row by its spread lets one rate serve all T rows. Without a cutoff an
    entry that is exactly 0 stays 0.

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.exponentiated_gradient(learning_rate=0.5)
    >>> policy = lljax.uniform_policy(num_steps=1, num_examples=2)
    >>> gradient = jnp.array([[1., 0.]])
    >>> policy, state = optimizer.update(gradient, optimizer.init(policy), policy)
    >>> [round(float(weight), 3) for weight in policy[0]]
    [0.269, 0.731]

    Args:
      learning_rate: epsilon, dimensionless: the log-weights of a row move by about this much. A
        number or an optax schedule. 0.1 with momentum 0.8 suits `optimize_policy` well.
      momentum: mu in [0, 1). Costs one more array [T, N].
      cutoff: c in [0, 1). Weights below c / N move in a straight line, those above by factors: with
        z = 1 + ln(gamma N / c) above, z = gamma N / c below, z <- max(0, z - epsilon m) and the
        row is divided by its sum. So weights become exactly 0, which alone they never would, and
        the cost can follow the support (`weightless` in `build_loss_auc`); an example comes back
        in the same way once its slope is below its row's mean.

    Reference: Kivinen and Warmuth, Information and Computation 132 (1997).
    """
    if not 0 <= momentum < 1:
        raise ValueError(f"`momentum` must be in [0, 1); got {momentum}.")
    if not 0 <= cutoff < 1:
        raise ValueError(
            f"`cutoff` is a share of the uniform weight and must be in [0, 1); got {cutoff}."
        )

    def init(policy):
        return jnp.zeros((), jnp.int32), jnp.zeros_like(policy) if momentum else None

    def update(policy_grad, state, policy, scale=1.0):
        count, trace = state
        # An example that shares the largest slope is then above the mean in spite of rounding.
        policy_grad = policy_grad - jnp.max(policy_grad, axis=1, keepdims=True)
        centred = policy_grad - jnp.sum(policy * policy_grad, axis=1, keepdims=True)
        # Late rows have gradients whose squares underflow in float32.
        largest = jnp.max(jnp.abs(centred), axis=1, keepdims=True)
        centred = centred / jnp.where(largest > 0, largest, 1)
        variance = jnp.sum(policy * centred**2, axis=1, keepdims=True)
        # A row without spread is stationary already: nothing to divide, nothing to move.
        direction = jnp.where(variance > 0, centred * jax.lax.rsqrt(variance), 0)
        if momentum:
            # A weightless example's slope may not be known: it gathers no momentum.
            trace = direction = momentum * jnp.where(policy > 0, trace, 0) + direction
        step = _at(learning_rate, count) * scale * direction
        if cutoff:
            moved = _step_with_zeros(policy, step, cutoff / policy.shape[1])
        else:
            moved = jax.nn.softmax(jnp.log(policy) - step, axis=1)
        return moved.astype(policy.dtype), (count + 1, trace)

    def restart(state):
        count, trace = state
        return count, jnp.zeros_like(trace) if momentum else None

    return PolicyOptimizer(init, update, restart)


def _step_with_zeros(policy: jax.Array, step: jax.Array, least: float) -> jax.Array:
    """Mirror descent whose map is the entropy above `least`, and its tangent parabola below."""
    shares = policy / least
    dual = jnp.where(shares < 1, shares, 1 + jnp.log(jnp.maximum(shares, 1))) - step
    # Divided by the largest exponential, so that none overflows.
    top = jnp.maximum(jnp.max(dual, axis=1, keepdims=True), 1)
    moved = jnp.where(dual < 1, jnp.maximum(dual, 0) * jnp.exp(1 - top), jnp.exp(dual - top))
    return moved / jnp.sum(moved, axis=1, keepdims=True)


class OuterState(NamedTuple):
    """Where an optimisation of a policy stands after an outer step; all arrays."""

    policy: jax.Array  # [T, N] gamma, the best so far
    auc: jax.Array  # [] its AUC
    policy_grad: jax.Array  # [T, N] its meta-gradient
    optimizer_state: Any
    scale: jax.Array  # [] factor on the learning rate
    rejections: jax.Array  # [] int, trials taken back since the last one that was not
    trial_auc: jax.Array  # [] the AUC of the last trial, possibly not finite

    @property
    def accepted(self) -> jax.Array:
        """[] bool, whether the last trial was taken."""
        return self.rejections == 0


class StepControl(NamedTuple):
    """An outer step in parts, for meta-gradients that are computed in one's own way.

    state = control.begin(policy, auc, policy_grad)
    trial = control.propose(state)                         # then its AUC and, if that
    state = control.take(state, trial_auc, trial_grad)     # is_better, its gradient;
    state = control.reject(state, trial_auc)               # else this
    state = control.refresh(state, policy_grad)            # of state.policy, if it was incomplete
    """

    begin: Callable[[ArrayLike, ArrayLike, ArrayLike], OuterState]
    propose: Callable[[OuterState], jax.Array]
    take: Callable[[OuterState, ArrayLike, ArrayLike], OuterState]
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
    if not isinstance(optimizer, PolicyOptimizer):
        raise ValueError(
            f"`optimizer` must be a PolicyOptimizer, such as exponentiated_gradient(0.1) or "
            f"projected_gradient(0.01); got {type(optimizer).__name__}. An optax optimiser is what "
            f"build_loss_auc takes, for the inner training."
        )
    if grow < 1 or not 0 < shrink < 1:
        raise ValueError(f"`grow` must be >= 1 and `shrink` in (0, 1); got {grow} and {shrink}.")

    def begin(policy, auc, policy_grad):
        one, zero = jnp.ones((), policy.dtype), jnp.zeros((), jnp.int32)
        return OuterState(policy, auc, policy_grad, optimizer.init(policy), one, zero, auc)

    def update(state):
        return optimizer.update(state.policy_grad, state.optimizer_state, state.policy, state.scale)

    def take(state, auc, policy_grad):
        trial, optimizer_state = update(state)
        zero = jnp.zeros_like(state.rejections)
        taken = OuterState(trial, auc, policy_grad, optimizer_state, state.scale * grow, zero, auc)
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
            rejections=rejections,
            trial_auc=auc,
        )

    def refresh(state, policy_grad):
        finite = jnp.isfinite(policy_grad).all()
        return state._replace(policy_grad=jnp.where(finite, policy_grad, state.policy_grad))

    return StepControl(begin, lambda state: update(state)[0], take, reject, refresh)


def is_better(state: OuterState, auc: ArrayLike) -> jax.Array:
    """[] bool: whether a trial's AUC is finite and below that of the best policy so far."""
    return jnp.isfinite(auc) & (auc < state.auc)


class OuterLoop(NamedTuple):
    """The two pure functions of a policy optimisation, for a loop of one's own."""

    init: Callable[[jax.Array, Params, Batch, Batch], OuterState]
    step: Callable[[OuterState, Params, Batch, Batch], OuterState]


def build_outer_loop(
    loss_auc: LossAuc, optimizer: PolicyOptimizer, *, grow: float = 1.2, shrink: float = 0.5
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

    Returns:
      `init(policy, params, train, desired) -> OuterState` and
      `step(state, params, train, desired) -> OuterState`. Cost: a meta-gradient each; a rejected
      step costs only the forward sweep of one (not under vmap, where `lax.cond` runs both sides).
    """
    control = build_step_control(optimizer, grow=grow, shrink=shrink)

    def init(policy, params, train, desired):
        (auc, _), policy_grad = jax.value_and_grad(loss_auc, has_aux=True)(
            policy, params, train, desired
        )
        return control.begin(policy, auc, policy_grad)

    def step(state, params, train, desired):
        auc, pull_back, _ = jax.vjp(
            lambda policy: loss_auc(policy, params, train, desired),
            control.propose(state),
            has_aux=True,
        )

        def take():
            (policy_grad,) = pull_back(jnp.ones_like(auc))
            return control.take(state, auc, policy_grad)

        return jax.lax.cond(is_better(state, auc), take, lambda: control.reject(state, auc))

    return OuterLoop(init, step)


class OptimizedPolicy(NamedTuple):
    """What `optimize_policy` returns."""

    policy: jax.Array  # [T, N]
    auc: jax.Array  # [] its AUC
    policy_grad: jax.Array  # [T, N]
    auc_history: jax.Array  # [num_steps + 1] AUC of the best policy so far; first: the start
    accepted: jax.Array  # [num_steps] bool


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
      optimizer: `projected_gradient` or `exponentiated_gradient`.
      num_steps: outer steps, at least 1.
      grow: factor on the learning rate after a step that was taken.
      shrink: factor on it after one that was not.
      active_loss_auc: the same objective built with `weightless="skip"`: an active set. It is used
        for all outer steps but each `check_every`-th, so that examples that have lost their weight
        cost nothing between the checks. A check looks at all of them, at the policy that stays if
        its trial is taken back. Let `loss_auc` be built with `weightless="slopes"`, and
        the method write exact zeros (`cutoff`, or `projected_gradient`).
      check_every: outer steps from one look at all examples to the next.

    Returns:
      OptimizedPolicy. Cost: num_steps + 1 meta-gradients at most. With an active set, one more for
      each check that is taken back; the entries of `policy_grad` that were not looked at are filled
      as "skip" says.

    Raises:
      ValueError: a shape or dtype does not fit, `optimizer` is no policy optimiser, or (outside
        jit) a row of `policy` is not on the simplex.
    """
    if num_steps < 1:
        raise ValueError(f"`num_steps` must be at least 1; got {num_steps}.")
    checks.check_policy_shape(policy, train)
    if not isinstance(policy, jax.core.Tracer):
        check_policy(policy)
    if check_every < 1:
        raise ValueError(f"`check_every` must be at least 1; got {check_every}.")
    loop, active = (
        build_outer_loop(objective, optimizer, grow=grow, shrink=shrink)
        for objective in (loss_auc, active_loss_auc or loss_auc)
    )

    refresh = build_step_control(optimizer).refresh

    def look(state):
        policy_grad, _ = jax.grad(loss_auc, has_aux=True)(state.policy, params, train, desired)
        return refresh(state, policy_grad)

    def body(carry, number):
        state, complete = carry
        arguments = (state, params, train, desired)
        if active_loss_auc is None:
            state = loop.step(*arguments)
        else:
            checks_all = number % check_every == 0
            state = jax.lax.cond(checks_all, loop.step, active.step, *arguments)
            complete = jnp.where(state.accepted, checks_all, complete)
            state = jax.lax.cond(checks_all & ~complete, look, lambda state: state, state)
            complete |= checks_all
        return (state, complete), (state.auc, state.accepted)

    start = loop.init(policy, params, train, desired)
    numbers = jnp.arange(1, num_steps + 1)
    (end, _), (aucs, accepted) = jax.lax.scan(body, (start, jnp.array(True)), numbers)
    history = jnp.concatenate([start.auc[None], aucs])
    return OptimizedPolicy(end.policy, end.auc, end.policy_grad, history, accepted)


def _at(learning_rate: optax.ScalarOrSchedule, count: jax.Array) -> Any:
    return learning_rate(count) if callable(learning_rate) else learning_rate
