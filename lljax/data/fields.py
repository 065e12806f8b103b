"""The text of a record, and the group that it belongs to."""

import json
from collections.abc import Mapping
from typing import Any

from lljax.data.errors import TextError
from lljax.safe_text import printable

CHAT_TEMPLATE = "{role}: {content}\n\n"
_SPEAKERS = ("role", "from", "speaker")
_SAYINGS = ("content", "value", "text")


def text_of(value: Any, field: str, template: str, where: str) -> str:
    """The text of a record.

    Args:
      value: a dictionary, or the text itself.
      field: which entry is the text; `a.b` is entry b of entry a, a number that of a list. An entry
        that is a list of chat messages is joined by the template.
      template: of a message, with `{role}` and `{content}`.
      where: what a message calls the record.

    Returns:
      The text; empty where the entry is null.

    Raises:
      TextError: there is no such entry, or it is no text.
    """
    if isinstance(value, str):
        return value
    found = lookup(value, field) if isinstance(value, Mapping) else _NOTHING
    if found is _NOTHING:
        raise TextError(
            f"{where} must have a text in the field `{printable(field)}`; it has "
            f"{_fields(value)}. Set data.field to the one that holds the text."
        )
    if found is None:
        return ""
    if isinstance(found, list) and all(isinstance(part, Mapping) for part in found):
        return "".join(_message(part, template, where) for part in found)
    if not isinstance(found, str):
        raise TextError(
            f"{where} must have a string in the field `{printable(field)}`, or a list of chat "
            f"messages; it has {_short(found)}."
        )
    return found


def group_of(value: Any, field: str, where: str) -> str:
    """The entry of a record that names its group, as a text.

    Raises:
      TextError: there is no such entry.
    """
    found = lookup(value, field) if isinstance(value, Mapping) else _NOTHING
    if found is _NOTHING or isinstance(found, Mapping | list):
        raise TextError(
            f"{where} has no single value in the field `{printable(field)}` that data.group names; "
            f"it has {_fields(value)}."
        )
    text = found if isinstance(found, str) else json.dumps(found, default=str)
    return as_text(text)


def as_text(name: str) -> str:
    """A name without halves of surrogate pairs, which no UTF-8 text holds."""
    return name.encode("utf-8", "replace").decode()


def check_template(template: str) -> None:
    """TextError unless it is a template of a chat message."""
    try:
        template.format(role="", content="")
    except (LookupError, ValueError, AttributeError) as error:
        raise TextError(
            f"data.chat_template must hold {{role}} and {{content}}, and other braces doubled; got "
            f"{template!r}."
        ) from error
    if "{content}" not in template:
        raise TextError(f"data.chat_template must hold {{content}}; got {template!r}.")


_NOTHING = object()


def lookup(value: Any, field: str) -> Any:
    """An entry by its dotted name, `_NOTHING` where there is none; a name with dots comes first."""
    if isinstance(value, Mapping) and field in value:
        return value[field]
    if isinstance(value, list) and field.isdigit():
        return value[int(field)] if int(field) < len(value) else _NOTHING
    head, dot, rest = field.partition(".")
    below = lookup(value, head) if dot else _NOTHING
    return _NOTHING if below is _NOTHING else lookup(below, rest)


def _message(part: Mapping[str, Any], template: str, where: str) -> str:
    role = next((part[name] for name in _SPEAKERS if name in part), "")
    content = next((part[name] for name in _SAYINGS if name in part), None)
    if not isinstance(content, str | None):
        raise TextError(
            f"{where}: the content of a chat message must be a text; got {_short(content)}."
        )
    return template.format(role=role, content=content or "")


def _fields(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"no fields but is {_short(value)}"
    names = ", ".join(map(str, value)) or "none"
    return f"the fields {printable(names)[:200]}"


def _short(value: Any) -> str:
    text = printable(json.dumps(value, default=str))
    return text if len(text) <= 60 else f"{text[:60]}..."
