"""Small studies of what the field asks, with exact gradients over the whole run.

    python -m benchmarks.studies [--only timing,curriculum,schedule,law] [--seeds 5]

timing: does the best policy use clean data early or late? curriculum: does it still pay to have the
best data last when the learning rate decays? schedule: the learned learning rate of power-law
regression beside the published optimum. law: how far the Learning Law holds at the exact optimum of
the discrete run. Results go to benchmarks/STUDIES.json; the log says what follows.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from benchmarks import machine, output
from benchmarks.output import spread_table

RESULTS = Path(__file__).with_name("STUDIES.json")
DIM, STEPS, BATCH = 20, 200, 10


def squared_error(params, batch):
    return 0.5 * (batch["x"] @ params - batch["y"]) ** 2


def regression(seed: int, clean: int, noisy: int, noise: float) -> dict[str, Any]:
    """Few examples without label noise, then many with; K others of the clean distribution."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=DIM) / DIM**0.5

    def draw(count: int, deviation: float) -> dict[str, jax.Array]:
        x = rng.normal(size=(count, DIM))
        y = x @ truth + deviation * rng.normal(size=count)
        return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}

    parts = draw(clean, 0.1), draw(noisy, noise)
    train = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *parts)
    groups = jnp.concatenate([jnp.zeros(clean, jnp.int32), jnp.ones(noisy, jnp.int32)])
    return {"train": train, "groups": groups, "desired": draw(500, 0.1), "test": draw(500, 0.1)}


def timing(seed: int) -> dict[str, float]:
    """The share of clean data in the first and the last quarter of the best two-group schedule.

    A few clean examples are soon learnt by heart, so that noisy ones are wanted too; desired
    examples are others. Of mini-batches with a constant rate, whose noise the last steps keep.
    """
    found = {}
    for noise in (0.5, 1.0, 2.0):
        for outcome in ("auc", "final"):
            data = regression(seed, 15, 150, noise)
            rows = best_schedule(data, outcome, optax.sgd(0.05), seed)
            name = f"noise {noise:g}, {outcome}"
            found[f"{name}: clean share, first quarter"] = float(rows[:2, 0].mean())
            found[f"{name}: clean share, last quarter"] = float(rows[-2:, 0].mean())
    return found


def best_schedule(
    data: dict[str, Any], outcome: str, optimizer: optax.GradientTransformation, seed: int
) -> np.ndarray:
    """[8, 2]: shares of the two groups over the run that minimise an outcome on desired data."""
    loss_auc = lljax.build_loss_auc(squared_error, optimizer, check_optimizer=False)
    groups, count = data["groups"], len(data["groups"])

    def objective(rows, key):
        index = jax.random.randint(key, (STEPS, BATCH), 0, count)
        weights = lljax.scheduled_weights(rows, index, groups=groups)
        inputs = lljax.StepInputs(weights, index)
        auc, info = loss_auc(inputs, jnp.zeros(DIM), data["train"], data["desired"])
        return (auc if outcome == "auc" else info.desired_losses[-1]), None

    sizes = jnp.bincount(groups, length=2) / count
    start = jnp.tile(sizes.astype(jnp.float32), (8, 1))
    optimize = jax.jit(
        lambda rows, key: (
            lljax.optimize_over_runs(
                objective,
                rows,
                key,
                validation_key=jax.random.key(10_000 + seed),
                optimizer=lljax.exponentiated_gradient(0.2, momentum=0.5),
                num_steps=60,
                num_runs=16,
                num_validation_runs=64,
            ).policy
        )
    )
    return np.asarray(optimize(start, jax.random.key(seed)))


