"""What the training examples of one run did for its desired loss: the meta-gradient as scores.

The weight of an example is multiplied by v_n at every step at which it counts. Its score is how
fast the measure f of the desired loss falls when v_n grows:

    s_n = -df/dv_n at v = 1 = -sum_{t,b} w_{t,b} df/dw_{t,b},  n = index_{t,b}

So a run without example n is predicted to end with f + s_n. Positive scores are of examples that
helped. f is the loss AUC, or the loss after the last step.

Reference: MAGIC, arXiv:2504.16430, which scores by the loss after the last step.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from lljax import checks
from lljax.segments import Segments
from lljax.step_inputs import as_step_inputs
from lljax.types import Batch, LossAuc, LossAucInfo, Params, StepInputs, at_least_32_bits

Measure = Literal["auc", "final"]


def attribution_scores(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    of: Measure = "auc",
    constants: Any = None,
) -> jax.Array:
    """The score of each training example, for the desired examples as a whole.

      s_n = -df/dv_n at v = 1, where the weights of example n are v_n w_{t,b}

    >>> import jax.numpy as jnp, lljax, optax
    >>> loss_auc = lljax.build_loss_auc(lambda w, batch: (w - batch) ** 2, optax.sgd(0.1))
    >>> train, desired = jnp.array([1.0, -1.0]), jnp.array([1.0])
    >>> policy = lljax.uniform_policy(num_steps=5, num_examples=2)
    >>> scores = lljax.attribution_scores(loss_auc, policy, jnp.zeros(()), train, desired)
    >>> (scores > 0).tolist()
    [True, False]

    Args:
      loss_auc: of `build_loss_auc`.
      policy: the weights of the run, [T, N] or `StepInputs`; most often uniform ones, 1 / N or
        1 / B. Hyperparameters and desired mini-batches are those of the run too.
      params: theta_0.
      train: N examples.
      desired: K examples.
      of: f, the AUC of the desired loss, or the "final" loss, after the last step.
      constants: of `loss_auc`.

    Returns:
      [N], of the dtype of the weights (float32 for narrower ones), in nats: of an example in no
      batch 0. To first order f changes by -s_n when example n is counted twice, and by s_n when it
      is left out. Cost: one gradient of `loss_auc`.

    Raises:
      ValueError: `of` is neither, or whatever `loss_auc` refuses.

    Reference: MAGIC, arXiv:2504.16430, section 3.
    """
    given = policy, params, train, desired
    return measure_and_scores(loss_auc, *given, of=of, constants=constants)[1]


def measure_and_scores(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    of: Measure = "auc",
    constants: Any = None,
) -> tuple[jax.Array, jax.Array]:
    """(f [] of the run, what `attribution_scores` gives)."""
    checks.check_choice("of", of, Measure)
    inputs = _inputs(policy)

    def measure(weights: jax.Array) -> jax.Array:
        given = dataclasses.replace(inputs, weights=weights)
        return measured(*loss_auc(given, params, train, desired, constants), of)

    value, slopes = jax.value_and_grad(measure)(inputs.weights)
    return value, scores_of(slopes, inputs, checks.num_examples(train, "train"))


def attribution_of_each(
    segments: Segments,
    policy: jax.Array | StepInputs,
    params: Params,
    train: Batch,
    desired: Batch,
    *,
    of: Measure = "auc",
    constants: Any = None,
    batch_size: int = 8,
) -> jax.Array:
    """The score of each training example for each of M desired examples.

      s_{m,n} = -df_m/dv_n at v = 1, with f_m the measure of the loss of desired example m

    The run does not depend on the desired examples: it is swept forward once, and back for each of
    them. The mean over m is what `attribution_scores` gives for them together.

    >>> import jax.numpy as jnp, lljax, optax
    >>> segments = lljax.build_segments(lambda w, batch: (w - batch) ** 2, optax.sgd(0.1))
    >>> train, desired = jnp.array([1.0, -1.0]), jnp.array([1.0, -1.0, 0.5])
    >>> policy = lljax.uniform_policy(num_steps=5, num_examples=2)
    >>> scores = lljax.attribution_of_each(segments, policy, jnp.zeros(()), train, desired)
    >>> (scores > 0).tolist()
    [[True, False], [False, True], [True, False]]

    Args:
      segments: of `build_segments`, with eval_every 1; its `memory` says which states of the
        forward sweep are kept.
      policy: as in `attribution_scores`; a `desired_index` is left out.
      params: theta_0.
      train: N examples.
      desired: M examples.
      of: as in `attribution_scores`.
      constants: of the losses.
      batch_size: desired examples whose backward sweeps go side by side. They share what depends
        on the parameters alone, and each holds a cotangent of the state and slopes [T, B].

    Returns:
      [M, N]. Cost in forward passes of an example, a step: 3, and at most 8 for each of the M.

    Raises:
      ValueError: `of` is neither, `batch_size` is no count, or whatever `segments` refuses.

    Reference: MAGIC, arXiv:2504.16430, section 3.
    """
    checks.check_choice("of", of, Measure)
    checks.check_count("batch_size", batch_size)
    checks.num_examples(desired, "desired")
    inputs = dataclasses.replace(_inputs(policy), desired_index=None)
    number = checks.num_examples(train, "train")

    def data(example: Batch) -> Any:
        alone = jax.tree.map(lambda leaf: leaf[None], example)
        return (train, alone) if constants is None else (train, alone, constants)

    # Any of them will do for the forward sweep, which only measures it.
    first = data(jax.tree.map(lambda leaf: leaf[0], desired))
    state, _ = segments.start(params, first, {})
    end, _, kept = segments.forward(state, inputs, first, {})
    dtype = at_least_32_bits(inputs.weights.dtype)
    last, before = loss_cotangents(of, inputs.weights.shape[0], dtype)

    def one(example: Batch) -> jax.Array:
        cotangent = segments.start_backward(end, last, data(example))
        _, found = segments.backward(cotangent, kept, inputs, before, data(example))
        return scores_of(found.weights, inputs, number)

    return jax.lax.map(one, desired, batch_size=batch_size)


def token_scores(
    loss_auc: LossAuc,
    policy: jax.Array | StepInputs,
    params: Params,
    train_of: Callable[[jax.Array], Batch],
    token_weights: jax.Array,
    desired: Batch,
    *,
    of: Measure = "auc",
    constants: Any = None,
) -> jax.Array:
    """The score of each token, or whatever else the loss of an example is a weighted sum of.

      l_n = sum_l v_{n,l} l_{n,l},    s_{n,l} = -v_{n,l} df/dv_{n,l}

    With such a loss the scores of an example's tokens sum to its own.

    >>> import jax.numpy as jnp, lljax, optax
    >>> def loss_fn(w, batch):  # of two numbers an example
    ...     return jnp.mean(batch["weights"] * (w - batch["x"]) ** 2, axis=1)
    >>> loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.1))
    >>> x = jnp.array([[1.0, -1.0], [0.5, 2.0]])
    >>> desired = {"x": jnp.ones((1, 2)), "weights": jnp.ones((1, 2))}
    >>> scores = lljax.token_scores(
    ...     loss_auc, lljax.uniform_policy(num_steps=5, num_examples=2), jnp.zeros(()),
    ...     lambda weights: {"x": x, "weights": weights}, jnp.ones((2, 2)), desired)
    >>> (scores > 0).tolist()
    [[True, False], [True, True]]

    Args:
      loss_auc: of `build_loss_auc`, with a loss that reads the weights from its batch.
      policy: as in `attribution_scores`.
      params: theta_0.
      train_of: token weights -> N training examples.
      token_weights: v [N, L], floating: 1, and 0 where an example has no token.
      desired: K examples.
      of: as in `attribution_scores`.
      constants: of `loss_auc`.

    Returns:
      [N, L]. Cost: one gradient of `loss_auc` in its training examples.

    Raises:
      ValueError: `of` is neither, or whatever `loss_auc` refuses.
    """
    checks.check_choice("of", of, Measure)

    def measure(weights: jax.Array) -> jax.Array:
        found = loss_auc(policy, params, train_of(weights), desired, constants)
        return measured(*found, of)

    weights = checks.floating(token_weights, "token_weights")
    return -weights * jax.grad(measure)(weights)


def scores_of(slopes: jax.Array, inputs: StepInputs, num_examples: int) -> jax.Array:
    """The scores [N] that slopes [T, B] in the weights of a run, or of some of its steps, make; of
    [T, R, B] those of R runs together."""
    dtype = at_least_32_bits(inputs.weights.dtype)
    terms = -inputs.weights.astype(dtype) * slopes.astype(dtype)
    if inputs.index is None:
        return jnp.sum(terms, axis=range(terms.ndim - 1))
    return jnp.zeros(num_examples, dtype).at[inputs.index].add(terms)


def loss_cotangents(of: Measure, num_steps: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The derivatives of f in L(theta_T) [], and in L(theta_0) .. L(theta_{T-1}) [T]."""
    if of == "final":
        return jnp.ones((), dtype), jnp.zeros(num_steps, dtype)
    share = jnp.full((), 1 / num_steps, dtype)
    return share, jnp.where(jnp.arange(num_steps) > 0, share[None], 0)  # theta_0 is not in the AUC


def _inputs(policy: jax.Array | StepInputs) -> StepInputs:
    inputs = as_step_inputs(policy)
    return dataclasses.replace(inputs, weights=checks.floating(inputs.weights, "policy"))


def measured(auc: jax.Array, info: LossAucInfo, of: Measure) -> jax.Array:
    """f [] of what a `LossAuc` returns."""
    return auc if of == "auc" else info.desired_losses[-1]
