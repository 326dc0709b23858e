"""Runs whose judge gave no usable reply: they say so, choose nothing by it, and take it up the next time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from counting_judge import Counting, install
from faulty_judge import Faulty, faulty_judge
from tiny_questions import PRIMER, QUESTIONS, write_questions

from subvene.runner import Results, run_experiment
from subvene.runner.experiments.persona.section import ExtractionCounts
from subvene.runner.experiments.results import missing_verdicts
from subvene.runner.experiments.rows import rows
from subvene.runner.judges import COHERENCE, Answer, JudgeError, Quality, Score
from subvene.runner.reports.persona_tables import section_of

COMPARISON = """\
interventions:
- {{kind: steering, name: v, layer: 1, vector: {{file: t.safetensors, key: v}}, coefficient: 3}}
conditions:
- {{name: baseline, interventions: []}}
- {{name: v}}
evaluate:
- kind: truthfulqa
  data: {{file: questions.csv}}
  preset: qa
  primer: primer.txt
  max_new_tokens: 4
  measure: [generation]
  judge: {{kind: openai, base_url: "{url}/v1", model: judge, max_retries: 1, timeout: 30}}
"""


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty_judge() as state:
        yield state


@pytest.fixture
def comparison(write: Callable[..., Path], tmp_path: Path, server: Faulty, monkeypatch: Any) -> Path:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "primer.txt").write_text(PRIMER)
    write_questions(tmp_path / "questions.csv", QUESTIONS)
    return write(COMPARISON.format(url=server.url), "comparison.yaml")


def run(path: Path, output: Path) -> Results:
    return run_experiment(path, output=output).results


def tables(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "tables").iterdir()}


def judgements(output: Path) -> list[dict[str, Any]]:
    lines = (output / "units.jsonl").read_text().splitlines()
    units = [json.loads(line) for line in lines]
    return [unit["result"] for unit in units if unit["unit"]["unit"] == "judgement"]


def test_a_comparison_takes_up_what_is_missing(comparison: Path, server: Faulty, tmp_path: Path) -> None:
    run(comparison, tmp_path / "whole")
    (tmp_path / "cache").rename(tmp_path / "cache of the whole run")
    server.forget()
    about = "Q: are you sad"
    server.choose = lambda prompt, n: "error" if prompt.startswith(about) else None
    output = tmp_path / "run"
    results = run(comparison, output)
    n = sum(row.missing for row in rows(results.conditions))
    assert n == 4  # truth and informativeness, of two conditions
    assert [row.missing for row in rows(results.conditions)] == [2, 2]
    markdown = (output / "tables" / "results.md").read_text()
    assert "| verdicts missing |" in markdown
    for text in (markdown, (output / "report.html").read_text()):
        assert (
            "4 verdicts are missing, because the judge gave no usable reply (4 × the server answered " in text
        )
        assert "run the same command again" in text
    with (output / "tables" / "results.csv").open() as file:
        assert [row["verdicts_missing"] for row in csv.DictReader(file)] == ["2", "2"]
    assert judgements(output) == []

    # The server works again: only what is missing is asked for, and nothing of it is to be seen.
    server.choose, _ = (lambda prompt, n: None), server.forget()
    results = run(comparison, output)
    assert sorted(prompt.startswith(about) for prompt in server.tries) == [True] * len(server.tries)
    assert [row.missing for row in rows(results.conditions)] == [0, 0]
    assert tables(output) == tables(tmp_path / "whole")
    kept = [
        one for result in judgements(output) for by in result["judgements"].values() for one in by.values()
    ]
    assert len(kept) == 2 * 2 * len(QUESTIONS)
    assert all(one["verdict"] is not None for one in kept)


def test_nothing_is_chosen_by_what_is_missing(comparison: Path, server: Faulty, tmp_path: Path) -> None:
    fit = "fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3}, VALID}\n"
    fit = fit.replace("VALID", "ranking_folds: 2, validation: 0.34")
    text = comparison.read_text().replace("interventions:\n", f"{fit}interventions:\n", 1)
    head = "- {kind: head_direction, name: v, directions: {key: t}, strength: 3, positions: response}\n"
    lines = [head if line.startswith("- {kind: steering") else line for line in text.splitlines(True)]
    chosen = "- {name: v, sweep: {v.strength: [1, 5]}, choose: {by: 'true'}}\n"
    text = "".join(chosen if line == "- {name: v}\n" else line for line in lines)
    comparison.write_text(text)
    server.choose = lambda prompt, n: "html" if prompt.endswith("True:") and "capital" not in prompt else None
    with pytest.raises(
        JudgeError, match=r"condition v: nothing can be chosen yet: \d verdicts? (is|are) missing"
    ):
        run(comparison, tmp_path / "run")
    server.choose = lambda prompt, n: None
    (choice,) = run(comparison, tmp_path / "run").choices
    assert choice.chosen is not None


class Silent(Counting):
    """Counts, and of some exchanges says nothing usable."""

    def __init__(self) -> None:
        super().__init__()
        self.silent: Callable[[Answer], bool] = lambda exchange: False

    def zero_to_hundred(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Score]:
        missing = Score(None, reason="the server's reply is no JSON", missing=True)
        scores = super().zero_to_hundred(answers, quality)
        if quality == COHERENCE:
            return scores
        return [missing if self.silent(one) else s for one, s in zip(answers, scores, strict=True)]


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Silent:
    silent = Silent()
    install(silent, monkeypatch)
    return silent


@pytest.fixture
def persona(write: Callable[..., Path], tmp_path: Path) -> Path:
    trait = {
        "instruction": [{"pos": "good happy", "neg": "bad sad"}, {"pos": "glad sun", "neg": "not rain bad"}],
        "questions": ["how are you", "tell me about rain", "hello"],
        "eval_prompt": "How early? {question} {answer} 0-100",
        "evaluation_questions": ["are you glad", "tell me", "the train", "about day and sun"],
    }
    (tmp_path / "early.json").write_text(json.dumps(trait))
    return write(
        """fit:
  recipe: persona
  traits: [{name: early, file: early.json}]
  sampling: {max_new_tokens: 6, rollouts: 1}
  keep: {positive: 0, negative: 100, coherence: 0}
