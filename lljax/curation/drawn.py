"""Training runs that keys draw: their initialisation and batches, and their meta-gradient."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.attribution import scores_of
from lljax.datamodels import scaled
from lljax.draws import draw_weights
from lljax.engine.host_arrays import fetch
from lljax.engine.memory_plan import MemoryPlan
from lljax.engine.meta_gradient import MetaGradient
from lljax.engine.pieces import rows_of, segments_of
from lljax.engine.placement import ONE_DEVICE, Placement, anywhere, compiled, compiled_parts
from lljax.engine.smoothness import Reruns
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import PolicyProblem
from lljax.types import Params, StepInputs, TrainState


class Runs(NamedTuple):
    """R training runs."""

    params: Params  # [R, ...] theta_0 of each
    inputs: StepInputs  # weights, index [T, R, B], desired_index [T+1, R, K']


class RunSource:
    """Draws runs of a problem, and hands their gradient on to what weights are made of."""

    def __init__(self, config: ExperimentConfig, problem: PolicyProblem):
        inner = config.inner
        self._num_steps, self._batch_size = inner.num_steps, inner.batch_size
        self._problem, self._explore = problem, config.policy.explore
        self._num_desired = len(jax.tree.leaves(problem.objective)[0])
        chosen = inner.desired_batch_size
        self._desired_size = None if chosen is None or chosen >= self._num_desired else chosen
        self.draw = jax.jit(self._draw, static_argnames="explore")
        self.to_shares = jax.jit(self._to_shares)

    def _draw(self, shares: jax.Array, keys: jax.Array, explore: float | None = None) -> Runs:
        """Runs under the distributions `shares` [S, N], one for each of the keys [R]."""
        explore = self._explore if explore is None else explore

        def one(key: jax.Array) -> tuple[Params, StepInputs]:
            init, order, desired = jax.random.split(key, 3)
            make = self._problem.init_params
            params = self._problem.params if make is None else make(init)
            if self._batch_size is None:
                inputs = StepInputs(lljax.scheduled_weights(shares, num_steps=self._num_steps))
            else:
                inputs = lljax.draw_batches(
                    shares,
                    order,
                    num_steps=self._num_steps,
                    batch_size=self._batch_size,
                    explore=explore,
                )
            index = None
            if self._desired_size is not None:
                shape = self._num_steps + 1, self._desired_size
                index = jax.random.randint(desired, shape, 0, self._num_desired)
            return params, StepInputs(inputs.weights, inputs.index, desired_index=index)

        params, inputs = jax.vmap(one)(keys)
        return Runs(params, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), inputs))

    def _to_shares(
        self, shares: jax.Array, index: jax.Array | None, slopes: jax.Array
    ) -> jax.Array:
        """The mean gradient in `shares` [S, N], of slopes [T, R, B] in the weights of runs."""

        def weights_of(shares: jax.Array) -> jax.Array:
            if index is None:
                weights = lljax.scheduled_weights(shares, num_steps=self._num_steps)
                return jnp.broadcast_to(weights[:, None], slopes.shape)
            of_run = functools.partial(draw_weights, explore=self._explore)
            return jax.vmap(of_run, in_axes=(None, 1), out_axes=1)(shares, index)

        _, pull = jax.vjp(weights_of, shares)
        return pull((slopes / slopes.shape[1]).astype(shares.dtype))[0]


class DrawnGradient(MetaGradient):
    """The meta-gradient of R runs at once, in segments; its `policy` are `Runs`."""

    def __init__(
        self,
        problem: PolicyProblem,
        config: ExperimentConfig,
        plan: MemoryPlan,
        source: RunSource,
        placement: Placement = ONE_DEVICE,
    ):
        self._placement = placement
        segments = segments_of(
            problem, config.inner, memory=plan.within_segment, data_axis=placement.axis
        )
        uniform = jax.ShapeDtypeStruct((1, problem.num_train), np.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.outer.runs))
        self._template = jax.eval_shape(source.draw, uniform, keys)
        rows = jax.tree.map(lambda _: 1, self._template.inputs)
        none = None, None
        of_state = placement.state
        start = jax.vmap(segments.start, in_axes=(0, *none, self._desired_axis))
        self._start = compiled_parts(start, of_state, anywhere)
        forward = jax.vmap(
            lambda *given: tuple(segments.forward(*given)),
            in_axes=(0, rows, *none),
            out_axes=(0, 1, 0),
        )
        self._forward = compiled_parts(
            lambda *given: lljax.ForwardSegment(*forward(*given)), of_state, anywhere, anywhere
        )
        end = jax.vmap(segments.start_backward, in_axes=(0, *none, self._desired_axis))
        self._start_backward = compiled(end, of_state)

        def backward(cotangent, kept, rows, loss_cotangents, data):
            cotangent, slopes = segments.backward(cotangent, kept, rows, loss_cotangents, data)
            return cotangent, slopes.weights

        backward = jax.vmap(backward, in_axes=(0, 0, rows, *none), out_axes=(0, 1))
        self._backward = compiled_parts(backward, of_state, anywhere)
        self._backward_active = self._backward
        self._active_set = False
        grad_shape = self._template.inputs.weights.shape
        curve_shape = plan.num_steps + 1, config.outer.runs
        self._set_up(plan, (problem.train, problem.desired), {}, curve_shape, grad_shape)

    @property
    def _desired_axis(self) -> int | None:
        return None if self._template.inputs.desired_index is None else 0

    def _begin(self, policy: Runs) -> tuple[TrainState, dict[str, jax.Array]]:
        return self._start(policy.params, self._data, self._watched, self._desired_at(policy, 0))

    def _rows(self, policy: Runs, steps: slice) -> StepInputs:
        return rows_of(policy.inputs, steps)

    def _end(self, policy: Runs, state: TrainState, loss_cotangent: jax.Array) -> Any:
        return self._start_backward(state, loss_cotangent, self._data, self._desired_at(policy, -1))

    def _desired_at(self, policy: Runs, step: int) -> jax.Array | None:
        desired = policy.inputs.desired_index
        return None if desired is None else desired[step]

    @functools.cached_property
    def _trees(self) -> tuple[Any, Any]:
        template = self._template
        desired = template.inputs.desired_index
        row = None if desired is None else jax.ShapeDtypeStruct(desired.shape[1:], desired.dtype)
        state, _ = jax.eval_shape(self._start, template.params, self._data, {}, row)
        cotangent = jax.eval_shape(self._start_backward, state, jnp.zeros(()), self._data, row)
        return state, cotangent


def reruns_of_drawn(
    meta_gradient: DrawnGradient,
    config: ExperimentConfig,
    problem: PolicyProblem,
    source: RunSource,
) -> Reruns:
    """Of runs that no outer step draws; what they come to is their mean."""
    count, number = config.outer.runs, problem.num_train
    keys = run_keys(jax.random.key(config.seed), 0, count)
    runs = source.draw(lljax.uniform_policy(1, number), keys)
    to_scores = jax.jit(functools.partial(scores_of, num_examples=number))

    @jax.jit
    def scale(runs: Runs, factors: jax.Array) -> Runs:
        return runs._replace(inputs=scaled(runs.inputs, factors))

    def slopes(runs: Runs, gradient: np.ndarray) -> np.ndarray:
        return -fetch(to_scores(gradient, runs.inputs)).astype(np.float64) / count

    return Reruns(meta_gradient, runs, scale, slopes, number, problem.params)


def run_keys(key: jax.Array, number: int, count: int) -> jax.Array:
    """The keys of the runs of an outer step."""
    return jax.random.split(jax.random.fold_in(key, number), count)
