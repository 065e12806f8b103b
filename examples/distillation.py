"""Data set distillation: a few made-up examples that train a model as well as many real ones.

    python examples/distillation.py        # some 20 s on two CPU cores

The training examples themselves are what is learned: the features of 20 points, two for each of 10
classes. The derivative of the loss AUC in `train` goes through all T steps of the run.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import lljax

CLASSES, DIM, PER_CLASS, NUM_STEPS, OUTER_STEPS = 10, 8, 2, 30, 150
CENTRES = 1.2 * jax.random.normal(jax.random.key(7), (CLASSES, DIM))


def real_examples(key, size):
    keys = jax.random.split(key)
    label = jax.random.randint(keys[0], (size,), 0, CLASSES)
    return {"x": CENTRES[label] + jax.random.normal(keys[1], (size, DIM)), "label": label}


def logits(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def loss_fn(params, batch):
    scores = logits(params, batch["x"])
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])


loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.5, momentum=0.9))
LABELS = jnp.repeat(jnp.arange(CLASSES), PER_CLASS)
POLICY = lljax.uniform_policy(NUM_STEPS, CLASSES * PER_CLASS)


def run(x, key, desired):
    """The training run on the made-up examples, from a fresh model."""
    first, second = jax.random.split(key)
    params = {
        "in": jax.random.normal(first, (DIM, 32)) / DIM**0.5,
        "out": jax.random.normal(second, (32, CLASSES)) / 32**0.5,
    }
    return loss_auc(POLICY, params, {"x": x, "label": LABELS}, desired)


@jax.jit
def accuracy(x):
    """Of fresh models trained on the points `x`, on real examples that nothing has seen."""
    test = real_examples(jax.random.key(1), 2000)
    keys = jax.random.split(jax.random.key(2), 8)
    params = jax.vmap(lambda key: run(x, key, test)[1].params)(keys)
    guesses = jax.vmap(logits, (0, None))(params, test["x"]).argmax(-1)
    return (guesses == test["label"]).mean()


def main():
    data = real_examples(jax.random.key(0), 512)
    first = [jnp.flatnonzero(data["label"] == c)[:PER_CLASS] for c in range(CLASSES)]
    start = data["x"][jnp.concatenate(first)]
    optimize = functools.partial(
        lljax.optimize_over_runs,
        lambda x, key: run(x, key, data),
        optimizer=lljax.from_optax(optax.adam(0.03)),
        num_steps=OUTER_STEPS,
        validation_key=jax.random.key(4),
    )
    learned = jax.jit(optimize)(start, jax.random.key(3)).policy
    before, after = float(accuracy(start)), float(accuracy(learned))
    print(f"accuracy of models trained on 20 real points {before:.3f}, on the learned {after:.3f}")
    return before, after


if __name__ == "__main__":
    main()
