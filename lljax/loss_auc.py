"""The objective: the area under the desired-loss curve of a training run (paper, Eq. 2 and 4)."""

import jax
import jax.numpy as jnp
import optax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from lljax import adjoint, checks, mixing, optimizer_check
from lljax.memory import MemoryStrategy, StoreStates
from lljax.types import LossAuc, LossAucInfo, LossFn, ZeroWeight


def build_loss_auc(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    desired_loss_fn: LossFn | None = None,
    memory: MemoryStrategy = StoreStates(),
    microbatch_size: int | None = None,
    zero_weight: ZeroWeight = "compute",
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
        the same. "omit": nothing; their entry is set to the largest known one of their row, so
        that no method of descent gives them weight. Whole micro-batches are left out, so that the
        cost follows the policy's support. The AUC is exact in all three; second derivatives in
        reverse mode need "compute".
      check_optimizer: refuse an optimiser whose update has no finite derivative where a gradient
        entry is zero (Adam's eps_root = 0), or one that is always zero (lion), and warn of one that
        may predict nothing (eps_root = 1e-16); see `optimizer_check.check_optimizer`.

    Returns:
      `loss_auc(policy, params, train, desired) -> (auc [], LossAucInfo)` with policy [T, N],
      differentiable in `policy` and `params`, not in what `loss_fn` or `optimizer` close over
      (JAX raises UnexpectedTracerError there: make it a leaf of `params`). Cost in forward passes
      of an example, a step: 3 without gradient, 11 with it under `StoreStates`, 3 more for each
      level of `RecomputeStates`; of an example without weight 3 in all under "slope_only", 0 under
      "omit", in whole micro-batches (under vmap: as many as the run with the most needs). It
      raises ValueError at trace time when a shape or dtype does not fit, when the derivative with
      respect to data is asked for, and when the optimiser's update cannot be differentiated.

    Reference: "Towards Optimal Learning of Language Models", arXiv:2402.17759, section 2, App. C.
    """
    training_run = adjoint.training_run_builder(
        loss_fn, optimizer, desired_loss_fn, microbatch_size, zero_weight, memory
    )

    @jax.custom_vjp
    def loss_curve(policy, params, train, desired):
        return adjoint.evaluate(training_run(train, desired), params, policy)

    def forward(policy, params, train, desired):
        for name, data in (("train", train), ("desired", desired)):
            if any(leaf.perturbed for leaf in jax.tree.leaves(data)):
                raise ValueError(
                    f"the loss AUC is differentiable in `policy` and `params`; its derivative in "
                    f"`{name}` was asked for. If the data are computed from `params`, move "
                    f"that into `loss_fn`; jax.lax.stop_gradient drops their derivative."
                )
        values = custom_vjp_primal_tree_values((policy, params, train, desired))
        policy, params, train, desired = values
        if check_optimizer:
            optimizer_check.check_optimizer(optimizer, params)
        run = training_run(train, desired)
        start = run.init(params)
        end, losses, kept = adjoint.forward_sweep(run, start, policy, memory, run.desired_loss)
        losses = jnp.concatenate([run.desired_loss(params)[None], losses])
        return (losses, end.params), (values, end, kept)

    def backward(residuals, cotangents):
        (policy, params, train, desired), end, kept = residuals
        losses_cotangent, end_cotangent = jax.tree.map(
            _instantiate, cotangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero)
        )
        run = training_run(train, desired)
        cotangent = run.last_cotangent(end, losses_cotangent[-1])
        cotangent = cotangent._replace(
            params=jax.tree.map(jnp.add, cotangent.params, end_cotangent)
        )
        cotangent, slopes = adjoint.backward_sweep(
            run, cotangent, kept, policy, losses_cotangent[:-1], memory
        )
        return slopes, run.first_cotangent(params, cotangent), None, None

    loss_curve.defvjp(forward, backward, symbolic_zeros=True)

    def loss_auc(policy, params, train, desired):
        checks.check_policy_shape(policy, train)
        mixing.check_losses(
            loss_fn, desired_loss_fn, params, train, {"desired": desired}, microbatch_size
        )
        optimizer_check.check_update(optimizer, params)
        try:
            desired_losses, end = loss_curve(policy, params, train, desired)
        except TypeError as error:
            if "forward-mode" not in str(error):
                raise
            raise ValueError(
                "the loss AUC is differentiated in reverse: jax.jvp and jax.jacfwd of it do not "
                "work. For a derivative in a direction take jax.grad and the product with it, for "
                "a second one jax.jvp of jax.grad, or differentiate `lljax.unroll`."
            ) from error
        return jnp.mean(desired_losses[1:]), LossAucInfo(desired_losses, end)

    return loss_auc


def _instantiate(cotangent):
    if isinstance(cotangent, SymbolicZero):
        return jnp.zeros(cotangent.shape, cotangent.dtype)
    return cotangent
