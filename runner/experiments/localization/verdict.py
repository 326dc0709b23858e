"""The verdict in plain language: what was tested, what came out, and what this does not say."""

from __future__ import annotations

from collections.abc import Sequence

from subvene.runner.experiments.localization.section import Evidence, LocalizationSection
from subvene.runner.experiments.results import Condition, missing_verdicts
from subvene.runner.experiments.rows import METRICS
from subvene.runner.measures.missing import missing_in_words

_NAMES = {"iti": "ITI", "edit": "trained edits"}
_SETS = {"random": "random sets", "matched": "random sets with as many heads of each layer"}
_ARMS = {
    "baseline": "the untouched model",
    "iti_probed": "ITI at the probed heads",
    "edit_probed": "the trained edit at the probed heads",
    "edit_all": "the trained edit at all heads",
    "lora": "the LoRA",
    "edit_random": "trained edits at random heads (mean of the draws)",
    "iti_random": "ITI at random heads (mean of the draws)",
    "edit_matched": "trained edits at heads matched by layer (mean of the draws)",
    "iti_matched": "ITI at heads matched by layer (mean of the draws)",
}
_NOT_TESTED = (
    "Not tested: other models, data, ways of finding heads, numbers of heads or training settings; "
    "whether the behaviour is stored in any of these heads. That an edit succeeds at a set of heads "
    "shows what can be done there, not where the model keeps it. Intervals are over questions and hold "
    "the trained edits fixed."
)


def verdict(arms: Sequence[Condition], section: LocalizationSection) -> tuple[str, ...]:
    """Sentences on the metric that points were chosen by, and on True×Info where it was measured.

    Args:
        arms: what was measured.
        section: what else there is; its own verdict is not read.
    """
    metrics = [section.selection.metric]
    if any("true_info" in arm.metrics for arm in arms):
        metrics.append("true_info")
    said = [*_tested(arms, section), *_missing(arms), *_idle(section), *_probing(section)]
    for metric in metrics:
        said += _differences(section, metric)
        said += [_special(one) for one in section.evidence if one.metric == metric]
        said += _alone(section, metric)
    return (*said, _NOT_TESTED)


def _tested(arms: Sequence[Condition], section: LocalizationSection) -> list[str]:
    split, heads = section.split, _heads(arms, section)
    if split is None:
        return []
    return [
        f"Tested on {split.test} questions that nothing was fitted or chosen on"
        f"{f', at sets of {heads} heads' if heads else ''}, with one split and one seed of training. Edits "
        f"were trained on {split.pairs} pairs of {split.train} questions, their best step chosen on "
        f"{split.validation} others; ITI's directions and the probes come from all answers to "
        f"{split.tuning} questions. Where several strengths or τ were tried, the best on "
        f"{section.selection.questions} of the questions that no edit was trained on was taken, ITI's "
        "strength with directions that had not seen these."
    ]


def _missing(arms: Sequence[Condition]) -> list[str]:
    reasons = missing_verdicts(arms)
    return [f"WARNING: {missing_in_words(reasons)}."] if reasons else []


def _idle(section: LocalizationSection) -> list[str]:
    names = [name for name, arm in section.arms.items() if arm.training and arm.training.best_step == 0]
    if not names:
        return []
    return [
        f"No step of training lowered the validation loss of {', '.join(names)}: these edits do nothing, and "
        "their rows are those of the untouched model; try another learning rate."
    ]


def _probing(section: LocalizationSection) -> list[str]:
    """How well the probes of the probed heads do where they were not chosen for it."""
    named = (section.arms.get(name) for name in ("iti_probed", "edit_probed"))
    arm, probes = next((arm for arm in named if arm is not None), None), section.probes
    if arm is None or probes is None or arm.probe_accuracy is None or arm.unseen_accuracy is None:
        return []
    chance = "" if probes.unseen_chance is None else f" (chance {probes.unseen_chance:.3f})"
    return [
        f"Probes of the probed heads are right in {arm.probe_accuracy:.3f} of the answers that chose these "
        f"heads, and in {arm.unseen_accuracy:.3f} of the answers to test questions, which chose "
        f"nothing{chance}."
    ]


def _heads(arms: Sequence[Condition], section: LocalizationSection) -> int | None:
    probed = (arm.name for arm in arms if (arm.group or "").endswith("_probed"))
    return next((section.arms[name].n_heads for name in probed), None)


def _differences(section: LocalizationSection, metric: str) -> list[str]:
    said = []
    for one in section.comparisons:
        if one.metric != metric or one.interval is None:
            continue
        low, high = one.interval
        if low <= 0 <= high:
            what = "no difference that these questions could show"
        else:
            what = "higher" if one.difference > 0 else "lower"
        said.append(
            f"{METRICS[metric]}: {_ARMS[one.a]} against {_ARMS[one.b]}: {one.difference:+.3f} "
            f"[{low:+.3f}, {high:+.3f}], {what}."
        )
    return said


def _special(one: Evidence) -> str:
    rank, name = one.rank, METRICS[one.metric]
    low, high = min(one.random), max(one.random)
    first = (
        f"{name}, {_NAMES[one.family]}: {rank.at_least} of {rank.n} {_SETS[one.draws]} do at least as "
        f"well as the probed set ({one.probed:.3f}; draws {low:.3f} to {high:.3f})"
    )
    alpha = 1 - one.level + 1e-12  # 1 - 0.9 is less than 0.1
    if rank.p is None:
        return f"{first}; they were stopped by another metric, so that no p is stated for this one."
    first += f", rank p = {rank.p:.3f}"
    if rank.most is not None:
        which = _nth(rank.at_least)
        first += f" (sequential: stopped with the {which} draw to do so, of {rank.most} draws at most)"
    if rank.p <= alpha:
        end = ", fewer than chance would give: by this test the probed heads are special"
    elif rank.smallest > alpha:
        end = (
            f": with {rank.n} draws the smallest p there can be is {rank.smallest:.3f}, so this test "
            "could not have called any set special"
        )
    else:
        end = ": by this test the probed heads are not special"
    parts = [first + end]
    if one.prediction is not None:
        low, high = one.prediction
        where = "inside" if one.inside else "outside"
        parts.append(
            f"the probed set lies {where} the {one.level:.0%} prediction interval of a further draw "
            f"[{low:.3f}, {high:.3f}]"
        )
    if one.t_test is not None:
        parts.append(
            f"the paper's t-test, of whether the mean of the draws ({one.mean:.3f}) is the probed set's "
            f"value, gives p = {one.t_test.p:.2g}, which says nothing about single draws"
        )
    return "; ".join(parts) + "."


def _nth(n: int) -> str:
    ending = "th" if n % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return f"{n}{ending}"


def _alone(section: LocalizationSection, metric: str) -> list[str]:
    said = []
    for one in section.singles:
        if one.metric != metric:
            continue
        reach = "" if one.reach is None else f"; {one.reach} of {one.n} reach the edit at the probed heads"
        low, high = min(one.values), max(one.values)
        said.append(
            f"{METRICS[metric]}, edits at one head: {low:.3f} to {high:.3f} over {one.n} heads drawn at "
            f"random{reach}."
        )
    return said
