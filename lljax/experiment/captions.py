"""The sentences of a report, computed from the run's numbers.

A sentence says what this run shows; where an effect is absent or contrary, it says that.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from lljax.experiment.results import POLICIES, SETS, Results


def number(value: float | None) -> str:
    """Four significant digits, whole numbers as they are; "-" for null, NaN and infinities.

    >>> number(3.03), number(1234567.8), number(2000), number(None), number(float("nan"))
    ('3.030', '1.235e+06', '2000', '-', '-')
    """
    if value is None or not is_number(value):
        return "-"
    if float(value).is_integer() and abs(value) < 1e6:
        return str(int(value))
    return f"{value:#.4g}".removesuffix(".")


def acceleration(value: float | None, times: str = "×") -> str:  # noqa: RUF001
    """An acceleration ratio in words: one that is null or NaN was never reached.

    >>> acceleration(5.5, times="x"), acceleration(None)
    ('5.50x', 'never reached')
    """
    return f"{value:.2f}{times}" if is_number(value) else "never reached"


def percent(share: float | np.floating) -> str:
    r"""A share in per cent, with the digits that it deserves.

    >>> percent(0.123), percent(0.00421), percent(float("nan"))
    ('12.3\xa0%', '0.42\xa0%', '-')
    """
    if not is_number(share):
        return "-"
    # A no-break space: the sign stays on the number's line.
    return f"{100 * share:.{2 if abs(float(share)) < 0.1 else 3}g}\u00a0%"


def change(before: float | None, after: float | None, unit: str = "") -> str:
    r"""The verb phrase of a change.

    >>> change(2.0, 1.5, " nats"), change(1.0, 1.0), change(-1.0, 1.0)
    ('falls from 2 to 1.500 nats (by 25\xa0%)', 'stays at 1', 'rises from -1 to 1')
    """
    if before is None or after is None or not np.isfinite([before, after]).all():
        return f"goes from {number(before)} to {number(after)}{unit}"
    if number(before) == number(after):
        return f"stays at {number(before)}{unit}"
    verb = "rises" if after > before else "falls"
    phrase = f"{verb} from {number(before)} to {number(after)}{unit}"
    # Across zero, or far from the start, a percentage says less than the two numbers.
    if before > 0 and 0 <= after < 3 * before:
        phrase += f" (by {percent(abs(after / before - 1))})"
    return phrase


def is_number(value: Any) -> bool:
    """Whether `value` is neither null nor NaN nor infinite."""
    return value is not None and bool(np.isfinite(value))


def is_fit(fit: Mapping[str, Any] | None) -> bool:
    """Whether a scaling law was fitted: all its numbers are there."""
    return all(is_number((fit or {}).get(key)) for key in ("L0", "B", "beta", "t0", "r2"))


def steps_to_match(summary: Mapping[str, Any], name: str) -> int | None:
    """The inner step where the optimised loss is down to the conventional final one (Eq. 9)."""
    ratio = summary[name]["acceleration_ratio"]
    return round(summary["inner_steps"] / ratio) if is_number(ratio) and ratio > 0 else None


def match_sentence(summary: Mapping[str, Any], name: str) -> str:
    """How fast the optimised policy reaches the conventional final loss on one of the sets."""
    final = number(summary[name]["conventional"]["final_loss"])
    reached, ratio = steps_to_match(summary, name), summary[name]["acceleration_ratio"]
    if reached is None:
        return (
            f"On the {name} set the optimised policy never reaches the conventional final loss "
            f"of {final}: it ends at {number(summary[name]['optimized']['final_loss'])}."
        )
    verdict = f"{acceleration(ratio)} as fast" if ratio >= 1.005 else "no faster"
    return (
        f"On the {name} set the optimised policy reaches the conventional final loss of {final} "
        f"after {reached} of {summary['inner_steps']} steps: {verdict}."
    )


def headline(results: Results) -> str:
    """The result of the run in one paragraph."""
    summary = results.summary
    kept, ran = summary["best_outer_step"], summary["outer_steps"]
    test, law = summary["test"], summary["learning_law"]
    if kept == 0:
        return (
            f"No success: in {ran} outer steps no policy had a smaller loss AUC on the validation "
            "set than the conventional one, so the kept policy is the conventional policy."
        )
    aucs = [test[policy]["auc"] for policy in POLICIES]
    text = (
        f"The policy of outer step {kept} of {ran} is kept, the one with the smallest loss AUC on "
        f"the validation set. On the test set, which neither the optimisation nor that choice has "
        f"seen, the loss AUC {change(aucs[0], aucs[1], ' nats per step')}. "
        f"{match_sentence(summary, 'test')} "
    )
    if all(map(is_number, aucs)) and aucs[1] >= aucs[0]:
        text += "So optimising the policy does not help on unseen examples. "
    ratios = [summary[name]["acceleration_ratio"] for name in ("desired", "test")]
    if is_number(ratios[0]) and (not is_number(ratios[1]) or ratios[0] > 1.5 * ratios[1]):
        text += (
            f"On the desired examples that the optimisation did see, the acceleration is "
            f"{acceleration(ratios[0])}: part of it is over-fitting to them. "
        )
    if all(map(is_number, finals := [test[policy]["final_loss"] for policy in POLICIES])) and (
        finals[1] > finals[0]
    ):
        text += (
            f"The final test loss is worse than the conventional one ({number(finals[1])} "
            f"against {number(finals[0])}). "
        )
    similarity, gap = (
        change(law["conventional"][key], law["optimized"][key])
        for key in ("similarity", "optimality_gap")
    )
    return text + (
        f"Learning Law: the similarity of contributions, which should rise, {similarity}; the "
        f"optimality gap, zero at a stationary policy, {gap}."
    )


def objective_caption(results: Results) -> str:
    """Figure 4."""
    metrics, row = results.metrics, results.kept_row()
    row = -1 if row is None else row
    objective, validation = (results.num_steps * metrics[k] for k in ("auc", "validation_auc"))
    text = (
        f"Over {len(objective) - 1} outer steps, J on the desired set "
        f"{change(objective[0], objective[-1], ' nats')}. On the validation set it "
        f"{change(validation[0], validation[row], ' nats')} at the kept step "
        f"{results.summary['best_outer_step']}"
    )
    if validation[-1] > 1.001 * validation[row]:
        text += (
            f" and is back at {number(validation[-1])} in the last one: after the kept step the "
            "policy over-fits the desired examples"
        )
    return text + "."


def curves_caption(results: Results) -> str:
    """Figure 5."""
    return " ".join(match_sentence(results.summary, name) for name in reversed(SETS))


def similarity_caption(results: Results) -> str:
    """Figure 6: the first and the last policy of the path, compared at equal loss."""
    losses = results.arrays["path_desired_losses"][[0, -1], :-1]
    curves = results.arrays["path_similarity_curve"][[0, -1]]
    finite = [np.isfinite(pair).all(axis=0) for pair in zip(losses, curves, strict=True)]
    lost = "The conventional and the kept policy share no range of losses to compare them on."
    if not all(good.any() for good in finite):
        return lost
    seen = [loss[good] for loss, good in zip(losses, finite, strict=True)]
    low, high = max(map(np.min, seen)), min(map(np.max, seen))
    if not low < high:
        return lost
    grid, values = np.linspace(low, high, 200), []
    for loss, curve, good in zip(seen, curves, finite, strict=True):
        order = np.argsort(loss)
        values.append(np.interp(grid, loss[order], curve[good][order]))
    share, (before, after) = np.mean(values[1] > values[0]), (v.mean() for v in values)
    return (
        f"At equal loss, SIM(t) of the kept policy is above that of the conventional one on "
        f"{percent(share)} of the losses that both pass ({number(high)} down to {number(low)}); "
        f"its mean there is {number(after)} against {number(before)}, so contributions are "
        f"{'more' if after > before else 'no more'} alike under the kept policy."
        f"{_to_the_objective(results)}"
    )


def _to_the_objective(results: Results) -> str:
    """What contributions are to, where that is not the desired loss alone."""
    share = results.config["outer"].get("train_share", 0)
    if not share:
        return ""
    return (
        f" Contributions are those to the objective of this run, {percent(1 - share)} desired "
        f"and {percent(share)} training loss."
    )


def excluded_caption(results: Results) -> str:
    """Figure 8."""
    share = "the share of CT ≤ 0 examples without weight"
    text = path_caption(results, "path_zero_weight_share", share)
    threshold = results.summary.get("zero_weight_threshold", 0)
    if threshold:
        text += f" A weight counts as zero up to {number(threshold)} of the uniform one."
    return text


def path_caption(results: Results, key: str, what: str) -> str:
    """Figures 7 and 8: a quantity against the compression ratio along the optimisation."""
    values, ratios = results.arrays[key], results.arrays["path_compression_ratio"]
    text = (
        f"From the conventional to the kept policy, the test CR {change(ratios[0], ratios[-1])} "
        f"and {what} {change(values[0], values[-1])}"
    )
    if len(values) > 2:
        together = np.sign(np.diff(values)) * np.sign(np.diff(ratios)) > 0
        text += f"; they move the same way in {together.sum()} of {together.size} intervals"
    return text + "."


def learned_shares(results: Results) -> np.ndarray:
    """The cumulative distributions of Figure 9 at every edge, [P, G]; NaN without examples."""
    counts = results.arrays["path_learned_counts"].astype(float)
    sums = np.pad(counts.cumsum(axis=1), ((0, 0), (1, 0)))
    return np.divide(sums, sums[:, -1:], out=np.full_like(sums, np.nan), where=sums[:, -1:] > 0)


def learned_caption(results: Results) -> str:
    """Figure 9."""
    total = results.arrays["path_learned_counts"][-1].sum()
    if not total > 0:
        return "Under the kept policy no example is perfectly learned (loss below 1e-6)."
    first, last = (
        np.interp(0.1, results.arrays["learned_edges"], share)
        for share in learned_shares(results)[[0, -1]]
    )
    return (
        f"The kept policy meets an example that is already learned (loss below 1e-6) in "
        f"{total:.0f} cases; in {percent(last)} of them the example has less than a tenth of the "
        f"largest weight of its step (conventional policy: {percent(first)})."
    )


def heatmap_caption(results: Results) -> str:
    """Figure 10."""
    values = results.arrays["heatmap_weights"].astype(float)
    totals = np.sort(np.nansum(values, axis=0))
    top = totals[-max(1, len(totals) // 10) :].sum() / max(totals.sum(), 1e-30)
    return (
        f"Of the weights of these {values.shape[1]} contributive examples, "
        f"{percent(np.mean(values < 0.01))} are below a hundredth of the uniform weight; the tenth "
        f"of the examples with the largest mean weight holds {percent(top)} of their total "
        f"(10 % under the conventional policy)."
    )


def scaling_caption(results: Results) -> str:
    """Figure 11."""
    fits = results.summary["scaling_law"]
    names = {"conventional": "conventional", "optimized": "optimised"}
    for policy in POLICIES:
        if not is_fit(fits[policy]):
            return f"No scaling law could be fitted to the {names[policy]} test losses."
    before, after = (fits[policy] for policy in POLICIES)
    # The paper's two fits share L0 and t0; only then do B and beta tell the curves apart.
    shared = all(number(before[key]) == number(after[key]) for key in ("L0", "t0"))
    caveat = "" if shared else " L0 and t0 differ between the fits, so B and β compare loosely."
    return (
        f"L(t) = L0 + (B/t)^β for t > t0, fitted to the test losses: the exponent β "
        f"{change(before['beta'], after['beta'])}, the coefficient B "
        f"{change(before['B'], after['B'])}. r² is {before['r2']:.4f} for the conventional policy "
        f"(t0 = {number(before['t0'])}) and {after['r2']:.4f} for the optimised one "
        f"(t0 = {number(after['t0'])}). Pale points lie before t0 and are not fitted.{caveat}"
    )
