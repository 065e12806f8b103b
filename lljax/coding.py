"""Training as lossless compression: the model in training codes a file, byte by byte (§4.3)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lljax import checks
from lljax.coded_stream import SHARED, Header, digest, pack, range_coding, unpack
from lljax.hyperparams import init_state
from lljax.memory import StoreStates
from lljax.passes import Rules
from lljax.run_options import Held, RunOptions
from lljax.types import Batch, LossFn, Params, PassName, StepInputs, TrainState

SYMBOLS = 256

NextLogits = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""(theta, tokens [B, L], position []) -> [B, 256]: logits of the next byte; see `build_coder`."""

_Code = Callable[[np.ndarray, int], np.ndarray]
"""(probabilities [n, 256], number of the first byte) -> the n bytes, which are L apart."""


def build_coder(
    next_logits: NextLogits,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    example_length: int,
    examples_per_step: int = 1,
    as_examples: Callable[[jax.Array], Batch] | None = None,
    microbatch_size: int | None = None,
) -> "Coder":
    """A lossless compressor that is a training run: theta_t codes what comes after step t.

      bits = sum_{t=1..T} sum_{b,l} -log2 p(x_{t,b,l} | x_{t,b,<l}, theta_t) = T B L AUC / ln 2

    A file is cut into examples of L bytes, B of them a step. Step t turns theta_{t-1} into theta_t
    with nothing but what both sides have, and theta_t codes examples (t-1) B .. t B - 1. Who
    decodes has theta_0, the training set and the policy, takes the same steps, and gets the same
    bytes back. So a file's size is the area under its own loss curve: with those examples as the
    `desired_index` of theta_t, and a loss that is the mean over L bytes in nats, T B L bytes become
    T B L AUC / ln 2 bits, a header of 49 bytes, and at most 8 bytes at the end. theta_0 codes
    nothing, as L(theta_0) is in no AUC. A shorter file takes fewer steps; what is left of a longer
    one is coded by theta_T.

    Causality does not depend on the model: `next_logits` gets zeros in the place of bytes that are
    not decoded yet, of encoder and decoder alike, which call the same compiled program with the
    same shapes. Probabilities become whole numbers of 24 bits, none of them 0; that and the range
    coder cost some 3e-4 bits a byte.

    **Both sides must round alike**: the same kind of device with as many cores, the same versions
    of lljax, JAX and constriction, and on a GPU the same model of it, with
    `XLA_FLAGS="--xla_gpu_deterministic_ops=true --xla_gpu_autotune_level=0"`. Where they do not,
    decoding ends in a ValueError, and never in other bytes.

    >>> import jax, jax.numpy as jnp, optax, lljax
    >>> def next_logits(params, tokens, position):  # by the byte before, 0 at the beginning
    ...   return params[jnp.take(tokens, position - 1, axis=1, mode="fill", fill_value=0)]
    >>> def loss_fn(params, batch):  # [B, L] -> [B], nats a byte
    ...   before = jnp.pad(batch[:, :-1], ((0, 0), (1, 0)))
    ...   return optax.softmax_cross_entropy_with_integer_labels(params[before], batch).mean(1)
    >>> coder = lljax.build_coder(next_logits, loss_fn, optax.adam(0.3), example_length=16)
    >>> train = coder.cut(b"the model in training codes a file, byte by byte. " * 4)
    >>> shared = lljax.uniform_policy(20, len(train)), jnp.zeros((256, 256)), train
    >>> data = b"a file in training codes the model. " * 8
    >>> stream = coder.encode(data, *shared)
    >>> len(data), len(stream) < 200, coder.decode(stream, *shared) == data
    (288, True, True)

    Args:
      next_logits: (theta, tokens [B, L] int32, position l []) -> [B, 256], floating: unnormalised
        log-probabilities of the bytes tokens[:, l] given tokens[:, :l]; tokens from l on are zeros.
        Pure and deterministic.
      loss_fn: the training loss, (theta, batch) -> [B], as in `build_loss_auc`.
      optimizer: any optax optimiser.
      example_length: L. An example is coded without regard to those before it.
      examples_per_step: B.
      as_examples: lets the model train on the file itself too: tokens [T B, L] int32 -> as many
        examples of the form of `train`. They have the numbers N .. N + T B - 1 in a policy
        [T, N + T B] or an `index`; the weight of an example must be 0 until it is decoded, so those
        of step t = 0 .. T-1 from N + B t on. The numbers do not depend on the file.
      microbatch_size: as in `build_loss_auc`.

    Returns:
      A `Coder` with `encode(data, policy, params, train)`, `decode(stream, policy, params, train)`
      and `cut(data)`, which makes the examples [K, L]. They take the policy ([T, N] or
      `StepInputs`), theta_0, and the N training examples of the run (or None, with `as_examples`).
      They run on the host and cannot be jitted. Cost, of either: the steps, and L calls of
      `next_logits` for each.

    Raises:
      ValueError: an argument is not valid. Of both sides: an argument does not fit, an example has
        weight that is not decoded yet, or training diverges. Of `decode`: the stream is damaged, or
        was encoded with other params, policy, train or settings, all said before it trains; or the
        bytes or the parameters at the end are not those of the encoder.
      ImportError: of both sides: `pip install 'lljax[coding]'` is missing.

    Reference: arXiv:2402.17759, section 4.3. Entropy coding: the range coder of constriction.
    """
    checks.check_callable(next_logits, "next_logits", "(params, tokens, position) -> [B, 256]")
    checks.check_count("example_length", example_length)
    checks.check_count("examples_per_step", examples_per_step)
    if as_examples is not None:
        checks.check_callable(as_examples, "as_examples", "(tokens [K, L]) -> K examples")
    reverse: PassName = "reverse_over_reverse"  # what JAX does, and no pass of ours is taken
    memory = StoreStates()
    options = RunOptions(
        loss_fn, optimizer, None, memory, microbatch_size, "compute", reverse, eval_every=1
    )
    return Coder(options, next_logits, example_length, examples_per_step, as_examples)


