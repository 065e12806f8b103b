"""The structure: which room imports which, how long files are, what a wheel holds."""

import ast
import configparser
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lljax"
FOR_ALL = {"errors", "field_types", "safe_text"}
PROCESS = {"process", "interrupt", "streams", "failures"}
SHELL_FILES = {
    "cli",
    "commands",
    "completion",
    "config_flags",
    "curation_flags",
    "flags",
    "__main__",
    *PROCESS,
    *FOR_ALL,
}
CORE = {path.stem for path in PACKAGE.glob("*.py")} - SHELL_FILES
CORE_PACKAGES = {"jax", "numpy", "optax", "chex"}
OPTIONAL = {"coded_stream": {"constriction"}}  # imported by the function that needs it

# What a room may import of lljax, beside itself, the core and what is for all.
ROOMS = {
    "artifacts": set(),
    "cluster": set(),
    "data": {"cluster"},
    "models": {"data"},
    "tasks": {"cluster", "data", "models"},
    "engine": {"artifacts", "cluster", "tasks"},
    "curation": {"artifacts", "cluster", "data", "models", "tasks", "engine"},
    "report": {"artifacts"},
}


def imports(path):
    """The modules that a file imports, inside its functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "lljax":
                yield from (f"lljax.{alias.name}" for alias in node.names)
            else:
                yield node.module


def rooms_of(path):
    """The parts of lljax that a file imports, the first name below `lljax`."""
    names = [name.split(".")[1] for name in imports(path) if name.startswith("lljax.")]
    # `from lljax import uniform_policy` takes a name, not a module.
    return {name for name in names if (PACKAGE / name).is_dir() or name in CORE | SHELL_FILES}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_the_left(room):
    allowed = ROOMS[room] | CORE | FOR_ALL | {room}
    for path in sorted((PACKAGE / room).rglob("*.py")):
        assert rooms_of(path) <= allowed, path


def test_every_folder_is_a_room():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert folders == set(ROOMS)


def test_the_core_knows_no_shell_and_three_packages():
    for name in sorted(CORE):
        path = PACKAGE / f"{name}.py"
        # The command's process begins with the package, before JAX is imported.
        # load_run is looked up there when it is asked for.
        allowed = CORE | {"process", "curation"} if name == "__init__" else CORE
        assert rooms_of(path) <= allowed, path
        others = {module.split(".")[0] for module in imports(path)} - {"lljax"}
        packages = CORE_PACKAGES | OPTIONAL.get(name, set())
        assert others - set(sys.stdlib_module_names) <= packages, path


def test_no_file_is_too_long():
    folders = ("lljax", "configs", "tests", "benchmarks", "examples")
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))):
        limit = 250 if path.is_relative_to(PACKAGE / "engine") else 350
        length = len(path.read_text(encoding="utf-8").splitlines())
        assert length <= limit, f"{path} has {length} lines"


def test_every_folder_is_in_the_wheel():
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    listed = set(settings["options"]["packages"].split())
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert listed == found | {"lljax.configs"}
