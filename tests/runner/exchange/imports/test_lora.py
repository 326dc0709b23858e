"""peft adapters on o_proj: the imported edit gives the logits that peft itself gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors.torch
import torch
import transformers
from imports_oracle import IDS, logits

from subvene.runner.exchange.imports import ImportRefusedError
from subvene.runner.intervened.model import IntervenedModel

Importing = Callable[..., IntervenedModel]


def adapter(model: Any, folder: Path, **config: Any) -> torch.Tensor:
    """Saves an adapter with random factors, as peft writes it; returns peft's own logits."""
    settings = {"r": 2, "lora_alpha": 6, "target_modules": ["o_proj"], "task_type": "CAUSAL_LM"} | config
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    with torch.no_grad():
        for i, (name, p) in enumerate(wrapped.named_parameters()):
            if "lora_" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
        found = wrapped(IDS).logits
    wrapped.save_pretrained(folder)
    return found


def alter(folder: Path, **config: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))


def alter_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "adapter_model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)


@pytest.mark.parametrize(
    ("config", "layers", "scale"),
    [
        ({}, [0, 1, 2], 3.0),
        ({"layers_to_transform": [1]}, [1], 3.0),
        ({"r": 4, "use_rslora": True}, [0, 1, 2], 3.0),
        ({"r": 1, "lora_alpha": 0.5}, [0, 1, 2], 0.5),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1}, [0, 1, 2], 3.0),
    ],
)
def test_logits_are_pefts(
    imported: Importing,
    llama: Callable[..., Any],
    tmp_path: Path,
    config: dict[str, Any],
    layers: list[int],
    scale: float,
) -> None:
    expected = adapter(llama(), tmp_path / "lora", **config)
    m = imported(tmp_path / "lora")
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-4)
    with m.disabled():
        assert (logits(m) - expected).abs().max() > 1e-2
    assert m.provenance["scale"] == scale
    assert list(map(int, m.provenance["residual_by_layer"])) == layers
    assert max(m.provenance["residual_by_layer"].values()) < 1e-5
    (edit,) = m.spec.interventions
    assert (edit.kind, edit.name, edit.positions) == ("low_rank_edit", "lora", "all")


def test_gpt2_whose_projection_is_transposed(imported: Importing, tmp_path: Path) -> None:
    def gpt2() -> Any:
        torch.manual_seed(0)
        config = transformers.GPT2Config(vocab_size=64, n_embd=24, n_layer=2, n_head=4, n_positions=32)
        return transformers.GPT2LMHeadModel(config).eval()

    targets = {"target_modules": ["attn.c_proj"], "fan_in_fan_out": True}
    expected = adapter(gpt2(), tmp_path / "lora", **targets)
    m = imported(tmp_path / "lora", gpt2())
    torch.testing.assert_close(logits(m), expected, rtol=0, atol=1e-4)


