"""The paper's language modelling: a small Transformer on text, half of which is damaged (§4.1)."""

import dataclasses
from typing import Literal

from lljax.data.text import TextSettings
from lljax.errors import UserError
from lljax.field_types import check_fields
from lljax.tasks.config import ExperimentConfig, inner_optimizer, require, require_counts
from lljax.tasks.problem import Problem, Task
from lljax.tasks.size import require_memory

SIZES = ("num_train", "num_desired", "num_validation", "num_test")


@dataclasses.dataclass(frozen=True)
class TextData(TextSettings):
    """Sequences of a text, half of those to train on damaged."""

    num_train: int = 16384
    """N, training sequences."""
    num_desired: int = 512
    """K, desired sequences: those in the objective."""
    num_validation: int = 512
    """Desired sequences that choose the best outer step."""
    num_test: int = 512
    """Desired sequences that are only reported."""
    perturbed_share: float = 0.5
    """Share of the training sequences that is damaged."""
    perturbations: int = 20
    """Operations on each of those: replace a token, delete the last one, or repeat one."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        super().__post_init__()
        require_counts("data", self, "context", "vocab_size", *SIZES)
        share = self.perturbed_share
        require(0 <= share <= 1, "data.perturbed_share", "in [0, 1]", share)
        count = self.perturbations
        require(0 <= count <= 10_000, "data.perturbations", "at least 0, at most 10,000", count)


@dataclasses.dataclass(frozen=True)
class TransformerModel:
    """The language model; the paper's shape unless said otherwise."""

    width: int = 128
    """D, of every layer."""
    num_layers: int = 2
    """Blocks of attention and feed-forward."""
    num_heads: int = 8
    """Attention heads; they divide the width."""
    attention_scale: Literal["head", "width"] = "head"
    """Attention scores are divided by the square root of the head's width, or of the whole width
    as in the public code."""
    initialization: Literal["scaled", "torch"] = "torch"
    """PyTorch's defaults, as in the public code, or kernels of variance 1 / fan-in and small
    embeddings."""
    loss_chunk: int | None = None
    """Positions whose logits are held at once; those of a micro-batch when not given."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        require_counts("model", self, "width", "num_layers", "num_heads", "loss_chunk")
        require(
            self.width % self.num_heads == 0,
            "model.width",
            f"a multiple of model.num_heads ({self.num_heads})",
            self.width,
        )
        require(self.num_layers <= 1000, "model.num_layers", "at most 1,000", self.num_layers)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ExperimentConfig):
    """The paper's language modelling (§4.1)."""

    model: TransformerModel = TransformerModel()
    data: TextData = TextData()


def _require_memory(config: TransformerConfig) -> None:
    model, data = config.model, config.data
    width, vocabulary = model.width, data.vocab_size
    parameters = 12 * model.num_layers * width**2 + (2 * vocabulary + data.context) * width
    require_memory(
        4 * parameters,
        "the model",
        f"12 x {model.num_layers} layers x {width}^2 + (2 x {vocabulary} tokens + {data.context}) "
        f"x {width} parameters of 4 bytes",
        "model.width, model.num_layers, data.vocab_size or data.context",
    )
    sequences = sum(getattr(data, name) for name in SIZES)
    require_memory(
        4 * sequences * (data.context + 1),
        "the data",
        f"{sequences:,} sequences x {data.context + 1:,} tokens of 4 bytes",
        "data.context or the largest of data.num_train, num_desired, num_validation and num_test",
    )


def _build(config: TransformerConfig) -> Problem:
    _require_memory(config)
    # Flax, numpy's random streams and tokenisers: `lljax run --help` needs none of them.
    import jax
    import jax.numpy as jnp

    from lljax.data.account import TextAccount
    from lljax.data.perturbation import perturb
    from lljax.data.progress import log
    from lljax.data.sequences import deal, load_sequences
    from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss

    data = config.data
    sequences = load_sequences(data)
    account = TextAccount.of(sequences.text, sequences.counts)
    try:
        dealt = deal(sequences, seed=config.seed, **{name: getattr(data, name) for name in SIZES})
    except UserError:
        for line in account.warnings():  # they may tell why there is too little text
            log(line)
        raise
    sets = {name: sequences.tokens[indices] for name, indices in dealt.split._asdict().items()}
    used = {name: len(tokens) for name, tokens in sets.items()}
    account = account.with_sets(used, dealt.cut_documents, dealt.piece)
    for line in (*account.lines(), *account.warnings()):
        log(line)
    sets["train"], perturbed = perturb(
        sets["train"],
        seed=config.seed,
        vocab_size=data.vocab_size,
        share=data.perturbed_share,
        operations=data.perturbations,
    )
    train = sets["train"]
    model = Transformer(
        vocab_size=data.vocab_size, context=data.context, **dataclasses.asdict(config.model)
    )

    def examples(name: str) -> TokenSequences:
        return TokenSequences(jnp.asarray(sets[name]))

    return Problem(
        loss_fn=sequence_loss(model),
        optimizer=inner_optimizer(config.inner),
        params=init_params(model, jax.random.key(config.seed)),
        train=examples("train"),
        desired=examples("desired"),
        validation=examples("validation"),
        test=examples("test"),
        num_symbols=data.vocab_size,
        perturbed=perturbed if perturbed.any() else None,
        show_example=lambda n: sequences.tokenizer.decode(train[n].tolist()),
        facts=(f"vocabulary of {data.vocab_size}", account.short),
        provenance="the text (data.path, data.tfds, or the manual of another Python version)",
    )


TASK = Task("transformer", TransformerConfig, _build, free_settings=("data.cache_dir",))
