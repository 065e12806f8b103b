"""A process that is warm: it answers command lines one by one, as many processes would.

Most of a small run's time is importing and compiling, so hundreds of damaged workdirs are tried in
one process. Yet it is a process of its own: one that crashes is seen and replaced, and one that
hangs is ended.
"""

import contextlib
import gc
import json
import os
import select
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from command_line import ROOT

from adversary.processes import SECONDS, environment
from adversary.verdicts import Result

_PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
_COMMANDS = 150  # then a new process, so that what JAX keeps of each run does not add up


class Server:
    """Runs command lines, and readings of a text, in a warm process."""

    def __init__(self, folder: Path):
        """`folder` is for what the process prints."""
        self._out, self._err = folder / "stdout", folder / "stderr"
        self._process: subprocess.Popen | None = None
        self._answered = 0

    def run(self, *arguments: object, figures: bool = True) -> Result:
        """A command line of lljax; without `figures`, which take longer than so small a run."""
        strings = [str(argument) for argument in arguments]
        return self._ask({"arguments": strings, "figures": figures})

    def read_text(self, **settings: Any) -> Result:
        """`load_sequences` of these settings of a text; stdout is a digest of what it gives."""
        return self._ask({"settings": settings})

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._answers):
                stream.close()
            self._process = None

    def _ask(self, request: dict[str, Any]) -> Result:
        if self._answered == _COMMANDS:
            self.close()
        if self._process is None:
            self._start()
        assert self._process is not None
        for path in (self._out, self._err):
            os.truncate(path, 0)
        self._answered += 1
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answered, _, _ = select.select([self._answers], [], [], SECONDS)
        answer = self._answers.readline() if answered else ""
        code = int(answer) if answer else None
        if not answer:
            if answered:
                code = self._process.wait()  # it has crashed
            self.close()
        # Whatever a damaged file brings to the terminal.
        out, err = (path.read_text(errors="replace") for path in (self._out, self._err))
        return Result(code, out, err)

    def _start(self) -> None:
        read, write = os.pipe()
        with self._out.open("ab") as out, self._err.open("ab") as err:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "adversary.server", str(write)],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                text=True,
                cwd=ROOT,
                env=environment(PYTHONPATH=_PATH),
                pass_fds=[write],
            )
        os.close(write)
        self._answers = os.fdopen(read)
        self._answered = 0


def _answer(request: dict[str, Any]) -> int:
    """The exit status that a process would have."""
    try:
        if "settings" in request:
            return _read_text(request["settings"])
        from lljax import cli
        from lljax.report import figures

        with _only(figures, figures.FIGURES if request["figures"] else ()):
            return cli.call(request["arguments"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except BaseException:  # what ends a process of its own with a traceback
        traceback.print_exc()
        return 1


@contextlib.contextmanager
def _only(module: Any, figures: tuple) -> Iterator[None]:
    """Reports have these figures and no others."""
    all_figures, module.FIGURES = module.FIGURES, figures
    try:
        yield
    finally:
        module.FIGURES = all_figures


def _read_text(settings: dict[str, Any]) -> int:
    import hashlib

    from adversary import catalogue  # noqa: F401 - its data set is found by name
    from lljax.data.sequences import load_sequences
    from lljax.data.text import TextSettings
    from lljax.errors import UserError

    try:
        sequences = load_sequences(TextSettings(**settings))
    except UserError as error:
        print(f"lljax: {error}", file=sys.stderr)
        return 2
    digest = hashlib.sha256()
    for part in (sequences.tokens.tobytes(), sequences.document.tobytes()):
        digest.update(part)
    digest.update(repr(sequences.tokenizer).encode())
    print(sequences.tokens.shape, digest.hexdigest())
    return 0


def _serve(answers: int) -> None:
    from lljax.report.style import STYLE

    STYLE["savefig.dpi"] = 40  # a report takes half as long, and its figures are the same
    with os.fdopen(answers, "w") as file:
        for line in sys.stdin:
            code = _answer(json.loads(line))
            gc.collect()  # what it left says its last words now, and not in the next command
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError):
                    stream.flush()
            print(code, file=file, flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
