"""Tests run in float64 on strict settings; what is promised in float32 asks for it by dtype."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

# Most of the tests' time is compilation. What is compiled is kept for the next run, and for the
# processes that tests start: so before JAX is imported.
CACHE = Path(__file__).parent.parent / ".cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
CACHE_BYTES = 2**30

import jax  # noqa: E402
import pytest  # noqa: E402
from command_line import FAST_COMPILATION, RUN, Result, call  # noqa: E402
from texts import DOCUMENTS  # noqa: E402
from workdirs import forge_language_model, forge_perceptron  # noqa: E402

from lljax.data.text import TextSettings  # noqa: E402
from lljax.report.style import STYLE  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)  # for tests/test_devices.py; the others use the first
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
STYLE["savefig.dpi"] = 40  # a report takes half as long, and its figures are the same


def pytest_configure(config):
    if hasattr(config, "workerinput"):
        return  # a worker has what was set before it was started
    limit_cache()
    if "not slow" in config.option.markexpr and knows_fast_compilation():
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} {FAST_COMPILATION}".strip()


def knows_fast_compilation():
    """XLA ends the process when it does not know a flag, so another process is asked."""
    environment = os.environ | {"XLA_FLAGS": FAST_COMPILATION, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", "import jax; jax.devices()"]
    return subprocess.run(command, env=environment, capture_output=True).returncode == 0


def limit_cache():
    """JAX's own limit reads the whole folder at every entry."""
    if CACHE.is_dir() and sum(file.stat().st_size for file in CACHE.iterdir()) > CACHE_BYTES:
        shutil.rmtree(CACHE)


# A worker takes a file at a time, so that fixtures and compiled programs are made once: the long
# ones first, and the short ones fill what is left.
LONG = ("kills", "loss_auc", "zero_weight", "language_model", "transformer", "run", "engine")


@pytest.hookimpl
def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))
        # Two workers may write and read an entry at once; then it is compiled once more.
        item.add_marker(pytest.mark.filterwarnings("default:Error .*persistent compilation cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[Path, Result]:
    """The workdir of a run in this process, and what it printed."""
    workdir = tmp_path_factory.mktemp("runs") / "finished"
    result = call(*RUN, workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


@pytest.fixture
def settings(tmp_path):
    """Makes settings for a text file with the documents given, with a cache of the test's own."""

    def make(documents=DOCUMENTS, **changes):
        path = tmp_path / "text.txt"
        path.write_text("<|endoftext|>".join(documents), encoding="utf-8")
        defaults = {"path": str(path), "vocab_size": 200, "context": 16}
        return TextSettings(**(defaults | {"cache_dir": str(tmp_path / "cache")} | changes))

    return make


@pytest.fixture
def workdir(tmp_path):
    """A synthetic workdir of the Perceptron."""
    return forge_perceptron().write(tmp_path)


@pytest.fixture
def lm_workdir(tmp_path):
    """The same of a language model."""
    return forge_language_model().write(tmp_path)
