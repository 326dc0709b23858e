"""Contrast: its numbers are those of scores summed by hand, and coefficient 0 is the untouched model."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from subvene.runner import IntervenedModel
from subvene.runner.data.text import TextError
from subvene.runner.measures import contrast
from subvene.runner.measures.contrast import contrast_texts, run_contrast
from subvene.specs import ContrastSpec, SpecError, SubveneError

TEXTS = [
    {"prompt": "how is the day", "positive": "happy and good", "negative": "gloomy"},
    {"prompt": "hello", "positive": "glad", "negative": "i am very very sad"},
    {"prompt": "tell me about the train", "positive": "it is good", "negative": "it is bad"},
]
COEFFICIENTS = [-2.0, 0.0, 1.5]


def spec_of(pairs: Any = None, **fields: Any) -> ContrastSpec:
    given = {"coefficients": COEFFICIENTS, "pairs": pairs or {"texts": TEXTS}, **fields}
    return ContrastSpec.model_validate(given)


@pytest.fixture
def m(steer: Path) -> IntervenedModel:
    return IntervenedModel.from_spec(steer)


@torch.no_grad()
def by_hand(m: IntervenedModel, coefficient: float) -> list[float]:
    """log p(positive) − log p(negative) of each pair; block 1 is edited by hand, each text alone."""
    found = []
    for pair in TEXTS:
        prompt = f"<s> user : {pair['prompt']} <s> assistant :".split()
        scores = []
        for side in ("positive", "negative"):
            ids = m.tokenizer.convert_tokens_to_ids([*prompt, *pair[side].split()])
            edit = torch.zeros(len(ids), 32)
            edit[len(prompt) - 1 :, 3] = 4 * coefficient  # the vector `v` of the fixture
            handle = m.model.model.layers[1].register_forward_hook(
                lambda _module, _args, output, edit=edit: output + edit
            )
            log_p = m.model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
            handle.remove()
            scores.append(sum(float(log_p[i - 1, ids[i]]) for i in range(len(prompt), len(ids))))
        found.append(scores[0] - scores[1])
    return found


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_against_hand_values(m: IntervenedModel, tmp_path: Path, batch_size: int) -> None:
    result = run_contrast(m, spec_of(batch_size=batch_size), tmp_path)
    assert result["kind"] == "contrast"
    assert [record["coefficient"] for record in result["records"]] == COEFFICIENTS
    for c, record, row in zip(COEFFICIENTS, result["records"], result["pairs"], strict=True):
        expected = by_hand(m, c)
        assert row == pytest.approx(expected, abs=1e-4)
        assert record["mean_difference"] == pytest.approx(sum(expected) / 3, abs=1e-4)
        assert record["standard_error"] == pytest.approx(statistics.stdev(expected) / 3**0.5, abs=1e-4)
        assert record["positive_preferred"] == sum(d > 0 for d in expected) / 3
    assert {record["positive_preferred"] for record in result["records"]} != {0.0}
    means = [record["mean_difference"] for record in result["records"]]
    assert max(means) - min(means) > 0.1
    # Cursors and responses of both sides, at the coefficients that are not 0 and at 0.
    assert result["tokens_edited"] in {2 * 22, 3 * 22}


def test_coefficient_0_is_the_disabled_model(m: IntervenedModel, tmp_path: Path) -> None:
    swept = run_contrast(m, spec_of(), tmp_path)["pairs"][COEFFICIENTS.index(0.0)]
    with m.disabled():
        baseline = run_contrast(m, spec_of(coefficients=[0.0]), tmp_path)
    assert baseline["tokens_edited"] == 0
    assert swept == pytest.approx(baseline["pairs"][0], abs=1e-5)


def test_the_statistics(m: IntervenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = {0: [-1.0, -4.0, -2.0, -2.0, -6.0, -3.0], 1: [-1.0, -2.0, -5.0, -3.0, -2.0, -9.0]}

    def log_probs(_m: Any, pairs: Any, **_: Any) -> Any:
        assert len(pairs) == 12
        return torch.tensor([*totals[0], *totals[1]], dtype=torch.float64), []

    monkeypatch.setattr(contrast, "log_probs", log_probs)
    result = run_contrast(m, spec_of(coefficients=[0.0, 1.0]), tmp_path)
    assert result["pairs"] == [[3.0, 0.0, -3.0], [1.0, -2.0, 7.0]]
    zero, one = result["records"]
    assert zero == {
        "coefficient": 0.0,
        "mean_difference": 0.0,
        "standard_error": pytest.approx(3 / 3**0.5),
        "positive_preferred": pytest.approx(1 / 3),  # a tie prefers neither
    }
    assert (one["mean_difference"], one["positive_preferred"]) == (2.0, pytest.approx(2 / 3))
    assert one["standard_error"] == pytest.approx((21 / 3) ** 0.5)


def test_one_pair_has_no_standard_error(m: IntervenedModel, tmp_path: Path) -> None:
    result = run_contrast(m, spec_of({"texts": TEXTS[:1]}), tmp_path)
    assert [record["standard_error"] for record in result["records"]] == [None] * 3


def test_pairs_of_a_file(m: IntervenedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held-out.yaml").write_text(yaml.safe_dump({"texts": TEXTS}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = run_contrast(m, spec_of({"file": "held-out.yaml"}), tmp_path)
    assert found == run_contrast(m, spec_of(), tmp_path)


SYSTEMS = "systems: [{positive: be happy, negative: be sad}]\nquestions: [how are you]\n"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (SYSTEMS, SubveneError, "its pairs are `systems`; it needs `texts`"),
        ("texts: [{positive: glad, negative: sad}]\n", SubveneError, r"texts\[0\]\.prompt is missing"),
        ("texts: [{prompt: hello, positive: glad}]\n", SpecError, "negative"),
        (None, SpecError, r"pairs\.yaml"),
    ],
    ids=["systems", "no prompt", "no negative", "no file"],
)
def test_pairs_that_cannot_be_scored(
    tmp_path: Path, text: str | None, error: type[Exception], message: str
) -> None:
    if text is not None:
        (tmp_path / "pairs.yaml").write_text(text)
    with pytest.raises(error, match=message):
        contrast_texts(spec_of({"file": "pairs.yaml"}), tmp_path)


def test_an_answer_without_a_token_is_an_error(m: IntervenedModel, tmp_path: Path) -> None:
    texts = [TEXTS[0], TEXTS[1] | {"negative": " "}]
    with pytest.raises(TextError, match="pair 3: the response holds no token"):
        run_contrast(m, spec_of({"texts": texts}), tmp_path)


def test_several_interventions_share_the_coefficient(write: Callable[..., Path], tmp_path: Path) -> None:
    entry = (
        "- {kind: steering, layer: 1, vector: {file: t.safetensors, key: %s}, coefficient: 1, "
        "positions: response}\n"
    )
    both = IntervenedModel.from_spec(write("interventions:\n" + entry % "v" + entry % "w"))
    one = IntervenedModel.from_spec(write("interventions:\n" + entry % "u"))  # u = v + w
    found, expected = (run_contrast(m, spec_of(), tmp_path)["pairs"] for m in (both, one))
    for row, known in zip(found, expected, strict=True):
        assert row == pytest.approx(known, abs=1e-4)
