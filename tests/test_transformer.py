"""The language model: against a NumPy model written by hand, and against itself."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import optax
import pytest
from problems import assert_close, compiled

import lljax
from lljax.microbatch import split_microbatches
from lljax.models.transformer import (
    PAD,
    TokenSequences,
    Transformer,
    init_params,
    sequence_loss,
    token_losses,
)
from lljax.train_step import weighted_gradient

VOCAB, LENGTH, WIDTH, HEADS = 11, 5, 8, 2
RATE = 0.5


def make_model(context=LENGTH, **settings):
    return Transformer(VOCAB, context, **{"width": WIDTH, "num_heads": HEADS, **settings})


@functools.cache
def make_params(initialization):
    """theta_0 in float64, with norms that do something."""
    model = make_model(initialization=initialization)
    params = compiled(functools.partial(init_params, model))(jax.random.key(3))
    rng = np.random.default_rng(4)

    def changed(leaf):
        noise = 0.3 * rng.normal(size=leaf.shape) if leaf.ndim == 1 else 0.0
        return jnp.asarray(np.asarray(leaf, np.float64) + noise)

    return jax.tree.map(changed, params)


def one_layer_params():
    """Without the second layer."""
    params = make_params("torch")
    return {name: leaf for name, leaf in params.items() if not name.endswith("_1")}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), dtype), tree)


def make_tokens(lengths, seed=0):
    """Random sequences of as many tokens as `lengths` says, and PAD behind them."""
    tokens = np.random.default_rng(seed).integers(1, VOCAB, (len(lengths), LENGTH + 1))
    tokens[np.arange(LENGTH + 1) >= np.asarray(lengths)[:, None]] = PAD
    return TokenSequences(jnp.asarray(tokens, jnp.int32))


TRAIN = make_tokens([6, 4, 6, 2, 5])
DESIRED = make_tokens([6, 6, 3], seed=1)
POLICY = np.random.default_rng(5).dirichlet(np.ones(5), 3)


def as_numpy(params):
    """A flat dict of arrays."""
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {name: np.asarray(leaf) for name, leaf in flat.items()}


def by_hand(attention_scale, activation):
    divisor = (WIDTH if attention_scale == "width" else WIDTH / HEADS) ** 0.5
    return reference.NumpyTransformer(2, HEADS, divisor, activation)


@functools.cache
def meta_gradient(attention_scale, activation):
    loss_fn = sequence_loss(make_model(attention_scale=attention_scale, activation=activation))
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(RATE), check_optimizer=False)
    return compiled(jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True))


OF_NUMPY = pytest.mark.parametrize(
    ("attention_scale", "initialization", "activation"),
    [
        ("head", "torch", "relu"),
        ("width", "scaled", "gelu"),
        pytest.param("width", "scaled", "relu", marks=pytest.mark.slow),
    ],
)


@OF_NUMPY
def test_losses_equal_numpy(attention_scale, initialization, activation):
    params = make_params(initialization)
    model = by_hand(attention_scale, activation)
    expected = model.losses(as_numpy(params), np.asarray(TRAIN.tokens))
    ours = make_model(attention_scale=attention_scale, activation=activation)
    assert_close(compiled(sequence_loss(ours))(params, TRAIN), expected, 1e-12)


@OF_NUMPY
def test_meta_gradient_equals_numpy(attention_scale, initialization, activation):
    params = make_params(initialization)
    (auc, _), (policy_bar, params_bar) = meta_gradient(attention_scale, activation)(
        jnp.asarray(POLICY), params, TRAIN, DESIRED
    )
    run = (POLICY, RATE, np.asarray(TRAIN.tokens), np.asarray(DESIRED.tokens))
    model, flat = by_hand(attention_scale, activation), as_numpy(params)
    assert_close(auc, reference.auc(model, flat, *run).real, 1e-12)
    assert_close(policy_bar, reference.meta_gradient(model, flat, *run), 1e-9)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = {name: rng.normal(size=leaf.shape) for name, leaf in flat.items()}
        slope = sum(np.vdot(leaf, direction[name]) for name, leaf in as_numpy(params_bar).items())
        assert_close(slope, reference.slope_along(model, flat, direction, *run), 1e-9)


def test_meta_gradient_of_a_single_step_equals_the_closed_form_in_numpy():
    """Rows of zeros leave theta_1 where it is, so the AUC is L(theta_1)."""
    params, policy = make_params("scaled"), POLICY * [[1], [0], [0]]
    _, (policy_bar, _) = meta_gradient("head", "relu")(jnp.asarray(policy), params, TRAIN, DESIRED)
    examples = (np.asarray(TRAIN.tokens), np.asarray(DESIRED.tokens))
    expected = reference.single_step_gradient(
        by_hand("head", "relu"), as_numpy(params), POLICY[:1], RATE, *examples
    )
    assert_close(policy_bar[:1], expected, 1e-9)


@functools.cache
def adjoint_pass(chunk=None):
    """((gradient, losses), their derivatives in a direction) of a step, as the adjoint asks."""
    loss_fn = sequence_loss(make_model(num_layers=1, loss_chunk=chunk))
    return compiled(functools.partial(gradient_and_its_derivative, loss_fn))


def gradient_and_its_derivative(loss_fn, params, direction, batch, weights):
    def gradient_and_losses(params):
        return weighted_gradient(loss_fn, params, split_microbatches(batch, None), weights)

    return jax.jvp(gradient_and_losses, (params,), (direction,))


def pass_inputs(dtype=jnp.float64):
    params = one_layer_params()
    direction = jax.tree.map(lambda leaf: np.cos(7 * np.asarray(leaf)), params)
    return cast(params, dtype), cast(direction, dtype), TRAIN, jnp.asarray(POLICY[0], dtype)


def test_chunks_change_nothing():
    """7 does not divide the 25 targets."""
    inputs = pass_inputs()
    assert_close(adjoint_pass(7)(*inputs), adjoint_pass(None)(*inputs), 1e-12)


def test_token_losses_are_cross_entropies_of_any_chunk_size():
    rng = np.random.default_rng(0)
    weights, hidden, head = (jnp.asarray(rng.normal(size=s)) for s in (7, (7, 4), (4, VOCAB)))
    targets = jnp.arange(7)

    def derivatives(losses_of):
        def gradient(hidden, head):
            losses, pull_back = jax.vjp(losses_of, hidden, head)
            return losses, pull_back(weights)

        return compiled(lambda *both: jax.jvp(gradient, both, both))(hidden, head)

    @derivatives
    def plain(hidden, head):
        return optax.softmax_cross_entropy_with_integer_labels(hidden @ head, targets)

    for chunk in (3, 100):
        ours = derivatives(lambda *both: token_losses(*both, targets, chunk))  # noqa: B023
        assert_close(ours, plain, 1e-12)


def test_chunks_bound_the_memory():
    """Nowhere [B, L, V] numbers: not in the losses, their gradient, or the derivative of that."""
    vocab, length, size = 2000, 16, 8
    tokens = TokenSequences(jax.ShapeDtypeStruct((size, length + 1), jnp.int32))
    weights = jax.ShapeDtypeStruct((size,), jnp.float32)

    model = Transformer(vocab, length, width=4, num_heads=1, num_layers=1, loss_chunk=8)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    step = jax.jit(functools.partial(gradient_and_its_derivative, sequence_loss(model)))
    memory = step.lower(params, params, tokens, weights).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * size * length * vocab / 2


def test_later_tokens_change_no_earlier_loss():
    params = one_layer_params()
    model = make_model(num_layers=1)
    losses_of = compiled(lambda tokens: model.apply({"params": params}, tokens))
    tokens = np.asarray(make_tokens([6, 6]).tokens)
    before = np.asarray(losses_of(tokens))
    assert before.shape == (2, LENGTH)
    for place in range(1, LENGTH + 1):
        changed = tokens.copy()
        changed[0, place] = changed[0, place] % (VOCAB - 1) + 1
        after = np.asarray(losses_of(changed))
        # The loss at index l is that of token l + 1, given the tokens up to l.
        np.testing.assert_array_equal(after[0, : place - 1], before[0, : place - 1])
        assert (np.abs(after[0, place - 1 :] - before[0, place - 1 :]) > 1e-6).all()
        np.testing.assert_array_equal(after[1], before[1])


def test_losses_are_those_of_the_logits():
    model, params = make_model(num_layers=1), one_layer_params()

    @jax.jit
    def both(tokens):
        logits = model.apply({"params": params}, tokens[:, :-1], method="logits")
        plain = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return model.apply({"params": params}, tokens), plain

    assert_close(*both(TRAIN.tokens), 1e-12)


def test_padding_behind_the_end_changes_nothing():
    params = one_layer_params()
    loss_fn = compiled(sequence_loss(make_model(num_layers=1)))
    padded = make_tokens([4, 2, 3])
    short = TokenSequences(padded.tokens[:, :4])
    assert_close(loss_fn(params, padded), loss_fn(params, short), 1e-14)


PASSES = pytest.mark.parametrize(
    ("dtype", "chunk"),
    [(jnp.float64, None), (jnp.float64, 7), (jnp.float32, None), (jnp.bfloat16, None)],
)


@PASSES
def test_a_sequence_of_padding_has_no_loss_and_no_effect(dtype, chunk):
    params, direction, _, weights = pass_inputs(dtype)
    tokens = TokenSequences(TRAIN.tokens.at[2].set(PAD))
    step = adjoint_pass(chunk)
    (gradient, losses), (curvature, slopes) = step(params, direction, tokens, weights)
    without_it = np.where(np.arange(5) == 2, 0, weights).astype(weights.dtype)
    (without, _), (curvature_without, slopes_without) = step(params, direction, TRAIN, without_it)
    assert losses[2] == 0
    assert slopes[2] == 0
    slopes_without = np.where(np.arange(5) == 2, 0, np.asarray(slopes_without, float))
    expected = (without, curvature_without, slopes_without)
    assert_close((gradient, curvature, slopes), expected, float(jnp.finfo(dtype).eps))


@PASSES
def test_narrow_parameters_give_nearly_the_same_derivatives(dtype, chunk):
    out = adjoint_pass(chunk)(*pass_inputs(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype(dtype)}
    tolerance = {jnp.float64: 1e-12, jnp.float32: 1e-5, jnp.bfloat16: 0.1}[dtype]
    exact = adjoint_pass(None)(*pass_inputs())
    for actual, expected in zip(jax.tree.leaves(out), jax.tree.leaves(exact), strict=True):
        # In norm: where a ReLU's input rounds to the other side of 0, single entries differ.
        error = np.linalg.norm(np.asarray(actual, float) - np.asarray(expected))
        assert error <= tolerance * np.linalg.norm(expected)


def test_vectors_of_zeros_have_derivatives():
    """Where all is zero the root of the mean square has none."""
    params, direction, *batch = pass_inputs(jnp.float32)
    zeros = jax.tree.map(jnp.zeros_like, params)
    out = adjoint_pass(None)(zeros, direction, *batch)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def test_vmap_over_parameters():
    params, direction, batch, weights = pass_inputs()
    several = jax.tree.map(lambda leaf, d: jnp.stack([leaf, leaf + 0.1 * d]), params, direction)
    loss_fn = sequence_loss(make_model(num_layers=1, loss_chunk=7))

    def losses_and_gradient(params):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, batch), params)
        return pull_back(weights)[0], losses

    together = compiled(jax.vmap(losses_and_gradient))(several)
    for index in range(2):
        mine, its_params = (jax.tree.map(lambda x: x[index], t) for t in (together, several))  # noqa: B023
        alone, _ = adjoint_pass(7)(its_params, direction, batch, weights)
        assert_close(mine, alone, 1e-12)


@pytest.mark.parametrize("initialization", ["scaled", "torch"])
def test_initialization(initialization):
    """PyTorch: linear layers U(-1/sqrt(fan-in), 1/sqrt(fan-in)), embeddings N(0, 1)."""
    vocab, context, width = 400, 100, 64
    model = Transformer(vocab, context, width=width, num_layers=1, initialization=initialization)
    params = as_numpy(compiled(functools.partial(init_params, model))(jax.random.key(0)))
    assert {leaf.dtype for leaf in params.values()} == {np.dtype("float32")}
    for name, leaf in params.items():
        if name.endswith(("gain", "bias")):
            np.testing.assert_array_equal(leaf, float(name.endswith("gain")))
            continue
        assert abs(leaf.mean()) < 4 * leaf.std() / leaf.size**0.5
        if name in ("words", "positions"):
            shape = {"words": (vocab, width), "positions": (context, width)}[name]
            deviation = {"torch": 1.0, "scaled": 0.02}[initialization]
            assert np.abs(leaf).max() > 3 * deviation
        else:
            fan_in = 4 * width if "outer" in name else width
            shape = (fan_in, {"head": vocab}.get(name, 4 * width if "inner" in name else width))
            deviation = fan_in**-0.5
            if initialization == "torch":
                assert 0.99 * deviation < np.abs(leaf).max() <= deviation
                deviation /= 3**0.5
        assert leaf.shape == shape
        # 4 standard errors of the deviation of normal numbers, the widest of these.
        assert abs(leaf.std() / deviation - 1) < 4 / (2 * leaf.size) ** 0.5


def test_the_papers_model_has_its_size():
    shapes = jax.eval_shape(
        functools.partial(init_params, Transformer(5000, 64)), jax.random.key(0)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 1_682_688


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 9}, "`width` must be a multiple of `num_heads`; got 9 and 2"),
        ({"context": 0}, "`context` must be at least 1; got 0"),
        ({"num_heads": 0}, "`num_heads` must be at least 1; got 0"),
        ({"loss_chunk": 0}, "`loss_chunk` must be at least 1; got 0"),
        ({"attention_scale": "heads"}, r"`attention_scale` must be one of .*; got 'heads'"),
        ({"activation": "swish"}, r"`activation` must be one of .*; got 'swish'"),
        ({"initialization": "xavier"}, r"`initialization` must be one of .*; got 'xavier'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(init_params, make_model(**settings)), jax.random.key(0))


@pytest.mark.parametrize("context", [1, 4])
def test_sequences_longer_than_the_context_are_refused_in_words(context):
    """One position would fit any length by broadcasting."""
    model = make_model(context)
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    with pytest.raises(ValueError, match=rf"have 5 inputs.*the model's `context` is {context}"):
        jax.eval_shape(sequence_loss(model), params, TRAIN)
