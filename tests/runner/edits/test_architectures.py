"""Every kind of intervention on tiny models of many architectures, against hooks placed by hand."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from architectures import ARCHITECTURES, BY_NAME, HEADS, LAYERS, VOCAB, WIDTH, Architecture
from every_kind import KINDS, LAYER, Kind
from torch import nn

from subvene.interventions import Sizes
from subvene.interventions._pyvene import pyvene
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, AnatomyError, sizes_from_config
from subvene.specs import CORE_SITES

STOCK = [a for a in ARCHITECTURES if a.stock]

# Two rows of 6 and 4 tokens; 0 is the padding.
IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [0, 0, 21, 22, 23, 24]])
MASK = (IDS != 0).long()
LENGTHS = [6, 4]

every_architecture = pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)


every_kind = pytest.mark.parametrize("kind", KINDS, ids=repr)


def intervened(
    arch: Architecture, kind: Kind, *, model: nn.Module | None = None, **spec: Any
) -> IntervenedModel:
    model = arch.shared() if model is None else model
    return IntervenedModel.from_spec(kind.spec(arch, **spec), model=model, tensors=kind.tensors(arch))


@cache
def baseline(arch: Architecture) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of the untouched model: logits of the padded batch, sequences, and logits of every generated token."""
    model = arch.shared()
    with torch.no_grad():
        logits = model(IDS, attention_mask=MASK, position_ids=_position_ids()).logits
    return logits, *_written(model.generate(IDS, attention_mask=MASK, **_GREEDY))


_GREEDY = {
    "max_new_tokens": 3,
    "do_sample": False,
    "output_logits": True,
    "return_dict_in_generate": True,
    "pad_token_id": 0,
}


def _position_ids() -> torch.Tensor:
    return (MASK.cumsum(1) - 1).clamp_min(0)


