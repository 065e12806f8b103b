"""Tests run in float64 on strict settings; what is promised in float32 asks for it by dtype."""

import os
import shutil
import tempfile

# Most of the tests' time is compilation, and many of them start the same program in a process of
# its own; they share what they compiled. Before JAX is imported, and for those processes too.
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWN_CACHE = CACHE not in os.environ
if OWN_CACHE:
    os.environ[CACHE] = tempfile.mkdtemp(prefix="lljax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(10**10)  # with a limit come locks

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.filterwarnings("error"))


def pytest_unconfigure():
    if OWN_CACHE:  # in the process that made it
        shutil.rmtree(os.environ[CACHE], ignore_errors=True)
