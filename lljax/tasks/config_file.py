"""Config files: Python files with a `get_config()`, and a `get_task()` for a task of their own."""

import ast
import difflib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import lljax
from lljax.errors import UserError
from lljax.field_types import check_fields
from lljax.tasks import arrays, perceptron, text
from lljax.tasks.config import ExperimentConfig
from lljax.tasks.problem import Experiment, Task

TASKS: tuple[Task, ...] = (perceptron.TASK, text.TASK, arrays.TASK)
"""The built-in ones; a config file finds its task by the type of its config."""

_NO_FOLDERS = ("", "..", "table.json", "table.txt")  # the last are what a sweep writes beside them


def shipped_configs() -> dict[str, Path]:
    """The config files that travel with lljax, by name: `lljax run NAME` works in any folder."""
    package = Path(lljax.__file__).parent
    # In a checkout they stand beside the package, in an installed one inside it.
    folders = [package / "configs", package.parent / "configs"]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    files = sorted(folder.glob("[!_]*.py")) if folder else []
    return {file.stem: file for file in files}


def shipped_names(function: str) -> dict[str, str]:
    """The names of the shipped configs that define a function, and the first line of each."""
    lines = {}
    for name, path in shipped_configs().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
            lines[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return lines


def shipped_list(function: str = "get_config") -> str:
    """The shipped configs that define a function, a line each: the name and what it is."""
    lines = shipped_names(function)
    width = max(map(len, lines), default=0)
    return "\n".join(f"  {name:<{width}}  {line}" for name, line in lines.items())


def find_config(source: str | Path) -> Path:
    """The config file that a path, or the name of a shipped config, stands for.

    Raises:
      UserError: there is none.
    """
    shipped = shipped_configs()
    if str(source) in shipped:  # whatever else has that name, a workdir for example
        return shipped[str(source)]
    try:
        path = Path(source).expanduser()
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user
        raise UserError(f"CONFIG: {source} cannot be read: {str(error).rstrip('.')}.") from error
    if is_file:
        return path
    if is_folder and source:
        raise UserError(f"CONFIG: {source} is a folder. Give a Python file, or a config's name.")
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
        if not isinstance(name, str) or Path(name).name != name or name in _NO_FOLDERS:
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
        check_fields(task, "Task")
        if not isinstance(task.config_type, type) or not callable(task.build):
            raise UserError(
                f"get_task() of {path}: config_type must be a class and build a function; got "
                f"{task.config_type!r} and {task.build!r}."
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
        got = type(config).__name__
        if isinstance(config, type):
            got = f"the class {config.__name__}; write {config.__name__}()"
        raise UserError(
            f"{where} an ExperimentConfig, such as a PerceptronConfig, a TransformerConfig or one "
            f"of your own; got {got}."
        )
    kind = type(config)
    settings = [
        hint for hint in inspect.get_annotations(kind).values() if "ClassVar" not in f"{hint}"
    ]
    if settings and "__dataclass_fields__" not in vars(kind):
        raise UserError(
            f"{kind.__name__} has settings of its own, which are known only once "
            f"@dataclasses.dataclass(frozen=True) stands above it."
        )
    check_fields(config)  # also where its own __post_init__ leaves that out
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
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too, which would end without a word
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
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too, which would end without a word
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: BaseException) -> UserError:
    if isinstance(error, ModuleNotFoundError):
        return UserError(
            f"{path} needs the module {error.name}, which is not installed and not in its folder."
        )
    # The last line of the file's own says more than one inside a library.
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    where = f" (line {lines[-1]})" if lines else ""
    return UserError(f"{path} cannot be read: {type(error).__name__}: {error}{where}")
