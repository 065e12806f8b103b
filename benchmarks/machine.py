"""What a figure was measured on, and how: device, versions, commit, peak memory, intervals."""

import contextlib
import ctypes
import datetime
import gc
import importlib.metadata
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import psutil

PACKAGES = ("jax", "jaxlib", "optax", "numpy", "equinox", "torch", "torchopt", "cvxpy")


def describe_machine() -> dict:
    """What belongs beside every table; plain values, for a JSON file."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "device": jax.devices()[0].device_kind,
        "processor": _processor(),
        "cores": num_cores(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
    }


def in_words(machine: dict) -> str:
    device = "" if machine["device"] == "cpu" else f"{machine['device']}, "
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{device}{machine['cores']} cores of {machine['processor']} (load {machine['load']} at "
        f"the start), Python {machine['python']}, {versions}; commit {machine['commit']}, "
        f"{machine['date']}"
    )


def matrix_product() -> tuple[Callable[[], jax.Array], float]:
    """A compiled square float32 product, the yardstick of arithmetic speed, and its FLOPs."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    matrix = jax.random.normal(jax.random.key(0), (size, size), "float32")
    product = jax.jit(lambda a: a @ a).lower(matrix).compile()
    return lambda: product(matrix), 2.0 * size**3


def num_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_host_devices() -> None:
    """Makes a CPU appear as one device a core (a power of two), before JAX starts its backend.

    The compiler runs a matrix-vector product on one core; with more devices all of them work.
    """
    jax.config.update("jax_num_cpu_devices", 1 << (num_cores().bit_length() - 1))


def seconds_of(call: Callable) -> float:
    started = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - started


def interleave(calls: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Seconds of every call, repeat by repeat, so that a slow moment hits all of them.

    One round before the first repeat warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            elapsed = seconds_of(call)
            if repeat:
                seconds[name].append(elapsed)
    return seconds


def span(values: Sequence[float]) -> str:
    """min / median / max."""
    three = (min(values), statistics.median(values), max(values))
    return " / ".join(f"{value:.3g}" if value < 1000 else f"{value:.0f}" for value in three)


def ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median of the ratios, pair by pair."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


class PeakMemory:
    """The growth of this process's memory in a `with` block, in bytes.

    On Linux the high-water mark is reset at the start; elsewhere it may hide a smaller peak. On a
    GPU it is the device's peak instead, PyTorch's in a process that has imported it, and JAX's
    since that process began.
    """

    def __enter__(self):
        gc.collect()
        _take_pages_from_system(above=128 * 1024)
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        if cuda := _torch_cuda():
            cuda.reset_peak_memory_stats()
        self._before = psutil.Process().memory_info().rss
        return self

    def __exit__(self, *_):
        stats = jax.devices()[0].memory_stats()
        if cuda := _torch_cuda():
            self.bytes = cuda.max_memory_allocated()
        elif stats and "peak_bytes_in_use" in stats:
            self.bytes = stats["peak_bytes_in_use"]
        else:
            self.bytes = max(0, _high_water_mark() - self._before)
        _take_pages_from_system(above=32 * 1024**2)  # the most that glibc allows by itself


def _take_pages_from_system(above: int) -> None:
    """For larger pieces; without it, what was freed before is used again and hides a growth.

    It gives back what is free, too. Only where the C library is glibc.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(-3, above)  # M_MMAP_THRESHOLD
        library.malloc_trim(0)


def _torch_cuda() -> Any:
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _high_water_mark() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """Of the code: the results that a benchmark has just written change nothing of it."""
    commit = _git("describe", "--always", "--abbrev=10")
    changed = _git("diff", "--name-only", "HEAD", "--", ":/", ":!results", ":!*.md")
    return f"{commit}-dirty" if changed else commit or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()