class _Shared(NamedTuple):
    """What both sides have before a byte is coded."""

    params: Params
    inputs: StepInputs
    train: Batch  # or None


@dataclasses.dataclass(frozen=True)
class Coder:
    """Codes bytes with a model as it trains; `build_coder` makes it and says how."""

    options: RunOptions  # of the training run
    next_logits: NextLogits  # these four as `build_coder` has them
    example_length: int  # bytes
    examples_per_step: int  # that are coded and then trained on
    as_examples: Callable[[jax.Array], Batch] | None  # from bytes to examples

    def encode(
        self, data: bytes, policy: jax.Array | StepInputs, params: Params, train: Batch
    ) -> bytes:
        """The stream: a header of 49 bytes, and the code in words of 4 bytes."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ValueError(f"`data` must be bytes; got {type(data).__name__}: encode text first.")
        data = bytes(data)
        queue, model = range_coding()
        shared = self._check(policy, params, train)
        known = np.frombuffer(data, np.uint8).astype(np.int32)
        encoder = queue.RangeEncoder()

        def code(chances: np.ndarray, first: int) -> np.ndarray:
            symbols = known[first :: self.example_length][: len(chances)].copy()
            encoder.encode(symbols, model, chances)
            return symbols

        _, end = self._run(shared, len(data), code)
        header = Header(len(data), *self._digests(shared), digest(end, 8), digest(data, 8))
        return pack(header, encoder.get_compressed())

    def decode(
        self, stream: bytes, policy: jax.Array | StepInputs, params: Params, train: Batch
    ) -> bytes:
        """The bytes that were encoded, or a ValueError."""
        header, words = unpack(stream)
        queue, model = range_coding()
        shared = self._check(policy, params, train)
        for name, own in zip(SHARED, self._digests(shared), strict=True):
            if getattr(header, name) != own:
                got = f" Here: {self._settings}." if name == "settings" else ""
                raise ValueError(
                    f"the stream was encoded with other `{name}`. Both sides need the same "
                    f"{', '.join(SHARED)}, bit by bit.{got}"
                )
        decoder = queue.RangeDecoder(words)
        try:
            data, end = self._run(shared, header.num_bytes, lambda p, _: decoder.decode(model, p))
            failed = (digest(end, 8), digest(data, 8)) != (header.end, header.data)
        except AssertionError:  # constriction's, where no bytes have such a code
            failed = True
        if failed:
            raise ValueError(
                "training again has not led to the bytes that were encoded. `loss_fn`, "
                "`next_logits`, `optimizer`, the kind of device, its number of cores and the "
                "versions of lljax, JAX and constriction must be those of the encoder."
            )
        return data

    def cut(self, data: bytes) -> np.ndarray:
        """The examples [K, L] int32 that are coded, the last one filled up with zeros."""
        count = -(-len(data) // self.example_length)
        filled = bytes(data).ljust(count * self.example_length, b"\0")
        rows = np.frombuffer(filled, np.uint8).reshape(count, self.example_length)
        return rows.astype(np.int32)

    def _run(self, shared: _Shared, num_bytes: int, code: _Code) -> tuple[bytes, Params]:
        """(the bytes, the parameters that coded the last one): what both sides do alike."""
        size, length = self.examples_per_step, self.example_length
        num_steps = shared.inputs.weights.shape[0]
        decoded = np.zeros((num_steps * size, length), np.int32)
        state, parts = self._init(shared.params), []
        for t in range(-(-num_bytes // (size * length))):
            if t < num_steps:
                inputs = jax.tree.map(lambda leaf, t=t: leaf[t], shared.inputs)
                own = None if self.as_examples is None else decoded.copy()
                state = self._step(state, inputs, shared.train, own)
            block = np.zeros((size, length), np.int32)
            starts = np.arange(t * size, (t + 1) * size) * length
            for position in range(length):
                count = int(np.sum(starts + position < num_bytes))
                if count == 0:
                    break
                found = np.asarray(self._probabilities(state.params, block.copy(), position))
                if not np.isfinite(found).all():
                    raise ValueError(
                        f"`next_logits` are not finite at theta_{min(t + 1, num_steps)}: training "
                        f"diverges. Try a smaller learning rate."
                    )
                chances = found[:count].astype(np.float64)
                block[:count, position] = code(chances, int(starts[0]) + position)
            if t < num_steps:
                decoded[t * size : (t + 1) * size] = block
            parts.append(block.astype(np.uint8).tobytes())
        return b"".join(parts)[:num_bytes], state.params

    @functools.cached_property
    def _init(self) -> Callable[[Params], TrainState]:
        optimizer = self.options.optimizer
        return jax.jit(lambda params: TrainState(params, init_state(optimizer, params)))

    @functools.cached_property
    def _step(self) -> Callable[..., TrainState]:
        """(s_t, what step t is given, train, the file's examples so far) -> s_{t+1}."""

        def step(state, inputs, train, decoded):
            examples = self._examples(train, decoded)
            functions = self.options.as_given(Rules())
            run = self.options.run(functions, examples, examples, (None, Held()))
            return run.step(state, inputs)[0]

        return jax.jit(step)

    @functools.cached_property
    def _probabilities(self) -> Callable[..., jax.Array]:
        """(theta, tokens [B, L], position) -> [B, 256] float32, of the bytes at the position."""

        def probabilities(params, tokens, position):
            present = jnp.arange(self.example_length)[None] < position
            logits = self.next_logits(params, jnp.where(present, tokens, 0), position)
            expected = (self.examples_per_step, SYMBOLS)
            if getattr(logits, "shape", None) != expected:
                raise ValueError(
                    f"`next_logits(params, tokens, position)` must have shape (B, 256) = "
                    f"{expected}; got {getattr(logits, 'shape', type(logits).__name__)}."
                )
            logits = checks.floating(logits, "next_logits(params, tokens, position)")
            return jax.nn.softmax(logits.astype(jnp.float32))

        return jax.jit(probabilities)

    def _examples(self, train: Batch, decoded: Any) -> Batch:
        """Those that a step may see: what both sides have, and the file's so far."""
        if self.as_examples is None:
            return train
        examples = self.as_examples(decoded)
        if train is None:
            return examples
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), train, examples)

    def _check(self, policy: jax.Array | StepInputs, params: Params, train: Batch) -> _Shared:
        if isinstance(policy, StepInputs):
            policy = dataclasses.replace(policy, desired_index=None)
        shape = jnp.shape(policy.weights if isinstance(policy, StepInputs) else policy)
        rows = max(shape[0] if shape else 0, 1) * self.examples_per_step
        num_shared = 0
        if train is not None or self.as_examples is None:
            num_shared = checks.num_examples(train, "train")
        examples = self._examples(train, jnp.zeros((rows, self.example_length), jnp.int32))
        inputs = self.options.check(policy, params, examples, examples, None)
        if self.as_examples is not None:
            _check_causal(inputs, num_shared, self.examples_per_step)
        return _Shared(*jax.tree.map(jnp.asarray, (params, inputs, train)))

    def _digests(self, shared: _Shared) -> tuple[bytes, bytes, bytes, bytes]:
        """Those of what both sides have, in the order of `SHARED`."""
        params, inputs, train = (digest(part, 4) for part in shared)
        return params, inputs, train, digest(self._settings.encode(), 4)

    @property
    def _settings(self) -> str:
        return (
            f"example_length={self.example_length}, examples_per_step={self.examples_per_step}, "
            f"microbatch_size={self.options.microbatch_size}"
        )


def _check_causal(inputs: StepInputs, num_shared: int, size: int) -> None:
    """ValueError unless examples that are not decoded yet have no weight."""
    weights = np.asarray(inputs.weights)
    numbers = np.arange(weights.shape[1])[None] if inputs.index is None else inputs.index
    numbers = np.broadcast_to(numbers, weights.shape)
    known = num_shared + size * np.arange(weights.shape[0])[:, None]
    early = (numbers >= known) & (weights != 0)
    if early.any():
        step, place = (int(axis[0]) for axis in np.nonzero(early))
        raise ValueError(
            f"`policy` must not weigh examples that are not decoded yet: at step {step} those from "
            f"N + B t = {known[step, 0]} on are unknown; got weight {weights[step, place]} for "
            f"example {numbers[step, place]} ({early.sum()} entries like it)."
        )
