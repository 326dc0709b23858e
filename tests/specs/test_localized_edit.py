from __future__ import annotations

from typing import Any

import pytest

from subvene.specs import (
    ExperimentSpec,
    LocalizedEditSpec,
    LowRankEditSpec,
    SpecError,
    TriplesSpec,
    TruthfulPairsSpec,
    dump_spec,
    parse_spec,
)
from subvene.specs.recipes.iti import ListedHeads
from subvene.specs.recipes.localized_edit import DrawnHeads, ProbedHeads
from subvene.specs.recipes.trained import DPOSpec, IPOSpec, SFTSpec

HEADER = "subvene: 1\nmodel: {name: m}\n"
EDIT = "interventions: [{kind: low_rank_edit, factors: {key: e}}]\n"


def read(fit: str) -> Any:
    return parse_spec(f"{HEADER}fit: {{recipe: localized_edit, key: e, {fit}}}\n{EDIT}").fit


def problems(text: str) -> list[tuple[str, str]]:
    with pytest.raises(SpecError) as raised:
        parse_spec(text)
    return [(problem.path, problem.expected) for problem in raised.value.problems]


def test_defaults_are_the_papers() -> None:
    spec = read("data: {file: a.jsonl}")
    assert isinstance(spec, LocalizedEditSpec)
    assert spec.data == TriplesSpec(file="a.jsonl")
    assert (spec.objective, spec.heads) == (IPOSpec(tau=0.1, reduction="sum"), ProbedHeads(k=16))
    assert (spec.epochs, spec.batch_size, spec.schedule, spec.rank) == (2, 4, "cosine", 1)
    assert (spec.read_heads, spec.per, spec.gate, spec.optimizer) == ("all", "layer", "adaptive", "adamw")


@pytest.mark.parametrize(
    ("fit", "field", "value"),
    [
        ("data: {truthfulqa: {file: t.csv}}", "data", {"truthfulqa": {"file": "t.csv"}}),
        ("data: {dataset: a/b, split: test}", "data", {"dataset": "a/b", "split": "test"}),
        ("data: {file: a.jsonl}, objective: {kind: dpo, beta: 0.2}", "objective", DPOSpec(beta=0.2)),
        ("data: {file: a.jsonl}, objective: {kind: sft}", "objective", SFTSpec()),
        ("data: {file: a.jsonl}, heads: {rule: random, k: 3, seed: 4}", "heads", DrawnHeads(k=3, seed=4)),
        (
            "data: {file: a.jsonl}, heads: {rule: list, heads: {3: [1]}}",
            "heads",
            ListedHeads(heads={3: (1,)}),
        ),
        ("data: {file: a.jsonl}, max_grad_norm: null", "max_grad_norm", None),
        ("data: {file: a.jsonl}, optimizer: paged_adamw_32bit", "optimizer", "paged_adamw_32bit"),
    ],
)
def test_every_form_reads_and_is_written_back(fit: str, field: str, value: Any) -> None:
    spec = parse_spec(f"{HEADER}fit: {{recipe: localized_edit, key: e, {fit}}}\n{EDIT}")
    assert isinstance(spec, ExperimentSpec)
    found = getattr(spec.fit, field)
    if isinstance(value, dict):
        kind = TruthfulPairsSpec if "truthfulqa" in value else TriplesSpec
        value = kind.model_validate(value)
    assert found == value
    assert parse_spec(dump_spec(spec)) == spec


@pytest.mark.parametrize(
    ("fit", "path", "expected"),
    [
        ("data: {}", "data.file", "either `file` or `dataset`"),
        ("data: {file: a.jsonl, dataset: b}", "data.file", "either `file` or `dataset`"),
        ("data: {file: a.txt}", "data.file", "a path that ends in .jsonl, .json or .csv"),
        ("data: {file: a.jsonl, split: x}", "data.split", "`dataset` beside it"),
        ("data: a.jsonl", "data", "a mapping with `file`, with `dataset`, or with `truthfulqa`"),
        ("data: {file: a.jsonl}, objective: {kind: kto}", "objective.kind", "one of: ipo, dpo, sft"),
        ("data: {file: a.jsonl}, objective: {kind: ipo, tau: 0}", "objective.tau", "a number above 0"),
        ("data: {file: a.jsonl}, gate: constant, rank: 2", "rank", "1, since a constant edit is one vector"),
        (
            "data: {file: a.jsonl}, validation: null, patience: 2",
            "patience",
            "a share in `validation` beside it",
        ),
        ("data: {file: a.jsonl}, warmup: 1", "warmup", "a number from 0 to 1, 1 left out"),
        ("data: {file: a.jsonl}, heads: {rule: top_k}", "heads.rule", "one of: probed, random, list, all"),
    ],
)
def test_problems(fit: str, path: str, expected: str) -> None:
    text = f"{HEADER}fit: {{recipe: localized_edit, key: e, {fit}}}\n{EDIT}"
    assert problems(text) == [(f"fit.{path}", expected)]


def test_a_habitual_name_is_met_with_ours() -> None:
    text = f"{HEADER}fit: {{recipe: localized_edit, key: e, data: {{file: a.jsonl}}, lr: 1.0}}\n{EDIT}"
    with pytest.raises(SpecError, match="did you mean 'learning_rate'"):
        parse_spec(text)


@pytest.mark.parametrize(
    ("entry", "path", "expected"),
    [
        ("write_heads: all", "layer", "an integer >= 0, or `factors` that are stored"),
        (
            "factors: {file: t.safetensors, key: e}, write_heads: [1]",
            "write_heads",
            "`layer` beside it, since these are heads of one layer",
        ),
        (
            "factors: {file: t.safetensors, key: e}, rank: 2",
            "rank",
            "`layer` beside it, since stored layers have their own",
        ),
    ],
)
def test_an_edit_without_a_layer_is_what_is_stored(entry: str, path: str, expected: str) -> None:
    text = f"{HEADER}interventions: [{{kind: low_rank_edit, {entry}}}]"
    assert problems(text) == [(f"interventions[0].{path}", expected)]
    spec = parse_spec(
        f"{HEADER}interventions: [{{kind: low_rank_edit, factors: {{file: t.safetensors, key: e}}}}]"
    )
    (edit,) = spec.interventions
    assert isinstance(edit, LowRankEditSpec)
    assert (edit.layer, edit.write_heads) == (None, "all")
    assert parse_spec(dump_spec(spec)) == spec
