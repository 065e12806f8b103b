"""A dense policy that is large against its model: on the devices, and in the hosts' memory.

    python -m benchmarks.large_policy

Peak memory of every process, less what it shares with others such as mapped files, and seconds of
an outer step. On a CPU a device's memory is the host's; `lljax plan` counts the device's part.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from benchmarks.two_processes import Cluster
from lljax.artifacts.results import load_results

STEPS, EXAMPLES = 400, 100_000
RUN = (
    *("--inner.num-steps", str(STEPS), "--data.num-train", str(EXAMPLES), "--data.dim", "4"),
    *("--data.num-desired", "64", "--data.num-validation", "64", "--data.num-test", "64"),
    *("--outer.num-steps", "3"),
)


def measure(workdir: Path, num_processes: int, *flags: str) -> tuple[list[float], np.ndarray]:
    """(peak bytes of each process, seconds of the outer steps)."""
    cluster = Cluster(workdir, num_processes, 1, *flags, settings=RUN)
    processes = [psutil.Process(process.pid) for process in cluster.processes]
    peaks = [0.0] * num_processes
    while any(process.poll() is None for process in cluster.processes):
        for number, process in enumerate(processes):
            try:
                memory = process.memory_info()
            except psutil.Error:
                continue  # it has ended
            peaks[number] = max(peaks[number], memory.rss - memory.shared)
        time.sleep(0.02)
    if any(cluster.wait()):
        raise RuntimeError("\n".join(cluster.last_lines()))
    return peaks, load_results(workdir).metrics["seconds"]


def main() -> None:
    print(f"policy {STEPS} x {EXAMPLES}: {4 * STEPS * EXAMPLES / 1e6:.0f} MB")
    with tempfile.TemporaryDirectory() as folder:
        for num_processes in (1, 2):
            policies = []
            for where in ("device", "host"):
                workdir = Path(folder) / f"{where}{num_processes}"
                peaks, seconds = measure(workdir, num_processes, "--policy.memory", where)
                policies.append(np.load(workdir / "policy.npy"))
                print(
                    f"{num_processes} processes, policy.memory {where}: peak "
                    f"{', '.join(f'{peak / 1e6:.0f} MB' for peak in peaks)}; outer steps "
                    f"{', '.join(f'{value:.1f} s' for value in seconds)}"
                )
            print(f"the policies differ by {np.abs(policies[1] - policies[0]).max():.1e}")


if __name__ == "__main__":
    main()
