"""How far a meta-gradient can be trusted: the measures, against their definitions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from command_line import NOISY, SMALL, call, read_metrics
from problems import compiled, logistic_loss, make_logistic
from scipy.stats import spearmanr

import lljax
from lljax import datamodels, trust
from lljax.models.small import Examples, Small, build_init, loss_of

N, STEPS = 17, 12
ROUGH = ("--inner.learning-rate", "0.3", "--model.activation", "relu")


@functools.cache
def problem(num_steps=STEPS):
    policy, params, train, desired = make_logistic()
    return policy, params, train, desired


def run_of(optimizer=optax.sgd(0.1)):
    return lljax.build_loss_auc(logistic_loss, optimizer)


def num_train():
    return jax.tree.leaves(problem()[2])[0].shape[0]


def signs(seed=0):
    return trust.random_direction(jax.random.key(seed), num_train())


def test_a_direction_moves_half_of_the_examples_up():
    found = np.asarray(signs())
    assert set(found) == {-1.0, 1.0}
    assert abs(found.sum()) <= 1
    assert (found != np.asarray(signs(1))).any()


def test_metasmoothness_is_its_definition():
    loss_auc, given = run_of(), problem()
    measure = functools.partial(trust.metasmoothness, loss_auc, direction=signs(), step=0.2)
    found = compiled(measure)(*given)
    policy, *rest = given
    runs = [loss_auc(policy * (1 + h * signs())[None], *rest) for h in (0, 0.2, 0.4)]
    ends = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(i.params)]) for _, i in runs]
    curves = [np.asarray(info.desired_losses)[1:] for _, info in runs]
    for score, (a, b, c) in ((found.params, ends), (found.losses, curves)):
        expected = np.sum(np.abs(b - a) * np.sign(b - a) * np.sign(c - b)) / np.sum(np.abs(b - a))
        np.testing.assert_allclose(score, expected, rtol=1e-6)
    np.testing.assert_allclose(found.aucs, [auc for auc, _ in runs], rtol=1e-10)


def test_rough_training_is_told_from_smooth():
    """At a rate far too high a tiny change of the weights ends somewhere else."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 8)), rng.integers(0, 2, 40).astype(float)
    data = {"x": jnp.asarray(x), "y": jnp.asarray(y)}
    params = {"in": jnp.asarray(rng.normal(size=(8, 16))), "out": jnp.asarray(rng.normal(size=16))}

    def loss_fn(params, batch):
        logits = jnp.tanh(batch["x"] @ params["in"]) @ params["out"]
        return optax.sigmoid_binary_cross_entropy(logits, batch["y"])

    def score(rate):
        loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(rate))
        direction = trust.random_direction(jax.random.key(0), 40)
        policy = lljax.uniform_policy(60, 40)
        found = trust.metasmoothness(
            loss_auc, policy, params, data, data, direction=direction, step=0.2
        )
        return float(found.params)

    assert score(0.1) > 0.9 > trust.SMOOTH > score(60.0)


@pytest.mark.parametrize(("activation", "predicts"), [("gelu", True), ("relu", False)])
def test_the_activation_decides_whether_small_changes_are_foretold(activation, predicts):
    """With relu the gradient of a step jumps where a unit is crossed: no derivative sees that."""
    rng = np.random.default_rng(0)

    def examples(noise):
        x = rng.normal(size=(60, 8))
        y = x[:, 0] + noise * rng.normal(size=60) > 0
        return Examples(jnp.asarray(x), jnp.asarray(y, jnp.int32))

    train, desired = examples(1.0), examples(0.0)
    model = Small("mlp", outputs=2, width=16, num_layers=1, activation=activation)
    params = build_init(model, train.x[:1])(jax.random.key(0))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    loss_auc = lljax.build_loss_auc(loss_of(model, True), optax.adamw(0.03, eps_root=1e-6))

    def auc(factors):
        policy = lljax.uniform_policy(100, 60) * factors[None]
        return loss_auc(policy, params, train, desired)[0]

    base, slopes = jax.jit(jax.value_and_grad(auc))(jnp.ones(60))
    keys = jax.random.split(jax.random.key(1), 32)
    directions = jax.vmap(lambda key: trust.random_direction(key, 60))(keys)
    changes = jax.jit(jax.vmap(auc))(1 + 0.01 * directions) - base
    correlation = spearmanr(changes, directions @ slopes).statistic
    assert correlation > 0.97 if predicts else correlation < 0.6


