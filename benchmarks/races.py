"""What `benchmarks.time_to_auc` lets compete: problems, methods with their rates, and recipes."""

from collections.abc import Callable
from typing import NamedTuple

import optax

import lljax


class Method(NamedTuple):
    optimizer: lljax.MetaOptimizer
    grow: float
    active_set: bool = False


class Race(NamedTuple):
    """One problem, and the recipes that set its marks."""

    recipe_steps: int
    recipes: dict[str, Callable]  # share of the outer steps done -> rate of the AUC's gradient
    steps: int  # outer steps of our methods
    methods: dict[str, Method]
    measured_steps: int  # T where the public code is measured


EXPONENTIATED = lljax.exponentiated_gradient
RACES = {
    "perceptron_paper": Race(
        recipe_steps=500,
        recipes={
            "public recipe, 0.001 falling": lambda done: 0.001 * (1 - done),
            "public recipe, 0.01 of the text": lambda done: 0.01,
        },
        steps=40,
        methods={
            "projected gradient": Method(lljax.projected_gradient(0.2), 1.2),
            "exponentiated gradient": Method(EXPONENTIATED(0.3), 1.2),
            "exponentiated gradient, momentum": Method(EXPONENTIATED(0.1, momentum=0.8), 1.2),
        },
        measured_steps=100,
    ),
    "transformer_small": Race(
        recipe_steps=20,
        recipes={"public recipe, 0.4 falling": lambda done: 0.4 * (1 - done)},
        steps=6,
        methods={
            "projected gradient": Method(lljax.projected_gradient(0.4), 1.1),
            "exponentiated gradient": Method(EXPONENTIATED(0.3), 1.1),
            "exponentiated gradient, smoothed": Method(
                lljax.smoothed(EXPONENTIATED(optax.linear_schedule(0.6, 0.1, 6)), passes=8), 1.0
            ),
            "exponentiated gradient, smoothed, momentum": Method(
                lljax.smoothed(
                    EXPONENTIATED(optax.linear_schedule(0.5, 0.1, 6), momentum=0.3), passes=8
                ),
                1.0,
            ),
            "exponentiated gradient, momentum": Method(EXPONENTIATED(0.3, momentum=0.5), 1.1),
            "exponentiated gradient, momentum, active set": Method(
                EXPONENTIATED(0.3, momentum=0.5, cutoff=0.1), 1.1, active_set=True
            ),
        },
        measured_steps=8,
    ),
}
