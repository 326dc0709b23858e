"""Screening: ΔP is the mean difference between a data set's answers and the model's own, prompt by prompt."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from subvene.runner import IntervenedModel
from subvene.runner.data.span import Text
from subvene.runner.data.text import prompt_ids
from subvene.runner.data.transcripts import Columns, Transcript, transcripts_of
from subvene.runner.monitor.projection import project
from subvene.runner.monitor.screening import Screening, interval, screen

ROWS = [
    {"prompt": "hello world", "response": "i am very happy and glad"},
    {"prompt": "how are you", "response": "gloomy"},
    {"prompt": "hello world", "response": "the rain is bad"},
    {"prompt": "tell me about the day", "response": ""},
    {
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": "sad"},
            {"role": "user", "content": "why"},
            {"role": "assistant", "content": "good day sun"},
        ]
    },
]
NEW = 5


def data(rows: Any = ROWS) -> list[Transcript]:
    return transcripts_of([(f"row {i}", row) for i, row in enumerate(rows)], Columns(), "data")


@pytest.fixture
def m(steer: Path) -> IntervenedModel:
    return IntervenedModel.from_spec(steer)


@pytest.fixture
def vectors(m: IntervenedModel) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        width = m.model.config.hidden_size
        return {"glad": {1: torch.randn(width), 2: torch.randn(width)}}


def own_answer(m: IntervenedModel, prompt: list[int]) -> list[int]:
    """Greedy, of the untouched model, without the token that ends it."""
    end = m.tokenizer.eos_token_id
    ids = m.model.generate(torch.tensor([prompt]), max_new_tokens=NEW, do_sample=False, eos_token_id=end)
    return [token for token in ids[0, len(prompt) :].tolist() if token != end]


def test_differences_are_those_of_one_sample_at_a_time(m: IntervenedModel, vectors: Any) -> None:
    found = screen(m, data(), vectors, max_new_tokens=NEW, batch_size=2)
    tokenizer = m.tokenizer
    assert found.left_out == 1
    for layer in (1, 2):
        differences = []
        for i, transcript in enumerate(data()):
            before, answer = transcript.messages[:-1], transcript.messages[-1]["content"]
            prompt = prompt_ids(tokenizer, before[0]["content"] if len(before) == 1 else before)
            sides = [tokenizer(answer, add_special_tokens=False)["input_ids"], own_answer(m, prompt)]
            texts = [Text((*prompt, *side), len(prompt), len(prompt) + len(side)) for side in sides]
            values = [float(project(m, [text], vectors).before["glad"][layer]) for text in texts]
            differences.append(values[0] - values[1])
            # One with the model's interventions would say something else.
            assert found.own[i].tokens == tuple(sides[1])
        per_sample = found.per_sample()["glad"][layer].tolist()
        assert per_sample == pytest.approx(differences, abs=1e-5, nan_ok=True)
        assert [math.isnan(value) for value in per_sample] == [False, False, False, True, False]
        known = [value for value in differences if math.isfinite(value)]
        one = next(one for one in found.differences if one.layer == layer)
        assert (one.key, one.n) == ("glad", 4)
        assert one.difference == pytest.approx(np.mean(known), abs=1e-5)
        assert one.data - one.own == pytest.approx(one.difference)  # type: ignore[operator]
        assert one.low < one.difference < one.high  # type: ignore[operator]
        assert min(known) <= one.low + 1e-5  # type: ignore[operator]


def test_the_model_s_own_answers_differ_from_themselves_by_nothing(m: IntervenedModel, vectors: Any) -> None:
    said = {
        prompt: own_answer(m, prompt_ids(m.tokenizer, prompt))
        for prompt in (
            "hello world",
            "how are you",
            "good day",
            "rain",
            "the sun is bad",
            "i am sad",
            "not happy",
        )
    }
    # A text that spells special tokens is no answer that a file may hold.
    special = set(m.tokenizer.all_special_ids)
    rows = [
        {"prompt": prompt, "response": m.tokenizer.decode(answer)}
        for prompt, answer in said.items()
        if not special & set(answer)
    ]
    assert len(rows) >= 2
    found = screen(m, data(rows), vectors, max_new_tokens=NEW)
    # Every token of the tiny model is a word, so that what it says is tokenised back to the same ids.
    for answer, sample in zip(found.own, found.samples, strict=True):
        assert answer.tokens == sample.read.ids[sample.read.start :]
    assert found.differences[0].difference == pytest.approx(0, abs=1e-5)


def test_long_answers_are_shortened_and_counted(m: IntervenedModel, vectors: Any) -> None:
    found = screen(m, data(ROWS[:3]), vectors, max_new_tokens=NEW, max_answer_tokens=2)
    assert found.shortened == 2
    assert found.data_projections.tokens.tolist() == [2, 1, 2]


def test_the_csv_is_sorted_by_the_difference(m: IntervenedModel, vectors: Any, tmp_path: Path) -> None:
    found = screen(m, data(), vectors, max_new_tokens=NEW)
    found.write_csv(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    column = [row["glad@1 difference"] for row in rows]
    assert column[-1] == ""
    assert rows[-1]["where"] == "row 3"
    numbers = [float(value) for value in column[:-1]]
    assert numbers == sorted(numbers, reverse=True)
    values = found.per_sample()["glad"][1].tolist()
    for row in rows[:-1]:
        i = int(row["sample"])
        assert float(row["glad@1 difference"]) == pytest.approx(values[i], abs=1e-4)
        assert float(row["glad@2 data"]) - float(row["glad@2 own"]) == pytest.approx(
            float(row["glad@2 difference"]), abs=1e-4
        )
        assert row["answer"] == data()[i].messages[-1]["content"]


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        found = interval(rng.normal(3.0, 2.0, 60).tolist(), 0.9, 499, seed)
        covered += found is not None and found[0] <= 3.0 <= found[1]
    assert 80 <= covered <= 97
    assert interval([1.0], 0.95, 99, 0) is None
    assert interval([2.0, 2.0], 0.95, 99, 0) == (2.0, 2.0)


def test_nothing_to_compare_is_no_number(m: IntervenedModel, vectors: Any) -> None:
    found: Screening = screen(m, data(ROWS[3:4]), vectors, max_new_tokens=NEW)
    assert (found.left_out, found.differences[0].n, found.differences[0].difference) == (1, 0, None)
