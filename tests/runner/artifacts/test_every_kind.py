"""Every kind of the registry, as its examples declare it: it acts, is what it says, and is kept whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME
from tiny_exports import IDS

from subvene.interventions import REGISTRY, InventedTable
from subvene.runner.edits.statements import contradictions
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.parts import PartSizes
from subvene.specs import AnyIntervention, InterventionSpec, json_schema
from subvene.specs.interventions import REGISTRY as SPECS

LLAMA = BY_NAME["llama"]
SIZES = PartSizes.of(Anatomy.of(LLAMA.shared()))
EXAMPLES = [(kind, words) for kind, spec in SPECS.items() for words in spec.examples]
every_example = pytest.mark.parametrize(("kind", "words"), EXAMPLES)


def declared_as(kind: str, words: str) -> AnyIntervention:
    return SPECS[kind].model_validate({"kind": kind, **SPECS[kind].examples[words]})


def test_every_kind_has_a_class_and_an_example() -> None:
    assert SPECS.keys() == REGISTRY.keys() == {kind for kind, _ in EXAMPLES}
    assert {spec.__name__ for spec in SPECS.values()} <= json_schema()["$defs"].keys()


@every_example
def test_what_it_says_of_itself_is_what_it_does(kind: str, words: str) -> None:
    declared = declared_as(kind, words)
    for _, _, edit in REGISTRY[kind].build(declared, InventedTable(), SIZES):
        assert not list(contradictions(edit))


@every_example
def test_it_acts_and_reloads_to_the_same_logits(kind: str, words: str, tmp_path: Path) -> None:
    declared, tensors = declared_as(kind, words), {}
    for site, layer, edit in REGISTRY[kind].build(declared, InventedTable(), SIZES):
        tensors |= edit.stored(declared.wanted_key or kind, site, layer)
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/llama"}, "interventions": [declared]}
    )
    m = IntervenedModel.from_spec(spec, model=LLAMA.fresh(), tensors=tensors)
    steered = logits(m)
    with m.disabled():
        assert (logits(m) - steered).abs().max() > 1e-4
    again = IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "artifact"), model=LLAMA.fresh())
    assert torch.equal(logits(again), steered)


@torch.no_grad()
def logits(m: IntervenedModel) -> Any:
    return m(IDS[:1, :5], prompt_lengths=[2]).logits
