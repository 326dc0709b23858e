"""Answers: what `generate` writes row by row, cut at the next question, whoever else is in the batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from oracle import hooks, intervened, steering

from subvene.runner.data.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.data.truthfulqa.questions import Question, load_questions
from subvene.runner.data.truthfulqa.splits import limited
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import counting_tokens
from subvene.runner.measures.truthfulqa_answers import answer_questions
from subvene.specs.questions import QuestionsSpec

from .conftest import QUESTIONS, tiny

PROMPTS = load_prompts("instruction_qa", None, None, Path())
NEW = 10
MANY = [
    *QUESTIONS,
    *(Question(f"Is {text}?", "No.", ("No.",), ("Yes.",), "C") for text in ("a", "it a b", "I")),
]


def alone(m: IntervenedModel, prompts: Prompts, question: Question, new: int = NEW) -> list[int]:
    """The new tokens of one question's prompt, by transformers' own `generate`."""
    ids = torch.tensor([prompts.encode(m.tokenizer, [question.question]).prompts[0]])
    output = m.generate_ids(ids, max_new_tokens=new, do_sample=False)
    return output[0, ids.shape[1] :].tolist()


def cut(m: IntervenedModel, tokens: list[int]) -> str:
    return m.tokenizer.decode(tokens, skip_special_tokens=True).split("Q:")[0].strip()


def steered(model: Any, tokenizer: Any, rule: Any) -> IntervenedModel:
    m = intervened(model, steering(rule, coefficient=0.3, layer=0, name="v"))
    m.tokenizer = tokenizer
    return m


def asking(name: str, tokenizer: Any) -> Any:
    """A model that writes `Q:` in some rows, early in one and late in others, and in some never."""
    model = tiny(name, tokenizer)
    plain = IntervenedModel.plain(model, tokenizer)
    rows = [alone(plain, PROMPTS, question) for question in MANY]
    (asks,) = tokenizer.encode("Q:", add_special_tokens=False)
    counts = {t: sum(t in row for row in rows) for row in rows for t in row}
    # What is written in about half of the rows gives its place in the output to `Q:`.
    token = min(counts, key=lambda t: (abs(counts[t] - len(rows) / 2), t))
    weight = model.get_output_embeddings().weight.data
    weight[[token, asks]] = weight[[asks, token]]
    return model


@pytest.fixture(scope="module")
def colons(words: Any) -> Any:
    """`words`, with a token of its own for `Q:`."""
    words.add_tokens(["Q:"])
    return words


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("rule", ["all", "prompt", "response", "disabled"])
def test_as_generate_alone(name: str, rule: str, colons: Any) -> None:
    m = steered(asking(name, colons), colons, "all" if rule == "disabled" else rule)
    with m.disabled() if rule == "disabled" else torch.no_grad():
        expected = [cut(m, alone(m, PROMPTS, question)) for question in MANY]
        for batch_size in (1, 3, len(MANY)):
            found, receipts = answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW, batch_size=batch_size)
            assert found == expected
            assert len(receipts) == (rule != "disabled")
    assert hooks(m.model) == []


def test_rows_end_at_different_steps(colons: Any) -> None:
    """What the tests around this one rely on."""
    plain = IntervenedModel.plain(asking("llama", colons), colons)
    (asks,) = colons.encode("Q:", add_special_tokens=False)
    rows = [alone(plain, PROMPTS, question) for question in MANY]
    ends = {row.index(asks) if asks in row else None for row in rows}
    assert len(ends) > 2
    assert None in ends


@pytest.mark.parametrize("batch_size", [1, 7])
def test_an_end_of_sequence_ends_an_answer(batch_size: int, colons: Any) -> None:
    model = tiny("llama", colons)
    plain = IntervenedModel.plain(model, colons)
    rows = [alone(plain, PROMPTS, question) for question in MANY]
    end = rows[0][4]
    model.generation_config.eos_token_id = [end]
    expected = [row[: row.index(end)] if end in row else row for row in rows]
    answers, _ = answer_questions(plain, PROMPTS, MANY, max_new_tokens=NEW, batch_size=batch_size)
    assert answers == [cut(plain, row) for row in expected]


def test_an_answer_may_be_empty(colons: Any) -> None:
    model = tiny("llama", colons)
    plain = IntervenedModel.plain(model, colons)
    first = alone(plain, PROMPTS, MANY[0])[0]
    model.generation_config.eos_token_id = first
    answers, _ = answer_questions(plain, PROMPTS, MANY[:1])
    assert answers == [""]
    assert answer_questions(plain, PROMPTS, []) == ([], [])


@pytest.mark.parametrize("rule", ["all", "response", "prompt"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_receipts_count_the_tokens_of_answers(rule: str, batch_size: int, colons: Any) -> None:
    m = steered(asking("llama", colons), colons, rule)
    ends = {colons.eos_token_id, *colons.encode("Q:", add_special_tokens=False)}
    (receipt,) = answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW, batch_size=batch_size)[1]
    encoded = PROMPTS.encode(colons, [question.question for question in MANY])
    lengths = [len(prompt) for prompt in encoded.prompts]
    rows = [alone(m, PROMPTS, question) for question in MANY]
    # Of what was written, all but the last token was passed on: one that ends an answer is not.
    written = sum(next((i for i, t in enumerate(row) if t in ends), NEW - 1) for row in rows)
    longest = max(lengths) if batch_size == 7 else None
    passed = [min(length, (longest or length) - len(encoded.shared)) for length in lengths]
    prompt = len(encoded.shared) + sum(passed) - len(MANY)
    expected = {"prompt": prompt, "cursor": len(MANY), "response": written}
    if rule == "response":
        expected["prompt"] = 0
    if rule == "prompt":
        expected["response"] = 0
    assert receipt[0].edited == expected
    assert receipt[0].changed == receipt[0].tokens
    assert receipt[0].rows == 1 + len(MANY)


def test_a_row_that_has_ended_leaves_the_batch(colons: Any) -> None:
    plain = IntervenedModel.plain(asking("llama", colons), colons)
    short = [q for q in MANY if len(answer_questions(plain, PROMPTS, [q], max_new_tokens=NEW)[0][0]) < 8]
    long = next(q for q in MANY if q not in short)
    with counting_tokens(plain.model) as alone:
        answer_questions(plain, PROMPTS, [long], max_new_tokens=NEW)
    with counting_tokens(plain.model) as together:
        answer_questions(plain, PROMPTS, [long, *short], max_new_tokens=NEW)
    # Beyond their prompts the short ones cost little of the steps that the long one goes on for.
    prompts = PROMPTS.encode(colons, [q.question for q in (long, *short)])
    longest = max(map(len, prompts.prompts)) - len(prompts.shared)
    own = len(prompts.prompts[0]) - len(prompts.shared)
    extra = together[0] - alone[0] - (longest - own) - len(short) * longest
    assert len(short) >= 2
    assert extra < 0.7 * len(short) * (NEW - 1)


def test_a_strength_for_the_call(colons: Any) -> None:
    m = steered(tiny("llama", colons), colons, "response")
    off, _ = answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW, strengths={"v": 0.0})
    with m.disabled():
        assert off == answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW)[0]
    assert off != answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW)[0]


@pytest.mark.parametrize("rule", [{"last": 2, "of": "response"}, {"indices": [-1], "of": "response"}])
def test_an_end_that_is_not_known_is_refused(rule: Any, colons: Any) -> None:
    m = steered(tiny("llama", colons), colons, rule)
    with pytest.raises(PositionError, match=r"v: positions .* count from the end"):
        answer_questions(m, PROMPTS, MANY)
    with m.disabled():
        answer_questions(m, PROMPTS, MANY[:1], max_new_tokens=2)


def test_an_edit_of_nothing_is_an_error(colons: Any) -> None:
    m = steered(tiny("llama", colons), colons, {"indices": [40], "of": "response"})
    with pytest.raises(NotSteeredError):
        answer_questions(m, PROMPTS, MANY[:2], max_new_tokens=3)


def test_without_sharing_where_a_rule_forbids_it(colons: Any, caplog: pytest.LogCaptureFixture) -> None:
    m = steered(asking("llama", colons), colons, {"last": 200, "of": "prompt"})
    with caplog.at_level(logging.WARNING):
        answers, receipts = answer_questions(m, PROMPTS, MANY, max_new_tokens=NEW, batch_size=3)
    assert "select other tokens in every prompt" in caplog.text
    assert answers == [cut(m, alone(m, PROMPTS, question)) for question in MANY]
    assert receipts[0][0].edited["response"] == 0
    assert receipts[0][0].tokens == 200 * len(MANY)


def test_of_a_model_with_a_state(colons: Any, caplog: pytest.LogCaptureFixture) -> None:
    config = transformers.MambaConfig(
        vocab_size=len(colons), hidden_size=16, num_hidden_layers=2, state_size=4, eos_token_id=None
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = IntervenedModel.plain(transformers.MambaForCausalLM(config).eval(), colons)
    with caplog.at_level(logging.WARNING):
        answers, _ = answer_questions(plain, PROMPTS, MANY[:2], max_new_tokens=4, batch_size=1)
    assert "state that cannot be forked" in caplog.text
    assert answers == [cut(plain, alone(plain, PROMPTS, question, 4)) for question in MANY[:2]]


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["instruction_qa", "chat"])
def test_of_smollm2(smollm2: Any, data: Path, preset: Any) -> None:
    model, tokenizer = smollm2
    prompts = load_prompts(preset, "primer_qa.txt", "instruction.txt", data)
    questions = limited(load_questions(QuestionsSpec(file="TruthfulQA.csv"), data), 3)
    vector = torch.randn(576, generator=torch.Generator().manual_seed(0))
    entry = steering("response", coefficient=1.0, layer=14)
    m = intervened(model, entry, tensors={"v.block_output[14]": vector})
    m.tokenizer = tokenizer
    answers, _ = answer_questions(m, prompts, questions, max_new_tokens=12)
    if preset == "chat":
        expected = [tokenizer.decode(alone(m, prompts, q, 12), skip_special_tokens=True) for q in questions]
        assert answers == [text.strip() for text in expected]
    else:
        assert answers == [cut(m, alone(m, prompts, q, 12)) for q in questions]
    assert all(answers)
