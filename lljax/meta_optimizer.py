"""Methods that improve a learning policy from its meta-gradient.

A method is a pair of pure functions in optax's manner. Unlike an optax transformation it returns
the new policy itself, since the rows must stay on the simplex:

    state = optimizer.init(policy)
    policy, state = optimizer.update(policy_grad, state, policy)
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax

from lljax import checks
from lljax.policy import project_simplex

LARGEST_STEP = 10.0  # of an example that waits for its weight, in units of the rate


class MetaUpdate(Protocol):
    """The `update` of a method."""

    def __call__(
        self,
        policy_grad: jax.Array,
        state: Any,
        policy: jax.Array,
        scale: jax.typing.ArrayLike = 1.0,
    ) -> tuple[jax.Array, Any]:
        """(gradient [T, N], state, gamma [T, N], factor [] on the rate) -> (gamma, state)."""
        ...


class MetaOptimizer(NamedTuple):
    """A method: `init(policy) -> state` and `update` as in the module's docstring.

    A step-size control sets the last argument of `update`, by which the learning rate is
    multiplied. `restart` maps a state to one without memory: with momentum along a direction that
    has turned bad no step is small enough.
    """

    init: Callable[[jax.Array], Any]
    update: MetaUpdate
    restart: Callable[[Any], Any] = lambda state: state


def projected_gradient(learning_rate: optax.ScalarOrSchedule) -> MetaOptimizer:
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

    checks.check_rate("learning_rate", learning_rate)

    def update(policy_grad, count, policy, scale=1.0):
        step_size = _at(learning_rate, count) * scale
        moved = (policy - step_size * policy_grad).astype(policy.dtype)
        return project_simplex(moved), count + 1

    return MetaOptimizer(lambda policy: jnp.zeros((), jnp.int32), update)


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.0, cutoff: float = 0.0
) -> MetaOptimizer:
    """Mirror descent on the simplex with the entropy as its mirror, normalised row by row.

      d_t = (g_t - <gamma_t, g_t>) / s_t,  g = dAUC/dgamma, s_t the spread of the row
      m_t <- mu m_t + d_t
      gamma_t <- softmax[ln gamma_t - epsilon m_t]

    The meta-gradient of an early row is larger than that of a late one by orders of magnitude;
    dividing each row by its spread lets one rate serve all T rows. s_t^2 is the variance of g_t
    under gamma_t. With a cutoff it is at least a hundredth of the mean square distance, to the
    row's mean, of the examples that wait: those below the cutoff with a slope below the mean. A
    row on one example, whose variance is 0, would never move without that. Without a cutoff an
    entry that is exactly 0 stays 0. A row with a slope that is NaN or infinite becomes NaN.

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
        row is divided by its sum. So weights become exactly 0, which without a cutoff they never
        do, and the cost can follow the support (`zero_weight` in `build_loss_auc`); an example
        comes back in the same way once its slope is below its row's mean.

    Reference: Kivinen and Warmuth, Information and Computation 132 (1997).
    """
    checks.check_rate("learning_rate", learning_rate)
    checks.check_number("momentum", momentum, "a number in [0, 1)", lambda x: 0 <= x < 1)
    expected = "a share of the uniform weight, in [0, 1)"
    checks.check_number("cutoff", cutoff, expected, lambda x: 0 <= x < 1)

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
        if cutoff:
            waits = (policy * policy.shape[1] < cutoff) & (centred < 0)
            waiting = jnp.sum(centred**2, axis=1, keepdims=True, where=waits)
            number = jnp.maximum(jnp.sum(waits, axis=1, keepdims=True), 1)
            mean_square = waiting / number.astype(variance.dtype)
            variance = jnp.maximum(variance, mean_square / LARGEST_STEP**2)
        # A row without spread is stationary already: nothing to divide, nothing to move.
        direction = jnp.where(variance == 0, 0, centred * jax.lax.rsqrt(variance))
        if momentum:
            # The slope of an example without weight may not be known: it gathers no momentum.
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

    return MetaOptimizer(init, update, restart)


def smoothed(optimizer: MetaOptimizer, passes: int) -> MetaOptimizer:
    """The same method on a meta-gradient that is averaged over neighbouring inner steps.

      g_t <- (g_{t-1} + 2 g_t + g_{t+1}) / 4, `passes` times, with g_{-1} = g_0, g_T = g_{T-1}

    Where the inner training is at the edge of stability, it oscillates from step to step along its
    sharpest direction, and so can its meta-gradient: most of it then has a period near two steps,
    and without that part a step of the policy may be longer. A pass removes the period of two
    (but for the first and last steps) and leaves what varies slowly over t. The weights of the mean
    have a standard deviation of sqrt(passes / 2) inner steps. The mean need not be a direction of
    descent, so near an optimum more trials are taken back.

    An example that `zero_weight="omit"` left out has the largest slope of its row in the mean, as
    in the meta-gradient itself: only a known slope gives weight.

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.smoothed(lljax.exponentiated_gradient(0.5), passes=1)
    >>> policy = lljax.uniform_policy(num_steps=3, num_examples=2)
    >>> oscillating = jnp.array([[1., 0.], [0., 1.], [1., 0.]])
    >>> policy, state = optimizer.update(oscillating, optimizer.init(policy), policy)
    >>> policy[1].tolist()
    [0.5, 0.5]

    Args:
      optimizer: the method.
      passes: how often, at least 1. 8 was best where it was tried (benchmarks/LOG.md). Cost:
        O(T N) each.
    """
    check_meta_optimizer(optimizer)
    checks.check_count("passes", passes, cure=" (for none, leave `smoothed` out)")

    def average(_, grad):
        wider = jnp.concatenate([grad[:1], grad, grad[-1:]])
        return (wider[:-2] + 2 * grad + wider[2:]) / 4

    def update(policy_grad, state, policy, scale=1.0):
        mean = jax.lax.fori_loop(0, passes, average, policy_grad)
        unknown = (policy == 0) & (policy_grad == jnp.max(policy_grad, axis=1, keepdims=True))
        mean = jnp.where(unknown, jnp.max(mean, axis=1, keepdims=True), mean)
        return optimizer.update(mean, state, policy, scale)

    return optimizer._replace(update=update)


def check_meta_optimizer(optimizer: Any) -> None:
    """Raise ValueError unless it is a MetaOptimizer."""
    if not isinstance(optimizer, MetaOptimizer):
        raise ValueError(
            f"`optimizer` must be a MetaOptimizer, such as exponentiated_gradient(0.1) or "
            f"projected_gradient(0.01); got {type(optimizer).__name__}. An optax optimiser is what "
            f"build_loss_auc takes, for the inner training."
        )


def _step_with_zeros(policy: jax.Array, step: jax.Array, least: float) -> jax.Array:
    """Mirror descent whose map is the entropy above `least`, and its tangent parabola below."""
    shares = policy / least
    dual = jnp.where(shares < 1, shares, 1 + jnp.log(jnp.maximum(shares, 1))) - step
    # Divided by the largest exponential, so that none overflows.
    top = jnp.maximum(jnp.max(dual, axis=1, keepdims=True), 1)
    moved = jnp.where(dual < 1, jnp.maximum(dual, 0) * jnp.exp(1 - top), jnp.exp(dual - top))
    return moved / jnp.sum(moved, axis=1, keepdims=True)


def _at(learning_rate: optax.ScalarOrSchedule, count: jax.Array) -> Any:
    return learning_rate(count) if callable(learning_rate) else learning_rate
