"""`m.sweep`: every cell is what a model with that layer and coefficient gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_model import write_tiny_model

from subvene import IntervenedModel, SubveneError, fit
from subvene.runner.measures.contrast import differences

PAIRS = [("i am glad", "i am sad"), ("very good day", "very bad day")]
PROMPTS = ["how are you ?", "tell me about the train"]
CONTRASTS = [("how are you ?", "i am happy", "i am gloomy"), ("hello", "good", "bad")]
COEFFICIENTS = [-4.0, 0.0, 4.0]


@pytest.fixture(scope="module")
def m(tmp_path_factory: pytest.TempPathFactory) -> IntervenedModel:
    folder = write_tiny_model(tmp_path_factory.mktemp("sweep") / "model")
    given: dict[str, Any] = {"key": "glad", "layer": 1, "coefficient": 2.0, "positions": "response"}
    return fit("mean_difference", folder, pairs=PAIRS, **given)


def test_every_cell_is_what_a_model_of_its_own_gives(m: IntervenedModel) -> None:
    swept = m.sweep(PROMPTS, layers=[0, 2], coefficients=COEFFICIENTS, contrasts=CONTRASTS, max_new_tokens=5)
    assert [(cell.layer, cell.coefficient) for cell in swept.cells] == [
        (layer, c) for layer in (0, 2) for c in COEFFICIENTS
    ]
    for cell in swept.cells:
        alone = swept.at(cell.layer, cell.coefficient)
        assert alone.spec.interventions[0].layer == cell.layer
        answers = [
            alone.generate(p, max_new_tokens=5, do_sample=False, eos_token_id=2)[0].strip() for p in PROMPTS
        ]
        assert list(cell.answers) == answers
        ratios, _ = differences(alone, CONTRASTS, batch_size=4)
        assert cell.preference == pytest.approx(sum(ratios) / len(ratios), abs=1e-4)
    best = swept.choose()
    assert best.preference == max(cell.preference or 0.0 for cell in swept.cells)


def test_it_is_a_table_and_a_heat_map(m: IntervenedModel) -> None:
    swept = m.sweep(PROMPTS, layers=[1], coefficients=COEFFICIENTS, contrasts=CONTRASTS, max_new_tokens=2)
    table = swept.to_pandas()
    assert table.columns.tolist() == ["layer", "coefficient", "prompt", "answer", "preference", "not_finite"]
    assert len(table) == len(COEFFICIENTS) * len(PROMPTS)
    html = swept._repr_html_()
    assert html.count("<td") == len(COEFFICIENTS)
    assert "rgba(49,130,189,0.60)" in html


def test_a_point_that_is_not_finite_says_so_and_is_not_chosen(m: IntervenedModel) -> None:
    swept = m.sweep(PROMPTS, layers=[1], coefficients=[0, 1, 3e38], contrasts=CONTRASTS, max_new_tokens=2)
    broken = swept[1, 3e38]
    assert broken.not_finite is not None
    assert (broken.answers, broken.preference) == ((), None)
    assert swept[1, 1.0].answers
    assert swept.choose().coefficient < 2
    assert "not finite" in swept._repr_html_()


def test_what_cannot_be_swept_is_refused_by_name(m: IntervenedModel, tmp_path: Path) -> None:
    with pytest.raises(SubveneError, match=r"no vector of block_output at 7; it has: 0, 1, 2"):
        m.sweep(PROMPTS, layers=[1, 7], coefficients=[1])
    with pytest.raises(SubveneError, match="pass contrasts="):
        m.sweep(PROMPTS, layers=[1], coefficients=[1], max_new_tokens=1).choose()
    gains = {"kind": "scaling", "site": "attention_heads", "layer": 1, "heads": [0], "gain": 0.0}
    spec = {"subvene": 1, "model": {"name": "given"}, "interventions": [gains]}
    other = IntervenedModel.from_spec(spec, model=m.model, tokenizer=m.tokenizer)
    with pytest.raises(SubveneError, match="kind steering, found scaling"):
        other.sweep(PROMPTS, layers=[1], coefficients=[1])


ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "a text, which has letters": ({"prompts": "hello"}, r"prompts: expected a non-empty list, .* 'hello'"),
    "nothing": ({"prompts": []}, "prompts: expected a non-empty list"),
    "no layer": ({"layers": []}, r"layers: expected a non-empty list of integers >= 0, found \[\]"),
    "a layer in words": ({"layers": ["1"]}, "layers: expected .*, found \\['1'\\]"),
    "no coefficient": ({"coefficients": []}, "coefficients: expected a non-empty list of finite numbers"),
    "nan": ({"coefficients": [float("nan")]}, "coefficients: expected a non-empty list of finite numbers"),
    "two of a contrast": (
        {"contrasts": [("hello", "good")] * 2},
        r"contrasts\[0\]: expected \(pr",
    ),
    "four of a contrast": (
        {"contrasts": [(*CONTRASTS[0], "x")]},
        r"contrasts\[0\]: expected \(pr",
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_what_would_be_swept_as_something_else_is_refused(m: IntervenedModel, case: str) -> None:
    fields, words = ASKED[case]
    asked: dict[str, Any] = {"prompts": PROMPTS, "layers": [1], "coefficients": COEFFICIENTS} | fields
    with pytest.raises(SubveneError, match=words):
        m.sweep(**asked)
