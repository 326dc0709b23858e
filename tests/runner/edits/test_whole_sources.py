"""Sources of models that are no decoder language models, against hooks and stock pyvene where it is right."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from source_specs import spec_of

from subvene.interventions._pyvene import pyvene
from subvene.runner.cli._description import describe
from subvene.runner.cli._source import open_source
from subvene.runner.edits.compile import CompileError
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.edits.sources import SourceError
from subvene.runner.intervened.model import IntervenedModel

gru = pyvene.models.gru.modelings_gru
mlp = pyvene.models.mlp.modelings_mlp
WIDTH = 16


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bert(kind: Any) -> Any:
    config = transformers.BertConfig(
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        vocab_size=40,
        initializer_range=0.3,
        pad_token_id=0,
        max_position_embeddings=16,
    )
    return kind(config)


@dataclass(frozen=True)
class Case:
    """A model, a module of it that gives one vector a step or a token, and two inputs."""

    model: Any
    module: str
    base: dict[str, torch.Tensor]
    source: dict[str, torch.Tensor]
    last: int


def case(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if name == "gru":
            model = gru.GRUForClassification(gru.GRUConfig(h_dim=WIDTH, n_layer=2))
            inputs = [{"inputs_embeds": drawn(3, 5, WIDTH, seed=i)} for i in range(2)]
            return Case(model.eval(), "gru.cells[0].output", *inputs, last=4)
        if name == "mlp":
            model = mlp.MLPForClassification(mlp.MLPConfig(h_dim=WIDTH, n_layer=2))
            for parameter in model.parameters():
                parameter.data.normal_(std=0.3)
            inputs = [{"inputs_embeds": drawn(3, 1, WIDTH, seed=i)} for i in range(2)]
            return Case(model.eval(), "mlp.h[0].ff1.output", *inputs, last=0)
        kind = {
            "bert": transformers.BertForMaskedLM,
            "classifier": transformers.BertForSequenceClassification,
        }
        ids = [torch.arange(5 + i, 17 + i).view(3, 4) for i in (0, 9)]
        inputs = [{"input_ids": one} for one in ids]
        return Case(bert(kind[name]).eval(), "bert.encoder.layer[0].output", *inputs, last=3)


MODELS = ["gru", "mlp", "bert", "classifier"]


def swap(module: str, **fields: Any) -> dict[str, Any]:
    default = {"class": "VanillaIntervention", "component": module, "source": {"from": "other"}}
    return {**default, "name": "swap", **fields}


def made(model: Any, *edits: dict[str, Any], source: Any = None) -> IntervenedModel:
    return IntervenedModel.from_spec(spec_of({"other": source or {"column": "other"}}, *edits), model=model)


def logits(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output.logits


@contextmanager
def hooked(model: Any, module: str, hook: Any) -> Iterator[None]:
    path = module.removesuffix(".output").replace("[", ".").replace("]", "")
    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def by_hand(one: Case, read: Sequence[int], edited: Sequence[int]) -> torch.Tensor:
    """The vectors `read` of the source's run put into the vectors `edited` of the base's."""
    kept: list[torch.Tensor] = []
    step = [0]

    def tensor(out: Any) -> torch.Tensor:
        return out[0] if isinstance(out, tuple) else out

    def keep(_m: Any, _a: Any, out: Any) -> None:
        found = tensor(out)
        kept.append(found.reshape(len(found), -1, WIDTH).clone())

    def write(_m: Any, _a: Any, out: Any) -> Any:
        h = tensor(out).clone().reshape(len(values), -1, WIDTH)
        for source, target in zip(read, edited, strict=True):
            if step[0] <= target < step[0] + h.shape[1]:
                h[:, target - step[0]] = values[:, source]
        step[0] += h.shape[1]
        h = h.reshape(tensor(out).shape)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    with hooked(one.model, one.module, keep):
        one.model(**one.source)
    values = torch.cat(kept, 1)
    with hooked(one.model, one.module, write):
        return logits(one.model(**one.base))


@torch.no_grad()
@pytest.mark.parametrize("name", MODELS)
def test_interchange_is_what_plain_hooks_give(name: str) -> None:
    one = case(name)
    read, edited = [0, one.last][: one.last + 1], sorted({0, one.last - 1} - {-1})
    reading = {"from": "other", "positions": {"indices": read}}
    m = made(one.model, swap(one.module, source=reading, positions={"indices": edited}))
    found = logits(m(**one.base, sources={"other": one.source}))
    torch.testing.assert_close(found, by_hand(one, read, edited), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, logits(one.model(**one.base)), atol=1e-4)
    receipt = m.receipt["swap"]
    assert receipt.edited["prompt"] == 3 * len(edited)
    assert (receipt.first, receipt.last) == (edited[0], edited[-1])
    assert (receipt.source.tokens, receipt.source.rows_fed, receipt.source.rows_equal) == (
        3 * len(read),
        3,
        0,
    )
    whole = made(one.model, swap(one.module))
    every = list(range(one.last + 1))
    found = logits(whole(**one.base, sources={"other": one.source}))
    torch.testing.assert_close(found, by_hand(one, every, every), rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("name", ["mlp", "bert"])
@pytest.mark.parametrize(
    ("class_name", "fields"),
    [
        ("VanillaIntervention", {}),
        ("AdditionIntervention", {}),
        ("RotatedSpaceIntervention", {"subspaces": [0], "subspace_partition": [[0, 2, 5]]}),
        ("LowRankRotatedSpaceIntervention", {"low_rank_dimension": 4}),
        ("BoundlessRotatedSpaceIntervention", {}),
        ("SigmoidMaskIntervention", {}),
    ],
)
def test_classes_interchange_as_stock_does(name: str, class_name: str, fields: dict[str, Any]) -> None:
    one = case(name)
    reading = {"from": "other", "positions": {"indices": [0]}}
    edit = swap(
        one.module, positions={"indices": [one.last]}, source=reading, **{"class": class_name}, **fields
    )
    m = made(one.model, edit)
    (ours,) = m.intervenable.interventions.values()
    stock = pyvene.IntervenableModel(
        [{"component": one.module, "intervention": copy.deepcopy(ours.inner), "unit": "pos"}],
        copy.deepcopy(one.model),
    )
    subspaces = {"subspaces": [[fields["subspaces"]] * 3]} if "subspaces" in fields else {}
    locations = {"sources->base": ([[[0]] * 3], [[[one.last]] * 3])}
    expected = logits(stock(one.base, [one.source], locations, **subspaces)[1])
    found = logits(m(**one.base, sources={"other": one.source}))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, logits(one.model(**one.base)), atol=1e-4)


@torch.no_grad()
def test_stock_writes_into_the_steps_of_a_gru_that_are_not_selected() -> None:
    """Why plain hooks are the oracle there: of the base itself as the source, stock makes another output."""
    one = case("gru")
    stock = pyvene.IntervenableModel(
        [{"component": one.module, "intervention": pyvene.VanillaIntervention(embed_dim=WIDTH), "unit": "t"}],
        copy.deepcopy(one.model),
    )
    base = {"inputs_embeds": one.base["inputs_embeds"][:1]}
    found = logits(stock(base, [base], {"sources->base": ([[[1]]], [[[1]]])})[1])
    assert not torch.allclose(found, logits(one.model(**base)), atol=1e-3)


@torch.no_grad()
def test_one_vector_into_all_from_another_module() -> None:
    one = case("bert")
    reading = {"from": "other", "component": "bert.encoder.layer[1].output", "positions": {"indices": [2]}}
    m = made(one.model, swap(one.module, source={**reading, "pair": "broadcast"}))
    value: list[torch.Tensor] = []
    with hooked(one.model, "bert.encoder.layer[1].output", lambda _m, _a, out: value.append(out)):
        one.model(**one.source)
    kept = value[0] if torch.is_tensor(value[0]) else value[0][0]
    with hooked(one.model, one.module, lambda _m, _a, out: kept[:, 2:3].expand(-1, 4, -1)):
        expected = logits(one.model(**one.base))
    found = logits(m(**one.base, sources={"other": one.source}))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_padding_is_no_vector() -> None:
    one = case("classifier")
    ids = torch.tensor([[0, 0, 21, 22], [23, 24, 25, 26]])
    base = torch.tensor([[5, 6, 0, 0], [7, 8, 9, 10]])
    given = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    m = made(one.model, swap(one.module, positions={"indices": [0]}))
    found = logits(m(input_ids=base, attention_mask=(base != 0).long(), sources={"other": given}))
    for row, (source, target) in enumerate(zip(ids, base, strict=True)):
        # Left padding has positions of its own in BERT: the whole row, its mask with it.
        inputs = {"input_ids": source[None], "attention_mask": (source != 0).long()[None]}
        alone = Case(
            one.model,
            one.module,
            {"input_ids": target[None], "attention_mask": (target != 0).long()[None]},
            inputs,
            3,
        )
        expected = by_hand(alone, [int((source == 0).sum())], [0])
        torch.testing.assert_close(found[row], expected[0], rtol=1e-5, atol=1e-5)


def test_what_does_not_fit_is_refused_by_name() -> None:
    one = case("gru")
    m = made(one.model, swap(one.module))
    short = {"inputs_embeds": one.source["inputs_embeds"][:, :3]}
    refused = {
        "expected the inputs of its run": {},
        "expected 3 rows": {"other": {"inputs_embeds": drawn(2, 5, WIDTH, seed=3)}},
        "row 0: 5 vectors of the base are edited and 3 of": {"other": short},
        "no source is called": {"them": one.source},
    }
    for reason, given in refused.items():
        with pytest.raises(SourceError, match=reason):
            m(**one.base, sources=given)
    late = {"from": "other", "positions": {"indices": [7]}}
    with pytest.raises(SourceError, match="row 0: no token of the source"):
        made(one.model, swap(one.module, source=late, positions={"indices": [0]}))(
            **one.base, sources={"other": one.source}
        )
    with pytest.raises(NotSteeredError, match="equal to the base"):
        m(**one.base, sources={"other": one.base})
    with pytest.raises(PositionError, match="generate"):
        m.generate_ids(torch.ones(1, 3, dtype=torch.long))
    assert not any(module._forward_hooks for module in one.model.modules())


def test_what_cannot_be_said_of_such_a_model_is_refused_when_it_is_compiled() -> None:
    one = case("bert")
    for reason, fields in {
        "indices from the start": {"positions": {"last": 1}},
        "a module's path": {"source": {"from": "other", "positions": {"last": 1}}},
        "expected equal or broadcast": {"source": {"from": "other", "pair": "first"}},
    }.items():
        with pytest.raises(CompileError, match=reason):
            made(one.model, swap(one.module, **fields))
    sources = {"other": {"column": "a", "interventions": ["first"]}, "deep": {"column": "b"}}
    edits = [swap(one.module), swap(one.module, name="first", source={"from": "deep"})]
    with pytest.raises(CompileError, match="run as they are"):
        IntervenedModel.from_spec(spec_of(sources, *edits), model=one.model)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gru", "bert"])
def test_artifacts_are_reloaded_and_stock_is_not_named(name: str, tmp_path: Path) -> None:
    one = case(name)
    m = made(one.model, swap(one.module, **{"class": "RotatedSpaceIntervention", "seed": 3}))
    expected = logits(m(**one.base, sources={"other": one.source}))
    m.save_pretrained(tmp_path / "artifact")
    again = IntervenedModel.from_pretrained(tmp_path / "artifact", model=one.model)
    assert torch.equal(logits(again(**one.base, sources={"other": one.source})), expected)
    shown = describe(open_source(tmp_path / "artifact"))
    assert shown["stock_pyvene"] is False
    assert "no decoder" in str(shown["stock_problem"])
    assert "no decoder" in (tmp_path / "artifact" / "README.md").read_text()
