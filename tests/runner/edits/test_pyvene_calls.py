"""pyvene's own arguments and methods on our IntervenableModel: as declared, or refused by name."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch

from subvene.interventions import PyveneIntervention
from subvene.interventions._pyvene import pyvene
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.pyvene_calls import PyveneCallError

BASE = torch.tensor([[1, 5, 9, 13, 17, 21], [1, 7, 11, 15, 19, 23]])
SOURCE = torch.tensor([[1, 40, 41, 42, 43, 44], [1, 50, 51, 52, 53, 54]])
LENGTHS = [6, 6]


def vanilla(**fields: Any) -> dict[str, Any]:
    place = {"site": "block_output", "layer": 1, "source": {"key": "v"}}
    return {"kind": "pyvene", "class": "VanillaIntervention", **place, **fields}


def swapped(model: Any, **fields: Any) -> Any:
    return oracle.intervened(model, vanilla(positions={"indices": [3]}, **fields))


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "sources": (([{"input_ids": SOURCE}],), {}),
    "sources by name": ((), {"sources": {"a": {"input_ids": SOURCE}}}),
    "unit_locations": ((), {"unit_locations": {"base": 3}}),
    "unit_locations by place": ((None, {"base": 0}), {}),
    "source_representations": ((), {"source_representations": torch.ones(32)}),
    "activations_sources": ((), {"activations_sources": {"k": torch.ones(32)}}),
    "subspaces": ((), {"subspaces": [0, 1]}),
    "timestep_selector": ((), {"timestep_selector": [lambda i, x: True]}),
    "intervention_additional_kwargs": ((), {"intervention_additional_kwargs": {"positions": BASE > 0}}),
    "output_original_output": ((), {"output_original_output": True}),
    "return_dict": ((), {"return_dict": True}),
    "intervene_on_prompt": ((), {"intervene_on_prompt": False}),
}


@pytest.mark.parametrize("method", ["forward", "generate"])
@pytest.mark.parametrize("call", CALLS)
def test_what_a_call_says_instead_of_the_spec_is_refused(method: str, call: str) -> None:
    m = swapped(oracle.tiny("llama"))
    args, kwargs = CALLS[call]
    run = getattr(m.intervenable, method)
    options = {"prompt_lengths": torch.tensor(LENGTHS)} if method == "forward" else {"max_new_tokens": 2}
    with pytest.raises(PyveneCallError, match=call.partition(" ")[0]) as refusal:
        run({"input_ids": BASE}, *args, **kwargs, **options)
    said = str(refusal.value)
    assert "declare" in said or "m.disabled()" in said or "the pair" in said
    assert m.receipt is None
    assert not any(module._forward_hooks for module in m.model.modules())


def test_stock_defaults_say_nothing() -> None:
    m = swapped(oracle.tiny("llama"))
    nothing = {"sources": None, "unit_locations": None, "subspaces": None, "output_original_output": False}
    lengths = torch.tensor(LENGTHS)
    with torch.no_grad():
        _, plain = m.intervenable({"input_ids": BASE}, prompt_lengths=lengths)
        _, spelt = m.intervenable({"input_ids": BASE}, prompt_lengths=lengths, **nothing)
    assert torch.equal(plain.logits, spelt.logits)
    assert m.receipt[0].edited["prompt"] == 2
    options = {"max_new_tokens": 3, "do_sample": False}
    _, plain = m.intervenable.generate({"input_ids": BASE}, **options)
    _, spelt = m.intervenable.generate({"input_ids": BASE}, intervene_on_prompt=True, **nothing, **options)
    assert torch.equal(plain, spelt)
    assert m.receipt[0].edited["prompt"] == 2


def test_a_misspelt_argument_is_not_lost_in_the_models_keywords() -> None:
    m = swapped(oracle.tiny("llama"))
    with pytest.raises(PyveneCallError, match=r"did you mean strengths\?"):
        m.intervenable({"input_ids": BASE}, prompt_lengths=torch.tensor(LENGTHS), strength=2.0)
    with pytest.raises(PyveneCallError, match="one positional argument"):
        m.intervenable({"input_ids": BASE}, None, None, None, None)


def test_labels_reach_the_model() -> None:
    m = swapped(oracle.tiny("llama"))
    with torch.no_grad():
        _, output = m.intervenable({"input_ids": BASE}, labels=BASE, prompt_lengths=torch.tensor(LENGTHS))
        expected = torch.nn.functional.cross_entropy(
            output.logits[:, :-1].flatten(0, 1), BASE[:, 1:].flatten()
        )
    torch.testing.assert_close(output.loss, expected)


def test_pyvenes_classes_beside_ours_are_refused() -> None:
    ours = next(iter(swapped(oracle.tiny("llama")).intervenable.interventions.values()))
    theirs = pyvene.ZeroIntervention(embed_dim=32)
    both = [
        {"component": f"model.layers[{layer}].output", "intervention": edit}
        for layer, edit in enumerate((ours, theirs))
    ]
    mixed = IntervenableModel(both, oracle.tiny("llama"))
    for call in (mixed, mixed.generate):
        with pytest.raises(PyveneCallError, match="a class of pyvene's own beside subvene's"):
            call({"input_ids": BASE})


@pytest.mark.parametrize(
    ("method", "instead"),
    [
        ("train_alignment", "get_trainable_parameters"),
        ("eval_alignment", "m.intervenable"),
        ("enable_model_gradients", "m.model.requires_grad_"),
        ("get_cached_activations", "collected"),
        ("get_cached_hot_activations", "no interventions are linked"),
        ("load", "IntervenedModel.from_pretrained"),
        ("load_intervention", "IntervenedModel.from_pretrained"),
        ("save_intervention", "save_pretrained"),
    ],
)
def test_methods_that_would_do_something_else_are_refused(method: str, instead: str) -> None:
    m = swapped(oracle.tiny("llama"))
    before = {name: p.requires_grad for name, p in m.model.named_parameters()}
    with pytest.raises(PyveneCallError, match=instead):
        getattr(m.intervenable, method)()
    assert {name: p.requires_grad for name, p in m.model.named_parameters()} == before


def test_temperature_reaches_every_mask_and_is_kept_in_its_precision() -> None:
    entry = vanilla() | {"class": "BoundlessRotatedSpaceIntervention"}
    m = oracle.intervened(oracle.tiny("llama"), entry)
    (edit,) = m.intervenable.interventions.values()
    assert isinstance(edit, PyveneIntervention)
    temperature = edit.inner.temperature
    with torch.no_grad():
        before = m(BASE).logits
        m.intervenable.set_temperature(torch.tensor(0.25, dtype=torch.bfloat16))
        assert not torch.equal(m(BASE).logits, before)
    assert edit.inner.temperature is temperature
    assert (temperature.dtype, temperature.item()) == (torch.float32, 0.25)
    with pytest.raises(PyveneCallError, match="no intervention here has a mask"):
        swapped(oracle.tiny("llama")).intervenable.set_temperature(1.0)


def test_it_can_be_printed() -> None:
    assert str(swapped(oracle.tiny("llama")).intervenable) == (
        "IntervenableModel on LlamaForCausalLM: model.layers[1].output"
    )
