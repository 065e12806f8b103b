"""The real command line for tests: in this process, or in one of its own where that is tested."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import tyro

from lljax import cli
from lljax.engine import run as engine
from lljax.tasks import Experiment, perceptron
from lljax.tasks.perceptron import PerceptronConfig

ROOT = Path(__file__).parent.parent
SMALL = (
    *("--inner.num-steps", "60", "--outer.num-steps", "8", "--data.dim", "16"),
    *("--data.num-train", "64", "--data.num-desired", "32"),
    *("--data.num-validation", "128", "--data.num-test", "128"),
)
# Compiling takes a third of the time, and what is tested is what is computed. Command lines that
# run in processes of their own have the defaults of XLA, and so have the slow tests.
FAST_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
RUN = ("run", "perceptron", *SMALL, "--workdir")
"""Of a run of seconds; the workdir and other flags follow."""
ACTIVE = ("--inner.microbatch-size", "8", "--outer.cutoff", "0.3", "--outer.train-share", "0")
"""With these and --outer.check-every it has an active set."""

NOISY = (
    *("--inner.num-steps", "8", "--inner.desired-batch-size", "8", "--outer.num-steps", "2"),
    *("--outer.runs", "2", "--outer.validation-runs", "2", "--outer.validate-every", "1"),
    *("--data.num-train", "64", "--data.num-desired", "32"),
    *("--data.num-validation", "32", "--data.num-test", "32"),
)
"""Of a run of noisy_labels in seconds."""


class Result(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@contextlib.contextmanager
def settings_of_a_user():
    """JAX's settings and the warnings as in a process of its own."""
    first = jax.default_device(jax.devices()[0])  # of the eight of the test process
    no_x64, ranks = jax.enable_x64(False), jax.numpy_rank_promotion("allow")
    with first, no_x64, ranks, warnings.catch_warnings():
        warnings.simplefilter("default")
        yield


def read_metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def call(*arguments) -> Result:
    """A command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), settings_of_a_user():
        try:
            code = cli.call([str(argument) for argument in arguments])
        except SystemExit as end:  # how tyro ends on help and on a wrong flag
            code = end.code
    return Result(code, out.getvalue(), err.getvalue())


def assert_same_steps(workdir: Path, expected: Path, *free: str) -> None:
    """The same bytes of the policy, and the same metrics but for the seconds and what is `free`."""
    assert (workdir / "policy.npy").read_bytes() == (expected / "policy.npy").read_bytes()
    left_out = dict.fromkeys(("seconds", *free))
    for line, other in zip(*map(read_metrics, (workdir, expected)), strict=True):
        assert line | left_out == other | left_out


def run_without_report(workdir: Path, *flags) -> Path:
    """The run of a command line without its report, which takes longer than so small a run."""
    arguments = [*SMALL, *map(str, flags)]
    with settings_of_a_user():
        config = tyro.cli(PerceptronConfig, args=arguments)
        with contextlib.redirect_stderr(io.StringIO()) as log:
            engine.run(
                Experiment(perceptron.TASK, config), workdir, lambda root: root, engine.execute
            )
    (workdir / "log.txt").write_text(log.getvalue())
    return workdir


def start(*arguments, stderr=subprocess.PIPE, **environment: str) -> subprocess.Popen:
    """A command line in a process, and a process group, of its own."""
    flags = os.environ.get("XLA_FLAGS", "").replace(FAST_COMPILATION, "").strip()
    return subprocess.Popen(
        [sys.executable, "-m", "lljax", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags} | environment,
        start_new_session=True,
    )


def run_process(*arguments) -> Result:
    """A command line in a process of its own, to its end."""
    with start(*arguments) as process:
        out, err = process.communicate()
    return Result(process.returncode, out, err)


def start_to_be_killed(*arguments, stderr=subprocess.PIPE) -> subprocess.Popen:
    """As `start`; a process that is killed must not leave half an entry in the tests' cache."""
    return start(*arguments, stderr=stderr, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="1e9")


def kill_when(condition, *arguments) -> None:
    """Starts a command and kills it, with SIGKILL, once the condition holds."""
    with start_to_be_killed(*arguments) as process:
        while not condition():
            assert process.poll() is None
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
        process.wait()


def assert_refused(result: Result, *words: str, status: int = 2) -> None:
    """One clear error and no traceback."""
    assert result.returncode == status, result.stderr
    assert "Traceback" not in result.stderr
    # tyro draws a box around its messages.
    message = " ".join(result.stderr.replace("│", " ").split())
    for word in words:
        assert word in message, result.stderr
