"""Checkouts of others' code that the benchmarks run where they are given; none of it is ours."""

import argparse
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Checkout(NamedTuple):
    marker: str  # a file that is there
    folder: str
    clone: str

    @property
    def option_help(self) -> str:
        return f"{self.folder} of a clone of {self.clone}"


CHECKOUTS = {
    "public_code": Checkout(
        "opt_policy_trainer.py", "learning_law/src", "https://github.com/microsoft/LMOps"
    ),
    "metagradients_code": Checkout(
        "src/memory_efficient_trainer.py",
        "dataset_metagradients_jax",
        "https://github.com/TristanThrush/dataset-policy-gradients",
    ),
    "bergson_code": Checkout(
        "bergson/magic/trainer.py", "the root", "https://github.com/EleutherAI/bergson"
    ),
}

Sources = Mapping[str, Path]
"""The checkouts that were given, by name."""


def option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_checkouts(
    parser: argparse.ArgumentParser, names: Sequence[str] = tuple(CHECKOUTS), required: bool = False
) -> None:
    """An option for each."""
    for name in names:
        checkout = CHECKOUTS[name]

        def path(text: str, checkout: Checkout = checkout) -> Path:
            source = Path(text).resolve()
            if not (source / checkout.marker).is_file():
                raise argparse.ArgumentTypeError(
                    f"{source} has no {checkout.marker}. Give {checkout.option_help}."
                )
            return source

        parser.add_argument(option(name), type=path, required=required, help=checkout.option_help)


def given(options: argparse.Namespace) -> dict[str, Path]:
    """The checkouts that the command line names."""
    named = {name: getattr(options, name, None) for name in CHECKOUTS}
    return {name: path for name, path in named.items() if path}


def how_to_get(*names: str, packages: Sequence[str] = ()) -> str:
    """What to do for these checkouts and packages to be there."""
    steps = [f"pip install {' '.join(packages)}"] if packages else []
    for name in names:
        checkout = CHECKOUTS[name]
        steps.append(f"clone {checkout.clone} and give {option(name)} {checkout.folder}")
    return ", ".join(steps)


def missing_packages(*names: str) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def import_without_init(package: str, folder: Path) -> None:
    """Makes the modules of a folder importable, without what the package itself imports."""
    module = types.ModuleType(package)
    module.__path__ = [str(folder)]
    sys.modules[package] = module


def stand_in(*packages: str) -> None:
    """Stands in for packages that are imported, but not needed for what is measured."""
    names = frozenset(missing_packages(*packages))
    if names:
        sys.meta_path.append(_StandIns(names))


class _StandIns:
    """Finds empty modules of these packages."""

    def __init__(self, names: frozenset[str]):
        self._names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None):
        if name.partition(".")[0] not in self._names:
            return None
        return importlib.machinery.ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec):
        return _Anything(spec.name)

    def exec_module(self, module) -> None:
        pass


class _Anything(types.ModuleType):
    """A module in which every name is a class that does nothing, as function and as context."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (_Nothing,), {})


class _Nothing:
    """Takes any arguments, and is a context in which nothing happens."""

    def __init__(self, *_: Any, **__: Any):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass
