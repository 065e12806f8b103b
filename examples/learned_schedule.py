"""A learning-rate schedule that is learned: the rate of every step has a gradient.

    python examples/learned_schedule.py        # some 20 s on two CPU cores

A regression on noisy mini-batches: large steps learn fast, small ones average the noise out. 60
outer steps of Adam on the logarithms of the T rates find a schedule that does first the one and
then the other, and lowers the loss at the end of runs whose batches it has never seen.
"""

import jax
import jax.numpy as jnp
import optax

import lljax

NUM_STEPS, BATCH, DIM, RUNS, OUTER_STEPS = 64, 4, 16, 8, 60


def loss_fn(params, batch):
    return 0.5 * (batch["x"] @ params - batch["y"]) ** 2


def draw_run(key):
    """Training data of one run, all of them new, and clean examples to be judged by."""
    keys = jax.random.split(key, 4)
    truth = jax.random.normal(keys[0], (DIM,))

    def examples(key, size, noise):
        x = jax.random.normal(key, (size, DIM)) / jnp.sqrt(DIM)
        return {"x": x, "y": x @ truth + noise * jax.random.normal(keys[3], (size,))}

    return examples(keys[1], NUM_STEPS * BATCH, 1.0), examples(keys[2], 128, 0.0)


# What is injected can be set anew at every step; it is a number, not a schedule, to begin with.
optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
loss_auc = lljax.build_loss_auc(loss_fn, optimizer)


def final_loss(log_rates, key):
    train, desired = draw_run(key)
    inputs = lljax.StepInputs(
        weights=jnp.full((NUM_STEPS, BATCH), 1 / BATCH),
        index=jnp.arange(NUM_STEPS * BATCH).reshape(NUM_STEPS, BATCH),
        hyperparams={"learning_rate": jnp.exp(log_rates)},
    )
    _, info = loss_auc(inputs, jnp.zeros(DIM), train, desired)
    return info.desired_losses[-1], info


def main():
    keys = jax.random.split(jax.random.key(1), 256)  # of runs that no outer step has seen
    evaluate = jax.jit(lambda rates: jax.vmap(lambda k: final_loss(rates, k)[0])(keys).mean())
    constants = [jnp.full(NUM_STEPS, rate) for rate in jnp.linspace(-4.0, 1.0, 25)]
    start = min(constants, key=evaluate)
    log_rates = jax.jit(
        lambda log_rates: (
            lljax.optimize_over_runs(
                final_loss,
                log_rates,
                jax.random.key(0),
                optimizer=lljax.from_optax(optax.adam(0.05)),
                num_steps=OUTER_STEPS,
                num_runs=RUNS,
                validation_key=jax.random.key(2),
            ).policy
        )
    )(start)
    before, after = float(evaluate(start)), float(evaluate(log_rates))
    shown = ", ".join(f"{rate:.2f}" for rate in jnp.exp(log_rates)[:: NUM_STEPS // 8])
    rate = float(jnp.exp(start[0]))
    print(f"loss of new runs: {before:.4f} at the best constant rate {rate:.2f}")
    print(f"                  {after:.4f} with the learned schedule {shown}, ..")
    return before, after


if __name__ == "__main__":
    main()
