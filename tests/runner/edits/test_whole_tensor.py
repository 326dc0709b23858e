"""Models that are no decoder language models: modules by path, whole tensors, equal to stock pyvene."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
import transformers

from subvene.interventions import TensorError
from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.cli._description import describe
from subvene.runner.cli._source import open_source
from subvene.runner.edits.compile import CompileError
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.edits.whole_tensor import WholeTensorModel
from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import AnatomyError
from subvene.specs import InterventionSpec

gru = pyvene.models.gru.modelings_gru
mlp = pyvene.models.mlp.modelings_mlp
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [3, 14, 15, 16]])
_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
_TEXT = {"vocab_size": 40, "initializer_range": 0.3, "pad_token_id": 0}


def _draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _bert(kind: Any = transformers.BertForMaskedLM) -> Any:
    return kind(transformers.BertConfig(**_SMALL, **_TEXT, max_position_embeddings=16))


def _esm() -> Any:
    return transformers.EsmForMaskedLM(
        transformers.EsmConfig(**_SMALL, **_TEXT, mask_token_id=1, max_position_embeddings=16)
    )


def _t5() -> Any:
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes, vocab_size=40, decoder_start_token_id=0)
    )


def _resnet() -> Any:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=3
    )
    return transformers.ResNetForImageClassification(config)


@dataclass(frozen=True)
class Case:
    """A model, a place in it, what it is called with, and how many vectors of a row are there."""

    name: str
    build: Callable[[], Any]
    component: str
    width: int
    inputs: dict[str, torch.Tensor]
    vectors: int
    calls: int = 1

    def __repr__(self) -> str:
        return self.name

    def model(self) -> Any:
        return copy.deepcopy(_built(self.build))


@cache
def _built(build: Callable[[], Any]) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return build().eval()


STEPS = {"inputs_embeds": _draw(3, 5, 16)}
TEXT = {"input_ids": IDS}
CASES = [
    Case(
        "gru",
        lambda: gru.GRUForClassification(gru.GRUConfig(h_dim=16, n_layer=2)),
        "gru.cells[0].output",
        16,
        STEPS,
        5,
        calls=5,
    ),
    Case(
        "mlp",
        lambda: mlp.MLPForClassification(mlp.MLPConfig(h_dim=16, n_layer=2)),
        "mlp.h[0].ff1.output",
        16,
        {"inputs_embeds": _draw(3, 1, 16, seed=1)},
        1,
    ),
    Case("bert", _bert, "bert.encoder.layer[0].output", 16, TEXT, 4),
    Case("esm", _esm, "esm.encoder.layer[0].intermediate.output", 24, TEXT, 4),
    Case("t5_encoder", _t5, "encoder.block[0].output", 16, TEXT | {"decoder_input_ids": IDS[:, :3]}, 4),
    Case(
        "t5_decoder",
        _t5,
        "decoder.block[1].layer[2].DenseReluDense.wo.output",
        16,
        TEXT | {"decoder_input_ids": IDS[:, :3]},
        3,
    ),
    Case(
        "resnet",
        _resnet,
        "resnet.encoder.stages[0].layers[0].layer[0].convolution.output",
        4,  # the last dimension is the width of the image there
        {"pixel_values": _draw(3, 3, 16, 16, seed=2)},
        8 * 4,
    ),
]
every_case = pytest.mark.parametrize("case", CASES, ids=repr)
BY_NAME = {case.name: case for case in CASES}
PADDED = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])


def entry(component: str, **fields: Any) -> dict[str, Any]:
    source = (
        {}
        if fields.get("class") in ("ZeroIntervention", "CollectIntervention", "SkipIntervention")
        else {"source": {"key": "s"}}
    )
    return (
        {"kind": "pyvene", "class": "AdditionIntervention", "name": "it", "component": component}
        | source
        | (fields)
    )


def compiled(model: Any, *entries: dict[str, Any], width: int = 16) -> IntervenedModel:
    spec = InterventionSpec.model_validate({"subvene": 1, "model": {"name": "any"}, "interventions": entries})
    return IntervenedModel.from_spec(spec, model=model, tensors={"s": _draw(width, seed=7)})


def logits(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output.logits


def hooks(model: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@every_case
@pytest.mark.parametrize("name", ["AdditionIntervention", "VanillaIntervention", "ZeroIntervention"])
@torch.no_grad()
def test_equal_to_stock_pyvene(case: Case, name: str) -> None:
    model = case.model()
    m = compiled(model, entry(case.component, **{"class": name}), width=case.width)
    source = {} if name == "ZeroIntervention" else {"source_representation": _draw(case.width, seed=7)}
    stock = pyvene.IntervenableModel(
        [{"component": case.component, "intervention": getattr(pyvene, name)(**source)}], case.model()
    )
    plain, expected = logits(model(**case.inputs)), logits(stock(case.inputs, unit_locations=None)[1])
    assert torch.equal(logits(m(**case.inputs)), expected)
    assert not torch.equal(expected, plain)
    receipt = m.receipt["it"]
    assert receipt.calls == case.calls
    assert receipt.edited == {"prompt": 3 * case.vectors, "cursor": 0, "response": 0}
    assert (receipt.first, receipt.last, receipt.rows) == (0, case.vectors - 1, 3)
    assert hooks(model) == 0
    with m.disabled():
        assert torch.equal(logits(m(**case.inputs)), plain)
    assert m.receipt is None
    _, through_pyvene = m.intervenable(dict(case.inputs), unit_locations=None)
    assert torch.equal(logits(through_pyvene), expected)


@torch.no_grad()
def test_the_input_of_a_module_is_edited_for_that_module_alone() -> None:
    # Stock pyvene writes into the tensor, which key, value and the residual stream read as well.
    m = compiled(BY_NAME["bert"].model(), entry("bert.encoder.layer[1].attention.self.query.input"))
    edited = m(IDS).logits
    query = m.model.bert.encoder.layer[1].attention.self.query
    handle = query.register_forward_pre_hook(lambda _module, args: (args[0] + _draw(16, seed=7),))
    assert torch.equal(edited, m.model(IDS).logits)
    handle.remove()
    assert not torch.equal(edited, m.model(IDS).logits)
    assert m.receipt["it"].tokens == 12


@torch.no_grad()
def test_the_first_argument_is_the_models_main_input() -> None:
    for name, inputs in (("resnet", "pixel_values"), ("bert", "input_ids")):
        case = BY_NAME[name]
        m = compiled(case.model(), entry(case.component), width=case.width)
        assert torch.equal(logits(m(case.inputs[inputs])), logits(m(**case.inputs)))


@torch.no_grad()
def test_strengths_are_by_row() -> None:
    case = BY_NAME["gru"]
    m = compiled(case.model(), entry(case.component))
    plain, edited = logits(m.model(**case.inputs)), logits(m(**case.inputs))
    found = logits(m(**case.inputs, strengths=[0.0, 1.0, 0.0]))
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    assert torch.equal(found[1], edited[1])
    assert m.receipt["it"].tokens == 5


@torch.no_grad()
def test_two_edits_of_tensors_of_different_shapes_are_counted_apart() -> None:
    case = BY_NAME["t5_encoder"]
    m = compiled(
        case.model(),
        entry(case.component),
        entry(BY_NAME["t5_decoder"].component, name="second", **{"class": "ZeroIntervention"}),
    )
    m(**case.inputs)
    assert (m.receipt["it"].tokens, m.receipt["second"].tokens) == (12, 9)


@torch.no_grad()
def test_a_module_that_never_runs_fails_the_run() -> None:
    m = compiled(BY_NAME["esm"].model(), entry("esm.contact_head.regression.input"))
    with pytest.raises(NotSteeredError, match="'it'"):
        m(IDS)
    m(IDS, must_act=False)
    assert m.receipt["it"].tokens == 0


@pytest.mark.parametrize("rule", ["prompt", "response", "last_prompt_token", {"first": 1}], ids=str)
def test_every_rule_but_all_is_refused_by_name(rule: Any) -> None:
    case = BY_NAME["bert"]
    with pytest.raises(CompileError, match=r"interventions\[0\] .*positions: expected all.*BertForMaskedLM"):
        compiled(case.model(), entry(case.component, positions=rule))


def test_what_needs_places_is_refused_by_name() -> None:
    m = compiled(BY_NAME["t5_decoder"].model(), entry(BY_NAME["t5_decoder"].component))
    calls: dict[str, Callable[[], Any]] = {
        "prompt_lengths": lambda: m(IDS, prompt_lengths=[2, 2, 2]),
        "generate": lambda: m.generate_ids(IDS, max_new_tokens=2),
        "attached": lambda: m.intervenable.attached(None),
        "running": lambda: m.intervenable.running(None),
    }
    for what, call in calls.items():
        with pytest.raises(PositionError, match=f"{what}.*T5ForConditionalGeneration is no decoder"):
            call()
    with torch.no_grad(), m.disabled():
        assert m.generate_ids(IDS, max_new_tokens=2).shape[0] == 3
    assert hooks(m.model) == 0


@torch.no_grad()
def test_padding_is_neither_edited_nor_counted() -> None:
    model = _bert(transformers.BertForSequenceClassification).eval()
    components = ["bert.encoder.layer[0].output", "bert.pooler.dense.output"]
    seen: list[torch.Tensor] = []
    for component, tokens in zip(components, (7, 3), strict=True):
        m = compiled(model, entry(component))
        batch = m(IDS, PADDED).logits
        assert m.receipt["it"].tokens == tokens
        for row, length in enumerate((4, 2, 1)):
            alone = m(IDS[row : row + 1, :length]).logits
            torch.testing.assert_close(batch[row : row + 1], alone, rtol=1e-5, atol=1e-5)
    handle = model.bert.encoder.layer[1].register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    compiled(model, entry(components[0]))(IDS, PADDED)
    model(IDS, PADDED)
    handle.remove()
    changed = (seen[0] != seen[1]).any(-1)
    assert torch.equal(changed, PADDED.bool())


@torch.no_grad()
def test_padding_that_cannot_be_told_is_refused() -> None:
    case = BY_NAME["t5_encoder"]
    m = compiled(case.model(), entry(case.component))
    with pytest.raises(PositionError, match="attention_mask: which of an encoder-decoder's tensors"):
        m(IDS, PADDED, decoder_input_ids=IDS[:, :3])
    whole = m(IDS, torch.ones_like(IDS), decoder_input_ids=IDS[:, :3]).logits
    assert torch.equal(whole, m(IDS, decoder_input_ids=IDS[:, :3]).logits)
    m = compiled(BY_NAME["bert"].model(), entry("bert.embeddings.position_embeddings.output"))
    with pytest.raises(PositionError, match=r"padding cannot be told in a tensor of shape \[1, 4, 16\]"):
        m(IDS, PADDED)
    m = compiled(BY_NAME["bert"].model(), entry("bert.embeddings.word_embeddings.input"))
    with pytest.raises(PositionError, match=r"is torch.int64 \[3, 4\]"):
        m(IDS)
    assert hooks(m.model) == 0


@torch.no_grad()
def test_reading_and_skipping() -> None:
    case = BY_NAME["gru"]
    m = compiled(case.model(), entry(case.component, **{"class": "CollectIntervention"}))
    seen: list[torch.Tensor] = []
    handle = m.model.gru.cells[0].register_forward_hook(lambda _m, _a, output: seen.append(output))
    plain = logits(m(**case.inputs))
    handle.remove()
    (rows,) = m.intervenable.collected.values()
    assert torch.equal(torch.stack(rows), torch.stack(seen, 1))
    assert torch.equal(plain, logits(m.model(**case.inputs)))
    m = compiled(BY_NAME["mlp"].model(), entry("mlp.h[1].output", **{"class": "SkipIntervention"}))
    inputs = BY_NAME["mlp"].inputs
    skipped = logits(m(**inputs))
    m.model.mlp.h = m.model.mlp.h[:1]
    assert torch.equal(skipped, logits(m.model(**inputs)))


@torch.no_grad()
def test_a_call_by_another_thread_or_a_disabled_one_is_not_edited() -> None:
    case = BY_NAME["mlp"]
    m = compiled(case.model(), entry(case.component))
    plain, edited = logits(m.model(**case.inputs)), logits(m(**case.inputs))
    others: list[torch.Tensor] = []

    def inside(*_: Any) -> None:
        if not others:
            thread = threading.Thread(target=lambda: others.append(logits(m.model(**case.inputs))))
            others.append(plain)
            thread.start()
            thread.join()
            with m.disabled():
                others.append(logits(m(**case.inputs)))

    handle = m.model.mlp.h[0].register_forward_pre_hook(inside)
    assert torch.equal(logits(m(**case.inputs)), edited)
    handle.remove()
    assert len(others) == 3
    assert all(torch.equal(other, plain) for other in others)
    assert m.receipt["it"].tokens == 3


def test_the_edit_alone_is_trained() -> None:
    case = BY_NAME["bert"]
    model = case.model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    low_rank = {"class": "LowRankRotatedSpaceIntervention", "low_rank_dimension": 4}
    m = compiled(model, entry(case.component, **low_rank))
    optimizer = torch.optim.Adam(m.intervenable.get_trainable_parameters(), lr=0.1)
    losses = []
    for _ in range(4):
        loss = m(IDS, labels=IDS).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        m.intervenable.zero_grad()
    assert losses[-1] < losses[0]
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@every_case
@torch.no_grad()
def test_artifacts_are_reloaded(case: Case, tmp_path: Path) -> None:
    m = compiled(case.model(), entry(case.component), width=case.width)
    expected = logits(m(**case.inputs))
    folder = m.save_pretrained(tmp_path / "edit")
    again = IntervenedModel.from_pretrained(folder, model=case.model())
    assert torch.equal(logits(again(**case.inputs)), expected)
    told = describe(open_source(folder))
    assert told["made_for"]["architecture"] == type(m.model).__name__
    assert told["interventions"][0]["problem"] is None
    card = (folder / "README.md").read_text()
    assert case.component in card
    assert "pipeline_tag" not in card
    assert "model=model" in card
    assert "AutoModelForCausalLM" not in card


def test_an_artifact_is_refused_by_another_model(tmp_path: Path) -> None:
    case = BY_NAME["bert"]
    folder = compiled(case.model(), entry(case.component)).save_pretrained(tmp_path / "edit")
    wider = transformers.BertForMaskedLM(
        transformers.BertConfig(**_SMALL | {"intermediate_size": 32}, **_TEXT)
    )
    for model, difference in (
        (_bert(transformers.BertForSequenceClassification), "architecture: .*BertForMaskedLM"),
        (wider, r"modules: .*dense.weight.*\[16, 24\].*\[16, 32\]"),
        (_esm(), "model_type: the artifact has 'bert', the model 'esm'"),
        (oracle.tiny("llama"), "model_type"),
    ):
        with pytest.raises(ArtifactError, match=f"(?s){difference}.*from_pretrained.folder, model=model"):
            IntervenedModel.from_pretrained(folder, model=model)
    ours = oracle.intervened(oracle.tiny("llama"), oracle.steering("all")).save_pretrained(tmp_path / "l")
    with pytest.raises(AnatomyError):
        IntervenedModel.from_pretrained(ours, model=BY_NAME["gru"].model())


@torch.no_grad()
def test_stock_pyvene_reloads_a_model_that_it_lists(tmp_path: Path) -> None:
    case = BY_NAME["esm"]
    m = compiled(case.model(), entry(case.component), width=case.width)
    folder = m.save_pretrained(tmp_path / "edit")
    stock = pyvene.IntervenableModel.load(str(folder), case.model())
    assert torch.equal(stock(case.inputs, unit_locations=None)[1].logits, m(**case.inputs).logits)


def test_sites_of_a_model_without_anatomy_name_the_way_out() -> None:
    for name in ("gru", "bert", "t5_encoder", "resnet"):
        with pytest.raises(AnatomyError, match="`kind: pyvene` with `component:`"):
            compiled(
                BY_NAME[name].model(),
                {"kind": "pyvene", "class": "ZeroIntervention", "site": "block_output", "layer": 0},
            )


@pytest.mark.parametrize(
    ("model", "wrong", "right"),
    [
        (lambda: oracle.tiny("gpt2"), "model.layers[1].input", "transformer.h[1].input"),
        (lambda: oracle.tiny("gpt2"), "model.layers[1].mlp.output", "transformer.h[1].mlp.output"),
        (lambda: oracle.tiny("llama"), "model.layers[1].mlp.act.output", "model.layers[1].mlp.act_fn.output"),
        (_bert, "bert.layer[1].attention.output", "bert.encoder.layer[1].attention.output"),
        (_resnet, "resnet.stages[0].output", "resnet.encoder.stages[0].output"),
    ],
)
def test_a_path_that_is_not_there_names_the_one_that_was_meant(model: Any, wrong: str, right: str) -> None:
    with pytest.raises(CompileError) as refusal:
        compiled(model(), entry(wrong, **{"class": "ZeroIntervention"}))
    assert f"did you mean {right}?" in str(refusal.value)


@torch.no_grad()
def test_a_source_of_another_width_is_refused() -> None:
    case = BY_NAME["bert"]
    m = compiled(case.model(), entry(case.component), width=1)
    with pytest.raises(TensorError, match=r"shape \[1\], and the activation .* 16 wide"):
        m(IDS)


@torch.no_grad()
def test_a_run_that_is_no_longer_finite_fails_and_names_the_edit() -> None:
    case = BY_NAME["mlp"]
    m = compiled(case.model(), entry(case.component))
    m.model.score.weight.mul_(1e25)
    for strength, said in (
        (3e38, "'it' at mlp.*moves its tensor by .* = inf"),
        (1e18, "output .* after 'it'"),
    ):
        m(**case.inputs)
        with pytest.raises(NotFiniteError, match=said):
            m(**case.inputs, strengths=strength)
        assert m.receipt is None


def test_a_module_without_a_config_is_refused() -> None:
    with pytest.raises(CompileError, match="Sequential has no `config`"):
        compiled(torch.nn.Sequential(torch.nn.Linear(4, 4)), entry("a.output"))


def test_exports_are_refused(tmp_path: Path) -> None:
    case = BY_NAME["esm"]
    m = compiled(case.model(), entry(case.component), width=case.width)
    with pytest.raises(ExportError, match="EsmForMaskedLM is no decoder language model"):
        export(m, "pyvene", tmp_path / "out")


@torch.no_grad()
def test_a_decoder_keeps_its_positions_where_a_module_is_named_by_its_path() -> None:
    m = compiled(
        oracle.tiny("llama"),
        entry("model.layers[1].mlp.output", positions="response", **{"class": "ZeroIntervention"}),
    )
    assert type(m.intervenable) is IntervenableModel
    assert not isinstance(m.intervenable, WholeTensorModel)
    m.generate_ids(IDS, max_new_tokens=3, do_sample=False)
    assert m.receipt["it"].edited == {"prompt": 0, "cursor": 3, "response": 6}
