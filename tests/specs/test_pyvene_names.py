"""pyvene's own component names and classes in a spec: refused with what to write instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from subvene.interventions._pyvene import pyvene
from subvene.specs._pyvene_names import instead_of

AT = "site: block_output, layer: 1"
T = "{key: k, file: t.safetensors}"


@pytest.mark.parametrize(
    ("fields", "instead"),
    [
        ("component: block_input, layer: 3", ["model.layers[3].input", "transformer.h[3].input"]),
        ("layer: 3, component: block_input", ["model.layers[3].input", "without `layer`"]),
        ("component: block_input", ["model.layers[N].input"]),
        ("component: block_output, layer: 3", ["`site: block_output` with `layer: 3`"]),
        ("component: mlp_activation, layer: 0", ["model.layers[0].mlp.act_fn.output"]),
        ("component: head_attention_value_output, layer: 0", ["`site: attention_heads`", "side by side"]),
        ("component: head_query_output, layer: 2", ["model.layers[2].self_attn.q_proj.output", "subspaces"]),
        ("component: value_output, layer: 2", ["transformer.h[2].attn.c_attn.output", "side by side"]),
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
        assert [name for name in names if instead_of(name, 0) is None] == []
