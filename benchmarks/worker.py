"""One contender in a process of its own, which does one meta-gradient at a time when told to.

Its peak memory is then its own. It speaks lines of JSON on standard input and output, and is
started by `benchmarks.meta_gradient`.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

PRODUCT = "matrix product"


class WorkerEndedError(Exception):
    """A worker is gone; the message says which, and how."""


class Worker:
    """The parent's end of a worker process."""

    def __init__(self, job: dict, root: Path | None = None):
        """`job`: contender, problem, sizes, sources and float64, as `serve` reads them.

        `root`: the checkout of lljax that it runs; this process's when None.
        """
        self.name = job["contender"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)} if root else None,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def read(self) -> dict:
        """The next answer.

        Raises:
          WorkerEndedError: the process has ended instead.
        """
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            cause = " (killed: out of memory?)" if status == -signal.SIGKILL else ""
            raise WorkerEndedError(f"{self.name}: its process ended with status {status}{cause}")
        return json.loads(line)

    def ask(self, **question) -> dict:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `read` says what has happened
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        return self.read()

    def close(self) -> None:
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # it may be gone
                    pipe.close()
        self._process.wait()


def serve(job: dict, answers) -> None:
    import jax
    import numpy as np

    from benchmarks.contender import MissingError
    from benchmarks.contenders import CONTENDERS, HOST_DEVICES
    from benchmarks.machine import PeakMemory, matrix_product, seconds_of, use_host_devices
    from benchmarks.problems import PROBLEMS

    def answer(**message):
        print(json.dumps(message), file=answers, flush=True)

    if job["contender"].endswith(HOST_DEVICES):
        use_host_devices()
    if job["contender"] == PRODUCT:
        call, flops = matrix_product()
        answer(flops=flops)
    else:
        problem = PROBLEMS[job["problem"]](**job["sizes"])
        if job.get("float64"):
            jax.config.update("jax_enable_x64", True)
            problem = problem.in_float64()
        sources = {name: Path(path) for name, path in job.get("sources", {}).items()}
        build = CONTENDERS[job["contender"]]
        try:
            contender = build(problem, sources)
        except MissingError as missing:
            answer(missing=str(missing))
            return
        call = contender.gradient
        answer(
            compile_seconds=contender.compile_seconds,
            temporary_bytes=contender.temporary_bytes,
        )
    for line in sys.stdin:
        question = json.loads(line)
        if "save" in question:
            with PeakMemory():  # this call uses what compiling has left, and hides some of its peak
                jax.block_until_ready(call())
            with PeakMemory() as peak:
                gradient = jax.block_until_ready(call())
            np.save(question["save"], np.asarray(gradient, np.float64))
            answer(peak_bytes=peak.bytes)
        else:
            answer(seconds=seconds_of(call))


if __name__ == "__main__":
    # What a framework prints must not get between the answers.
    with os.fdopen(os.dup(1), "w") as channel:
        os.dup2(2, 1)
        serve(json.loads(sys.argv[1]), channel)
