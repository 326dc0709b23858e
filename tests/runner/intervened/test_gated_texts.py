"""Gates where texts are scored and answered: no prefix is shared, and turns are found in conversations."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny_model import WIDTH, write_tiny_model

from subvene.runner import IntervenedModel
from subvene.runner.cli._words import receipt_in_words
from subvene.runner.data.text import prompt_ids, turn_cursors
from subvene.runner.intervened.prefix import why_not_shared
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.reports.receipts import gates

PROMPTS = ["hello world how are you", "i am sad", "rain rain rain rain", "tell me about the train"]
TALK = [
    {"role": "user", "content": "hello world"},
    {"role": "assistant", "content": "i am glad"},
    {"role": "user", "content": "tell me about rain"},
]


def draw(seed: int) -> torch.Tensor:
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny"))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def make(positions: str = "response", **gate: Any) -> IntervenedModel:
        when = {"measure": "projection", "vector": {"key": "c"}, "layer": 0, "above": 0.1} | gate
        steer = {"kind": "steering", "layer": 2, "vector": {"key": "v"}, "coefficient": 2.0}
        spec = {"subvene": 1, "model": {"name": str(folder)}}
        spec["interventions"] = [steer | {"positions": positions, "when": when}]
        tensors = {"v.block_output[2]": 3 * draw(1), "c.block_output[0]": draw(2)}
        return IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)

    return make


def test_rollouts_are_what_generate_gives(made: Any) -> None:
    m = made()
    ids = [prompt_ids(m.tokenizer, prompt, chat=False) for prompt in PROMPTS]
    written, receipts = rollouts(m, [Row(tuple(i), temperature=0.0, max_new_tokens=5) for i in ids])
    expected = [m.generate(prompt, chat=False, max_new_tokens=5, eos_token_id=2)[0] for prompt in PROMPTS]
    assert [row.text for row in written] == [text.strip() for text in expected]
    assert sum(receipt[0].gate.rows_opened for receipt in receipts) == 2
    with m.disabled():
        assert rollouts(m, [Row(tuple(ids[0]), temperature=0.0, max_new_tokens=5)])[1] == []


def test_a_shared_prefix_is_not_taken_and_scores_are_those_of_whole_rows(made: Any) -> None:
    m = made()
    ids = [prompt_ids(m.tokenizer, prompt, chat=False) for prompt in PROMPTS]
    assert "read in one pass over the whole prompt" in str(why_not_shared(m, ids[0][:1], ids[:1]))
    totals, receipts = log_probs(m, [(i, [5, 6, 7]) for i in ids], batch_size=2)
    for i, total in zip(ids, totals, strict=True):
        row = torch.tensor([[*i, 5, 6, 7]])
        with torch.no_grad():
            log_p = m(row, prompt_lengths=[len(i)], must_act=False).logits.double().log_softmax(-1)[0]
        alone = sum(log_p[len(i) - 1 + n, token] for n, token in enumerate([5, 6, 7]))
        assert float(total) == pytest.approx(float(alone), abs=1e-5)
    assert sum(receipt[0].gate.rows_asked for receipt in receipts) == len(PROMPTS)


def test_turns_of_a_conversation_are_found(made: Any) -> None:
    m = made("all", decide="turn")
    ids = prompt_ids(m.tokenizer, TALK)
    cursors = turn_cursors(m.tokenizer, TALK, ids)
    assert cursors == [len(prompt_ids(m.tokenizer, TALK[:1])) - 1, len(ids) - 1]
    answers = m.generate([TALK, "i am sad"], max_new_tokens=4)
    by_text = m.receipt[0].gate
    batch = [ids, prompt_ids(m.tokenizer, "i am sad")]
    width = max(map(len, batch))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in batch])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in batch])
    turns = [cursors, [len(batch[1]) - 1]]
    out = m.generate_ids(padded, mask, turns=turns, max_new_tokens=4)
    assert m.tokenizer.batch_decode(out[:, width:], skip_special_tokens=True) == answers
    assert m.receipt[0].gate == by_text


def test_a_receipt_in_words_tells_the_gate(made: Any, tmp_path: Path) -> None:
    m = made()
    m.generate(PROMPTS, chat=False, max_new_tokens=3)
    words = receipt_in_words(m.receipt.to_dict()[0])
    assert "its gate opened in 2 of 4 rows and at 6 of 12 tokens" in words
    table = gates(("Where",), [(("here", "steering_0"), m.receipt.to_dict())])
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", str(table))
    assert cells == ["steering_0", "when", "2 of 4", "6 of 12"]
    closed = made(above=1e6)
    closed.generate(PROMPTS, chat=False, max_new_tokens=3)
    words = receipt_in_words(closed.receipt.to_dict()[0])
    assert words.endswith("edited no token; its gate opened in 0 of 4 rows and at 0 of 12 tokens")