def _written(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return output.sequences, torch.stack(output.logits, 1)


def generated(m: IntervenedModel, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return _written(m.generate_ids(IDS, MASK, **_GREEDY, **kwargs))


@torch.no_grad()
def scored(m: IntervenedModel, **kwargs: Any) -> torch.Tensor:
    return m(IDS, MASK, prompt_lengths=LENGTHS, **kwargs).logits


def real(logits: torch.Tensor) -> torch.Tensor:
    return logits[MASK.bool()]


def before_cursor() -> torch.Tensor:
    """Bool[real tokens], false at the last token of each row, which is all prompt."""
    return real(_position_ids()) < torch.tensor(LENGTHS).repeat_interleave(torch.tensor(LENGTHS)) - 1


@contextlib.contextmanager
def edited_by_hand(arch: Architecture, kind: Kind, model: nn.Module) -> Iterator[None]:
    """The same edit by torch hooks on the modules that this test's table names, at every token."""
    handles = []
    for layer in kind.layers:
        module, edit = model.get_submodule(arch.path(kind.site, layer)), kind.edit(arch, layer)
        if kind.site == "attention_heads":
            handles.append(
                module.register_forward_pre_hook(lambda _, args, edit=edit: (edit(args[0]), *args[1:]))
            )
        else:

            def hook(_: nn.Module, _args: Any, output: Any, edit: Callable[..., torch.Tensor] = edit) -> Any:
                return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

            handles.append(module.register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """pyvene prints when it loads."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


# --- where things are


@every_architecture
@pytest.mark.parametrize("layer", range(LAYERS))
def test_sites_are_the_modules_of_the_source_code(arch: Architecture, layer: int) -> None:
    anatomy = Anatomy.of(arch.shared())
    for site in CORE_SITES:
        end = ".input" if site == "attention_heads" else ".output"
        found = anatomy.component(site, layer)
        assert found.replace("[", ".").replace("]", "") == arch.path(site, layer) + end
        assert f"[{layer}]" in found
    projection = arch.shared().get_submodule(arch.path("attention_heads", layer))
    assert anatomy.output_projection(layer) is projection


@every_architecture
def test_sizes_are_those_of_the_modules(arch: Architecture) -> None:
    sizes = Anatomy.of(arch.shared()).sizes
    assert sizes == Sizes(LAYERS, WIDTH, HEADS, arch.head_dim)
    from_config = sizes_from_config(arch.shared().config)
    assert replace(from_config, head_dim=arch.head_dim) == sizes


@every_architecture
def test_output_projection_runs_last_in_attention_and_gives_its_output(arch: Architecture) -> None:
    model = arch.shared()
    attention = model.get_submodule(f"{arch.blocks}.{LAYER}.{arch.attention}")
    called: list[nn.Module] = []
    outputs: dict[nn.Module, torch.Tensor] = {}

    def note(module: nn.Module, _args: Any, output: Any) -> None:
        called.append(module)
        outputs[module] = output[0] if isinstance(output, tuple) else output

    weighted = [m for m in attention.modules() if getattr(getattr(m, "weight", None), "ndim", 0) == 2]
    site = model.get_submodule(arch.path("attention_output", LAYER))
    handles = [m.register_forward_hook(note) for m in {*weighted, site}]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    projection = Anatomy.of(model).output_projection(LAYER)
    assert [m for m in called if m in weighted][-1] is projection
    assert len(called) >= 2
    # What the site attention_output holds is what the projection gives, not yet added to the residual stream.
    torch.testing.assert_close(outputs[site], outputs[projection])


@every_architecture
def test_head_edit_is_its_image_at_attention_output(arch: Architecture) -> None:
    model = arch.shared()
    heads = KINDS[1 + CORE_SITES.index("attention_heads")]
    output = KINDS[1 + CORE_SITES.index("attention_output")]
    projection = model.get_submodule(arch.path("attention_heads", LAYER))
    (d,) = heads.tensors(arch).values()
    image = d @ projection.weight if type(projection).__name__ == "Conv1D" else projection.weight @ d
    through_heads = intervened(arch, heads)
    directly = IntervenedModel.from_spec(
        output.spec(arch), model=model, tensors={f"k.attention_output[{LAYER}]": image.detach()}
    )
    torch.testing.assert_close(real(scored(directly)), real(scored(through_heads)), atol=2e-5, rtol=1e-4)
    assert not torch.allclose(real(scored(directly)), real(baseline(arch)[0]), atol=1e-3)


# --- what every kind does


@every_architecture
@every_kind
def test_edit_is_the_same_as_a_hook_placed_by_hand(arch: Architecture, kind: Kind) -> None:
    model, m = arch.shared(), intervened(arch, kind)
    with edited_by_hand(arch, kind, model), torch.no_grad():
        by_hand = model(IDS, attention_mask=MASK, position_ids=_position_ids()).logits
    assert not torch.allclose(real(by_hand), real(baseline(arch)[0]), atol=1e-3)
    torch.testing.assert_close(real(scored(m)), real(by_hand), atol=2e-5, rtol=1e-4)


@every_architecture
@every_kind
def test_saves_reloads_and_generates(arch: Architecture, kind: Kind, tmp_path: Any) -> None:
    model = arch.shared()
    m = intervened(arch, kind, positions="response")
    logits, (sequences, steps) = scored(m), generated(m)
    assert m.receipt[0].edited == {"prompt": 0, "cursor": 2, "response": 4}
    # The edit acts from the cursor on: the first step differs already, and what came before is untouched.
    plain, plain_sequences, plain_steps = baseline(arch)
    before = before_cursor()
    assert not torch.allclose(steps[:, 0], plain_steps[:, 0], atol=1e-3)
    assert not torch.allclose(logits[:, -1], plain[:, -1], atol=1e-3)
    torch.testing.assert_close(real(logits)[before], real(plain)[before], atol=1e-6, rtol=0)

    m.save_pretrained(tmp_path / "artifact")
    again = IntervenedModel.from_pretrained(tmp_path / "artifact", model=model)
    torch.testing.assert_close(scored(again), logits, atol=1e-6, rtol=0)
    sequences_again, steps_again = generated(again)
    assert torch.equal(sequences_again, sequences)
    torch.testing.assert_close(steps_again, steps, atol=1e-6, rtol=0)

    off = generated(again, strengths=0.0)
    assert torch.equal(off[0], plain_sequences)
    torch.testing.assert_close(off[1], plain_steps, atol=1e-6, rtol=0)


@every_architecture
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(arch: Architecture, side: str) -> None:
    m = intervened(arch, KINDS[0], positions="response")
    ids = IDS if side == "left" else torch.stack([IDS[0], IDS[1].roll(-2)])
    mask = (ids != 0).long()
    prompts = [4, 3]
    with torch.no_grad():
        together = m(ids, mask, prompt_lengths=prompts).logits
        for row, length, prompt in zip(range(2), LENGTHS, prompts, strict=True):
            alone = m(IDS[row : row + 1, -length:], prompt_lengths=[prompt]).logits
            torch.testing.assert_close(together[row][mask[row].bool()], alone[0], atol=2e-5, rtol=1e-4)


# --- stock pyvene


FULL = torch.tensor([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26]])


@pytest.mark.parametrize("arch", STOCK, ids=repr)
@every_kind
def test_stock_pyvene_reloads_what_it_lists(arch: Architecture, kind: Kind, tmp_path: Any) -> None:
    for positions in ("all", "prompt"):
        folder = tmp_path / positions
        m = intervened(arch, kind, positions=positions)
        with torch.no_grad():
            ours = m(FULL, prompt_lengths=[6, 6]).logits
            plain = arch.shared()(FULL).logits
        m.save_pretrained(folder)
        with quiet():
            # A copy, since stock pyvene freezes the parameters of the model that it is given.
            stock = pyvene.IntervenableModel.load(str(folder), arch.fresh())
        assert type(stock) is pyvene.IntervenableModel
        with torch.no_grad():
            theirs = stock({"input_ids": FULL}, unit_locations=None)[1].logits
        torch.testing.assert_close(theirs, ours, atol=1e-6, rtol=0)
        assert not torch.allclose(theirs, plain, atol=1e-3)


@every_architecture
def test_artifact_says_truly_whether_stock_pyvene_can_load_it(arch: Architecture, tmp_path: Any) -> None:
    intervened(arch, KINDS[1]).save_pretrained(tmp_path / "artifact")
    fingerprint = json.loads((tmp_path / "artifact" / "fingerprint.json").read_text())
    card = (tmp_path / "artifact" / "README.md").read_text()
    assert fingerprint["stock_pyvene"] is arch.stock
    assert fingerprint["model"]["head_dim"] == arch.head_dim
    assert ("Stock pyvene reloads it too" in card) is arch.stock
    assert (f"cannot rebuild interventions for {type(arch.shared()).__name__}" in card) is not arch.stock
    if not arch.stock:
        with quiet(), pytest.raises((KeyError, AttributeError)):
            pyvene.IntervenableModel.load(str(tmp_path / "artifact"), arch.fresh())


# --- the caller's model


@every_architecture
def test_model_is_left_as_it_was(arch: Architecture, tmp_path: Any) -> None:
    model = arch.fresh().train()
    model.get_submodule(arch.blocks)[0].eval()
    model.get_input_embeddings().requires_grad_(False)
    heads = model.get_submodule(arch.path("attention_heads", LAYER))
    fired = dict.fromkeys(("block", "block_pre", "heads_pre", "model"), 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            fired[name] += 1

        return hook

    block = model.get_submodule(arch.path("block_output", LAYER))
    block.register_forward_hook(count("block"))
    block.register_forward_pre_hook(count("block_pre"))
    heads.register_forward_pre_hook(count("heads_pre"))
    model.register_forward_hook(count("model"))

    def state() -> dict[str, Any]:
        return {
            "training": {name: module.training for name, module in model.named_modules()},
            "requires_grad": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
            "hooks": {
                name: (list(module._forward_hooks), list(module._forward_pre_hooks))
                for name, module in model.named_modules()
            },
            "forward": {name: module.forward.__func__ for name, module in model.named_modules()},
        }

    def hidden_states() -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return model(FULL, output_hidden_states=True).hidden_states

    assert len(hidden_states()) == LAYERS + 1
    before, weights = state(), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for kind in (KINDS[0], KINDS[1], KINDS[-1]):
        m = intervened(arch, kind, model=model)
        assert state() == before
        for run in (lambda m=m: m(FULL), lambda m=m: m.generate_ids(FULL, max_new_tokens=1, pad_token_id=0)):
            fired.update(dict.fromkeys(fired, 0))
            with torch.no_grad():
                run()
            assert fired == dict.fromkeys(fired, 1)
            assert state() == before
    m.save_pretrained(tmp_path / "artifact")
    assert state() == before
    assert len(hidden_states()) == LAYERS + 1
    assert fired == dict.fromkeys(fired, 2)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# --- what cannot work


def test_model_without_attention_is_refused() -> None:
    config = transformers.MambaConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=4, pad_token_id=0
    )
    model = transformers.MambaForCausalLM(config)
    with pytest.raises(AnatomyError, match=r"MambaConfig \(mamba\) has no num_attention_heads"):
        intervened(BY_NAME["llama"], KINDS[1], model=model)
    with pytest.raises(AnatomyError, match="num_attention_heads"):
        sizes_from_config(config)


def _hybrid(config: type, **settings: Any) -> nn.Module:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "pad_token_id": 0,
        "initializer_range": 0.15,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(config(**common | settings)).eval()


HYBRIDS = {
    "lfm2": lambda: _hybrid(
        transformers.Lfm2Config, layer_types=["conv", "full_attention"], block_multiple_of=8
    ),
    "qwen3_next": lambda: _hybrid(
        transformers.Qwen3NextConfig,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        # As wide in all as the true heads are, so that a wrong guess would not show in the shapes.
        linear_value_head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
}


@pytest.mark.parametrize("name", HYBRIDS)
def test_block_without_attention_has_no_heads_and_keeps_its_other_sites(name: str) -> None:
    model, llama = HYBRIDS[name](), BY_NAME["llama"]

    def steer(site: str, layer: int) -> IntervenedModel:
        kind = KINDS[1 + CORE_SITES.index(site)]
        spec = kind.spec(llama)
        declared = spec.interventions[0].model_copy(update={"layer": layer})
        spec = spec.model_copy(update={"interventions": (declared,)})
        width = HEADS * sizes.head_dim if site == "attention_heads" else WIDTH
        return IntervenedModel.from_spec(spec, model=model, tensors={f"k.{site}[{layer}]": torch.ones(width)})

    sizes = Anatomy.of(model).sizes
    attention = model.model.layers[1].self_attn
    projection = attention.o_proj if name == "qwen3_next" else attention.out_proj
    assert sizes.head_dim == projection.in_features // HEADS
    assert Anatomy.of(model).output_projection(1) is projection
    for site in ("attention_heads", "attention_output"):
        problem = rf"model\.layers\[0\] has no attention module, so the site {site} does not exist"
        with pytest.raises(CompileError, match=problem):
            steer(site, 0)
    for site, layer in [("block_output", 0), ("mlp_output", 0), ("attention_heads", 1)]:
        with torch.no_grad():
            assert not torch.allclose(steer(site, layer)(FULL).logits, model(FULL).logits, atol=1e-3)


def test_layers_whose_heads_are_wider_are_refused_at_the_heads_alone() -> None:
    config = transformers.Gemma4TextConfig(
        vocab_size=VOCAB,
        vocab_size_per_layer_input=VOCAB,
        hidden_size=WIDTH,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        num_kv_shared_layers=0,
        layer_types=["sliding_attention", "full_attention"],
        pad_token_id=0,
    )
    anatomy = Anatomy.of(transformers.Gemma4ForCausalLM(config))
    assert anatomy.sizes == Sizes(2, WIDTH, HEADS, 8)
    assert anatomy.component("attention_heads", 0) == "model.layers[0].self_attn.o_proj.input"
    with pytest.raises(AnatomyError, match="reads 64 features, and other layers have 4 heads of 8"):
        anatomy.component("attention_heads", 1)
    assert anatomy.component("attention_output", 1) == "model.layers[1].self_attn.output"
    assert anatomy.component("mlp_output", 1) == "model.layers[1].mlp.output"


def test_output_projection_of_another_width_than_the_heads_is_refused() -> None:
    model = BY_NAME["llama"].fresh()
    # As in DeepSeek-V4, whose heads go through a first projection to a lower rank.
    for block in model.model.layers:
        block.self_attn.o_proj = nn.Linear(4 * HEADS, WIDTH)
    with pytest.raises(AnatomyError, match="reads 16 features, which are not those of the config's 4 heads"):
        Anatomy.of(model)


def test_two_possible_output_projections_are_refused() -> None:
    model = BY_NAME["llama"].fresh()
    model.model.layers[0].self_attn.mixer = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(AnatomyError, match="cannot tell which is the output projection: o_proj, mixer"):
        Anatomy.of(model)


def test_recurrent_mixer_is_no_mlp() -> None:
    model = BY_NAME["llama"].fresh()
    block = model.model.layers[0]
    del block.mlp
    block.mixer = nn.Module()
    block.mixer.conv1d = nn.Conv1d(WIDTH, WIDTH, 4)
    with pytest.raises(AnatomyError, match=r"model\.layers\[0\]: cannot tell which module is the MLP"):
        Anatomy.of(model).component("mlp_output", 0)


def test_blocks_that_could_be_two_lists_are_refused() -> None:
    model = BY_NAME["llama"].fresh()
    model.model.more_layers = nn.ModuleList(nn.Identity() for _ in range(LAYERS))
    with pytest.raises(AnatomyError, match=r"found: model\.layers, model\.more_layers"):
        Anatomy.of(model)


def test_layer_out_of_range_is_refused() -> None:
    with pytest.raises(AnatomyError, match=f"layer {LAYERS} is out of range"):
        Anatomy.of(BY_NAME["llama"].shared()).component("block_output", LAYERS)
