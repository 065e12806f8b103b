"""Tasks: each is a config type and a function from such a config to a `Problem`.

A task of your own needs no change here: a config file that defines `get_config()` and `get_task()`
is enough (examples/own_task.py). A built-in one is a module with a `TASK`, and a word in
`config_file.TASKS`.
"""

from lljax.tasks.config import (
    ExperimentConfig,
    InnerConfig,
    OuterConfig,
    PolicyConfig,
    inner_optimizer,
    meta_optimizer,
)
from lljax.tasks.problem import Experiment, Problem, Task

__all__ = [
    "Experiment",
    "ExperimentConfig",
    "InnerConfig",
    "OuterConfig",
    "PolicyConfig",
    "Problem",
    "Task",
    "inner_optimizer",
    "meta_optimizer",
]
