"""In which settings two runs differ, in words."""

from collections.abc import Mapping
from typing import Any

from lljax.safe_text import printable, without_secrets

ABSENT = "absent"
_MOST = 5


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words, at most some; of another task only that it is another."""
    keys = [
        key for key in sorted({*there, *here}) if there.get(key, ABSENT) != here.get(key, ABSENT)
    ]
    if "task" in keys:
        keys = ["task"]
    words = [
        f"{shown(key)} is {shown(there.get(key, ABSENT))} there and "
        f"{shown(here.get(key, ABSENT))} here"
        for key in keys[:_MOST]
    ]
    more = len(keys) - len(words)
    return [*words, f"and {more} more"] if more else words


def shown(value: Any) -> str:
    text = without_secrets(printable(" ".join(str(value).split())))
    return text if len(text) <= 60 else f"{text[:60]}..."
