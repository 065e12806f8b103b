"""The AUC reached, on the desired and on held-out data, against outer steps and seconds.

    python -m benchmarks.time_to_auc [--problems perceptron_paper transformer_small]
        [--public-code LMOps/learning_law/src] [--inner-steps T] [--outer-steps M] [--out FOLDER]

Every policy optimiser of lljax, and the public recipe: projected gradient without step control,
each row projected by cvxpy, at the public code's rate, which falls linearly to 0, and for the
Perceptron also at the rate that the paper's text has. The recipe's policies are computed by lljax,
whose gradients equal the public code's (of the shorter run whose seconds are measured, the error of
both against float64 is printed); its seconds are those of the public code itself, measured on a few
inner steps and rows and extrapolated to all T: inner steps linearly, rows as if its pool of
processes kept every core busy. A recipe's mark is the lowest AUC that it reaches.

The objective is the desired AUC alone (no train share). Seconds count compilation and all
meta-gradients, trials that were taken back too, and not the held-out evaluation. Ours are of one
run; those of the recipe's meta-gradient are medians of three. How much sooner is method and code
together: the rates of our methods were found in other runs of the same problem (LOG.md), while the
recipe's are its own; what the search for a rate costs is in neither. The seconds of a meta-gradient
tell the code's part.
"""

import argparse
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax
from tqdm import tqdm

import lljax
from benchmarks import meta_gradient
from benchmarks.machine import num_cores
from benchmarks.output import Output, subplots
from benchmarks.public_code import PublicCode, add_public_code
from lljax.experiment.config import load_config
from lljax.experiment.problem import Problem, build_problem

CONFIGS = Path(__file__).parent.parent / "configs"
ROWS_PROJECTED = 4
CHECK_EVERY = 4  # outer steps from one look at all examples to the next, with an active set
OURS = "lljax"
PUBLIC = ("public code, one batch", "public code, its batches")


class Method(NamedTuple):
    optimizer: lljax.PolicyOptimizer
    grow: float
    active_set: bool = False


class Race(NamedTuple):
    """One problem, and the recipes that set its marks."""

    recipe_steps: int
    recipes: dict[str, Callable]  # share of the outer steps done -> rate of the AUC's gradient
    steps: int  # outer steps of our methods
    methods: dict[str, Method]
    sizes: dict  # of the problem for the public code, where T is a few steps


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
        sizes={"num_steps": 100},
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
        sizes={
            "num_steps": 8,
            "num_train": 512,
            "num_desired": 384,
            "width": 32,
            "num_layers": 1,
            "num_heads": 4,
            "context": 24,
            "vocab_size": 256,
        },
    ),
}


class Curve:
    """What one method reached, outer step by outer step; index 0 is the uniform policy.

    `seconds` is empty where they are not known. A method with step control has computed one
    meta-gradient more than its outer steps.
    """

    def __init__(self, auc: float, held_out: float):
        self.auc, self.held_out, self.seconds = [auc], [held_out], [0.0]

    def add(self, auc: float, held_out: float, seconds: float | None) -> None:
        self.auc.append(auc)
        self.held_out.append(held_out)
        self.seconds = [] if seconds is None else [*self.seconds, self.seconds[-1] + seconds]


