"""`lljax transfer`: does what a policy found help other models, on data that it has not seen?

Models are trained conventionally, in fresh runs, on batches that are drawn uniformly, by weight,
from a random subset as large as the weights' effective sample size, from as many examples that look
most like the desired ones, and, where it is known which examples are damaged, from the others
alone. The desired, validation and test sets are the run's.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lljax
from lljax.artifacts import schema
from lljax.artifacts.files import write_json
from lljax.artifacts.manifest import renew_report
from lljax.curation import results
from lljax.curation.cost import training_flops
from lljax.curation.drawn import RunSource
from lljax.curation.evaluation import Evaluation
from lljax.curation.families import seen_of
from lljax.curation.loaded import Run, load_run
from lljax.curation.results import Measured
from lljax.curation.scorer import shares_of
from lljax.engine.metrics import number
from lljax.errors import UserError
from lljax.safe_text import LEFT_OUT
from lljax.tasks.build import build_problem, fingerprint
from lljax.tasks.config_file import TASKS
from lljax.tasks.problem import Experiment, PolicyProblem

KIND = 3  # of the keys of such runs: neither validation's nor test's


def default_experiment(workdir: Path) -> Experiment:
    """The run's own experiment: its flags are the defaults of the command.

    Raises:
      UserError: the run's task is none of lljax's own, or its policy has no weights of examples.
    """
    run = load_run(workdir)
    if run.summary.get("family", "dense") == "dense":
        raise UserError(
            f"{workdir} has a dense policy, whose weights belong to the steps of one run. Run with "
            f"a --policy.family of static, group, scheduled or scorer."
        )
    task = next((task for task in TASKS if task.name == run.config["task"]), None)
    if task is None:
        raise UserError(
            f"{workdir} is a run of the task {run.config['task']}, which lljax cannot build from "
            f"the workdir alone: `lljax transfer` is for {', '.join(task.name for task in TASKS)}."
        )
    settings = {name: value for name, value in run.config.items() if name != "task"}
    return Experiment(task, rebuild(task.config_type, settings))


def rebuild(config_type: type, settings: Mapping[str, Any]) -> Any:
    """A config from what config.json holds of it."""
    defaults = config_type()
    values = {}
    for field in dataclasses.fields(config_type):
        if field.name not in settings:
            continue
        value, default = settings[field.name], getattr(defaults, field.name)
        is_section = dataclasses.is_dataclass(default) and isinstance(value, Mapping)
        values[field.name] = rebuild(type(default), value) if is_section else value
    return config_type(**values)


def transfer(workdir: Path, experiment: Experiment, seeds: int = 5) -> dict[str, Any]:
    """Trains models and writes transfer.json into the workdir; returns what it holds.

    Args:
      workdir: of a finished run.
      experiment: the run's, with the model, the steps or the data that flags changed.
      seeds: fresh runs of each arm.

    Raises:
      UserError: the data are others and the policy has no weights for them.
    """
    started = time.monotonic()
    if seeds < 1:
        raise UserError(f"--seeds must be at least 1; got {seeds}.")
    run = load_run(workdir)
    original = default_experiment(workdir)
    config = experiment.config
    is_unseen = _data_settings(experiment) != _data_settings(original)
    _check_urls(config.data)
    if config.seed != original.config.seed:
        raise UserError(
            f"--seed must be {original.config.seed}, that of the run: it says which examples are "
            f"in which set. Fresh runs are drawn by --seeds."
        )
    if hasattr(config.data, "tokenizer"):
        # The policy's vocabulary, whatever the data are.
        data = dataclasses.replace(config.data, tokenizer=str(workdir))
        config = dataclasses.replace(config, data=data)
    problem = build_problem(experiment._replace(config=config))
    shares = _shares(run, problem, is_unseen)
    source = RunSource(config, problem)
    evaluation = Evaluation(config, problem, source)
    keys = evaluation.keys(KIND, seeds)
    arms = {
        arm: train(evaluation, arm_shares, keys, arm)
        for arm, arm_shares in _arms(problem, shares, seeds).items()
    }
    finding = run.summary["runs"].get("flops")
    found = _numbers(evaluation, arms, finding, training_flops(problem, config.inner))
    found |= {
        "num_params": sum(leaf.size for leaf in jax.tree.leaves(problem.params)),
        "num_train": problem.num_train,
        "unseen_data": is_unseen,
        "data": list(problem.data_lines),
        "inner_steps": config.inner.num_steps,
        "seconds": round(time.monotonic() - started, 2),
    }
    write_json(workdir / schema.TRANSFER_FILE, found)
    renew_report(workdir)
    return found


def _data_settings(experiment: Experiment) -> dict[str, Any]:
    """What config.json holds of the data, without what does not change them."""
    free = {name.removeprefix("data.") for name in experiment.task.free_settings}
    data = experiment.settings()["data"]
    return {name: value for name, value in data.items() if name not in free}


def _check_urls(data: Any) -> None:
    """UserError where config.json has left out a part of a URL, and no flag gives it whole."""
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if isinstance(value, str) and value.endswith(LEFT_OUT):
            name = field.name.replace("_", "-")
            raise UserError(
                f"--data.{name} must be given again: config.json holds {value}, without what "
                f"stands behind the question mark, which may be a secret."
            )


def _shares(run: Run, problem: PolicyProblem, is_unseen: bool) -> np.ndarray:
    """[S, N], the policy's distributions over the examples of a problem."""
    family, rows = run.summary.get("family"), np.atleast_2d(run.policy).astype(np.float64)
    in_groups = run.summary.get("groups") is not None and problem.groups is not None
    if not is_unseen and run.summary.get("data_digest") != fingerprint(problem, with_params=False):
        raise UserError(
            "the data are not those of the run: they have changed since. Put them back, or name "
            "others in --data.path."
        )
    if in_groups and family in ("group", "scheduled"):
        rows = _of_groups(run, rows, problem)
    elif is_unseen and family == "scorer" and problem.featurize is not None:
        # As many examples count as in the run.
        effective = float(lljax.effective_sample_size(rows.mean(axis=0)))
        rows = shares_of(seen_of(problem).scores(run.scorer()), effective)[None]
    elif is_unseen:
        rows = np.zeros((1, problem.num_train))
    if (rows.sum(axis=1) > 0).all():
        return (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    raise UserError(
        "the policy has no weights for other data: they need a scorer (--policy.family scorer), or "
        "groups of the same names (--data.group)."
    )


def _of_groups(run: Run, rows: np.ndarray, problem: PolicyProblem) -> np.ndarray:
    """[S, G] weights of groups -> [S, N], those of a problem's examples; its groups are found by
    name, and one that the run does not know has none."""
    groups = run.summary["groups"]
    relative = rows / np.maximum(groups["weight_share"]["conventional"], 1e-12)
    known = {name: g for g, name in enumerate(groups["names"])}
    ours = [known.get(name, len(known)) for name in problem.group_names]
    padded = np.concatenate([relative, np.zeros((len(rows), 1))], axis=1)
    return padded[:, np.array(ours, int)[problem.groups]]


def _arms(problem: PolicyProblem, shares: np.ndarray, seeds: int) -> dict[str, list[np.ndarray]]:
    """The distributions of each arm, one for each seed."""
    count = problem.num_train
    effective = max(1, min(count, round(float(lljax.effective_sample_size(shares.mean(axis=0))))))
    rng = np.random.Generator(np.random.PCG64(effective))
    random = []
    for _ in range(seeds):
        chosen = np.zeros(count, np.float32)
        chosen[rng.permutation(count)[:effective]] = 1 / effective
        random.append(chosen[None])
    arms = {
        "uniform": [np.full((1, count), 1 / count, np.float32)] * seeds,
        "curated": [shares] * seeds,
        "random": random,
    }
    if problem.featurize is not None:
        arms["match"] = [_match(problem, effective)] * seeds
    oracle = results.oracle_shares(problem)
    return arms if oracle is None else arms | {"oracle": [oracle] * seeds}


def _match(problem: PolicyProblem, count: int) -> np.ndarray:
    """[1, N], uniform over the examples whose documents look most like the desired ones.

    By the importance of their features, sum_f x_f ln(mean desired x_f / mean train x_f): the same
    number of examples without any training run.
    """
    assert problem.featurize is not None
    seen, wanted = seen_of(problem), problem.featurize(problem.desired)
    means = [np.asarray(of.mean(axis=0)).ravel() for of in (wanted, seen.pieces)]
    least = max(float(means[1].mean()), 1e-12) * 0.1
    if min(mean.min() for mean in means) < 0:
        importance = means[0] - means[1]  # of no counts
    else:
        importance = np.log((means[0] + least) / (means[1] + least))
    looks = np.asarray(seen.features @ importance).ravel()[seen.document]
    chosen = np.argsort(-looks, kind="stable")[:count]
    shares = np.zeros((1, problem.num_train), np.float32)
    shares[0, chosen] = 1 / len(chosen)
    return shares


def train(evaluation: Evaluation, shares: list[np.ndarray], keys: jax.Array, arm: str) -> Measured:
    """The loss curves of an arm: by set [R, T+1]."""
    if all(one is shares[0] for one in shares):
        curves = evaluation.curves(jnp.asarray(shares[0]), keys, ("test",), f"training, {arm}")
    else:
        single = [
            evaluation.curves(
                jnp.asarray(one), keys[r : r + 1], ("test",), f"training, {arm} {r + 1}"
            )
            for r, one in enumerate(shares)
        ]
        curves = {name: np.concatenate([of[name] for of in single]) for name in single[0]}
    return Measured({name: evaluation.at_all_steps(curve) for name, curve in curves.items()})


def _numbers(
    evaluation: Evaluation, arms: dict[str, Measured], finding: float | None, training: float
) -> dict[str, Any]:
    uniform = arms["uniform"]
    found: dict[str, Any] = {"steps": evaluation.steps.tolist(), "arms": {}}
    mean = jnp.asarray(uniform.mean()["test"])
    for arm, measured in arms.items():
        curve = measured.mean()["test"]
        found["arms"][arm] = {
            "acceleration_ratio": number(lljax.acceleration_ratio(mean, jnp.asarray(curve))),
            "acceleration_ratios": results.ratios(uniform, measured),
            "final_losses": [number(loss) for loss in measured.curves["test"][:, -1]],
            "auc": number(curve[1:].mean()),
            "curve": [number(loss) for loss in curve[evaluation.steps]],
        }
    ratio = found["arms"]["curated"]["acceleration_ratio"]
    saved = None if ratio is None else training * (1 - 1 / ratio)
    break_even = None
    if finding is not None and saved is not None and np.isfinite(saved) and saved > 0:
        break_even = number(finding / saved)
    found["flops"] = {
        "finding": finding,
        "training": number(training),
        "saved": None if saved is None else number(saved),
        "break_even_runs": break_even,
    }
    return found
