"""Tables and pictures: a small model of arrays that a user has, or of hand-written digits."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lljax import cluster
from lljax.data.places import cache_folder
from lljax.errors import UserError
from lljax.field_types import check_fields
from lljax.models.activations import Activation
from lljax.tasks.config import (
    ExperimentConfig,
    InnerConfig,
    OuterConfig,
    PolicyConfig,
    inner_optimizer,
    require,
    require_counts,
)
from lljax.tasks.origins import Origins
from lljax.tasks.problem import Problem, Shown, Task
from lljax.tasks.sharing import read_examples, shapes_of

if TYPE_CHECKING:
    import numpy as np

    from lljax.data.arrays import Table

SIZES = ("num_train", "num_desired", "num_validation", "num_test")
_SHARES = {"num_test": 0.25, "num_validation": 0.1, "num_desired": 0.1}
_OF_DESIRED = {"num_test": 0.5, "num_validation": 0.25, "num_desired": 0.25}


@dataclasses.dataclass(frozen=True)
class ArraysData:
    """Arrays of a file, dealt to the sets at random."""

    path: str | None = None
    """What to train on: an .npz or Parquet file, or its URL. When not given, the 1,797 pictures of
    hand-written digits that scikit-learn has, with wrong labels."""
    desired_path: str | None = None
    """What the model is to be good at, in the same form: the desired, validation and test sets.
    They are parts of data.path when not given."""
    features: tuple[str, ...] = ("x",)
    """An array [N, ...], or columns of numbers."""
    labels: str = "y"
    """An array or column [N]: whole numbers or texts are classes, other numbers are predicted."""
    group: str | None = None
    """An array or column [N] that names the group of each example."""
    flipped: float | None = None
    """Share of the training labels that is replaced by another class; 0.4 of the digits and 0 of a
    file when not given."""
    standardize: bool = True
    """Whether each feature gets mean 0 and deviation 1 over the training set. The pixels of a
    picture's channel share their deviation: a pixel that is hardly ever lit would else get numbers
    so large that training is rough."""
    num_train: int | None = None
    """N; what the other sets leave when not given."""
    num_desired: int | None = None
    """K; a tenth when not given, of a desired_path a quarter."""
    num_validation: int | None = None
    """As many when not given."""
    num_test: int | None = None
    """A quarter when not given, of a desired_path half."""
    cache_dir: str | None = None
    """For downloads; $XDG_CACHE_HOME/lljax or ~/.cache/lljax when not given."""

    def __post_init__(self) -> None:
        check_fields(self, "data")
        require_counts("data", self, *SIZES)
        share = self.flipped
        require(share is None or 0 <= share <= 1, "data.flipped", "in [0, 1]", share)
        require(bool(self.features), "data.features", "at least one name", self.features)

    @property
    def flipped_share(self) -> float:
        if self.flipped is None:
            return 0.0 if self.path else 0.4
        return self.flipped


@dataclasses.dataclass(frozen=True)
class ArraysModel:
    """The model."""

    kind: Literal["linear", "mlp", "cnn"] = "mlp"
    """linear; mlp, hidden layers; cnn, 3 x 3 convolutions on pictures."""
    width: int = 64
    """Of hidden layers, or channels of convolutions."""
    num_layers: int = 1
    """Hidden layers, or convolutions."""
    activation: Activation = "gelu"
    """Behind hidden layers and convolutions. With relu, whose slope jumps at 0, a meta-gradient
    predicts less."""

    def __post_init__(self) -> None:
        check_fields(self, "model")
        require_counts("model", self, "width", "num_layers")


@dataclasses.dataclass(frozen=True)
class ArraysConfig(ExperimentConfig):
    """Which examples of a table or of pictures to train on."""

    inner: InnerConfig = InnerConfig(
        num_steps=100,
        learning_rate=0.005,
        optimizer="adamw",
        schedule="warmup_cosine",
        batch_size=50,
        desired_batch_size=None,
    )
    outer: OuterConfig = OuterConfig(num_steps=40, learning_rate=0.1, momentum=0.5, train_share=0.0)
    policy: PolicyConfig = PolicyConfig(family="static")
    model: ArraysModel = ArraysModel()
    data: ArraysData = ArraysData()


class _Tables(NamedTuple):
    """What is read of a table."""

    sets: dict[str, Any]  # of Examples: train, desired, validation, test
    perturbed: "np.ndarray | None"  # [N] bool
    num_classes: int  # 0: numbers are predicted
    groups: "np.ndarray | None"
    group_names: tuple[str, ...]
    lines: tuple[str, ...]
    origins: Origins | None
    show: "Callable[[int], Shown] | None"

    def elsewhere(self) -> "_Tables":
        return self._replace(sets=shapes_of(self.sets), origins=None, show=None)


def _read(config: ArraysConfig) -> _Tables:
    import numpy as np

    from lljax.data.arrays import class_labels
    from lljax.data.progress import log
    from lljax.models.small import Examples

    data = config.data
    rng = np.random.Generator(np.random.PCG64(config.seed))
    table, desired = _read_tables(data)
    indices = _deal(data, len(table.x), None if desired is None else len(desired.x), rng)
    others = table if desired is None else desired
    y, of_others, classes = class_labels(table.y, others.y)
    num_classes = len(classes)
    train_y = y[indices["train"]]
    flipped = _flip(train_y, data.flipped_share, num_classes, rng)
    shown_y = np.where(flipped >= 0, flipped, train_y) if num_classes else train_y
    x = table.x[indices["train"]]
    mean, deviation = np.zeros(x.shape[1:]), np.ones(x.shape[1:])
    if data.standardize:
        mean, together = x.mean(axis=0), (0,) if x.ndim < 3 else (0, 1, 2)
        deviation = (x - mean).std(axis=together, keepdims=True)[0]
        deviation = np.where(deviation > 1e-6, deviation, 1)

    def examples(features: np.ndarray, labels: Any) -> Examples:
        scaled: Any = ((features - mean) / deviation).astype(np.float32)
        return Examples(scaled, labels.astype(np.int32 if num_classes else np.float32))

    sets = {
        name: examples(others.x[indices[name]], of_others[indices[name]])
        for name in ("desired", "validation", "test")
    }
    lines = _lines(table, desired, {name: len(found) for name, found in indices.items()})
    for line in lines:
        log(line)
    groups, names = _groups(table, indices["train"])
    rows = indices["train"]
    origins = Origins(
        document=np.arange(len(rows)),
        place=np.zeros(len(rows), np.int64),
        texts=None,
        sources=[table.source] * len(rows),
        offsets=rows.astype(np.int64),
        groups=[None] * len(rows) if groups is None else [names[g] for g in groups],
    )
    return _Tables(
        sets={"train": examples(x, shown_y), **sets},
        perturbed=flipped >= 0 if (flipped >= 0).any() else None,
        num_classes=num_classes,
        groups=groups,
        group_names=names,
        lines=lines,
        origins=origins,
        show=_shower(x, shown_y, classes),
    )


def _build(config: ArraysConfig) -> Problem:
    import jax
    import numpy as np

    from lljax.models.small import Small, build_init, loss_of

    read = read_examples(lambda: _read(config))
    num_classes, shape = read.num_classes, read.sets["train"].x.shape[1:]
    if config.model.kind == "cnn":
        require(
            len(shape) in (2, 3),
            "model.kind",
            f"linear or mlp: a cnn needs pictures [H, W] or [H, W, C], and an example has shape "
            f"{shape}",
            config.model.kind,
        )
    model = Small(outputs=max(num_classes, 1), **dataclasses.asdict(config.model))
    init = build_init(model, jax.numpy.zeros((1, *shape)))
    return Problem(
        loss_fn=loss_of(model, bool(num_classes)),
        optimizer=inner_optimizer(config.inner),
        params=jax.jit(init)(jax.random.key(config.seed)),
        **read.sets,
        num_symbols=max(num_classes, 2),
        perturbed=read.perturbed,
        init_params=init,
        groups=read.groups,
        group_names=read.group_names,
        origins=read.origins,
        featurize=lambda batch: _features(np.asarray(batch.x), np.asarray(batch.y), num_classes),
        data_lines=read.lines,
        show_example=read.show,
        facts=(f"{num_classes} classes" if num_classes else "regression",),
        provenance="the arrays (data.path, or another version of scikit-learn)",
        read_by_first=cluster.has_peers(),
    )


def _read_tables(data: ArraysData) -> "tuple[Table, Table | None]":
    from lljax.data.arrays import read_digits, read_table

    folder = cache_folder(data.cache_dir)

    def read(path: str, setting: str) -> "Table":
        return read_table(path, setting, data.features, data.labels, data.group, folder)

    if data.path is None:
        require(data.desired_path is None, "data.path", "given with data.desired_path", None)
        require(data.group is None, "data.group", "left out: digits have no groups", data.group)
        return read_digits(), None
    table = read(data.path, "data.path")
    desired = None if data.desired_path is None else read(data.desired_path, "data.desired_path")
    if desired is not None and desired.x.shape[1:] != table.x.shape[1:]:
        raise UserError(
            f"data.desired_path: an example has shape {desired.x.shape[1:]}, and one of data.path "
            f"{table.x.shape[1:]}. Both need the same features."
        )
    return table, desired


def _deal(
    data: ArraysData, total: int, of_desired: int | None, rng: Any
) -> "dict[str, np.ndarray]":
    """Row numbers of each set, at random; those of a desired file count in that file."""
    pool = total if of_desired is None else of_desired
    shares = _SHARES if of_desired is None else _OF_DESIRED
    sizes = {
        name: getattr(data, name) or max(1, int(pool * share)) for name, share in shares.items()
    }
    order = rng.permutation(pool)
    found, start = {}, 0
    for name, size in sizes.items():
        found[name.removeprefix("num_")] = order[start : start + size]
        start += size
    rest = order[start:] if of_desired is None else rng.permutation(total)
    wanted = data.num_train or len(rest)
    if start > pool or wanted > len(rest) or not len(rest):
        raise UserError(
            f"data.num_train, num_desired, num_validation and num_test ask for {wanted}, "
            + ", ".join(str(size) for size in reversed(sizes.values()))
            + f" examples, but there are {total}"
            + ("" if of_desired is None else f" and {of_desired} desired ones")
            + ". Lower them, or give more."
        )
    return {"train": rest[:wanted], **found}


def _flip(y: "np.ndarray", share: float, num_classes: int, rng: Any) -> "np.ndarray":
    """Another class for a share of the labels, -1 for those that stay."""
    import numpy as np

    found = np.full(len(y), -1, np.int64)
    if not share:
        return found
    require(num_classes > 0, "data.flipped", "0 where numbers are predicted", share)
    chosen = rng.permutation(len(y))[: round(share * len(y))]
    found[chosen] = (y[chosen] + rng.integers(1, num_classes, len(chosen))) % num_classes
    return found


def _features(x: "np.ndarray", y: "np.ndarray", num_classes: int) -> Any:
    """What a scorer sees: the features, for each class apart, so that it can tell a wrong label.

    [B, F], with classes a sparse matrix: C times as large, but no more numbers than `x` has.
    """
    import numpy as np
    import scipy.sparse

    flat = np.concatenate([x.reshape(len(x), -1), np.ones((len(x), 1), np.float32)], axis=1)
    if not num_classes:
        return np.concatenate([flat, flat * y[:, None], np.square(y)[:, None]], axis=1)
    count, width = flat.shape
    columns = (y[:, None] * width + np.arange(width)).astype(np.int32)
    starts = np.arange(count + 1) * width
    return scipy.sparse.csr_matrix(
        (flat.ravel(), columns.ravel(), starts), (count, num_classes * width)
    )


def _groups(table: "Table", rows: "np.ndarray") -> "tuple[np.ndarray | None, tuple[str, ...]]":
    import numpy as np

    if table.groups is None:
        return None, ()
    names, groups = np.unique(table.groups[rows], return_inverse=True)
    return groups.astype(np.int32), tuple(names.tolist())


def _lines(table: "Table", desired: "Table | None", sizes: dict[str, int]) -> tuple[str, ...]:
    sets = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    also = "" if desired is None else f", and {len(desired.x):,} of {desired.source}"
    form = " x ".join(map(str, table.x.shape[1:]))
    return (
        f"arrays: {len(table.x):,} examples of {table.source}{also}, {form} features each; "
        f"{sum(sizes.values()):,} used ({sets})",
    )


def _shower(x: "np.ndarray", y: "np.ndarray", classes: list[str]) -> Any:
    import numpy as np

    def label(n: int) -> str:
        return f"label {classes[y[n]] if classes else y[n]}"

    if x.ndim == 3 or (x.ndim == 4 and x.shape[-1] == 3):
        low, high = float(x.min()), float(x.max())
        return lambda n: ((x[n] - low) / max(high - low, 1e-12), label(n))

    def text(n: int) -> str:
        values = np.array2string(x[n].ravel()[:12], precision=3, separator=", ")
        return f"{label(n)}; {values}"

    return text


TASK = Task("arrays", ArraysConfig, _build, free_settings=("data.cache_dir",))
