"""Contrast: how much likelier trait-consistent answers are than trait-opposed ones, without a judge."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from subvene.runner.evaluations.base import sweep_strengths
from subvene.runner.intervened import IntervenedModel
from subvene.runner.scoring import log_probs
from subvene.runner.text import Messages, prompt_ids, reply_ids
from subvene.specs import ContrastSpec, ContrastTexts, SubveneError, resolve_pairs


def contrast_texts(spec: ContrastSpec, folder: Path) -> list[tuple[str | Messages, str, str]]:
    """(prompt, positive, negative) of every pair; needs no model, so that flaws show before one is loaded.

    Raises:
        SpecError: the file of pairs is not valid.
        SubveneError: its pairs are no texts with prompts.
    """
    pairs = resolve_pairs(spec.pairs, folder)
    if not isinstance(pairs, ContrastTexts):
        raise SubveneError(
            "evaluate contrast: its pairs are `systems`; it needs `texts` with answers to score"
        )
    texts: list[tuple[str | Messages, str, str]] = []
    for i, pair in enumerate(pairs.texts):
        if pair.asked is None:
            raise SubveneError(
                f"evaluate contrast: texts[{i}].prompt is missing; answers are scored after a prompt"
            )
        texts.append((pair.asked, pair.positive, pair.negative))
    return texts


def run_contrast(m: IntervenedModel, spec: ContrastSpec, folder: Path) -> dict[str, Any]:
    """By coefficient: log p(positive | prompt) − log p(negative | prompt), summed over tokens.

    Args:
        m: the model.
        spec: the evaluation.
        folder: where a file of pairs is looked for.

    Returns:
        `records`: per coefficient the mean over pairs in nats, its standard error, and the share of pairs in
        which the positive answer is the likelier one; and `pairs`, the values by coefficient and pair.
    """
    texts = contrast_texts(spec, folder)
    scored, coefficients = [], []
    for c in spec.coefficients:
        for text, positive, negative in texts:
            prompt = prompt_ids(m.tokenizer, text)
            for side in (positive, negative):
                scored.append(reply_ids(m.tokenizer, prompt, side))
                coefficients.append(c)
    strengths = sweep_strengths(m, coefficients)
    totals, receipts = log_probs(
        m, scored, strengths=strengths, batch_size=spec.batch_size, description="contrast"
    )
    differences = (totals[0::2] - totals[1::2]).view(len(spec.coefficients), -1).tolist()
    records = [
        {
            "coefficient": c,
            "mean_difference": statistics.fmean(row),
            "standard_error": statistics.stdev(row) / math.sqrt(len(row)) if len(row) > 1 else None,
            "positive_preferred": sum(d > 0 for d in row) / len(row),
        }
        for c, row in zip(spec.coefficients, differences, strict=True)
    ]
    tokens = sum(r.tokens for receipt in receipts for r in receipt)
    return {"kind": spec.kind, "records": records, "pairs": differences, "tokens_edited": tokens}
