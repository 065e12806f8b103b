"""lljax inside other code: plain pytrees, Flax Linen, Flax NNX, vmap over seeds, your own function.

    python examples/embed.py        # some 20 s on two CPU cores

The task, the same in every part: name the octant that a point of space lies in. Half of the 128
training labels are wrong. A policy gamma [T, N] says how much example n counts in step t of a
training run; conventional learning is gamma = 1/N. lljax differentiates the whole run of T = 100
steps with respect to gamma, and ten outer steps teach the policy whom to trust. Nothing tells it
which labels are wrong: it only sees the loss on 128 other, clean examples, the desired ones.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lljax

NUM_STEPS, NUM_EXAMPLES, HIDDEN, OUTER_STEPS = 100, 128, 16, 10


def make_data(key):
    keys = jax.random.split(key, 4)

    def examples(key, size):
        x = jax.random.normal(key, (size, 3))
        return {"x": x, "y": (x > 0) @ jnp.array([4, 2, 1])}

    train, desired, test = map(examples, keys[:3], (NUM_EXAMPLES, 128, 1024))
    wrong = jnp.arange(NUM_EXAMPLES) % 2 == 0
    another_class = (train["y"] + jax.random.randint(keys[3], wrong.shape, 1, 8)) % 8
    train["y"] = jnp.where(wrong, another_class, train["y"])
    return {"train": train, "desired": desired, "test": test, "wrong": wrong}


# All that lljax asks of a model is loss_fn(params, batch) -> [B]: one loss an example, no mean.
cross_entropy = optax.softmax_cross_entropy_with_integer_labels


# 1. Plain JAX: `params` is any pytree of floating arrays.
def init_plain(key):
    keys = jax.random.split(key)
    first = {"w": jax.random.normal(keys[0], (3, HIDDEN)) / 3**0.5, "b": jnp.zeros(HIDDEN)}
    second = {"w": jax.random.normal(keys[1], (HIDDEN, 8)) / HIDDEN**0.5, "b": jnp.zeros(8)}
    return {"first": first, "second": second}


def plain_loss(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["w"] + params["first"]["b"])
    return cross_entropy(hidden @ params["second"]["w"] + params["second"]["b"], batch["y"])


# 2. Flax Linen: `params` is what `init` returns.
class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(8, name="second")(nn.tanh(nn.Dense(HIDDEN, name="first")(x)))


def linen_loss(params, batch):
    return cross_entropy(LinenMLP().apply(params, batch["x"]), batch["y"])


# 3. Flax NNX: `params` is the state of the model's Params.
class NNXMLP(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, HIDDEN, rngs=rngs)
        self.second = nnx.Linear(HIDDEN, 8, rngs=rngs)

    def __call__(self, x):
        return self.second(nnx.tanh(self.first(x)))


def split_nnx(model):
    # What is not trained, such as batch statistics, may not be in `params`: it goes to `rest`.
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    def loss_fn(params, batch):
        return cross_entropy(nnx.merge(graphdef, params, rest)(batch["x"]), batch["y"])

    return loss_fn, params


# One function for every kind of model. It is pure; the caller decides on jit and vmap.
def learn_policy(loss_fn, params, data):
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(0.1))
    uniform = lljax.uniform_policy(NUM_STEPS, NUM_EXAMPLES)
    method = lljax.exponentiated_gradient(0.2, momentum=0.8)
    inputs = uniform, params, data["train"], data["desired"]
    optimized = lljax.optimize_policy(loss_auc, *inputs, optimizer=method, num_steps=OUTER_STEPS)
    return compare(loss_auc, jnp.stack([uniform, optimized.policy]), params, data)


def compare(loss_auc, policies, params, data):
    """[2] each, before and after: both AUCs, policy weight on wrong labels; [] test AR."""
    evaluate = jax.vmap(loss_auc, in_axes=(0, None, None, None))
    desired_aucs, _ = evaluate(policies, params, data["train"], data["desired"])
    test_aucs, info = evaluate(policies, params, data["train"], data["test"])
    wrong_shares = jnp.mean(policies @ data["wrong"], axis=1)
    return desired_aucs, test_aucs, wrong_shares, lljax.acceleration_ratio(*info.desired_losses)


def improve(name, loss_fn, params, data):
    # Data are arguments, not constants of the program, so new data need no new compilation.
    report(name, jax.jit(learn_policy, static_argnames="loss_fn")(loss_fn, params, data))


# 4. Many seeds, each with data and initial parameters of its own, in one compiled call.
@jax.jit
@jax.vmap
def learn_from_seed(key):
    return learn_policy(plain_loss, init_plain(key), make_data(key))


# 5. A function of your own: the policy has one learnt logit an example, the same at every step.
#    jax.grad goes through whatever computes the policy, and on through the training run.
def learn_logits(params, data):
    loss_auc = lljax.build_loss_auc(plain_loss, optax.sgd(0.1))
    outer = optax.adam(0.3)

    def policy_of(logits):
        return jnp.broadcast_to(jax.nn.softmax(logits), (NUM_STEPS, NUM_EXAMPLES))

    def objective(logits):
        auc, _ = loss_auc(policy_of(logits), params, data["train"], data["desired"])
        return auc + 1e-3 * jnp.mean(logits**2)

    def outer_step(carry, _):
        logits, state = carry
        updates, state = outer.update(jax.grad(objective)(logits), state)
        return (optax.apply_updates(logits, updates), state), None

    start = jnp.zeros(NUM_EXAMPLES)
    (end, _), _ = jax.lax.scan(outer_step, (start, outer.init(start)), length=OUTER_STEPS)
    return compare(loss_auc, jnp.stack([policy_of(start), policy_of(end)]), params, data)


def report(name, outcome):
    *pairs, ratio = jax.device_get(outcome)
    print(f"{name:24}", *(f"{old:.3f} -> {new:.3f}  " for old, new in pairs), f"{ratio:6.1f}")


def main():
    print(f"{'':24} {'desired AUC':16} {'test AUC':16} {'wrong labels':16} test AR")
    key = jax.random.key(1)
    data, plain_params = jax.jit(make_data)(key), jax.jit(init_plain)(key)
    improve("plain pytree", plain_loss, plain_params, data)
    improve("Flax Linen", linen_loss, LinenMLP().init(key, data["train"]["x"]), data)
    improve("Flax NNX", *split_nnx(NNXMLP(nnx.Rngs(1))), data)
    seeds = jax.device_get(learn_from_seed(jax.random.split(key, 8)))
    worst = np.argmax(seeds[1][:, 1])
    report("8 seeds, median", [np.median(leaf, axis=0) for leaf in seeds])
    report("8 seeds, worst test AUC", [leaf[worst] for leaf in seeds])
    report("own function", jax.jit(learn_logits)(plain_params, data))


if __name__ == "__main__":
    main()
