"""The sites within a block (its input, neurons, query, key, value) on every architecture, by plain hooks.

Where their modules are is written down here from transformers' source; `models.anatomy` must find the same.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, BY_NAME, HEADS, LAYERS, WIDTH, Architecture

from subvene.interventions import TensorError
from subvene.runner.artifacts.artifact import read
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, AnatomyError
from subvene.runner.models.parts import PartSizes
from subvene.specs import CORE_SITES, SITES, InterventionSpec

INNER = tuple(site for site in SITES if site not in CORE_SITES)
IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [0, 0, 21, 22, 23, 24]])
MASK = (IDS != 0).long()
LENGTHS = [4, 3]
LAYER = LAYERS - 1
NO_NEURONS = {"mixtral", "qwen3_moe", "gpt_oss", "deepseek_v3", "afmoe"}

_NEOX = dict.fromkeys(("query", "key", "value"), "{attention}.query_key_value.output")
_OTHER_PATHS: dict[str, dict[str, str]] = {
    "gpt2": {"mlp_neurons": "mlp.c_proj.input", **dict.fromkeys(_NEOX, "attn.c_attn.output")},
    "gpt_neo": {"mlp_neurons": "mlp.c_proj.input"},
    "gpt_neox": {"mlp_neurons": "mlp.dense_4h_to_h.input", **_NEOX},
    "falcon_new": {"mlp_neurons": "mlp.dense_4h_to_h.input", **_NEOX},
    "falcon_multi_query": {"mlp_neurons": "mlp.dense_4h_to_h.input", **_NEOX},
    "bloom": {"mlp_neurons": "mlp.dense_4h_to_h.input", "mlp_input": "mlp.input", **_NEOX},
    "opt": {"mlp_neurons": "fc2.input", "mlp_input": "fc1.input"},
    "mpt": {
        "mlp_neurons": "ffn.down_proj.input",
        "mlp_input": "ffn.input",
        **dict.fromkeys(_NEOX, "attn.Wqkv.output"),
    },
    "phi3": dict.fromkeys(_NEOX, "self_attn.qkv_proj.output"),
}


def path(arch: Architecture, site: str) -> str:
    """The component below the block."""
    usual = {
        "mlp_input": "mlp.input",
        "mlp_neurons": "mlp.down_proj.input",
        "query": f"{arch.attention}.q_proj.output",
        "key": f"{arch.attention}.k_proj.output",
        "value": f"{arch.attention}.v_proj.output",
    }
    found = _OTHER_PATHS.get(arch.name, {}).get(site) or usual[site]
    return found.format(attention=arch.attention)


def columns(arch: Architecture, site: str, features: int) -> list[int]:
    """The columns of a module's output that are a site, by the loops that transformers' splits amount to."""
    whole, d = list(range(features)), arch.head_dim
    if site not in _NEOX or arch.name not in _OTHER_PATHS or site not in _OTHER_PATHS[arch.name]:
        return whole
    shared = (features // d - HEADS) // 2
    if arch.name in ("gpt2", "mpt", "phi3"):
        ends = {"query": (0, HEADS), "key": (HEADS, HEADS + shared), "value": (HEADS + shared, None)}
        start, end = ends[site]
        return whole[start * d : None if end is None else end * d]
    chosen, per_group = [], HEADS // shared + 2
    for group in range(shared):
        own = range(HEADS // shared) if site == "query" else [per_group - (2 if site == "key" else 1)]
        for head in own:
            start = (group * per_group + head) * d
            chosen += whole[start : start + d]
    return chosen


def sites_of(arch: Architecture) -> list[str]:
    without = {"mlp_neurons"} if arch.name in NO_NEURONS else set()
    return [s for s in INNER if s not in without | (set(_NEOX) if arch.name == "deepseek_v3" else set())]


def one_edit(**declared: Any) -> InterventionSpec:
    return InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/x"}, "interventions": [declared]}
    )


def spec(site: str, **fields: Any) -> InterventionSpec:
    return one_edit(kind="steering", site=site, layer=LAYER, vector={"key": "k"}, coefficient=2.0, **fields)


def steered(arch: Architecture, site: str, **fields: Any) -> tuple[IntervenedModel, torch.Tensor]:
    model = arch.shared()
    width = PartSizes.of(Anatomy.of(model)).site_width(site, LAYER)
    v = torch.randn(width, generator=torch.Generator().manual_seed(3))
    tensors = {f"k.{site}[{LAYER}]": v}
    return IntervenedModel.from_spec(spec(site, **fields), model=model, tensors=tensors), v


def by_hand(arch: Architecture, site: str, v: torch.Tensor, where: torch.Tensor) -> Any:
    """A hook that adds 2·v at the tokens `where` [rows, tokens]."""
    block = arch.shared().get_submodule(f"{arch.blocks}.{LAYER}")
    name, _, end = ("", "", "input") if site == "block_input" else path(arch, site).rpartition(".")
    module = block.get_submodule(name)

    def edit(h: torch.Tensor) -> torch.Tensor:
        added = torch.zeros_like(h).view(*where.shape, -1)
        index = columns(arch, site, h.shape[-1])
        added[..., index] = 2.0 * v * where.unsqueeze(-1)
        return h + added.view_as(h)

    def before(_m: Any, args: Any, kwargs: Any) -> Any:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": edit(kwargs["hidden_states"])}

    if end == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True)
    return module.register_forward_hook(lambda _m, _a, output: edit(output))


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
@torch.no_grad()
def test_every_site_is_edited_where_the_source_code_has_it(arch: Architecture) -> None:
    positions = (MASK.cumsum(1) - 1).clamp_min(0)
    response = (positions >= torch.tensor(LENGTHS).unsqueeze(1) - 1) & MASK.bool()
    model = arch.shared()
    plain = model(IDS, attention_mask=MASK, position_ids=positions).logits
    for site in sites_of(arch):
        m, v = steered(arch, site, positions="response")
        found = m(IDS, MASK, prompt_lengths=LENGTHS).logits
        handle = by_hand(arch, site, v, response)
        expected = model(IDS, attention_mask=MASK, position_ids=positions).logits
        handle.remove()
        torch.testing.assert_close(found[MASK.bool()], expected[MASK.bool()], rtol=1e-4, atol=1e-5)
        # A key's constant falls out of every softmax that is over edited tokens alone, not out of this one.
        assert (found - plain)[MASK.bool()].abs().max() > 1e-4, site
        assert m.receipt[0].tokens == int(response.sum())


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_what_a_model_does_not_have_is_refused_by_name(arch: Architecture) -> None:
    sizes = PartSizes.of(Anatomy.of(arch.shared()))
    for site in set(INNER) - set(sites_of(arch)):
        expected = "sends tokens to" if site == "mlp_neurons" else f"no one map for its {site}"
        with pytest.raises(AnatomyError, match=expected):
            sizes.site_width(site, LAYER)
    assert sizes.site_width("block_input", LAYER) == WIDTH


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "falcon_new"])
@pytest.mark.parametrize("site", INNER)
@torch.no_grad()
def test_scoring_is_generation_and_an_artifact_keeps_the_site(name: str, site: str, tmp_path: Any) -> None:
    arch = BY_NAME[name]
    m, _ = steered(arch, site, positions="response")
    options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True}
    options |= {"return_dict_in_generate": True, "pad_token_id": 0}
    written = m.generate_ids(IDS, MASK, **options)
    mask = torch.cat([MASK, torch.ones(2, 4, dtype=torch.long)], 1)
    scored = m(written.sequences, mask, prompt_lengths=MASK.sum(1).tolist()).logits
    torch.testing.assert_close(scored[:, -5:-1], torch.stack(written.logits, 1), rtol=1e-4, atol=1e-5)
    m.save_pretrained(tmp_path / "a")
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=arch.shared())
    assert torch.equal(again(IDS, MASK, prompt_lengths=LENGTHS).logits, _logits(m))
    # Without the model, the artifact still knows how wide its own places are.
    sizes = read(tmp_path / "a").sizes
    assert sizes is not None
    if site in ("block_input", "mlp_input"):
        assert sizes.site_width(site, LAYER) == WIDTH
    else:
        assert sizes.site_width(site, LAYER) == PartSizes.of(Anatomy.of(arch.shared())).site_width(
            site, LAYER
        )
        with pytest.raises(TensorError, match="only the loaded model tells"):
            sizes.site_width(site, 0)


@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
@torch.no_grad()
def test_all_sites_of_a_block_together_are_scored_as_generated_and_reload(
    arch: Architecture, tmp_path: Any
) -> None:
    sizes = PartSizes.of(Anatomy.of(arch.shared()))
    generator = torch.Generator().manual_seed(5)
    edits, tensors = [], {}
    for site in sites_of(arch):
        edit = {"kind": "steering", "name": site, "site": site, "layer": LAYER, "vector": {"key": "k"}}
        edits.append(edit | {"coefficient": 0.5, "positions": "response"})
        tensors[f"k.{site}[{LAYER}]"] = torch.randn(sizes.site_width(site, LAYER), generator=generator)
    declared = {"subvene": 1, "model": {"name": "tiny/x"}, "interventions": edits}
    m = IntervenedModel.from_spec(
        InterventionSpec.model_validate(declared), model=arch.shared(), tensors=tensors
    )
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    written = m.generate_ids(IDS, MASK, return_dict_in_generate=True, **options)
    mask = torch.cat([MASK, torch.ones(2, 3, dtype=torch.long)], 1)
    scored = m(written.sequences, mask, prompt_lengths=MASK.sum(1).tolist()).logits
    torch.testing.assert_close(scored[:, -4:-1], torch.stack(written.logits, 1), rtol=1e-4, atol=2e-5)
    assert all(receipt.tokens for receipt in m.receipt)
    m.save_pretrained(tmp_path / "a")
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=arch.shared())
    torch.testing.assert_close(again(IDS, MASK, prompt_lengths=LENGTHS).logits, _logits(m), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt", "falcon_new"])
@pytest.mark.parametrize("kind", ["steering", "ablation"])
@torch.no_grad()
def test_edits_beside_a_linear_map_are_baked_exactly(name: str, kind: str) -> None:
    arch = BY_NAME[name]
    model = arch.fresh()
    sizes = PartSizes.of(Anatomy.of(model))
    for site in ("mlp_neurons", "query", "key", "value"):
        v = torch.randn(sizes.site_width(site, LAYER), generator=torch.Generator().manual_seed(4))
        tensors = {f"k.{site}[{LAYER}]": v}
        named = (
            {"vector": {"key": "k"}, "coefficient": 2.0}
            if kind == "steering"
            else {"direction": {"key": "k"}}
        )
        one = one_edit(kind=kind, site=site, layer=LAYER, **named)
        m = IntervenedModel.from_spec(one, model=model, tensors=tensors)
        found = bake(m)(IDS[:1]).logits
        torch.testing.assert_close(found, m(IDS[:1], MASK[:1]).logits, rtol=1e-4, atol=2e-5)


def _logits(m: IntervenedModel) -> torch.Tensor:
    found: torch.Tensor = m(IDS, MASK, prompt_lengths=LENGTHS).logits
    return found
