"""Methods that improve a policy, or what its weights are made of, from a meta-gradient.

A method is a pair of pure functions in optax's manner. Unlike an optax transformation it returns
the new policy itself, since rows must stay on the simplex:

    state = optimizer.init(policy)
    policy, state = optimizer.update(policy_grad, state, policy)

`policy` is an array [T, N], or anything that weights are made of: one simplex [N], one a row
[S, N], or a pytree of these; with `from_optax` a pytree of free parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lljax import checks, optimizer_check
from lljax.hyperparams import init_state, is_injected
from lljax.simplex import check_rows, project_simplex
from lljax.slopes import check_mask
from lljax.types import MetaOptimizer

LARGEST_STEP = 10.0  # of an example that waits for its weight, in units of the rate


def projected_gradient(learning_rate: optax.ScalarOrSchedule) -> MetaOptimizer:
    """Projected gradient descent, the paper's method.

      gamma_t <- Proj_simplex[gamma_t - epsilon dAUC/dgamma_t]   (Eq. 6)

    An example whose slope is unknown keeps the weight 0, and the others are projected among
    themselves.

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.projected_gradient(learning_rate=0.5)
    >>> policy, gradient = lljax.uniform_policy(1, 2), jnp.array([[1., 0.]])
    >>> policy, state = optimizer.update(gradient, optimizer.init(policy), policy)
    >>> policy.tolist()
    [[0.25, 0.75]]

    Args:
      learning_rate: epsilon, for the gradient of the AUC (a mean over T). The paper's rates are
        for J = T AUC: its 5e-6 at T = 2000 is 0.01 here. A number or an optax schedule.

    Returns:
      A MetaOptimizer for arrays [..., N] whose rows are distributions, or a pytree of them. A rate
      that is no positive number raises ValueError.

    Reference: arXiv:2402.17759, Eq. 6.
    """
    checks.check_rate("learning_rate", learning_rate)

    def init(policy):
        check_rows(policy)
        return jnp.zeros((), jnp.int32)

    def update(policy_grad, count, policy, scale=1.0, known=None):
        step_size = _at(learning_rate, count) * scale

        def move(known, policy, grad):
            moved = (policy - step_size * grad).astype(policy.dtype)
            return (project_simplex(moved if known is None else jnp.where(known, moved, -jnp.inf)),)

        (moved,) = _by_array(move, known, policy, policy_grad)
        return moved, count + 1

    return MetaOptimizer(init, update, on_simplices=True)


def exponentiated_gradient(
    learning_rate: optax.ScalarOrSchedule,
    momentum: float = 0.0,
    cutoff: float = 0.0,
    explore: float = 0.0,
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
    entry that is exactly 0 stays 0. An example whose slope is unknown gets no weight and gathers no
    momentum. A row with a slope that is NaN or infinite becomes NaN.

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.exponentiated_gradient(learning_rate=0.5)
    >>> policy, gradient = lljax.uniform_policy(1, 2), jnp.array([[1., 0.]])
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
      explore: e in [0, 1], for slopes that are estimated from batches of `draw_batches`. s_t^2 is
        the variance under (1 - e) gamma + e / N, so that noise in slopes of little weight counts.

    Returns:
      A MetaOptimizer for arrays [..., N] whose rows are distributions, or a pytree of them. A
      number out of its range raises ValueError.

    Reference: Kivinen and Warmuth, Information and Computation 132 (1997).
    """
    checks.check_rate("learning_rate", learning_rate)
    checks.check_number("momentum", momentum, "a number in [0, 1)", lambda x: 0 <= x < 1)
    checks.check_number("explore", explore, "a share in [0, 1]", lambda x: 0 <= x <= 1)
    expected = "a share of the uniform weight, in [0, 1)"
    checks.check_number("cutoff", cutoff, expected, lambda x: 0 <= x < 1)

    def init(policy):
        check_rows(policy)
        trace = jax.tree.map(jnp.zeros_like, policy) if momentum else None
        return jnp.zeros((), jnp.int32), trace

    def update(policy_grad, state, policy, scale=1.0, known=None):
        count, trace = state
        step_size = _at(learning_rate, count) * scale

        def move(known, policy, grad, trace):
            if known is not None:
                policy = jnp.where(known, policy, 0)
            direction = _relative_slopes(policy, grad, known, cutoff, explore)
            if momentum:
                # An example without weight is not on its way anywhere.
                trace = direction = momentum * jnp.where(policy > 0, trace, 0) + direction
            step = step_size * direction
            if cutoff:
                moved = _step_with_zeros(policy, step, cutoff / policy.shape[-1])
            else:
                moved = jax.nn.softmax(jnp.log(policy) - step, axis=-1)
            return moved.astype(policy.dtype), trace

        moved, new_trace = _by_array(move, known, policy, policy_grad, trace)
        return moved, (count + 1, new_trace if momentum else None)

    def restart(state, policy):
        count, trace = state
        return count, jax.tree.map(jnp.zeros_like, trace) if momentum else None

    return MetaOptimizer(init, update, restart, on_simplices=True)


