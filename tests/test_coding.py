"""Training as compression: what is coded comes back, or is refused, and its length is the AUC."""

import dataclasses
import functools
import random
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lljax

LENGTH, SIZE, STEPS = 8, 24, 10
HEADER = 49
TEXT = b"the cat sat on the mat, and the dog sat on the cat. all of them were at home; so was I. "


def logits_after(params, before):
    """By the byte before, through eight hidden units: [..] -> [.., 256]."""
    return jnp.tanh(params["in"][before]) @ params["out"]


def next_logits(params, tokens, position):
    before = jnp.take(tokens, position - 1, axis=1, mode="fill", fill_value=0)
    return logits_after(params, before)


def loss_fn(params, batch):
    """[B, L] -> [B], the mean over the bytes of an example, nats."""
    before = jnp.pad(batch[:, :-1], ((0, 0), (1, 0)))
    logits = logits_after(params, before)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch).mean(1)


def build(length=LENGTH, size=SIZE, logits=next_logits, optimizer=None, **options):
    optimizer = optimizer or optax.adam(0.03, eps_root=1e-8)
    return lljax.build_coder(
        logits, loss_fn, optimizer, example_length=length, examples_per_step=size, **options
    )


CODER = build()  # programs are compiled once for all tests


def make_params():
    keys = jax.random.split(jax.random.key(0))
    shapes = {"in": (256, 8), "out": (8, 256)}
    return {
        name: 0.3 * jax.random.normal(key, shape, jnp.float32)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def make_shared():
    """(policy, theta_0, training set)."""
    train = CODER.cut(TEXT * 4)
    return lljax.uniform_policy(STEPS, len(train)), make_params(), train


params = pytest.fixture(make_params, scope="module")
shared = pytest.fixture(make_shared, scope="module")


def bits_of(stream):
    return 8 * (len(stream) - HEADER)


def files(count):
    """Of random bytes, of random words, of both; empty ones, whole blocks, longer than the run."""
    rng = random.Random(0)
    words = TEXT.split()
    block = SIZE * LENGTH
    sizes = [0, 1, LENGTH, LENGTH + 1, block, block + 1, STEPS * block, STEPS * block + 7]
    sizes += [rng.choice((100, 1000, 3000)) * rng.random() for _ in range(count - len(sizes))]
    for number, size in enumerate(map(int, sizes)):
        text = b" ".join(rng.choice(words) for _ in range(size))[:size]
        noise = rng.randbytes(size)
        yield (text, noise, text[: size // 2] + noise[size // 2 :])[number % 3]


def test_a_hundred_files_come_back(shared):
    sizes = []
    for data in files(100):
        stream = CODER.encode(data, *shared)
        assert CODER.decode(stream, *shared) == data
        sizes.append((len(data), len(stream)))
    assert sizes[0] == (0, HEADER)
    assert max(sizes)[0] > STEPS * SIZE * LENGTH


def test_the_length_is_the_auc(shared):
    """T B L AUC / ln 2, with the file's own examples as those on which theta_t is measured."""
    length, size, steps = 40, 32, 24
    coder = build(length, size)
    data = random.Random(1).randbytes(4096) + TEXT * 400
    data = data[: steps * size * length]
    _, params, _ = shared
    train = coder.cut(TEXT * 6)
    policy = lljax.uniform_policy(steps, len(train))
    stream = coder.encode(data, policy, params, train)

    rows = np.arange(steps * size).reshape(steps, size)
    index = np.concatenate([rows[:1], rows])  # L(theta_0) is in no AUC
    loss_auc = lljax.build_loss_auc(loss_fn, optax.adam(0.03, eps_root=1e-8))
    inputs = lljax.StepInputs(policy, desired_index=jnp.asarray(index))
    auc, _ = loss_auc(inputs, params, train, coder.cut(data))
    ideal = steps * size * length * float(auc) / np.log(2)
    assert abs(bits_of(stream) - ideal) < 1e-3 * ideal + 64
    # Not those of theta_0 .. theta_{T-1}, which differ by more.
    shifted = np.concatenate([rows, rows[-1:]])
    inputs = dataclasses.replace(inputs, desired_index=jnp.asarray(shifted))
    losses = loss_auc(inputs, params, train, coder.cut(data))[1].desired_losses[:-1]
    assert abs(steps * size * length * losses.mean() / np.log(2) - ideal) > 2e-3 * ideal + 64


def test_the_length_is_what_a_loop_of_ones_own_measures(shared):
    """In float64, with mini-batches, a learning rate for each step and an example cut short."""
    _, params, train = shared
    rng = np.random.default_rng(2)
    index = rng.integers(0, len(train), (STEPS, 5))
    rates = np.linspace(0.5, 0.1, STEPS)
    weights = rng.uniform(0, 0.4, (STEPS, 5))
    optimizer = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    inputs = lljax.StepInputs(
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(index),
        {"learning_rate": jnp.asarray(rates, jnp.float32)},
    )
    coder = build(optimizer=optimizer)
    data = (TEXT * 30)[: STEPS * SIZE * LENGTH - 5]
    stream = coder.encode(data, inputs, params, train)
    assert coder.decode(stream, inputs, params, train) == data

    theta = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    rows, ideal = coder.cut(data), 0.0
    gradient = jax.jit(jax.grad(lambda p, w, batch: w @ loss_fn(p, batch)))
    for t in range(STEPS):
        slopes = gradient(theta, weights[t], train[index[t]])
        theta = jax.tree.map(lambda p, g, rate=rates[t]: p - rate * g, theta, slopes)
        block = rows[t * SIZE : (t + 1) * SIZE]
        before = np.pad(block[:, :-1], ((0, 0), (1, 0)))
        log_p = np.asarray(jax.nn.log_softmax(logits_after(theta, before)))
        of_bytes = np.take_along_axis(log_p, block[..., None], axis=-1).ravel()
        ideal -= of_bytes[: len(data) - t * SIZE * LENGTH].sum() / np.log(2)
    assert abs(bits_of(stream) - ideal) < 1e-3 * ideal + 64


@pytest.mark.slow
def test_another_process_decodes(tmp_path):
    """With the policy and the training set made again."""
    begin = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1]); import test_coding as t; "
        "file = pathlib.Path(sys.argv[2]); data = t.TEXT * 25; shared = t.make_shared(); "
    )
    ends = (
        "file.write_bytes(t.CODER.encode(data, *shared))",
        "sys.exit(t.CODER.decode(file.read_bytes(), *shared) != data)",
    )
    for end in ends:
        arguments = str(Path(__file__).parent), str(tmp_path / "file")
        subprocess.run([sys.executable, "-c", begin + end, *arguments], check=True)


