"""Samples: the same prompts answered at several coefficients, all in one batch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NotRequired, TypedDict

from pydantic import JsonValue

from subvene.runner.edits.finite_points import over_finite_points
from subvene.runner.files.progress import generating
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.measures.base import sweep_strengths
from subvene.specs import SamplesSpec


class Sample(TypedDict):
    """What the model wrote to one prompt at one coefficient; None where it was no longer finite, and why."""

    prompt: str
    coefficient: float
    response: str | None
    columns: NotRequired[dict[str, str]]
    not_finite: NotRequired[str]


class Samples(TypedDict):
    """What `run_samples` gives, JSON values."""

    kind: Literal["samples"]
    records: list[Sample]
    receipt: list[dict[str, JsonValue]]


def run_samples(m: IntervenedModel, spec: SamplesSpec, folder: Path) -> Samples:
    """Greedy responses to every prompt at every coefficient (`runner.measured`).

    Returns:
        `records` (prompt, coefficient, response; where the run was no longer finite, no response and
        `not_finite`, in words) and the `receipt` of the run of all others.
    """
    columns = spec.rows
    rows = [(prompt, c) for prompt in spec.prompts for c in spec.swept]
    data = None if columns is None else [columns[i] for i in range(len(columns)) for _ in spec.swept]

    def generate(which: list[int]) -> list[str]:
        with generating(spec.max_new_tokens, "samples") as streamer:
            return m.generate(
                [rows[i][0] for i in which],
                strengths=sweep_strengths(m, [rows[i][1] for i in which]),
                streamer=streamer,
                rows=None if data is None else [data[i] for i in which],
                **measured_options(m.model, max_new_tokens=spec.max_new_tokens),
            )

    kept, written, marked = over_finite_points(range(len(rows)), generate)
    responses = dict(zip(kept, written or [], strict=True))
    records: list[Sample] = []
    for i, (prompt, c) in enumerate(rows):
        record: Sample = {"prompt": prompt, "coefficient": c, "response": responses.get(i)}
        if data is not None:
            record["columns"] = data[i]
        if i in marked:
            record["not_finite"] = marked[i]
        records.append(record)
    return {"kind": spec.kind, "records": records, "receipt": m.receipt.to_dict() if m.receipt else []}
