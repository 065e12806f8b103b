"""Training runs that keys draw: batches by weight, the gradient in segments, the families."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lljax
from lljax.curation.drawn import DrawnGradient, RunSource, run_keys
from lljax.curation.evaluation import Evaluation
from lljax.curation.families import build_family
from lljax.curation.run import plan_runs
from lljax.curation.scorer import Columns, Seen, fit_scorer, shares_of
from lljax.draws import draw_weights
from lljax.errors import UserError
from lljax.tasks import ExperimentConfig, InnerConfig, OuterConfig, PolicyConfig
from lljax.tasks.problem import PolicyProblem

N, K, T, R = 20, 12, 12, 3


def loss_fn(params, batch):
    return (batch["x"] @ params - batch["y"]) ** 2


@pytest.fixture(scope="module")
def problem():
    rng = np.random.default_rng(0)

    def examples(count):
        return {
            "x": jnp.asarray(rng.normal(size=(count, 3))),
            "y": jnp.asarray(rng.normal(size=count)),
        }

    train, desired = examples(N), examples(K)
    return PolicyProblem(
        loss_fn=loss_fn,
        optimizer=optax.adam(0.05, eps_root=1e-6),
        params=jnp.zeros(3),
        train=train,
        desired=desired,
        validation=desired,
        test=desired,
        num_symbols=2,
        objective=desired,
        objective_loss_fn=loss_fn,
        desired_loss_fn=loss_fn,
        init_params=lambda key: jax.random.normal(key, (3,)),
        groups=np.arange(N) % 4,
        group_names=("a", "b", "c", "d"),
        featurize=lambda batch: np.asarray(batch["x"], np.float32),
    )


def config_of(family="static", batch_size=4, desired_batch_size=5, **policy):
    return ExperimentConfig(
        inner=InnerConfig(
            num_steps=T, batch_size=batch_size, desired_batch_size=desired_batch_size, segments=4
        ),
        outer=OuterConfig(runs=R, train_share=0.0),
        policy=PolicyConfig(family=family, **policy),
    )


@pytest.mark.parametrize("num_rows", [1, 3])
@pytest.mark.parametrize("explore", [0.0, 0.3, 1.0])
def test_batches_are_drawn_by_weight_and_exact_in_the_mean(num_rows, explore):
    shares = jax.random.dirichlet(jax.random.key(0), jnp.ones(5), (num_rows,))
    steps = 3

    def gradient(key):
        inputs = lljax.draw_batches(shares, key, num_steps=steps, batch_size=4, explore=explore)
        values = jnp.arange(5.0)[inputs.index]
        return (inputs.weights * values).sum(axis=1), inputs.weights.max()

    sums, largest = jax.vmap(gradient)(jax.random.split(jax.random.key(1), 20_000))
    wanted = lljax.scheduled_weights(shares, num_steps=steps) @ jnp.arange(5.0)
    np.testing.assert_allclose(sums.mean(axis=0), wanted, atol=0.03)
    if explore < 1:
        assert largest.max() <= 1 / (4 * (1 - explore)) + 1e-6


def test_what_has_no_weight_is_drawn_only_to_explore():
    shares = jnp.array([0.0, 0.5, 0.0, 0.5, 0.0])

    def drawn(explore):
        inputs = lljax.draw_batches(
            shares, jax.random.key(0), num_steps=500, batch_size=8, explore=explore
        )
        return np.bincount(np.asarray(inputs.index).ravel(), minlength=5) / inputs.index.size

    assert drawn(0.0)[[0, 2, 4]].sum() == 0
    np.testing.assert_allclose(drawn(0.5), [0.1, 0.35, 0.1, 0.35, 0.1], atol=0.03)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"explore": 1.5}, "`explore` must be a number in"),
        ({"batch_size": 0}, "`batch_size`"),
        ({"shares": jnp.ones((4, 2)) / 2}, "at most as many rows"),
        ({"shares": jnp.ones((1, 1, 2))}, r"`shares` must have shape"),
    ],
)
def test_wrong_draws_are_refused(changes, message):
    given = {"shares": jnp.full(4, 0.25), "key": jax.random.key(0), "num_steps": 3, "batch_size": 2}
    with pytest.raises(ValueError, match=message):
        lljax.draw_batches(**(given | changes))


@pytest.mark.parametrize(
    ("batch_size", "desired_batch_size", "num_rows"), [(4, 5, 1), (None, None, 1), (4, None, 3)]
)
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_the_gradient_in_segments_is_that_of_the_objective(
    problem, batch_size, desired_batch_size, num_rows, memory
):
    config = config_of(batch_size=batch_size, desired_batch_size=desired_batch_size)
    plan = dataclasses.replace(plan_runs(problem, config), mode=memory)
    source = RunSource(config, problem)
    gradient = DrawnGradient(problem, config, plan, source)
    shares = jax.random.dirichlet(jax.random.key(2), jnp.ones(N), (num_rows,))
    runs = source.draw(shares, run_keys(jax.random.key(1), 3, R))
    sweep = gradient.new_sweep()
    gradient.run_forward(runs, sweep, lambda _: None)
    gradient.run_backward(runs, sweep, lambda _: None)
    found = source.to_shares(shares, runs.inputs.index, jnp.asarray(sweep.policy_grad))

    loss_auc = lljax.build_loss_auc(loss_fn, problem.optimizer)

    def objective(shares):
        total = 0.0
        for r in range(R):
            inputs = jax.tree.map(lambda leaf, r=r: leaf[:, r], runs.inputs)
            weights = lljax.scheduled_weights(shares, num_steps=T)
            if batch_size is not None:
                weights = draw_weights(shares, inputs.index, explore=0.5)
            inputs = dataclasses.replace(inputs, weights=weights)
            total += loss_auc(inputs, runs.params[r], problem.train, problem.desired)[0]
        return total / R

    value, wanted = jax.value_and_grad(objective)(shares)
    assert abs(float(sweep.objective) - float(value)) < 1e-6
    # The sweep's arrays are float32.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6 * float(abs(wanted).max()))


@pytest.mark.parametrize("family", ["static", "group", "scheduled", "scorer"])
@pytest.mark.parametrize("scorer", ["boosted", "distilled"])
def test_families_begin_with_conventional_training(problem, family, scorer):
    config = config_of(family, scorer=scorer)
    made = build_family(config, problem)
    shares = made.shares(made.start)
    assert shares.shape[1] == N
    np.testing.assert_allclose(shares, 1 / N, rtol=1e-5)
    slopes = jnp.broadcast_to(problem.train["x"][:, 0], shares.shape).astype(shares.dtype)
    moved, _ = made.move(made.start, made.begin(made.start), slopes)
    if family in ("static", "scorer"):
        # It moves away from what has a large slope.
        assert np.corrcoef(np.log(made.shares(moved)[0]), slopes[0])[0, 1] < -0.9
    assert float(jnp.abs(made.shares(moved) - shares).max()) > 1e-4
    np.testing.assert_allclose(made.shares(moved).sum(axis=1), 1, rtol=1e-5)


def test_families_say_what_they_lack(problem):
    bare = dataclasses.replace(problem, groups=None, featurize=None)
    with pytest.raises(UserError, match=r"needs the groups .* data.group"):
        build_family(config_of("group"), bare)
    with pytest.raises(UserError, match="needs something to look at"):
        build_family(config_of("scorer", scorer="boosted"), bare)
    assert build_family(config_of("scheduled"), bare).start.shape == (4, N)
    assert build_family(config_of("scheduled"), problem).start.shape == (4, 4)


def test_curves_of_fresh_runs_are_those_of_training(problem):
    config = config_of(batch_size=4)
    source = RunSource(config, problem)
    evaluation = Evaluation(config, problem, source)
    shares = jnp.full((1, N), 1 / N)
    keys = evaluation.keys(7, 2)
    curves = evaluation.curves(shares, keys, ("test", "desired"), "label")
    runs = source.draw(shares, keys, explore=0.0)
    for r in range(2):
        inputs = lljax.StepInputs(runs.inputs.weights[:, r], runs.inputs.index[:, r])
        _, seen = lljax.unroll(
            loss_fn,
            problem.optimizer,
            inputs,
            runs.params[r],
            problem.train,
            lambda params, _: loss_fn(params, problem.test).mean(),
        )
        np.testing.assert_allclose(curves["test"][r], seen[evaluation.steps], rtol=1e-5)
    assert evaluation.at_all_steps(curves["test"]).shape == (2, T + 1)


def test_a_scorer_finds_what_weights_depend_on():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(400, 6)).astype(np.float32)
    weights = np.exp(features @ [1.0, -0.5, 0, 0, 0, 0] + 0.1 * rng.normal(size=400))
    scorer = fit_scorer(Seen.of(features[:200]), weights[:200] / weights[:200].sum())
    unseen = np.corrcoef(scorer(features[200:]), np.log(weights[200:]))[0, 1]
    assert unseen > 0.98
    np.testing.assert_allclose(shares_of(scorer(features)).sum(), 1, rtol=1e-5)


@pytest.mark.parametrize("least", [1, 50, 150, 4000])
def test_shares_are_flattened_until_as_many_examples_count(least):
    scores = 3 * np.random.default_rng(0).normal(size=400)
    effective = float(lljax.effective_sample_size(shares_of(scores)))
    found = shares_of(scores, least)
    assert found.sum() == pytest.approx(1, rel=1e-5)
    assert np.array_equal(np.argsort(found, kind="stable"), np.argsort(scores, kind="stable"))
    expected = max(effective, min(least, 200))  # half of all at most
    assert lljax.effective_sample_size(found) == pytest.approx(expected, rel=1e-3)


def test_columns_hold_a_sparse_matrix():
    import scipy.sparse

    matrix = scipy.sparse.random(7, 11, 0.3, "csr", np.float32, np.random.default_rng(0))
    columns = Columns.of(matrix)
    psi = np.arange(11.0)
    np.testing.assert_allclose(
        (columns.values * psi[columns.where]).sum(axis=1), matrix @ psi, rtol=1e-5
    )
