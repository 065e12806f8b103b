"""How far a meta-gradient can be trusted: what it predicts, against what training again shows.

An exact gradient is exact at a point. Where training is so rough that its outcome turns two small
steps away, nothing follows from it. `metasmoothness` sees that in three runs, without a gradient,
and `overshoot` sets beside them what the gradient foretells; `linear_datamodeling_score` sets its
predictions against retrainings; a gradient that is wrong is found by `finite_difference_check`. All
but `overshoot` take a `loss_auc` and what that takes.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lljax import checks
from lljax.datamodels import DatamodelingScore, linear_datamodeling_score, scaled
from lljax.step_inputs import as_step_inputs
from lljax.types import Batch, LossAuc, Params, StepInputs

__all__ = [
    "DatamodelingScore",
    "FiniteDifferences",
    "Metasmoothness",
    "Prediction",
    "finite_difference_check",
    "linear_datamodeling_score",
    "metasmoothness",
    "overshoot",
    "predicted_and_actual",
    "random_direction",
]

SMOOTH = 0.7
"""The least metasmoothness of theta_T at which a gradient is to be trusted. Measured by
`benchmarks.trust`; see the log. With ReLU some gradients below it predict, too."""

OVERSHOOT = 5.0
"""How many times as much as two runs show along a direction a gradient may predict. A parabola has
2.5 at most."""
_ROUNDING = 1e-5  # of an AUC: smaller changes are not told from rounding


class Metasmoothness(NamedTuple):
    """What `metasmoothness` returns; every score in [-1, 1]."""

    params: jax.Array  # [] of theta_T
    losses: jax.Array  # [] of the desired-loss curve
    aucs: jax.Array  # [3] of the three runs


class FiniteDifferences(NamedTuple):
    """What `finite_difference_check` returns. D directions."""

    error: jax.Array  # [] the largest |gradient - difference|, of the largest |difference|
    gradient: jax.Array  # [D] slopes along the directions, of the meta-gradient
    difference: jax.Array  # [D] the same, of the finite differences


class Prediction(NamedTuple):
    """What `predicted_and_actual` returns, nats."""

    predicted: jax.Array  # [] <dAUC/dgamma, trial - policy>
    actual: jax.Array  # [] AUC(trial) - AUC(policy)


def metasmoothness(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    constants: Any = None,
    *,
    direction: jax.Array,
    step: float,
) -> Metasmoothness:
    """Whether training turns where its weights move straight on: three runs, no gradient.

      S = sum_i |d_i| sign(d_i) sign(e_i) / sum_i |d_i|,
      d = A(gamma + h v) - A(gamma),  e = A(gamma + 2 h v) - A(gamma + h v)

    A is what a run makes of its weights: theta_T, or the loss curve. Near 1 it goes on as it began,
    so that a slope predicts; near 0 the second step has nothing to do with the first.

    >>> import jax.numpy as jnp, optax, lljax
    >>> from lljax import trust
    >>> def loss_fn(params, batch):
    ...   return (batch["x"] @ params - batch["y"])**2
    >>> data = {"x": jnp.array([[1., 2.], [2., -1.]]), "y": jnp.array([1., 0.])}
    >>> found = trust.metasmoothness(lljax.build_loss_auc(loss_fn, optax.sgd(0.01)),
    ...     lljax.uniform_policy(10, 2), jnp.zeros(2), data, data,
    ...     direction=jnp.array([1., -1.]), step=0.1)
    >>> float(found.params)
    1.0

    Args:
      loss_auc, policy, params, train, desired, constants: a run, as `build_loss_auc` has it.
      direction: v, of relative changes: [N], a number for each training example; a weight gamma
        becomes gamma (1 + h v). `random_direction` draws one.
      step: h > 0; relative changes of 2 h have to leave weights above 0.

    Returns:
      Metasmoothness. Cost: three runs forward, one after the other.

    Raises:
      ValueError: a shape does not fit, or a weight would turn negative.

    Reference: L. Engstrom et al., arXiv:2503.13751, section 3 (of theta_T).
    """
    inputs = as_step_inputs(policy)
    direction = _per_example(direction, "direction", train)
    checks.check_number("step", step, "a finite number > 0", lambda h: 0 < h < math.inf)
    if not isinstance(direction, jax.core.Tracer):
        least = np.asarray(direction).min()
        if 1 + 2 * step * least < 0:
            raise ValueError(
                f"`step` must keep the weights above 0: gamma (1 + 2 step direction) is negative "
                f"for the smallest direction, {least:.6g}; got step = {step}."
            )

    def run(distance):
        moved = scaled(inputs, 1 + distance * direction)
        auc, info = loss_auc(moved, params, train, desired, constants)
        return auc, info.desired_losses[1:], info.params

    distances = jnp.array([0, step, 2 * step], direction.dtype)
    aucs, losses, ends = jax.lax.map(run, distances)
    return Metasmoothness(sign_agreement(ends), sign_agreement(losses), aucs)


def overshoot(predicted: ArrayLike, aucs: ArrayLike) -> jax.Array:
    """How many times the change that runs show along a direction is what a gradient predicts.

      |predicted| / max(|AUC_1 - AUC_0|, |AUC_2 - AUC_0|)

    Where training is chaotic, as SGD is at too high a rate, a gradient grows with every step, and
    the AUC does not follow it; metasmoothness may be near 1 all the same. Around 1 where a gradient
    predicts; near 0 where the direction is flat; no more than 2.5 where the AUC is a parabola.

    >>> import jax.numpy as jnp
    >>> from lljax import trust
    >>> print(f"{trust.overshoot(-0.1, jnp.array([2.0, 1.92, 1.88])):.2f}")
    0.83

    Args:
      predicted: [], nats: h <dAUC/dgamma, gamma v>, of the step `h` and direction `v` of the runs.
      aucs: [3], nats: at gamma, gamma (1 + h v), gamma (1 + 2 h v), as `metasmoothness` has them.

    Returns:
      [], at least 0. Changes below 1e-5 of the AUC count as that; they may be rounding.
    """
    aucs = jnp.asarray(aucs)
    actual = jnp.abs(aucs[1:] - aucs[0]).max()
    return jnp.abs(predicted) / jnp.maximum(actual, _ROUNDING * jnp.abs(aucs[0]))


def sign_agreement(outcomes: Any) -> jax.Array:
    """The score of `metasmoothness` of what three runs made, a pytree of arrays [3, ...].

    1 where nothing moves; NaN where a number is not finite.
    """
    weight, agreeing = jnp.zeros(()), jnp.zeros(())
    for leaf in jax.tree.leaves(outcomes):
        wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
        first, second = jnp.diff(wide, axis=0)
        size = jnp.abs(first)
        weight += size.sum()
        agreeing += (size * jnp.sign(first) * jnp.sign(second)).sum()
    return jnp.where(weight == 0, 1.0, agreeing / jnp.where(weight == 0, 1.0, weight))


def random_direction(key: jax.Array, num_examples: int) -> jax.Array:
    """[N] of +1 and -1, for `metasmoothness`: half of the examples up and half down."""
    checks.check_count("num_examples", num_examples)
    signs = jnp.where(jnp.arange(num_examples) % 2, -1.0, 1.0)
    return jax.random.permutation(key, signs)


def finite_difference_check(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    constants: Any = None,
    *,
    key: jax.Array,
    num_directions: int = 2,
    step: float = 1e-5,
) -> FiniteDifferences:
    """Whether the meta-gradient of a run is right: against finite differences, in float64.

      (8 (f(w + h v) - f(w - h v)) - (f(w + 2 h v) - f(w - 2 h v))) / (12 h) = <v, df/dw> + O(h^4)

    v are random directions of relative changes [T, B] of the weights. Everything is cast to float64
    for it; a loss that computes in float32 all the same shows an error near 1e-3.

    Args:
      loss_auc, policy, params, train, desired, constants: a run, as `build_loss_auc` has it; the
        first few steps of a long one will do.
      key: of jax.random, draws the directions.
      num_directions: D.
      step: h. Where a loss is not smooth, as with ReLU, a smaller one crosses fewer kinks.

    Returns:
      FiniteDifferences, in the host's memory. Cost: a meta-gradient and 4 D runs forward, in
      float64, compiled anew.

    Raises:
      ValueError: a shape does not fit or a number is out of range; it is called inside jit.
    """
    checks.check_count("num_directions", num_directions)
    checks.check_number("step", step, "in (0, 0.5)", lambda h: 0 < h < 0.5)
    given = as_step_inputs(policy), params, train, desired, constants
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(given)):
        raise ValueError(
            "`finite_difference_check` computes in float64, whatever the caller does: call it "
            "outside jit, vmap and grad."
        )
    shape = num_directions, *jnp.shape(given[0].weights)
    drawn, host = jax.device_get((jax.random.normal(key, shape), given))
    with jax.enable_x64(True):

        def wide(leaf):
            leaf = jnp.asarray(leaf)
            return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

        inputs, *data = jax.tree.map(wide, host)

        def f(weights):
            return loss_auc(dataclasses.replace(inputs, weights=weights), *data)[0]

        weights = inputs.weights
        directions = weights[None] * jnp.asarray(drawn, jnp.float64)
        gradient = jax.jit(jax.grad(f))(weights)
        slopes = jnp.sum(directions * gradient[None], axis=(1, 2))
        # One program for all of them: compiling takes longer than running it.
        places = step * jnp.array([-2.0, -1.0, 1.0, 2.0])
        points = weights[None, None] + places[:, None, None, None] * directions[None]
        values = jax.jit(lambda points: jax.lax.map(f, points))(points.reshape(-1, *weights.shape))
        further, nearer = jnp.array([[-1.0, 0, 0, 1.0], [0, -1.0, 1.0, 0]]) @ values.reshape(4, -1)
        found = (8 * nearer - further) / (12 * step)
        error = jnp.max(jnp.abs(slopes - found)) / jnp.max(jnp.abs(found))
        return FiniteDifferences(*jax.device_get((error, slopes, found)))


def predicted_and_actual(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    trial: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    constants: Any = None,
) -> Prediction:
    """What the gradient says of a step from one policy to another, and what the step does.

    Args:
      loss_auc, policy, params, train, desired, constants: a run, as `build_loss_auc` has it.
      trial: another policy like `policy`; of StepInputs the weights count, and the batches are
        those of `policy`.

    Returns:
      Prediction. Cost: a meta-gradient and a run forward.

    Raises:
      ValueError: a shape does not fit.
    """
    inputs, moved = as_step_inputs(policy), as_step_inputs(trial)
    if jnp.shape(moved.weights) != jnp.shape(inputs.weights):
        raise ValueError(
            f"`trial` must have weights of shape {jnp.shape(inputs.weights)}, that of `policy`; "
            f"got {jnp.shape(moved.weights)}."
        )

    def f(weights):
        given = dataclasses.replace(inputs, weights=weights)
        return loss_auc(given, params, train, desired, constants)[0]

    auc, gradient = jax.value_and_grad(f)(inputs.weights)
    predicted = jnp.sum(gradient * (moved.weights - inputs.weights))
    return Prediction(predicted, f(moved.weights) - auc)


def _per_example(values: Any, name: str, train: Batch) -> jax.Array:
    """A floating [N]; ValueError where it is anything else."""
    values = checks.floating(values, name)
    expected = (checks.num_examples(train, "train"),)
    if values.shape != expected:
        raise ValueError(
            f"`{name}` must have shape (N,) = {expected}, a number for each training example; got "
            f"{values.shape}."
        )
    return values
