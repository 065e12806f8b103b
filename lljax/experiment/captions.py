"""The sentences of a report, computed from the run's numbers.

A sentence says what this run shows; where an effect is absent or contrary, it says that.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np

from lljax.experiment.results import POLICIES, SETS, Results
from lljax.scaling_law import ScalingLaw, ScalingLawImprovement, scaling_law_improvement


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
    """An acceleration ratio in words: one that is null or NaN was never reached.

    >>> acceleration(5.5, times="x"), acceleration(None)
    ('5.50x', 'never reached')
    """
    return f"{value:.2f}{times}" if is_number(value) else "never reached"


def percent(share: float | np.floating | None) -> str:
    r"""A share in per cent, with the digits that it deserves.

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
    r"""The verb phrase of a change; `show` puts a value into words.

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
    # Across zero, or far from the start, a percentage says less than the two numbers; of a
    # percentage it would be misread.
    if show is number and before > 0 and 0 <= after < 3 * before:
        phrase += f" (by {percent(abs(after / before - 1))})"
    return phrase


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is neither null nor NaN nor infinite."""
    return value is not None and bool(np.isfinite(value))


def is_fit(fit: Mapping[str, Any] | None) -> bool:
    """Whether a scaling law was fitted: all its numbers are there."""
    return all(is_number((fit or {}).get(key)) for key in ("L0", "B", "beta", "t0", "r2"))


def improvement(summary: Mapping[str, Any]) -> ScalingLawImprovement | None:
    """By which share B and beta improve (Table 2); None unless the two fits can be compared."""
    fits = [summary["scaling_law"][policy] for policy in POLICIES]
    if not all(map(is_fit, fits)):
        return None
    try:
        return scaling_law_improvement(
            *(ScalingLaw(*(fit[key] for key in ScalingLaw._fields)) for fit in fits)
        )
    except ValueError:  # an L0 or t0 of its own each
        return None


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
    if summary.get("perturbed"):
        text += f"{perturbed_sentence(summary['perturbed'])} "
    similarity, gap = (
        change(law["conventional"][key], law["optimized"][key])
        for key in ("similarity", "optimality_gap")
    )
    return text + (
        f"Learning Law: the similarity of contributions, which should rise, {similarity}; the "
        f"optimality gap, zero at a stationary policy, {gap}."
    )


def perturbed_sentence(perturbed: Mapping[str, Any]) -> str:
    """What the policy does to perturbed examples, which should get little weight."""
    before, after = (perturbed["weight_share"][policy] for policy in POLICIES)
    return (
        f"Perturbed examples are {percent(perturbed['examples'])} of the training set; their share "
        f"of the weight, mean over t, {change(before, after, show=percent)}: "
        f"{_verdict_on_perturbed(before, after)}."
    )


def _verdict_on_perturbed(before: float | None, after: float | None) -> str:
    if not (is_number(before) and is_number(after) and before > 0):
        return "nothing can be said about them"
    if after < 0.9 * before:
        return "the policy turns away from them"
    if after > 1.1 * before:
        return "contrary to expectation the policy prefers them"
    return "the policy hardly tells them from clean ones"


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
    losses = results.arrays["path_desired_losses"][[0, -1]][:, results.arrays["law_steps"]]
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
        f"{_to_the_objective(results)}{law_steps_sentence(results)}"
    )


def law_steps_sentence(results: Results) -> str:
    """At how many inner steps the Learning Law was measured, where not at every one."""
    measured = results.arrays["law_steps"].size
    if measured == results.num_steps:
        return ""
    return f" Measured at {measured} of the {results.num_steps} inner steps."


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
    if len(values) > 2 and np.diff(values).any():
        together = np.sign(np.diff(values)) * np.sign(np.diff(ratios)) > 0
        text += f"; they move the same way in {together.sum()} of {together.size} intervals"
    return f"{text}.{law_steps_sentence(results)}"


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
    better = improvement(results.summary)
    # The paper's two fits share L0 and t0; only then do B and beta tell the curves apart.
    if better is None:
        verdict = "L0 and t0 differ between the fits, so B and β compare loosely."
    else:
        verdict = f"So {_gain('B', better.B)} and {_gain('β', better.beta)}."
    return (
        f"L(t) = L0 + (B/t)^β for t > t0, fitted to the test losses: from the conventional to the "
        f"optimised policy, the coefficient B goes from {number(before['B'])} to "
        f"{number(after['B'])} and the exponent β from {number(before['beta'])} to "
        f"{number(after['beta'])}. {verdict} r² is {before['r2']:.4f} for the conventional policy "
        f"(t0 = {number(before['t0'])}) and {after['r2']:.4f} for the optimised one "
        f"(t0 = {number(after['t0'])}). Pale points lie before t0 and are not fitted."
    )


def _gain(name: str, gain: float) -> str:
    """What Table 2 says of a coefficient; positive is better."""
    if abs(gain) < 5e-4:
        return f"{name} hardly changes"
    return f"{name} {'improves' if gain > 0 else 'gets worse'} by {percent(abs(gain))}"


def perturbed_caption(results: Results) -> str:
    """Figure 12."""
    perturbed = results.arrays["perturbed"] > 0
    shares = results.arrays["perturbed_share"].astype(float)
    before, after = shares[[0, -1]].mean(axis=1)
    tenth = -(-results.num_steps // 10)
    hit, clean = (
        results.arrays["total_weights"][of].astype(float) for of in (perturbed, ~perturbed)
    )
    # The share of pairs of which the perturbed one has less weight; a tie is half a pair.
    below, upto = (np.searchsorted(np.sort(clean), hit, side) for side in ("left", "right"))
    ranks = (below + upto) / 2
    return (
        f"{perturbed.sum()} of the {perturbed.size} training examples ({percent(perturbed.mean())})"
        f" are perturbed. Left: their share of the weight, mean over t, "
        f"{change(before, after, show=percent)}; under the kept policy it is "
        f"{percent(shares[-1, :tenth].mean())} over the first tenth of the inner steps and "
        f"{percent(shares[-1, -tenth:].mean())} over the last: "
        f"{_verdict_on_perturbed(before, after)}. Right: the weight of each example under the kept "
        f"policy, mean over t. {percent(np.mean(hit < 0.01))} of the perturbed and "
        f"{percent(np.mean(clean < 0.01))} of the clean examples have less than a hundredth of the "
        f"uniform weight; the medians are {number(np.median(hit))} and "
        f"{number(np.median(clean))}. Of a perturbed and a clean example drawn at random, the "
        f"perturbed one has less weight in {percent(1 - ranks.mean() / clean.size)} of cases."
    )
