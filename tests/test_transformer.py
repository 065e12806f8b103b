"""The language model: against a NumPy model written by hand, and against itself."""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
import numpy_transformer as reference
import optax
import pytest

import lljax
from lljax.models.transformer import (
    PAD,
    TokenSequences,
    Transformer,
    init_params,
    sequence_loss,
    token_losses,
)
from lljax.train_step import split_microbatches, weighted_gradient

VOCAB, LENGTH, WIDTH, HEADS, LAYERS = 11, 5, 8, 2, 2
RATE = 0.5


def make_model(context=LENGTH, **settings):
    settings = {"width": WIDTH, "num_heads": HEADS, "num_layers": LAYERS, **settings}
    return Transformer(VOCAB, context, **settings)


def make_params(context=LENGTH, initialization="scaled", dtype=jnp.float64):
    """theta_0, with norms that do something."""
    params = init_params(make_model(context, initialization=initialization), jax.random.key(3))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(4), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape) if leaf.ndim == 1 else leaf
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.map(lambda leaf: leaf.astype(dtype), structure.unflatten(noisy))


def make_tokens(lengths, seed=0, length=LENGTH):
    """Random sequences of as many tokens as `lengths` says, and PAD behind them."""
    tokens = np.random.default_rng(seed).integers(1, VOCAB, (len(lengths), length + 1))
    tokens[np.arange(length + 1) >= np.asarray(lengths)[:, None]] = PAD
    return TokenSequences(jnp.asarray(tokens, jnp.int32))


TRAIN = make_tokens([6, 4, 6, 2, 5])
DESIRED = make_tokens([6, 6, 3], seed=1)
POLICY = jax.nn.softmax(jax.random.normal(jax.random.key(5), (3, 5), jnp.float64))


def assert_close(actual, expected, tolerance):
    """Relative to the largest entry of each array."""
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=0, atol=tolerance * np.abs(e).max()),
        actual,
        expected,
    )


def by_hand(attention_scale):
    divisor = (WIDTH if attention_scale == "width" else WIDTH / HEADS) ** 0.5
    return reference.NumpyTransformer(LAYERS, HEADS, divisor)


def as_numpy(tree):
    return {
        name: np.asarray(leaf) for name, leaf in flax.traverse_util.flatten_dict(tree, "/").items()
    }


@functools.cache
def compiled_loss(attention_scale):
    return jax.jit(sequence_loss(make_model(attention_scale=attention_scale)))


@functools.cache
def compiled_meta_gradient(attention_scale):
    loss_fn = sequence_loss(make_model(attention_scale=attention_scale))
    loss_auc = lljax.build_loss_auc(loss_fn, optax.sgd(RATE), microbatch_size=2)
    return jax.jit(jax.value_and_grad(loss_auc, argnums=(0, 1), has_aux=True))


@pytest.mark.parametrize("initialization", ["scaled", "torch"])
@pytest.mark.parametrize("attention_scale", ["head", "width"])
def test_losses_equal_numpy(attention_scale, initialization):
    params = make_params(initialization=initialization)
    losses = compiled_loss(attention_scale)(params, TRAIN)
    expected = by_hand(attention_scale).losses(as_numpy(params), np.asarray(TRAIN.tokens))
    assert_close(losses, expected, 1e-12)


@pytest.mark.parametrize("initialization", ["scaled", "torch"])
@pytest.mark.parametrize("attention_scale", ["head", "width"])
def test_meta_gradient_equals_numpy(attention_scale, initialization):
    params = make_params(initialization=initialization)
    (auc, _), (policy_bar, params_bar) = compiled_meta_gradient(attention_scale)(
        POLICY, params, TRAIN, DESIRED
    )
    run = (np.asarray(POLICY), RATE, np.asarray(TRAIN.tokens), np.asarray(DESIRED.tokens))
    model, flat = by_hand(attention_scale), as_numpy(params)
    assert_close(auc, reference.auc(model, flat, *run).real, 1e-12)
    assert_close(policy_bar, reference.meta_gradient(model, flat, *run), 1e-9)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        direction = {name: rng.normal(size=leaf.shape) for name, leaf in flat.items()}
        slope = sum(np.vdot(leaf, direction[name]) for name, leaf in as_numpy(params_bar).items())
        assert_close(slope, reference.slope_along(model, flat, direction, *run), 1e-9)


