"""The parts of a schema: what a value may be, and the check of a tree of values."""

import base64
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"


class SchemaError(ValueError):
    """An artifact does not have the form that the schema says."""


class MissingField(SchemaError):
    """A required field is absent; `key` is its dotted name."""

    def __init__(self, key: str):
        super().__init__(f"there is no `{key}`")
        self.key = key


class Kind(NamedTuple):
    """What a JSON value may be: in words, and as a test."""

    words: str
    fits: Callable[[Any], bool]


class Field(NamedTuple):
    """A value in a JSON file, under a dotted name.

    A field below an object is looked for only where that object is there and is not null, if the
    object has a `Field` of its own.
    """

    name: str
    kind: Kind
    meaning: str
    required: bool = True


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names, as the command line's flags have them.

    >>> flatten({"seed": 0, "inner": {"num_steps": 200}})
    {'seed': 0, 'inner.num_steps': 200}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        is_tree = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if is_tree else {f"{prefix}{key}": value}
    return flat


def lookup(tree: Any, key: str) -> Any:
    """The value under a dotted name.

    >>> lookup({"inner": {"num_steps": 200}}, "inner.num_steps")
    200

    Raises:
      KeyError: there is none.
    """
    for part in key.split("."):
        if not isinstance(tree, Mapping):
            raise KeyError(key)
        tree = tree[part]
    return tree


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_png(value: Any) -> bool:
    """Whether `value` can go into a page as a data: URL of type image/png."""
    try:
        return base64.b64decode(value, validate=True).startswith(PNG_MAGIC)
    except (TypeError, ValueError):
        return False


REAL = Kind("a number", _is_number)
NUMBER = Kind("a number or null", _is_number_or_null)
WHOLE = Kind("a whole number", _is_whole)
COUNT = Kind("a positive integer", lambda value: _is_whole(value) and value >= 1)
TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and all(isinstance(item, str) for item in value),
)
TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object or null", lambda value: value is None or isinstance(value, Mapping))
NUMBERS = Kind(
    "an object of numbers, or null",
    lambda value: OBJECT.fits(value) and all(map(_is_number_or_null, (value or {}).values())),
)
NUMBERS_LIST = Kind(
    "a list of numbers or nulls",
    lambda value: isinstance(value, list) and all(map(_is_number_or_null, value)),
)
PNG = Kind("a PNG picture in base64", lambda value: isinstance(value, str) and _is_png(value))


def optional(name: str, kind: Kind, meaning: str) -> Field:
    """A field that may be absent."""
    return Field(name, kind, meaning, required=False)


def fields_below(parent: str, fields: tuple[Field, ...]) -> tuple[Field, ...]:
    """The same fields inside the object `parent`."""
    return tuple(field._replace(name=f"{parent}.{field.name}") for field in fields)


def check_fields(tree: Any, fields: tuple[Field, ...], prefix: str = "") -> None:
    """Checks that a tree has the fields, each of its kind; more may be in it.

    Args:
      tree: what a JSON file holds.
      fields: an object comes before the fields below it.
      prefix: what stands before the names in messages.

    Raises:
      MissingField: a required field is absent.
      SchemaError: a value is not of its kind.
    """
    left_out: list[str] = []
    for name, kind, _, required in fields:
        if any(name.startswith(f"{parent}.") for parent in left_out):
            continue
        try:
            value = lookup(tree, name)
        except KeyError:
            if required:
                raise MissingField(f"{prefix}{name}") from None
            left_out.append(name)
            continue
        if value is None:
            left_out.append(name)
        if not kind.fits(value):
            raise SchemaError(f"`{prefix}{name}` must be {kind.words}; got {reprlib.repr(value)}")