def test_an_empty_file(shared):
    policy, params, train = shared
    stream = CODER.encode(b"", *shared)
    assert CODER.decode(stream, *shared) == b""
    assert len(stream) == HEADER
    with pytest.raises(ValueError, match="other `params`"):
        CODER.decode(stream, policy, jax.tree.map(jnp.zeros_like, params), train)


def test_every_flipped_byte_is_refused(shared):
    stream = CODER.encode(TEXT, *shared)
    for place in range(len(stream)):
        flipped = bytearray(stream)
        flipped[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match="`stream`"):
            CODER.decode(flipped, *shared)
    for damaged in (b"", stream[:-1], stream[:-4], stream + bytes(4), stream[:20], TEXT):
        with pytest.raises(ValueError, match="`stream`"):
            CODER.decode(damaged, *shared)


def sealed(stream):
    """With a checksum that fits."""
    return bytes(stream[:5]) + zlib.crc32(stream[9:]).to_bytes(4, "little") + bytes(stream[9:])


def test_other_words_with_a_right_checksum_are_refused(shared):
    """By the digest of the bytes that they decode to."""
    stream = CODER.encode(TEXT, *shared)
    assert CODER.decode(sealed(stream), *shared) == TEXT
    for place in range(HEADER, len(stream), 3):
        flipped = bytearray(stream)
        flipped[place] ^= 0x80
        with pytest.raises(ValueError, match="has not led to the bytes that were encoded"):
            CODER.decode(sealed(flipped), *shared)


def test_what_is_not_shared_is_named(shared):
    policy, params, train = shared
    stream = CODER.encode(TEXT, *shared)
    other = {**params, "out": params["out"].at[3, 7].multiply(1.0000002)}
    with pytest.raises(ValueError, match=r"other `params`.*same params, policy, train, settings"):
        CODER.decode(stream, policy, other, train)
    with pytest.raises(ValueError, match="other `policy`"):
        CODER.decode(stream, policy.at[-1, 0].set(0.0), params, train)
    with pytest.raises(ValueError, match="other `train`"):
        CODER.decode(stream, policy, params, train[::-1])
    with pytest.raises(ValueError, match=r"other `settings`.*Here: example_length=8, examples_"):
        build(size=6).decode(stream, *shared)


def test_what_cannot_be_compared_is_found_in_the_end(shared):
    stream = CODER.encode(TEXT * 4, *shared)
    other_optimizer = build(optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"`optimizer`.* must be those of the encoder"):
        other_optimizer.decode(stream, *shared)
    warmer = build(logits=lambda *arguments: 0.9 * next_logits(*arguments))
    with pytest.raises(ValueError, match=r"`next_logits`.* must be those of the encoder"):
        warmer.decode(stream, *shared)

    def even(params, tokens, position):
        return jnp.zeros((SIZE, 256))

    # The bytes would be right, but not the run that has coded them.
    stream = build(logits=even).encode(TEXT, *shared)
    with pytest.raises(ValueError, match="training again has not led to"):
        build(logits=even, optimizer=optax.sgd(0.1)).decode(stream, *shared)


def as_examples(tokens):
    return tokens


def prequential_inputs(steps):
    """Step t trains on the examples that step t - 1 has coded."""
    index = SIZE * (jnp.arange(steps)[:, None] - 1) + jnp.arange(SIZE)[None]
    weights = jnp.where(index >= 0, 1 / SIZE, 0.0).astype(jnp.float32)
    return lljax.StepInputs(weights, jnp.maximum(index, 0))