interventions:
- {kind: steering, name: s, layer: 1, vector: {key: early}, coefficient: 0.5, unit: residual_norm}
evaluate:
- {kind: trait_sweep, sampling: {max_new_tokens: 6, rollouts: 1}, layers: [0], coefficients: [1],
   questions: 2, choose: {by: score, coherence: 0}}
- kind: trait_conditions
  sampling: {max_new_tokens: 6, rollouts: 1}
  conditions: [{kind: baseline}, {kind: steered}]
""",
        "persona.yaml",
    )


def test_a_persona_run_takes_up_what_is_missing(persona: Path, judge: Silent, tmp_path: Path) -> None:
    whole = run(persona, tmp_path / "whole")
    asked = "the train"
    judge.silent = lambda exchange: exchange.question == asked
    output = tmp_path / "run"
    found = run(persona, output)
    assert [condition.counts["missing"] for condition in found.conditions] == [1, 1]
    assert missing_verdicts(found.conditions) == {"the server's reply is no JSON": 2}
    assert {tuple(item.missing) for one in found.conditions for item in one.items} == {(), ("score",)}
    assert any("baseline: 1 verdict is missing" in note for note in found.notes)
    markdown = (output / "tables" / "conditions.md").read_text()
    assert "| missing |" in markdown
    assert "run the same command again" in markdown
    judge.silent, judge.asked = (lambda exchange: False), 0
    again = run(persona, output)
    assert (again.conditions, again.sections) == (whole.conditions, whole.sections)
    # Two conditions of two questions and no response written again, and four nulls of two questions.
    assert judge.asked == 4 + 8
    assert tables(output) == tables(tmp_path / "whole")


def extraction(results: Results) -> ExtractionCounts:
    return section_of(results).traits["early"].extraction


def test_a_vector_says_which_pairs_it_lacks(persona: Path, judge: Silent, tmp_path: Path) -> None:
    judge.silent = lambda exchange: exchange.question == "hello"
    found = extraction(run(persona, tmp_path / "run"))
    # One of the four responses to it is empty, and no judge is asked about nothing.
    assert (found.missing, found.dropped) == (3, {"missing": 1, "empty": 1})
    assert "3 verdicts are missing" in str(found.warning)
    judge.silent = lambda exchange: False
    assert extraction(run(persona, tmp_path / "run")).dropped == {"empty": 1}


def test_no_point_of_a_sweep_is_chosen_by_what_is_missing(
    persona: Path, judge: Silent, tmp_path: Path
) -> None:
    judge.silent = lambda exchange: exchange.question == "tell me"
    with pytest.raises(JudgeError, match="early: sweep: nothing can be chosen yet: 2 verdicts are missing"):
        run(persona, tmp_path / "run")
    judge.silent = lambda exchange: False
    (choice,) = run(persona, tmp_path / "run").choices
    assert choice.chosen is not None
