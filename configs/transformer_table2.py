"""The paper's Table 2: four sizes of the language model's task, and what the policy gains in each.

    lljax sweep transformer_table2

T, N and |V| grow together. Every row is a run as in transformer.py, in a folder of its own below
--workdir; a sweep that was stopped goes on where it was. It ends in the table: acceleration ratio
and the relative change of the scaling law's B and beta. `lljax plan transformer
--inner.num-steps 1000 --data.num-train 4096 --data.vocab-size 4000` tells the cost of the first
row; the last is 64 times that.

Expect (the paper's figures): AR 2.16, 2.31, 2.41, 2.48. Not run at full size by us yet.
"""

import dataclasses
from pathlib import Path

from lljax.tasks import ExperimentConfig
from lljax.tasks.config_file import load_config

ROWS = ((1000, 2**12, 4000), (2000, 2**13, 4500), (4000, 2**14, 5000), (8000, 2**15, 6000))


def get_configs() -> dict[str, ExperimentConfig]:
    base = load_config(Path(__file__).with_name("transformer.py"))
    replace = dataclasses.replace
    return {
        f"T{num_steps}": replace(
            base,
            inner=replace(base.inner, num_steps=num_steps),
            data=replace(base.data, num_train=num_train, vocab_size=vocab_size),
        )
        for num_steps, num_train, vocab_size in ROWS
    }
