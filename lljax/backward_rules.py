"""Whether the gradient that a loss has in JAX is that of a function.

A backward rule that is not the derivative of the value, as of a gradient reversal or an estimator,
leaves a field g(theta) that is no gradient: its Jacobian H is not symmetric, or the loss changes
along a direction u by something else than g . u. Forward over reverse takes both for granted.
Shapes do not show it, so it is tried on a few examples, in a few directions.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lljax import checks
from lljax.loss_trials import Findings, at, confirmed, spread, with_noise
from lljax.types import Batch, LossFn, Params

MOST = 4  # examples
PAIRS = 3  # of directions

CURE = "Pass second_order='reverse_over_reverse', which is exact for every loss of JAX"


class WrongRule(NamedTuple):
    """Two numbers that are the same for a gradient."""

    what: str
    numbers: tuple[float, float]

    def __str__(self) -> str:
        return f"{self.what} {self.numbers[0]:.6g} and {self.numbers[1]:.6g}"


_findings: Findings[WrongRule] = Findings()


def check_backward_rules(
    loss_fn: LossFn, params: Params, batch: Batch, rest: tuple[Any, ...] = ()
) -> None:
    """ValueError where the gradient of a loss is not that of a function; nothing for tracers."""
    found = find_wrong_rule(loss_fn, params, batch, rest)
    if found:
        raise ValueError(
            f"`loss_fn` has a backward rule that is not the derivative of its value, as gradient "
            f"reversal and straight-through estimators have: {found}. The faster way to "
            f"differentiate its gradient would be wrong. {CURE}."
        )


def find_wrong_rule(
    loss_fn: LossFn, params: Params, batch: Batch, rest: tuple[Any, ...] = ()
) -> WrongRule | None:
    """What shows that the gradient of a loss is not that of a function."""
    return _findings.find(loss_fn, params, batch, rest, _compare)


def _compare(loss_fn: LossFn, params: Params, batch: Batch) -> WrongRule | None:
    """Compares u H v with v H u, and the slopes of the losses with those in the gradient."""
    size = checks.num_examples(batch, "batch")
    places = spread(size, min(size, MOST))

    piece = at(batch, places)

    @checks.compiled_fast
    def start(params, noise, key):
        theta = with_noise(params, noise)
        return theta, *_directions(theta, len(places), key)

    @checks.compiled_fast
    def along(theta, piece, weights, u, v):
        """Along u: the slope of the losses, that in their gradient g, and v H u."""

        def losses(theta):
            return loss_fn(theta, piece)

        def gradient(theta):
            values, pull_back = jax.vjp(losses, theta)
            return pull_back(weights.astype(values.dtype))[0]

        values, slopes = jax.jvp(losses, (theta,), (u,))
        g, along_u = jax.jvp(gradient, (theta,), (u,))
        wide = jnp.promote_types(values.dtype, jnp.float32)
        slope = jnp.sum(weights.astype(wide) * slopes.astype(wide))
        return slope, _dot(g, u), _dot(v, along_u)

    def numbers(noise, key):
        theta, u, v, weights = start(params, noise, key)
        slope, of_gradient, v_h_u = along(theta, piece, weights, u, v)
        _, _, u_h_v = along(theta, piece, weights, v, u)
        return u_h_v, v_h_u, slope, of_gradient

    tolerance = _tolerance(jax.eval_shape(loss_fn, params, batch).dtype)

    def look(noise: float) -> tuple[WrongRule | None, bool]:
        keys = jax.random.split(jax.random.key(0), PAIRS)
        found = np.asarray([numbers(noise, key) for key in keys], np.float64)
        if not np.isfinite(found).all():
            return None, False
        slope_size = np.abs(found[:, 2:]).max()
        for columns, what, floor in (
            ((2, 3), "along one direction the loss and its gradient have the slopes", 0.0),
            ((0, 1), "its second derivatives in two directions are", tolerance * slope_size),
        ):
            pair = found[:, columns]
            change = np.abs(pair[:, 0] - pair[:, 1])
            worst = int(np.argmax(change))
            if change[worst] > tolerance * np.abs(pair).max() + floor:
                return WrongRule(what, (float(pair[worst, 0]), float(pair[worst, 1]))), True
        return None, bool(slope_size > 0)

    return confirmed(look)


def _directions(params: Params, size: int, key: jax.Array) -> tuple[Params, Params, jax.Array]:
    """Two directions of the parameters' own size, and weights of the examples."""
    keys = jax.random.split(key, 3)
    u, v = (jax.tree.map(jnp.subtract, with_noise(params, 1.0, k), params) for k in keys[:2])
    return u, v, jax.random.uniform(keys[2], (size,), minval=0.5, maxval=1.5)


def _dot(a: Params, b: Params) -> jax.Array:
    def product(x, y):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jnp.vdot(x.astype(wide), y.astype(wide))

    return jax.tree.reduce(jnp.add, jax.tree.map(product, a, b))


def _tolerance(dtype: Any) -> float:
    """How far rounding may take two numbers apart that should be the same."""
    return {64: 1e-6, 32: 3e-3}.get(jnp.finfo(dtype).bits, 0.1)