class Track:
    """A problem as the race runs it: the desired AUC alone, attention as in the public code."""

    def __init__(self, name: str, num_steps: int | None):
        config = load_config(CONFIGS / f"{name}.py")
        if num_steps:
            inner = dataclasses.replace(config.inner, num_steps=num_steps)
            config = dataclasses.replace(config, inner=inner)
        outer = dataclasses.replace(config.outer, train_share=0.0)
        config = dataclasses.replace(config, outer=outer)
        if config.task == "transformer":
            model = dataclasses.replace(config.model, attention_scale="width")
            config = dataclasses.replace(config, model=model)
        self.task, self.inner = config.task, config.inner
        self.problem: Problem = build_problem(config)
        problem = self.problem
        self.start = lljax.uniform_policy(config.inner.num_steps, problem.num_train)
        self.data = problem.params, problem.train, problem.desired
        evaluate = jax.jit(lambda *arguments: self.loss_auc()(*arguments)[0])
        self._held_out = lambda policy: float(evaluate(policy, *self.data[:2], problem.validation))
        self._gradient = jax.jit(jax.value_and_grad(self.loss_auc(), has_aux=True))
        (auc, _), _ = self._gradient(self.start, *self.data)
        self._uniform = float(auc), self._held_out(self.start)

    def loss_auc(self, weightless: lljax.types.Weightless = "full"):
        microbatch_size = self.inner.microbatch_size
        if weightless != "full":
            microbatch_size = microbatch_size // 2  # the unit that can be left out
        return lljax.build_loss_auc(
            self.problem.loss_fn,
            self.problem.optimizer,
            microbatch_size=microbatch_size,
            weightless=weightless,
        )

    def recipe(self, rate: Callable, num_steps: int, seconds: float | None) -> Curve:
        """The public code's outer loop; each of its steps takes `seconds`."""
        method = lljax.projected_gradient(lambda count: rate(count / num_steps))
        update = jax.jit(method.update)
        policy, state, curve = self.start, method.init(self.start), Curve(*self._uniform)
        (_, _), gradient = self._gradient(policy, *self.data)
        for _ in tqdm(range(num_steps), desc="public recipe", leave=False):
            policy, state = update(gradient, state, policy)
            (auc, _), gradient = self._gradient(policy, *self.data)
            curve.add(float(auc), self._held_out(policy), seconds)
        return curve

    def run(self, method: Method, race: Race) -> Curve:
        """Our outer loop with step control; the first step's seconds hold the compilation."""
        curve = Curve(*self._uniform)
        started = time.perf_counter()
        loop = lljax.build_outer_loop(
            self.loss_auc("slopes" if method.active_set else "full"),
            method.optimizer,
            grow=method.grow,
            active_loss_auc=self.loss_auc("skip") if method.active_set else None,
            check_every=CHECK_EVERY,
        )
        state = jax.jit(loop.init)(self.start, *self.data)
        step = jax.jit(loop.step).lower(state, *self.data).compile()
        jax.block_until_ready(state)
        before = time.perf_counter() - started
        for _ in tqdm(range(race.steps), desc="outer steps", leave=False):
            started = time.perf_counter()
            state = jax.block_until_ready(step(state, *self.data))
            seconds = before + time.perf_counter() - started
            before = 0.0
            curve.add(float(state.auc), self._held_out(state.policy), seconds)
        return curve


def recipe_costs(track: Track, race: Race, code: PublicCode) -> dict | None:
    """Seconds of an outer step of the public code, and how far what it computes is from ours.

    None where the public code could not do it.
    """
    found = meta_gradient.measure(track.task, race.sizes, [OURS, *PUBLIC], 3, code.source)
    num_steps, num_train = track.start.shape
    steps = {
        name: num_steps / found["num_steps"] * statistics.median(one["seconds"])
        for name, one in found["contenders"].items()
    }
    if not steps.keys() & set(PUBLIC):
        return None
    noise = np.random.default_rng(0).normal(0, 0.1, (ROWS_PROJECTED, num_train))
    rows = ((1 + noise) / num_train).astype(np.float32)
    projected, row_seconds = code.projection(rows)
    error = np.abs(projected - lljax.project_simplex(rows)).max() * num_train
    return {
        "meta_gradient": steps,
        "projection": num_steps * row_seconds / num_cores(),
        "projection_error": float(error),
        "gradient_error": max(one["error"] for one in found["contenders"].values()),
    }


def measure(name: str, code: PublicCode | None, options: argparse.Namespace) -> dict:
    """Plain values, for a JSON file."""
    race, track = RACES[name], Track(name, options.inner_steps)
    if options.outer_steps:
        race = race._replace(steps=options.outer_steps, recipe_steps=options.outer_steps)
    costs, seconds = recipe_costs(track, race, code) if code else None, None
    if costs:
        gradients = costs["meta_gradient"]
        seconds = min(gradients[way] for way in PUBLIC if way in gradients) + costs["projection"]
    curves = {name: track.run(method, race) for name, method in race.methods.items()}
    for recipe, rate in race.recipes.items():
        curves[recipe] = track.recipe(rate, race.recipe_steps, seconds)
    return {
        "costs": costs,
        "recipes": list(race.recipes),
        "curves": {method: vars(curve) for method, curve in curves.items()},
    }


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    return "\n\n".join(_table_of_problem(name, one) for name, one in results.items())


