"""Divergence: CE and KL are those of full logits by hand, for any batching, padding, positions and model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES, HEADS, LAYERS, Architecture

from subvene.runner import IntervenedModel, NotFiniteError, NotSteeredError
from subvene.runner.data.texts import read_texts, texts_sha256
from subvene.runner.exchange.exports.checkpoint import bake
from subvene.runner.measures.divergence import Reference, divergence
from subvene.specs import DivergenceSpec, InterventionSpec, SubveneError

TEXTS = [
    "hello world how are you i am glad",
    "the sun is good and the rain is not",
    "tell me about the train , hello world ! it is a very very good day and i am happy",
]
MAX = 12
EDIT = """\
interventions:
- {kind: steering, layer: 1, vector: {file: t.safetensors, key: u}, coefficient: 1.5, positions: %s}
"""


@pytest.fixture
def made(write: Callable[..., Path]) -> Callable[..., IntervenedModel]:
    return lambda positions="all": IntervenedModel.from_spec(write(EDIT % positions))


@torch.no_grad()
def by_hand(m: IntervenedModel, edited_from: int, stop: int | None = None) -> tuple[list[Any], list[Any]]:
    """Per text the losses and the KLs token by token: each text alone, edited by a plain hook, torch's KL."""
    losses, divergences = [], []
    for text in TEXTS:
        ids = torch.tensor([m.tokenizer(text)["input_ids"][:MAX]])
        original = m.model(ids).logits[0].double()
        edit = torch.zeros(ids.shape[1], 32)
        edit[edited_from:stop, 3], edit[edited_from:stop, 5] = 1.5 * 4, 1.5 * 2  # `u` of the fixture
        handle = m.model.model.layers[1].register_forward_hook(lambda _m, _a, out, edit=edit: out + edit)
        edited = m.model(ids).logits[0].double()
        handle.remove()
        losses.append(torch.nn.functional.cross_entropy(edited[:-1], ids[0, 1:], reduction="none"))
        log_p, log_q = original.log_softmax(-1), edited.log_softmax(-1)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        divergences.append(kl.sum(-1))
    return losses, divergences


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize(
    ("positions", "span"),
    [
        ("all", (0, None)),
        ("response", (0, None)),  # the first token is the prompt, so it is the cursor
        ("prompt", (0, 1)),
        ("{first: 2, of: response}", (1, 3)),
    ],
)
def test_against_full_logits_by_hand(
    made: Callable[..., IntervenedModel], positions: str, span: tuple[int, int | None], batch_size: int
) -> None:
    m = made(positions)
    found = divergence(m, Reference(m, TEXTS, max_tokens=MAX, batch_size=batch_size))
    losses, kls = by_hand(m, *span)
    assert found["ce_by_text"] == pytest.approx([float(x.mean()) for x in losses], abs=1e-5)
    assert found["kl_by_text"] == pytest.approx([float(x.mean()) for x in kls], abs=1e-5)
    assert found["ce"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert found["kl"] == pytest.approx(float(torch.cat(kls).mean()), abs=1e-5)
    assert found["kl"] > 0.005
    assert (found["texts"], found["tokens"], found["left_out"]) == (3, 8 + 9 + MAX, 0)
    assert (found["max_tokens"], found["cut"]) == (MAX, 1)
    edited = sum(len(range(*slice(*span).indices(n))) for n in (8, 9, MAX))
    (receipt,) = found["receipts"]
    assert sum(receipt["edited"].values()) == edited
    assert found["data_sha256"] == texts_sha256(TEXTS)
    with torch.no_grad():
        plain = [m.model(torch.tensor([m.tokenizer(t)["input_ids"][:MAX]])).logits[0] for t in TEXTS]
    ids = [torch.tensor(m.tokenizer(t)["input_ids"][:MAX]) for t in TEXTS]
    original = [
        torch.nn.functional.cross_entropy(x[:-1], y[1:], reduction="none")
        for x, y in zip(plain, ids, strict=True)
    ]
    assert found["original_ce"] == pytest.approx(float(torch.cat(original).mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("positions", "span"), [("response", (3, None)), ("prompt", (0, 4)), ("all", (0, None))]
)
def test_a_longer_prompt_counts_what_follows_it(
    made: Callable[..., IntervenedModel], positions: str, span: tuple[int, int | None]
) -> None:
    m = made(positions)
    reference = Reference(m, ["hello world", *TEXTS], max_tokens=MAX, prompt_tokens=4)
    found = divergence(m, reference)
    losses, kls = by_hand(m, *span)
    assert found["ce_by_text"] == pytest.approx([float(x[3:].mean()) for x in losses], abs=1e-5)
    assert found["kl_by_text"] == pytest.approx([float(x[3:].mean()) for x in kls], abs=1e-5)
    assert found["ce"] == pytest.approx(float(torch.cat([x[3:] for x in losses]).mean()), abs=1e-5)
    assert found["kl"] == pytest.approx(float(torch.cat([x[3:] for x in kls]).mean()), abs=1e-5)
    assert (found["left_out"], found["tokens"]) == (1, sum(len(x) - 3 for x in kls))
    with m.disabled():
        plain = divergence(m, reference)
    assert plain["ce"] == pytest.approx(reference.ce, abs=1e-9)


def test_the_untouched_model_does_not_diverge_from_itself(made: Callable[..., IntervenedModel]) -> None:
    m = made()
    reference = Reference(m, TEXTS, batch_size=2)
    with m.disabled():
        found = divergence(m, reference)
    assert 0 <= found["kl"] < 1e-7
    assert found["ce"] == pytest.approx(reference.ce, abs=1e-6)
    assert found["receipts"] == []
    plain = divergence(IntervenedModel.plain(m.model, m.tokenizer), reference)
    assert plain == found


def test_a_reference_is_of_the_original_even_where_its_model_has_interventions(
    made: Callable[..., IntervenedModel],
) -> None:
    m = made()
    edited = Reference(m, TEXTS)
    plain = Reference(IntervenedModel.plain(m.model, m.tokenizer), TEXTS)
    assert edited.ce == plain.ce
    assert divergence(m, edited) == divergence(m, plain)
    assert m.is_disabled is False
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in m.model.modules())


def test_one_reference_serves_every_condition(made: Callable[..., IntervenedModel]) -> None:
    all_tokens, first = made("all"), made("prompt")
    reference = Reference(all_tokens, TEXTS)
    found = [divergence(m, reference)["kl"] for m in (all_tokens, first, all_tokens)]
    assert found[0] == found[2] != found[1]
    assert divergence(first, Reference(first, TEXTS))["kl"] == pytest.approx(found[1], abs=1e-7)


def test_a_baked_model_diverges_as_the_edited_one_and_not_from_itself(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    edit = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 4.0}
    spec = InterventionSpec.model_validate({"subvene": 1, "model": {"name": "t"}, "interventions": [edit]})
    directions = {"iti.attention_heads[1]": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))}
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=directions)
    reference = Reference(m, TEXTS)
    expected = divergence(m, reference)
    found = divergence(IntervenedModel.plain(bake(m), tokenizer), reference)
    assert expected["kl"] > 0.01
    assert found["kl"] == pytest.approx(expected["kl"], abs=1e-5)
    assert found["ce"] == pytest.approx(expected["ce"], abs=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("arch", ARCHITECTURES, ids=repr)
def test_kept_hidden_states_give_the_logits_of_every_architecture(
    arch: Architecture, loaded: tuple[Any, Any]
) -> None:
    """Capped and scaled logits (Gemma 2, Cohere, Granite) included."""
    model, tokenizer = arch.shared(), loaded[1]
    reference = Reference(IntervenedModel.plain(model, tokenizer), TEXTS, batch_size=2)
    for i, text in enumerate(TEXTS):
        with torch.no_grad():
            expected = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        # Read with padding and in another batch, which rounds otherwise.
        torch.testing.assert_close(reference.logits([i])[0], expected, rtol=0, atol=1e-5)
    for chosen in reference.batches:
        batch = reference.batch(chosen)
        with torch.no_grad():
            expected = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        for row, kept in zip(expected, reference.logits(chosen), strict=True):
            torch.testing.assert_close(kept, row[: len(kept)], rtol=0, atol=1e-6)
    edit = {"kind": "head_direction", "directions": {"key": "k"}, "strength": 3.0}
    spec = InterventionSpec.model_validate({"subvene": 1, "model": {"name": "t"}, "interventions": [edit]})
    directions = {f"k.attention_heads[{LAYERS - 1}]": torch.ones(HEADS, arch.head_dim)}
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=directions)
    assert divergence(m, reference)["kl"] > 1e-5


