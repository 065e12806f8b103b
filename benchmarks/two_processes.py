"""A run of several processes on this machine, with deaths: the story that the slow test checks.

    python -m benchmarks.two_processes

Processes meet on the loopback device, each with some host devices, as on hosts of a cluster. One is
killed or stopped in the middle of a run; the others end, and the same command continues.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

RUN = (
    *("--inner.num-steps", "60", "--outer.num-steps", "8", "--data.dim", "16"),
    *("--data.num-train", "64", "--data.num-desired", "32"),
    *("--data.num-validation", "128", "--data.num-test", "128"),
    *("--outer.checkpoint-seconds", "0"),
)
LIMIT = 60.0  # seconds in which a cluster that has lost a process ends


class Cluster:
    """The processes of one run."""

    def __init__(
        self,
        workdir: Path,
        num_processes: int,
        num_devices: int,
        *flags: str,
        config: str = "perceptron",
        settings: Sequence[str] = RUN,
        own: Mapping[int, Sequence[str]] = {},
    ):
        """Starts them; each has `num_devices` host devices, and those in `own` further flags."""
        address = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "lljax", "run", config, *settings, *flags]
        self.processes, self._logs = [], []
        for number in range(num_processes):
            environment = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(num_devices),
                "JAX_PLATFORMS": "cpu",
                "PYTHONUNBUFFERED": "1",
            }
            if num_processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": address,
                    "JAX_NUM_PROCESSES": str(num_processes),
                    "JAX_PROCESS_ID": str(number),
                }
            log = workdir.with_name(f"{workdir.name}.{number}.log")
            self._logs.append(log)
            with log.open("wb") as file:
                line = [*command, "--workdir", str(workdir), *own.get(number, ())]
                self.processes.append(
                    subprocess.Popen(line, stdout=file, stderr=file, env=environment)
                )

    def log(self, number: int) -> str:
        return self._logs[number].read_text(encoding="utf-8", errors="replace")

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Until the first process has said it."""
        deadline = time.monotonic() + seconds
        while text not in self.log(0):
            if time.monotonic() > deadline or self.processes[0].poll() is not None:
                raise RuntimeError(f"{text!r} was not said:\n{self.log(0)}\n{self.log(1)}")
            time.sleep(0.02)

    def signal(self, number: int, which: signal.Signals) -> None:
        os.kill(self.processes[number].pid, which)

    def wait(self, numbers: Sequence[int] | None = None, seconds: float = 600) -> list[int]:
        """The exit statuses of these processes; all when None. The others are killed then."""
        deadline = time.monotonic() + seconds
        chosen = range(len(self.processes)) if numbers is None else numbers
        try:
            return [self.processes[n].wait(max(0.1, deadline - time.monotonic())) for n in chosen]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()

    def last_lines(self) -> list[str]:
        """What `lljax` said last, by process."""
        lines = [
            [line for line in self.log(n).splitlines() if line.startswith("lljax: ")]
            for n in range(len(self.processes))
        ]
        return [" | ".join(said) for said in lines]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def finish(
    workdir: Path, num_processes: int, num_devices: int, *flags: str, **options: Any
) -> np.ndarray:
    """Runs or continues to the end; the policy. `options` of `Cluster`."""
    cluster = Cluster(workdir, num_processes, num_devices, *flags, **options)
    statuses = cluster.wait()
    if any(statuses):
        raise RuntimeError(f"{statuses}:\n" + "\n".join(cluster.last_lines()))
    return np.load(workdir / "policy.npy")


def disturb(
    workdir: Path, number: int, which: signal.Signals
) -> tuple[list[int], list[str], float]:
    """Two processes, one of which gets a signal within an outer step.

    Returns:
      (the exit statuses of those that live on, their last lines, seconds until they had ended).
    """
    cluster = Cluster(workdir, 2, 2)
    cluster.wait_for("outer 3/8")
    started = time.monotonic()
    cluster.signal(number, which)
    others = [n for n in range(2) if n != number]
    statuses = cluster.wait(others, seconds=2 * LIMIT)
    took = time.monotonic() - started
    return statuses, [cluster.last_lines()[n] for n in others], took


def auc(workdir: Path) -> float:
    """Of the desired losses under the best policy."""
    losses = np.load(workdir / "analysis.npz")["optimized_desired_losses"]
    return float(losses[1:].mean())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        one = finish(root / "one", 1, 4)
        two = finish(root / "two", 2, 2)
        print(f"2 x 2 devices against 1 x 4: {np.abs(two - one).max():.1e} in the policy")
        again = finish(root / "again", 2, 2)
        print(f"repeated: {'the same bits' if np.array_equal(two, again) else 'OTHER BITS'}")
        for which in (signal.SIGKILL, signal.SIGSTOP):
            for number, name in ((1, "worker"), (0, "coordinator")):
                workdir = root / f"{which.name}{number}"
                statuses, lines, took = disturb(workdir, number, which)
                print(f"\n{which.name} of the {name}: status {statuses}, after {took:.0f} s")
                print(f"  {lines[0]}")
                policy = finish(workdir, 2, 2)
                same = "the same bits" if np.array_equal(two, policy) else "OTHER BITS"
                print(f"  continued by the same command: {same}")
        for processes, devices in ((4, 2), (1, 1)):
            workdir = root / f"elastic{processes}"
            disturb(workdir, 1, signal.SIGKILL)
            finish(workdir, processes, devices)
            difference = abs(auc(workdir) - auc(root / "two"))
            print(
                f"\nbegun on 2 x 2, ended on {processes} x {devices}: AUC within {difference:.1e}"
            )


if __name__ == "__main__":
    main()
