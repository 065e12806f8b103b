"""Runs of several processes: the first one reads the data, and sends the others their examples."""

import os

import numpy as np
import pytest
from command_line import NOISY, read_metrics

from benchmarks.two_processes import Cluster, finish

TEXT = (
    *("--data.vocab-size", "24", "--data.context", "15", "--data.num-train", "32"),
    *("--data.num-desired", "16", "--data.num-validation", "16", "--data.num-test", "16"),
    *("--inner.num-steps", "12", "--outer.num-steps", "2"),
)
SCORER = ("--policy.family", "scorer", "--inner.batch-size", "8", "--outer.runs", "2")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "flags"),
    [
        ("transformer_small", TEXT),  # whose best policy is the conventional one
        ("transformer_small", (*TEXT, "--outer.train-share", "0.2", "--data.num-desired", "15")),
        ("transformer_small", (*TEXT, *SCORER)),
        ("noisy_labels", ("--inner.batch-size", "16", *NOISY)),
    ],
    ids=["text", "train share", "scorer", "arrays"],
)
def test_the_first_process_alone_reads_the_data(tmp_path, config, flags):
    corpus = tmp_path / "corpus.txt"
    words = np.random.default_rng(0).choice(["to", "be", "or", "not", "is", "it"], (300, 40))
    corpus.write_text("\n\n".join(" ".join(line) for line in words))
    if config != "noisy_labels":
        flags = ("--data.path", str(corpus), "--data.cache-dir", str(tmp_path / "cache"), *flags)
    # No process but the first can have a cache there.
    nowhere = {1: ("--data.cache-dir", "/dev/null/cache")}
    options = {"config": config, "settings": ()}
    two = finish(tmp_path / "two", 2, 2, *flags, **options, own=nowhere)
    one = finish(tmp_path / "one", 1, 4, *flags, **options)
    np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-6 * one.mean())
    for line, expected in zip(*(read_metrics(tmp_path / of) for of in ("two", "one")), strict=True):
        for name in ("desired_auc", "validation_auc", "trial_objective"):
            measured = [of[name] or 0 for of in (line, expected)]  # not in every outer step
            assert measured[0] == pytest.approx(measured[1], rel=1e-5)
    said = (tmp_path / "two.1.log").read_text()
    assert "text to train on" not in said


OWN = """
import dataclasses, typing
import jax.numpy as jnp, numpy as np
from lljax import cluster, tasks
from lljax.tasks.sharing import read_examples, shapes_of

class Read(typing.NamedTuple):
    sets: dict

    def elsewhere(self):
        return Read(shapes_of(self.sets))

def read():
    def points(count):
        x = np.linspace(-1, 1, count)  # float64, as NumPy has it
        return {"x": x, "y": 2 * x}
    same = points(4)
    return Read({"train": points(8), "desired": points(12), "validation": same, "test": same})

def build(config):
    return tasks.Problem(
        loss_fn=lambda w, batch: (batch["x"] * w - batch["y"]) ** 2, params=jnp.zeros(()),
        optimizer=tasks.inner_optimizer(config.inner), num_symbols=2,
        read_by_first=cluster.has_peers(), **read_examples(read).sets)

def get_config():
    return tasks.ExperimentConfig(
        inner=tasks.InnerConfig(num_steps=5), outer=tasks.OuterConfig(num_steps=2))

def get_task():
    return tasks.Task("points", tasks.ExperimentConfig, build)
"""


@pytest.mark.slow
def test_a_task_of_ones_own_may_read_in_the_first_process_alone(tmp_path):
    """With NumPy's wide numbers, and two sets that are one object there."""
    config = tmp_path / "own.py"
    config.write_text(OWN)
    options = {"config": str(config), "settings": ()}
    two = finish(tmp_path / "two", 2, 2, **options)
    one = finish(tmp_path / "one", 1, 4, **options)
    np.testing.assert_allclose(two, one, rtol=1e-4)


@pytest.mark.slow
def test_other_initial_parameters_are_refused(tmp_path, monkeypatch):
    """The data are the first one's, and theta_0 each process's own."""
    draws = tmp_path / "sitecustomize.py"
    draws.write_text(
        "import os\n"
        "if os.environ.get('JAX_PROCESS_ID') == '1':\n"
        "    os.environ['JAX_DEFAULT_PRNG_IMPL'] = 'rbg'\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    cluster = Cluster(tmp_path / "run", 2, 1, *NOISY, config="noisy_labels", settings=())
    assert cluster.wait() == [1, 1]
    assert "other data or initial parameters" in cluster.last_lines()[1]


@pytest.mark.slow
def test_data_that_cannot_be_read_end_all_processes(tmp_path):
    flags = ("--data.path", str(tmp_path / "none.txt"), *TEXT)
    cluster = Cluster(tmp_path / "run", 2, 1, *flags, config="transformer_small", settings=())
    assert cluster.wait() == [2, 2]
    assert all("none.txt" in line for line in cluster.last_lines())
