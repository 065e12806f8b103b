"""Noise for training text."""

import time
from collections import Counter

import numpy as np
import pytest

from lljax.data.perturbation import perturb
from lljax.data.tokenizer import NUM_SPECIAL, PAD, UNK

FULL = np.arange(2, 2 + 40 * 11, dtype=np.int32).reshape(40, 11)  # no token twice


def test_the_share_is_exact_and_the_rest_untouched():
    tokens = np.random.default_rng(0).integers(2, 500, (401, 17)).astype(np.int32)
    tokens[::3, 9:] = PAD
    original = tokens.copy()
    result, perturbed = perturb(tokens, seed=1, share=0.3, vocab_size=500)
    np.testing.assert_array_equal(tokens, original)
    assert perturbed.sum() == 120
    np.testing.assert_array_equal(result[~perturbed], tokens[~perturbed])
    assert (result[perturbed] != tokens[perturbed]).any(axis=1).all()
    assert result.dtype == tokens.dtype
    lengths = (result != PAD).sum(axis=1)
    assert lengths.min() >= 2
    assert (np.arange(17) < lengths[:, None]).astype(int).tolist() == (result != PAD).tolist()
    assert result.max() < 500
    assert UNK not in result
    again, _ = perturb(tokens, seed=1, share=0.3, vocab_size=500)
    np.testing.assert_array_equal(result, again)
    other, _ = perturb(tokens, seed=2, share=0.3, vocab_size=500)
    assert not np.array_equal(result, other)


def test_each_operation_is_one_of_three_and_equally_frequent():
    tokens = np.tile(FULL, (150, 1))
    result, _ = perturb(tokens, seed=0, share=1, operations=1, vocab_size=3 * 10**6)
    kinds = Counter()
    places = {"replaced": Counter(), "repeated": Counter()}
    for before, after in zip(tokens, result, strict=True):
        different = np.flatnonzero(before != after)
        if after[-1] == PAD:
            assert (after[:-1] == before[:-1]).all()
            kinds["deleted"] += 1
        elif len(different) == 1 and after[different[0]] not in before:
            assert after[different[0]] >= NUM_SPECIAL
            kinds["replaced"] += 1
            places["replaced"][different[0]] += 1
        else:  # a copy beside a token; at the end of a full sequence it falls off
            place = different[0] - 1 if len(different) else 10
            expected = np.insert(before, place + 1, before[place])[:11]
            np.testing.assert_array_equal(after, expected)
            kinds["repeated"] += 1
            places["repeated"][place] += 1
    for count in kinds.values():
        assert count == pytest.approx(2000, rel=0.1)
    for counter in places.values():
        assert sorted(counter) == list(range(11))
        assert max(counter.values()) < 1.5 * 2000 / 11


def test_padded_sequences_grow_and_short_ones_keep_two_tokens():
    tokens = np.zeros((2000, 5), np.int32)
    tokens[:, :2] = [7, 8]
    result, _ = perturb(tokens, seed=0, share=1, operations=1, vocab_size=10**6)
    lengths = Counter((result != PAD).sum(axis=1).tolist())
    assert set(lengths) == {2, 3}
    grown = {tuple(row) for row in result[:, :3].tolist() if row[2] != PAD}
    assert grown == {(7, 7, 8), (7, 8, 8)}
    unchanged = (result == tokens).all(axis=1).sum()  # the deletions
    assert unchanged == pytest.approx(2000 / 3, rel=0.15)


def test_the_paper_size_takes_no_time():
    tokens = np.full((16384, 65), 5, np.int32)
    start = time.monotonic()
    perturb(tokens, seed=0, vocab_size=5000)
    assert time.monotonic() - start < 5
