"""The example of a localized edit, shortened: trained, saved, reloaded, exported, generated with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from checkout import EXAMPLES

from subvene.runner import IntervenedModel, export, fit
from subvene.specs import ExperimentSpec, load_spec


@pytest.mark.long
@pytest.mark.slow
def test_from_preferences_to_an_adapter(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    spec = load_spec(EXAMPLES / "localized-edit.yaml")
    assert isinstance(spec, ExperimentSpec)
    model, tokenizer = smollm2
    short = {"data": spec.fit.data.model_copy(update={"limit": 20}), "epochs": 1, "learning_rate": 0.02}  # type: ignore[union-attr]
    shortened = spec.model_copy(update={"fit": spec.fit.model_copy(update=short)})  # type: ignore[union-attr]
    m = fit(shortened, model=model, tokenizer=tokenizer, folder=EXAMPLES)
    first, last = m.provenance["evaluations"][0], m.provenance["evaluations"][-1]
    assert first["loss"] == pytest.approx(25)  # (1/(2τ))²
    assert last["loss"] < 24

    m.save_pretrained(tmp_path / "edit")
    again = IntervenedModel.from_pretrained(tmp_path / "edit", model=model, tokenizer=tokenizer)
    prompts = ["What is a good way to learn the piano?"]
    answers = [one.generate(prompts, max_new_tokens=32) for one in (m, again)]
    assert answers[0] == answers[1]
    with m.disabled():
        assert m.generate(prompts, max_new_tokens=32) != answers[0]

    folder = export(again, "peft", tmp_path / "adapter")
    record = json.loads((folder / "equivalence.json").read_text(encoding="utf-8"))
    assert record["exactness"] == "exact"
    ids = tokenizer("How many planets are there?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = m(ids, prompt_lengths=[ids.shape[1]]).logits
    adapted = peft.PeftModel.from_pretrained(model, folder)
    try:
        with torch.no_grad():
            found = adapted(input_ids=ids).logits
    finally:
        adapted.unload()
    assert (found - expected).abs().max() < 5e-4
    assert record["max_logit_effect"] > 0.05
