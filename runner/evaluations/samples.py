"""Samples: the same prompts answered at several coefficients, all in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from subvene.runner.evaluations.base import sweep_strengths
from subvene.runner.intervened import IntervenedModel
from subvene.runner.measured import measured_options
from subvene.runner.progress import generating
from subvene.specs import SamplesSpec


def run_samples(m: IntervenedModel, spec: SamplesSpec, folder: Path) -> dict[str, Any]:
    """Greedy responses to every prompt at every coefficient (`runner.measured`).

    Returns:
        `records` (prompt, coefficient, response) and the run's `receipt`.
    """
    rows = [(prompt, c) for prompt in spec.prompts for c in spec.coefficients]
    with generating(spec.max_new_tokens, "samples") as streamer:
        responses = m.generate(
            [prompt for prompt, _ in rows],
            strengths=sweep_strengths(m, [c for _, c in rows]),
            streamer=streamer,
            **measured_options(m.model, max_new_tokens=spec.max_new_tokens),
        )
    records = [
        {"prompt": prompt, "coefficient": c, "response": response}
        for (prompt, c), response in zip(rows, responses, strict=True)
    ]
    return {"kind": spec.kind, "records": records, "receipt": m.receipt.to_dict() if m.receipt else []}