def curriculum(seed: int) -> dict[str, float]:
    """Final test loss with the best data last, first, or alike, at a constant rate and a decaying.

    The same clean examples in all, 64 runs each; the loss relative to that of an even mixture.
    """
    data = regression(seed, 80, 80, 2.0)
    groups, count = data["groups"], len(data["groups"])
    ramp = jnp.linspace(0.05, 0.95, STEPS)
    shares = {"last": ramp, "first": ramp[::-1], "alike": jnp.full(STEPS, 0.5)}
    rates = {"constant": 0.05, "cosine": optax.cosine_decay_schedule(0.05, STEPS)}
    found = {}
    for rate_name, rate in rates.items():
        loss_auc = lljax.build_loss_auc(squared_error, optax.sgd(rate))
        losses = {}
        for name, clean in shares.items():
            rows = jnp.stack([clean, 1 - clean], axis=1)

            def final(key, rows=rows, loss_auc=loss_auc):
                index = jax.random.randint(key, (STEPS, BATCH), 0, count)
                weights = lljax.scheduled_weights(rows, index, groups=groups)
                inputs = lljax.StepInputs(weights, index)
                run = loss_auc(inputs, jnp.zeros(DIM), data["train"], data["test"])
                return run[1].desired_losses[-1]

            runs = jax.jit(jax.vmap(final))(jax.random.split(jax.random.key(seed), 64))
            losses[name] = float(runs.mean())
        for name in ("last", "first"):
            found[f"{rate_name} rate, clean {name}"] = losses[name] / losses["alike"]
    return found


