"""Noise for training text: a share of the sequences is damaged (paper, §4.1)."""

import numpy as np

from lljax.data.tokenizer import NUM_SPECIAL, PAD

_REPLACE, _DELETE, _REPEAT = range(3)


def perturb(
    tokens: np.ndarray,
    *,
    seed: int,
    vocab_size: int,
    share: float = 0.5,
    operations: int = 20,
) -> tuple[np.ndarray, np.ndarray]:
    """Damages a share of the sequences, each by `operations` edits drawn with equal chances.

    An operation replaces a random token by a random one of the vocabulary, deletes the last token,
    or repeats a random token beside itself: those behind it move on by one place, and what passes
    the end of the sequence is cut off. Two tokens are always left.

    Args:
      tokens: [N, L + 1] integers, padding (PAD) only behind the tokens of a row.
      seed: of everything that is drawn; the same seed gives the same result.
      vocab_size: random tokens are in [NUM_SPECIAL, vocab_size).
      share: of the sequences that are damaged, exactly round(share * N).
      operations: per damaged sequence.

    Returns:
      tokens: [N, L + 1], a new array of the same dtype.
      perturbed: [N] bool, which rows are damaged.
    """
    rng = np.random.Generator(np.random.PCG64([seed, 1]))  # not the stream that dealt the sets
    num_sequences, width = tokens.shape
    chosen = np.sort(rng.permutation(num_sequences)[: round(share * num_sequences)])
    perturbed = np.zeros(num_sequences, bool)
    perturbed[chosen] = True
    damaged = tokens[chosen]
    lengths = np.count_nonzero(damaged != PAD, axis=1)
    rows, columns = np.arange(len(chosen)), np.arange(width)
    for _ in range(operations):
        operation = rng.integers(0, 3, len(chosen))
        position = rng.integers(0, np.maximum(lengths, 1))
        token = rng.integers(NUM_SPECIAL, vocab_size, len(chosen))

        replaced = rows[(operation == _REPLACE) & (lengths > 0)]
        damaged[replaced, position[replaced]] = token[replaced]

        shortened = rows[(operation == _DELETE) & (lengths > 2)]
        lengths[shortened] -= 1
        damaged[shortened, lengths[shortened]] = PAD

        repeated = rows[operation == _REPEAT]
        behind = columns > position[repeated, None]
        damaged[repeated] = np.take_along_axis(damaged[repeated], columns - behind, axis=1)
        lengths[repeated] = np.minimum(lengths[repeated] + 1, width)
    result = tokens.copy()
    result[chosen] = damaged
    return result, perturbed
