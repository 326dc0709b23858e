"""Sources against stock pyvene 0.1.8 where that is right: parallel, whole location lists, fresh objects.

Where it is not (serial, other positions in every row) the oracle is plain hooks, in `test_sources.py`.
"""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
import transformers
from source_specs import spec_of, swap

from subvene.interventions._pyvene import pyvene
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs.interventions import PyveneClass

WIDTH, HEADS, VOCAB = 32, 4, 40
BASE = torch.tensor([[5, 6, 7, 8, 9], [11, 12, 13, 14, 15]])
SOURCE = torch.tensor([[21, 22, 23], [24, 25, 26]])
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_LLAMA = _COMMON | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_LLAMA),
    "gemma": transformers.GemmaConfig(**_LLAMA, num_key_value_heads=4, head_dim=8),
    "gpt2": transformers.GPT2Config(**_COMMON, n_embd=WIDTH, n_layer=2, n_head=HEADS),
    "neox": transformers.GPTNeoXConfig(**_LLAMA),
}
# PCA's components are constructor arguments: `tests/interventions/test_pyvene_class.py` has it.
WITH_SOURCE = [
    name
    for name in get_args(PyveneClass)
    if name
    not in ("ZeroIntervention", "CollectIntervention", "SkipIntervention", "PCARotatedSpaceIntervention")
]
FIELDS: dict[str, dict[str, Any]] = {
    "LowRankRotatedSpaceIntervention": {"low_rank_dimension": 6},
    "JumpReLUAutoencoderIntervention": {"low_rank_dimension": 6},
    "AutoencoderIntervention": {"latent_dim": 7},
}
SPACES = {"subspaces": [0, 3], "subspace_partition": [[0, 2], [1, 3, 4], [5], [6, 7]]}