def _table_of_problem(problem: str, result: dict) -> str:
    curves, costs = result["curves"], result["costs"]
    lines = [f"{problem}: to a recipe's best desired AUC, in outer steps and in seconds."]
    if costs:
        parts = ", ".join(
            f"{way} {seconds:.3g} s" for way, seconds in costs["meta_gradient"].items()
        )
        lines.append(
            f"A meta-gradient: {parts}. The recipe's projection: {costs['projection']:.3g} s. "
            f"Error of gradients {costs['gradient_error']:.1e}, of projections "
            f"{costs['projection_error']:.1e} of 1/N."
        )
    marks = {name: np.nanmin(curves[name]["auc"][1:]) for name in result["recipes"]}
    heads = "".join(f" to {mark:.4f}, {name} |" for name, mark in marks.items())
    lines += [
        "",
        f"| |{heads} AUC at the end | best held-out AUC |",
        "|---" * (len(marks) + 3) + "|",
    ]
    for name, curve in curves.items():
        cells = "".join(
            f" {_way_to(curve, curves[recipe], mark)} |" for recipe, mark in marks.items()
        )
        lines.append(
            f"| {name} |{cells} {curve['auc'][-1]:.4f} ({len(curve['auc']) - 1} steps) "
            f"| {min(curve['held_out']):.4f} |"
        )
    return "\n".join(lines)


def _way_to(curve: dict, recipe: dict, mark: float) -> str:
    """How soon a curve is where a recipe is best: its outer steps, and seconds where known."""
    step, theirs = (_first(one["auc"], mark) for one in (curve, recipe))
    if step is None or theirs is None:
        return "never"
    if not curve["seconds"]:
        return f"{step}"
    seconds = f"{step}: {curve['seconds'][step]:.3g} s"
    if curve is recipe or not recipe["seconds"]:
        return seconds
    return f"{seconds}, {recipe['seconds'][theirs] / curve['seconds'][step]:.3g} times sooner"


def _first(aucs: list[float], mark: float) -> int | None:
    return next((step for step, auc in enumerate(aucs) if step and auc <= mark), None)


def plot(results: dict[str, dict]):
    """A matplotlib figure."""
    figure, axes = subplots(2, len(results), 5.2, 3.2)
    for column, (problem, result) in zip(axes.T, results.items(), strict=True):
        for number, (name, curve) in enumerate(result["curves"].items()):
            steps, seconds = range(len(curve["auc"])), curve["seconds"]
            for axis, x in zip(column, (steps, seconds), strict=True):
                if x:
                    axis.plot(x, curve["auc"], color=f"C{number}", label=name)
                    axis.plot(x, curve["held_out"], ":", color=f"C{number}")
        column[0].set_title(f"{problem} (dotted: held out)")
        for axis, label in zip(column, ("outer steps", "seconds"), strict=True):
            axis.set_xscale("symlog" if label == "outer steps" else "log")
            axis.set_xlabel(label)
            axis.set_ylabel("AUC, nats")
        column[0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(RACES), choices=list(RACES))
    add_public_code(parser)
    parser.add_argument("--inner-steps", type=int, help="T of a shorter run, to try it")
    parser.add_argument("--outer-steps", type=int, help="of all methods, to try it")
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("time_to_auc", options.out)
    code = None
    packages = [name for name in ("torch", "cvxpy") if not importlib.util.find_spec(name)]
    missing = [f"pip install {' '.join(packages)}"] if packages else []
    if not options.public_code:
        missing.append(
            "clone https://github.com/microsoft/LMOps, give --public-code LMOps/learning_law/src"
        )
    if missing:
        print(f"The recipe's seconds are left out. To have them: {'; '.join(missing)}")
    else:
        code = PublicCode(options.public_code)
    for name in options.problems:
        one = measure(name, code, options)
        print(f"\n{table({name: one})}", flush=True)
        output.add(name, one)
    output.draw(plot)


if __name__ == "__main__":
    main()
