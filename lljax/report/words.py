"""Numbers in words."""

from collections.abc import Callable
from typing import Any, TypeGuard

import numpy as np

POLICY_NAMES = {"conventional": "conventional", "optimized": "optimised"}


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is neither null nor NaN nor infinite."""
    return value is not None and bool(np.isfinite(value))


def number(value: float | None) -> str:
    """Four significant digits, whole numbers as they are; "-" for null, NaN and infinities.

    >>> number(3.03), number(1234567.8), number(2000), number(None), number(float("nan"))
    ('3.030', '1.235e+06', '2000', '-', '-')
    """
    if not is_number(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:#.4g}".removesuffix(".")


def acceleration(value: float | None, times: str = "×") -> str:  # noqa: RUF001
    """An acceleration ratio; null and NaN mean that the conventional loss was never reached.

    >>> acceleration(5.5, times="x"), acceleration(None)
    ('5.50x', 'never reached')
    """
    return f"{value:.2f}{times}" if is_number(value) else "never reached"


def percent(share: float | np.floating | None) -> str:
    r"""A share in per cent, with two or three significant digits.

    >>> percent(0.123), percent(0.00421), percent(-30.0), percent(-1e-9), percent(float("nan"))
    ('12.3\xa0%', '0.42\xa0%', '-3000\xa0%', '0\xa0%', '-')
    """
    if not is_number(share):
        return "-"
    size = abs(share)
    if size < 1e-6:  # rounding
        share = 0.0
    form = ".0f" if 10 <= size < 1e4 else ".2g" if size < 0.1 else ".3g"
    # A no-break space: the sign stays on the number's line.
    return f"{100 * share:{form}}\u00a0%"


def change(
    before: float | None,
    after: float | None,
    unit: str = "",
    show: Callable[[float | None], str] = number,
) -> str:
    r"""A verb phrase for a change; `show` puts a value into words.

    >>> change(2.0, 1.5, " nats"), change(1.0, 1.0), change(-1.0, 1.0)
    ('falls from 2 to 1.500 nats (by 25\xa0%)', 'stays at 1', 'rises from -1 to 1')
    >>> change(0.5, 0.08, show=percent)
    'falls from 50\xa0% to 8\xa0%'
    """
    first, last = show(before), f"{show(after)}{unit}"
    if not (is_number(before) and is_number(after)):
        return f"goes from {first} to {last}"
    if first == show(after):
        return f"stays at {last}"
    phrase = f"{'rises' if after > before else 'falls'} from {first} to {last}"
    # Across zero, or far from the start, a percentage says less than the two numbers. The
    # percentage of a percentage would be misread.
    if show is number and before > 0 and 0 <= after < 3 * before:
        phrase += f" (by {percent(abs(after / before - 1))})"
    return phrase
