"""Pages that are made of the repository when the site is built, so that they cannot be out of date.

In a page's source stand, each on a line of its own:

  <!-- page: benchmarks/LOG.md -->          that file of the repository
  <!-- options: lljax.tasks.config.InnerConfig inner -->  the settings of a config's section
  <!-- changes: perceptron -->              what a shipped config sets otherwise than its type
  <!-- fields: SUMMARY -->, <!-- arrays -->     the schema of a workdir
  <!-- layout -->                           what a workdir holds, from the schema's docstring
  <!-- help: export -->                     what `lljax export --help` prints
  <!-- memory: StoreStates() -->            a picture of which states are kept
  <!-- trust -->                            the cells of benchmarks/TRUST.json
"""

import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import json
import os
import posixpath
import re
import statistics
import textwrap
import typing
from pathlib import Path

import memory_pictures
from sphinx.pycode import ModuleAnalyzer

import lljax
from lljax import cli
from lljax.artifacts import curation, schema
from lljax.tasks.config_file import load_config

ROOT = Path(__file__).resolve().parents[2]
_MARKER = re.compile(r"^<!-- (\w+)(?:: (.*?))? -->$", re.MULTILINE)
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)]*)?\)")
# Where the files of the repository have their place on the site; the others are at its source.
_PLACES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
    "benchmarks/SCALE.md": "scale.md",
    "benchmarks/PAPER.md": "paper.md",
    "benchmarks/LOG.md": "log.md",
}


def _page(app, path):
    text = (ROOT / path).read_text(encoding="utf-8")
    return _with_links(app, text, posixpath.dirname(path), "docs")


def _with_links(app, text, folder, page_folder):
    """The links of a file in `folder`, as a page in `page_folder` needs them."""

    def move(match):
        start, target, anchor = match[1], match[2], match[3] or ""
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in _PLACES:
            path = f"docs/{_PLACES[path]}"
        elif not path.startswith("docs/") and not start.startswith("!"):
            kind = "tree" if (ROOT / path).is_dir() else "blob"
            if not (ROOT / path).exists():
                raise ValueError(f"{folder}: a link to {target}, which is not there")
            return f"{start}{app.config.source_url}/{kind}/main/{path}{anchor})"
        return f"{start}{posixpath.relpath(path, page_folder)}{anchor})"

    return _LINK.sub(move, text)


def _config_type(path):
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def _docs_of_fields(config_type):
    """The docstring below each field, of the class or of one that it is derived from."""
    found = {}
    for kind in reversed(config_type.__mro__[:-1]):
        attributes = ModuleAnalyzer.for_module(kind.__module__).find_attr_docs()
        for (owner, name), lines in attributes.items():
            if owner == kind.__name__:
                found[name] = " ".join(lines).strip()
    return found


def _flag(section, name):
    return "--" + ".".join(part for part in (section, name) if part).replace("_", "-")


def _shown(value):
    if isinstance(value, tuple):
        value = " ".join(map(str, value)) or "none"
    if isinstance(value, str):
        value = value.encode("unicode_escape").decode()
    return "not given" if value is None else str(value)


def _kind(annotation):
    """What a flag takes, in words."""
    arguments = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
    if typing.get_origin(annotation) is typing.Literal:
        return "{" + ",".join(map(str, arguments)) + "}"
    if typing.get_origin(annotation) is tuple:
        return f"{_kind(arguments[0])} ..."
    if arguments:
        return _kind(arguments[0])
    names = {int: "INT", float: "FLOAT", str: "TEXT", bool: "{True,False}"}
    return names[annotation]


def _options(path, section=""):
    config_type = _config_type(path)
    hints, docs = typing.get_type_hints(config_type), _docs_of_fields(config_type)
    text = ""
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(hints[field.name]):
            continue
        meaning = " ".join(docs[field.name].split())
        for sign in "\\*<|$_":
            meaning = meaning.replace(sign, "\\" + sign)
        text += f"````{{option}} {_flag(section, field.name)} {_kind(hints[field.name])}\n"
        text += f"{meaning}\n\nDefault: `{_shown(field.default)}`.\n````\n\n"
    return text