def smoothed(optimizer: MetaOptimizer, passes: int) -> MetaOptimizer:
    """The same method on a meta-gradient that is averaged over neighbouring inner steps.

      g_t <- (g_{t-1} + 2 g_t + g_{t+1}) / 4, `passes` times, with g_{-1} = g_0, g_T = g_{T-1}

    Where the inner training is at the edge of stability, it oscillates from step to step along its
    sharpest direction, and so can its meta-gradient: most of it then has a period near two steps,
    and without that part a step of the policy may be longer. A pass removes the period of two
    (but for the first and last steps) and leaves what varies slowly over t. The weights of the mean
    have a standard deviation of sqrt(passes / 2) inner steps. The mean need not be a direction of
    descent, so near an optimum more trials are taken back. Slopes
    that are unknown are left out, and stay unknown.

    >>> import jax.numpy as jnp, lljax
    >>> optimizer = lljax.smoothed(lljax.exponentiated_gradient(0.5), passes=1)
    >>> policy, oscillating = lljax.uniform_policy(3, 2), jnp.array([[1., 0.], [0., 1.], [1., 0.]])
    >>> policy, state = optimizer.update(oscillating, optimizer.init(policy), policy)
    >>> policy[1].tolist()
    [0.5, 0.5]

    Args:
      optimizer: the method.
      passes: how often, at least 1. 8 was best where it was tried (benchmarks/LOG.md). Cost:
        O(T N) each.

    Returns:
      A MetaOptimizer for arrays [T, ..., N], or a pytree of them; `init` raises ValueError for an
      array without an axis of inner steps.
    """
    check_meta_optimizer(optimizer)
    checks.check_count("passes", passes, cure=" (for none, leave `smoothed` out)")

    def init(policy):
        for leaf in jax.tree.leaves(policy):
            if jnp.ndim(leaf) < 2:
                raise ValueError(
                    f"`smoothed` averages over inner steps, the first axis of a policy [T, N]; got "
                    f"an array of shape {jnp.shape(leaf)}. Take the method itself."
                )
        return optimizer.init(policy)

    def around(values):
        wider = jnp.concatenate([values[:1], values, values[-1:]])
        return wider[:-2] + 2 * values + wider[2:]

    def average(known, grad):
        if known is None:
            return (jax.lax.fori_loop(0, passes, lambda _, grad: around(grad) / 4, grad),)
        total = jnp.maximum(around(known.astype(grad.dtype)), 1)

        def among_known(_, grad):
            return jnp.where(known, around(grad) / total, 0)

        return (jax.lax.fori_loop(0, passes, among_known, jnp.where(known, grad, 0)),)

    def update(policy_grad, state, policy, scale=1.0, known=None):
        (mean,) = _by_array(average, known, policy_grad)
        return optimizer.update(mean, state, policy, scale, known)

    return optimizer._replace(init=init, update=update)


def from_optax(optimizer: optax.GradientTransformation) -> MetaOptimizer:
    """Any optax optimiser as a method for free parameters, such as a scorer's.

      psi <- psi + scale * update,  (update, state) = optimizer.update(dAUC/dpsi, state, psi)

    A parameter whose slope is unknown stays as it is, and its gradient counts as 0. A restart
    begins the optimiser's state anew; the counts that schedules read go on.

    >>> import jax.numpy as jnp, lljax, optax
    >>> optimizer = lljax.from_optax(optax.adam(0.1))
    >>> psi = {"w": jnp.zeros(2)}
    >>> psi, state = optimizer.update({"w": jnp.array([3., -1.])}, optimizer.init(psi), psi)
    >>> [round(float(x), 3) for x in psi["w"]]
    [-0.1, 0.1]

    Args:
      optimizer: needs nothing but gradient, state and parameters. Momentum of a step that was
        taken back is still there in the next one; see `build_outer_loop`.

    Returns:
      A MetaOptimizer for any pytree of floating arrays; `init` raises ValueError for an optimiser
      that needs more, such as a line search.

    Raises:
      ValueError: `optimizer` is no optax optimiser.
    """
    optimizer_check.check_is_optimizer(optimizer)

    def init(psi):
        optimizer_check.check_update(optimizer, psi)
        return init_state(optimizer, psi)

    def update(gradient, state, psi, scale=1.0, known=None):
        if known is not None:
            check_mask(known, psi)

        def where_known(tree):
            if known is None:
                return tree
            return jax.tree.map(lambda leaf, known: jnp.where(known, leaf, 0), tree, known)

        # As in the inner training, optax mixes dtypes.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(where_known(gradient), state, psi)
            updates = jax.tree.map(lambda leaf: scale * leaf, where_known(updates))
            return optax.apply_updates(psi, updates), state

    def restart(state, psi):
        return _but_for_schedules(state, init_state(optimizer, psi))

    return MetaOptimizer(init, update, restart)


