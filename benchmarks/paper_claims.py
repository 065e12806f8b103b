"""The claims of the paper, and what results say of each: the page of `benchmarks.paper`."""

import dataclasses
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

RUNS = ("perceptron", "transformer_small")
"""Configs that the claims are looked at in."""


@dataclasses.dataclass(frozen=True)
class Claim:
    """A line of the page: `ours` gives (verdict, what came out) of the results, or None."""

    where: str
    claim: str
    ours: Callable[[Mapping[str, Any]], tuple[str, str] | None]


def _shown(values: list[float]) -> str:
    """Minimum, median and maximum; one number where they are one."""
    known = sorted(value for value in values if value is not None and np.isfinite(value))
    if not known:
        return "none"
    cells = [f"{value:.3g}" for value in (known[0], statistics.median(known), known[-1])]
    return cells[0] if len(set(cells)) == 1 else ", ".join(cells)


def _rises(before: str, after: str) -> Callable[[Mapping[str, Any]], tuple[str, str] | None]:
    """Of both runs: whether a number is larger for the optimised policy at every seed."""

    def ours(results: Mapping[str, Any]) -> tuple[str, str] | None:
        if "runs" not in results:
            return None
        parts, holds = [], True
        for config, of in results["runs"]["figures"].items():
            pairs = zip(of[before], of[after], strict=True)
            holds &= all(b > a for a, b in pairs)
            parts.append(f"{config}: {_shown(of[before])} → {_shown(of[after])}")
        return ("reproduced" if holds else "not at every seed"), "; ".join(parts)

    return ours


def _of_runs(
    name: str, holds: Callable[[float], bool], configs: tuple[str, ...] = RUNS
) -> Callable[[Mapping[str, Any]], tuple[str, str] | None]:
    """Whether a number holds at every seed of these configs."""

    def ours(results: Mapping[str, Any]) -> tuple[str, str] | None:
        if "runs" not in results or not {*configs} <= {*results["runs"]["figures"]}:
            return None
        of = {config: results["runs"]["figures"][config][name] for config in configs}
        good = all(holds(value) for values in of.values() for value in values)
        text = "; ".join(f"{config}: {_shown(values)}" for config, values in of.items())
        return ("reproduced" if good else "in part"), text

    return ours


def _of_perceptron(results: Mapping[str, Any]) -> tuple[str, str] | None:
    if "settings" not in results:
        return None
    of = results["settings"]["figures"]
    name = "test AR, best on validation"
    near = {s: row for s, row in of.items() if min(row[name]) <= 5.5 <= max(row[name])}
    text = next(iter(of.values()))
    best = max(of, key=lambda s: statistics.median(of[s][name]))
    return (
        f"reproduced under: {'; '.join(near)}" if near else "not under any setting tried",
        f"as the text has it {_shown(text[name])}; most under {best}: {_shown(of[best][name])}",
    )


def _of_sizes(results: Mapping[str, Any]) -> tuple[str, str] | None:
    if "sizes" not in results:
        return None
    of = results["sizes"]["figures"]
    medians = [statistics.median(row["test AR"]) for row in of.values()]
    grows = medians == sorted(medians)
    rows = "; ".join(f"{size}: {_shown(row['test AR'])}" for size, row in of.items())
    return ("reproduced at small sizes" if grows else "not at these sizes"), rows


def _of_law(results: Mapping[str, Any]) -> tuple[str, str] | None:
    if "law" not in results:
        return None
    of = results["law"]["figures"]
    spreads = {n.split(":")[0]: v for n, v in of.items() if "spread of contributions" in n}
    slopes = [v for n, v in of.items() if "spread of slopes" in n]
    rows = "; ".join(f"{eta}: {_shown(values)}" for eta, values in spreads.items())
    largest = max(max(values) for values in slopes)
    return (
        "in the limit of small steps",
        f"spread of contributions over their mean at the certified optimum, {rows}; of the slopes "
        f"themselves at most {largest:.1e}",
    )


CLAIMS = (
    Claim("Theorem 3.1", "at the optimum all examples with weight contribute equally", _of_law),
    Claim(
        "§4.2, Fig. 4a, 5a", "Perceptron: held-out AR 5.50 by projected gradient", _of_perceptron
    ),
    Claim(
        "§4.2, Fig. 4, 5",
        "the near-optimal policy is faster on held-out data",
        _of_runs("test AR", lambda ratio: ratio > 1.5),
    ),
    Claim("§4.3", "CR rises", _rises("test CR, conventional", "test CR, optimised")),
    Claim("§4.4, Fig. 6, 7", "SIM rises", _rises("SIM, conventional", "SIM, optimised")),
    Claim(
        "§4.4, Fig. 7",
        "SIM grows with CR along the optimisation",
        _of_runs("rank correlation of SIM and CR along the path", lambda rho: rho > 0.8),
    ),
    Claim(
        "Property 4.1, Fig. 8",
        "examples with CT ≤ 0 lose their weight",
        _rises("CT <= 0 without weight, conventional", "CT <= 0 without weight, optimised"),
    ),
    Claim(
        "Property 4.2, Fig. 9",
        "learned examples get little weight (Perceptron; none is learned by the small Transformer)",
        _of_runs(
            "learned examples below 1e-3 of the top weight",
            lambda share: share > 0.9,
            configs=("perceptron",),
        ),
    ),
    Claim(
        "Property 4.3, Fig. 10",
        "redundant examples are left out: some that contribute have no weight",
        _of_runs("contributive without weight", lambda share: share > 0.01),
    ),
    Claim(
        "§4.6, Table 1, Fig. 11",
        "loss curves follow L0 + (B/t)^beta",
        _of_runs("r2 of the scaling law, conventional", lambda r2: r2 > 0.99),
    ),
    Claim("§4.6, Table 2", "AR grows with size: 2.16, 2.31, 2.41, 2.48", _of_sizes),
)


def page(results: Mapping[str, Any]) -> str:
    results = {name: part for name, part in results.items() if part["figures"]}
    lines = [
        "# The paper, claim by claim",
        "",
        "Written by `python -m benchmarks.paper`; not to be edited by hand. The paper is "
        "arXiv:2402.17759. Several numbers are minimum, median and maximum over seeds.",
        "",
        "| where | claim | here | verdict |",
        "|---|---|---|---|",
    ]
    for claim in CLAIMS:
        verdict, found = claim.ours(results) or ("not measured yet", "")
        line = claim.where, claim.claim, found.replace("|", "\\|"), verdict
        lines.append(f"| {' | '.join(line)} |")
    lines += [
        "",
        "At the paper's full size of the Transformer (T = 4000, N = 16,384): not run here.",
    ]
    if "settings" in results:
        lines += ["", "## The Perceptron's open settings", ""]
        lines += [
            "Projected gradient; the text prints 5.50. 0: worse than the conventional end.",
            "",
        ]
        lines += [
            "| setting | outer steps | seeds | desired AR | test AR at the end | test AR, best on "
            "validation |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for name, row in results["settings"]["figures"].items():
            batches = results["settings"]["measured"][name]
            steps = sorted({batch["outer_steps"] for batch in batches})
            cells = [", ".join(map(str, steps)), len(row["desired AR"]), *map(_shown, row.values())]
            lines.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    lines += ["", "## Measured by", ""]
    for name, part in results.items():
        for row, batches in part.get("measured", {"": [part]}).items():
            for about in batches:
                what = f"{name}, {row}" if row else name
                took = f"{about['took']:.0f} s, {about['machine']}"
                lines.append(f"- {what}: seeds {about['seeds']}, {took}")
    return "\n".join(lines) + "\n"