def test_short_texts_are_left_out_and_counted(made: Callable[..., IntervenedModel]) -> None:
    m = made()
    with_short = divergence(m, Reference(m, ["hello", *TEXTS, ""], max_tokens=MAX))
    assert (with_short["left_out"], with_short["texts"]) == (2, 3)
    assert with_short["kl"] == divergence(m, Reference(m, TEXTS, max_tokens=MAX))["kl"]
    for texts, limit in ((["hello", ""], 5), (TEXTS, 1)):
        with pytest.raises(
            SubveneError, match=rf"none of {len(texts)} texts has 2 tokens.*max_tokens: {limit}"
        ):
            Reference(m, texts, max_tokens=limit)


def test_an_intervention_that_acts_on_no_text_fails(made: Callable[..., IntervenedModel]) -> None:
    m = made("{indices: [40], of: response}")
    reference = Reference(m, TEXTS)
    with pytest.raises(NotSteeredError, match="edited no token"):
        divergence(m, reference)


def test_what_cannot_be_compared_is_refused(made: Callable[..., IntervenedModel]) -> None:
    m = made()
    reference = Reference(m, TEXTS)
    larger = copy.deepcopy(m.model)
    larger.resize_token_embeddings(m.model.config.vocab_size + 5)
    with pytest.raises(SubveneError, match=r"has 50 tokens in its vocabulary and the original 45|vocabulary"):
        divergence(IntervenedModel.plain(larger, m.tokenizer), reference)
    broken = copy.deepcopy(m.model)
    broken.lm_head.weight.data[3] = torch.nan
    with pytest.raises(NotFiniteError, match="CE and KL of the model without any edit: not finite"):
        divergence(IntervenedModel.plain(broken, m.tokenizer), reference)


