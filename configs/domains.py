"""How much of each domain of a corpus to train on, for what you want a model to be good at.

    lljax run domains --data.path corpus.jsonl --data.group domain --data.desired-path FILE
    lljax run domains --data.path FOLDER --data.group folder --data.desired-path FILE

One weight for each group of documents: a field of their records, or the name of their file or
folder. Few weights are found in few outer steps. Without data of your own: the packages of Python's
standard library, and the first half of asyncio as what is wanted.

Cost: 3 minutes on two CPU cores.
"""

import dataclasses
from pathlib import Path

from lljax.tasks import ExperimentConfig, OuterConfig, PolicyConfig
from lljax.tasks.config_file import load_config


def get_config() -> ExperimentConfig:
    base = load_config(Path(__file__).with_name("curate.py"))
    outer = OuterConfig(
        num_steps=8, learning_rate=0.4, momentum=0.5, train_share=0.0, runs=2, validation_runs=2
    )
    # A group has many sequences: what is drawn seldom is known well enough.
    policy = PolicyConfig(family="group", explore=0.1)
    data = dataclasses.replace(base.data, num_train=None)
    return dataclasses.replace(base, policy=policy, outer=outer, data=data)
