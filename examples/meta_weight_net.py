"""Meta-Weight-Net: a small network says from an example's loss how much the example counts.

    python examples/meta_weight_net.py        # some 30 s on two CPU cores

40 % of the training labels are wrong. The network psi, one hidden layer on the loss itself, is an
argument of the training loss (`constants`), and its gradient comes through the whole run. That a
large loss is a sign of a wrong label is what it learns.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import lljax

DIM, CLASSES, NUM_TRAIN, BATCH, NUM_STEPS, OUTER_STEPS = 16, 4, 512, 64, 80, 60


def losses(params, batch):
    scores = jnp.tanh(batch["x"] @ params["in"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(scores, batch["label"])


def weight(psi, loss):
    return 2 * jax.nn.sigmoid(jnp.tanh(loss[:, None] * psi["in"] + psi["bias"]) @ psi["out"])


def loss_fn(params, batch, psi):
    """The weight multiplies the loss and is not itself made smaller by training."""
    fixed = losses(jax.lax.stop_gradient(params), batch)
    return weight(psi, fixed) * losses(params, batch)


def examples(seed, size):
    x = jax.random.normal(jax.random.key(seed), (size, DIM))
    return {"x": x, "label": (x @ jax.random.normal(jax.random.key(9), (DIM, CLASSES))).argmax(1)}


def new_run(key):
    keys = jax.random.split(key, 3)
    params = {
        "in": jax.random.normal(keys[0], (DIM, 64)) / DIM**0.5,
        "out": jax.random.normal(keys[1], (64, CLASSES)) / 8,
    }
    index = jax.random.randint(keys[2], (NUM_STEPS, BATCH), 0, NUM_TRAIN)
    return lljax.StepInputs(jnp.full((NUM_STEPS, BATCH), 1 / BATCH), index), params


def main():
    train, desired, test = examples(3, NUM_TRAIN), examples(4, 64), examples(5, 2048)
    train["label"] = (train["label"] + (jnp.arange(NUM_TRAIN) % 5 < 2)) % CLASSES
    adamw = optax.adamw(0.01, eps_root=1e-6)
    loss_auc = lljax.build_loss_auc(loss_fn, adamw, desired_loss_fn=lambda p, b, _: losses(p, b))

    def final_loss(psi, key, data):
        _, info = loss_auc(*new_run(key), train, data, psi)
        return info.desired_losses[-1], info

    start = {"in": jnp.ones((1, 8)), "bias": jnp.linspace(-3.0, 0.0, 8)[None], "out": jnp.zeros(8)}
    optimize = functools.partial(
        lljax.optimize_over_runs,
        lambda psi, key: final_loss(psi, key, desired),
        optimizer=lljax.from_optax(optax.adam(0.1)),
        num_steps=OUTER_STEPS,
        validation_key=jax.random.key(2),
    )
    psi = jax.jit(optimize)(start, jax.random.key(1)).policy
    keys = jax.random.split(jax.random.key(6), 16)  # of runs that are new
    evaluate = jax.jit(lambda psi: jax.vmap(lambda k: final_loss(psi, k, test)[0])(keys).mean())
    before, after = float(evaluate(start)), float(evaluate(psi))
    print(f"test loss of new runs: {before:.3f} with equal weights, {after:.3f} with learned ones")
    print("weights of the losses 0.1, 0.5, 1, 2:", weight(psi, jnp.array([0.1, 0.5, 1.0, 2.0])))
    return before, after


if __name__ == "__main__":
    main()
