"""Edits that read from the run of a source, against the same done by plain torch hooks, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from source_specs import make, output_of, swap, written
from tiny_model import write_tiny_model

from subvene.runner.data.text import pad
from subvene.runner.edits.cache_record import CacheError
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.pyvene_calls import PyveneCallError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.edits.sources import SourceError
from subvene.runner.intervened.model import IntervenedModel

PROMPTS = ["tell me about the train", "how are you", "the rain is very good and the sun is bad"]
SOURCES = ["i am sad", "hello world , i am not happy today .", "a day"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def raw(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def data(*columns: tuple[str, list[str]]) -> list[dict[str, str]]:
    return [
        dict(zip((name for name, _ in columns), row, strict=True))
        for row in zip(*(v for _, v in columns), strict=True)
    ]


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_of_any_length_are_those_of_plain_hooks(model: Any, tokenizer: Any, side: str) -> None:
    m = make(model, tokenizer, {"other": {"column": "source", "chat": False}}, swap())
    rows = [raw(tokenizer, text) for text in PROMPTS]
    batch = pad(rows, [len(row) for row in rows], 0, side)
    logits = m(batch.input_ids, batch.attention_mask, prompt_lengths=batch.prompt_lengths,
               rows=data(("source", SOURCES))).logits  # fmt: skip
    block = model.model.layers[1]
    for i, row in enumerate(rows):
        value = output_of(model, block, raw(tokenizer, SOURCES[i]))[-1]
        with written(block, {len(row) - 1: value}):
            expected = model(torch.tensor([row])).logits[0]
        found = logits[i][batch.attention_mask[i].bool()]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    source = m.receipt[0].source
    assert (source.rows, source.tokens, source.rows_equal, source.rows_fed) == (3, 3, 0, 3)
    assert (source.first, source.last) == (1, max(len(raw(tokenizer, s)) for s in SOURCES) - 1)
    assert source.mean_distance > 0.1


@torch.no_grad()
def test_generation_is_that_of_plain_hooks(model: Any, tokenizer: Any) -> None:
    m = make(model, tokenizer, {"other": {"column": "source"}}, swap(0))
    answers = m.generate(
        PROMPTS, chat=False, max_new_tokens=5, do_sample=False, rows=data(("source", SOURCES))
    )
    block = model.model.layers[0]
    for prompt, source, answer in zip(PROMPTS, SOURCES, answers, strict=True):
        ids = raw(tokenizer, prompt)
        value = output_of(model, block, raw(tokenizer, source))[-1]
        with written(block, {len(ids) - 1: value}):
            out = model.generate(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
        assert tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True) == answer


@torch.no_grad()
def test_what_is_scored_is_what_was_generated(model: Any, tokenizer: Any) -> None:
    m = make(model, tokenizer, {"other": {"prompt": "i am sad", "chat": False}}, swap())
    ids = torch.tensor([raw(tokenizer, PROMPTS[0])])
    out = m.generate_ids(
        ids, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    scored = m(out.sequences, prompt_lengths=[ids.shape[1]]).logits[0, ids.shape[1] - 1 : -1]
    torch.testing.assert_close(scored, torch.cat(out.logits), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_another_layer_site_and_the_tokens_of_a_text(model: Any, tokenizer: Any) -> None:
    reading = {
        "from": "other",
        "site": "mlp_output",
        "layer": 2,
        "positions": {"last_of": {"field": "what"}},
    }
    edit = swap(0, source=reading, positions={"last_of": {"field": "subject"}})
    m = make(model, tokenizer, {"other": {"column": "source", "chat": False}}, edit)
    subjects, whats = ["the train", "are", "the sun"], ["am", "world ,", "a day"]
    rows = [raw(tokenizer, text) for text in PROMPTS]
    batch = pad(rows, [len(row) for row in rows], 0, "left")
    columns = data(("source", SOURCES), ("subject", subjects), ("what", whats))
    logits = m(
        batch.input_ids, batch.attention_mask, prompt_lengths=batch.prompt_lengths, rows=columns
    ).logits
    for i, (at, read) in enumerate([(4, 1), (1, 2), (7, 1)]):
        value = output_of(model, model.model.layers[2].mlp, raw(tokenizer, SOURCES[i]))[read]
        with written(model.model.layers[0], {at: value}):
            expected = model(torch.tensor([rows[i]])).logits[0]
        torch.testing.assert_close(logits[i, -len(rows[i]) :], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pair", "goes"),
    [("first", {0: 0, 1: 1}), ("last", {2: 0, 3: 1}), ("broadcast", {0: 1, 1: 1, 2: 1, 3: 1})],
)
def test_pairs(model: Any, tokenizer: Any, pair: str, goes: dict[int, int]) -> None:
    rule = {"last": 1} if pair == "broadcast" else "prompt"
    edit = swap(positions={"first": 4}, source={"from": "other", "positions": rule, "pair": pair})
    m = make(model, tokenizer, {"other": {"prompt": "a day", "chat": False}}, edit)
    ids = raw(tokenizer, PROMPTS[0])
    logits = m(torch.tensor([ids]), prompt_lengths=[len(ids)]).logits[0]
    values = output_of(model, model.model.layers[1], raw(tokenizer, "a day"))
    with written(model.model.layers[1], {at: values[unit] for at, unit in goes.items()}):
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert m.receipt[0].tokens == len(goes)


@torch.no_grad()
def test_a_source_that_is_itself_intervened_on(model: Any, tokenizer: Any) -> None:
    """Serial: the run of `second` is edited by what `first` computed, and the base by what that gave."""
    sources = {
        "first": {"prompt": "i am sad", "chat": False},
        "second": {"prompt": "a rain", "chat": False, "interventions": ["inner"]},
    }
    inner = swap(0, "inner", source={"from": "first"}, positions={"indices": [0]})
    inner["source"]["positions"] = {"indices": [1]}
    m = make(model, tokenizer, sources, inner, swap(2, "outer", source={"from": "second"}))
    ids = raw(tokenizer, PROMPTS[1])
    logits = m(torch.tensor([ids]), prompt_lengths=[len(ids)]).logits[0]
    blocks = model.model.layers
    first = output_of(model, blocks[0], raw(tokenizer, "i am sad"))[1]
    with written(blocks[0], {0: first}):
        second = output_of(model, blocks[2], raw(tokenizer, "a rain"))[-1]
    with written(blocks[2], {len(ids) - 1: second}):
        expected = model(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert [r.name for r in m.receipt] == ["inner", "outer"]
    assert [r.source.name for r in m.receipt] == ["first", "second"]
    assert all(r.changed == 1 for r in m.receipt)


@torch.no_grad()
def test_several_sources_act_in_the_order_of_the_file(model: Any, tokenizer: Any) -> None:
    sources = {"a": {"prompt": "i am sad", "chat": False}, "b": {"prompt": "a rain", "chat": False}}
    edits = [
        swap(1, "one", source={"from": "a"}),
        swap(1, "two", source={"from": "b"}, **{"class": "AdditionIntervention"}),
    ]
    m = make(model, tokenizer, sources, *edits)
    ids = raw(tokenizer, PROMPTS[1])
    logits = m(torch.tensor([ids]), prompt_lengths=[len(ids)]).logits[0]
    block = model.model.layers[1]
    both = sum(output_of(model, block, raw(tokenizer, text))[-1] for text in ("i am sad", "a rain"))
    with written(block, {len(ids) - 1: both}):
        torch.testing.assert_close(logits, model(torch.tensor([ids])).logits[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "name",
    [
        "Vanilla",
        "RotatedSpace",
        "LowRankRotatedSpace",
        "BoundlessRotatedSpace",
        "SigmoidMask",
        "SigmoidMaskRotatedSpace",
    ],
)
def test_the_base_as_source_changes_nothing_and_is_no_run(model: Any, tokenizer: Any, name: str) -> None:
    fields: dict[str, Any] = {"low_rank_dimension": 3} if name.startswith("LowRank") else {}
    edit = swap(positions="prompt", **{"class": f"{name}Intervention", **fields})
    m = make(model, tokenizer, {"other": {"column": "source", "chat": False}}, edit)
    rows = [raw(tokenizer, text) for text in PROMPTS]
    batch = pad(rows, [len(row) for row in rows], 0, "left")
    options: dict[str, Any] = {"prompt_lengths": batch.prompt_lengths, "rows": data(("source", PROMPTS))}
    same = m(batch.input_ids, batch.attention_mask, must_act=False, **options).logits
    receipt = m.receipt[0]
    assert (receipt.changed, receipt.max_relative, receipt.source.rows_equal) == (0, 0.0, 3)
    with m.disabled():
        assert torch.equal(same, m(batch.input_ids, batch.attention_mask).logits)
    with pytest.raises(NotSteeredError, match=r"'other' at .* is equal to the base in each of the 3 rows"):
        m(batch.input_ids, batch.attention_mask, **options)
    options["rows"][1]["source"] = "very good day"
    m(batch.input_ids[1:2, -3:], prompt_lengths=[3], rows=options["rows"][1:2])
    assert m.receipt[0].changed == 3


@torch.no_grad()
def test_inputs_of_a_call_take_the_place_of_the_declared_ones(model: Any, tokenizer: Any) -> None:
    m = make(model, tokenizer, {"other": {"prompt": "i am sad", "chat": False}}, swap())
    ids = torch.tensor([raw(tokenizer, PROMPTS[0])])
    options: dict[str, Any] = {"prompt_lengths": [ids.shape[1]]}
    source = {"input_ids": torch.tensor([raw(tokenizer, "a rain")])}
    by_text = m(ids, sources={"other": "a rain"}, **options).logits
    assert torch.equal(by_text, m.intervenable({"input_ids": ids}, [source], **options)[1].logits)
    assert torch.equal(
        by_text, m.intervenable({"input_ids": ids}, sources={"other": source}, **options)[1].logits
    )
    assert not torch.equal(by_text, m(ids, **options).logits)
    for wrong, message in (
        ([source, source], "expected a mapping by name, or a list of 1"),
        ({"othre": source}, "no source is called 'othre'; declared are: other"),
        ([{"input_ids": source["input_ids"].repeat(2, 1)}], r"expected input_ids \[1, tokens\]"),
        ([{**source, "past_key_values": None}], "takes input_ids and attention_mask, not past_key_values"),
    ):
        with pytest.raises(SourceError, match=message):
            m.intervenable({"input_ids": ids}, sources=wrong, **options)
    with pytest.raises(PyveneCallError, match="unit_locations= does nothing"):
        m.intervenable({"input_ids": ids}, [source], {"sources->base": 3}, **options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, r"the base, row 0: expected a column 'subject'; none was given"),
        ([{"subject": "train"}, {"object": "x"}], "row 1: expected a column 'subject'; there are: object"),
        ([{"subject": "train"}, {"subject": 3}], "row 1: column 'subject' holds 3, expected a text"),
        (
            [{"subject": "train"}, {"subject": "  "}],
            r"row 1: \{field: subject\} is '  ', which holds no token",
        ),
        ([{"subject": "train"}, {"subject": "sun"}], "row 1: .* 'sun' does not stand in the prompt"),
        ([{"subject": "train"}, {"subject": "very"}], "row 1: .* 'very' stands 2 times in the prompt"),
        ([{"subject": "train"}], "rows: expected the columns of 2 rows, as the batch has, found 1"),
        ({"subject": ["train", "bad"]}, "rows: expected a list of 2 mappings, .* found dict"),
        ({"subject": "train", "other": "x"}, "rows: expected a list of 2 mappings, .* found dict"),
        (
            [{"subject": "train"}, "subject"],
            "rows: row 1: expected a mapping of its columns, found 'subject'",
        ),
    ],
)
def test_fields_that_cannot_be_found(model: Any, tokenizer: Any, rows: Any, message: str) -> None:
    edit = swap(positions={"field": "subject"})
    m = make(model, tokenizer, {"other": {"prompt": "a", "chat": False}}, edit)
    with pytest.raises((PositionError, SourceError), match=message):
        m.generate(["the train", "very very bad"], chat=False, max_new_tokens=1, rows=rows)


@pytest.mark.parametrize(
    ("edit", "source", "message"),
    [
        ({"positions": {"first": 2}, "source": {"from": "other", "positions": "prompt"}}, {},
         "row 1: 2 tokens of the base are edited and 3 of the source 'other' at .* are read"),
        ({"positions": "all", "source": {"from": "other"}}, {}, "go on with every token that is generated"),
        ({"source": {"from": "other", "positions": "prompt", "pair": "broadcast"}}, {},
         "selects 2 in row 0"),
        ({"source": {"from": "other", "positions": {"indices": [2]}}}, {},
         "row 0: no token of the source 'other' matches"),
        ({"source": {"from": "other", "positions": {"span": "sad"}}}, {},
         "source 'other', row 0: .*'sad' does not stand in the prompt"),
        ({}, {"rows": None}, "source 'other' is the column 'source' of the data, and this run was given"),
        ({}, {"rows": [{"source": "a"}, {}]}, "row 1: source 'other' expects a column 'source'"),
    ],
)  # fmt: skip
def test_runs_that_are_refused(model: Any, tokenizer: Any, edit: Any, source: Any, message: str) -> None:
    m = make(model, tokenizer, {"other": {"column": "source", "chat": False}}, swap(**edit))
    rows = source.get("rows", [{"source": "a day"}, {"source": "i am sad"}])
    with pytest.raises((SourceError, PositionError), match=message):
        m.generate(["the train", "very bad"], chat=False, max_new_tokens=2, rows=rows)


def test_calls_that_cannot_run_a_source(model: Any, tokenizer: Any) -> None:
    m = make(model, tokenizer, {"other": {"prompt": "a day", "chat": False}}, swap())
    ids = torch.tensor([raw(tokenizer, PROMPTS[0])])
    with (
        pytest.raises(SourceError, match="this call cannot run sources"),
        m.attached(prompt_lengths=[ids.shape[1]]) as attached,
    ):
        attached(ids)
    with m.attached() as attached:
        out = attached.generate(ids, max_new_tokens=2, do_sample=False)
    assert torch.equal(out, m.generate_ids(ids, max_new_tokens=2, do_sample=False))
    with torch.no_grad():
        cache = m(ids, prompt_lengths=[ids.shape[1]], use_cache=True).past_key_values
        with pytest.raises(PositionError, match="goes on from a cache"):
            m(
                ids[:, :1],
                torch.ones(1, ids.shape[1] + 1),
                prompt_lengths=[ids.shape[1]],
                past_key_values=cache,
            )
        with m.disabled(), pytest.raises(CacheError, match="swap"):
            m(ids[:, :1], torch.ones(1, ids.shape[1] + 1), past_key_values=cache)


@torch.no_grad()
def test_saved_and_reloaded_it_is_the_same(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    sources = {
        "other": {"prompt": "i am sad", "chat": False},
        "more": {"column": "c", "interventions": ["a"]},
    }
    rotated = {"class": "LowRankRotatedSpaceIntervention", "low_rank_dimension": 2}
    edits = [
        swap(0, "a"),
        swap(1, "b", source={"from": "more"}, share="r", **rotated),
        swap(
            2,
            "c",
            positions={"span": "you"},
            source={"from": "other", "positions": {"last": 1}},
            share="r",
            **rotated,
        ),
    ]
    m = make(model, tokenizer, sources, *edits)
    assert m.intervenable.count_parameters() == 2 * 32
    options: dict[str, Any] = {
        "prompt_lengths": [3],
        "rows": [{"c": "good day"}],
        "rendering": {"chat": False},
    }
    ids = torch.tensor([raw(tokenizer, "how are you")])
    before = m(ids, **options).logits
    again = IntervenedModel.from_pretrained(
        m.save_pretrained(tmp_path / "a"), model=model, tokenizer=tokenizer
    )
    assert torch.equal(before, again(ids, **options).logits)
    assert again.intervenable.count_parameters() == 2 * 32
    assert again.spec.sources == m.spec.sources
    assert m.receipt.to_dict() == again.receipt.to_dict()


def test_gradients_reach_the_parameters_and_not_the_sources_run(model: Any, tokenizer: Any) -> None:
    rotated = {"class": "LowRankRotatedSpaceIntervention", "low_rank_dimension": 2}
    m = make(model, tokenizer, {"other": {"prompt": "i am sad", "chat": False}}, swap(**rotated))
    ids = torch.tensor([raw(tokenizer, "how are you")])
    calls: list[bool] = []
    handle = model.model.layers[0].register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    m(ids, prompt_lengths=[3]).logits[0, -1, 5].backward()
    handle.remove()
    assert calls == [False, True]
    assert all(p.grad is not None and p.grad.any() for p in m.intervenable.get_trainable_parameters())


@torch.no_grad()
def test_noise_before_the_first_block_is_noise_on_the_embeddings(model: Any, tokenizer: Any) -> None:
    noise = {"kind": "noise", "component": "block_input", "layer": 0, "strength": 0.5, "seed": 7}
    m = make(model, tokenizer, {}, {**noise, "positions": {"span": "rain"}})
    rows = [raw(tokenizer, text) for text in ("the rain is good", "a very good rain")]
    batch = pad(rows, [4, 4], 0, "left")
    logits = m(batch.input_ids, batch.attention_mask, prompt_lengths=batch.prompt_lengths).logits
    for i, at in enumerate((1, 3)):
        generator = torch.Generator().manual_seed(7 * 1_000_003 + at)
        embedded = model.get_input_embeddings()(torch.tensor([rows[i]]))
        embedded[0, at] += 0.5 * torch.randn(embedded.shape[-1], generator=generator)
        expected = model(inputs_embeds=embedded).logits[0]
        torch.testing.assert_close(logits[i], expected, rtol=1e-4, atol=1e-5)
