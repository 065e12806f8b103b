"""Small texts that several tests read."""

import numpy as np

WORDS = """
once upon a time there was little girl boy who found big red ball in the garden and said hello to
friend dog cat but it ran away because sun very bright so they went home happy again with mother
father tree house river bird sang song every day until night came moon looked down
"""


def make_documents(number, seed=0):
    """Lively enough for a few hundred tokens; 8 to 40 words each."""
    rng = np.random.default_rng(seed)
    sentences = [" ".join(rng.choice(WORDS.split(), rng.integers(8, 41))) for _ in range(number)]
    return [f"{text.capitalize()}.\nThe end {i}, café 😀." for i, text in enumerate(sentences)]


DOCUMENTS = make_documents(300)


def prepared(tmp_path):
    """The folders of the cache that would be read."""
    return list((tmp_path / "cache").glob("lljax_sequences/*/[0-9]*"))


DAMAGES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "flipped": lambda path: flip_a_bit(path),
    "empty": lambda path: path.write_bytes(b""),
    "deleted": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir(), (path / "x").touch()),
}


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
