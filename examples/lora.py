"""LoRA: a frozen base, a small part that trains, and weights for the examples.

    python examples/lora.py        # some 20 s on two CPU cores

The base goes in as `constants`: it is stored once, while every leaf of `params` is kept for all T
steps. Half of the training labels are wrong; ten outer steps find out which, by the loss on clean
examples alone.
"""

import functools

import jax
import jax.numpy as jnp
import optax

import lljax

DIM, WIDTH, CLASSES, RANK, NUM_STEPS, NUM_TRAIN = 8, 256, 8, 4, 60, 96


def init(key):
    keys = jax.random.split(key, 4)
    base = {
        "in": jax.random.normal(keys[0], (DIM, WIDTH)) / DIM**0.5,
        "hidden": jax.random.normal(keys[1], (WIDTH, WIDTH)) / WIDTH**0.5,
        "out": jax.random.normal(keys[2], (WIDTH, CLASSES)) / WIDTH**0.5,
    }
    adapter = {"a": jax.random.normal(keys[3], (WIDTH, RANK)) / WIDTH**0.5}
    return base, adapter | {"b": jnp.zeros((RANK, WIDTH))}


def loss_fn(adapter, batch, base):
    x = jnp.tanh(batch["x"] @ base["in"])
    x = jnp.tanh(x @ base["hidden"] + x @ adapter["a"] @ adapter["b"])
    return optax.softmax_cross_entropy_with_integer_labels(x @ base["out"], batch["label"])


def make_data(key):
    keys = jax.random.split(key, 4)
    truth = jax.random.normal(keys[3], (DIM, CLASSES))

    def examples(key, size):
        x = jax.random.normal(key, (size, DIM))
        return {"x": x, "label": (x @ truth).argmax(1)}

    train, desired = examples(keys[0], NUM_TRAIN), examples(keys[1], 256)
    wrong = jnp.arange(NUM_TRAIN) % 2 == 0
    shift = jax.random.randint(keys[2], (NUM_TRAIN,), 1, CLASSES)
    train["label"] = jnp.where(wrong, (train["label"] + shift) % CLASSES, train["label"])
    return train, desired, wrong


def main():
    base, adapter = init(jax.random.key(0))
    train, desired, wrong = make_data(jax.random.key(1))
    loss_auc = lljax.build_loss_auc(loss_fn, optax.adamw(3e-3, eps_root=1e-6))
    policy = lljax.uniform_policy(NUM_STEPS, NUM_TRAIN)

    def with_base(policy, adapter, train, desired):
        return loss_auc(policy, adapter, train, desired, base)

    method = lljax.exponentiated_gradient(0.5, momentum=0.5)
    optimize = functools.partial(lljax.optimize_policy, optimizer=method, num_steps=10)
    result = jax.jit(functools.partial(optimize, with_base))(policy, adapter, train, desired)
    share = float(result.policy[:, wrong].sum(axis=1).mean())
    print(f"weight of the wrong half: 0.50 -> {share:.2f}")

    gradient = jax.jit(jax.grad(with_base, has_aux=True))
    program = gradient.lower(policy, adapter, train, desired).compile()
    held = program.memory_analysis().temp_size_in_bytes / 1e6
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(base)) / 1e6
    print(f"memory of a meta-gradient: {held:.1f} MB; T times the base would be {60 * size:.0f} MB")
    return share, held


if __name__ == "__main__":
    main()
