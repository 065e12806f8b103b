"""What is said of a text before anything is computed, and what is warned of."""

import dataclasses

import pytest
from texts import DOCUMENTS

from lljax.data.text import TextError
from lljax.tasks import Experiment, text
from lljax.tasks.build import build_problem
from lljax.tasks.text import TextData, TransformerConfig, TransformerModel

SIZES = {"num_train": 300, "num_desired": 16, "num_validation": 16, "num_test": 16}


@pytest.fixture
def said(tmp_path, capfd):
    """Builds a problem of a text; returns the lines said, and the problem's facts."""

    def said(content, name="a.txt", **changes):
        path = tmp_path / name
        path.write_bytes(content.encode())
        defaults = {"vocab_size": 200, "context": 16, "cache_dir": str(tmp_path / "cache")}
        data = TextData(path=str(path), **(defaults | SIZES | changes))
        config = TransformerConfig(data=data, model=TransformerModel(width=8, num_heads=1))
        problem = build_problem(Experiment(text.TASK, config))
        return capfd.readouterr().err.splitlines(), problem.facts

    return said


def test_two_lines_and_no_warning(said):
    lines, facts = said("<|endoftext|>".join(DOCUMENTS), num_train=700)
    assert len(lines) == 2, lines
    assert "300 documents divided by <|endoftext|>" in lines[0]
    assert "train 700, desired 16, validation 16, test 16" in lines[1]
    assert " 0% unknown" in lines[1]
    assert facts[0] == "vocabulary of 200"
    assert facts[1].startswith("748 of ")
    # The tokens' part comes from the cache.
    assert said("<|endoftext|>".join(DOCUMENTS), num_train=700) == (lines, facts)


def test_what_would_surprise_is_warned_of(said):
    documents = [*DOCUMENTS, DOCUMENTS[0], " ", *DOCUMENTS[:3]]
    content = "<|endoftext|>".join(documents)
    size = len(content.encode())
    lines, _ = said(content + "<|endoftext|>" + "x" * 1000, max_bytes=size + 100, vocab_size=40)
    warnings = "\n".join(line for line in lines if line.startswith("warning: "))
    for words in (
        f"only the first {size:,} bytes of {size + 1013:,} ",
        "Raise data.max_bytes",
        "4 repeated documents and 1 empty documents are left out",
        "of the tokens are unknown, which the model cannot tell apart. Raise data.vocab_size",
        "sequences are used. Raise data.num_train",
    ):
        assert words in warnings


def test_short_documents_are_warned_of(said):
    short = [f"{a}{b}" for a in "abcdefghijklmno" for b in "abcdefghijklmno"]
    lines, _ = said("<|endoftext|>".join([*DOCUMENTS, *short * 8]), num_train=200)
    assert "repeated" in lines[0]
    padded = [document[:45] for document in DOCUMENTS]
    content = "<|endoftext|>".join([*padded, *DOCUMENTS[:3]])
    lines, _ = said(content, num_train=100, context=40)
    assert any("is padding. Lower data.context" in line for line in lines), lines
    with pytest.raises(TextError, match="has only"):
        said(content, num_train=100, context=55)


def test_long_documents_are_said_to_be_cut(said):
    lines, _ = said(" ".join(" ".join(DOCUMENTS).split()))
    assert "one document; so that every set can be filled, 1 long document cut into" in lines[0]


def test_urls_lose_their_secrets_in_settings():
    url = "https://me:pass@host.org/a.txt?token=123"
    settings = Experiment(text.TASK, TransformerConfig(data=TextData(path=url))).settings()
    assert settings["data"]["path"] == "https://host.org/a.txt?..."

    @dataclasses.dataclass(frozen=True)
    class Data:
        urls: tuple[str, ...] = (url, "plain")
        named: dict[str, str] = dataclasses.field(default_factory=lambda: {"a": f"see {url}"})

    @dataclasses.dataclass(frozen=True)
    class Config(TransformerConfig):
        data: Data = Data()

    found = Experiment(text.TASK, Config()).settings()["data"]
    assert found["urls"] == ["https://host.org/a.txt?...", "plain"]
    assert found["named"] == {"a": "see https://host.org/a.txt?..."}
