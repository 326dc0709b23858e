"""Answers to the same question side by side, with the judge's verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from subvene.runner.experiments.results import Condition, Item, QuestionText, Results
from subvene.runner.reports.markup import Html, element, join

EXAMPLES = 20


def examples(results: Results) -> Html | None:
    """The same question under every condition."""
    answers: dict[str, dict[str, tuple[Condition, Item]]] = {}
    for cell in results.conditions:
        for item in cell.items:
            if item.text is not None and item.key in results.questions:
                answers.setdefault(item.key, {}).setdefault(cell.label, (cell, item))
    if not answers:
        return None
    # Keys are hashes of the questions, so their order favours nothing.
    differing = {
        key
        for key, by_label in answers.items()
        if verdicts_differ(item.scores for _, item in by_label.values())
    }
    shown = sorted(answers, key=lambda key: (key not in differing, key))[:EXAMPLES]
    about = (
        f"{len(shown)} of {len(answers)} questions. The judge's verdicts differ between conditions for "
        f"{len(differing)} of them, and these come first; beyond that the order is by a hash of the "
        "question. An answer is that of the first seed and fold that has the question. In brackets: the "
        "judge's probability that the answer is true, or informative."
    )
    search = element("input", type="search", data_filters="example-list")
    count = element("span", aria_live="polite")
    articles = [_example(results.questions[key], answers[key]) for key in shown]
    return join(
        [
            element("p", about),
            element("p", element("label", "Show those with ", search), " ", count),
            element("div", *articles, id="example-list"),
        ]
    )


def verdicts_differ(scores: Iterable[Mapping[str, float | bool | None]]) -> bool:
    """Whether the judge says one thing of one answer and another of another."""
    verdicts = list(scores)
    return any(
        len({v[aspect] for v in verdicts if v.get(aspect) is not None}) > 1 for aspect in ("true", "info")
    )


def verdict_mark(scores: Mapping[str, float | bool | None], aspect: str, words: tuple[str, str]) -> Html:
    """The judge's word on an answer: a mark, the word, and its probability if it gives one.

    Args:
        scores: of the answer.
        aspect: `true` or `info`.
        words: for yes and for no.
    """
    verdict, p = scores[aspect], scores.get(f"{aspect}_p")
    if verdict is None:
        return element("span", f"no verdict ({words[0]}?)", class_="verdict")
    said = ("✓ " + words[0] if verdict else "✗ " + words[1]) + ("" if p is None else f" ({p:.2f})")
    return element("span", said, class_="verdict good" if verdict else "verdict bad")


def _example(question: QuestionText, answers: Mapping[str, tuple[Condition, Item]]) -> Html:
    about = [element("strong", "Best answer: "), question.best or "–"]
    if question.category:
        about.append(element("small", question.category, class_="category"))
    places = {label: f"seed {cell.seed}, fold {cell.fold}" for label, (cell, _) in answers.items()}
    together = len(set(places.values())) == 1
    if together:
        about.append(element("small", next(iter(places.values())), class_="category"))
    cards = []
    for label, (_, item) in answers.items():
        answer = item.text or ""
        said = (
            element("blockquote", answer)
            if answer.strip()
            else element("blockquote", element("em", "(empty)"))
        )
        verdicts = [
            verdict_mark(item.scores, aspect, words)
            for aspect, words in (
                ("true", ("true", "not true")),
                ("info", ("informative", "not informative")),
            )
            if aspect in item.scores
        ]
        where = () if together else (" ", element("small", places[label]))
        cards.append(element("div", element("h4", label, *where), said, element("p", *verdicts)))
    return element(
        "article",
        element("h3", question.question),
        element("p", *about),
        element("div", *cards, class_="answers"),
    )
