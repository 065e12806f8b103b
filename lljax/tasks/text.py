"""The paper's language modelling: a small Transformer on text, half of which is damaged (§4.1)."""

import dataclasses
import functools
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lljax import cluster
from lljax.data.settings import TextSettings
from lljax.errors import UserError
from lljax.field_types import check_fields
from lljax.models.activations import Activation
from lljax.tasks.config import ExperimentConfig, inner_optimizer, require, require_counts
from lljax.tasks.origins import Origins
from lljax.tasks.problem import Problem, Task
from lljax.tasks.sharing import read_examples, shapes_of
from lljax.tasks.size import require_memory
from lljax.tasks.tokens import TokenWeights

if TYPE_CHECKING:
    import numpy as np

    from lljax.data.sequences import Sequences
    from lljax.data.tokenizer import Tokenizer

SIZES = ("num_train", "num_desired", "num_validation", "num_test")


@dataclasses.dataclass(frozen=True)
class TextData(TextSettings):
    """Sequences of a text, half of those to train on damaged."""

    num_train: int | None = 16384
    """N, training sequences, with a desired_path at most; all that there are for None."""
    num_desired: int | None = 512
    """K, desired sequences: those in the objective; for None half of the desired text, at most
    512."""
    num_validation: int | None = 512
    """Desired sequences that choose the best outer step; for None a quarter, at most 256."""
    num_test: int | None = 512
    """Desired sequences that are only reported; for None a quarter, at most 512."""
    perturbed_share: float | None = None
    """Share of the training sequences that is damaged; when not given half, as in the paper, and
    none where there is a desired_path."""
    perturbations: int = 20
    """Operations on each of those: replace a token, delete the last one, or repeat one."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        super().__post_init__()
        require_counts("data", self, "context", "vocab_size", *SIZES)
        share = self.perturbed_share
        require(share is None or 0 <= share <= 1, "data.perturbed_share", "in [0, 1]", share)
        count = self.perturbations
        require(0 <= count <= 10_000, "data.perturbations", "at least 0, at most 10,000", count)

    @property
    def damaged_share(self) -> float:
        """Of the training sequences."""
        if self.perturbed_share is None:
            return 0.0 if self.desired_path else 0.5
        return self.perturbed_share


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
    activation: Activation = "relu"
    """Of the feed-forward layers; relu in the paper."""
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


def _require_memory_for(data: TextData) -> None:
    sequences = sum(getattr(data, name) or 0 for name in SIZES)
    require_memory(
        4 * sequences * (data.context + 1),
        "the data",
        f"{sequences:,} sequences x {data.context + 1:,} tokens of 4 bytes",
        "data.context or the largest of data.num_train, num_desired, num_validation and num_test",
    )


class _Read(NamedTuple):
    """What is read of a text."""

    sets: "dict[str, Any]"  # of sequences [B, context + 1] int32
    perturbed: "np.ndarray"  # [N] bool
    groups: "np.ndarray | None"
    group_names: tuple[str, ...]
    origins: Origins | None
    tokenizer: "Tokenizer | None"
    lines: tuple[str, ...]
    short: str

    def elsewhere(self) -> "_Read":
        return self._replace(sets=shapes_of(self.sets), origins=None, tokenizer=None)


def _read(config: TransformerConfig) -> _Read:
    import numpy as np

    from lljax.data.account import TextAccount
    from lljax.data.perturbation import perturb
    from lljax.data.progress import log
    from lljax.data.sequences import deal, load_sequences

    data = config.data
    _require_memory_for(data)
    sequences = load_sequences(data)
    text = sequences.text
    account = TextAccount(text.parts, sequences.counts)
    numbers = {name: getattr(data, name) for name in SIZES}
    try:
        dealt = deal(sequences, text.num_train, seed=config.seed, **numbers)
    except UserError:
        for line in account.warnings():  # they may tell why there is too little text
            log(line)
        raise
    sets = {name: sequences.tokens[indices] for name, indices in dealt.split._asdict().items()}
    used = {name: len(tokens) for name, tokens in sets.items()}
    groups, names = _groups(data, sequences, dealt.split.train)
    sizes = {} if groups is None else dict(zip(names, np.bincount(groups).tolist(), strict=True))
    account = dataclasses.replace(
        account,
        used=used,
        groups=sizes,
        cut_documents=dealt.cut_documents,
        piece=dealt.piece,
        num_train=data.num_train,
    )
    lines = (*account.lines(), *account.warnings())
    for line in lines:
        log(line)
    sets["train"], perturbed = perturb(
        sets["train"],
        seed=config.seed,
        vocab_size=data.vocab_size,
        share=data.damaged_share,
        operations=data.perturbations,
    )
    origins = _origins(sequences, dealt.split.train)
    return _Read(sets, perturbed, groups, names, origins, sequences.tokenizer, lines, account.short)


def _build(config: TransformerConfig) -> Problem:
    _require_memory(config)
    # Flax, numpy's random streams and tokenisers: `lljax run --help` needs none of them.
    import jax
    import numpy as np

    from lljax.data.ngrams import count_ngrams
    from lljax.models.transformer import TokenSequences, Transformer, init_params, sequence_loss

    data, read = config.data, read_examples(lambda: _read(config))
    train, tokenizer = read.sets["train"], read.tokenizer
    model = Transformer(
        vocab_size=data.vocab_size, context=data.context, **dataclasses.asdict(config.model)
    )

    more: dict[str, Any] = {}
    if tokenizer is not None:
        more = {
            "files": tokenizer.files(),
            "show_example": lambda n: tokenizer.decode(train[n].tolist()),
            "tokens": lambda: _tokens(train, tokenizer),
        }
    return Problem(
        loss_fn=sequence_loss(model),
        optimizer=inner_optimizer(config.inner),
        params=init_params(model, jax.random.key(config.seed)),
        train=TokenSequences(train),
        desired=TokenSequences(read.sets["desired"]),
        validation=TokenSequences(read.sets["validation"]),
        test=TokenSequences(read.sets["test"]),
        num_symbols=data.vocab_size,
        perturbed=read.perturbed if read.perturbed.any() else None,
        init_params=functools.partial(init_params, model),
        groups=read.groups,
        group_names=read.group_names,
        origins=read.origins,
        featurize=lambda batch: count_ngrams(np.asarray(batch.tokens)),
        data_lines=read.lines,
        facts=(f"vocabulary of {data.vocab_size}", read.short),
        provenance="the text (data.path, data.tfds, or the manual of another Python version)",
        read_by_first=cluster.has_peers(),
        **more,
    )


def _groups(data: TextData, sequences: "Sequences", train: "np.ndarray"):
    """(the group of each training sequence, the groups' names by size); None without groups."""
    import numpy as np

    if data.group is None:
        return None, ()
    origins = sequences.text.origins
    of = [origins[document].group or "" for document in sequences.document[train]]
    names, groups, counts = np.unique(of, return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return rank[groups].astype(np.int32), tuple(names[order].tolist())


def _origins(sequences: "Sequences", train: "np.ndarray") -> Origins:
    """Of the training sequences, with the documents that they are of."""
    import numpy as np

    first = np.searchsorted(sequences.document, np.arange(len(sequences.text.documents)))
    owner = sequences.document[train]
    used, document = np.unique(owner, return_inverse=True)
    origins = [sequences.text.origins[number] for number in used]
    return Origins(
        document=document.astype(np.int64),
        place=(train - first[owner]).astype(np.int64),
        texts=[sequences.text.documents[number] for number in used],
        sources=[origin.source for origin in origins],
        offsets=np.array([origin.offset for origin in origins], np.int64),
        groups=[origin.group for origin in origins],
    )


def _tokens(train: "np.ndarray", tokenizer: "Tokenizer") -> TokenWeights:
    """Of training sequences: every token but the first has a loss."""
    import jax.numpy as jnp

    from lljax.data.tokenizer import PAD
    from lljax.models.transformer import TokenSequences

    targets = train[:, 1:]
    weights = (targets != PAD).astype("float32")
    return TokenWeights(
        examples=TokenSequences(jnp.asarray(train), jnp.asarray(weights)),
        read=lambda batch: batch.weights,
        texts=lambda n: tokenizer.pieces(targets[n][targets[n] != PAD].tolist()),
    )


TASK = Task("transformer", TransformerConfig, _build, free_settings=("data.cache_dir",))