@pytest.mark.parametrize(("rate", "predicts"), [(0.1, True), (1.9, False)])
def test_a_gradient_that_chaos_has_blown_up_overshoots(rate, predicts):
    """x <- x - rate x (x^2 - b) is chaotic and bounded at a rate of 1.9 and b near 1."""
    data = {"b": jnp.linspace(0.9, 1.1, 16)}
    loss_auc = lljax.build_loss_auc(
        lambda x, batch: (jnp.square(x) - batch["b"]) ** 2 / 4, optax.sgd(rate)
    )
    policy, x0 = lljax.uniform_policy(60, 16), jnp.asarray(0.3)
    given = policy, x0, data, data
    direction = jnp.where(jnp.arange(16) < 8, 1.0, -1.0)
    smooth = trust.metasmoothness(loss_auc, *given, direction=direction, step=0.2)
    slope = jax.grad(lambda h: loss_auc(policy * (1 + h * direction[None]), x0, data, data)[0])(0.0)
    assert 0 < smooth.aucs[0] < 1
    found = float(trust.overshoot(0.2 * slope, smooth.aucs))
    a, b, c = np.asarray(smooth.aucs)
    assert found == pytest.approx(abs(0.2 * float(slope)) / max(abs(b - a), abs(c - a)))
    assert found < 1.1 if predicts else found > 1000


def test_a_parabola_overshoots_by_two_and_a_half_at_most_and_rounding_by_nothing():
    changes = np.linspace(-3, 3, 601)
    found = [float(trust.overshoot(1.0, jnp.array([9, 10 + c, 11 + 4 * c]))) for c in changes]
    assert max(found) == pytest.approx(2.5)
    assert trust.overshoot(1e-7, jnp.array([2.0, 2.0, 2.0])) < 0.01


def test_what_does_not_move_is_smooth_and_what_is_no_number_is_not():
    assert trust.sign_agreement({"w": jnp.ones((3, 2))}) == 1
    assert jnp.isnan(trust.sign_agreement([jnp.array([0.0, 1.0, jnp.nan])]))
    assert trust.sign_agreement(jnp.array([[0.0, 0.0], [3.0, 1.0], [4.0, 0.0]])) == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"direction": jnp.ones(3)}, r"`direction` must have shape \(N,\)"),
        ({"direction": jnp.ones(40, int)}, "`direction` must be floating"),
        ({"step": 0.0}, "`step` must be a finite number > 0"),
        ({"step": 0.7}, "`step` must keep the weights above 0"),
    ],
)
def test_metasmoothness_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        trust.metasmoothness(
            run_of(), *problem(), **({"direction": signs(), "step": 0.1} | changes)
        )


@pytest.mark.parametrize("of", ["auc", "final"])
def test_the_score_sets_predictions_against_retrainings(of):
    loss_auc, given = run_of(), problem()
    policy, *rest = given
    found = compiled(
        functools.partial(
            trust.linear_datamodeling_score,
            loss_auc,
            num_subsets=12,
            share=0.1,
            of=of,
            batch_size=4,
            key=jax.random.key(3),
        )
    )(*given)

    def f(factors):
        auc, info = loss_auc(policy * factors[None], *rest)
        return auc if of == "auc" else info.desired_losses[-1]

    count = num_train()
    left_out = datamodels.draw_subsets(jax.random.split(jax.random.key(3))[0], count, 12, 0.1)
    assert (np.asarray(left_out).sum(axis=1) == round(0.1 * count)).all()
    slopes = jax.grad(f)(jnp.ones(count))
    np.testing.assert_allclose(found.predicted, -left_out @ slopes, rtol=1e-8)
    np.testing.assert_allclose(found.outcome, f(jnp.ones(count)), rtol=1e-10)
    actual = [f(1 - row) - found.outcome for row in left_out]
    np.testing.assert_allclose(found.actual, actual, rtol=1e-7)
    assert abs(found.lds - spearmanr(found.predicted, found.actual).statistic) < 1e-12
    assert found.interval[0] <= found.lds <= found.interval[1]
    assert found.lds > 0.9
    assert 0.5 < found.explained <= 1


def test_mini_batches_scale_an_example_wherever_it_is_drawn():
    policy, params, train, desired = problem()
    index = jnp.arange(policy.shape[0] * 4).reshape(-1, 4) % num_train()
    inputs = lljax.StepInputs(jnp.full(index.shape, 0.25), index)
    factors = jnp.linspace(0.5, 1.5, num_train())
    moved = datamodels.scaled(inputs, factors)
    np.testing.assert_allclose(moved.weights, 0.25 * factors[index])
    scores = lljax.attribution_scores(run_of(), inputs, params, train, desired)
    h, one = 1e-5, jnp.zeros(num_train()).at[3].set(1.0)

    def f(d):
        return run_of()(datamodels.scaled(inputs, 1 + d * one), params, train, desired)[0]

    np.testing.assert_allclose(-scores[3], (f(h) - f(-h)) / (2 * h), rtol=1e-6)


def test_ties_and_numbers_that_are_none():
    first, second = jnp.array([1.0, 1.0, 2.0, 5.0]), jnp.array([3.0, 1.0, 1.0, 9.0])
    expected = spearmanr(first, second).statistic
    np.testing.assert_allclose(datamodels.rank_correlation(first, second), expected)
    assert jnp.isnan(datamodels.rank_correlation(first, jnp.ones(4)))
    assert jnp.isnan(datamodels.rank_correlation(first, second.at[0].set(jnp.inf)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"share": 0.0}, r"`share` must be a share in \(0, 1\)"),
        ({"share": 1e-4}, "`share` must leave out at least one example"),
        ({"num_subsets": 2}, "`num_subsets` must be an int, at least 3"),
        ({"of": "loss"}, "`of` must be"),
    ],
)
def test_the_score_refuses(changes, words):
    with pytest.raises(ValueError, match=words):
        trust.linear_datamodeling_score(run_of(), *problem(), key=jax.random.key(0), **changes)