@functools.cache
def prequential_coder():
    return build(as_examples=as_examples, optimizer=optax.adam(0.1, eps_root=1e-8))


def test_a_file_trains_the_model_that_codes_it(params):
    coder, steps = prequential_coder(), 20
    inputs = prequential_inputs(steps)
    data = (TEXT * 60)[: steps * SIZE * LENGTH]
    stream = coder.encode(data, inputs, params, None)
    assert coder.decode(stream, inputs, params, None) == data
    assert len(stream) < 0.7 * len(data)
    loss_auc = lljax.build_loss_auc(loss_fn, optax.adam(0.1, eps_root=1e-8))
    rows = np.arange(steps * SIZE).reshape(steps, SIZE)
    inputs = dataclasses.replace(
        inputs, desired_index=jnp.asarray(np.concatenate([rows[:1], rows]))
    )
    auc, _ = loss_auc(inputs, params, coder.cut(data), coder.cut(data))
    ideal = len(data) * float(auc) / np.log(2)
    assert abs(bits_of(stream) - ideal) < 1e-3 * ideal + 64


def test_shared_examples_and_those_of_the_file_together(shared):
    _, params, train = shared
    num = len(train)
    policy = np.zeros((STEPS, num + STEPS * SIZE), np.float32)
    policy[:, :num] = 1 / num
    for t in range(1, STEPS):
        policy[t, num : num + t * SIZE] = 0.5 / (t * SIZE)
    coder = prequential_coder()
    data = b"quizzes vex jumpy dwarfs. " * 90
    stream = coder.encode(data, policy, params, train)
    assert coder.decode(stream, policy, params, train) == data
    policy[:, num:] = 0
    assert len(stream) < 0.8 * len(coder.encode(data, policy, params, train))


def test_a_file_cannot_train_on_what_is_to_come(shared):
    _, params, train = shared
    policy = lljax.uniform_policy(STEPS, len(train) + STEPS * SIZE)
    with pytest.raises(ValueError, match=r"not decoded yet: at step 0.*N \+ B t = 44.*example 44"):
        prequential_coder().encode(TEXT, policy, params, train)
    late = prequential_inputs(STEPS)
    early = dataclasses.replace(late, index=late.index.at[3, 0].set(3 * SIZE))
    with pytest.raises(ValueError, match=r"at step 3 .*weight 0.041.* for example 72 \(1 entries"):
        prequential_coder().encode(TEXT, early, params, None)


@pytest.mark.parametrize("mode", ["shared", "prequential"])
def test_later_examples_do_not_change_what_stands_before(mode, shared):
    coder, arguments = CODER, shared
    if mode == "prequential":
        coder, arguments = prequential_coder(), (prequential_inputs(STEPS), shared[1], None)
    block = SIZE * LENGTH
    head = (TEXT * 30)[: 6 * block]
    tails = random.Random(3).randbytes(3 * block), bytes(3 * block)
    first, second = (coder.encode(head + tail, *arguments)[HEADER:] for tail in tails)
    alone = coder.encode(head, *arguments)
    same = next(n for n, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    assert same >= len(alone) - HEADER - 8


def test_a_model_that_looks_ahead_sees_nothing(shared):
    """The byte itself would be the perfect prediction."""

    def peeking(params, tokens, position):
        here = jnp.take(tokens, position, axis=1)
        later = jnp.sum(jnp.where(jnp.arange(LENGTH)[None] >= position, tokens, 0), axis=1)
        return next_logits(params, tokens, position) + 50 * jax.nn.one_hot(here + later, 256)

    coder = build(logits=peeking)
    data = random.Random(4).randbytes(500)
    stream = coder.encode(data, *shared)
    assert len(stream) > len(data)
    assert coder.decode(stream, *shared) == data


def test_what_is_wrong_is_named(shared, monkeypatch):
    policy, params, train = shared
    with pytest.raises(ValueError, match="`data` must be bytes; got str: encode text first"):
        CODER.encode("text", *shared)
    with pytest.raises(ValueError, match=r"`policy` must have shape \(T, N\) = \(10, 44\)"):
        CODER.encode(TEXT, policy[:, :5], params, train)
    with pytest.raises(ValueError, match="`train` must be a pytree of arrays"):
        CODER.encode(TEXT, policy, params, None)
    with pytest.raises(ValueError, match=r"`next_logits.*shape \(B, 256\) = \(24, 256\)"):
        build(logits=lambda p, tokens, _: tokens).encode(TEXT, *shared)
    with pytest.raises(ValueError, match=r"not finite at theta_2: training diverges"):
        build(optimizer=optax.sgd(3e38)).encode(TEXT * 9, *shared)
    with pytest.raises(ValueError, match="`example_length` must be an int"):
        build(length=0)
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"pip install 'lljax\[coding\]'"):
        CODER.encode(TEXT, *shared)