def _changes(name):
    """A definition list: the flags that a shipped config sets otherwise than its type does."""
    config = load_config(name)
    defaults = schema.flatten(dataclasses.asdict(type(config)()))
    settings = schema.flatten(dataclasses.asdict(config))
    lines = [
        f"`{_flag('', key)} {_shown(value)}`"
        for key, value in settings.items()
        if value != defaults[key]
    ]
    lines = [line.replace(os.sys.prefix, "...") for line in lines]
    if not lines:
        return f"`{name}`: the defaults of `{type(config).__name__}`.\n"
    return f"`{name}`, a `{type(config).__name__}`:\n\n" + "\n".join(f"- {x}" for x in lines)


def _fields(name):
    fields = getattr(schema, name, None) or getattr(curation, name)
    text = "| name | what it holds | meaning |\n|---|---|---|\n"
    for field in fields:
        need = "" if field.required else " (optional)"
        meaning = field.meaning.replace("|", "\\|")
        text += f"| `{field.name}` | {field.kind.words}{need} | {meaning} |\n"
    return text


def _arrays():
    text = "| name | axes | meaning |\n|---|---|---|\n"
    for array in schema.ARRAYS.values():
        text += f"| `{array.name}` | [{', '.join(array.axes)}] | {array.meaning} |\n"
    return text + "\n" + "\n".join(f"- **{axis}**: {what}" for axis, what in schema.AXES.items())


def _layout():
    documentation = inspect.cleandoc(schema.__doc__)
    start = documentation.index("  config.json")
    end = documentation.index("\nand what the engine")
    return f"```text\n{textwrap.dedent(documentation[start:end])}```\n"


def _help(command):
    """What a command prints as its help, 76 columns wide and without colours."""
    words = io.StringIO()
    saved = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR")}
    os.environ |= {"COLUMNS": "76", "NO_COLOR": "1"}
    try:
        with contextlib.redirect_stdout(words), contextlib.suppress(SystemExit):
            cli.call([command, "--help"] if command != "lljax" else ["--help"])
    finally:
        for name, value in saved.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    text = re.sub(r"\x1b\[[0-9;]*m", "", words.getvalue())
    return "```text\n" + "\n".join(line.rstrip() for line in text.splitlines()) + "\n```\n"


def _memory(code):
    strategy = eval(code, {name: getattr(lljax, name) for name in lljax.__all__})
    return f'<div class="memory-picture">\n{memory_pictures.draw(strategy)}\n</div>\n'


def _trust(app):
    path = ROOT / "benchmarks" / "TRUST.json"
    app.env.note_dependency(str(path))
    rows = json.loads(path.read_text(encoding="utf-8"))
    text = "| training run | metasmoothness | overshoot | LDS of the AUC | of the final loss |\n"
    text += "|---|---|---|---|---|\n"
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["lds_auc"]):
        warned = ", warned of" if row["warned"] else ""
        smooth, over = (statistics.median(row[of]) for of in ("smoothness", "overshoot"))
        text += (
            f"| {name}{warned} | {smooth:.2f} | {over:.2g} | {row['lds_auc']:.2f} "
            f"| {row['lds_final']:.2f} |\n"
        )
    return text


_MAKERS = {
    "options": _options,
    "changes": _changes,
    "fields": _fields,
    "help": functools.cache(_help),
    "memory": _memory,
}


def _fill(app, docname, source):
    """Puts what is made in the place of its marker, and moves the links to the repository."""

    def make(match):
        kind, rest = match[1], match[2] or ""
        if kind == "page":
            app.env.note_dependency(str(ROOT / rest))
            return _page(app, rest)
        if kind == "trust":
            return _trust(app)
        if kind in ("arrays", "layout"):
            return {"arrays": _arrays, "layout": _layout}[kind]()
        return _MAKERS[kind](*(rest.split() if kind == "options" else [rest]))

    folder = posixpath.dirname(f"docs/{docname}")
    text = _with_links(app, source[0], folder, folder)
    source[0] = _MARKER.sub(lambda m: make(m) if m[1] in {*_MAKERS, *_OTHERS} else m[0], text)


_OTHERS = ("page", "trust", "arrays", "layout")


def setup(app):
    app.add_config_value("source_url", "", "env")
    app.add_config_value("site_url", "", "env")
    app.connect("source-read", _fill, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
