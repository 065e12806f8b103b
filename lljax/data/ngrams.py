"""How often tokens, and pairs of neighbouring tokens, are in sequences: what a scorer sees of them.

Hashed into a fixed number of columns, so that any text has the same form; a row has length 1.
"""

from typing import Any

import numpy as np

from lljax.data.tokenizer import PAD

BITS = 15
"""Of the number of columns, 2^15."""
_FACTORS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xC2B2AE3D27D4EB4F))  # odd, of many bits


def count_ngrams(tokens: np.ndarray) -> Any:
    """The hashed counts of tokens and pairs.

    Args:
      tokens: [B, L] integers, PAD behind the last token of a row.

    Returns:
      A SciPy CSR matrix [B, 2^BITS] of float32: square roots of counts, so that a word that is
      repeated does not decide alone, in rows of length 1; a row without tokens is 0.
    """
    import scipy.sparse

    ids = tokens.astype(np.uint64)
    singles = _hash(ids * _FACTORS[0])
    pairs = _hash((ids[:, :-1] * _FACTORS[1] + ids[:, 1:]) * _FACTORS[0])
    present = tokens != PAD
    columns = np.concatenate([singles, pairs], axis=1)
    kept = np.concatenate([present, present[:, 1:]], axis=1)
    rows = np.broadcast_to(np.arange(len(tokens))[:, None], columns.shape)[kept]
    counts = scipy.sparse.csr_matrix(
        (np.ones(len(rows), np.float32), (rows, columns[kept])), (len(tokens), 1 << BITS)
    )
    counts.sum_duplicates()
    counts.data = np.sqrt(counts.data)
    lengths = np.sqrt(np.asarray(counts.multiply(counts).sum(axis=1)).ravel())
    scale = scipy.sparse.diags(1 / np.maximum(lengths, 1e-12))
    return scipy.sparse.csr_matrix(scale @ counts, dtype=np.float32)


def _hash(values: np.ndarray) -> np.ndarray:
    """The upper bits, which depend on all others."""
    return (values >> np.uint64(64 - BITS)).astype(np.int32)
