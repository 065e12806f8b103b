"""Tokenizers: trained here, or given and cut down; real sentencepiece models."""

from collections import Counter

import numpy as np
import pytest
from texts import DOCUMENTS

from lljax.data import training
from lljax.data.text import TextError, TextSettings, read_documents
from lljax.data.tokenizer import NUM_SPECIAL, PAD, UNK, Tokenizer, load_tokenizer, train_tokenizer


def test_bytes_bring_every_text_back():
    documents = read_documents(TextSettings())
    tokenizer = train_tokenizer(documents, 3000)
    assert tokenizer.vocab_size == 3000
    texts = [*documents[:100], "你好, wörld 🎈", "  two  spaces\t\n\n\nlines ", "\u2028\x00\u2585"]
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert min(ids) >= NUM_SPECIAL
        assert max(ids) < 3000
        assert tokenizer.decode(ids) == text
        assert tokenizer.decode([*ids, PAD, PAD]) == text
    assert train_tokenizer(documents, 3000) == tokenizer


def test_a_small_vocabulary_has_no_bytes_but_unknown():
    tokenizer = train_tokenizer(DOCUMENTS, 150)
    ids = tokenizer.encode([*DOCUMENTS, "once ☃ upon"])
    assert max(map(max, ids)) < 150
    assert [tokenizer.decode(x) for x in ids[:-1]] == DOCUMENTS
    assert ids[-1].count(UNK) == 1
    assert "⁇" in tokenizer.decode(ids[-1])
    pieces = tokenizer.pieces([*ids[-1], PAD])
    assert "".join(pieces).strip() == "once ⁇ upon"
    assert pieces[-1] == ""


def test_a_text_of_many_characters_fits():
    letters = [chr(0x4E00 + i) for i in range(2000)]
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(letters, 200)) for _ in range(50)]
    for vocab_size in (100, 3000):
        assert train_tokenizer(documents, vocab_size).vocab_size == vocab_size


def test_a_given_model_is_cut_to_its_most_frequent_tokens(tmp_path):
    path = tmp_path / "tokenizer.model"
    whole = train_tokenizer(DOCUMENTS, 200)
    path.write_bytes(whole.model)
    counts = Counter(token for ids in whole.encode(DOCUMENTS) for token in ids)
    tokenizer = load_tokenizer(path, 62, DOCUMENTS)
    assert tokenizer.vocab_size == 62
    least = min(counts[token] for token in tokenizer.kept)
    assert len(set(tokenizer.kept)) == 60
    assert all(n <= least for token, n in counts.items() if token not in tokenizer.kept)
    for ours, theirs in zip(tokenizer.encode(DOCUMENTS), whole.encode(DOCUMENTS), strict=True):
        expected = [
            NUM_SPECIAL + tokenizer.kept.index(token) if token in tokenizer.kept else UNK
            for token in theirs
        ]
        assert ours == expected
    occurring = len(counts) + NUM_SPECIAL
    assert load_tokenizer(path, occurring, DOCUMENTS).vocab_size == occurring
    with pytest.raises(TextError, match=f"data.vocab_size is .* at most {occurring} tokens"):
        load_tokenizer(path, occurring + 1, DOCUMENTS)


def test_a_tokenizer_comes_back_from_disk(tmp_path):
    (tmp_path / "m").write_bytes(train_tokenizer(DOCUMENTS, 200).model)
    tokenizer = load_tokenizer(tmp_path / "m", 100, DOCUMENTS)
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path) == tokenizer


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\0" * 100])
def test_what_is_no_model_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "m").write_bytes(content)
    with pytest.raises(TextError, match=r"data.tokenizer: .*(not a sentencepiece|No such file)"):
        load_tokenizer(tmp_path / "m", 100, DOCUMENTS)


@pytest.mark.parametrize("asked", [1000, 5000])
def test_a_vocabulary_larger_than_the_text_supports(asked):
    documents = DOCUMENTS[:30]
    with pytest.raises(TextError, match=r"data.vocab_size is") as caught:
        train_tokenizer(documents, asked)
    largest = int(str(caught.value).split("at most ")[1].split()[0])
    assert train_tokenizer(documents, largest).vocab_size == largest
    with pytest.raises(TextError, match=f"at most {largest} "):
        train_tokenizer(documents, largest + 1)


def test_rare_characters_are_spelled_in_bytes():
    """Where not all characters fit, the bytes that they need are tokens, and nothing is unknown."""
    rng = np.random.default_rng(0)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    documents = ["".join(rng.choice(letters[: 30 * (1 + i % 100)], 200)) for i in range(100)]
    documents += [*DOCUMENTS[:50], "a mark \u2585, a zero \0 and a \U0010ffff"]
    for vocab_size in (200, 256, 600, 1000):
        tokenizer = train_tokenizer(documents, vocab_size)
        assert tokenizer.vocab_size == vocab_size
        for document, ids in zip(documents, tokenizer.encode(documents), strict=True):
            assert NUM_SPECIAL <= min(ids) <= max(ids) < vocab_size
            assert tokenizer.decode(ids) == document
    # All characters of this text fit, so that no token is spent on bytes.
    whole = train_tokenizer(DOCUMENTS, 256)
    assert not any(whole._processor.is_byte(token) for token in whole.kept)


@pytest.mark.slow
def test_a_large_text_without_spaces_is_sampled_and_nothing_is_unknown():
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(list("ACGT"), 4_500_000)), "N"]
    tokenizer = train_tokenizer(documents, 64)
    first, last = tokenizer.encode(documents)
    assert UNK not in first + last
    assert tokenizer.decode(first) == documents[0]


def test_training_in_a_process_gives_the_same(monkeypatch):
    here = train_tokenizer(DOCUMENTS, 200)
    monkeypatch.setattr(training, "_SMALL", 0)
    assert train_tokenizer(DOCUMENTS, 200) == here
    with pytest.raises(TextError, match="no tokenizer can be trained"):
        training.train_model(iter(["", "\0"]), 1, 100, False)