def test_finite_differences_find_a_gradient_that_is_wrong():
    loss_auc, key = run_of(optax.adam(0.1, eps_root=1e-6)), jax.random.key(0)
    with jax.enable_x64(False):
        given = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float32), problem())
        found = trust.finite_difference_check(loss_auc, *given, key=key, num_directions=3)
    assert found.gradient.shape == (3,)
    assert found.gradient.dtype == np.float64
    assert found.error < 1e-7

    def cut_short(policy, *data):
        """A gradient that forgets the second half of the run."""
        weights = policy.weights if isinstance(policy, lljax.StepInputs) else policy
        half = len(weights) // 2
        stopped = jnp.concatenate([weights[:half], jax.lax.stop_gradient(weights[half:])])
        return loss_auc(stopped, *data)

    assert trust.finite_difference_check(cut_short, *problem(), key=key).error > 1e-3
    with pytest.raises(ValueError, match="outside jit"):
        jax.jit(functools.partial(trust.finite_difference_check, loss_auc, key=key))(*problem())


def test_a_small_step_does_what_the_gradient_says():
    loss_auc, (policy, *rest) = run_of(), problem()
    target = jnp.eye(policy.shape[1])[jnp.zeros(len(policy), int)]
    near = policy + 1e-4 * (target - policy)
    found = trust.predicted_and_actual(loss_auc, policy, near, *rest)
    np.testing.assert_allclose(found.predicted, found.actual, rtol=1e-2)
    assert found.actual != 0
    with pytest.raises(ValueError, match="`trial` must have weights of shape"):
        trust.predicted_and_actual(loss_auc, policy, near[:, :3], *rest)


def test_check_judges_a_run_and_says_what_to_change():
    good = call("check", "noisy_labels", *NOISY, "--seconds", 2)
    assert good.returncode == 0, good.stderr
    assert "Verdict: " in good.stdout
    assert "metasmoothness" in good.stdout
    rough = call("check", "noisy_labels", *NOISY, "--seconds", 0, *ROUGH)
    assert rough.returncode == 0, rough.stderr
    assert "Verdict: mistrust" in rough.stdout or "Verdict: care" in rough.stdout
    # What the config has, as a warm-up, is not advised.
    assert "--model.activation gelu, a lower inner.learning_rate (0.3 here), a la" in rough.stdout
    assert "of 6 retrainings" in rough.stdout
    assert "--seconds gives" in rough.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", ["curate", "domains", "noisy_labels", "perceptron", "transformer_small"]
)
def test_the_gradient_of_what_is_shipped_predicts(config):
    found = call("check", config)
    assert found.returncode == 0, found.stderr
    assert "Verdict: trust" in found.stdout, found.stdout


def test_check_judges_a_dense_policy_too():
    found = call("check", "perceptron", *SMALL, "--seconds", 1)
    assert found.returncode == 0, found.stderr
    assert "Verdict: trust" in found.stdout


@pytest.mark.parametrize(
    ("rate", "overshoots", "words"),
    [
        ("0.1", False, ["warning: metasmoothness", "metasmoothness", "training is so rough"]),
        (
            "0.3",
            True,
            ["the AUC that training with other", "the gradient foretells", "predicts nothing"],
        ),
    ],
)
def test_a_run_measures_its_smoothness_first_and_tells_it(tmp_path, rate, overshoots, words):
    rough = ("--inner.learning-rate", rate, "--model.activation", "relu")
    result = call("run", "noisy_labels", "--workdir", tmp_path, *NOISY, *rough)
    assert result.returncode == 0, result.stderr
    assert words[0] in result.stderr.split("outer 0/2")[0]
    kept = json.loads((tmp_path / "smoothness.json").read_text())
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["smoothness"] == kept
    assert kept["params"] < trust.SMOOTH
    assert (kept["overshoot"] > trust.OVERSHOOT) == overshoots
    assert f"Rough training: {words[1]}" in result.stdout
    assert words[2] in (tmp_path / "report.html").read_text()
    assert len(read_metrics(tmp_path)) == 3


def test_a_kept_smoothness_is_not_measured_again(tmp_path, finished):
    workdir, result = finished
    assert "metasmoothness" in result.stderr
    kept = json.loads((workdir / "smoothness.json").read_text())
    assert 0 < kept["params"] <= 1
    assert kept["step"] == 0.2
    assert 0 <= kept["overshoot"] < kept["most"]
    from lljax.engine.smoothness import keep_smoothness
    from lljax.engine.workdir import Workdir

    keep_smoothness(Workdir(workdir), lambda: pytest.fail("measured again"), 0)
