"""Facts and causal tracing as they are declared: what is valid, and what is said of what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from subvene.specs import CausalTracingSpec, ExperimentSpec, SpecError, load_facts, parse_spec
from subvene.specs.fact_rows import ReadFacts

HEAD = "subvene: 1\nmodel: {name: a/b}\n"
FACT = "{prompt: the sun is, subject: sun, answer: good}"
TRACE = f"evaluate: [{{kind: causal_tracing, facts: {{facts: [{FACT}]}}}}]\n"
SAMPLES = "evaluate: [{kind: samples, coefficients: [1], prompts: [hello]}]\n"
STEER = "interventions: [{kind: steering, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 1}]\n"


def test_a_file_that_traces_needs_no_interventions() -> None:
    spec = parse_spec(HEAD + TRACE)
    assert isinstance(spec, ExperimentSpec)
    assert spec.traces
    assert spec.interventions == ()
    declared = spec.evaluate[0]
    assert isinstance(declared, CausalTracingSpec)
    assert [(site.site, site.window) for site in declared.sites] == [
        ("block_output", 1),
        ("mlp_output", 10),
        ("attention_output", 10),
    ]
    assert declared.corruption.kind == "noise"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEAD + SAMPLES, "1:1: interventions: expected a non-empty list of interventions, found nothing"),
        (HEAD + "interventions: []\n" + SAMPLES, "3:16: interventions: expected a non-empty list"),
        (HEAD + STEER + TRACE, "interventions: expected nothing, since `evaluate` traces the model as it is"),
        (
            HEAD + TRACE.replace("]\n", ", {kind: samples, coefficients: [1], prompts: [a]}]\n"),
            "evaluate[1]: expected causal_tracing or patching, as other entries are",
        ),
        (HEAD + TRACE.replace("sun, answer", "moon, answer"), "'moon', which stands there not at all"),
        (HEAD + TRACE.replace("the sun is", "sun and sun"), "'sun', which stands there 2 times"),
        (HEAD + TRACE.replace("answer: good", "answer: good, foil: good"), "another text than the answer"),
        (HEAD + TRACE.replace("answer: good", "answer: good, swap: sun"), "another text than the subject"),
        (HEAD + TRACE.replace("}}]", "}, corruption: {kind: nois}}]"), "did you mean 'noise'?"),
        (HEAD + TRACE.replace("}}]", "}, corruption: {kind: noise, sigma: 0}}]"), "a finite number above 0"),
        (HEAD + TRACE.replace("}}]", "}, sites: []}]"), "a non-empty list of different mappings with `site`"),
        (
            HEAD + TRACE.replace("}}]", "}, sites: [{site: attention_heads}]}]"),
            "one of: block_output, mlp_output, attention_output",
        ),
        (HEAD + TRACE.replace("}}]", "}, metrics: [probability, probability]}]"), "different metrics"),
        (HEAD + TRACE.replace("{facts: [", "{fact: ["), "did you mean 'facts'?"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(text: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(text)
    assert expected in str(caught.value)
    assert len(caught.value.problems) == 1


CSV = "prompt,subject,attribute,foil,relation\nthe sun is,sun,good,,P1\nthe rain is,rain,bad,good,P1\n"
JSONL = """\
{"prompt": "the sun is", "subject": "sun", "answer": "good", "relation": "P1"}
{"prompt": "the rain is", "subject": "rain", "answer": "bad", "foil": "good", "relation": "P1"}
"""
JSON = f"[{','.join(JSONL.splitlines())}]"
YAML = f"facts:\n- {FACT}\n- {{prompt: the rain is, subject: rain, answer: bad, foil: good}}\n"


@pytest.mark.parametrize(
    ("name", "text"), [("f.csv", CSV), ("f.jsonl", JSONL), ("f.json", JSON), ("f.yaml", YAML)]
)
def test_every_format_gives_the_same_facts(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    found = load_facts(tmp_path / name)
    read = [(f.prompt, f.subject, f.answer, f.foil, f.swap) for f in found.facts]
    assert read == [
        ("the sun is", "sun", "good", None, None),
        ("the rain is", "rain", "bad", "good", None),
    ]
    if isinstance(found, ReadFacts):
        assert found.unread == ("relation",)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("f.jsonl", '{"prompt": "the sun is", "answer": "a"}\n', "f.jsonl:1: expected a column `subject`"),
        (
            "f.csv",
            "prompt,subject,answer\nthe sun is,moon,a\n",
            "f.csv:2: subject: expected a text that stands",
        ),
        ("f.csv", "prompt,subject,answer,attribute\nthe sun,sun,a,b\n", "answer and attribute say different"),
        ("f.csv", "prompt,subject,answer\n", "holds no fact"),
        ("f.jsonl", "3\n", "f.jsonl:1: expected a row with columns"),
        ("f.yaml", "facts:\n- {prompt: a b, subject: c, answer: d}\n", "f.yaml:2:"),
        ("f.yaml", "factz: []\n", "did you mean 'facts'?"),
    ],
)
def test_a_file_that_holds_no_facts_is_refused(name: str, text: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError) as caught:
        load_facts(tmp_path / name)
    assert expected in str(caught.value)
