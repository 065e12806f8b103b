"""One Perceptron meta-gradient at full size by several implementations, in one process.

    python -m benchmarks.core [--repeats 7] [--steps 2000]

The repeats are interleaved, so that a slow moment of the machine hits all of them; ratios are
taken pair by pair. The gradients are compared before they are timed.
"""

import argparse
import os
import platform
import statistics
import time

import jax
import jax.numpy as jnp
import optax

import lljax
from lljax.data.teacher_student import make_teacher_student
from lljax.experiment.problem import perceptron_loss


def plain_scan(optimizer, checkpoint):
    """The loss AUC as a user without lljax would write it."""

    def loss_auc(policy, params, train, desired):
        def step(state, row):
            params, opt_state = state
            gradient = jax.grad(lambda p: row @ perceptron_loss(p, train))(params)
            updates, opt_state = optimizer.update(gradient, opt_state, params)
            params = optax.apply_updates(params, updates)
            return (params, opt_state), perceptron_loss(params, desired).mean()

        body = jax.checkpoint(step, prevent_cse=False) if checkpoint else step
        _, losses = jax.lax.scan(body, (params, optimizer.init(params)), policy)
        return losses.mean(), losses

    return loss_auc


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=2000)
    options = parser.parse_args()
    data = make_teacher_student(jax.random.key(0), train_label_noise=0.3)
    policy = lljax.uniform_policy(options.steps, data.train.y.size)
    arguments = (policy, jnp.zeros(data.train.z.shape[1]), data.train, data.desired)
    optimizer = optax.sgd(0.1)

    def build(**strategy):
        return lljax.build_loss_auc(perceptron_loss, optimizer, **strategy)

    contenders = {
        "plain scan": plain_scan(optimizer, checkpoint=False),
        "scan, jax.checkpoint": plain_scan(optimizer, checkpoint=True),
        "lljax, states stored": build(),
        "lljax, recomputed": build(memory=lljax.RecomputeStates()),
        "lljax, micro-batches 1024": build(microbatch_size=1024),
    }
    timed, gradients = {}, {}
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, ", end="")
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; T = {options.steps}")
    print(f"{'':<28}{'compile s':>10}{'temporary MB':>14}{'error':>10}")
    for name, function in contenders.items():
        start = time.perf_counter()
        lowered = jax.jit(jax.value_and_grad(function, has_aux=True)).lower(*arguments)
        compiled = lowered.compile()
        seconds = time.perf_counter() - start
        gradients[name] = compiled(*arguments)[1]
        reference = gradients["plain scan"]
        error = jnp.abs(gradients[name] - reference).max() / jnp.abs(reference).max()
        size = compiled.memory_analysis().temp_size_in_bytes / 1e6
        print(f"{name:<28}{seconds:>10.2f}{size:>14.1f}{float(error):>10.1e}")
        timed[name] = lambda compiled=compiled: compiled(*arguments)
    timed["forward alone"] = _compiled(build(), *arguments)
    gradient = gradients["lljax, states stored"]
    methods = {
        "projected gradient": lljax.projected_gradient(1.0),
        "exponentiated gradient": lljax.exponentiated_gradient(0.1, momentum=0.8),
    }
    for name, method in methods.items():
        state = method.init(policy)
        timed[f"update, {name}"] = _compiled(method.update, gradient, state, policy)
    by_sorting = jax.vmap(optax.projections.projection_simplex)
    timed["update, projection by sorting"] = _compiled(by_sorting, policy - gradient)

    seconds = {name: [] for name in timed}
    for repeat in range(options.repeats + 1):
        for name, call in timed.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    best = min(("plain scan", "scan, jax.checkpoint"), key=lambda n: statistics.median(seconds[n]))
    print(f"\n{'seconds':<34}{'min':>8}{'median':>8}{'max':>8}   ratio to {best}, median")
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[best], strict=True))
        row = f"{min(values):>8.3f}{statistics.median(values):>8.3f}{max(values):>8.3f}"
        print(f"{name:<34}{row}   {ratio:.2f}")
    meta = seconds["lljax, states stored"]
    for name in timed:
        if name.startswith("update"):
            share = statistics.median(a / b for a, b in zip(seconds[name], meta, strict=True))
            print(f"{name}: {100 * share:.0f} % of the meta-gradient's time")


def _compiled(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: compiled(*arguments)


if __name__ == "__main__":
    main()