def check_meta_optimizer(optimizer: Any) -> None:
    """Raise ValueError unless it is a MetaOptimizer."""
    if not isinstance(optimizer, MetaOptimizer):
        raise ValueError(
            f"`optimizer` must be a MetaOptimizer, such as exponentiated_gradient(0.1) or "
            f"projected_gradient(0.01); got {type(optimizer).__name__}. An optax optimiser is what "
            f"build_loss_auc takes, for the inner training; from_optax makes it one for free "
            f"parameters."
        )


def _relative_slopes(
    policy: jax.Array, grad: jax.Array, known: jax.Array | None, cutoff: float, explore: float
) -> jax.Array:
    """The slopes minus their mean under the policy, in units of their spread; 0 where unknown."""
    # An example with the largest slope is then above the mean in spite of rounding.
    if known is None:
        grad = grad - jnp.max(grad, axis=-1, keepdims=True)
    else:
        top = jnp.max(grad, axis=-1, keepdims=True, initial=-jnp.inf, where=known)
        grad = jnp.where(known, grad - top, 0)
    centred = grad - jnp.sum(policy * grad, axis=-1, keepdims=True)
    # Late rows have gradients whose squares underflow in float32.
    largest = jnp.max(jnp.abs(centred), axis=-1, keepdims=True)
    centred = centred / jnp.where(largest > 0, largest, 1)
    drawn = (1 - explore) * policy + explore / policy.shape[-1]
    variance = jnp.sum(drawn * centred**2, axis=-1, keepdims=True)
    if cutoff:
        waits = (policy * policy.shape[-1] < cutoff) & (centred < 0)
        waiting = jnp.sum(centred**2, axis=-1, keepdims=True, where=waits)
        number = jnp.maximum(jnp.sum(waits, axis=-1, keepdims=True), 1)
        mean_square = waiting / number.astype(variance.dtype)
        variance = jnp.maximum(variance, mean_square / LARGEST_STEP**2)
    direction = jnp.where(variance == 0, 0, centred * jax.lax.rsqrt(variance))
    return direction if known is None else jnp.where(known, direction, 0)


def _step_with_zeros(policy: jax.Array, step: jax.Array, least: float) -> jax.Array:
    """Mirror descent whose map is the entropy above `least`, and its tangent parabola below."""
    shares = policy / least
    dual = jnp.where(shares < 1, shares, 1 + jnp.log(jnp.maximum(shares, 1))) - step
    # Divided by the largest exponential, so that none overflows.
    top = jnp.maximum(jnp.max(dual, axis=-1, keepdims=True), 1)
    moved = jnp.where(dual < 1, jnp.maximum(dual, 0) * jnp.exp(1 - top), jnp.exp(dual - top))
    return moved / jnp.sum(moved, axis=-1, keepdims=True)


def _by_array(function: Callable, known: Any, policy: Any, *others: Any) -> tuple[Any, ...]:
    """What `function` gives of each array and of its like in the other trees, as trees.

    Its first argument is the array's mask. For a tree that is None it gets None.
    """
    if known is not None:
        check_mask(known, policy)
    leaves, structure = jax.tree.flatten(policy)
    trees = [known, policy, *others]
    # ValueError where one has another form.
    jax.tree.map(lambda *_: None, policy, *(tree for tree in trees if tree is not None))
    columns = ([None] * len(leaves) if tree is None else jax.tree.leaves(tree) for tree in trees)
    results = [function(*row) for row in zip(*columns, strict=True)]
    return tuple(jax.tree.unflatten(structure, result) for result in zip(*results, strict=True))


def _but_for_schedules(old: Any, new: Any) -> Any:
    """The new state of an optax optimiser, with the counts of the old one that schedules read."""

    def goes_on(node):
        return is_injected(node) or isinstance(node, optax.ScaleByScheduleState)

    def choose(old, new):
        if is_injected(old):
            return old._replace(inner_state=_but_for_schedules(old.inner_state, new.inner_state))
        return old if goes_on(old) else new

    return jax.tree.map(choose, old, new, is_leaf=goes_on)


def _at(learning_rate: optax.ScalarOrSchedule, count: jax.Array) -> Any:
    return learning_rate(count) if callable(learning_rate) else learning_rate
