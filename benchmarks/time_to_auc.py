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

The objective is the desired AUC alone (no train share), and ours run as in `lljax run`. Seconds are
those until a policy's AUC is known, with compilation and all meta-gradients before it, trials that
were taken back too, its own forward sweep (the recipe's is left out) and no held-out evaluation;
ours are of one run. The recipe's outer step (medians of three) is measured before and after each of
our methods, since a machine's speed drifts, and how much sooner a method is rests on the two beside
it. That is method and code together: the rates of our methods were found in other runs of the same
problem (LOG.md), while the recipe's are its own; what the search for a rate costs is in neither.
The seconds of a meta-gradient tell the code's part. An active set leaves whole micro-batches out,
and has them half as large.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lljax
from benchmarks import meta_gradient
from benchmarks.checkouts import add_checkouts, how_to_get, missing_packages
from benchmarks.machine import num_cores, span
from benchmarks.output import Output, subplots, use_log_scale
from benchmarks.problems import problem_sizes
from benchmarks.public_code import PublicCode
from benchmarks.races import RACES, Method, Race
from lljax.engine.memory_plan import in_memory, plan_memory
from lljax.engine.meta_gradient import MetaGradient
from lljax.step_control import StepControl
from lljax.tasks.build import build_problem
from lljax.tasks.config_file import load_experiment
from lljax.tasks.text import TransformerConfig

ROWS_PROJECTED = 4
CHECK_EVERY = 4  # outer steps from one look at all examples to the next, with an active set
PUBLIC = ("public code, one batch", "public code, its batches")


class Curve:
    """What one method reached, outer step by outer step; index 0 is the uniform policy.

    `seconds`, until a policy's AUC is known, is empty where they are not. `recipe_step` is what an
    outer step of the recipe took at about the same time, in seconds.
    """

    def __init__(self, auc: float, held_out: float):
        self.auc, self.held_out, self.seconds = [auc], [held_out], [0.0]
        self.recipe_step: float | None = None

    def add(self, auc: float, held_out: float, seconds: float | None) -> None:
        self.auc.append(auc)
        self.held_out.append(held_out)
        self.seconds = [] if seconds is None else [*self.seconds, seconds]


class Track:
    """A problem as the race runs it: the desired AUC alone, attention as in the public code."""

    def __init__(self, name: str, num_steps: int | None):
        experiment = load_experiment(name)
        config = experiment.config
        if num_steps:
            inner = dataclasses.replace(config.inner, num_steps=num_steps)
            config = dataclasses.replace(config, inner=inner)
        outer = dataclasses.replace(config.outer, train_share=0.0)
        config = dataclasses.replace(config, outer=outer)
        if isinstance(config, TransformerConfig):
            model = dataclasses.replace(config.model, attention_scale="width")
            config = dataclasses.replace(config, model=model)
        self.task_name, self.config = experiment.task.name, config
        self.problem = problem = build_problem(experiment._replace(config=config))
        self.start = lljax.uniform_policy(config.inner.num_steps, problem.num_train)
        self.data = problem.params, problem.train, problem.desired
        loss_auc = lljax.build_loss_auc(
            problem.loss_fn, problem.optimizer, microbatch_size=config.inner.microbatch_size
        )
        evaluate = jax.jit(lambda *arguments: loss_auc(*arguments)[0])
        self._held_out = lambda policy: float(evaluate(policy, *self.data[:2], problem.validation))
        self._gradient = jax.jit(jax.value_and_grad(loss_auc, has_aux=True))
        (auc, _), _ = self._gradient(self.start, *self.data)
        self._uniform = float(auc), self._held_out(self.start)

    def recipe(self, rate: Callable, num_steps: int, seconds: float | None) -> Curve:
        """The public code's outer loop; each of its steps takes `seconds`."""
        method = lljax.projected_gradient(lambda count: rate(count / num_steps))
        update = jax.jit(method.update)
        policy, state, curve = self.start, method.init(self.start), Curve(*self._uniform)
        (_, _), gradient = self._gradient(policy, *self.data)
        for step in tqdm(range(1, num_steps + 1), desc="public recipe", leave=False):
            policy, state = update(gradient, state, policy)
            (auc, _), gradient = self._gradient(policy, *self.data)
            curve.add(float(auc), self._held_out(policy), seconds and step * seconds)
        return curve

    def run(self, method: Method, race: Race) -> Curve:
        """Our outer loop, by the programs of `lljax run`."""
        curve, started, paused = Curve(*self._uniform), time.perf_counter(), 0.0
        inner = self.config.inner
        if method.active_set and inner.microbatch_size:
            inner = dataclasses.replace(inner, microbatch_size=inner.microbatch_size // 2)
        # No set is watched beside the objective: its losses would be in the seconds.
        problem = dataclasses.replace(self.problem, validation=self.problem.objective)
        plan = in_memory(plan_memory(problem, inner))
        meta_gradient = MetaGradient(problem, inner, plan, active_set=method.active_set)
        control = lljax.build_step_control(method.optimizer, grow=method.grow)
        control = StepControl(*(jax.jit(function) for function in control))
        known = started  # when the AUC of the last sweep's policy was

        def evaluate(policy, complete=True):
            nonlocal known
            meta_gradient.release()  # what a rejected trial has left
            sweep = meta_gradient.new_sweep()
            meta_gradient.run_forward(policy, sweep, lambda _: None)
            known = time.perf_counter()

            def gradient():
                meta_gradient.run_backward(policy, sweep, lambda _: None, complete)
                return sweep.policy_grad, meta_gradient.known_slopes(policy, complete)

            return sweep.objective, gradient

        objective, gradient = evaluate(self.start)
        state = control.begin(self.start, objective, *gradient())
        for step in tqdm(range(1, race.steps + 1), desc="outer steps", leave=False):
            complete = not method.active_set or step % CHECK_EVERY == 0
            state = lljax.try_policy(
                control,
                state,
                functools.partial(evaluate, complete=complete),
                lambda policy: evaluate(policy)[1](),
                complete=complete,
                choose=lljax.choose_on_host,
            )
            resumed = time.perf_counter()
            curve.add(
                float(state.objective), self._held_out(state.policy), known - started - paused
            )
            paused += time.perf_counter() - resumed
        return curve


def recipe_costs(track: Track, race: Race, code: PublicCode) -> dict | None:
    """Seconds of an outer step of the public code, and how far what it computes is from ours.

    None where the public code could not do it.
    """
    num_steps, num_train = track.start.shape
    sizes = problem_sizes(track.config) | {"num_steps": race.measured_steps}
    ways = [meta_gradient.OURS, *PUBLIC]
    sources = {"public_code": code.source}
    found = meta_gradient.measure(track.task_name, sizes, ways, 3, sources)
    steps = {
        name: num_steps / found["num_steps"] * statistics.median(one["seconds"])
        for name, one in found["contenders"].items()
    }
    public = [steps[way] for way in PUBLIC if way in steps]
    if not public:
        return None
    noise = np.random.default_rng(0).normal(0, 0.1, (ROWS_PROJECTED, num_train))
    rows = ((1 + noise) / num_train).astype(np.float32)
    projected, row_seconds = code.projection(rows)
    error = np.abs(projected - lljax.project_simplex(jnp.asarray(rows))).max() * num_train
    projection = num_steps * row_seconds / num_cores()
    return {
        "meta_gradient": steps,
        "projection": projection,
        "outer_step": min(public) + projection,
        "projection_error": float(error),
        "gradient_error": max(one["error"] for one in found["contenders"].values()),
    }


def measure(name: str, code: PublicCode | None, options: argparse.Namespace) -> dict:
    """Plain values, for a JSON file."""
    race, track = RACES[name], Track(name, options.inner_steps)
    if options.outer_steps:
        race = race._replace(steps=options.outer_steps, recipe_steps=options.outer_steps)
    costs, curves = [], {}

    def look_at_recipe():
        if code and (found := recipe_costs(track, race, code)):
            costs.append(found)

    look_at_recipe()
    for method_name, method in race.methods.items():
        curve = curves[method_name] = track.run(method, race)
        if costs:
            look_at_recipe()
            curve.recipe_step = statistics.mean(one["outer_step"] for one in costs[-2:])
    seconds = statistics.median(one["outer_step"] for one in costs) if costs else None
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
            f"{way} {span([one['meta_gradient'][way] for one in costs])} s"
            for way in costs[0]["meta_gradient"]
        )
        worst = {
            what: max(one[f"{what}_error"] for one in costs) for what in ("gradient", "projection")
        }
        lines.append(
            f"A meta-gradient, min / median / max of {len(costs)} times: {parts}. The recipe's "
            f"projection: {span([one['projection'] for one in costs])} s. Error of gradients "
            f"{worst['gradient']:.1e}, of projections {worst['projection']:.1e} of 1/N."
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
    slower = curve["recipe_step"] or recipe["seconds"][1]
    return f"{seconds}, {theirs * slower / curve['seconds'][step]:.3g} times sooner"


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
            axis.set_xlabel(label)
            axis.set_ylabel("AUC, nats")
        column[0].set_xscale("symlog")
        use_log_scale(column[1])
        column[0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", nargs="+", default=list(RACES), choices=list(RACES))
    add_checkouts(parser, ["public_code"])
    parser.add_argument("--inner-steps", type=int, help="T of a shorter run, to try it")
    parser.add_argument("--outer-steps", type=int, help="of all methods, to try it")
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("time_to_auc", options.out)
    code = None
    packages = missing_packages("torch", "cvxpy")
    missing = how_to_get(*() if options.public_code else ("public_code",), packages=packages)
    if missing:
        print(f"The recipe's seconds are left out. To have them: {missing}")
    else:
        code = PublicCode(options.public_code)
    for name in options.problems:
        one = measure(name, code, options)
        print(f"\n{table({name: one})}", flush=True)
        output.add(name, one)
    output.draw(plot)


if __name__ == "__main__":
    main()
