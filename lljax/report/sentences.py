"""What a run shows, in sentences that are computed from its numbers.

Where an effect is absent, or the opposite of what was hoped for, the sentence says so.
"""

from collections.abc import Mapping
from typing import Any

from lljax.artifacts.results import Results
from lljax.artifacts.schema import POLICIES
from lljax.report.curation import is_over_runs, runs_sentences
from lljax.report.words import POLICY_NAMES, acceleration, change, is_number, number, percent
from lljax.scaling_law import (
    COEFFICIENTS,
    ScalingLaw,
    ScalingLawImprovement,
    misfit,
    scaling_law_improvement,
)

ROUNDING = 1.001  # a loss that is larger by this factor is larger by more than rounding
ONE = 1.005  # the smallest acceleration that is not shown as 1.00


def is_fit(fit: Mapping[str, Any] | None) -> bool:
    """Whether a scaling law was fitted, with all its numbers."""
    return all(is_number((fit or {}).get(key)) for key in COEFFICIENTS)


def improvement(results: Results) -> tuple[ScalingLawImprovement | None, str]:
    """By which share B and beta improve (Table 2), and a sentence where that is withheld.

    (None, "") if there are no two fits with one L0 and t0, so that nothing can be compared.
    """
    fits = [results.summary["scaling_law"][policy] for policy in POLICIES]
    if not all(map(is_fit, fits)):
        return None, ""
    laws = [ScalingLaw(*(fit[key] for key in COEFFICIENTS)) for fit in fits]
    try:
        better = scaling_law_improvement(*laws)
    except ValueError:  # the fits differ in L0 or t0
        return None, ""
    reasons: dict[str, list[str]] = {}
    for policy, law in zip(POLICIES, laws, strict=True):
        reason = _misfit(law, results.arrays.get(f"{policy}_test_losses"))
        if reason is not None:
            reasons.setdefault(reason, []).append(POLICY_NAMES[policy])
    if not reasons:
        return better, ""
    parts = (f"{reason} ({' and '.join(names)} policy)" for reason, names in reasons.items())
    return None, f"No improvement is given: {'; '.join(parts)}."


def _misfit(law: ScalingLaw, losses: Any) -> str | None:
    if losses is None:
        return "the run did not record the test losses"
    try:
        return misfit(law, losses)
    except ValueError:
        return "not all test losses are positive numbers"


def is_success(summary: Mapping[str, Any]) -> bool:
    """Whether the best policy is another than the conventional one."""
    return summary["best_outer_step"] != 0


def acceleration_of(summary: Mapping[str, Any], name: str) -> float | None:
    """AR on one of the sets; 1 where both policies are one, whatever an earlier lljax wrote."""
    if not is_success(summary) and is_number(summary[name]["conventional"]["final_loss"]):
        return 1.0
    return summary[name]["acceleration_ratio"]


def steps_to_match(summary: Mapping[str, Any], name: str) -> int | None:
    """The inner step at which the optimised loss reaches the conventional final one (Eq. 9)."""
    ratio = acceleration_of(summary, name)
    return round(summary["inner_steps"] / ratio) if is_number(ratio) and ratio > 0 else None


def early_end(summary: Mapping[str, Any], name: str) -> int | None:
    """The step at which the conventional loss is at its final value, if that is before the end.

    What AR counts as time saved is then not the policy's merit alone.
    """
    step = summary[name].get("conventional_reaches_at")
    return step if step is not None and summary["inner_steps"] >= ONE * step else None


def early_end_sentence(summary: Mapping[str, Any], name: str) -> str:
    """Says that, and what is left of AR; empty where the conventional loss falls to the end."""
    step, reached = early_end(summary, name), steps_to_match(summary, name)
    if step is None:
        return ""
    text = (
        f"The conventional {name} loss itself is at its final value already after step {step} of "
        f"{summary['inner_steps']}"
    )
    if not is_success(summary) or reached is None:
        return f"{text}."
    return f"{text}: AR overstates. Counted from that step it is {acceleration(step / reached)}."


def rise(summary: Mapping[str, Any], name: str, policy: str) -> tuple[float, int, float] | None:
    """The smallest loss, its step and the final loss, if that is larger by more than rounding."""
    scores = summary[name][policy]
    best, step, final = (scores.get(k) for k in ("best_loss", "best_loss_step", "final_loss"))
    if not (is_number(best) and is_number(step) and is_number(final)):
        return None
    return (best, int(step), final) if final > ROUNDING * best else None


