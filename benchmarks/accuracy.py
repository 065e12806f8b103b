"""Errors of all derivatives against a plain loop, in float64, by case, argument and strategy.

    python -m benchmarks.accuracy [--cases NAME ...] [--out FOLDER]

A few minutes. What is differentiated: the weights and hyperparameters of the steps, theta_0, the
floating leaves of training and desired examples, and the constants of the loss. The reference is
`jax.grad` through a `lax.scan` of the same training loop, JAX and optax alone. An error is the
largest deviation over the largest entry of its array. Every column is a way to run: the memory
strategies under `jax.jit`, in micro-batches of 4 of 6 examples, without jit, two seeds with batches
of their own under `jax.vmap`, and in two segments, which have no derivatives in data and constants.
The last five cases have losses that need the second pass (`second_order="reverse_over_reverse"`).

The column of finite differences has those of the AUC along a random direction of the weights, by
central differences at two distances, extrapolated, against the reference. They are coarse for
MultiSteps, whose updates optax rounds to float32.

XLA compiles without optimisation, in a third of the time, unless XLA_FLAGS is set.

Exit status 1 if an error is above 1e-10, the finite differences' above 1e-6, of MultiSteps 1e-3.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import lljax
from benchmarks.accuracy_cases import NUM_TRAIN, Case, cases, memories
from benchmarks.machine import num_cores
from benchmarks.output import Output
from benchmarks.plain_loop import largest_error, plain_loss_auc, split_floating

TOLERANCE = 1e-10
DISTANCE, DIFFERENCES_TOLERANCE = 1e-6, 1e-6
IN_FLOAT32 = 1e-4, 1e-3  # both where the optimiser rounds to it
ARGUMENTS = ("weights", "hyperparams", "params", "train", "desired", "constants")
DIFFERENCES = "finite differences"
MICROBATCH = 4
CUT = 6  # of 12 steps; a multiple of every case's `eval_every`
FAST_COMPILATION = "--xla_backend_optimization_level=0"
SCALES = (1.0, 1.3)  # of theta_0, by seed

Derivatives = dict[str, list[np.ndarray]]
"""By argument: of its floating leaves."""


def measure(name: str) -> dict[str, dict[str, float]]:
    """Errors by argument and way, of one of the cases."""
    jax.config.update("jax_enable_x64", True)
    case = cases()[name]
    expected = _reference(case)
    ways: dict[str, Callable[[], Derivatives]] = {
        name: functools.partial(_plain_jit, case, memory=memory)
        for name, memory in memories().items()
    }
    ways["micro-batches"] = functools.partial(_plain_jit, case, microbatch_size=MICROBATCH)
    ways["no jit"] = lambda: _derivatives(case, _ours(case), jit=False)
    ways["segments"] = lambda: _in_segments(case)
    errors: dict[str, dict[str, float]] = {name: {} for name in ARGUMENTS}
    for way, compute in ways.items():
        for argument, found in compute().items():
            errors[argument][way] = largest_error(found, expected[argument])
    for argument, error in _over_seeds(case).items():
        errors[argument]["vmap"] = error
    errors["weights"][DIFFERENCES] = _finite_differences(case, expected["weights"][0])
    return errors


def _ours(case: Case, **options) -> Callable:
    loss_auc = lljax.build_loss_auc(
        case.loss_fn,
        case.optimizer,
        second_order=case.second_order,
        check_optimizer=case.check_optimizer,
        **case.options,
        **options,
    )
    return lambda *arguments: loss_auc(*arguments)[0]


def _parts(case: Case) -> dict[str, Any]:
    """The arguments, those of the steps apart."""
    steps = {"weights": case.inputs.weights, "hyperparams": dict(case.inputs.hyperparams or {})}
    others = ("params", "train", "desired", "constants")
    return steps | {name: getattr(case, name) for name in others}


def _objective(case: Case, loss_auc: Callable) -> tuple[Callable, dict[str, list[jax.Array]]]:
    """(the AUC as a function of all floating leaves by argument, those leaves)."""
    split = {name: split_floating(part) for name, part in _parts(case).items()}

    def objective(floating):
        parts = {name: join(floating[name]) for name, (_, join) in split.items()}
        steps = {name: parts.pop(name) for name in ("weights", "hyperparams")}
        return loss_auc(dataclasses.replace(case.inputs, **steps), *parts.values())

    return objective, {name: leaves for name, (leaves, _) in split.items()}


def _derivatives(case: Case, loss_auc: Callable, jit: bool = True) -> Derivatives:
    objective, floating = _objective(case, loss_auc)
    gradient = jax.grad(objective)
    return jax.device_get((jax.jit(gradient) if jit else gradient)(floating))


def _plain_jit(case: Case, **options) -> Derivatives:
    return _derivatives(case, _ours(case, **options))


def _plain(case: Case) -> Callable:
    return plain_loss_auc(case.loss_fn, case.optimizer, **case.options)


def _reference(case: Case) -> Derivatives:
    return _derivatives(case, _plain(case))


def _over_seeds(case: Case) -> dict[str, float]:
    """Batches and theta_0 of their own, in one vmapped call, against one run after the other."""
    assert case.inputs.index is not None
    shape = (len(SCALES), *case.inputs.index.shape)
    indices = np.random.default_rng(2).integers(0, NUM_TRAIN, shape)

    def gradient(loss_auc):
        def run(index, scale):
            inputs = dataclasses.replace(case.inputs, index=index)
            seed = case._replace(
                inputs=inputs, params=jax.tree.map(lambda leaf: scale * leaf, case.params)
            )
            objective, floating = _objective(seed, loss_auc)
            return jax.grad(objective)(floating)

        return run

    stacked = jnp.asarray(indices), jnp.asarray(SCALES)
    found = jax.device_get(jax.jit(jax.vmap(gradient(_ours(case))))(*stacked))
    one = jax.jit(gradient(_plain(case)))
    runs = jax.device_get([one(*seed) for seed in zip(*stacked, strict=True)])
    expected = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    return {name: largest_error(found[name], expected[name]) for name in ARGUMENTS}


def _in_segments(case: Case) -> Derivatives:
    segments = lljax.build_segments(
        case.loss_fn,
        case.optimizer,
        second_order=case.second_order,
        check_optimizer=case.check_optimizer,
        microbatch_size=MICROBATCH,
        **case.options,
    )
    every, inputs = case.eval_every, case.inputs
    num_steps = inputs.weights.shape[0]
    data = case.train, case.desired, case.constants
    desired_index = inputs.desired_index

    def cut(start: int, stop: int) -> lljax.StepInputs:
        steps = jax.tree.map(lambda leaf: leaf[start:stop], inputs)
        after = None if desired_index is None else desired_index[start : stop + 1]
        return dataclasses.replace(steps, desired_index=after)

    def place(step: int):
        return None if desired_index is None else desired_index[step]

    forward, backward = jax.jit(segments.forward), jax.jit(segments.backward)
    state, _ = segments.start(case.params, data, {}, place(0))
    bounds = [(0, CUT), (CUT, num_steps)]
    pieces, kept = [cut(*bound) for bound in bounds], []
    for piece in pieces:
        state, _, of_piece = forward(state, piece, data, {})
        kept.append(of_piece)
    share = every / num_steps
    cotangent = segments.start_backward(state, jnp.asarray(share), data, place(num_steps))
    found: list[tuple] = []
    for (start, stop), piece, of_piece in zip(bounds[::-1], pieces[::-1], kept[::-1], strict=True):
        before = jnp.where(jnp.arange(start, stop, every) > 0, share, 0.0)  # not L(theta_0)
        cotangent, of_steps = backward(cotangent, of_piece, piece, before, data)
        found.insert(0, (of_steps.weights, dict(of_steps.hyperparams)))
    weights, hyperparams = jax.tree.map(lambda *leaves: np.concatenate(leaves), *found)
    # No optimiser here starts from a state that depends on theta_0.
    return {
        "weights": [weights],
        "hyperparams": jax.tree.leaves(hyperparams),
        "params": jax.device_get(jax.tree.leaves(cotangent.params)),
    }


def _finite_differences(case: Case, gradient: np.ndarray) -> float:
    """The relative error of the gradient along a direction."""
    direction = np.random.default_rng(3).normal(size=gradient.shape)
    loss_auc = _plain(case)
    others = case.params, case.train, case.desired, case.constants

    @jax.jit
    def along(distance):
        weights = case.inputs.weights + distance * direction
        return loss_auc(dataclasses.replace(case.inputs, weights=weights), *others)

    distance = IN_FLOAT32[0] if case.in_float32 else DISTANCE
    near, far = ((along(h) - along(-h)) / (2 * h) for h in (distance, 2 * distance))
    slope = np.vdot(gradient, direction)
    return float(abs((4 * near - far) / 3 - slope) / abs(slope))


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    ways = [*memories(), "micro-batches", "no jit", "vmap", "segments", DIFFERENCES]
    lines = [f"| | | {' | '.join(ways)} |", "|---" * (2 + len(ways)) + "|"]
    for case, result in results.items():
        for argument, errors in result["errors"].items():
            cells = (f"{errors[way]:.0e}" if way in errors else "" for way in ways)
            first = case if argument == ARGUMENTS[0] else ""
            lines.append(f"| {first} | {argument} | {' | '.join(cells)} |")
    lines += ["", _worst(results)]
    return "\n".join(lines)


def _all_errors(result: dict, way_is: Callable[[str], bool]) -> list[float]:
    errors = result["errors"].values()
    return [error for one in errors for way, error in one.items() if way_is(way)]


def _worst(results: dict[str, dict]) -> str:
    exact = [e for one in results.values() for e in _all_errors(one, DIFFERENCES.__ne__)]
    differences = [e for one in results.values() for e in _all_errors(one, DIFFERENCES.__eq__)]
    return (
        f"Largest error: {np.max(exact):.1e}; of the finite differences: {np.max(differences):.1e}."
    )


def is_exact(case: Case, result: dict) -> bool:
    """Whether all errors are small; NaN is not."""
    differences = IN_FLOAT32[1] if case.in_float32 else DIFFERENCES_TOLERANCE
    return bool(
        np.max(_all_errors(result, DIFFERENCES.__ne__)) <= TOLERANCE
        and np.max(_all_errors(result, DIFFERENCES.__eq__)) <= differences
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    jax.config.update("jax_enable_x64", True)
    known = cases()
    parser.add_argument("--cases", nargs="+", choices=list(known), metavar="NAME", default=known)
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("accuracy", options.out)
    os.environ.setdefault("XLA_FLAGS", FAST_COMPILATION)  # for the processes, which start anew
    with concurrent.futures.ProcessPoolExecutor(
        num_cores(), multiprocessing.get_context("spawn")
    ) as pool:
        names = list(options.cases)
        found = pool.map(measure, names)
        for name, errors in tqdm(zip(names, found, strict=True), total=len(names), leave=False):
            output.add(name, {"errors": errors})
    print(table(output.results))
    missed = [name for name, one in output.results.items() if not is_exact(known[name], one)]
    if missed:
        sys.exit(f"above {TOLERANCE:.0e}, or what finite differences allow: {', '.join(missed)}")


if __name__ == "__main__":
    main()
