"""Contrast: how much likelier trait-consistent answers are than trait-opposed ones, without a judge."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NotRequired, TypedDict

import torch

from subvene.runner.data.contrast_pairs import read_pairs
from subvene.runner.data.text import Messages, prompt_ids, reply_ids
from subvene.runner.edits.finite_points import over_finite_points
from subvene.runner.edits.receipt import Receipt
from subvene.runner.intervened.generate import Score
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.measures.base import sweep_strengths
from subvene.specs import ContrastSpec, ContrastTexts, SubveneError

ContrastText = tuple[str | Messages, str, str]
"""Prompt, consistent answer, opposed answer."""


def contrast_texts(spec: ContrastSpec, folder: Path) -> list[ContrastText]:
    """(prompt, positive, negative) of every pair; needs no model, so that flaws show before one is loaded.

    Raises:
        SpecError: the file of pairs is not valid.
        SubveneError: its pairs are no texts with prompts.
    """
    pairs = read_pairs(spec.pairs, folder)
    if not isinstance(pairs, ContrastTexts):
        raise SubveneError(
            "evaluate contrast: its pairs are `systems`; it needs `texts` with answers to score"
        )
    texts: list[ContrastText] = []
    for i, pair in enumerate(pairs.texts):
        if pair.asked is None:
            raise SubveneError(
                f"evaluate contrast: texts[{i}].prompt is missing; answers are scored after a prompt"
            )
        texts.append((pair.asked, pair.positive, pair.negative))
    return texts


def differences(
    m: IntervenedModel,
    texts: Sequence[ContrastText],
    *,
    batch_size: int,
    system: str | None = None,
    score: Score = log_probs,
) -> tuple[list[float], list[Receipt]]:
    """Log p(positive | prompt) − log p(negative | prompt) of each pair, in nats, summed over tokens.

    Args:
        m: the model, with its interventions as they are declared.
        texts: (prompt, positive, negative).
        batch_size: texts per forward pass.
        system: a system prompt before every prompt; None: nothing.
        score: scores responses.
    """
    scored = []
    for text, positive, negative in texts:
        prompt = prompt_ids(m.tokenizer, text, system=system)
        scored += [reply_ids(m.tokenizer, prompt, side) for side in (positive, negative)]
    totals, receipts = score(m, scored, batch_size=batch_size, description="contrast")
    return (totals[0::2] - totals[1::2]).tolist(), receipts


class ContrastRecord(TypedDict):
    """One coefficient: means over pairs in nats; None where its run was not finite, and in words why."""

    coefficient: float
    mean_difference: float | None
    standard_error: float | None
    positive_preferred: float | None
    not_finite: NotRequired[str | None]


class Contrasts(TypedDict):
    """What `run_contrast` gives, JSON values."""

    kind: Literal["contrast"]
    records: list[ContrastRecord]
    pairs: list[list[float] | None]
    tokens_edited: int


def run_contrast(m: IntervenedModel, spec: ContrastSpec, folder: Path) -> Contrasts:
    """By coefficient: log p(positive | prompt) − log p(negative | prompt), summed over tokens.

    Args:
        m: the model.
        spec: the evaluation.
        folder: where a file of pairs is looked for.

    Returns:
        `records`: per coefficient the mean over pairs in nats, its standard error, and the share of pairs in
        which the positive answer is the likelier one; and `pairs`, the values by coefficient and pair. Of a
        coefficient at which the model is no longer finite all are None, and `not_finite` says so in words.
    """
    texts = contrast_texts(spec, folder)
    scored, coefficients = [], []
    for c in spec.swept:
        for text, positive, negative in texts:
            prompt = prompt_ids(m.tokenizer, text)
            for side in (positive, negative):
                scored.append(reply_ids(m.tokenizer, prompt, side))
                coefficients.append(c)

    def score(which: list[int]) -> tuple[torch.Tensor, list[Receipt]]:
        return log_probs(
            m,
            [scored[i] for i in which],
            strengths=sweep_strengths(m, [coefficients[i] for i in which]),
            batch_size=spec.batch_size,
            description="contrast",
        )

    _, found, marked = over_finite_points(coefficients, score)
    totals, receipts = found or (torch.zeros(0), [])
    finite = [c for c in spec.swept if c not in marked]
    rows = (totals[0::2] - totals[1::2]).view(len(finite), len(texts)).tolist()
    by_coefficient: dict[float, list[float]] = dict(zip(finite, rows, strict=True))
    records = [_record(c, by_coefficient.get(c), marked.get(c)) for c in spec.swept]
    tokens = sum(r.tokens for receipt in receipts for r in receipt)
    pairs = [by_coefficient.get(c) for c in spec.swept]
    return {"kind": spec.kind, "records": records, "pairs": pairs, "tokens_edited": tokens}


def _record(coefficient: float, row: Sequence[float] | None, not_finite: str | None) -> ContrastRecord:
    """One coefficient's record; without numbers where its run was not finite, and in words why."""
    if row is None:
        return {
            "coefficient": coefficient,
            "mean_difference": None,
            "standard_error": None,
            "positive_preferred": None,
            "not_finite": not_finite,
        }
    return {
        "coefficient": coefficient,
        "mean_difference": statistics.fmean(row),
        "standard_error": statistics.stdev(row) / math.sqrt(len(row)) if len(row) > 1 else None,
        "positive_preferred": sum(d > 0 for d in row) / len(row),
    }
