"""Eight host devices, and how problems are placed on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from problems import LogisticProblem, assert_close, logistic_loss, make_logistic

import lljax
from benchmarks.devices import AXIS
from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss
from lljax.shards import largest_cut

SGD = optax.sgd(0.3)
ADAMW = optax.adamw(0.01, eps_root=1e-8)


def logistic(**sizes):
    """Divisible by eight."""
    return logistic_loss, make_logistic(num_steps=6, num_train=32, num_desired=16, **sizes)


def transformer():
    """Two blocks in float64, on random tokens."""
    model = Transformer(
        vocab_size=40, context=8, width=16, num_layers=2, num_heads=2, initialization="scaled"
    )
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64), init_params(model, jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(1, 40, (48, 9)), jnp.int32)
    weights = rng.random((3, 32))
    policy = jnp.asarray(weights / weights.sum(axis=1, keepdims=True))
    problem = LogisticProblem(
        policy, params, TokenSequences(tokens[:32]), TokenSequences(tokens[32:])
    )
    return sequence_loss(model), problem


def in_batches(problem, size=16):
    """The same with mini-batches of training and desired examples."""
    rng = np.random.default_rng(1)
    num_steps, num_train = problem.policy.shape
    num_desired = len(jax.tree.leaves(problem.desired)[0])
    inputs = lljax.StepInputs(
        problem.policy[:, :size],
        jnp.asarray(rng.integers(0, num_train, (num_steps, size)), jnp.int32),
        desired_index=jnp.asarray(rng.integers(0, num_desired, (num_steps + 1, 8)), jnp.int32),
    )
    return problem._replace(policy=inputs)


def split_params(params, mesh):
    """Each array along its largest axis that the devices divide."""

    def sharding(leaf):
        return jax.NamedSharding(mesh, largest_cut(leaf.shape, AXIS, mesh.shape[AXIS]))

    return jax.tree.map(sharding, params)


def place(problem, mesh, split=False):
    """Data and weights over the examples, parameters whole or `split`."""
    over = {of: jax.NamedSharding(mesh, jax.P(*of)) for of in ((), (AXIS,), (None, AXIS))}
    policy = problem.policy
    if isinstance(policy, lljax.StepInputs):
        weights, index = policy.weights, policy.index
        policy = lljax.StepInputs(
            jax.device_put(weights, over[None, AXIS]),
            jax.device_put(index, over[()]),
            desired_index=jax.device_put(policy.desired_index, over[()]),
        )
    else:
        policy = jax.device_put(policy, over[None, AXIS])
    params = split_params(problem.params, mesh) if split else over[()]
    return LogisticProblem(
        policy,
        jax.device_put(problem.params, params),
        jax.device_put(problem.train, over[(AXIS,)]),
        jax.device_put(problem.desired, over[(AXIS,)]),
    )


def gradient_of(loss_fn, optimizer, **options):
    """(policy, params, train, desired) -> ((AUC, info), gradients), compiled."""
    loss_auc = lljax.build_loss_auc(loss_fn, optimizer, **options)
    return jax.jit(jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True, allow_int=True))


def floating(tree):
    """Those leaves that have a derivative, as NumPy's."""
    leaves = map(np.asarray, jax.tree.leaves(jax.device_get(tree)))
    return [leaf for leaf in leaves if leaf.dtype.kind == "f"]


def assert_same(found, expected):
    """To ten digits of the largest entry of each array."""
    assert_close(floating(found), floating(expected), 1e-10)
