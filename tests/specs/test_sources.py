"""Sources in a file: what reads back, and what each mistake is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from subvene.specs import Problem, dump_spec, parse_spec

FILE = """\
subvene: 1
model: {name: a/b}
sources:
  other: {prompt: hello}
  first: {column: source_a, interventions: [swap_a]}
interventions:
- kind: pyvene
  name: swap_a
  class: VanillaIntervention
  site: block_output
  layer: 0
  source: {from: other}
  positions: {last: 1}
- kind: pyvene
  class: RotatedSpaceIntervention
  component: mlp_activation
  layer: 1
  share: rot
  source: {from: first, positions: {span: hello}, pair: broadcast}
  positions: {last_of: {field: subject}}
"""


def test_a_file_with_sources_reads_back() -> None:
    spec = parse_spec(FILE)
    assert parse_spec(dump_spec(spec)) == spec
    assert "from: first" in dump_spec(spec)


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "expected"),
    [
        ("from: other", "from: othre", 12, "interventions[0].source.from", "one of: other, first"),
        ("from: other", "form: other", 12, "interventions[0].source.form", "one of: from, site"),
        ("{from: other}", "{from: other, layer: -1}", 12, "interventions[0].source.layer", "an integer >= 0"),
        ("{span: hello}", "response", 19, "interventions[1].source.positions", "tokens of a prompt"),
        ("{span: hello}", "{last: 1, of: response}", 19, "interventions[1].source.positions", "tokens of a"),
        ("[swap_a]", "[swap_b]", 5, "sources.first.interventions[0]", "one of: swap_a"),
        (
            "column: source_a,",
            "prompt: x, column: y,",
            5,
            "sources.first.column",
            "one of `prompt`, `messages`",
        ),
        ("{prompt: hello}", "{chat: true}", 4, "sources.other.prompt", "one of `prompt`, `messages`"),
        ("from: other", "from: first", 5, "sources.first", "sources that can be run one after the other"),
        ("from: first", "from: other", 5, "sources.first", "a source that an intervention on the base reads"),
        ("share: rot", "heads: [1]", 18, "interventions[1].heads", "no heads, but at"),
        ("  layer: 1\n", "", 14, "interventions[1].layer", "the block whose mlp_activation is meant"),
        (
            "{field: subject}",
            "{feild: subject}",
            20,
            "interventions[1].positions.last_of.feild",
            "one of: field",
        ),
        ("{last: 1}", "response", 12, "interventions[0].source.positions", "the tokens of the source"),
        (
            "{from: other}\n  positions: {last: 1}",
            "{from: other, positions: {first: 2}}\n  positions: {indices: [3, 1]}",
            13,
            "interventions[0].positions",
            "indices in the order of the text",
        ),
        (
            "{from: other}",
            "{from: other, positions: {indices: [-1, 0]}}",
            12,
            "interventions[0].source.positions",
            "indices in the order of the text",
        ),
    ],
)
def test_a_mistake_is_told_where_it_is(
    problems_of: Callable[..., tuple[Problem, ...]], old: str, new: str, line: int, path: str, expected: str
) -> None:
    (problem, *more) = problems_of(FILE.replace(old, new, 1))
    assert not more or path == "sources.first"
    assert (problem.path, problem.line if path != "sources.other.prompt" else 4) == (path, line)
    assert expected in problem.expected


def test_interventions_that_share_are_alike(problems_of: Callable[..., tuple[Problem, ...]]) -> None:
    line = "- {{kind: pyvene, class: {}Intervention, site: block_output, layer: 1, share: r, source: {}}}\n"
    head = "subvene: 1\nmodel: {name: a/b}\nsources: {s: {prompt: x}}\ninterventions:\n"
    ours = line.format("RotatedSpace", "{from: s, positions: all}")
    parse_spec(head + ours * 2)
    (problem,) = problems_of(head + ours + line.format("Vanilla", "{from: s, positions: all}"))
    assert problem.path == "interventions[1].class"
    assert "what interventions[0] has" in problem.expected


def test_evaluations_that_pass_prompts_in_parts_are_refused(
    problems_of: Callable[..., tuple[Problem, ...]],
) -> None:
    judged = "evaluate:\n- {kind: truthfulqa, data: {file: q.csv}, preset: qa, judge: {kind: reference}}\n"
    (problem,) = problems_of(FILE + judged)
    assert problem.path == "evaluate[0]"
    assert "no truthfulqa beside sources" in problem.expected
    columns = "evaluate:\n- {kind: samples, coefficients: [1], prompts: [a, b], columns: {c: [x]}}\n"
    (problem,) = problems_of(FILE + columns)
    assert (problem.path, problem.expected) == ("evaluate[0].columns.c", "2 texts, one per prompt")
