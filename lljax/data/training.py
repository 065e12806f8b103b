"""Training of a tokenizer that shows progress and ends with Ctrl-C, however large the text is."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from lljax.data import train_worker
from lljax.data.errors import TextError
from lljax.data.progress import Progress

_SMALL = 2_000_000  # characters that are trained on within some tenths of a second


def train_model(
    lines: Iterator[str], characters: int, vocab_size: int, byte_fallback: bool
) -> bytes:
    """A sentencepiece model of `vocab_size` tokens, or of fewer if the text has fewer.

    Args:
      lines: what it is trained on, without line ends.
      characters: how many there are in all, about.
      vocab_size: with the special tokens.
      byte_fallback: whether there are pieces for the 256 bytes.

    Raises:
      TextError: nothing in the lines can be trained on.
    """
    with Progress("training the tokenizer", characters, " characters") as progress:
        if characters <= _SMALL or not sys.executable:
            return _train_here(lines, vocab_size, byte_fallback)
        return _train_in_a_process(lines, vocab_size, byte_fallback, progress)


def _train_here(lines: Iterator[str], vocab_size: int, byte_fallback: bool) -> bytes:
    interrupts: list[BaseException] = []

    def watched() -> Iterator[str]:
        try:
            yield from lines
        except BaseException as error:  # sentencepiece makes a RuntimeError of it
            interrupts.append(error)
            raise

    try:
        return train_worker.train(watched(), vocab_size, byte_fallback)
    except RuntimeError as error:
        if interrupts:
            raise interrupts[0] from None
        raise _untrainable() from error


def _train_in_a_process(
    lines: Iterator[str], vocab_size: int, byte_fallback: bool, progress: Progress
) -> bytes:
    numbers = (os.getpid(), vocab_size, int(byte_fallback))
    process = subprocess.Popen(
        [sys.executable, "-P", train_worker.__file__, *map(str, numbers)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    try:
        _send(lines, process.stdin, progress)
        process.stdin = None
        while True:
            try:
                model, _ = process.communicate(timeout=0.2)
                break
            except subprocess.TimeoutExpired:
                progress.advance(0)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        raise _untrainable()
    return model


def _send(lines: Iterator[str], pipe: Any, progress: Progress) -> None:
    try:
        for line in lines:
            pipe.write(f"{line}\n".encode())
            progress.advance(len(line))
        pipe.close()
    except BrokenPipeError:
        pass  # it ended on its own; its status tells


def _untrainable() -> TextError:
    return TextError(
        "data.path: no tokenizer can be trained on the text. Check that it is text, or give a "
        "sentencepiece model as data.tokenizer."
    )