def schedule(seed: int) -> dict[str, float]:
    """The learned learning rate of SGD on power-law regression, by the exact expected risk.

      e_j <- (1 - eta lambda_j)^2 e_j + eta^2 lambda_j (sigma^2 + sum_i lambda_i e_i) / B,
      lambda_j = j^-beta; L = sum_j lambda_j e_j

    An easy task, e_j(0) = j^-1. Its published optimum for the final loss is eta_t = eta_0
    (1 - t/T)^(2 beta - 1); eta_0 is searched. Seeds only move the start of the search.
    """
    num_steps, modes, found = 500, 512, {}
    rng = np.random.default_rng(seed)
    for beta in (1.5, 2.0):
        j = jnp.arange(1, modes + 1, dtype=jnp.float32)
        eigenvalues, start = j**-beta, j**-1.0

        def risks(rates, eigenvalues=eigenvalues, start=start):
            def step(e, rate):
                risk = jnp.sum(eigenvalues * e)
                kept = (1 - rate * eigenvalues) ** 2 * e
                e = kept + rate**2 * eigenvalues * (1.0 + risk) / 4
                return e, jnp.sum(eigenvalues * e)

            return jax.lax.scan(step, start, rates)[1]

        t = jnp.arange(num_steps) / num_steps
        for outcome in ("final", "auc"):

            def value(rates, outcome=outcome, risks=risks):
                curve = risks(rates)
                return curve[-1] if outcome == "final" else curve.mean()

            scales = jnp.geomspace(0.01, 1.0, 60)
            shapes = {"published": (1 - t) ** (2 * beta - 1), "constant": jnp.ones(num_steps)}
            lowest = {
                of: float(jnp.nanmin(jax.vmap(value)(scales[:, None] * shape[None])))
                for of, shape in shapes.items()
            }
            learned, rates = _learn(value, num_steps, float(rng.uniform(0.05, 0.2)))
            name = f"beta {beta:g}, {outcome}"
            best = lowest["published"]
            found[f"{name}: loss, learned / published"] = learned / best
            found[f"{name}: loss, constant / published"] = lowest["constant"] / best
            late = slice(num_steps // 2, -num_steps // 20)
            slope = np.polyfit(np.log(1 - np.asarray(t[late])), np.log(rates[late]), 1)[0]
            found[f"{name}: exponent of the learned decay"] = float(slope)
            found[f"{name}: published exponent"] = 2 * beta - 1
    return found


def _learn(value: Callable, num_steps: int, start: float) -> tuple[float, np.ndarray]:
    """The lowest loss, and the rates [T] of it, by Adam on their logarithms."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 3000))

    def step(carry, _):
        logs, state = carry
        loss, gradient = jax.value_and_grad(lambda logs: value(jnp.exp(logs)))(logs)
        updates, state = optimizer.update(gradient, state)
        return (logs + updates, state), loss

    logs = jnp.full(num_steps, np.log(start), jnp.float32)
    (logs, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, length=3000))(
        (logs, optimizer.init(logs))
    )
    return float(losses[-1]), np.exp(np.asarray(logs, np.float64))


def law(seed: int) -> dict[str, float]:
    """The Learning Law (Theorem 3.1) at the optimum of the discrete run, in float64.

    The run is refined at a fixed time eta T = 10. At the optimum, certified by the Frank-Wolfe gap,
    the spread of the contributions of examples with weight is set against their mean (1 / SIM), at
    steps where several have weight; 0 is the law. The slopes dAUC/dgamma, to which the optimum's
    conditions apply, are beside it.
    """
    found: dict[str, float] = {}
    with jax.enable_x64(True):
        rng = np.random.default_rng(seed)
        dim, count = 10, 40

        def draw(size: int, noise: float) -> dict[str, jax.Array]:
            x = rng.normal(size=(size, dim))
            y = (x @ np.ones(dim) + noise * rng.normal(size=size) > 0).astype(np.float64)
            return {"x": jnp.asarray(x), "y": jnp.asarray(y)}

        train, desired = draw(count, 2.0), draw(200, 1.0)

        def loss_fn(params, batch):
            return optax.sigmoid_binary_cross_entropy(batch["x"] @ params, batch["y"])

        for num_steps in (20, 40, 80, 160):
            eta = 10.0 / num_steps
            found |= _law_at(loss_fn, eta, num_steps, train, desired, dim)
    return found


def _law_at(loss_fn, eta: float, num_steps: int, train, desired, dim: int) -> dict[str, float]:
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(eta))
    count = len(train["y"])
    policy = lljax.uniform_policy(num_steps, count).astype(jnp.float64)
    result = jax.jit(
        lambda policy: lljax.optimize_policy(
            loss_auc,
            policy,
            jnp.zeros(dim),
            train,
            desired,
            optimizer=lljax.exponentiated_gradient(0.5, momentum=0.5, cutoff=0.01),
            num_steps=1500,
        )
    )(policy)
    gap = lljax.optimality_gap(result.policy, result.policy_grad).mean()
    _, path = lljax.unroll(
        loss_fn,
        optax.sgd(eta),
        result.policy,
        jnp.zeros(dim),
        train,
        observe=lambda theta, _: theta,
    )
    similarities, of_slopes = [np.nan], [np.nan]
    for t in range(num_steps):
        theta, row = path[t], result.policy[t]
        if (row > 1e-3).sum() < 2:
            continue
        contributions = lljax.contributions(loss_fn, theta, train, desired)
        similarities.append(float(_spread(contributions, row)))
        of_slopes.append(float(_spread(-result.policy_grad[t] * num_steps / eta, row)))
    return {
        f"eta {eta:g}: gap over AUC": float(gap / result.auc),
        f"eta {eta:g}: share of steps with several examples": (len(of_slopes) - 1) / num_steps,
        f"eta {eta:g}: spread of contributions over their mean": float(np.nanmedian(similarities)),
        f"eta {eta:g}: spread of slopes over their mean": float(np.nanmedian(of_slopes)),
    }


def _spread(values: jax.Array, weights: jax.Array) -> jax.Array:
    """The weighted deviation of the values over their weighted mean."""
    mean = weights @ values
    return jnp.sqrt(weights @ (values - mean) ** 2) / jnp.abs(mean)


STUDIES: dict[str, Callable[[int], dict[str, float]]] = {
    "timing": timing,
    "curriculum": curriculum,
    "schedule": schedule,
    "law": law,
}


def table(rows: dict[str, Any]) -> str:
    return spread_table(
        {
            f"{name}, {len(row['seeds'])} seeds, {row['took']:.0f} s": row["figures"]
            for name, row in rows.items()
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default=",".join(STUDIES))
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    rows = output.read(RESULTS)
    for name in options.only.split(","):
        started = time.monotonic()
        found = [STUDIES[name](seed) for seed in range(options.seeds)]
        rows[name] = {
            "figures": {figure: [row[figure] for row in found] for figure in found[0]},
            "seeds": list(range(options.seeds)),
            "took": time.monotonic() - started,
            "machine": machine.in_words(machine.describe_machine()),
        }
        output.write(RESULTS, rows)
        print(table({name: rows[name]}), flush=True)


if __name__ == "__main__":
    main()
