"""Uses at the edge: what fits is taken as it is, what does not is refused in words."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close

import lljax
from lljax import StepInputs, mixing

T, N = 4, 8
X = jax.random.normal(jax.random.key(0), (N, 3))
TRAIN = {"x": X, "y": X[:, 0]}
START, POLICY = jnp.zeros(3), lljax.uniform_policy(T, N, float)
EQUAL = jnp.full((T, 2), 0.5)
injected = optax.inject_hyperparams


def loss_fn(params, batch):
    return (batch["x"] @ params - batch["y"]) ** 2


def auc_of(policy, optimizer=optax.sgd(0.1), loss_fn=loss_fn, params=START, data=TRAIN, **options):
    return lljax.build_loss_auc(loss_fn, optimizer, **options)(policy, params, data, data)[0]


def refused(*arguments, **options):
    with pytest.raises(ValueError, match="`") as refusal:
        auc_of(*arguments, **options)
    return str(refusal.value)


def test_a_hyperparameter_that_is_a_whole_number_is_not_cut_in_silence():
    adamw = injected(optax.adamw)(0.1, weight_decay=0, eps_root=1e-6)
    words = refused(StepInputs(POLICY, hyperparams={"weight_decay": jnp.full(T, 0.9)}), adamw)
    assert "`hyperparams['weight_decay']` would be cut to whole numbers" in words
    words = refused(StepInputs(POLICY, hyperparams={"learning_rate": [0.1] * T}), adamw)
    assert "`hyperparams['learning_rate']` must be an array [T, ...]; got a list" in words


def test_two_groups_of_parameters_have_rates_of_their_own():
    params, labels = {"w": START, "c": jnp.ones(())}, {"w": "a", "c": "b"}

    def with_offset(params, batch):
        return (batch["x"] @ params["w"] + params["c"] - batch["y"]) ** 2

    def grouped(a, b):
        return optax.partition({"a": a, "b": b}, labels)

    same = injected(optax.sgd)(0.1)
    rates = {"learning_rate": jnp.full(T, 0.1)}
    words = refused(StepInputs(POLICY, hyperparams=rates), grouped(same, same), with_offset, params)
    assert "is in 2 parts of `optimizer`. Give each a name of its own" in words
    named = grouped(
        injected(lambda rate_a: optax.sgd(rate_a))(rate_a=0.3),
        injected(lambda rate_b: optax.sgd(rate_b))(rate_b=0.3),
    )

    def auc(rate_a, rate_b):
        rates = {"rate_a": jnp.full(T, rate_a), "rate_b": jnp.full(T, rate_b)}
        return auc_of(StepInputs(POLICY, hyperparams=rates), named, with_offset, params)

    plain = grouped(optax.sgd(0.1), optax.sgd(0.05))
    assert_close(auc(0.1, 0.05), auc_of(POLICY, plain, with_offset, params), 1e-12)
    slope = jax.jit(jax.grad(auc, 1))(0.1, 0.05)
    assert_close(slope, (auc(0.1, 0.05 + 1e-6) - auc(0.1, 0.05 - 1e-6)) / 2e-6, 1e-6)


@pytest.mark.parametrize("gap", [16.0, 30.0])
def test_a_model_that_fits_its_examples_is_no_suspect(gap):
    """What is left of the losses there is rounding."""
    batch = {"x": jnp.eye(4, dtype=jnp.float32), "y": jnp.arange(4)}

    def cross_entropy(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(batch["x"] @ params, batch["y"])

    lljax.check_loss_fn(cross_entropy, gap * batch["x"], batch)


def test_suspects_are_found_at_a_model_that_fits_too():
    batch = {"x": jnp.eye(4, dtype=jnp.float32), "y": jnp.arange(4)}
    params = 8 * batch["x"]

    def cross_entropy(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(x @ params, y)

    @jax.custom_jvp
    def turned(x):
        return x

    turned.defjvp(lambda x, tangent: (x[0], -0.7 * tangent[0]))

    def reversed_gradient(params, batch):
        return cross_entropy(params["out"], turned(batch["x"] @ params["in"]), batch["y"])

    layers = {"in": batch["x"], "out": params}
    with pytest.raises(ValueError, match="not the derivative of its value"):
        lljax.check_loss_fn(reversed_gradient, layers, batch)

    def centred(params, batch):
        return cross_entropy(params, batch["x"] - batch["x"].mean(0, keepdims=True), batch["y"])

    with pytest.raises(ValueError, match="mixes the examples"):
        lljax.check_loss_fn(centred, params, batch)


def test_a_loss_for_batches_of_one_size():
    """It is called, and asserted of, as the steps will do it."""
    place = jnp.array([0.5, 1.5])
    index = jax.random.randint(jax.random.key(1), (T, 2), 0, N)

    def weighted(params, batch):
        assert batch["x"].shape == (2, 3)
        return place * loss_fn(params, batch)

    found = auc_of(StepInputs(EQUAL, index), loss_fn=weighted, desired_loss_fn=loss_fn)
    assert_close(found, auc_of(StepInputs(EQUAL * place[None], index)), 1e-12)
    words = refused(StepInputs(EQUAL, index), loss_fn=lambda p, b: loss_fn(p, b).mean())
    assert "must return one loss an example, shape (2,); got ()" in words


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int64])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_an_index_of_any_integers(dtype, wrap):
    x = jax.random.normal(jax.random.key(0), (300, 3))
    auc = functools.partial(auc_of, data={"x": x, "y": x[:, 0]})
    index = jnp.array([[0, 100], [3, 3], [127, 1], [5, 6]])
    found = wrap(lambda index: auc(StepInputs(EQUAL, index)))(index.astype(dtype))
    assert_close(found, auc(StepInputs(EQUAL, index)), 1e-12)


def test_an_empty_desired_batch_is_refused():
    words = refused(StepInputs(POLICY, desired_index=jnp.zeros((T + 1, 0), int)))
    assert "`desired_index` must have shape (T+1, K') = (5, K'), a batch of K' >= 1" in words


def test_the_unroll_takes_step_inputs_as_they_are():
    index = jax.random.randint(jax.random.key(1), (T, 2), 0, N)
    inputs = StepInputs(EQUAL, index, desired_index=jnp.zeros((T + 1, 2), int))
    end, seen = lljax.unroll(loss_fn, optax.sgd(0.1), inputs, START, TRAIN, lambda p, _: p)
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.1))
    _, info = loss_auc(StepInputs(EQUAL, index), START, TRAIN, TRAIN)
    assert_close(end, info.params, 1e-12)
    assert seen.shape == (T + 1, 3)


def test_known_parameters_of_a_wrong_index_are_refused():
    known, index = jnp.array([[True, False]]), jnp.array([[0, 1]])
    with pytest.raises(ValueError, match=r"`index` must be in 0 \.\. 3.*got 7"):
        lljax.known_parameters(known, jnp.array([[0, 7]]), size=4)
    with pytest.raises(ValueError, match="`index` must be an array of integers"):
        lljax.known_parameters(known, index * 1.0, size=4)
    with jax.numpy_dtype_promotion("strict"):
        found = lljax.known_parameters(known, index, size=4)
        assert found.tolist() == [True, False, True, True]
        rows = lljax.known_parameters(known, index, size=4, num_rows=2)
    assert rows.tolist() == [[True, False, True, True], [True] * 4]
    method = lljax.from_optax(optax.sgd(0.1))
    psi = jnp.zeros(4)
    with pytest.raises(ValueError, match="`known` must hold bools in the form of `policy`"):
        method.update(jnp.ones(4), method.init(psi), psi, 1.0, jnp.array([False]))


def test_an_optimizer_whose_state_changes_its_form_is_refused():
    params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(3, jnp.float32)}

    def mixed(params, batch):
        return (
            batch["x"].astype(jnp.float32) @ (params["a"].astype(jnp.float32) + params["b"])
        ) ** 2

    words = refused(POLICY, injected(optax.sgd)(0.1, momentum=0.9), mixed, params)
    assert "`optimizer` must keep the form of its state" in words
    assert "bfloat16[3] in state.inner_state[0].trace['a'] float32[3]" in words


def test_schedules_inside_injected_hyperparameters_under_strict_promotion():
    sgd = injected(optax.sgd)(optax.cosine_decay_schedule(0.1, 10))
    gradient = jax.jit(jax.grad(lambda policy: auc_of(policy, sgd)))
    expected = gradient(POLICY)
    with jax.numpy_dtype_promotion("strict"):
        assert_close(jax.jit(jax.grad(lambda policy: auc_of(policy, sgd)))(POLICY), expected, 1e-12)


def test_forward_mode_over_a_loss_with_a_backward_rule_is_refused():
    @jax.custom_vjp
    def same(x):
        return x

    same.defvjp(lambda x: (x, None), lambda _, g: (g,))

    def gradient(policy):
        return jax.grad(lambda p: auc_of(p, loss_fn=lambda *a: same(loss_fn(*a))))(policy)

    with pytest.raises(ValueError, match="nor of its gradient where a loss has a backward rule"):
        jax.jvp(gradient, (POLICY,), (POLICY,))


@pytest.mark.slow
def test_float16_beside_a_gradient_of_zero():
    optimizer = optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.5))
    policy = POLICY.at[1].set(0)

    def gradient(dtype):
        data, start = jax.tree.map(lambda leaf: leaf.astype(dtype), (TRAIN, START))
        auc = functools.partial(
            auc_of, optimizer=optimizer, params=start, data=data, check_optimizer=False
        )
        return np.asarray(jax.jit(jax.grad(auc))(policy.astype(jnp.float32))[1])

    np.testing.assert_allclose(gradient(jnp.float16), gradient(jnp.float32), rtol=0.02, atol=0.01)


def test_a_loss_that_cannot_be_cut_is_not_asked():
    def whole(params, batch):
        assert batch["x"].shape == (N, 3)
        return loss_fn(params, batch)

    assert mixing.find_mixing(whole, START, TRAIN) is None
    assert_close(auc_of(POLICY, loss_fn=whole), auc_of(POLICY), 1e-12)
