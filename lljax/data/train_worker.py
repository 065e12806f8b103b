"""The training of a sentencepiece model, also as a process of its own.

One call into C trains it, which Ctrl-C cannot end; a process can be ended. That process runs this
file, so that it has to import nothing but sentencepiece:

    python -P train_worker.py PARENT VOCAB_SIZE BYTE_FALLBACK < lines > model
"""

import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable

PAD = 0
UNK = 1


def train(lines: Iterable[str], vocab_size: int, byte_fallback: bool) -> bytes:
    """A byte-pair model of `vocab_size` tokens, or of fewer if the lines have fewer.

    Raises:
      RuntimeError: there is nothing in the lines that sentencepiece trains on.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        byte_fallback=byte_fallback,
        character_coverage=1.0,  # below 0.98 is refused, so rare ones are left out of the lines
        # Text comes back as it was: nothing is normalised, trimmed or put in front.
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["\n"],
        max_sentence_length=1 << 16,
        pad_id=PAD,
        unk_id=UNK,
        bos_id=-1,
        eos_id=-1,
        minloglevel=2,
    )
    return model.getvalue()


def main(parent: int, vocab_size: int, byte_fallback: bool) -> None:
    """Reads lines of UTF-8 from stdin and writes the model to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it here too; the parent decides

    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    lines = (line[:-1].decode() for line in sys.stdin.buffer)
    sys.stdout.buffer.write(train(lines, vocab_size, byte_fallback))
    sys.stdout.buffer.flush()
    os._exit(0)  # the other thread is at work


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), bool(int(sys.argv[3])))
