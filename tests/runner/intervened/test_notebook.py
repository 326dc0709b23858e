"""What a notebook asks of a model, a receipt, results and a spec: where they are, and how they look."""

from __future__ import annotations

from html import unescape
from typing import Any

import pytest
import torch

from subvene import IntervenedModel, fit
from subvene.runner.experiments.results import Results
from subvene.specs import parse_spec

PAIRS = [("i am very happy", "i am very gloomy"), ("the sun is good", "rain is bad")]


@pytest.fixture
def steered(loaded: tuple[Any, Any]) -> IntervenedModel:
    return fit("mean_difference", *loaded, pairs=PAIRS, layer=1, coefficient=2.0)


def test_a_model_says_where_and_what_it_is(steered: IntervenedModel) -> None:
    assert steered.device == torch.device("cpu")
    assert steered.dtype == torch.float32
    assert steered.config is steered.model.config
    assert steered.to("cpu") is steered
    assert steered.eval() is steered
    assert not steered.model.training
    with pytest.raises(ValueError, match="expected a device, found torch"):
        steered.to(torch.bfloat16)  # type: ignore[arg-type]


def test_a_receipt_is_a_table(steered: IntervenedModel) -> None:
    assert "at block_output[1]" in steered._repr_html_()
    steered.generate("hello world", max_new_tokens=3)
    assert steered.receipt is not None
    (row,) = steered.receipt.to_pandas().to_dict("records")
    receipt = steered.receipt[0]
    assert row["changed"] == receipt.changed > 0
    assert [row[f"{role} tokens"] for role in ("prompt", "cursor", "response")] == list(
        receipt.edited.values()
    )
    head, line = str(steered.receipt).splitlines()
    assert head.split()[:2] == ["intervention", "kind"]
    assert line.split()[:3] == [receipt.name, receipt.kind, "block_output[1]"]


def test_names_in_html_are_text(loaded: tuple[Any, Any]) -> None:
    loaded[0].config._name_or_path = "my<i>model"
    m = fit("mean_difference", *loaded, pairs=PAIRS, layer=1, coefficient=2.0)
    for shown in (m._repr_html_(), m.spec._repr_html_()):
        assert "<i>" not in shown
        assert "my&lt;i&gt;model" in shown


def test_a_spec_is_shown_as_its_file(steered: IntervenedModel) -> None:
    shown = unescape(steered.spec._repr_html_()).removeprefix("<pre>").removesuffix("</pre>")
    assert parse_spec(shown, format="json", own_tensors=True).interventions == steered.spec.interventions


def test_results_without_a_condition_are_an_empty_table() -> None:
    assert "<table" in Results.model_construct(conditions=[])._repr_html_()