def test_a_narrow_projection_cannot_write_everything(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    # 4 heads of 4 on a width of 24: W_o has 16 columns, and an update of 24 rows leaves its range.
    expected = adapter(llama(head_dim=4), tmp_path / "lora")
    with pytest.raises(ImportRefusedError, match=r"of layer \d .*% of it is out of reach.*--accept-residual"):
        imported(tmp_path / "lora", llama(head_dim=4))
    m = imported(tmp_path / "lora", llama(head_dim=4), accept_residual=True)
    # The nearest one by an independent computation: the projection onto W's range.
    tensors = safetensors.torch.load_file(tmp_path / "lora" / "adapter_model.safetensors")
    residuals = m.provenance["residual_by_layer"]
    model = llama(head_dim=4)
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.self_attn.o_proj.lora_"
        weight = model.model.layers[layer].self_attn.o_proj.weight.detach().double()
        update = (3.0 * tensors[f"{name}B.weight"] @ tensors[f"{name}A.weight"]).double()
        onto_range = weight @ torch.linalg.pinv(weight)
        assert residuals[str(layer)] == pytest.approx(
            float((update - onto_range @ update).norm() / update.norm()), rel=1e-4
        )
        with torch.no_grad():
            model.model.layers[layer].self_attn.o_proj.weight += (onto_range @ update).float()
    with torch.no_grad():
        torch.testing.assert_close(logits(m), model(IDS).logits, rtol=0, atol=1e-4)
    assert (logits(m) - expected).abs().max() > 1e-3


def test_an_update_within_the_range_of_a_narrow_projection_is_exact(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    adapter(llama(head_dim=4), tmp_path / "lora")
    weights = [block.self_attn.o_proj.weight.detach() for block in llama(head_dim=4).model.layers]

    def within(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        for i, weight in enumerate(weights):
            name = f"base_model.model.model.layers.{i}.self_attn.o_proj.lora_B.weight"
            tensors[name] = weight @ torch.randn(16, 2, generator=torch.Generator().manual_seed(i))
        return tensors

    alter_tensors(tmp_path / "lora", within)
    expected = peft.PeftModel.from_pretrained(llama(head_dim=4), tmp_path / "lora").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            logits(imported(tmp_path / "lora", llama(head_dim=4))), expected(IDS).logits, rtol=0, atol=1e-4
        )


def test_layers_that_were_not_trained_are_left_out(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    adapter(llama(), tmp_path / "lora")
    zero = {i: f"base_model.model.model.layers.{i}.self_attn.o_proj.lora_B.weight" for i in range(3)}
    alter_tensors(tmp_path / "lora", lambda t: t | {zero[0]: t[zero[0]] * 0})
    m = imported(tmp_path / "lora")
    assert m.receipt is None
    assert m.intervenable.entries[0].sites == ("attention_heads[1]", "attention_heads[2]")
    alter_tensors(tmp_path / "lora", lambda t: t | {name: t[name] * 0 for name in zero.values()})
    with pytest.raises(ImportRefusedError, match="changes nothing"):
        imported(tmp_path / "lora")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"target_modules": ["q_proj"]}, r"model.layers.0.self_attn.q_proj|width is 24"),
        ({"target_modules": ["o_proj", "v_proj"]}, r"v_proj|width is 24"),
        ({"target_modules": ["down_proj"]}, r"it changes model.layers.0.mlp.down_proj, .* only"),
        ({"use_dora": True}, "use_dora is set: DoRA"),
        ({"bias": "lora_only"}, "bias 'lora_only'"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save is set: it replaces whole modules"),
        ({"rank_pattern": {"layers.1.self_attn.o_proj": 4}}, "rank_pattern is set"),
        ({"alpha_pattern": {"o_proj": 4}}, "alpha_pattern is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'"),
    ],
)  # fmt: skip
def test_adapters_that_are_no_low_rank_edit(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    adapter(llama(), tmp_path / "lora", **config)
    with pytest.raises(ImportRefusedError, match=message):
        imported(tmp_path / "lora")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3', expected LORA"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": 0}, "lora_alpha is 0"),
        ({"lora_alpha": 1e300}, "too large for float32"),
        ({"use_rslora": "false"}, "use_rslora is 'false'"),
        ({"r": 3}, "expected rank 3"),
        ({"r": "2"}, "r is '2', expected a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"a_setting_of_tomorrow": {"x": 1}}, "a_setting_of_tomorrow is set: what it does is not known"),
    ],
)
def test_configs_that_are_not_understood(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    adapter(llama(), tmp_path / "lora")
    alter(tmp_path / "lora", **config)
    with pytest.raises(ImportRefusedError, match=message):
        imported(tmp_path / "lora")


O_PROJ = "base_model.model.model.layers.1.self_attn.o_proj."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"lm_head.weight": torch.zeros(2)}, "'lm_head.weight' is no LoRA factor"),
        (lambda t: {n: v for n, v in t.items() if "1.self_attn.o_proj.lora_A" not in n}, "one of its two"),
        (lambda t: {n: v * torch.inf for n, v in t.items()}, "NaN or infinite"),
        (lambda t: t | {O_PROJ + "lora_A.weight": torch.ones(2, 31)}, r"layer 1: .* \[24, 31\].* \[24, 32\]"),
        (lambda t: t | {O_PROJ + "lora_B.weight": torch.ones(23, 2)}, r"23 rows, .* width is 24"),
        (lambda t: {}, "holds no tensors"),
    ],
)
def test_tensors_that_do_not_fit(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path, change: Any, message: str
) -> None:
    adapter(llama(), tmp_path / "lora")
    alter_tensors(tmp_path / "lora", change)
    with pytest.raises(ImportRefusedError, match=message):
        imported(tmp_path / "lora")


def test_the_pickled_form_is_not_read(imported: Importing, llama: Callable[..., Any], tmp_path: Path) -> None:
    adapter(llama(), tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").rename(tmp_path / "lora" / "adapter_model.bin")
    with pytest.raises(ImportRefusedError, match=r"adapter_model.bin: a pickle.*save_pretrained"):
        imported(tmp_path / "lora")


def test_a_link_that_leaves_the_folder(
    imported: Importing, llama: Callable[..., Any], tmp_path: Path
) -> None:
    adapter(llama(), tmp_path / "lora")
    path = tmp_path / "lora" / "adapter_model.safetensors"
    path.rename(tmp_path / "outside.safetensors")
    path.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(ImportRefusedError, match=re.escape(f"{path}: a link that leaves its folder")):
        imported(tmp_path / "lora")


def test_a_snapshot_of_the_hubs_cache(imported: Importing, llama: Callable[..., Any], tmp_path: Path) -> None:
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    (tmp_path / "models--a--b" / "blobs").mkdir(parents=True)
    adapter(llama(), snapshot)
    for i, path in enumerate(sorted(p for p in snapshot.iterdir() if p.is_file())):
        blob = tmp_path / "models--a--b" / "blobs" / str(i)
        path.rename(blob)
        path.symlink_to(f"../../blobs/{i}")
    assert imported(snapshot).provenance["format"] == "peft"
