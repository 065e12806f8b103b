"""A task of your own, a Flax NNX model on your own arrays: `lljax run examples/own_task.py`.

Which of four strokes does a noisy picture show? 40 % of the training labels are wrong, and 128
more pictures with the right label tell which to trust.
"""

import dataclasses

import numpy as np
import optax
from flax import nnx

from lljax import tasks


@dataclasses.dataclass(frozen=True)
class StrokesConfig(tasks.ExperimentConfig):
    """Pictures of four strokes, some with a wrong label."""

    inner: tasks.InnerConfig = tasks.InnerConfig(num_steps=100, learning_rate=0.1)
    outer: tasks.OuterConfig = tasks.OuterConfig(num_steps=15, train_share=0.0)
    num_train: int = 256
    """N, training pictures."""
    wrong_labels: float = 0.4
    """Share of them with a wrong label."""
    width: int = 32
    """Of the hidden layer."""


class Classifier(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, width, rngs=rngs)
        self.scores = nnx.Linear(width, 4, rngs=rngs)

    def __call__(self, pictures):
        return self.scores(nnx.gelu(self.hidden(pictures.reshape(-1, 64))))


def draw_pictures(rng: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    strokes = np.zeros((4, 8, 8))
    strokes[0, 3], strokes[1, :, 3], strokes[2], strokes[3] = 1, 1, np.eye(8), np.eye(8)[::-1]
    labels = rng.integers(4, size=count)
    pictures = strokes[labels] + rng.normal(0, 0.6, (count, 8, 8))
    return {"x": pictures.astype(np.float32), "y": labels.astype(np.int32)}


def build(config: StrokesConfig) -> tasks.Problem:
    rng = np.random.default_rng(config.seed)
    sizes = config.num_train, 128, 256, 999
    train, desired, validation, test = (draw_pictures(rng, count) for count in sizes)
    wrong = rng.random(config.num_train) < config.wrong_labels
    train["y"] = (train["y"] + wrong * rng.integers(1, 4, wrong.size, np.int32)) % 4
    graph, params = nnx.split(Classifier(config.width, nnx.Rngs(config.seed)), nnx.Param)

    def loss_fn(params, batch):  # one loss an example: [B]
        scores = nnx.merge(graph, params)(batch["x"])
        return optax.softmax_cross_entropy_with_integer_labels(scores, batch["y"])

    return tasks.Problem(
        loss_fn=loss_fn,
        optimizer=tasks.inner_optimizer(config.inner),
        params=params,
        train=train,
        desired=desired,
        validation=validation,
        test=test,
        num_symbols=4,
        perturbed=wrong,
        show_example=lambda n: ((train["x"][n] + 1) / 3, f"label {train['y'][n]}"),
        facts=("4 classes",),
    )


def get_config() -> StrokesConfig:
    return StrokesConfig()


def get_task() -> tasks.Task:
    return tasks.Task("strokes", StrokesConfig, build)
