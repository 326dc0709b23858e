"""The verdict in plain language: what was tested, what came out, and what this does not say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subvene.runner.experiments.rows import METRICS
from subvene.runner.measures.missing import missing_in_words, missing_verdicts

Results = Mapping[str, Any]
_NAMES = {"iti": "ITI", "edit": "trained edits"}
_ARMS = {
    "baseline": "the untouched model",
    "iti_probed": "ITI at the probed heads",
    "edit_probed": "the trained edit at the probed heads",
    "edit_all": "the trained edit at all heads",
    "lora": "the LoRA",
    "edit_random": "trained edits at random heads (mean of the draws)",
    "iti_random": "ITI at random heads (mean of the draws)",
}


def verdict(results: Results) -> list[str]:
    """Sentences on the metric that points were chosen by, and on True×Info where it was measured.

    Args:
        results: with `arms`, `evidence`, `singles`, `comparisons`, `selection` and `split`.
    """
    metrics = [results["selection"]["metric"]]
    if any("true_info" in arm["metrics"] for arm in results["arms"]):
        metrics.append("true_info")
    said = [_tested(results), *_missing(results), *_idle(results)]
    for metric in metrics:
        said += _differences(results, metric)
        said += [_special(one) for one in results["evidence"] if one["metric"] == metric]
        said += _alone(results, metric)
    said.append(_not_tested(results))
    return said


def _tested(results: Results) -> str:
    split, heads, chosen = results["split"], _heads(results), results["selection"]["questions"]
    return (
        f"Tested on {split['test']} questions that nothing was fitted or chosen on"
        f"{f', at sets of {heads} heads' if heads else ''}, with one split and one seed of training. Edits "
        f"were trained on {split['pairs']} pairs of {split['train']} questions, their best step chosen on "
        f"{split['validation']} others; ITI's directions and the probes come from all answers to "
        f"{split['tuning']} questions. Where several strengths or τ were tried, the best on {chosen} of the "
        "questions that no edit was trained on was taken."
    )


def _missing(results: Results) -> list[str]:
    reasons = missing_verdicts(arm.get("by_question") or {} for arm in results["arms"])
    return [f"WARNING: {missing_in_words(reasons)}."] if reasons else []


def _idle(results: Results) -> list[str]:
    names = [arm["name"] for arm in results["arms"] if arm["training"] and arm["training"]["best_step"] == 0]
    if not names:
        return []
    return [
        f"No step of training lowered the validation loss of {', '.join(names)}: these edits do nothing, and "
        "their rows are those of the untouched model; try another learning rate."
    ]


def _heads(results: Results) -> int | None:
    return next((arm["n_heads"] for arm in results["arms"] if arm["group"].endswith("_probed")), None)


def _differences(results: Results, metric: str) -> list[str]:
    said = []
    for one in results["comparisons"]:
        if one["metric"] != metric or one["interval"] is None:
            continue
        low, high = one["interval"]
        better = one["difference"] > 0
        if low <= 0 <= high:
            what = "no difference that these questions could show"
        else:
            what = "higher" if better else "lower"
        said.append(
            f"{METRICS[metric]}: {_ARMS[one['a']]} against {_ARMS[one['b']]}: {one['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}], {what}."
        )
    return said


def _special(one: Mapping[str, Any]) -> str:
    rank, name = one["rank"], METRICS[one["metric"]]
    low, high = min(one["random"]), max(one["random"])
    first = (
        f"{name}, {_NAMES[one['family']]}: {rank['at_least']} of {rank['n']} random sets do at least as "
        f"well as the probed set ({one['probed']:.3f}; draws {low:.3f} to {high:.3f}), "
        f"rank p = {rank['p']:.3f}"
    )
    smallest = 1 / (1 + rank["n"])
    alpha = 1 - one["level"] + 1e-12  # 1 - 0.9 is less than 0.1
    if rank["p"] <= alpha:
        end = ", fewer than chance would give: by this test the probed heads are special"
    elif smallest > alpha:
        end = (
            f": with {rank['n']} draws the smallest p there can be is {smallest:.3f}, so this test could not "
            "have called any set special"
        )
    else:
        end = ": by this test the probed heads are not special"
    parts = [first + end]
    if one["prediction"] is not None:
        low, high = one["prediction"]
        where = "inside" if one["inside"] else "outside"
        parts.append(
            f"the probed set lies {where} the {one['level']:.0%} prediction interval of a further draw "
            f"[{low:.3f}, {high:.3f}]"
        )
    if one["t_test"] is not None:
        parts.append(
            f"the paper's t-test, of whether the mean of the draws ({one['mean']:.3f}) is the probed set's "
            f"value, gives p = {one['t_test']['p']:.2g}, which says nothing about single draws"
        )
    return "; ".join(parts) + "."


def _alone(results: Results, metric: str) -> list[str]:
    said = []
    for one in results["singles"]:
        if one["metric"] != metric:
            continue
        reach = (
            ""
            if one["reach"] is None
            else f"; {one['reach']} of {one['n']} reach the edit at the probed heads"
        )
        low, high = min(one["values"]), max(one["values"])
        said.append(
            f"{METRICS[metric]}, edits at one head: {low:.3f} to {high:.3f} over {one['n']} heads drawn at "
            f"random{reach}."
        )
    return said


def _not_tested(results: Sequence[Any] | Results) -> str:
    return (
        "Not tested: other models, data, ways of finding heads, numbers of heads or training settings; "
        "whether the behaviour is stored in any of these heads. That an edit succeeds at a set of heads "
        "shows what can be done there, not where the model keeps it. Intervals are over questions and hold "
        "the trained edits fixed."
    )
