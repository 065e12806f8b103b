"""The paper's language modelling: a small Transformer on text, half of which is damaged (§4.1)."""

import dataclasses
from typing import Literal

from lljax.data.text import TextSettings
from lljax.errors import UserError
from lljax.tasks.config import ExperimentConfig, inner_optimizer, require, require_counts
from lljax.tasks.problem import Problem, Task

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
        super().__post_init__()
        require_counts("data", self, *SIZES)
        share = self.perturbed_share
        require(0 <= share <= 1, "data.perturbed_share", "in [0, 1]", share)
        count = self.perturbations
        require(count >= 0, "data.perturbations", "at least 0", count)


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
        require_counts("model", self, "width", "num_layers", "num_heads")
        require(
            self.width % self.num_heads == 0,
            "model.width",
            f"a multiple of model.num_heads ({self.num_heads})",
            self.width,
        )
        chunk = self.loss_chunk
        require(chunk is None or chunk >= 1, "model.loss_chunk", "at least 1", chunk)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ExperimentConfig):
    """The paper's language modelling (§4.1)."""

    model: TransformerModel = TransformerModel()
    data: TextData = TextData()


def _build(config: TransformerConfig) -> Problem:
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
