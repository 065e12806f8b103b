"""What `import lljax` costs a program that embeds it."""

import statistics
import subprocess
import sys
import time

import pytest

HEAVY = (
    "tensorflow_datasets",
    "orbax",
    "flax",
    "matplotlib",
    "jinja2",
    "tyro",
    "tqdm",
    "constriction",
)


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_the_core_loads_no_heavy_package():
    code = f"import sys, lljax; print([name for name in {HEAVY} if name in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_import_leaves_jax_alone():
    """No backend is started and no setting changed."""
    code = (
        "import jax; before = dict(jax.config.values); import lljax; "
        "assert dict(jax.config.values) == before; "
        "from jax._src import xla_bridge; assert not xla_bridge._backends"
    )
    run_python(code)


@pytest.mark.slow
def test_import_time():
    """At most 1.15 times that of jax and optax."""
    ratios = []
    for _ in range(7):
        seconds = []
        for modules in ("jax, optax, lljax", "jax, optax"):
            start = time.perf_counter()
            run_python(f"import {modules}")
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    assert statistics.median(ratios) <= 1.15, ratios
