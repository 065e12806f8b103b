"""The flags of `lljax export`, `score` and `transfer`, of a finished run, and of `attribute`."""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from lljax.config_flags import (
    config_name,
    default_workdir,
    experiment_of,
    first_arguments,
    usage,
)
from lljax.curation.writers import ENDINGS, Format
from lljax.errors import UserError
from lljax.failures import in_words
from lljax.flags import read_flags, without_tilde
from lljax.safe_text import printable


def export(arguments: Sequence[str]) -> None:
    """Reads the flags and exports."""
    import tyro

    def read(
        workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
        format: Format = "jsonl",
        out: Path | None = None,
        keep: float | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Write the documents of a run, and their pieces, with their weights.

        Best first; all of them, unless --sample or --keep choose. Sampling by weight is the better
        way to make a training set: in public comparisons it beats a hard cut.

        Args:
            workdir: what `lljax run` wrote
            format: of the files; an ArrayRecord holds a JSON object a record
            out: the folder that they go to; DIR/export when not given
            keep: only the best documents, this share of them
            sample: so many different documents, drawn by weight
            seed: of that
        """
        return {
            "workdir": workdir,
            "form": format,
            "folder": out,
            "keep": keep,
            "sample": sample,
            "seed": seed,
        }

    values = read_flags(read, prog="lljax export", arguments=arguments)
    values["workdir"] = without_tilde(values["workdir"])
    if values["folder"] is not None:
        values["folder"] = without_tilde(values["folder"])
    with in_words("export", values["workdir"]):
        from lljax.curation.export import export

        done = export(**values)
    print(
        printable(
            f"{done.documents}: {done.num_documents:,} documents\n"
            f"{done.examples}: {done.num_examples:,} examples"
        )
    )


def score(arguments: Sequence[str]) -> None:
    """Reads the flags and scores."""
    import tyro

    with in_words("score"):
        from lljax.curation.scoring import ScoreData, default_data, score

        name = _workdir("score", arguments)
        default = ScoreData() if name is None else default_data(name)

    def read(
        workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
        data: ScoreData = default,
        format: Format | None = None,
        out: Path | None = None,
        keep: float | None = None,
        sample: int | None = None,
        seed: int = 0,
    ) -> tuple[Path, ScoreData, Format | None, Path | None, dict[str, Any]]:
        """Weigh documents that the run has not seen, however many there are.

        They are written in their order, with rank, score, weight and the probability by which to
        sample; with --sample or --keep only those that are chosen.

        Args:
            workdir: what `lljax run` wrote, with --policy.family scorer
            data: what to score
            format: of the file, when its ending does not say it; an ArrayRecord holds a JSON object
                a record
            out: the file; DIR/scored.FORMAT when not given
            keep: only the best documents, this share of them
            sample: so many different documents, drawn by weight
            seed: of that
        """
        return workdir, data, format, out, {"keep": keep, "sample": sample, "seed": seed}

    workdir, data, form, out, choice = read_flags(read, prog="lljax score", arguments=arguments)
    workdir = without_tilde(workdir)
    default_path = workdir / f"scored{ENDINGS[form or 'jsonl']}"
    path = default_path if out is None else without_tilde(out)
    with in_words("score", workdir):
        done = score(workdir, data, path, form, **choice)
    quantiles = " ".join(f"{value:.2f}" for value in done.quantiles)
    print(
        printable(
            f"{done.path}: {done.written:,} of {done.read:,} documents\n"
            f"scores, every tenth part of the documents: {quantiles}"
        )
    )


def transfer(arguments: Sequence[str]) -> None:
    """Train other models, in fresh runs, on what a policy found.

    Compared are all data alike, the curated ones, a random subset of the same effective size and,
    where the truth is known, an oracle. The flags are those of the run, with its values: give a
    larger model, more steps, or other data. The result is in the report, too.
    """
    import tyro

    from lljax.tasks.config_file import TASKS
    from lljax.tasks.problem import Experiment

    name = _workdir("transfer", arguments)
    experiment = Experiment(TASKS[0], TASKS[0].config_type())
    with in_words("transfer"):
        if name is not None:
            from lljax.curation.transfer import default_experiment

            experiment = default_experiment(name)
    Config = type(experiment.config)
    Settings = Annotated[Config, tyro.conf.arg(name="")]  # type: ignore[valid-type]

    def read(
        workdir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DIR")],
        config: Settings = experiment.config,  # type: ignore[valid-type]
        seeds: Annotated[int, tyro.conf.arg(help="fresh runs of each kind")] = 5,
    ) -> tuple[Path, Any, int]:
        return workdir, config, seeds

    purpose = inspect.getdoc(transfer)
    workdir, config, seeds = read_flags(
        read, prog="lljax transfer", description=purpose, arguments=arguments
    )
    workdir = without_tilde(workdir)
    from lljax import commands

    with in_words("transfer", workdir):
        print(printable(commands.transfer(workdir, experiment._replace(config=config), seeds)))


def attribute(arguments: Sequence[str]) -> None:
    """Score each training example by what it does for the desired examples.

    The config's training run at uniform weights is differentiated: a score is how much the measure
    falls, in nats, when the example counts twice. The lowest scores are of examples that harm. Of
    runs on batches the scores are means over outer.runs of them. DIR gets scores.npy and a table of
    the examples, best first.
    """
    import tyro

    name = config_name("attribute", arguments, "get_config")
    experiment = experiment_of(name)
    ConfigFile, Settings = first_arguments(experiment.config)

    def arg(text: str) -> Any:
        return tyro.conf.arg(help=text)

    def read(
        config_file: ConfigFile,  # type: ignore[valid-type]
        config: Settings = experiment.config,  # type: ignore[valid-type]
        workdir: Annotated[Path, arg("folder of what is written")] = Path(
            f"{default_workdir(name)}-attribution"
        ),
        of: Annotated[
            Literal["auc", "final"], arg("the measure: the desired loss's AUC, or its last value")
        ] = "auc",
        each: Annotated[
            int | None, arg("scores for each of the first so many desired examples: [M, N]")
        ] = None,
        tokens: Annotated[bool, arg("also scores of the tokens, of a task that has them")] = False,
        format: Annotated[Literal["parquet", "jsonl"], arg("of the table")] = "parquet",
    ) -> tuple[Any, Path, dict[str, Any]]:
        return config, workdir, {"of": of, "each": each, "tokens": tokens, "format": format}

    config, workdir, choice = read_flags(
        read,
        prog=usage("attribute", arguments),
        description=inspect.getdoc(attribute),
        arguments=arguments,
    )
    from lljax import commands

    workdir = without_tilde(workdir)
    with in_words("attribute", workdir):
        print(printable(commands.attribute(experiment._replace(config=config), workdir, **choice)))


def _workdir(command: str, arguments: Sequence[str]) -> Path | None:
    """The run that a command's first argument names; None where only help is asked for."""
    if arguments and not arguments[0].startswith("-"):
        return without_tilde(Path(arguments[0]))
    if {"-h", "--help"} & set(arguments):
        return None
    raise UserError(f"`lljax {command}` needs a DIR first: the workdir of a finished run.")