def rise_sentence(summary: Mapping[str, Any], name: str, policy: str) -> str:
    """Says that a loss rises at the end; empty where it does not."""
    rising = rise(summary, name, policy)
    if rising is None or (policy == "optimized" and not is_success(summary)):
        return ""
    best, step, final = rising
    where = "its start" if step == 0 else f"its smallest value, at step {step}"
    return (
        f"The {POLICY_NAMES[policy]} {name} loss rises from {number(best)}, {where}, to "
        f"{number(final)} at the end."
    )


def match_sentence(summary: Mapping[str, Any], name: str) -> str:
    """How fast the optimised policy reaches the conventional final loss on one of the sets."""
    final = number(summary[name]["conventional"]["final_loss"])
    reached, ratio = steps_to_match(summary, name), acceleration_of(summary, name)
    if reached is None or ratio is None:
        text = (
            f"On the {name} set the optimised policy never reaches the conventional final loss "
            f"of {final}: it ends at {number(summary[name]['optimized']['final_loss'])}."
        )
    elif not is_success(summary):
        text = f"On the {name} set both policies end at {final}: they are the same."
    else:
        verdict = f"{acceleration(ratio)} as fast" if ratio >= ONE else "no faster"
        text = (
            f"On the {name} set the optimised policy reaches the conventional final loss of "
            f"{final} after {reached} of {summary['inner_steps']} steps: {verdict}."
        )
    return f"{text} {early_end_sentence(summary, name)}".rstrip()


def headline(results: Results) -> str:
    """The result of the run in one paragraph."""
    summary = results.summary
    best, made = summary["best_outer_step"], summary["outer_steps"]
    if not is_success(summary):
        return (
            f"No success: in {made} outer steps no policy had a smaller loss AUC (mean loss over "
            f"the inner steps) on the validation set than the conventional one, so the best policy "
            f"is the conventional policy and every acceleration is 1.00. "
            f"{rise_sentence(summary, 'test', 'conventional')}"
        ).rstrip()
    sentences = [
        f"The best policy is that of outer step {best} of {made}: it has the smallest loss AUC "
        f"(mean loss over the inner steps) on the validation set.",
        *_test_sentences(summary),
    ]
    if summary.get("perturbed"):
        sentences.append(perturbed_sentence(summary["perturbed"]))
    if is_over_runs(summary):
        return " ".join([*sentences, *runs_sentences(summary)])
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
    on_desired, on_test = (acceleration_of(summary, name) for name in ("desired", "test"))
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
    return [*sentences, *filter(None, (rise_sentence(summary, "test", p) for p in POLICIES))]


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


def is_rough(summary: Mapping[str, Any]) -> bool:
    """Whether training was measured to be so rough that a gradient may mislead."""
    smoothness = summary.get("smoothness") or {}
    score, least = smoothness.get("params"), smoothness.get("least")
    return overshoots(summary) or (is_number(score) and is_number(least) and score < least)


def overshoots(summary: Mapping[str, Any]) -> bool:
    """Whether the gradient was measured to predict far more than happens."""
    smoothness = summary.get("smoothness") or {}
    overshoot, most = smoothness.get("overshoot"), smoothness.get("most")
    return is_number(overshoot) and is_number(most) and overshoot > most


def smoothness_sentence(summary: Mapping[str, Any]) -> str:
    """How far the run's gradients can be trusted; empty where that was not measured."""
    score = (summary.get("smoothness") or {}).get("params")
    if not is_number(score):
        return ""
    measured = f"Metasmoothness, measured in three training runs with other weights, is {score:.2f}"
    if not is_rough(summary):
        return f"{measured}: training is smooth enough for its gradients to predict."
    if overshoots(summary):
        return (
            f"{measured}, and the gradient foretells {summary['smoothness']['overshoot']:,.3g} "
            f"times the change of the AUC that these runs show: it is exact and predicts nothing. "
            f"`lljax check` on this config says what helps."
        )
    return (
        f"{measured}, below {summary['smoothness']['least']}: training is so rough that its exact "
        f"gradients may predict little. `lljax check` on this config says what helps."
    )


def law_steps_sentence(results: Results) -> str:
    """At how many inner steps the Learning Law was measured; empty if at every one."""
    measured = results.arrays["law_steps"].size
    if measured == results.num_steps:
        return ""
    return f" Measured at {measured} of the {results.num_steps} inner steps."
