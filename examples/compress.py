"""A real text, coded by a model as it trains: weights that help it to learn save bytes.

    python examples/compress.py        # a minute on two CPU cores

The text is a part of the manual that ships with Python. Who decodes needs what both sides share:
the initial model, 128 training examples (a quarter from other parts of the manual, the rest program
code) and the policy, which is optimised for a third part of the manual. None of that is counted, so
gzip and xz, which know nothing of it, are no rivals; xz that goes on behind the training examples
is one, and it is still ahead of a model that has taken 80 steps.
"""

import gzip
import inspect
import lzma
import tarfile
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax

LENGTH, PER_STEP, NUM_STEPS, NUM_EXAMPLES, OUTER_STEPS = 64, 2, 80, 128, 6
CONTEXT, EMBEDDING, HIDDEN = 8, 8, 64


def logits_after(params, past):
    """A small network of the eight bytes before: [.., 8] -> [.., 256]."""
    seen = params["bytes"][past].reshape(*past.shape[:-1], CONTEXT * EMBEDDING)
    return jnp.tanh(seen @ params["in"]) @ params["out"]


def loss_fn(params, batch):  # [B, L] -> [B], nats a byte
    padded = jnp.pad(batch, ((0, 0), (CONTEXT, 0)))
    past = jnp.stack([padded[:, i : i + LENGTH] for i in range(CONTEXT)], axis=2)
    logits = logits_after(params, past)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch).mean(1)


def next_logits(params, tokens, position):  # the same model, one position of it
    padded = jnp.pad(tokens, ((0, 0), (CONTEXT, 0)))
    return logits_after(params, jax.lax.dynamic_slice_in_dim(padded, position, CONTEXT, axis=1))


def main():
    optimizer = optax.adam(0.02, eps_root=1e-8)
    coder = lljax.build_coder(
        next_logits, loss_fn, optimizer, example_length=LENGTH, examples_per_step=PER_STEP
    )
    manual = "\n".join(topics[name] for name in sorted(topics)).encode()
    size = LENGTH * PER_STEP * NUM_STEPS
    text, desired, known = manual[200_000:][:size], manual[100_000:][:size], manual[300_000:]
    known = known[: NUM_EXAMPLES // 4 * LENGTH]
    code = inspect.getsource(tarfile).encode()[20_000:][: NUM_EXAMPLES * 3 // 4 * LENGTH]
    rows, desired, train = (jnp.asarray(coder.cut(part)) for part in (text, desired, known + code))
    keys = jax.random.split(jax.random.key(0))
    params = {
        "bytes": jax.random.normal(keys[0], (256, EMBEDDING)),
        "in": jax.random.normal(keys[1], (CONTEXT * EMBEDDING, HIDDEN)) / 8,
        "out": jnp.zeros((HIDDEN, 256)),
    }

    loss_auc = lljax.build_loss_auc(loss_fn, optimizer)
    uniform = lljax.uniform_policy(NUM_STEPS, NUM_EXAMPLES)
    optimize = jax.jit(
        lambda policy: lljax.optimize_policy(
            loss_auc,
            policy,
            params,
            train,
            desired,
            optimizer=lljax.exponentiated_gradient(0.3, momentum=0.8),
            num_steps=OUTER_STEPS,
        )
    )
    policies = {"conventional": uniform, "optimised": optimize(uniform).policy}

    # theta_t codes the examples of step t, t = 1 .. T; L(theta_0) is in no AUC.
    numbers = np.arange(len(rows)).reshape(NUM_STEPS, PER_STEP)
    index = jnp.asarray(np.concatenate([numbers[:1], numbers]))
    auc_of = jax.jit(
        lambda policy: loss_auc(lljax.StepInputs(policy, desired_index=index), params, train, rows)
    )
    sizes = {}
    for name, policy in policies.items():
        stream = coder.encode(text, policy, params, train)
        assert coder.decode(stream, policy, params, train) == text
        auc, _ = auc_of(policy)
        sizes[name] = len(stream), float(auc) * size / np.log(2) / 8
        print(f"{name + ':':<14}{len(stream)} bytes; by the AUC {sizes[name][1]:.0f}")
    xz = [len(lzma.compress(part)) for part in (known + code, known + code + text)]
    print(
        f"{size} bytes as they are, gzip {len(gzip.compress(text))}, xz {len(lzma.compress(text))}"
    )
    print(f"xz that goes on behind the training examples: {xz[1] - xz[0]}")
    return sizes


if __name__ == "__main__":
    main()
