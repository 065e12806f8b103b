"""Step inputs that do not fit: what is said, and by which step inside jit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from training_loops import make_network, network_loss

import lljax
from lljax import StepInputs

PROBLEM = make_network(num_steps=4)
SGD = optax.sgd(0.1)
INJECTED = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.inject_hyperparams(optax.adamw)(0.1, b1=0.9, weight_decay=0.01, eps_root=1e-6),
)


def call(inputs, optimizer=SGD, **options):
    return lljax.build_loss_auc(network_loss, optimizer, **options)(inputs, *PROBLEM[1:])


def changed(**fields):
    return dataclasses.replace(PROBLEM.inputs, **fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"index": PROBLEM.inputs.index.at[2, 3].set(23)},
            r"in 0 \.\. 22.*got 23 at step 2, place 3",
        ),
        (
            {"index": PROBLEM.inputs.index.at[1, 0].set(-1)},
            r"got -1 at step 1, place 0 \(1 entries",
        ),
        ({"index": PROBLEM.inputs.index[:, :5]}, r"`index` must have shape \(T, B\) = \(4, 6\)"),
        ({"index": PROBLEM.inputs.index * 1.0}, "`index` must be an array of integers"),
        ({"index": [[0] * 6] * 4}, "`index` must be an array of integers .* got list"),
        ({"weights": PROBLEM.inputs.weights[0]}, r"`weights` must have shape \(T, B\)"),
        ({"weights": PROBLEM.inputs.index}, "`weights` must be floating"),
        ({"index": None}, r"`policy` must have shape \(T, N\) = \(4, 23\)"),
        ({"desired_index": jnp.zeros((4, 2), int)}, r"must have shape \(T\+1, K'\) = \(5, K'\)"),
        ({"desired_index": jnp.full((5, 2), 9)}, r"`desired_index` must be in 0 \.\. 8"),
    ],
)
def test_what_does_not_fit_is_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        call(changed(**fields))


@pytest.mark.parametrize(
    ("hyperparams", "optimizer", "words"),
    [
        ({"learning_rte": jnp.ones(4)}, INJECTED, "which has b1, .* Did you mean 'learning_rate'"),
        ({"momentum": jnp.ones(4)}, INJECTED, "not a hyperparameter of `optimizer`, which has b1"),
        (
            {"learning_rate": jnp.ones(4)},
            SGD,
            r"holds none\. Build it as optax\.inject_hyperparams",
        ),
        ({"learning_rate": jnp.ones(5)}, INJECTED, r"shape \(4,\), one value .*got \(5,\)"),
        ({"learning_rate": jnp.ones(4, int)}, INJECTED, "must be floating; got int"),
        (
            {"learning_rate": jnp.ones(4)},
            optax.inject_hyperparams(optax.sgd)(optax.linear_schedule(0.1, 0.0, 4)),
            "would have no effect.*Build it with a number there",
        ),
        (jnp.ones(4), INJECTED, "`hyperparams` must be a dict"),
    ],
)
def test_hyperparameters_that_the_optimizer_has_not_are_refused(hyperparams, optimizer, words):
    with pytest.raises(ValueError, match=words):
        call(changed(hyperparams=hyperparams), optimizer)


def test_options_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"`eval_every` must divide .* got 3 with T = 4"):
        call(PROBLEM.inputs, eval_every=3)
    with pytest.raises(ValueError, match="`eval_every` must be an int"):
        lljax.build_loss_auc(network_loss, SGD, eval_every=0)
    with pytest.raises(ValueError, match="`second_order` must be one of auto, forward_over"):
        lljax.build_loss_auc(network_loss, SGD, second_order="reverse")


def test_inside_jit_the_step_with_a_wrong_number_is_told():
    index = PROBLEM.inputs.index.at[2, 3].set(23)

    def auc(weights, index):
        return call(StepInputs(weights, index))

    gradient = jax.jit(jax.value_and_grad(auc, has_aux=True))
    (auc, info), gradient = gradient(PROBLEM.inputs.weights, index)
    assert np.isnan(auc)
    np.testing.assert_array_equal(np.isnan(info.desired_losses), [False] * 3 + [True] * 2)
    assert np.isnan(gradient[2]).any()
    wrong = jnp.zeros((5, 2), int).at[3, 1].set(-1)
    _, info = jax.jit(call)(changed(desired_index=wrong))
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(info.desired_losses)), [3])


def test_frozen_constants_are_stored_once():
    """As leaves of the parameters they are kept with every state."""
    frozen = jnp.ones(4000)

    def kept(loss_fn, params, *constants):
        loss_auc = lljax.build_loss_auc(loss_fn, SGD)
        arguments = PROBLEM.inputs, params, PROBLEM.train, PROBLEM.desired, *constants
        gradient = jax.jit(
            jax.grad(lambda w, *rest: loss_auc(StepInputs(w, PROBLEM.inputs.index), *rest)[0])
        )
        compiled = gradient.lower(PROBLEM.inputs.weights, *arguments[1:]).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    def as_constant(params, batch, constants):
        return network_loss(params, batch, PROBLEM.constants) * constants.mean()

    def as_parameter(params, batch):
        scale = jax.lax.stop_gradient(params["frozen"]).mean()
        return network_loss(params, batch, PROBLEM.constants) * scale

    once = kept(as_constant, PROBLEM.params, frozen)
    every_step = kept(as_parameter, PROBLEM.params | {"frozen": frozen})
    assert every_step - once > 3 * frozen.nbytes


def test_data_cost_nothing_unless_their_derivative_is_asked_for():
    loss_auc = lljax.build_loss_auc(network_loss, SGD)

    def flops(*argnums):
        gradient = jax.jit(
            jax.grad(lambda *arguments: loss_auc(*arguments)[0], argnums, allow_int=True)
        )
        return gradient.lower(*PROBLEM).compile().cost_analysis()["flops"]

    assert flops(0, 1) < flops(0, 1, 2) < 1.6 * flops(0, 1)
