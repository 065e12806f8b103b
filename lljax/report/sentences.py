"""What a run shows, in sentences that are computed from its numbers.

Where an effect is absent, or the opposite of what was hoped for, the sentence says so.
"""

from collections.abc import Mapping
from typing import Any

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES
from lljax.report.words import acceleration, change, is_number, number, percent
from lljax.scaling_law import ScalingLaw, ScalingLawImprovement, scaling_law_improvement


def is_fit(fit: Mapping[str, Any] | None) -> bool:
    """Whether a scaling law was fitted, with all its numbers."""
    return all(is_number((fit or {}).get(key)) for key in ScalingLaw._fields)


def improvement(summary: Mapping[str, Any]) -> ScalingLawImprovement | None:
    """By which share B and beta improve (Table 2); None if the two fits cannot be compared."""
    fits = [summary["scaling_law"][policy] for policy in POLICIES]
    if not all(map(is_fit, fits)):
        return None
    try:
        return scaling_law_improvement(
            *(ScalingLaw(*(fit[key] for key in ScalingLaw._fields)) for fit in fits)
        )
    except ValueError:  # the fits differ in L0 or t0
        return None


def steps_to_match(summary: Mapping[str, Any], name: str) -> int | None:
    """The inner step at which the optimised loss reaches the conventional final one (Eq. 9)."""
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
    best, made = summary["best_outer_step"], summary["outer_steps"]
    if best == 0:
        return (
            f"No success: in {made} outer steps no policy had a smaller loss AUC on the validation "
            "set than the conventional one, so the best policy is the conventional policy."
        )
    sentences = [
        f"The best policy is that of outer step {best} of {made}: it has the smallest loss AUC on "
        f"the validation set.",
        *_test_sentences(summary),
    ]
    if summary.get("perturbed"):
        sentences.append(perturbed_sentence(summary["perturbed"]))
    law = summary["learning_law"]
    similarity, gap = (
        change(law["conventional"][key], law["optimized"][key])
        for key in ("similarity", "optimality_gap")
    )
    sentences.append(
        f"Learning Law: the similarity of contributions, which should rise, {similarity}; the "
        f"optimality gap, which is zero at a stationary policy, {gap}."
    )
    return " ".join(sentences)


def _test_sentences(summary: Mapping[str, Any]) -> list[str]:
    """What unseen examples gain, and every way in which that is less than it seems."""
    test = summary["test"]
    aucs, finals = ([test[policy][key] for policy in POLICIES] for key in ("auc", "final_loss"))
    sentences = [
        f"On the test set, which was used neither to optimise the policy nor to choose it, the "
        f"loss AUC {change(aucs[0], aucs[1], ' nats per step')}.",
        match_sentence(summary, "test"),
    ]
    if all(map(is_number, aucs)) and aucs[1] >= aucs[0]:
        sentences.append("So optimising the policy does not help on unseen examples.")
    on_desired, on_test = (summary[name]["acceleration_ratio"] for name in ("desired", "test"))
    if is_number(on_desired) and (not is_number(on_test) or on_desired > 1.5 * on_test):
        sentences.append(
            f"On the desired set, which the optimisation used, the acceleration is "
            f"{acceleration(on_desired)}: part of it is over-fitting to these examples."
        )
    if all(map(is_number, finals)) and finals[1] > finals[0]:
        sentences.append(
            f"The final test loss is worse than the conventional one ({number(finals[1])} "
            f"against {number(finals[0])})."
        )
    return sentences


def perturbed_sentence(perturbed: Mapping[str, Any]) -> str:
    """What the policy does to perturbed examples, which should get little weight."""
    before, after = (perturbed["weight_share"][policy] for policy in POLICIES)
    return (
        f"Perturbed examples are {percent(perturbed['examples'])} of the training set. Their share "
        f"of the weight (mean over t) {change(before, after, show=percent)}: "
        f"{perturbed_verdict(before, after)}."
    )


def perturbed_verdict(before: float | None, after: float | None) -> str:
    """What the weight share of the perturbed examples, before and after, says of a policy."""
    if not (is_number(before) and is_number(after) and before > 0):
        return "nothing can be said about them"
    if after < 0.9 * before:
        return "the policy turns away from them"
    if after > 1.1 * before:
        return "the policy prefers them, contrary to expectation"
    return "the policy hardly distinguishes them from clean ones"


def law_steps_sentence(results: Results) -> str:
    """At how many inner steps the Learning Law was measured; empty if at every one."""
    measured = results.arrays["law_steps"].size
    if measured == results.num_steps:
        return ""
    return f" Measured at {measured} of the {results.num_steps} inner steps."
