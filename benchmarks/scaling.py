"""How the time of one meta-gradient grows with T, N, K, width, length, seeds and support.

    python -m benchmarks.scaling [--repeats 3] [--only AXIS ...] [--out FOLDER]

The points of an axis take turns. The exponent is the slope of ln(seconds) in ln(size) by least
squares, with its r^2; 1 is linear. "support" is the share of a policy's entries that are not zero,
with what `zero_weight` does. "seeds" are Perceptrons with data of their own in one vmapped call, or
one after the other on every core; "initialisations" share their data. The Perceptron has 128
inputs, the Transformer the paper's shape where nothing else is said.
"""

import argparse
import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

import lljax
from benchmarks.contenders import lljax_way
from benchmarks.machine import interleave, ratio, span, use_host_devices
from benchmarks.output import Output, subplots
from benchmarks.problems import LEARNING_RATE, Problem, perceptron, transformer

MICROBATCH = 8
SEED = PartitionSpec("seed")
SUPPORT_PROBLEM = {"num_steps": 2, "num_train": 80, "num_desired": 4}


class Axis(NamedTuple):
    """One quantity that grows while all others stay."""

    sizes: Sequence[float]
    build: Callable[[Any], Callable]  # size -> a compiled meta-gradient
    base: str  # what stays


def seeds(count: int, spread: bool = False) -> Callable:
    """With data of their own in one vmapped call; `spread`: one after the other on every core."""
    runs = [perceptron(num_steps=500, seed=seed) for seed in range(count)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(run.arguments for run in runs))
    gradient = perceptron_gradient(runs[0])
    every_seed = jax.vmap(gradient)
    if spread:
        mesh = jax.make_mesh((min(count, jax.device_count()),), ("seed",))
        stacked = jax.device_put(stacked, NamedSharding(mesh, SEED))
        every_seed = jax.shard_map(
            lambda *runs: jax.lax.map(lambda run: gradient(*run), runs),
            mesh=mesh,
            in_specs=SEED,
            out_specs=SEED,
            check_vma=False,
        )
    program = jax.jit(every_seed).lower(*stacked).compile()
    return lambda: program(*stacked)


def initialisations(count: int) -> Callable:
    """Policies and initial parameters of their own, on the same data, in one vmapped call."""
    run = perceptron(num_steps=500)
    policies = jnp.stack([run.policy] * count)
    params = 0.1 * jax.random.normal(jax.random.key(0), (count, run.params.size))
    arguments = policies, params, run.train, run.desired
    every_one = jax.vmap(perceptron_gradient(run), in_axes=(0, 0, None, None))
    program = jax.jit(every_one).lower(*arguments).compile()
    return lambda: program(*arguments)


def perceptron_gradient(problem: Problem) -> Callable:
    loss_auc = lljax.build_loss_auc(problem.loss_fn, optax.sgd(LEARNING_RATE))
    return jax.grad(loss_auc, has_aux=True)


def sparse(share: float, zero_weight: str) -> Callable:
    """Where every example has weight: "compute", the yardstick of what zeros gain."""
    problem = transformer(**SUPPORT_PROBLEM)
    shape = problem.policy.shape
    # The same number of examples in every row, drawn anew for each.
    ranks = np.argsort(np.random.default_rng(0).random(shape), axis=1)
    chosen = (ranks < round(share * shape[1])).astype(np.float32)
    policy = jnp.asarray(chosen / chosen.sum(1, keepdims=True))
    way = lljax_way(
        zero_weight="compute" if share == 1 else zero_weight, microbatch_size=MICROBATCH
    )
    return way(problem._replace(policy=policy)).gradient


ARGUMENTS = {
    "T": "num_steps",
    "N": "num_train",
    "K": "num_desired",
    "width": "width",
    "length": "context",
}


def size_axis(build: Callable[..., Problem], base: dict[str, int], name: str, *sizes: int) -> Axis:
    """`base`: the sizes, of which the one called `name` is varied."""
    stays = {key: value for key, value in base.items() if key != name}
    arguments = {ARGUMENTS[key]: value for key, value in stays.items()}

    def meta_gradient(size):
        return lljax_way()(build(**arguments, **{ARGUMENTS[name]: size})).gradient

    return Axis(list(sizes), meta_gradient, ", ".join(f"{k} = {v}" for k, v in stays.items()))


