"""The card on the Hub: complete, nothing invented, and with the numbers of its run."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hub_artifacts import NAME, logits
from hub_server import Hub
from huggingface_hub import ModelCard

from subvene.runner.artifacts import hub
from subvene.runner.artifacts.card import CardError, finished
from subvene.runner.artifacts.hub import HubError
from subvene.runner.experiments.results import Results, ResultsError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.reports.publish import card_table
from subvene.runner.reports.pushed import measured_of


def of_format_1(coefficient: float) -> dict[str, Any]:
    """The `results.json` of a plain run of an older version."""
    record = {
        "coefficient": coefficient,
        "mean_difference": 0.123456,
        "standard_error": None,
        "positive_preferred": 1.0,
    }
    contrast = {"kind": "contrast", "records": [record], "pairs": [[0.123456]], "tokens_edited": 32}
    return {"evaluations": [contrast, {"kind": "samples", "records": [], "receipt": []}], "provenance": {}}


def card_of(server: Hub) -> ModelCard:
    return ModelCard(server.content(NAME, "README.md").decode())


def test_the_card_is_complete(m: IntervenedModel, server: Hub) -> None:
    m.spec = m.spec.model_copy(update={"model": m.spec.model.model_copy(update={"name": "meta/llama"})})
    m.provenance = {"recipe": "mean_difference"}
    logits(m)
    results = Results.of(of_format_1(1.5) | {"reload_max_logit_difference": 0.0})
    m.push_to_hub(NAME, licence="apache-2.0", measured=card_table(results, None))
    card = card_of(server)
    assert card.data.to_dict() == {
        "base_model": "meta/llama",
        "base_model_relation": "adapter",
        "library_name": "subvene",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["pyvene", "activation-steering", "steering"],
    }
    for said in (
        "## Intended use",
        'm = IntervenedModel.from_pretrained("ann/glad")',
        'model = transformers.AutoModelForCausalLM.from_pretrained("meta/llama")\n'
        'm = pyvene.IntervenableModel.load("ann/glad", model)',
        server.content(NAME, "intervention.yaml").decode(),
        "## Measured\n\n**contrast: 1 pair**\n\n"
        "| coefficient | mean difference | standard error | positive preferred |\n"
        "| --- | --- | --- | --- |\n| 1.5 | 0.1235 | – | 1 |\n",
        "32 tokens edited\n\n## Receipt",
        "| glad | block_output[1] | response |",
        '"recipe": "mean_difference"',
        "## Licence\n\napache-2.0, of this folder.",
    ):
        assert said in card.text


def test_a_card_invents_nothing(folder: Path, server: Hub) -> None:
    hub.push(folder, NAME)
    card = card_of(server)
    assert card.data.license is None
    assert card.data.base_model is None  # a local folder
    assert "## Licence\n\nNone is stated" in card.text
    assert "## Measured\n\nNothing that was measured" in card.text
    assert 'load_model("' in card.text


def test_an_edited_card_stays_edited(folder: Path, server: Hub) -> None:
    card = ModelCard.load(folder / "README.md")
    card.data.language, card.text = "en", card.text + "\n## Thanks\n\nTo you.\n"
    card.save(folder / "README.md")
    hub.push(folder, NAME, licence="mit")
    pushed = card_of(server)
    assert (pushed.data.language, pushed.data.license) == ("en", "mit")
    ending = "## Licence\n\nmit, of this folder. The base model keeps its own.\n\n## Thanks\n\nTo you."
    assert pushed.text.rstrip().endswith(ending)


@pytest.mark.parametrize("licence", ["Apache 2.0", "", "mit\nx: y", "MIT"])
def test_a_licence_that_is_no_name_for_one(folder: Path, server: Hub, licence: str) -> None:
    with pytest.raises(CardError, match="expected one of the Hub's names for licences"):
        hub.push(folder, NAME, licence=licence)
    assert server.seen == []


def test_front_matter_that_is_none(folder: Path, server: Hub) -> None:
    (folder / "README.md").write_text("---\n- a\n- list\n---\n")
    with pytest.raises(CardError, match="front matter is not valid"):
        hub.push(folder, NAME)
    assert server.seen == []


def test_sections_are_replaced_where_they_stand() -> None:
    text = "# T\n\n## Measured\n\nold\n\n## Licence\n\nold\n"
    table = "| a |\n| --- |\n| 1 |"
    once = finished(text, repo_id=NAME, licence="mit", measured=table)
    assert once == finished(once, repo_id=NAME, licence="mit", measured=table)
    assert "\nold" not in once
    assert once.index("# T") < once.index("| a |") < once.index("## Licence")


@pytest.mark.parametrize("results", [{}, {"evaluations": 3}, {"rows": [1]}, [], {"format": 3}])
def test_what_are_no_results(results: Any) -> None:
    with pytest.raises(ResultsError, match="no results of `subvene run`"):
        Results.of(results)


def test_a_pushed_run_brings_its_results(m: IntervenedModel, server: Hub, tmp_path: Path) -> None:
    run = tmp_path / "run"
    m.save_pretrained(run / "artifact")
    (run / "experiment.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(of_format_1(7)))
    for source in (run, run / "artifact"):
        with contextlib.suppress(KeyError):
            del server.repositories[NAME]
        hub.push(source, NAME, measured=measured_of(source))
        assert "| 7 | 0.1235 |" in card_of(server).text
    (run / "results.json").write_text("{")
    with pytest.raises(ResultsError, match=r"results.json: cannot be read as the results of a run"):
        measured_of(run)


def test_one_of_a_runs_artifacts_brings_the_runs_results(
    m: IntervenedModel, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    for name in ("weak", "strong"):
        m.save_pretrained(run / "artifacts" / name)
    (run / "experiment.yaml").write_text("")
    (run / "results.json").write_text(json.dumps(of_format_1(7)))
    weak = run / "artifacts" / "weak"
    hub.push(weak, NAME, measured=measured_of(weak))
    assert "| 7 | 0.1235 |" in card_of(server).text
    monkeypatch.chdir(run / "artifacts" / "strong")
    hub.push(".", "ann/strong", measured=measured_of(Path(".")))
    assert b"| 7 | 0.1235 |" in server.content("ann/strong", "README.md")
    with pytest.raises(
        HubError, match=r"several artifacts; push one of .*artifacts/strong, .*artifacts/weak"
    ):
        measured_of(run)
    # A folder called `artifacts` that is no run's has no numbers.
    (run / "experiment.yaml").unlink()
    hub.push(weak, "ann/alone", measured=measured_of(weak))
    assert b"Nothing that was measured" in server.content("ann/alone", "README.md")