def test_a_token_that_the_original_rules_out_counts_nothing(made: Callable[..., IntervenedModel]) -> None:
    m = made()
    expected = divergence(m, Reference(m, TEXTS))
    handle = m.model.lm_head.register_forward_hook(
        lambda _m, _a, logits: torch.cat([torch.full_like(logits[..., :1], -torch.inf), logits[..., 1:]], -1)
    )
    found = divergence(m, Reference(m, TEXTS))
    handle.remove()
    assert found["kl"] == pytest.approx(expected["kl"], rel=0.3)


def test_dropout_is_off_and_the_mode_is_restored(made: Callable[..., IntervenedModel]) -> None:
    m = made()
    expected = divergence(m, Reference(m, TEXTS))
    for layer in m.model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    m.model.train()
    assert divergence(m, Reference(m, TEXTS)) == expected
    assert all(module.training for module in m.model.modules())


@pytest.mark.slow
def test_smollm2_on_the_sample_that_is_shipped(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    generator = torch.Generator().manual_seed(0)
    given = {f"iti.attention_heads[{layer}]": torch.randn(9, 64, generator=generator) for layer in (8, 15)}
    edit = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 0.5, "positions": "response"}
    spec = InterventionSpec.model_validate({"subvene": 1, "model": {"name": "s"}, "interventions": [edit]})
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=given)
    texts = read_texts(DivergenceSpec().texts, Path(), 2)
    found = divergence(m, Reference(m, texts, batch_size=2))
    assert 2.0 < found["original_ce"] < 4.5
    assert 0.001 < found["kl"] < 3
    assert found["ce"] > found["original_ce"]
