"""Bytes of a real text, coded by a model as it trains: conventionally, and with optimised weights.

    python -m benchmarks.compression [--seeds 0 1 2] [--steps 256] [--outer-steps 10] [--out FOLDER]

The text is a part of Python's manual. Both sides of the coder have the initial model, the training
set, of which one quarter are other parts of the manual and the rest is program code of six modules,
the order of the batches, and the policy: eight rows of seven weights, one for the manual and each
module. None of these is in the bytes. The policy is optimised for a third part of the manual.
Beside them: training on the manual's quarter alone, on nothing but the text itself as it is
decoded, and gzip and xz, the latter also as it goes on behind the training set.
"""

import argparse
import dataclasses
import functools
import gzip
import importlib
import inspect
import lzma
import random
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from benchmarks.output import Output, subplots

LENGTH, PER_STEP, BATCH, DESIRED, ROWS = 64, 1, 32, 512, 8
CONTEXT, EMBEDDING, HIDDEN = 8, 8, 64
OPTIMIZER = optax.adam(0.02, eps_root=1e-8)
SOURCES = "argparse", "difflib", "doctest", "inspect", "tarfile", "typing"


def _logits_after(params: Any, past: jax.Array) -> jax.Array:
    """[.., CONTEXT] bytes -> [.., 256]: a perceptron with one hidden layer."""
    seen = params["bytes"][past].reshape(*past.shape[:-1], CONTEXT * EMBEDDING)
    return jnp.tanh(seen @ params["in"]) @ params["out"]


def next_logits(params: Any, tokens: jax.Array, position: jax.Array) -> jax.Array:
    padded = jnp.pad(tokens, ((0, 0), (CONTEXT, 0)))
    return _logits_after(params, jax.lax.dynamic_slice_in_dim(padded, position, CONTEXT, axis=1))


def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
    """[B, L] bytes -> [B], nats a byte."""
    padded = jnp.pad(batch, ((0, 0), (CONTEXT, 0)))
    past = jnp.stack([padded[:, i : i + LENGTH] for i in range(CONTEXT)], axis=2)
    logits = _logits_after(params, past)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch).mean(1)


LOSS_AUC = lljax.build_loss_auc(loss_fn, OPTIMIZER)


