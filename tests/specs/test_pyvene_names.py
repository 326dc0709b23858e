"""pyvene's own component names and classes in a spec: refused with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subvene.interventions._pyvene import pyvene
from subvene.specs import PyveneSpec
from subvene.specs._pyvene_names import LAYERED, instead_of

AT = "site: block_output, layer: 1"
T = "{key: k, file: t.safetensors}"


@pytest.mark.parametrize(
    ("fields", "instead"),
    [
        ("component: attention_weight, layer: 1", ["transformer.h[1].attn.attn_dropout.input", "eager"]),
        ("component: x2h_output, layer: 1", ["cells[1].x2h.output"]),
    ],
)
def test_a_name_of_pyvenes_names_the_path(
    spoilt: Callable[..., list[Any]], fields: str, instead: list[str]
) -> None:
    (problem,) = spoilt(f"- {{kind: pyvene, class: ZeroIntervention, {fields}}}")
    assert problem.path == "interventions[0].component"
    assert problem.line == 4
    for words in instead:
        assert words in problem.expected


def test_names_of_parts_of_a_block_stand_beside_a_layer(spoilt: Callable[..., list[Any]]) -> None:
    for name in LAYERED:
        declared = PyveneSpec(class_name="ZeroIntervention", component=name, layer=3)
        assert (declared.component, declared.layer, declared.module_path) == (name, 3, None)
        (problem,) = spoilt(f"- {{kind: pyvene, class: ZeroIntervention, component: {name}}}")
        assert problem.path == "interventions[0].layer"
        assert problem.expected == f"an integer >= 0, the block whose {name} is meant"


def test_a_function_cannot_be_declared(spoilt: Callable[..., list[Any]]) -> None:
    (problem,) = spoilt(f"- {{kind: pyvene, class: LambdaIntervention, {AT}}}")
    assert problem.path == "interventions[0].class"
    assert "a function cannot be declared in a file" in problem.expected
    assert "stock pyvene.IntervenableModel" in problem.expected


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        (f"class: ZeroIntervention, {AT}, source: {T}", "source"),
        (f"class: CollectIntervention, {AT}, source: {T}", "source"),
        (f"class: VanillaIntervention, {AT}, source: {T}, low_rank_dimension: 3", "low_rank_dimension"),
        (f"class: VanillaIntervention, {AT}, source: {T}, latent_dim: 3", "latent_dim"),
        (f"class: SigmoidMaskIntervention, {AT}, source: {T}, subspaces: [1]", "subspaces"),
        (
            f"class: BoundlessRotatedSpaceIntervention, {AT}, source: {T}, subspace_partition: [[0], [1]]",
            "subspace_partition",
        ),
        (f"class: AutoencoderIntervention, {AT}, source: {T}, latent_dim: 2, subspaces: [1]", "subspaces"),
    ],
)
def test_what_a_class_does_not_look_at_is_refused(
    spoilt: Callable[..., list[Any]], fields: str, path: str
) -> None:
    (problem,) = spoilt(f"- {{kind: pyvene, {fields}}}")
    assert problem.path == f"interventions[0].{path}"
    assert problem.expected.startswith("no ")


def test_every_name_of_pyvenes_language_models_is_known() -> None:
    card = pyvene.models.intervenable_modelcard
    for names in (
        card.llama_type_to_module_mapping,
        card.gpt2_type_to_module_mapping,
        card.gemma_type_to_module_mapping,
        card.qwen2_type_to_module_mapping,
        card.gpt_neox_type_to_module_mapping,
        card.mlp_type_to_module_mapping,
        card.gru_type_to_module_mapping,
    ):
        assert [name for name in names if instead_of(name, 0) is None and name not in LAYERED] == []
