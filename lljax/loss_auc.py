"""The objective: the area under the desired-loss curve of a training run (paper, Eq. 2 and 4)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from lljax import adjoint, optimizer_check
from lljax.array_types import summed_as
from lljax.evaluation import places
from lljax.memory import MemoryStrategy, StoreStates
from lljax.microbatch import known_slopes
from lljax.run_options import Held, RunFunctions, RunOptions
from lljax.shards import find_shards
from lljax.types import LossAuc, LossAucInfo, LossFn, SecondOrder, ZeroWeight


def build_loss_auc(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    desired_loss_fn: LossFn | None = None,
    memory: MemoryStrategy = StoreStates(),
    microbatch_size: int | None = None,
    zero_weight: ZeroWeight = "compute",
    second_order: SecondOrder = "auto",
    eval_every: int = 1,
    data_axis: str | None = None,
    check_loss: bool = True,
    check_optimizer: bool = True,
) -> LossAuc:
    """The loss AUC of the training run that a policy induces, differentiable through the run.

      AUC(gamma) = 1/T sum_{t=1..T} L(theta_t),  L(theta) = 1/K sum_k l_k(theta)   (Eq. 2, 4)

    The result is a pure function, closed under jit, vmap and grad; neither compiled nor logged
    here. Its second output is differentiable as well, so any function of the loss curve or of
    theta_T (a final loss, an AUC that also counts t = 0) has an exact gradient too.

    >>> import jax, jax.numpy as jnp, optax, lljax
    >>> def loss_fn(params, batch):
    ...   return optax.sigmoid_binary_cross_entropy(batch["z"] @ params, batch["y"])
    >>> loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.1))
    >>> train = {"z": jnp.array([[1., 2.], [2., -1.], [-1., 1.]]), "y": jnp.array([1., 0., 1.])}
    >>> policy = lljax.uniform_policy(num_steps=10, num_examples=3)
    >>> (auc, info), grads = jax.value_and_grad(loss_auc, has_aux=True)(
    ...     policy, jnp.zeros(2), train, desired=train)
    >>> grads.shape, info.desired_losses.shape
    ((10, 3), (11,))

    Args:
      loss_fn: per-example losses, (params, batch of B) -> [B], nats. Pure and deterministic: no
        dropout, no running statistics.
      optimizer: any optax optimiser. Clipping, schedules and momentum are differentiated exactly.
      desired_loss_fn: the losses l_k of the desired examples, of the same form; `loss_fn` when
        None.
      memory: which states are kept for the backward sweep (`StoreStates`, `OffloadStates`,
        `RecomputeStates`).
      microbatch_size: examples handled at once inside a step; all of them when None. It bounds
        the memory of activations and changes nothing but rounding, if the loss of an example does
        not depend on the others of its batch or on its place. A loss that does is refused with
        `microbatch_size` and warned of without, where it can be evaluated: outside jit, or by
        `lljax.check_loss_fn`.
      zero_weight: what a step does with examples whose weight is exactly 0. "compute": the same as
        with all others. "slope_only": only what their entry of the gradient needs; the gradient is
        the same. "omit": nothing; their slope stays unknown, which `LossAucInfo.known_slopes` says,
        and is 0 in the gradient. Whole micro-batches are left out, so that the cost follows the
        policy's support. The AUC is exact in all three; second derivatives in reverse mode need
        "compute".
      second_order: how a step's gradient is differentiated (`passes`). "forward_over_reverse" is
        the faster way, for losses with a forward derivative whose gradient is that of a function.
        "reverse_over_reverse" is exact for every loss that JAX differentiates, at about 1.1 times
        the time: those with a `jax.custom_vjp`, and those whose backward rule is not the derivative
        of their value (gradient reversal, straight-through estimators). "auto" takes it for the
        former. The latter are refused where the loss can be evaluated: outside jit, or by
        `lljax.check_loss_fn`.
      eval_every: s, a divisor of T. L is measured at t = 0, s, 2s, .. T, and the AUC is the mean
        over those from t = s on.
      data_axis: the axis of the mesh (`jax.set_mesh`) whose D devices share the examples of a pass.
        Each device then works on its own N / D training, K / D desired or B / D batch examples, in
        micro-batches of microbatch_size / D, and a pass adds up one sum over the devices. None:
        the compiler decides.
      check_loss: evaluate the losses on a few examples, where that is possible, and refuse what
        would give another result than the one that is promised: `lljax.check_loss_fn`.
      check_optimizer: refuse an optimiser whose update has no finite derivative where a gradient
        entry is zero (Adam's eps_root = 0), or one that is always zero (lion), and warn of one that
        may predict nothing (eps_root = 1e-16); see `optimizer_check.check_optimizer`.

    Returns:
      `loss_auc(policy, params, train, desired, constants=None) -> (auc [], LossAucInfo)`. `policy`
      is an array [T, N], or `StepInputs` for mini-batches, hyperparameters of the steps and
      desired mini-batches. Where `constants` are given, any pytree, they are the third argument of
      the losses: loss_fn(params, batch, constants). They are stored once, while every leaf of
      `params` is kept T times.
      Differentiable in the floating leaves of `policy`, `params`, `constants`, `train` and
      `desired`, and in what the losses close over; those of data and constants cost nothing unless
      they are asked for.
      Cost in forward passes of an example, a step: 3 without gradient, 11 with it under
      `StoreStates`, 3 more for each level of `RecomputeStates`; of an example without weight 3 in
      all under "slope_only", 0 under "omit", in whole micro-batches (under vmap: as many as the run
      with the most needs). It raises ValueError at trace time when a shape or dtype does not fit,
      when a derivative in forward mode (jax.jvp, jax.jacfwd) is asked for outside jit, and when the
      optimiser's update cannot be differentiated. Forward mode over `jax.grad`, a Hessian-vector
      product, works unless a loss has a `jax.custom_vjp`.

    Reference: "Towards Optimal Learning of Language Models", arXiv:2402.17759, section 2, App. C.
    """
    options = RunOptions(
        loss_fn,
        optimizer,
        desired_loss_fn,
        memory,
        microbatch_size,
        zero_weight,
        second_order,
        eval_every,
        check_loss,
        data_axis,
    )

    def loss_auc(policy, params, train, desired, constants=None):
        inputs = options.check(policy, params, train, desired, constants)
        functions, held = options.open(inputs, params, train, desired, constants)
        loss_curve = _loss_curve(options, functions, check_optimizer)
        try:
            losses, end = loss_curve(inputs, params, train, desired, (constants, held))
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            if functions.has_backward_rules:
                raise ValueError(
                    "the loss AUC is differentiated in reverse: jax.jvp and jax.jacfwd of it do "
                    "not work, nor of its gradient where a loss has a backward rule of its own "
                    "(jax.custom_vjp). For a second derivative take jax.grad of the product of "
                    "jax.grad and a direction."
                ) from error
            raise ValueError(
                "the loss AUC is differentiated in reverse: jax.jvp and jax.jacfwd of it do not "
                "work. For a derivative in a direction take jax.grad and the product with it, for "
                "a second one jax.jvp of jax.grad, or differentiate `lljax.unroll`."
            ) from error
        omits = zero_weight == "omit"
        number = find_shards(data_axis, train).number
        known = known_slopes(inputs.weights, microbatch_size, number) if omits else None
        return jnp.mean(losses[1:]), LossAucInfo(losses, end, known)

    return loss_auc


def _loss_curve(options: RunOptions, functions: RunFunctions, check_optimizer: bool) -> Callable:
    """(inputs, theta_0, train, desired, shared) -> (the measured losses, theta_T)."""
    every, memory = options.eval_every, options.memory

    @jax.custom_vjp
    def loss_curve(inputs, params, train, desired, shared):
        run = options.run(functions, train, desired, shared)
        losses, end = adjoint.evaluate(run, params, inputs)
        return losses[::every], end

    def forward(*arguments):
        _, _, *data = arguments
        wanted = tuple(map(_perturbed, data))
        _refuse_held(data[-1][1])
        inputs, params, *data = custom_vjp_primal_tree_values(arguments)
        run = options.run(functions, *data, wanted)
        if check_optimizer:
            optimizer_check.check_optimizer(run.optimizer, params)
        start = run.init(params)
        end, losses, kept = adjoint.forward_sweep(run, start, inputs, memory, run.desired_loss)
        first, *_ = places(inputs, every)
        losses = jnp.concatenate([run.desired_loss(params, first)[None], losses])
        residuals = (inputs, params, data), end, kept, Static(wanted)
        return (losses[::every], end.params), residuals

    def backward(residuals, cotangents):
        (inputs, params, data), end, kept, wanted = residuals
        losses_cotangent, end_cotangent = jax.tree.map(
            _instantiate, cotangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero)
        )
        if every > 1:
            wide = jnp.zeros(inputs.weights.shape[0] + 1, losses_cotangent.dtype)
            losses_cotangent = wide.at[::every].set(losses_cotangent)
        run = options.run(functions, *data, wanted.value)
        *_, last = places(inputs, every)
        cotangent, sums = run.last_cotangent(end, last, losses_cotangent[-1])
        cotangent = cotangent._replace(
            params=jax.tree.map(jnp.add, cotangent.params, end_cotangent)
        )
        cotangent, sums, of_inputs = adjoint.backward_sweep(
            run, cotangent, sums, kept, inputs, losses_cotangent[:-1], memory
        )
        of_data = (_with_leaves(*triple) for triple in zip(data, wanted.value, sums, strict=True))
        found = of_inputs, run.first_cotangent(params, cotangent), *of_data
        primals = inputs, params, *data
        return tuple(summed_as(*pair) for pair in zip(found, primals, strict=True))

    loss_curve.defvjp(forward, backward, symbolic_zeros=True)
    return loss_curve


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Static:
    """A value that is known when JAX traces, among arrays."""

    value: Any


def _perturbed(tree: Any) -> tuple[bool, ...]:
    """Of which leaves the derivative is asked for."""
    return tuple(
        leaf.perturbed and jnp.issubdtype(leaf.value.dtype, jnp.inexact)
        for leaf in jax.tree.leaves(tree)
    )


def _refuse_held(held: Held) -> None:
    """ValueError where the derivative in a number that the optimiser closes over is asked for."""
    if any(leaf.perturbed for leaf in jax.tree.leaves(held.optimizer)):
        raise ValueError(
            "the derivative in a number that `optimizer` was built with was asked for. Build it "
            "with optax.inject_hyperparams and pass the number at every step: "
            "StepInputs(weights, hyperparams={'learning_rate': rates [T]})."
        )


def _with_leaves(tree: Any, wanted: tuple[bool, ...], leaves: list[jax.Array]) -> Any:
    """Cotangents like `tree`: the leaves given for those that are wanted, None for the others."""
    given = iter(leaves)
    return jax.tree.unflatten(
        jax.tree.structure(tree), [next(given) if is_wanted else None for is_wanted in wanted]
    )


def _instantiate(cotangent):
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent
