"""What `benchmarks.accuracy` differentiates: training runs of small networks, in float64.

Mini-batches in which some examples are there twice and some never; every argument also has leaves
that are integers.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lljax
from lljax import StepInputs
from lljax.types import SecondOrder

NUM_STEPS, NUM_TRAIN, NUM_DESIRED, BATCH = 12, 23, 9, 6
INPUTS, HIDDEN, CLASSES = 5, 8, 3
LENGTH, HEAD = 4, 3  # of the attention


class Case(NamedTuple):
    """A training run; the fields behind `optimizer` as in `lljax.build_loss_auc`."""

    inputs: StepInputs
    params: Any
    train: Any
    desired: Any
    constants: Any
    loss_fn: Callable
    optimizer: optax.GradientTransformation
    desired_loss_fn: Callable | None = None
    second_order: SecondOrder = "auto"
    eval_every: int = 1
    check_optimizer: bool = True
    in_float32: bool = False  # the optimiser rounds what it does

    @property
    def options(self) -> dict[str, Any]:
        """Those of the run, whatever memory it takes."""
        return {"desired_loss_fn": self.desired_loss_fn, "eval_every": self.eval_every}


def cases() -> dict[str, Case]:
    """All of them, by name. Call it where float64 is on."""
    inject, schedule = optax.inject_hyperparams, optax.warmup_cosine_decay_schedule(0, 0.1, 3, 12)
    rates, decay = _line(0.2, 0.05), _line(0.1, 0.2)
    adam = {"eps_root": 1e-6}
    adamw = inject(optax.adamw)(0.1, weight_decay=0.1, **adam)
    muon = inject(optax.contrib.muon, static_args="ns_steps")(0.05, adam_eps_root=1e-6)
    momentum = inject(optax.sgd)(0.1, momentum=0.9, nesterov=True)
    clipped = optax.chain(
        optax.clip_by_global_norm(0.3), inject(optax.adamw)(schedule, weight_decay=0.1, **adam)
    )
    parts = {"trained": inject(optax.adam)(0.1, **adam), "frozen": optax.set_to_zero()}
    partition = optax.partition(
        parts, lambda params: {name: "frozen" if name == "in" else "trained" for name in params}
    )
    desired_index = np.random.default_rng(1).integers(0, NUM_DESIRED, (NUM_STEPS + 1, 4))
    network = _classifier(lambda hidden: hidden)
    found = {
        "SGD": _case(network, inject(optax.sgd)(0.3), learning_rate=rates),
        "momentum, desired mini-batches": _case(
            network, momentum, learning_rate=rates, momentum=_line(0.9, 0.5)
        ),
        "AdamW, clipping, warm-up and cosine": _case(network, clipped, weight_decay=decay),
        "Muon": _case(network, muon, learning_rate=rates / 2),
        "MultiSteps": _case(network, optax.MultiSteps(adamw, 3), learning_rate=rates / 2),
        "a frozen layer": _case(network, partition, learning_rate=rates / 2),
    }
    # The first two of its three updates are zero, which the check would refuse.
    steps = found["MultiSteps"]
    found["MultiSteps"] = steps._replace(check_optimizer=False, in_float32=True)
    name = "momentum, desired mini-batches"
    inputs = found[name].inputs
    inputs = StepInputs(
        inputs.weights, inputs.index, inputs.hyperparams, jnp.asarray(desired_index)
    )
    found[name] = found[name]._replace(inputs=inputs, eval_every=3)
    # Measured by a plain loss: what is not the derivative of a value can be trained with, but the
    # AUC's own would not be one either.
    second: dict[str, Callable] = {
        "gradient reversal": _reversal,
        "straight-through": _classifier(_rounded),
        "clipped gradient inside": _classifier(_clip_gradient),
        "loss-dependent weights": _reweighted(network),
    }
    pairs: dict[str, tuple[Callable, Callable | None]] = {
        name: (loss_fn, network) for name, loss_fn in second.items()
    }
    pairs["attention with custom_vjp"] = _attention_loss, None
    for name, (loss_fn, desired_loss_fn) in pairs.items():
        case = _case(loss_fn, adamw, learning_rate=rates / 2, weight_decay=decay)
        found[name] = case._replace(
            second_order="reverse_over_reverse", desired_loss_fn=desired_loss_fn
        )
    return found


def _case(loss_fn: Callable, optimizer: optax.GradientTransformation, **hyperparams) -> Case:
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape))

    def examples(count):
        labels = (jnp.asarray(rng.integers(0, CLASSES, count)) for _ in range(2))
        return dict(
            zip(("label", "group"), labels, strict=True),
            z=normal(count, INPUTS),
            sequence=normal(count, LENGTH, HEAD),
        )

    index = rng.integers(0, NUM_TRAIN - 2, (NUM_STEPS, BATCH))
    index[:, 1] = index[:, 0]
    weights = jnp.asarray(rng.dirichlet(np.ones(BATCH), NUM_STEPS))
    params = {
        "in": 0.4 * normal(INPUTS, HIDDEN),
        "scale": 1 + 0.1 * normal(HIDDEN),
        "out": 0.4 * normal(HIDDEN, CLASSES),
    }
    if loss_fn is _reversal:
        params["other"] = 0.4 * normal(HIDDEN, CLASSES)
    if loss_fn is _attention_loss:
        shapes = {"query": (HEAD, HEAD), "key": (HEAD, HEAD), "out": (HEAD, CLASSES)}
        params = {name: 0.6 * normal(*shape) for name, shape in shapes.items()}
    constants = {
        "bias": normal(HIDDEN if loss_fn is not _attention_loss else CLASSES),
        "order": jnp.array([2, 0, 1]),
        "net": {"in": normal(4), "bias": normal(4), "out": normal(4)},
    }
    inputs = StepInputs(weights, jnp.asarray(index), hyperparams)
    return Case(
        inputs, params, examples(NUM_TRAIN), examples(NUM_DESIRED), constants, loss_fn, optimizer
    )


def _line(start: float, end: float) -> jax.Array:
    return jnp.linspace(start, end, NUM_STEPS)


def _classifier(change: Callable) -> Callable:
    """One hidden layer, to which something is done."""

    def loss_fn(params, batch, constants):
        hidden = change(_hidden(params, batch, constants))
        return _cross_entropy(hidden @ params["out"], batch["label"], constants)

    return loss_fn


def _hidden(params, batch, constants):
    hidden = jnp.tanh(batch["z"] @ params["in"] + constants["bias"][None])
    # The features of the sequence and the small network take part, so that all leaves have slopes.
    more = jnp.sin(batch["sequence"].sum((1, 2)) * constants["net"]["out"].sum())
    return hidden * params["scale"][None] + 0.1 * more[:, None]


def _cross_entropy(logits, label, constants):
    logits = logits[:, constants["order"]]
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


@jax.custom_vjp
def _reversed(x):
    return x


_reversed.defvjp(lambda x: (x, None), lambda _, cotangent: (-cotangent,))


def _reversal(params, batch, constants):
    """A second head whose error the layers below are to make larger."""
    hidden = _hidden(params, batch, constants)
    own = _cross_entropy(hidden @ params["out"], batch["label"], constants)
    other = _reversed(hidden) @ params["other"]
    return own + _cross_entropy(other, batch["group"], constants)


@jax.custom_vjp
def _rounded(x):
    return jnp.round(4 * x) / 4


_rounded.defvjp(lambda x: (jnp.round(4 * x) / 4, None), lambda _, cotangent: (cotangent,))


@jax.custom_vjp
def _clip_gradient(x):
    return x


def _clip_back(_, cotangent):
    return (jnp.clip(cotangent, -0.01, 0.01),)


_clip_gradient.defvjp(lambda x: (x, None), _clip_back)


def _reweighted(loss_fn: Callable) -> Callable:
    """Each loss times what a small network makes of it, through which no gradient goes."""

    def weight(loss, net):
        hidden = jnp.tanh(loss[:, None] * net["in"][None] + net["bias"][None])
        return jax.nn.sigmoid(hidden @ net["out"])

    @jax.custom_vjp
    def reweighted(loss, net):
        return weight(loss, net) * loss

    def forward(loss, net):
        return weight(loss, net) * loss, (loss, net)

    def backward(held, cotangent):
        loss, net = held
        return cotangent * weight(loss, net), jax.tree.map(jnp.zeros_like, net)

    reweighted.defvjp(forward, backward)
    return lambda params, batch, constants: reweighted(
        loss_fn(params, batch, constants), constants["net"]
    )


def _attention_weights(query, key):
    return jax.nn.softmax(query @ key.swapaxes(1, 2))


def _attention_values(query, key, value):
    """[B, L, D] each."""
    return _attention_weights(query, key) @ value


_attention = jax.custom_vjp(_attention_values)


def _attention_back(held, cotangent):
    """As in a kernel, the attention weights are made again."""
    query, key, value = held
    weights = _attention_weights(query, key)
    of_weights = cotangent @ value.swapaxes(1, 2)
    of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdims=True))
    of_key, of_value = of_scores.swapaxes(1, 2) @ query, weights.swapaxes(1, 2) @ cotangent
    return of_scores @ key, of_key, of_value


_attention.defvjp(lambda *held: (_attention_values(*held), held), _attention_back)


def _attention_loss(params, batch, constants):
    x = batch["sequence"] + 0.1 * jnp.sin(batch["z"].sum(-1))[:, None, None]
    net = sum(leaf.sum() for leaf in constants["net"].values())
    mixed = _attention(x @ params["query"], x @ params["key"], x * jnp.cos(net))
    logits = mixed.mean(1) @ params["out"] + constants["bias"][None]
    return _cross_entropy(logits, batch["label"], constants)


def memories() -> dict[str, lljax.MemoryStrategy]:
    """The strategies that the table has, by name."""
    return {
        "stored": lljax.StoreStates(),
        "recomputed": lljax.RecomputeStates(),
        "recomputed, depth 2": lljax.RecomputeStates(depth=2),
        "gradients kept": lljax.KeepGradients(),
        "offloaded": lljax.OffloadStates(),
    }
