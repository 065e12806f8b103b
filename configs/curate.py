"""Which documents of a corpus to train on, for what you want a model to be good at.

    lljax run curate --data.path FOLDER --data.desired-path FILE
    lljax export runs/curate --format jsonl
    lljax score runs/curate --data.path more.parquet
    lljax transfer runs/curate

`--data.path` is your corpus, `--data.desired-path` a little text of the kind that you want: each a
file, a folder, a glob in quotes, a URL, or tfds:NAME. A small language model is trained on batches
of the corpus; the weights of its documents are found over runs that are drawn anew each time, and a
scorer is fitted to them, which weighs documents that no run has seen. Without data of your own: the
packages of Python's standard library, and the first half of asyncio as what is wanted.

Cost: 6 minutes on two CPU cores, most of it training of the small model.
"""

import sysconfig

from lljax.tasks import InnerConfig, OuterConfig, PolicyConfig
from lljax.tasks.text import TextData, TransformerConfig, TransformerModel

STANDARD_LIBRARY = sysconfig.get_path("stdlib")


def get_config() -> TransformerConfig:
    return TransformerConfig(
        inner=InnerConfig(
            num_steps=100,
            learning_rate=0.02,
            optimizer="adamw",
            schedule="warmup_cosine",
            batch_size=32,
            desired_batch_size=32,
        ),
        outer=OuterConfig(num_steps=8, learning_rate=0.4, momentum=0.5, train_share=0.0),
        policy=PolicyConfig(family="scorer"),
        # With relu, or with small embeddings before a norm, training is rough at this rate and its
        # gradient predicts nothing: see `lljax check`.
        model=TransformerModel(
            width=32, num_layers=1, num_heads=4, initialization="torch", activation="gelu"
        ),
        data=TextData(
            path=f"{STANDARD_LIBRARY}/*/*.py",
            desired_path=f"{STANDARD_LIBRARY}/asyncio/[a-p]*.py",
            group="folder",
            vocab_size=512,
            context=32,
            num_train=8192,
            num_desired=None,
            num_validation=None,
            num_test=None,
        ),
    )
