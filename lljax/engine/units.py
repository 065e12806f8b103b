"""Sizes and durations in words."""


def count(value: float, unit: str) -> str:
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def size(value: float) -> str:
    return count(value, "B")


def duration(value: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if value >= 2 * size:
            return f"{value / size:.3g} {unit}"
    return f"{1000 * value:.{3 if value < 1 else 4}g} ms"
