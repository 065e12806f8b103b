"""Pictures of what a memory strategy keeps, drawn from the tree that it returns."""

from lljax.memory import OffloadStates, SpreadStates, keeps_gradients, states_held

STEPS, SIDE, GAP, LEFT = 16, 22, 8, 96
COLOURS = {
    "device": "#2a78d6",
    "host": "#c7762c",
    "again": "none",
}


def _square(number, row, where, dashed=False, parts=1):
    x, y = LEFT + number * (SIDE + GAP), row
    outline = f'stroke="{COLOURS["device"]}" stroke-dasharray="3 2"' if dashed else 'stroke="none"'
    height = SIDE / parts
    return "".join(
        f'<rect x="{x}" y="{y + part * height + (2 if parts > 1 else 0)}" width="{SIDE}" '
        f'height="{height - (3 if parts > 1 else 0)}" rx="2" fill="{COLOURS[where]}" {outline}/>'
        for part in range(parts)
    )


def _words(x, y, text, anchor="start"):
    return f'<text x="{x}" y="{y}" fill="currentColor" text-anchor="{anchor}">{text}</text>'


def _row(label, row, squares):
    return _words(0, row + SIDE / 2 + 4, label) + "".join(squares)


def _starts(tree):
    """The first steps of the segments that are kept of the whole run, and the length of one."""
    length = -(-STEPS // tree[0])
    return list(range(0, STEPS, length)), length


def draw(strategy):
    """An SVG: the states of 16 steps, what is kept of them, and what is made again."""
    tree = strategy.split(STEPS)
    rows = []
    if len(tree) == 1:
        where = "host" if isinstance(strategy, OffloadStates) else "device"
        parts = 4 if isinstance(strategy, SpreadStates) else 1
        where = "host" if getattr(strategy, "on_host", False) else where
        label = {"host": "in the host"}.get(where, "of 4 devices" if parts > 1 else "on the device")
        rows.append((label, [(step, where, False, parts) for step in range(STEPS)]))
    else:
        starts, length = _starts(tree)
        rows.append(("whole run", [(step, "device", False, 1) for step in starts]))
        first = starts[-1]
        inside = range(first, min(first + length, STEPS))
        for depth, count in enumerate(tree[1:], 1):
            step = max(1, -(-len(inside) // count))
            chosen = list(inside)[::step]
            label = "one segment" if depth == 1 else f"level {depth + 1}"
            rows.append((label, [(number, "again", True, 1) for number in chosen]))
            inside = range(chosen[-1], inside.stop)
    drawn, y = [], 22
    for label, squares in rows:
        shapes = (_square(n, y, where, dashed, parts) for n, where, dashed, parts in squares)
        drawn.append(_row(label, y, shapes))
        y += SIDE + 8
    if keeps_gradients(strategy):
        bars = (
            f'<rect x="{LEFT + n * (SIDE + GAP)}" y="{y + 8}" width="{SIDE}" height="6" rx="2" '
            f'fill="{COLOURS["device"]}"/>'
            for n in range(STEPS)
        )
        drawn.append(_row("gradients", y, bars))
        y += SIDE + 4
    numbers = (_words(LEFT + n * (SIDE + GAP) + SIDE / 2, 14, f"{n}", "middle") for n in range(16))
    width = LEFT + STEPS * (SIDE + GAP)
    held = states_held(strategy, STEPS)
    title = f"{type(strategy).__name__}: {held} states of {STEPS} steps held at once"
    return (
        f'<svg viewBox="0 0 {width} {y}" width="{width}" role="img" aria-label="{title}">'
        f"<title>{title}</title>{_words(0, 14, 'inner step')}{''.join(numbers)}{''.join(drawn)}"
        "</svg>"
    )