def texts(seed: int, num_steps: int, num_examples: int) -> dict[str, bytes]:
    """What is coded and desired, and the training set: parts that share no document."""
    from pydoc_data.topics import topics

    rng = random.Random(seed)
    documents = [topics[name].encode() for name in sorted(topics)]
    rng.shuffle(documents)
    sizes = {"coded": num_steps * PER_STEP, "desired": DESIRED, "manual": num_examples // 4}
    found = {}
    for name, count in sizes.items():
        text = b""
        while len(text) < count * LENGTH:
            text += documents.pop() + b"\n"
        found[name] = text[: count * LENGTH]
    for name in SOURCES:
        source = inspect.getsource(importlib.import_module(name)).encode()
        size = num_examples // 8 * LENGTH
        start = rng.randrange(len(source) - size)
        found[name] = source[start : start + size]
    return found


class Training(NamedTuple):
    """What both sides have but for the policy, and what it is optimised for."""

    params: Any
    train: jax.Array
    groups: jax.Array
    batches: jax.Array  # [T, B]
    desired: jax.Array
    desired_index: jax.Array

    def inputs(self, rows: jax.Array) -> lljax.StepInputs:
        weights = lljax.scheduled_weights(rows, self.batches, groups=self.groups)
        return lljax.StepInputs(weights, self.batches)


def training(seed: int, found: dict[str, bytes], num_steps: int) -> Training:
    def examples(text):
        return np.frombuffer(text, np.uint8).reshape(-1, LENGTH).astype(np.int32)

    parts = [examples(found[name]) for name in ("manual", *SOURCES)]
    groups = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    keys = jax.random.split(jax.random.key(seed), 4)
    params = {
        "bytes": jax.random.normal(keys[0], (256, EMBEDDING)),
        "in": jax.random.normal(keys[1], (CONTEXT * EMBEDDING, HIDDEN)) / 8,
        "out": jnp.zeros((HIDDEN, 256)),
    }
    return Training(
        params,
        jnp.concatenate(parts),
        jnp.asarray(groups),
        jax.random.randint(keys[2], (num_steps, BATCH), 0, len(groups)),
        jnp.asarray(examples(found["desired"])),
        jax.random.randint(keys[3], (num_steps + 1, BATCH), 0, DESIRED),
    )


def on_itself(num_steps: int, seed: int) -> lljax.StepInputs:
    """Batches drawn from the examples that are decoded."""
    known = PER_STEP * np.arange(num_steps)[:, None]
    drawn = np.random.default_rng(seed).random((num_steps, BATCH))
    weights = np.where(known > 0, np.full(drawn.shape, 1 / BATCH), 0.0)
    return lljax.StepInputs(
        jnp.asarray(weights, jnp.float32), jnp.asarray((drawn * known).astype(np.int32))
    )


def optimise(start: Training, uniform: jax.Array, outer_steps: int, rate: float):
    def objective(rows, params, train, desired):
        inputs = dataclasses.replace(start.inputs(rows), desired_index=start.desired_index)
        return LOSS_AUC(inputs, params, train, desired)

    optimizer = lljax.exponentiated_gradient(rate, momentum=0.8)
    data = start.params, start.train, start.desired
    optimize = jax.jit(
        lambda rows: lljax.optimize_policy(
            objective, rows, *data, optimizer=optimizer, num_steps=outer_steps
        )
    )
    return jax.block_until_ready(optimize(uniform))


def measure(seed: int, num_steps: int, num_examples: int, outer_steps: int, rate: float) -> dict:
    """Bytes by method, the ideal ones beside them, and how they grow along the text."""
    found = texts(seed, num_steps, num_examples)
    data, start = found["coded"], training(seed, found, num_steps)
    shares = jnp.bincount(start.groups) / len(start.groups)
    uniform = jnp.broadcast_to(shares.astype(jnp.float32), (ROWS, len(shares)))
    started = time.perf_counter()
    result = optimise(start, uniform, outer_steps, rate)
    seconds = {"optimise": time.perf_counter() - started}

    build = functools.partial(
        lljax.build_coder,
        next_logits,
        loss_fn,
        OPTIMIZER,
        example_length=LENGTH,
        examples_per_step=PER_STEP,
    )
    coder = build()
    methods = {}
    manual = jnp.zeros_like(uniform).at[:, 0].set(1.0)
    policies = {"conventional": uniform, "optimised": result.policy, "manual alone": manual}
    for name, rows in policies.items():
        run = start.inputs(rows), start.params, start.train
        methods[name], seconds["encode"] = code(coder, data, *run)
    coder = build(as_examples=lambda rows: rows)
    methods["on itself"], _ = code(coder, data, on_itself(num_steps, seed), start.params, None)
    before = b"".join(found[name] for name in ("manual", *SOURCES))
    methods["gzip"] = {"bytes": len(gzip.compress(data, 9))}
    methods["xz"] = {"bytes": len(lzma.compress(data, preset=9))}
    both = len(lzma.compress(before + data, preset=9))
    methods["xz, goes on"] = {"bytes": both - len(lzma.compress(before, preset=9))}
    return {
        "text_bytes": len(data),
        "desired_aucs": np.asarray(result.auc_history).tolist(),
        "rows": np.round(np.asarray(result.policy), 3).tolist(),
        "seconds": seconds,
        "methods": methods,
    }


def code(coder, data: bytes, inputs: lljax.StepInputs, params: Any, train: Any) -> tuple:
    """(bytes, T AUC / ln 2 in bytes, the same along the text), and seconds."""
    started = time.perf_counter()
    stream = coder.encode(data, inputs, params, train)
    seconds = time.perf_counter() - started
    if coder.decode(stream, inputs, params, train) != data:
        raise RuntimeError("what was decoded is not what was encoded")
    rows = jnp.asarray(coder.cut(data))
    numbers = np.arange(len(rows)).reshape(-1, PER_STEP)
    index = jnp.asarray(np.concatenate([numbers[:1], numbers]))  # L(theta_0) counts nowhere
    inputs = dataclasses.replace(inputs, desired_index=index)
    _, info = jax.jit(LOSS_AUC)(inputs, params, rows if train is None else train, rows)
    losses = np.asarray(info.desired_losses[1:], np.float64)
    grown = np.cumsum(losses) * LENGTH * PER_STEP / np.log(2) / 8
    figures = {"bytes": len(stream), "ideal": float(grown[-1]), "grown": grown.round(1).tolist()}
    return figures, seconds


def plot(results: dict[str, dict]):
    """Left, what is saved along the text, a line for each seed; right, the bytes of all seeds."""
    figure, ((left, right),) = subplots(1, 2, 5.6, 3.4)
    first = next(iter(results.values()))
    trained = [name for name, method in first["methods"].items() if "grown" in method]
    for number, name in enumerate(trained):
        for seed in results.values():
            grown, conventional = (
                np.array(seed["methods"][which]["grown"]) for which in (name, "conventional")
            )
            along = np.arange(1, len(grown) + 1) * LENGTH * PER_STEP / 1000
            label = name if seed is first else None
            left.plot(along, conventional - grown, color=f"C{number}", label=label, linewidth=1)
    left.set(xlabel="kB of the text", ylabel="bytes saved against conventional")
    left.legend()
    names = list(first["methods"])
    for place, name in enumerate(names):
        kilobytes = [seed["methods"][name]["bytes"] / 1000 for seed in results.values()]
        right.barh(
            place, np.median(kilobytes), color=f"C{place}" if name in trained else "tab:gray"
        )
        right.plot(kilobytes, [place] * len(kilobytes), "k.", markersize=4)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set(
        xlabel=f"kB of {first['text_bytes'] / 1000:.1f} (bars: median of {len(results)} seeds)"
    )
    return figure


def table(results: dict[str, dict]) -> str:
    """Markdown: bytes by method and seed."""
    lines = ["| bytes | " + " | ".join(results) + " |", "|---" * (len(results) + 1) + "|"]
    seeds = list(results.values())
    for name in seeds[0]["methods"]:
        cells = []
        for seed in seeds:
            method = seed["methods"][name]
            ideal = f" (ideal {method['ideal']:.0f})" if "ideal" in method else ""
            cells.append(f"{method['bytes']}{ideal}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=256, help="T")
    parser.add_argument("--examples", type=int, default=2048, help="N")
    parser.add_argument("--outer-steps", type=int, default=10)
    parser.add_argument("--rate", type=float, default=0.3, help="of the exponentiated gradient")
    Output.add_option(parser)
    options = parser.parse_args()
    output = Output("compression", options.out and Path(options.out))
    sizes = options.steps, options.examples, options.outer_steps, options.rate
    for seed in options.seeds:
        result = measure(seed, *sizes)
        output.add(f"seed {seed}", result)
        print(
            f"seed {seed}: AUC of the desired text {result['desired_aucs'][0]:.3f} -> "
            f"{result['desired_aucs'][-1]:.3f} nats, weight of the manual 0.25 -> "
            f"{np.mean(result['rows'], axis=0)[0]:.2f}, seconds {result['seconds']}",
            flush=True,
        )
    print(table(output.results))
    output.draw(plot)


if __name__ == "__main__":
    main()
