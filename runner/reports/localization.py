"""The report of a localization experiment: one HTML file, from its results alone.

The sections are functions of the results that give markup, or None without their data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from subvene.runner.experiments.localization.plan import is_drawn
from subvene.runner.experiments.localization.section import Interval, section_of
from subvene.runner.experiments.results import Item, QuestionText, Results
from subvene.runner.experiments.rows import METRICS
from subvene.runner.reports import localization_figures as figures
from subvene.runner.reports import markup
from subvene.runner.reports.examples import verdict_mark, verdicts_differ
from subvene.runner.reports.judged import judged
from subvene.runner.reports.localization_arms import (
    GROUPS,
    Arm,
    arm_label,
    arms_of,
    by_group,
    group_label,
    interval_in_words,
    metric_label,
    metrics_of,
)
from subvene.runner.reports.localization_curves import curves
from subvene.runner.reports.localization_evidence import evidence, probes, singles
from subvene.runner.reports.localization_making import provenance, receipts, selection, training
from subvene.runner.reports.localization_tables import arms_table, localization_files
from subvene.runner.reports.markup import Html, element, folded, items, join, plot, shown, side_by_side, table
from subvene.runner.reports.page import count, page
from subvene.runner.reports.persona_tables import number
from subvene.runner.reports.sections import declared
from subvene.runner.reports.tables import judge_in_words

EXAMPLES = 12


def render(results: Results) -> Html:
    """The page as text, the same for the same results.

    Raises:
        ResultsError: these are no results of a localization experiment.
    """
    groups, split = by_group(results), section_of(results).split
    parts = [count(len(results.conditions), "arm")]
    if split is not None and split.test:
        parts.append(count(split.test, "test question"))
    drawn = max((len(found) for group, found in groups.items() if is_drawn(group)), default=0)
    parts += [count(drawn, "random draw")] if drawn else []
    parts += [count(len(groups["edit_single"]), "single head")] if groups.get("edit_single") else []
    return page(
        results,
        "Does editing say where it is?",
        model=(declared(results).get("model") or {}).get("name"),
        summary=" · ".join(parts),
        sections=[(title, made) for title, make in SECTIONS if (made := make(results)) is not None],
    )


def verdict(results: Results) -> Html | None:
    """What the numbers say, in sentences."""
    said = section_of(results).verdict
    return items(*said) if said else None


def arms(results: Results) -> Html | None:
    """Every arm on the test questions, and the differences between some."""
    groups, used = by_group(results), metrics_of(results)
    if not used:
        return None
    caption = (
        "On test questions: one arm with bootstrap intervals; the mean of several with the lowest and the "
        "highest. ↑ higher is better, ↓ lower is better"
    )
    named = [(group_label(group, len(found)), found) for group, found in groups.items()]
    parts = [shown(arms_table(named, used), caption), _notes(results, used)]
    every = [(arm.name, [arm]) for found in groups.values() if len(found) > 1 for arm in found]
    if every:
        caption = "Each random draw and each single head, with bootstrap intervals"
        parts.append(folded("Every draw and every single head", shown(arms_table(every, used), caption)))
    differences = [
        [
            f"{_called(one.a, results)} − {_called(one.b, results)}",
            metric_label(one.metric),
            number(one.difference, "+.3f"),
            interval_in_words(one.interval),
            _about_zero(one.interval),
        ]
        for one in section_of(results).comparisons
    ]
    if differences:
        caption = (
            "Differences, with a paired bootstrap interval over the same questions (texts for CE and KL)"
        )
        made = table(caption, ["Arms", "Metric", "Difference", "Interval", "Zero"], differences)
        parts.append(folded("Differences of arms", made))
    return join(parts)


def truth_and_information(results: Results) -> Html | None:
    """True answers against informative ones."""
    made = _against(results, "info", "true", alone=True)
    if made is None:
        return None
    about = (
        "True against Info on test questions, a mark for each arm: up is truer, right is more informative, "
        "and “I have no comment” lies at the top left. Bars are bootstrap intervals of arms that stand alone."
    )
    return plot(made, about)


def divergence(results: Results) -> Html | None:
    """Multiple choice against the distance from the original model."""
    drawn = []
    for metric in ("mc2", "mc1"):
        made = _against(results, "kl", metric)
        if made is not None:
            about = (
                f"{METRICS[metric]} against KL(original ‖ edited), in nats per token on ordinary texts: up "
                "is better, right is further from the original."
            )
            drawn.append(plot(made, about))
    return side_by_side(*drawn) if drawn else None


def answers(results: Results) -> Html | None:
    """The same question under a few arms."""
    groups = by_group(results)
    first = [
        next((arm for arm in groups.get(group, ()) if _answered(arm)), None)
        for group in ("baseline", "iti_probed", "edit_probed", "edit_random")
    ]
    beside = [arm for arm in first if arm is not None]
    by_key: dict[str, list[tuple[Arm, Item]]] = {}
    for arm in beside:
        for item in _answered(arm):
            if item.key in results.questions:
                by_key.setdefault(item.key, []).append((arm, item))
    if not by_key:
        return None
    # Keys are hashes of the questions, so their order favours nothing.
    differing = {key for key, found in by_key.items() if verdicts_differ(item.scores for _, item in found)}
    picked = sorted(by_key, key=lambda key: (key not in differing, key))[:EXAMPLES]
    about = (
        f"{len(picked)} of {len(by_key)} test questions. The judge's verdicts differ between these arms for "
        f"{len(differing)} of them, and these come first; beyond that the order is by a hash of the "
        "question. In brackets: the judge's probability that the answer is true, or informative. All "
        "answers are in "
    )
    search = element("input", type="search", data_filters="answer-list")
    articles = [_article(results.questions[key], by_key[key]) for key in picked]
    return join(
        [
            element("p", about, element("a", "answers.csv", href="#downloads"), "."),
            element(
                "p", element("label", "Show those with ", search), " ", element("span", aria_live="polite")
            ),
            element("div", *articles, id="answer-list"),
        ]
    )


def downloads(results: Results) -> Html | None:
    """The tables as files."""
    return markup.downloads(localization_files(results))


SECTIONS: tuple[tuple[str, Callable[[Results], Html | None]], ...] = (
    ("Verdict", verdict),
    ("Arms", arms),
    ("Is the probed set special?", evidence),
    ("Truth and information", truth_and_information),
    ("What the judge's word is worth", judged),
    ("Divergence and multiple choice", divergence),
    ("Single heads", singles),
    ("Probes", probes),
    ("Choice on validation questions", selection),
    ("Every point", curves),
    ("Training", training),
    ("Answers", answers),
    ("Receipts", receipts),
    ("Provenance", provenance),
    ("Downloads", downloads),
)
"""The sections in their order, each with its title; those that give None are left out."""


def _notes(results: Results, used: Sequence[str]) -> Html:
    said = []
    if {"mc1", "mc2", "mc3"} & set(used):
        said.append(
            "MC1: the best answer is likelier than every false one. MC2: probability of the true answers "
            "among all. MC3: share of true answers likelier than every false one."
        )
    if "true_info" in used:
        said.append(
            "True×Info is the product of the two means, as published; True∧Info is the share of answers that "
            "are both."
        )
    if {"ce", "kl"} & set(used):
        said.append(
            "CE is the next-token cross-entropy on ordinary texts, KL the divergence KL(original ‖ edited) "
            "on the same texts, both in nats per token; KL is against the untouched model always."
        )
    probed = section_of(results).probes
    chance = "" if probed is None else f"; chance is {probed.chance:.3f}"
    said.append(
        f"Probing: mean accuracy of the probes of an arm's heads, on validation questions{chance}. It chose "
        "the probed heads, and so flatters them; beside it the accuracy on answers that chose nothing."
    )
    for judge in results.judges:
        words = judge_in_words(judge.about)
        said.append(f"{words[:1].upper()}{words[1:]}.")
    return items(*said)


def _called(name: str, results: Results) -> str:
    for arm in arms_of(results):
        if arm.name == name:
            return arm_label(arm)
    return f"{GROUPS[name]} (mean)" if name in GROUPS else name


def _about_zero(interval: Interval | None) -> str:
    if interval is None:
        return "–"
    return "inside" if interval[0] <= 0 <= interval[1] else "outside"


def _against(results: Results, x: str, y: str, alone: bool = False) -> Any:
    return figures.against(
        by_group(results),
        lambda arm: arm.value(x),
        lambda arm: arm.value(y),
        (metric_label(x), metric_label(y)),
        (x, y),
        legend_width=figures.WHOLE_WIDTH if alone else None,
    )


def _answered(arm: Arm) -> list[Item]:
    return [item for item in arm.condition.items if item.text is not None]


def _article(question: QuestionText, found: Sequence[tuple[Arm, Item]]) -> Html:
    cards = []
    for arm, item in found:
        text = item.text or ""
        marks = [
            verdict_mark(item.scores, aspect, words)
            for aspect, words in (
                ("true", ("true", "not true")),
                ("info", ("informative", "not informative")),
            )
            if aspect in item.scores
        ]
        quoted = text if text.strip() else element("em", "(empty)")
        said = [element("h4", arm_label(arm)), element("blockquote", quoted), element("p", *marks)]
        cards.append(element("div", *said))
    about = [element("strong", "Best answer: "), question.best or "–"]
    if question.category:
        about.append(element("small", question.category, class_="category"))
    return element(
        "article",
        element("h3", question.question),
        element("p", *about),
        element("div", *cards, class_="answers"),
    )
