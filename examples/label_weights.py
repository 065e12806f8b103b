"""Noisy labels: one weight for each of 512 examples, through mini-batch AdamW.

    python examples/label_weights.py        # some 30 s on two CPU cores

40 % of the training labels are wrong, and 128 clean examples say what is to be learnt. The weights
are the same at every step, in runs whose initialisation and order are drawn anew each time. Judged
on test data and new runs, beside an oracle that knows the wrong labels.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import lljax

CLASSES, DIM, N, BATCH, NUM_STEPS, OUTER_STEPS = 10, 32, 512, 32, 100, 20
CENTRES = 0.45 * jax.random.normal(jax.random.key(7), (CLASSES, DIM))


def examples(seed, size):
    keys = jax.random.split(jax.random.key(seed))
    label = jax.random.randint(keys[0], (size,), 0, CLASSES)
    return {"x": CENTRES[label] + jax.random.normal(keys[1], (size, DIM)), "label": label}


def loss_fn(params, batch):
    scores = jnp.tanh(batch["x"] @ params["in"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])


def draw_run(key):
    """An initialisation, and the order of the mini-batches."""
    keys = jax.random.split(key, 3)
    params = {
        "in": jax.random.normal(keys[0], (DIM, 64)) / DIM**0.5,
        "out": jax.random.normal(keys[1], (64, CLASSES)) / 8,
    }
    return params, jax.random.randint(keys[2], (NUM_STEPS, BATCH), 0, N)


def main():
    train, desired, test = examples(0, N), examples(1, 128), examples(2, 2048)
    wrong = jax.random.uniform(jax.random.key(3), (N,)) < 0.4
    train["label"] = jnp.where(wrong, (train["label"] + 1) % CLASSES, train["label"])
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.01, 10, NUM_STEPS)
    loss_auc = lljax.build_loss_auc(loss_fn, optax.adamw(rate, eps_root=1e-6))

    def run(weights, key, data):
        params, index = draw_run(key)
        inputs = lljax.StepInputs(lljax.static_weights(weights, index), index)
        return loss_auc(inputs, params, train, data)

    uniform, oracle = jnp.full(N, 1 / N), jnp.where(wrong, 0, 1 / (~wrong).sum())
    optimize = functools.partial(
        lljax.optimize_over_runs,
        lambda weights, key: run(weights, key, desired),
        optimizer=lljax.exponentiated_gradient(1.0, momentum=0.8),
        num_steps=OUTER_STEPS,
        validation_key=jax.random.key(5),
    )
    learned = jax.jit(optimize)(uniform, jax.random.key(4)).policy

    @jax.jit
    def test_losses(weights):
        keys = jax.random.split(jax.random.key(6), 16)
        return jax.vmap(lambda key: run(weights, key, test)[1].desired_losses)(keys).mean(0)

    curves = [test_losses(weights) for weights in (uniform, learned, oracle)]
    share = float(learned[wrong].sum())
    _, ours, best = (float(lljax.acceleration_ratio(curves[0], curve)) for curve in curves)
    print(f"weight of the wrong labels: {wrong.mean():.2f} -> {share:.3f}")
    print(f"acceleration on test data: learned {ours:.1f}, oracle {best:.1f}")
    return share, ours, best


if __name__ == "__main__":
    main()
