"""Numbers and objects that the API cannot use: each is refused in words that name it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import compiled, logistic_loss, make_logistic

import lljax

NAN, INF = float("nan"), float("inf")
SGD = optax.sgd(0.1)
METHOD = lljax.projected_gradient(0.1)
ROW = jnp.array([0.5, 0.5])
build = functools.partial(lljax.build_loss_auc, logistic_loss, SGD)
exponentiated = functools.partial(lljax.exponentiated_gradient, 0.1)


def refused(function, *arguments, **named):
    """The words in which a call is refused."""
    with pytest.raises(ValueError, match="`") as caught:
        function(*arguments, **named)
    assert type(caught.value) is ValueError
    return str(caught.value)


@pytest.mark.parametrize("method", [lljax.projected_gradient, lljax.exponentiated_gradient])
@pytest.mark.parametrize("rate", [NAN, INF, -0.1, 0, "0.1", True, None, np.array([0.1, NAN])])
def test_a_rate_is_a_number_above_zero(method, rate):
    assert "`learning_rate` must be a finite number above 0" in refused(method, rate)


@pytest.mark.parametrize("method", [lljax.projected_gradient, lljax.exponentiated_gradient])
def test_rates_of_other_kinds_stay(method):
    policy, gradient = jnp.full((1, 2), 0.5), jnp.array([[1.0, 0.0]])

    def update(rate):
        optimizer = method(rate)
        return optimizer.update(gradient, optimizer.init(policy), policy)[0]

    expected = update(0.25)
    for rate in (np.float32(0.25), jnp.array(0.25), jnp.bfloat16(0.25), lambda count: 0.25):
        np.testing.assert_allclose(update(rate), expected)
    np.testing.assert_allclose(compiled(jax.vmap(update))(jnp.array([0.25]))[0], expected)


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (exponentiated, {"momentum": NAN}, "`momentum` must be a number in [0, 1); got nan"),
        (exponentiated, {"momentum": "0.8"}, "`momentum` must be"),
        (
            exponentiated,
            {"cutoff": NAN},
            "`cutoff` must be a share of the uniform weight, in [0, 1); got nan",
        ),
        (exponentiated, {"cutoff": 1.0}, "`cutoff` must be"),
        (functools.partial(lljax.smoothed, METHOD), {"passes": True}, "`passes`"),
        (functools.partial(lljax.smoothed, METHOD), {"passes": 2.5}, "`passes`"),
        (functools.partial(lljax.build_step_control, METHOD), {"grow": NAN}, "`grow`"),
        (functools.partial(lljax.build_step_control, METHOD), {"grow": INF}, "`grow`"),
        (functools.partial(lljax.build_step_control, METHOD), {"shrink": NAN}, "`shrink`"),
        (build, {"microbatch_size": True}, "`microbatch_size` must be an int"),
        (build, {"microbatch_size": 2.5}, "`microbatch_size` must be an int"),
        (build, {"microbatch_size": "8"}, "or None for one pass; got '8'"),
        (build, {"zero_weight": ["omit"]}, "`zero_weight` must be one of compute"),
        (build, {"zero_weight": np.ones(2)}, "`zero_weight` must be one of compute"),
        (build, {"desired_loss_fn": 1.0}, "`desired_loss_fn` must be a function"),
        (lljax.RecomputeStates, {"num_kept": 2.5}, "`num_kept` must be an int"),
        (lljax.RecomputeStates, {"depth": None}, "`depth` must be an int"),
        (lljax.recompute_within, {"num_steps": 0, "max_states": 9}, "`num_steps` must be an int"),
        (lljax.recompute_within, {"num_steps": 9, "max_states": NAN}, "`max_states` must be"),
        (lljax.uniform_policy, {"num_steps": 2.5, "num_examples": 2}, "`num_steps` must be an int"),
        (lljax.uniform_policy, {"num_steps": 2, "num_examples": True}, "`num_examples` must"),
        (
            functools.partial(lljax.uniform_policy, 2, 2),
            {"dtype": int},
            "`dtype` must be floating, e.g. float32; got int",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(function, arguments, words):
    assert words in refused(function, **arguments)


def test_whole_numbers_of_numpy_are_whole_numbers():
    assert lljax.uniform_policy(np.int64(2), np.int32(3)).shape == (2, 3)
    assert lljax.RecomputeStates(np.int64(2)).split(10) == (2, 5)
    lljax.build_loss_auc(logistic_loss, SGD, microbatch_size=np.int32(4))(*make_logistic())
    assert lljax.compression_ratio(ROW, np.int64(2)) > 0


@pytest.mark.parametrize(
    "function",
    [
        lljax.project_simplex,
        lljax.effective_sample_size,
        lljax.entropy,
        lljax.check_policy,
        lambda row: lljax.contribution_similarity(row[0], ROW),
        lambda row: lljax.contribution_similarity(ROW, row[0]),
        lambda row: lljax.zero_weight_share(ROW, row[0]),
        lambda row: lljax.redundant_share(row[0], ROW),
        lambda row: lljax.learned_weight_counts(row[0], ROW, ROW),
        lambda row: lljax.optimality_gap(row, ROW[None]),
        lambda row: lljax.optimality_gap(ROW[None], row),
        lambda row: lljax.acceleration_ratio(row[0], ROW),
        lambda row: lljax.compression_ratio(row[0], 2),
    ],
)
def test_integers_and_truth_values_are_no_weights(function):
    for dtype in (int, bool):
        assert "must be floating" in refused(function, jnp.ones((1, 2), dtype))


@pytest.mark.parametrize("size", [NAN, 2.5, True, "8", 1])
def test_a_vocabulary_has_a_whole_number_of_symbols(size):
    assert "`vocab_size` must be" in refused(lljax.compression_ratio, ROW, size)


def test_a_policy_to_check_has_rows_and_a_tolerance():
    assert "(T, N); got (2,)" in refused(lljax.check_policy, ROW)
    assert "at least one entry; got (2, 0)" in refused(lljax.check_policy, jnp.ones((2, 0)))
    for tolerance in (NAN, -1.0, "0.1"):
        assert "`tolerance` must be" in refused(lljax.check_policy, ROW[None], tolerance)
    words = refused(jax.jit(lljax.check_policy), ROW[None])
    assert "got a tracer" in words
    lljax.check_policy([[0.5, 0.5]])
    assert "got ()" in refused(lljax.project_simplex, jnp.ones(()))
    assert "got (3, 0)" in refused(lljax.project_simplex, jnp.ones((3, 0)))


@pytest.mark.parametrize("memory", ["recompute", lljax.RecomputeStates, None, 3])
def test_memory_is_a_strategy(memory):
    for function in (lljax.build_loss_auc, lljax.build_segments):
        words = refused(function, logistic_loss, SGD, memory=memory)
        assert "`memory` must be a strategy such as lljax.StoreStates()" in words
        assert "OffloadStates()" in words
        assert "RecomputeStates()" in words


@pytest.mark.parametrize(
    ("optimizer", "cure"),
    [
        (METHOD, "what `optimize_policy` takes"),
        (optax.constant_schedule(0.1), "A schedule belongs inside one"),
        (optax.sgd, "A schedule belongs"),
        (0.1, "got 0.1"),
        (optax.GradientTransformation, "got <class"),
    ],
)
def test_the_optimizer_of_training_is_one(optimizer, cure):
    policy, params, train, _ = make_logistic()
    for function in (
        lljax.build_loss_auc,
        lljax.build_segments,
        lambda *both: lljax.unroll(*both, policy, params, train, lambda *_: 0.0),
    ):
        words = refused(function, logistic_loss, optimizer)
        assert "`optimizer` must be an optax optimiser" in words
        assert cure in words


def test_functions_are_functions():
    policy, params, train, desired = make_logistic()
    for function in (lljax.build_loss_auc, lljax.build_segments):
        assert "`loss_fn` must be a function" in refused(function, train, SGD)
    words = refused(lljax.contributions, None, params, train, desired)
    assert "`loss_fn` must be a function" in words
    words = refused(lljax.unroll, logistic_loss, SGD, policy, params, train, 3)
    assert "`observe` must be a function" in words
    assert "`loss_auc` must be a function" in refused(lljax.build_outer_loop, 3, METHOD)
    loop = functools.partial(lljax.build_outer_loop, build(), METHOD)
    assert "`active_loss_auc` must be" in refused(loop, active_loss_auc=3)
    assert "`check_every` must be an int" in refused(loop, check_every=2.5)
    for num_steps in (2.0, True):
        words = refused(
            lljax.optimize_policy, build(), *make_logistic(), optimizer=METHOD, num_steps=num_steps
        )
        assert "`num_steps` must be an int" in words


def test_a_list_of_examples_is_told_to_be_stacked():
    policy, params, train, desired = make_logistic()
    for names in (("z", "y"), ("z",)):
        examples = [{name: train[name][n] for name in names} for n in range(17)]
        words = refused(build(), policy, params, examples, desired)
        assert "train = jax.tree.map(lambda *leaves: jnp.stack(leaves), *train)" in words
    examples = [{name: train[name][n] for name in ("z", "y")} for n in range(17)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *examples)
    expected, _ = compiled(build())(policy, params, train, desired)
    np.testing.assert_allclose(compiled(build())(policy, params, stacked, desired)[0], expected)


def test_an_optimizer_that_needs_the_loss_is_refused_by_the_unroll():
    policy, params, train, _ = make_logistic()
    words = refused(
        lljax.unroll, logistic_loss, optax.lbfgs(), policy, params, train, lambda *_: 0.0
    )
    assert "update(gradient, state, params)" in words
