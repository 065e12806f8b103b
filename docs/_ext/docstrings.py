"""Docstrings as pages of the API: which names, in which form, and links between them.

A page says `<!-- api: lljax.memory -->` where the public names of that module stand; a name that is
added to `lljax.__all__` then has its place without an edit.

Public are the names of `lljax.__all__`, and of a module that has an `__all__` of its own. In
docstrings an equation is indented by two, code by four, and a name in single backticks is code.
"""

import importlib
import inspect
import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

import lljax

_SECTION = re.compile(r"(Args|Attributes|Raises|Returns|Warns):$")
_MARKER = re.compile(r"<!-- api: ([\w. ]+) -->")
_escaped: dict[str, list[str]] = {}
# Documented beside the public names, since signatures name them.
_IN_SIGNATURES = {
    "lljax.types": ("Objective", "MetaUpdate", "TrainState"),
    "lljax.outer_loop": ("LoopFn",),
    "lljax.stochastic_loop": ("DrawnObjective",),
    "lljax.step_control": ("Begin", "Take", "Reject", "Refresh"),
    "lljax.segments": ("Start", "Forward", "StartBackward", "Backward"),
    "lljax.curation.loaded": ("Run", "Data"),
    "lljax.curation.scorer": ("Scorer",),
    "lljax.scaling_law": ("ScalingLawImprovement",),
    "lljax.update": ("Cotangent",),
    "lljax.tasks.origins": ("Origins",),
    "lljax.tasks.config": ("MeshConfig",),
    "lljax.tasks.tokens": ("TokenWeights",),
}


def names_of(module_name):
    """(the name under which it is documented, the object) of the public names of a module."""
    module = importlib.import_module(module_name)
    if module_name != "lljax" and hasattr(module, "__all__"):
        found = [(f"{module_name}.{name}", getattr(module, name)) for name in module.__all__]
    else:
        public = [(f"lljax.{name}", getattr(lljax, name)) for name in lljax.__all__]
        found = [pair for pair in public if pair[1].__module__ == module_name]
        extra = _IN_SIGNATURES.get(module_name, ())
        found += [(f"{module_name}.{name}", getattr(module, name)) for name in extra]
    return sorted(found, key=_line)


def _line(pair):
    _, thing = pair
    return thing.__module__, inspect.getsourcelines(thing)[1]


def _directive(name, thing):
    if inspect.isclass(thing):
        options = ":members:\n"
        if "\nAttributes:" not in (inspect.getdoc(thing) or ""):
            options += "   :undoc-members:\n"
        if "__call__" in vars(thing):
            options += "   :special-members: __call__\n"
        return f".. autoclass:: {name}\n   {options}"
    return f".. autofunction:: {name}\n"


def _expand(app, docname, source):
    """Puts directives in the place of the markers."""

    def directives(match):
        text = ""
        for module in match[1].split():
            try:
                names = names_of(module)
            except ModuleNotFoundError:
                names = []  # a page may have a place for a module that is not there yet
            text += "".join(f"{_directive(*pair)}\n" for pair in names)
        return f"```{{eval-rst}}\n{text}```\n" if text else ""

    source[0] = _MARKER.sub(directives, source[0])


def _escape(line):
    """What is markup in reStructuredText and is none in our docstrings, outside of backticks."""
    parts = re.split(r"(`+[^`]*`+)", line)
    return "".join(
        part if index % 2 else re.sub(r"([|*]|_(?!\w|\{))", r"\\\1", part)
        for index, part in enumerate(parts)
    )


def _comment(name):
    """The comment behind a field of a class, which is its docstring."""
    owner, _, field = name.rpartition(".")
    module, _, kind = owner.rpartition(".")
    source = inspect.getsource(getattr(importlib.import_module(module), kind))
    found = re.search(rf"^    {field}: .*?  # (.*)$", source, re.MULTILINE)
    return [found[1], ""] if found else [f"`{name}` has no words of its own", ""]


def _to_rest(app, what, name, thing, options, lines):
    """Equations and code become blocks; runs before napoleon reads the sections."""
    if what == "attribute" and (not any(lines) or lines[0].startswith("Alias for field number")):
        lines[:] = _comment(name)
    found, block, section, doctest = [], None, False, False
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.startswith(">>>"):
            doctest = True
        if doctest:
            doctest = bool(line)
            found.append(line)
            continue
        if line and not indent:
            section = bool(_SECTION.match(line))
            block = None
        if not section and indent >= 2 and (block or not found or not found[-1].strip()):
            if block is None:
                block = indent
                form = "code-block:: python" if indent >= 4 else "code-block:: none"
                found += [f".. {form}", f"   :class: {'sketch' if indent >= 4 else 'formula'}", ""]
            found.append(f"   {line[block:]}")
            continue
        if line.strip():
            block = None
        if found and found[-1] == "Returns:" and ":" in line:
            line = f"  : {line.strip()}"  # or napoleon takes what is before the colon for a type
        found.append(_escape(line))
    lines[:] = found
    if what in ("attribute", "property", "data"):
        _escaped[name] = found


def _restore(app, what, name, thing, options, lines):
    """An attribute's docstring is text: napoleon would take words before a colon for a type."""
    if what in ("attribute", "property", "data"):
        lines[:] = [*_escaped.pop(name, lines), ""]


def _without_signature(app, what, name, thing, options, signature, returns):
    """A protocol is not called itself: what it describes is its `__call__`."""
    if what == "class" and getattr(thing, "_is_protocol", False):
        return "", None
    return None


class LinkNames(SphinxPostTransform):
    """Code that is the name of something public links to it, in docstrings and in pages."""

    default_priority = 5  # before references are resolved

    def run(self, **_):
        for node in list(self.document.findall(nodes.literal)):
            if isinstance(node.parent, nodes.reference) or node.get("classes") == ["xref"]:
                continue
            target = _target(node.astext())
            domain = self.env.get_domain("py")
            if target not in domain.objects:
                continue
            found = domain.resolve_xref(
                self.env,
                self.env.current_document.docname,
                self.app.builder,
                "obj",
                target,
                _pending(),
                node.deepcopy(),
            )
            if found is not None:
                node.replace_self(found)


def _pending():
    from sphinx.addnodes import pending_xref

    return pending_xref("", refdomain="py", reftype="obj", refexplicit=False)


def _target(text):
    """The full name of what a piece of code may name: `lljax.unroll`, `unroll`, `unroll(...)`."""
    name = text.partition("(")[0]
    return name if name.startswith("lljax.") else f"lljax.{name}"


def _foreign(app, env, node, content):
    """A name of another package stays code; one of ours by its public name is found, or wrong."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py":
        return None
    parts = target.split(".")
    # Of another package, a type variable, or what our own functions pass on.
    if parts[0] != "lljax" or parts[-1].endswith("T") or parts[-1] == "RunOptions":
        return content
    short = f"lljax.{parts[-1]}"
    domain = env.get_domain("py")
    if short in domain.objects:
        builder = app.builder
        return domain.resolve_xref(env, node["refdoc"], builder, "obj", short, node, content)
    return None


def setup(app):
    app.connect("source-read", _expand)
    app.connect("autodoc-process-docstring", _to_rest, priority=400)
    app.connect("autodoc-process-docstring", _restore, priority=600)
    app.connect("autodoc-process-signature", _without_signature)
    app.connect("missing-reference", _foreign)
    app.add_post_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
