"""What devices tell each other during a meta-gradient, and how its work is divided among them.

    python -m benchmarks.devices [--devices 1 2 4 8] [--only NAMES] [--out FOLDER]

Counted in the compiled programs, not timed: collectives and the bytes of their results, the
multiplications of a device's matrix products and its temporary memory, of an inner step. Every
layout is compiled as the compiler divides it alone, and with `data_axis`. On a CPU, whose devices
here are parts of one; a GPU's compiler turns more of them into reduce-scatters.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

import lljax
from benchmarks.compiled import count_work
from benchmarks.output import Output
from benchmarks.problems import Problem, minibatch_transformer, perceptron, transformer
from lljax.shards import largest_cut

AXIS = "data"
SIZES = {"width": 64, "context": 32, "vocab_size": 512, "num_heads": 4}
LAYOUTS: dict[str, tuple[Callable[[], Problem], int | None, bool]] = {
    # problem, micro-batch, whether the parameters are split
    "perceptron": (lambda: perceptron(num_steps=4), None, False),
    "perceptron, micro-batches": (lambda: perceptron(num_steps=4), 512, False),
    "transformer": (lambda: transformer(num_steps=4, **SIZES), None, False),
    "transformer, micro-batches": (lambda: transformer(num_steps=4, **SIZES), 16, False),
    "transformer, micro-batches, split parameters": (
        lambda: transformer(num_steps=4, **SIZES),
        16,
        True,
    ),
    "mini-batches, AdamW": (
        lambda: minibatch_transformer(num_steps=4, num_train=1024, batch_size=64, **SIZES),
        16,
        False,
    ),
}


def make_mesh(number: int, kind: str = "Auto") -> jax.sharding.Mesh:
    """Of the first devices."""
    types = (getattr(jax.sharding.AxisType, kind),)
    return jax.make_mesh((number,), (AXIS,), axis_types=types, devices=jax.devices()[:number])


def placed(problem: Problem, mesh: jax.sharding.Mesh, split: bool) -> tuple:
    """The arguments of a meta-gradient: examples over the axis, parameters whole or split."""

    def over(*spec: Any) -> jax.NamedSharding:
        return jax.NamedSharding(mesh, jax.P(*spec))

    def of_params(leaf: jax.Array) -> jax.NamedSharding:
        return over(*largest_cut(leaf.shape, AXIS, mesh.shape[AXIS]) if split else ())

    weights = jax.device_put(problem.policy, over(None, AXIS))
    if problem.batch_index is not None:
        weights = lljax.StepInputs(weights, jax.device_put(problem.batch_index, over()))
    params = jax.device_put(problem.params, jax.tree.map(of_params, problem.params))
    train, desired = jax.device_put((problem.train, problem.desired), over(AXIS))
    return weights, params, train, desired


def counts(problem: Problem, size: int | None, split: bool, number: int, axis: str | None) -> dict:
    """Of an inner step, on one of so many devices."""
    mesh = make_mesh(number)
    with jax.set_mesh(mesh):
        loss_auc = lljax.build_loss_auc(
            problem.loss_fn, problem.optimizer, microbatch_size=size, data_axis=axis
        )
        gradient = jax.jit(jax.grad(loss_auc, argnums=(0, 1), has_aux=True, allow_int=True))
        program = gradient.lower(*placed(problem, mesh, split)).compile()
    work, steps = count_work(program), problem.num_steps
    memory: Any = program.memory_analysis()
    return {
        "collectives": {kind: calls / steps for kind, calls in sorted(work.calls.items())},
        "bytes": sum(work.bytes.values()) / steps,
        "multiplications": work.multiplications / steps,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--only", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    Output.add_option(parser)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(options.devices))
    output = Output("devices", options.out)
    print(f"{'':<56}{'bytes':>12}{'work':>8}{'temporary':>12}  collectives, of a step")
    for name in options.only:
        make, size, split = LAYOUTS[name]
        problem, found = make(), {}
        for axis in (None, AXIS):
            for number in options.devices:
                of = counts(problem, size, split, number, axis)
                found[f"{number}, {axis or 'compiler'}"] = of
                whole = found[f"{options.devices[0]}, {axis or 'compiler'}"]["multiplications"]
                kinds = ", ".join(f"{n:.3g} {kind}" for kind, n in of["collectives"].items())
                label = f"{name}, {number}, {axis or 'the compiler alone'}"
                print(
                    f"{label:<56}{of['bytes']:>12,.0f}"
                    f"{of['multiplications'] * number / whole / options.devices[0]:>8.2f}"
                    f"{of['temporary_bytes']:>12,}  {kinds or 'none'}",
                    flush=True,
                )
        output.add(name, found)


if __name__ == "__main__":
    main()