def tiny(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()


def ours(model: Any, *edits: Any, **sources: Any) -> IntervenedModel:
    declared = {name: {"column": name} for name in sources or ("other",)}
    return IntervenedModel.from_spec(spec_of(declared, *edits), model=model)


def drawn(m: IntervenedModel) -> list[Any]:
    """Give every edit parameters of its own, and return copies of their classes, for stock pyvene."""
    generator = torch.Generator().manual_seed(4)
    for edit in m.intervenable.interventions.values():
        for name, parameter in edit.inner.named_parameters():
            if parameter.is_floating_point() and not name.startswith(("rotate_layer", "temperature")):
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return [copy.deepcopy(edit.inner) for edit in m.intervenable.interventions.values()]


@torch.no_grad()
def stock(model: Any, representations: list[Any], sources: list[Any], locations: Any, **kwargs: Any) -> Any:
    made = pyvene.IntervenableModel(representations, copy.deepcopy(model))
    inputs = [None if ids is None else {"input_ids": ids} for ids in sources]
    return made({"input_ids": BASE}, inputs, locations, **kwargs)[1].logits


@torch.no_grad()
def run(m: IntervenedModel, **sources: torch.Tensor) -> torch.Tensor:
    inputs = {name: {"input_ids": ids} for name, ids in sources.items()}
    found: torch.Tensor = m(BASE, prompt_lengths=[5, 5], sources=inputs).logits
    return found


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", WITH_SOURCE)
def test_every_class_interchanges_as_stock_does(name: str) -> None:
    model = tiny("llama")
    reading = {"from": "other", "positions": {"indices": [0]}}
    # One token: of several, stock makes one long vector, for which its parameters are too short.
    edit = swap(1, positions={"indices": [3]}, source=reading, **{"class": name, **FIELDS.get(name, {})})
    m = ours(model, edit)
    (inner,) = drawn(m)
    component = {"component": "model.layers[1].output", "intervention": inner, "unit": "pos"}
    locations = {"sources->base": ([[[0], [0]]], [[[3], [3]]])}
    expected = stock(model, [component], [SOURCE], locations)
    found = run(m, other=SOURCE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, model(BASE).logits, atol=1e-3)


@pytest.mark.parametrize(
    "name", ["Vanilla", "Addition", "Subtraction", "RotatedSpace", "LowRankRotatedSpace"]
)
def test_subspaces(name: str) -> None:
    model = tiny("llama")
    name = f"{name}Intervention"
    fields = {"low_rank_dimension": 8} if name.startswith("LowRank") else {}
    m = ours(model, swap(1, **{"class": name, **SPACES, **fields}))
    (inner,) = drawn(m)
    component = {"component": "model.layers[1].output", "intervention": inner, "unit": "pos"}
    locations = {"sources->base": ([[[2], [2]]], [[[4], [4]]])}
    chosen = [[SPACES["subspaces"]] * 2]
    expected = stock(model, [component], [SOURCE], locations, subspaces=chosen)
    torch.testing.assert_close(run(m, other=SOURCE), expected, rtol=1e-4, atol=1e-5)


def test_subspaces_of_each_row() -> None:
    model = tiny("llama")
    fields = {"class": "RotatedSpaceIntervention", "subspace_partition": SPACES["subspace_partition"]}
    both = run(ours(model, swap(1, **fields, subspaces=[[0], [1, 2]])), other=SOURCE)
    for row, subspaces in enumerate([[0], [1, 2]]):
        alone = run(ours(model, swap(1, **fields, subspaces=subspaces)), other=SOURCE)
        torch.testing.assert_close(both[row], alone[row], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(both[1 - row], alone[1 - row], atol=1e-4)


def test_several_sources() -> None:
    model = tiny("llama")
    other = SOURCE.flip(0) + 5
    edits = [
        swap(0, "one", source={"from": "a", "positions": {"indices": [0]}}, positions={"indices": [1]}),
        swap(1, "two", source={"from": "b", "positions": {"indices": [2]}}, positions={"indices": [3]}),
    ]
    m = ours(model, *edits, a=True, b=True)
    components = [
        {"component": f"model.layers[{layer}].output", "intervention": inner, "unit": "pos"}
        for layer, inner in enumerate(drawn(m))
    ]
    locations = {"sources->base": ([[[0], [0]], [[2], [2]]], [[[1], [1]], [[3], [3]]])}
    expected = stock(model, components, [SOURCE, other], locations)
    torch.testing.assert_close(run(m, a=SOURCE, b=other), expected, rtol=1e-4, atol=1e-5)


# Stock has no module for these (pyvene 0.1.8: an empty path, a misspelt `hhead_dim`).
STOCK_CANNOT = {
    *(("neox", f"{head}{part}_output") for head in ("", "head_") for part in ("query", "key", "value")),
    ("gemma", "head_value_output"),
}


@torch.no_grad()
def by_hand(model: Any, name: str, heads: list[int]) -> torch.Tensor:
    """The last token's query, key or value of some heads swapped, as the attention modules lay them out."""
    which = ("query", "key", "value").index(name.removeprefix("head_").removesuffix("_output"))
    if hasattr(model, "gpt_neox"):
        module, parts = model.gpt_neox.layers[1].attention.query_key_value, 3
    else:
        module, parts, which = model.model.layers[1].self_attn.v_proj, 1, 0
    kept: list[torch.Tensor] = []

    def read(_module: Any, _args: Any, out: torch.Tensor) -> None:
        kept.append(out[:, 2].view(2, HEADS, parts, -1))

    def write(_module: Any, _args: Any, out: torch.Tensor) -> torch.Tensor:
        view = out.clone().view(*out.shape[:2], HEADS, parts, -1)
        view[:, 4, heads, which] = kept[0][:, heads, which]
        return view.view_as(out)

    for ids, hook in ((SOURCE, read), (BASE, write)):
        handle = module.register_forward_hook(hook)
        found: torch.Tensor = model(ids).logits
        handle.remove()
    return found


COMPONENTS = [
    "block_input",
    "mlp_activation",
    "mlp_input",
    "attention_input",
    "query_output",
    "key_output",
    "value_output",
    "attention_value_output",
]


@pytest.mark.parametrize("name", COMPONENTS)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_components_by_pyvenes_names(architecture: str, name: str) -> None:
    model = tiny(architecture)
    edit = swap(1, site=None, component=name, source={"from": "other"}, **{"class": "VanillaIntervention"})
    m = ours(model, {key: value for key, value in edit.items() if value is not None})
    component = {
        "layer": 1,
        "component": name,
        "unit": "pos",
        "intervention_type": pyvene.VanillaIntervention,
    }
    locations = {"sources->base": ([[[2], [2]]], [[[4], [4]]])}
    if (architecture, name) in STOCK_CANNOT:
        with pytest.raises(AttributeError):
            stock(model, [component], [SOURCE], locations)
        expected = by_hand(model, name, list(range(HEADS)))
    else:
        expected = stock(model, [component], [SOURCE], locations)
    found = run(m, other=SOURCE)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, model(BASE).logits, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["head_attention_value_output", "head_query_output", "head_key_output", "head_value_output"]
)
@pytest.mark.parametrize("architecture", CONFIGS)
def test_heads(architecture: str, name: str) -> None:
    model = tiny(architecture)
    place = {"component": name, "heads": [1, 3]}
    edit = {key: value for key, value in swap(1, **place).items() if key != "site"}
    m = ours(model, edit)
    component = {
        "layer": 1,
        "component": name,
        "unit": "h.pos",
        "intervention_type": pyvene.VanillaIntervention,
        "max_number_of_units": 2,
    }
    heads = [[1, 3], [1, 3]]
    locations = {"sources->base": ([[heads, [[2], [2]]]], [[heads, [[4], [4]]]])}
    if (architecture, name) in STOCK_CANNOT:
        with pytest.raises(AttributeError):
            stock(model, [component], [SOURCE], locations)
        expected = by_hand(model, name, [1, 3])
    else:
        expected = stock(model, [component], [SOURCE], locations)
    torch.testing.assert_close(run(m, other=SOURCE), expected, rtol=1e-4, atol=1e-5)


def test_heads_that_are_not_there() -> None:
    model = tiny("llama")
    edit = {
        key: value for key, value in swap(1, component="head_key_output", heads=[4]).items() if key != "site"
    }
    with pytest.raises(CompileError, match="heads: expected heads from 0 to 3, found 4"):
        ours(model, edit)
    with pytest.raises(CompileError, match=r"interventions\[0\].heads: expected a head from 0 to 3"):
        ours(model, swap(1, site="attention_heads", heads=[4]))
