"""States of sources put into bases: against plain hooks and stock pyvene, and cells against each other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from tracing_by_hand import patched_by_hand, states_by_hand

from subvene.interventions._pyvene import pyvene
from subvene.interventions.pyvene_inner import make_inner
from subvene.interventions.rotation import parametrized, plain_state
from subvene.runner.edits.sources import SourceError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.interchange import Interchanges
from subvene.runner.training.passes import frozen
from subvene.runner.training.rotations import edit_of, options_of, train_cells
from subvene.specs.recipes.das import DASSpec, PlaceSpec, RotatedClass

WIDTH, HEADS, VOCAB, LAYERS = 32, 4, 40, 3
BASE = [[5, 6, 7, 8, 9], [11, 12, 13], [3, 4, 30, 31, 32, 33]]
SOURCE = [[21, 22, 23], [24, 25, 26, 27], [28, 29, 34]]
_COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}
_COMMON |= {"initializer_range": 0.3}
_LLAMA = _COMMON | {
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
CONFIGS = {
    "llama": transformers.LlamaConfig(**_LLAMA),
    "gpt2": transformers.GPT2Config(**_COMMON, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS),
    "gpt_neox": transformers.GPTNeoXConfig(**_LLAMA),
}
PLACES = {
    "second": PlaceSpec(base={"indices": [1]}, source={"indices": [2]}),
    "last": PlaceSpec(base={"last": 1}, source={"last": 1}),
    "two": PlaceSpec(base={"first": 2}, source={"last": 2}),
}
TOKENS = {
    "second": (lambda n: [1], lambda n: [2]),
    "last": (lambda n: [n - 1], lambda n: [n - 1]),
    "two": (lambda n: [0, 1], lambda n: [n - 2, n - 1]),
}
CLASSES: dict[RotatedClass, dict[str, Any]] = {
    "LowRankRotatedSpaceIntervention": {"rank": 2},
    "RotatedSpaceIntervention": {"rank": 3},
    "BoundlessRotatedSpaceIntervention": {},
    "SigmoidMaskRotatedSpaceIntervention": {},
}


def tiny(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.AutoModelForCausalLM.from_config(CONFIGS[name], dtype=torch.float32).eval()


def runs_of(model: Any, site: Any = "block_output", places: Any = PLACES, **fields: Any) -> Interchanges:
    base, source = fields.get("base", BASE), fields.get("source", SOURCE)
    data: list[dict[str, str]] = [{} for _ in base]
    return Interchanges(
        Anatomy.of(model), None, base, source, data, site=site, places=places, pad_id=0, pass_tokens=12
    )


def whole(_base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return source


@pytest.mark.parametrize("site", ["block_output", "mlp_output", "attention_output", "attention_heads"])
@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_whole_swap_is_what_plain_hooks_do(architecture: str, site: str) -> None:
    model = tiny(architecture)
    runs = runs_of(model, site)
    found = {
        swaps.layer: swaps.logits([(name, whole) for name in PLACES], torch.arange(3)).log_softmax(-1)
        for swaps in runs.at(range(LAYERS))
    }
    assert runs.note is None
    for row, (base, source) in enumerate(zip(BASE, SOURCE, strict=True)):
        states = states_by_hand(model, source, [site])
        for layer in range(LAYERS):
            for i, (own, other) in enumerate(TOKENS.values()):
                # The state of the source's token, where the base's own stands.
                aligned = torch.zeros(len(base), *states[site, layer].shape[1:])
                aligned[own(len(base))] = states[site, layer][other(len(source))]
                known = patched_by_hand(model, base, {(site, layer): aligned}, site, [layer], own(len(base)))
                torch.testing.assert_close(found[layer][i, row].double(), known, rtol=0, atol=1e-5)


def spec_of(name: RotatedClass = "LowRankRotatedSpaceIntervention", **fields: Any) -> DASSpec:
    declared = {"key": "das", "data": {"file": "x.jsonl"}, "split": {"by": ["a"]}, "positions": PLACES}
    declared |= {"class": name, "batch_size": 2, "learning_rate": 0.05, "epochs": 3, **CLASSES[name]}
    return DASSpec.model_validate(declared | fields)


def trained(model: Any, spec: DASSpec, layer: int = 1, pass_tokens: int = 4096, **fields: Any) -> Any:
    with frozen(model):
        swaps = next(runs_of(model, spec.site, spec.places, **fields).at([layer]))
        rows, labels = torch.arange(len(fields.get("base", BASE))), torch.tensor([17, 18, 19])
        cells = train_cells(swaps, spec, labels, rows, seed=3, pass_tokens=pass_tokens, width=WIDTH)
    return swaps, cells


def test_every_way_of_passing_gives_the_same_logits_and_gradients() -> None:
    model, spec = tiny("gpt2"), spec_of()
    swaps, cells = trained(model, spec, layer=0)
    found = []
    for way in ("from_token", "from_layer", "whole"):
        inners = {place: copy.deepcopy(cell.inner).requires_grad_(True) for place, cell in cells.items()}
        edits = [(place, edit_of(spec, inner)) for place, inner in inners.items()]
        before = swaps.computed
        logits = swaps.logits(edits, torch.arange(3), torch.tensor([2, 0, 1]), way=way)
        logits.log_softmax(-1)[..., 17].sum().backward()
        gradients = [p.grad for inner in inners.values() for p in inner.parameters() if p.grad is not None]
        assert len(gradients) == len(PLACES)
        found.append((logits.detach(), gradients, swaps.computed - before))
    for logits, gradients, _ in found[1:]:
        torch.testing.assert_close(logits, found[0][0], rtol=0, atol=1e-5)
        for own, other in zip(gradients, found[0][1], strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-4)
    # Rows of 5, 3 and 6 tokens; whole ones, padded, are 18 for each of 3 places.
    assert [computed for *_, computed in found] == [(5 + 1 + 6) * 3 * 2, 18 * 3 * 2, 18 * 3 * 3]


def test_texts_run_once_whatever_is_asked_of_them() -> None:
    runs = runs_of(tiny("llama"), base=[*BASE, *BASE], source=[*SOURCE, *BASE])
    runs.plan([0, 2])
    assert len(runs.texts.ids) == 6
    assert runs.said("base").tolist()[:3] == runs.said("source").tolist()[3:]
    for swaps in runs.at([0, 2]):
        swaps.logits([("last", whole)], torch.arange(6))
    runs.likeliest()
    assert runs.texts.passes == 1


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_is_trained_and_kept(name: RotatedClass) -> None:
    spec = spec_of(name, epochs=8, mask_learning_rate=1.0)
    model = tiny("llama")
    before = {n: p.clone() for n, p in model.named_parameters()}
    _, cells = trained(model, spec)
    for cell in cells.values():
        state = plain_state(cell.inner)
        rotation = state["rotation"]
        assert rotation.shape == (WIDTH, 2 if "LowRank" in name else WIDTH)
        gram = rotation.T @ rotation
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
        if "temperature" in state:
            # The schedule's end, whatever the loss says; as it cools, the loss need not fall.
            assert float(state["temperature"]) == pytest.approx(0.1)
        else:
            assert cell.losses[-1] < cell.losses[0]
        again = make_inner(options_of(spec, WIDTH), {})
        again.load_state_dict(
            parametrized(again, {k: v for k, v in state.items() if k not in ("embed_dim",)}), strict=False
        )
        kept = plain_state(again)
        assert all(torch.equal(kept[key], state[key]) for key in state)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in model.named_parameters())


def test_a_cell_is_trained_as_if_it_were_alone() -> None:
    # Adam's first steps are signs, which make a rate's worth of the rounding of a pass packed otherwise:
    # in double precision there is none to speak of.
    model = tiny("gpt2").double()
    rate = {"learning_rate": 1e-2}
    _, together = trained(model, spec_of(**rate))
    _, in_parts = trained(model, spec_of(**rate), pass_tokens=1)
    for place, rules in PLACES.items():
        _, alone = trained(model, spec_of(positions={place: rules}, **rate))
        for cells in (together, in_parts):
            torch.testing.assert_close(cells[place].losses, alone[place].losses, rtol=0, atol=1e-4)
            own, other = (plain_state(one[place].inner)["rotation"] for one in (cells, alone))
            torch.testing.assert_close(own, other, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
def test_a_trained_rotation_does_in_stock_pyvene_what_it_does_here(name: RotatedClass) -> None:
    base, source = [row[:3] for row in BASE], [row[:3] for row in SOURCE]
    place = {"second": PLACES["second"]}
    model, spec = tiny("llama"), spec_of(name, positions=place, rank=None)
    swaps, cells = trained(model, spec, base=base, source=source)
    inner = cells["second"].inner
    with torch.no_grad():
        found = swaps.logits([("second", edit_of(spec, inner))], torch.arange(3))[0]
        representation: dict[str, Any] = {"layer": 1, "component": "block_output", "unit": "pos"}
        representation |= {"intervention": copy.deepcopy(inner)}
        stock = pyvene.IntervenableModel([representation], copy.deepcopy(model))
        locations = {"sources->base": ([[[2]] * 3], [[[1]] * 3])}
        chosen = {"subspaces": [[[0]] * 3]} if name == "RotatedSpaceIntervention" else {}
        _, output = stock(
            {"input_ids": torch.tensor(base)}, [{"input_ids": torch.tensor(source)}], locations, **chosen
        )
    torch.testing.assert_close(found, output.logits[:, -1], rtol=1e-4, atol=1e-5)


def test_lengths_that_do_not_match_are_refused_with_the_row() -> None:
    places = {"p": PlaceSpec(base={"first": 3}, source={"first": 4})}
    with pytest.raises(SourceError, match="row 0: 3 tokens of the base are edited and 4 of the source"):
        runs_of(tiny("gpt2"), places=places, source=[[*s, 1] for s in SOURCE])  # before anything has run
