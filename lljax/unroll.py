"""The training run as a function: T train steps under one policy (paper, Eq. 1)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from lljax import checks
from lljax.memory import StoreStates
from lljax.passes import Rules
from lljax.run_options import Held, RunOptions
from lljax.types import Batch, LossFn, Params, PassName, StepInputs, TrainState


def unroll(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    observe: Callable[[Params, jax.Array], Any],
    *,
    constants: Any = None,
    microbatch_size: int | None = None,
    data_axis: str | None = None,
) -> tuple[Params, Any]:
    """Trains under a policy and records what an observer sees at every step.

      theta_{t+1} = Phi(theta_t, grad sum_n gamma_{t,n} l_n(theta_t)),  t = 0 .. T-1   (Eq. 1)

    >>> import jax.numpy as jnp, optax, lljax
    >>> policy, train = lljax.uniform_policy(num_steps=2, num_examples=2), jnp.array([1.0, 3.0])
    >>> end, seen = lljax.unroll(
    ...   lambda w, x: (w - x) ** 2 / 2, optax.sgd(0.5), policy, jnp.zeros(()), train,
    ...   observe=lambda params, row: params)
    >>> float(end), seen.tolist()
    (1.5, [0.0, 1.0, 1.5])

    Args:
      loss_fn: per-example losses, (params, batch) -> [B], nats.
      optimizer: any optax optimiser.
      policy: gamma [T, N], floating, or `StepInputs`; a `desired_index` is not looked at.
      params: theta_0.
      train: N training examples.
      observe: (theta_t, gamma_t [N], or the weights [B] of a batch) -> a pytree of arrays, called
        at t = 0 .. T; at t = T, where no step follows, it gets the row of step T-1.
      constants: the third argument of the loss, if it has one.
      microbatch_size: examples handled at once inside a step; all of them when None.
      data_axis: the axis of the mesh whose devices share the examples, as in `build_loss_auc`.

    Returns:
      (theta_T, observations with a leading axis [T+1]). Cost: 3 forward passes over the training
      examples a step, and the observer's; one state of memory.

    Raises:
      ValueError: a shape or dtype does not fit.

    Reference: arXiv:2402.17759, section 2.
    """
    checks.check_callable(observe, "observe", "(params, policy row) -> arrays")
    reverse: PassName = "reverse_over_reverse"  # what JAX does, and no pass of ours is taken
    options = RunOptions(
        loss_fn,
        optimizer,
        None,
        StoreStates(),
        microbatch_size,
        "compute",
        reverse,
        eval_every=1,
        data_axis=data_axis,
    )
    if isinstance(policy, StepInputs):
        policy = dataclasses.replace(policy, desired_index=None)
    inputs = options.check(policy, params, train, train, constants)
    functions = options.as_given(Rules())
    run = options.run(functions, train, train, (constants, Held()))

    def step(state: TrainState, inputs: StepInputs):
        after, _ = run.step(state, inputs)
        return after, observe(state.params, inputs.weights)

    state, seen = jax.lax.scan(step, run.init(params), inputs)
    last = observe(state.params, inputs.weights[-1])
    return state.params, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), seen, last)
