"""Whether the values of a dataclass have the types that it declares: Python itself does not look.

A config may come from a file of its user's, where `InnerConfig(num_steps="60")` would be found
late, in words about something else.
"""

import dataclasses
import numbers
import types
import typing
from typing import Any

import numpy as np

from lljax.errors import UserError

_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def check_fields(config: Any, section: str = "") -> None:
    """Checks all fields of a dataclass, and of dataclasses in it, against their annotations.

    To be called in `__post_init__`. NumPy's numbers become Python's, whole numbers become floats
    and lists become tuples where the annotation wants them, so that equal configs are written
    equally. Annotations of other kinds than numbers, texts, choices, tuples and classes are not
    looked at.

    >>> import dataclasses
    >>> @dataclasses.dataclass
    ... class Data:
    ...     size: int = 3
    >>> check_fields(Data(size=2.5), "data")
    Traceback (most recent call last):
    lljax.errors.UserError: data.size must be a whole number; got 2.5 (float).

    Args:
      config: an instance of a dataclass.
      section: its dotted name, which stands before the names of its fields in messages.

    Raises:
      UserError: a field has a value of another type.
    """
    try:
        annotations = typing.get_type_hints(type(config))
    except (NameError, AttributeError, TypeError):
        return  # names that only a type checker knows
    for field in dataclasses.fields(config):
        name = f"{section}.{field.name}" if section else field.name
        value, annotation = getattr(config, field.name), annotations[field.name]
        try:
            fitted = _fit(value, annotation)
        except TypeError:
            raise UserError(
                f"{name} must be {_in_words(annotation)}; got {_found(value, annotation)}."
            ) from None
        if fitted is not value:
            object.__setattr__(config, field.name, fitted)  # the dataclass may be frozen
        if dataclasses.is_dataclass(fitted) and not isinstance(fitted, type):
            check_fields(fitted, name)


def _fit(value: Any, annotation: Any) -> Any:
    """The value as one of the type that is wanted; TypeError where it is none."""
    origin, parameters = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for choice in parameters:
            try:
                return _fit(value, choice)
            except TypeError:
                continue
        raise TypeError
    if origin is typing.Literal:
        fits = any(type(value) is type(choice) and value == choice for choice in parameters)
    elif origin is tuple:
        return _fit_tuple(value, parameters)
    elif annotation in (int, float):
        kind = numbers.Integral if annotation is int else numbers.Real
        if not isinstance(value, kind) or isinstance(value, bool | np.bool_):
            raise TypeError
        try:
            return value if type(value) is annotation else annotation(value)
        except OverflowError:
            raise TypeError from None
    elif annotation is bool:
        fits = isinstance(value, bool)
    else:
        fits = not _is_plain_class(annotation) or isinstance(value, annotation)
    if not fits:
        raise TypeError
    return value


def _is_plain_class(annotation: Any) -> bool:
    special = annotation is Any or getattr(annotation, "_is_protocol", False)
    return isinstance(annotation, type) and not special


def _fit_tuple(value: Any, parameters: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        raise TypeError
    if parameters[1:] == (...,):
        parameters = parameters[:1] * len(value)
    if len(parameters) != len(value):
        raise TypeError
    return tuple(_fit(item, wanted) for item, wanted in zip(value, parameters, strict=True))


def _in_words(annotation: Any) -> str:
    origin, parameters = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_in_words, parameters))
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parameters))}"
    if origin is tuple:
        items = [_in_words(item) for item in parameters if item is not ...]
        return f"a tuple, each entry {items[0]}" if ... in parameters else f"({', '.join(items)})"
    if annotation is type(None):
        return "None"
    return _NAMES.get(annotation) or f"of type {getattr(annotation, '__name__', annotation)}"


def _found(value: Any, annotation: Any) -> str:
    """What came, and how to write what was meant where that can be told."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}; write {value.__name__}(), an instance of it"
    shown = " ".join(repr(value).split())
    shown = f"{shown if len(shown) <= 80 else shown[:80] + '...'} ({type(value).__name__})"
    if isinstance(value, dict) and dataclasses.is_dataclass(annotation):
        return f"{shown}; write {getattr(annotation, '__name__', annotation)}(...)"
    return shown
