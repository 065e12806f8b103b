"""Config files: Python files with a `get_config()`, and a `get_task()` for a task of their own."""

import ast
import difflib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import lljax
from lljax.errors import UserError
from lljax.tasks import perceptron, text
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, Task

TASKS: tuple[Task, ...] = (perceptron.TASK, text.TASK)
"""The built-in ones; a config file finds its task by the type of its config."""


def shipped_configs() -> dict[str, Path]:
    """The config files that travel with lljax, by name: `lljax run NAME` works in any folder."""
    package = Path(lljax.__file__).parent
    # In a checkout they stand beside the package, in an installed one inside it.
    folders = [package / "configs", package.parent / "configs"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    files = sorted(folder.glob("[!_]*.py")) if folder else []
    return {file.stem: file for file in files}


def shipped_list(function: str = "get_config") -> str:
    """The shipped configs that define a function, a line each: the name and what it is."""
    lines = {}
    for name, path in shipped_configs().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
            lines[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    width = max(map(len, lines), default=0)
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())


def find_config(source: str | Path) -> Path:
    """The config file that a path, or the name of a shipped config, stands for.

    Raises:
      UserError: there is none.
    """
    path, shipped = Path(source), shipped_configs()
    if path.is_file():
        return path
    if str(source) in shipped:
        return shipped[str(source)]
    folder = path.parent if path.parent.is_dir() else Path()
    near = difflib.get_close_matches(path.name, [file.name for file in folder.glob("*.py")], 1)
    names = difflib.get_close_matches(path.stem, list(shipped), 1)
    guess = str(folder / near[0]) if near else names[0] if names else None
    hint = f" Did you mean {guess}?" if guess else ""
    known = f" lljax comes with the configs {', '.join(shipped)}." if not path.suffix else ""
    raise UserError(f"CONFIG: there is no file {source}.{hint}{known}")


def load_experiment(source: str | Path) -> Experiment:
    """Runs a config file and returns its config with the task that the config is for.

    Raises:
      UserError: no such file, it does not run, or it does not define a config.
    """
    path = find_config(source)
    module = _run(path, "get_config")
    config = _check_config(_call(module, path, "get_config"), f"get_config() of {path} must return")
    return Experiment(_find_task(module, path, config), config)


def load_config(source: str | Path) -> Any:
    """The config alone of `load_experiment`."""
    return load_experiment(source).config


def load_experiments(source: str | Path) -> dict[str, Experiment]:
    """As `load_experiment` for the `get_configs()` of a sweep: by name, all of one type."""
    path = find_config(source)
    module = _run(path, "get_configs")
    configs = _call(module, path, "get_configs")
    if not isinstance(configs, dict) or not configs:
        raise UserError(
            f"get_configs() of {path} must return a dictionary of configs by name; got "
            f"{type(configs).__name__ if not isinstance(configs, dict) else 'an empty one'}."
        )
    for name, config in configs.items():
        _check_config(config, f"get_configs()[{name!r}] of {path} must be")
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".."):
            raise UserError(f"{path}: the name {name!r} in get_configs() must be a folder's name.")
    kinds = {type(config).__name__ for config in configs.values()}
    if len(kinds) > 1:
        raise UserError(f"the configs of {path} must be of one type; got {', '.join(kinds)}.")
    task = _find_task(module, path, next(iter(configs.values())))
    return {name: Experiment(task, config) for name, config in configs.items()}


def _find_task(module: ModuleType, path: Path, config: ExperimentConfig) -> Task:
    own = [_call(module, path, "get_task")] if hasattr(module, "get_task") else []
    for task in own:
        if not isinstance(task, Task):
            raise UserError(
                f"get_task() of {path} must return a Task(name, config_type, build); got "
                f"{type(task).__name__}."
            )
    for task in (*own, *TASKS):
        if isinstance(config, task.config_type):
            return task
    kinds = ", ".join(task.config_type.__name__ for task in (*own, *TASKS))
    raise UserError(
        f"{path}: no task takes a {type(config).__name__}; there are tasks for {kinds}. Define "
        f"get_task() in the file and return a Task with that config_type."
    )


def _check_config(config: Any, where: str) -> Any:
    if not isinstance(config, ExperimentConfig):
        raise UserError(
            f"{where} an ExperimentConfig, such as a PerceptronConfig, a TransformerConfig or one "
            f"of your own; got {type(config).__name__}."
        )
    return config


def _run(path: Path, function: str) -> ModuleType:
    """Runs a config file, which is to define a function."""
    name = f"lljax_config_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"CONFIG must be a Python file (*.py) with {function}(); got {path}.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses that the file defines look themselves up there
    folder = str(path.parent.resolve())
    if folder not in sys.path:  # what lies beside it can be imported, as from a script
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error
    if not hasattr(module, function):
        other = {"get_config": "run", "get_configs": "sweep"}
        others = [f"`lljax {verb}`" for known, verb in other.items() if hasattr(module, known)]
        hint = f" It is one for {others[0]}." if others else ""
        raise UserError(f"{path} defines no {function}().{hint}")
    return module


def _call(module: ModuleType, path: Path, function: str) -> Any:
    try:
        return getattr(module, function)()
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read: {type(error).__name__}: {error}")