def test_meta_gradient_of_a_single_step_equals_the_closed_form_in_numpy():
    params = make_params()
    _, (policy_bar, _) = compiled_meta_gradient("head")(POLICY[:1], params, TRAIN, DESIRED)
    run = (np.asarray(POLICY[:1]), RATE, np.asarray(TRAIN.tokens), np.asarray(DESIRED.tokens))
    expected = reference.single_step_gradient(by_hand("head"), as_numpy(params), *run)
    assert_close(policy_bar, expected, 1e-9)


def pass_of_the_adjoint(model, weights, size=None):
    """A step's gradient and losses, and their derivatives in a direction, as the adjoint asks."""
    loss_fn = sequence_loss(model)

    @jax.jit
    def both(params, direction, batch):
        examples = split_microbatches(batch, size)
        gradient = functools.partial(weighted_gradient, loss_fn)
        return jax.jvp(
            lambda p: gradient(p, examples, weights.astype(jax.tree.leaves(p)[0].dtype)),
            (params,),
            (direction,),
        )

    return both


@functools.cache
def unchunked_pass():
    params = make_params()
    direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    both = pass_of_the_adjoint(make_model(), POLICY[0])
    return params, direction, both(params, direction, TRAIN)


@pytest.mark.parametrize("chunk", [1, 5, 7, 24, 25])
def test_chunks_change_nothing(chunk):
    """5 sequences of 5 targets: 7 and 24 divide nothing."""
    params, direction, expected = unchunked_pass()
    both = pass_of_the_adjoint(make_model(loss_chunk=chunk), POLICY[0])
    assert_close(both(params, direction, TRAIN), expected, 1e-12)


def test_chunks_bound_the_memory():
    """Nowhere [B, L, V] numbers: not in the losses, their gradient, or the derivative of that."""
    vocab, length, size = 2000, 16, 8
    tokens = TokenSequences(jnp.ones((size, length + 1), jnp.int32))
    weights = jnp.full(size, 1 / size, jnp.float32)

    def temporary_bytes(chunk):
        model = Transformer(vocab, length, width=4, num_heads=1, num_layers=1, loss_chunk=chunk)
        params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
        both = pass_of_the_adjoint(model, weights)
        return both.lower(params, params, tokens).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * size * length * vocab
    assert temporary_bytes(None) > logits
    assert temporary_bytes(8) < logits / 2


def test_later_tokens_change_no_earlier_loss():
    model, params = make_model(), make_params()
    tokens = make_tokens([6, 6]).tokens
    losses_of = jax.jit(lambda tokens: model.apply({"params": params}, tokens))
    before = losses_of(tokens)
    assert before.shape == (2, LENGTH)
    for place in range(1, LENGTH + 1):
        changed = losses_of(tokens.at[0, place].set(tokens[0, place] % (VOCAB - 1) + 1))
        # The loss at index l is that of token l + 1, given the tokens up to l.
        np.testing.assert_array_equal(changed[0, : place - 1], before[0, : place - 1])
        assert (np.abs(changed[0, place - 1 :] - before[0, place - 1 :]) > 1e-6).all()
        np.testing.assert_array_equal(changed[1], before[1])


def test_losses_are_those_of_the_logits():
    model, params = make_model(), make_params()
    logits = model.apply({"params": params}, TRAIN.tokens[:, :-1], method="logits")
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, TRAIN.tokens[:, 1:])
    assert_close(model.apply({"params": params}, TRAIN.tokens), expected, 1e-12)


def test_padding_behind_the_end_changes_nothing():
    short = make_tokens([4, 2, 3], length=3)
    longer = TokenSequences(jnp.pad(short.tokens, ((0, 0), (0, 4))))
    params = make_params(context=7)
    loss_fn = sequence_loss(make_model(context=7))
    assert_close(loss_fn(params, longer), loss_fn(params, short), 1e-14)
    gradients = [jax.grad(lambda p, b=b: loss_fn(p, b).sum())(params, b) for b in (longer, short)]
    assert_close(*gradients, 1e-13)