PERCEPTRON = {"T": 500, "N": 4096, "K": 512}
TRANSFORMER = {"T": 2, "N": 32, "K": 8, "width": 128, "length": 64}
SUPPORT_SHAPE = "T = 2, N = 80, K = 4, micro-batches of 8"
COUNTS = [1, 2, 4, 8, 16]
OWN_DATA = "T = 500, data of their own"
SHARES = [1, 0.5, 0.2, 0.1]
AXES = {
    "Perceptron: T": size_axis(perceptron, PERCEPTRON, "T", 250, 500, 1000, 2000),
    "Perceptron: N": size_axis(perceptron, PERCEPTRON, "N", 1024, 2048, 4096, 8192),
    "Perceptron: K": size_axis(perceptron, PERCEPTRON, "K", 512, 1024, 2048, 4096),
    "Perceptron: seeds": Axis(COUNTS, seeds, OWN_DATA),
    "Perceptron: seeds, a core each": Axis(COUNTS, functools.partial(seeds, spread=True), OWN_DATA),
    "Perceptron: initialisations": Axis(COUNTS, initialisations, "T = 500, the same data"),
    "Transformer: T": size_axis(transformer, TRANSFORMER, "T", 2, 4, 8, 16),
    "Transformer: N": size_axis(transformer, TRANSFORMER, "N", 16, 32, 64, 128),
    "Transformer: K": size_axis(transformer, TRANSFORMER, "K", 8, 16, 32, 64),
    "Transformer: width": size_axis(transformer, TRANSFORMER, "width", 64, 128, 256),
    "Transformer: length": size_axis(transformer, TRANSFORMER, "length", 16, 32, 64, 128),
} | {
    f"Transformer: support, {zero_weight}": Axis(
        SHARES, functools.partial(sparse, zero_weight=zero_weight), SUPPORT_SHAPE
    )
    for zero_weight in ("slope_only", "omit")
}


def measure(axis: Axis, repeats: int) -> dict:
    seconds = interleave({str(size): axis.build(size) for size in axis.sizes}, repeats)
    medians = [statistics.median(seconds[str(size)]) for size in axis.sizes]
    x, y = np.log(axis.sizes), np.log(medians)
    exponent, offset = np.polyfit(x, y, 1)
    residual = np.sum((y - exponent * x - offset) ** 2)
    spread = np.sum((y - y.mean()) ** 2)
    first = seconds[str(axis.sizes[0])]
    return {
        "base": axis.base,
        "sizes": axis.sizes,
        "seconds": list(seconds.values()),
        "times_the_first": [ratio(values, first) for values in seconds.values()],
        "exponent": float(exponent),
        "r_squared": float(1 - residual / spread) if spread else 1.0,
    }


def table(results: dict[str, dict]) -> str:
    """Markdown."""
    lines = [
        "| axis | size: seconds, min / median / max, times the first | exponent | r² | else |",
        "|---|---|---|---|---|",
    ]
    for name, one in results.items():
        points = "; ".join(
            f"{size:g}: {span(values)}, {times:.2f} times"
            for size, values, times in zip(
                one["sizes"], one["seconds"], one["times_the_first"], strict=True
            )
        )
        lines.append(
            f"| {name} | {points} | {one['exponent']:.2f} | {one['r_squared']:.3f} "
            f"| {one['base']} |"
        )
    return "\n".join(lines)


def plot(results: dict[str, dict]):
    """A matplotlib figure."""
    columns = 4
    rows = -(-len(results) // columns)
    figure, axes = subplots(rows, columns, 3, 2.6)
    for axis in axes.flat[len(results) :]:
        axis.remove()
    for axis, (name, one) in zip(axes.flat, results.items(), strict=False):
        medians = [statistics.median(values) for values in one["seconds"]]
        axis.loglog(one["sizes"], medians, "o-")
        linear = [medians[0] * size / one["sizes"][0] for size in one["sizes"]]
        axis.loglog(one["sizes"], linear, "--", color="0.7")
        axis.set_title(f"{name}\nexponent {one['exponent']:.2f}", fontsize=9)
        axis.set_ylabel("seconds")
        axis.minorticks_off()
        axis.set_xticks(one["sizes"], [f"{size:g}" for size in one["sizes"]])
        ends = sorted((medians[0], medians[-1]))
        axis.set_yticks(ends, [f"{seconds:.2g}" for seconds in ends])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    Output.add_repeats(parser, 3)
    parser.add_argument("--only", nargs="+", choices=list(AXES), metavar="AXIS", default=list(AXES))
    Output.add_option(parser)
    options = parser.parse_args()
    use_host_devices()
    output = Output("scaling", options.out)
    for name in options.only:
        one = measure(AXES[name], options.repeats)
        print(table({name: one}).splitlines()[-1], flush=True)
        output.add(name, one)
    output.draw(plot)
    print(f"\n{table(output.results)}")


if __name__ == "__main__":
    main()
