"""The steering file of `--to lm-eval`; the harness itself reads it in tests/consumers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, HEADS, LAYERS, WIDTH

from subvene.runner import IntervenedModel
from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.exchange.exports.lm_eval import EXPORT, FILE
from subvene.specs import InterventionSpec

LAST = LAYERS - 1
IDS = torch.tensor([[11, 12, 13, 14, 15, 16, 11]])
REF = {"key": "v"}
HEAD: dict[str, Any] = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 3.0}
STEER: dict[str, Any] = {"kind": "steering", "layer": LAST, "vector": REF, "coefficient": -2.0}
ABLATE: dict[str, Any] = {"kind": "ablation", "layer": LAST, "direction": REF}
CAP: dict[str, Any] = {"kind": "capping", "layer": LAST, "direction": REF, "max": 0.5}


def intervened(name: str, *interventions: dict[str, Any]) -> IntervenedModel:
    arch = BY_NAME[name]
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for site in ("block_output", "attention_output", "mlp_output"):
            tensors[f"v.{site}[{layer}]"] = torch.randn(WIDTH, generator=generator)
        place = f"attention_heads[{layer}]"
        tensors[f"v.{place}"] = torch.randn(HEADS * arch.head_dim, generator=generator)
        tensors[f"iti.{place}"] = torch.randn(HEADS, arch.head_dim, generator=generator)
        tensors[f"iti.{place}.sigma"] = torch.rand(HEADS, generator=generator)
        tensors[f"iti.{place}.probe_weight"] = torch.randn(HEADS, arch.head_dim, generator=generator)
        tensors[f"iti.{place}.probe_bias"] = torch.randn(HEADS, generator=generator)
    spec = InterventionSpec(
        subvene=1, model={"name": name, "dtype": "float32"}, interventions=list(interventions)
    )
    return IntervenedModel.from_spec(spec, model=arch.fresh().eval(), tensors=tensors)


@torch.no_grad()
def in_the_harness(model: Any, path: Path) -> torch.Tensor:
    """What lm_eval/models/hf_steered.py (0.4.13) does with the file."""
    actions = torch.load(path, weights_only=True)
    handles = []
    for name, module in model.base_model.named_modules():
        if name in actions:
            handles.append(module.register_forward_hook(hook(**actions[name])))
    assert len(handles) == len(actions)
    try:
        return model(IDS, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()


def hook(
    action: str, steering_vector: torch.Tensor, steering_coefficient: float, bias: None, head_index: None
) -> Any:
    assert bias is None
    assert head_index is None

    def changed(acts: torch.Tensor) -> torch.Tensor:
        if action == "add":
            return acts + steering_vector * float(steering_coefficient)
        assert action == "clamp"
        direction = steering_vector / torch.norm(steering_vector)
        return acts + direction * (steering_coefficient - (acts * direction).sum(-1, keepdim=True))

    def run(_module: Any, _input: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (changed(output[0]), *output[1:])
        return changed(output)

    return run


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "gemma2", "qwen3_moe", "opt"])
def test_the_file_gives_the_logits_of_the_intervened_model(name: str, tmp_path: Path) -> None:
    m = intervened(
        name,
        HEAD | {"name": "heads"},
        STEER | {"name": "again", "site": "attention_heads"},
        STEER | {"name": "attention", "site": "attention_output", "layer": 0},
        STEER | {"name": "mlp", "site": "mlp_output"},
        STEER | {"name": "twice"},
        STEER | {"name": "block", "coefficient": 0.5},
        ABLATE | {"name": "removed", "layer": 0},
        CAP | {"name": "fixed", "site": "attention_output", "min": 0.5},
    )
    folder = export(m, "lm-eval", tmp_path / "out")
    with torch.no_grad():
        expected = m(IDS).logits
        with m.disabled():
            untouched = m(IDS).logits
    found = in_the_harness(m.model, folder / FILE)
    scale = float(expected.abs().max())
    assert float((found - expected).abs().max()) < 1e-5 * max(scale, 1)
    assert float((untouched - expected).abs().max()) > 0.05 * scale
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == "exact"
    assert record["max_logit_difference"] < 1e-5 * max(scale, 1)
    assert "--model steered" in (folder / "README.md").read_text()


def test_heads_are_folded_through_the_output_projection(tmp_path: Path) -> None:
    m = intervened("llama", HEAD | {"heads": {0: [2]}})
    actions = torch.load(export(m, "lm-eval", tmp_path / "out") / FILE, weights_only=True)
    assert list(actions) == ["layers.0.self_attn.o_proj"]
    name, dim = "iti.attention_heads[0]", BY_NAME["llama"].head_dim
    shift = 3.0 * m.tensors[f"{name}.sigma"][2] * m.tensors[name][2]
    weight = m.model.model.layers[0].self_attn.o_proj.weight[:, 2 * dim : 3 * dim]
    action = actions["layers.0.self_attn.o_proj"]
    torch.testing.assert_close(action["steering_vector"], (weight @ shift).detach())
    assert (action["action"], action["steering_coefficient"]) == ("add", 1.0)
    # The vector alone is in the file, not the storage that it was cut from.
    assert action["steering_vector"].untyped_storage().nbytes() == 4 * WIDTH


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (STEER | {"positions": "response"}, ["response", "`positions: all`", "--approximate"]),
        (HEAD | {"adaptive": "one_minus_p"}, ["its strength depends", "`adaptive: none`", "--approximate"]),
        (CAP, ["depends on the activation", "--approximate"]),
        (CAP | {"min": 0.5, "strength": 0.5}, ["depends on the activation"]),
        (ABLATE | {"strength": 0.5}, ["depends on the activation"]),
        (ABLATE | {"site": "attention_heads"}, ["depends on the activation"]),
        (ABLATE | {"positions": "prompt"}, ["depends on the activation"]),
        ({"kind": "low_rank_edit", "layer": 1}, ["depends on the activation"]),
        (HEAD | {"strength": [1.0, 2.0]}, ["one strength per row"]),
        (
            {"kind": "pyvene", "class": "ZeroIntervention", "site": "block_output", "layer": 1},
            ["the class of `kind: pyvene` does not say", "save_pretrained"],
        ),
    ],
)
def test_what_the_harness_cannot_do_is_refused(
    tmp_path: Path, declared: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ExportError) as error:
        export(intervened("llama", declared), "lm-eval", tmp_path / "out")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("second", [STEER, ABLATE, CAP | {"min": 0.5}])
def test_a_module_has_one_action(tmp_path: Path, second: dict[str, Any]) -> None:
    m = intervened("llama", ABLATE | {"name": "removed"}, second | {"name": "other"})
    with pytest.raises(ExportError, match=r"other.*at layers\.1 the harness has one action"):
        export(m, "lm-eval", tmp_path / "out")


def test_what_can_be_approximated_is_written_when_asked_for(tmp_path: Path) -> None:
    m = intervened(
        "llama", HEAD | {"adaptive": "one_minus_p"}, STEER | {"positions": "response"}, CAP | {"layer": 0}
    )
    folder = export(m, "lm-eval", tmp_path / "out", approximate=True)
    actions = torch.load(folder / FILE, weights_only=True)
    assert {action["action"] for action in actions.values()} == {"add"}
    torch.testing.assert_close(
        actions[f"layers.{LAST}"]["steering_vector"], -2 * m.tensors[f"v.block_output[{LAST}]"]
    )
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == "approximate"
    assert 0 < record["mean_kl"] < record["mean_kl_untouched"]


def test_a_vector_beyond_float32_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"at layers\.1 the vector is out of float32's range"):
        EXPORT.write(intervened("llama", STEER | {"coefficient": 3e38}), tmp_path, False)


def test_weights_that_are_not_numbers_are_not_folded_through(tmp_path: Path) -> None:
    m = intervened("llama", HEAD)
    projection = m.model.model.layers[0].self_attn.o_proj
    projection.weight = torch.nn.Parameter(projection.weight.detach().char(), requires_grad=False)
    with pytest.raises(ExportError, match="int8"):
        EXPORT.write(m, tmp_path, False)