@pytest.mark.parametrize("chunk", [None, 7])
@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_a_sequence_of_padding_has_no_loss_and_no_effect(chunk, dtype):
    params = make_params(dtype=dtype)
    direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)
    tokens = TokenSequences(TRAIN.tokens.at[2].set(PAD))
    rest = TokenSequences(jnp.delete(tokens.tokens, 2, axis=0))
    model = make_model(loss_chunk=chunk)
    (gradient, losses), (curvature, slopes) = pass_of_the_adjoint(model, POLICY[0])(
        params, direction, tokens
    )
    (alone, _), (curvature_alone, slopes_alone) = pass_of_the_adjoint(
        model, jnp.delete(POLICY[0], 2)
    )(params, direction, rest)
    assert losses[2] == 0
    assert slopes[2] == 0
    dtypes = {leaf.dtype for leaf in jax.tree.leaves((gradient, losses, curvature, slopes))}
    assert dtypes == {jnp.dtype(dtype)}
    tolerance = {jnp.float64: 1e-12, jnp.float32: 1e-4, jnp.bfloat16: 0.2}[dtype]
    wide = functools.partial(jax.tree.map, lambda leaf: np.asarray(leaf, np.float64))
    assert_close(
        wide((gradient, curvature, jnp.delete(slopes, 2))),
        wide((alone, curvature_alone, slopes_alone)),
        tolerance,
    )


def test_a_vector_of_zeros_has_derivatives():
    """The root of the mean square has none where all is zero."""
    params = jax.tree.map(jnp.zeros_like, make_params(dtype=jnp.float32))
    direction = jax.tree.map(jnp.ones_like, params)
    out = pass_of_the_adjoint(make_model(), POLICY[0])(params, direction, TRAIN)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 0.05)])
def test_narrow_parameters_give_nearly_the_same_meta_gradient(dtype, tolerance):
    exact = make_params(initialization="torch")
    arguments = (jax.tree.map(lambda leaf: leaf.astype(dtype), exact), TRAIN, DESIRED)
    policy = POLICY.astype(jnp.float32)
    (auc, _), (policy_bar, params_bar) = compiled_meta_gradient("width")(policy, *arguments)
    assert {leaf.dtype for leaf in jax.tree.leaves(params_bar)} == {jnp.dtype(dtype)}
    (exact_auc, _), (exact_bar, _) = compiled_meta_gradient("width")(POLICY, exact, TRAIN, DESIRED)
    assert_close(auc, exact_auc, tolerance)
    assert_close(policy_bar, exact_bar, tolerance)


@pytest.mark.parametrize("chunk", [None, 4])
def test_vmap_over_parameters(chunk):
    loss_fn = sequence_loss(make_model(loss_chunk=chunk))
    several = [make_params(), make_params(initialization="torch")]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)

    def losses_and_gradient(params):
        losses, pull_back = jax.vjp(lambda p: loss_fn(p, TRAIN), params)
        return losses, pull_back(POLICY[0])[0]

    together = jax.jit(jax.vmap(losses_and_gradient))(stacked)
    alone = jax.jit(losses_and_gradient)
    for index, params in enumerate(several):
        mine = jax.tree.map(lambda leaf: leaf[index], together)  # noqa: B023
        assert_close(mine, alone(params), 1e-12)


@pytest.mark.parametrize("initialization", ["scaled", "torch"])
def test_initialization(initialization):
    """PyTorch: linear layers U(-1/sqrt(fan-in), 1/sqrt(fan-in)), embeddings N(0, 1)."""
    vocab, context, width = 400, 100, 64
    model = Transformer(vocab, context, width=width, initialization=initialization)
    params = flax.traverse_util.flatten_dict(init_params(model, jax.random.key(0)), "/")
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    for name, leaf in as_numpy(init_params(model, jax.random.key(0))).items():
        if name.endswith("gain") or name.endswith("bias"):
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
        ({"initialization": "xavier"}, r"`initialization` must be one of .*; got 'xavier'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_words(settings, message):
    with pytest.raises(ValueError, match=message):
        init_params(make_model(**settings), jax.random.key(0))


@pytest.mark.parametrize("context", [1, 4])
def test_sequences_longer_than_the_context_are_refused_in_words(context):
    """One position would fit any length by broadcasting."""
    loss_fn = sequence_loss(make_model(context))
    with pytest.raises(ValueError, match=rf"have 5 inputs.*the model's `context` is {context}"):
        loss_fn(make_params(context), TRAIN)


def test_token_losses_take_more_than_one_chunk_size_for_the_same_numbers():
    hidden = jax.random.normal(jax.random.key(0), (7, 4), jnp.float64)
    head = jax.random.normal(jax.random.key(1), (4, VOCAB), jnp.float64)
    targets = jnp.arange(7) % VOCAB
    expected = optax.softmax_cross_entropy_with_integer_labels(hidden @ head, targets)
    for chunk in (None, 2, 7, 100):
        assert_close(token_losses(hidden, head, targets, chunk), expected, 1e-13)
