"""A spoilt spec either reads, or every problem with it has a place: whatever was done to it.

That every valid spec reads back equal is shown in `test_dumping.py`.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from subvene.specs import InterventionSpec, SpecError, _yaml_scanner, dump_spec, parse_spec

_EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))
_EVERY_KIND = """\
subvene: 1
model: {name: a/b, revision: main, dtype: float32}
interventions:
- kind: head_direction
  name: iti
  directions: {file: t.safetensors, key: iti}
  strength: 15.0
  heads: {12: [3, 7], 14: [0]}
  positions: response
- kind: steering
  layer: 19
  vector: {file: t.safetensors, key: v}
  coefficient: [2.0, -1.0]
  positions: {first: 2, of: response}
- kind: low_rank_edit
  layer: 12
  write_heads: [3, 7]
  rank: 2
  factors: {file: t.safetensors, key: edit}
- kind: capping
  site: mlp_output
  layer: 2
  direction: {file: t.safetensors, key: c}
  min: -1.5
  max: 2
- kind: ablation
  layer: 0
  direction: {file: t.safetensors, key: r}
  positions: {indices: [0, -1]}
- kind: pyvene
  class: LowRankRotatedSpaceIntervention
  low_rank_dimension: 4
  component: model.layers[0].mlp.act_fn.output
  source: {file: t.safetensors, key: s}
"""
TEXTS = [_EVERY_KIND, *(path.read_text(encoding="utf-8") for path in _EXAMPLES)]
_DATA = [yaml.safe_load(text) for text in TEXTS]

_odd = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**63, -(2**70), 10**400, float("nan"), float("inf"), 1e-320, -0.0]),
    st.sampled_from(["", "all", "response", "../x.safetensors", "1e-4", "\ud800", "a\x00b", "x" * 300]),
    st.just([]),
    st.just({}),
    st.lists(st.integers(-2, 40) | st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from(["kind", "key", "file", "x"]), st.integers() | st.text(max_size=3)),
)


def outcome(text: str, format: str) -> None:
    """Reads, or says where and why not; a spec that reads is written and reads back equal."""
    try:
        spec = parse_spec(text, "f", format=format)  # type: ignore[arg-type]
    except SpecError as error:
        lines = text.count("\n") + text.count("\r") + text.count("\x85") + 2
        lines += text.count("\u2028") + text.count("\u2029")
        for problem in error.problems:
            assert problem.line is not None, problem
            assert problem.column is not None, problem
            assert 1 <= problem.line <= lines
            assert problem.column >= 1
            assert problem.expected
            assert problem.found
            assert str(problem).startswith(f"f:{problem.line}:{problem.column}: ")
    else:
        assert isinstance(spec, InterventionSpec)
        assert parse_spec(dump_spec(spec)) == spec


def _paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(data, dict):
        return [path, *(p for key, value in data.items() for p in _paths(value, (*path, key)))]
    if isinstance(data, list):
        return [path, *(p for i, value in enumerate(data) for p in _paths(value, (*path, i)))]
    return [path]


@st.composite
def _with_another_structure(draw: st.DrawFn) -> Any:
    """A valid file in which values are replaced, keys renamed, things left out or said twice."""
    root = {"root": copy.deepcopy(draw(st.sampled_from(_DATA)))}
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_paths(root)[1:]))
        parent: Any = root
        for part in path[:-1]:
            parent = parent[part]
        what = draw(st.sampled_from(["replace", "remove", "rename", "nest", "repeat"]))
        value = parent[path[-1]]
        if what == "replace" or len(path) == 1:
            parent[path[-1]] = draw(_odd)
        elif what == "remove":
            del parent[path[-1]]
        elif what == "nest":
            parent[path[-1]] = [value]
        elif isinstance(parent, list):
            parent.append(value)
        else:
            key = str(path[-1])
            parent[key[:-1] if what == "rename" else key + draw(st.sampled_from("sX_"))] = parent.pop(
                path[-1]
            )
    return root["root"]


@settings(max_examples=150, deadline=None)
@given(_with_another_structure(), st.sampled_from(["yaml", "json"]))
def test_a_spoilt_spec_is_read_or_its_problems_have_a_place(data: Any, format: str) -> None:
    outcome(json.dumps(data) if format == "json" else yaml.safe_dump(data), format)


_YAML = """
&a *a - : { } [ ] !!python/object:os.system ' " | > # ? 1e999 0x ~ é <<:*a --- ... %YAML
"""
_snippets = st.text(max_size=4) | st.sampled_from(
    [*_YAML.split(), " ", "\t", "\n", "\x85", "\u2028", "\ufeff", "\x00"]
)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 20), _snippets), min_size=1, max_size=4),
)
def test_a_spoilt_text_is_read_or_its_problems_have_a_place(
    text: str, edits: list[tuple[float, int, str]]
) -> None:
    for where, cut, snippet in edits:
        at = int(where * len(text))
        text = text[:at] + snippet + text[at + cut :]
    outcome(text, "yaml")


_PIECES = [
    *("a ", "b: ", "c:", " ", "\n", "  ", "- ", "[", "]", "{", "}", ", ", ",", "'x'", '"y"', "# z\n", ": "),
    *(":", "> q", "&a ", "*a", "-", "---\n", "...\n", "é", "@", "`", "''", "'", "x:y", "?", "a?", "!", "b!"),
    *("%", "\t", "\n  |\nk: |", "😀: ", "<<: ", '"\\n"', "[a?, {b: ?c}]\n", "is it? ", "1e-4", "{k: }"),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(_PIECES), min_size=1, max_size=14).map("".join)
    | st.tuples(st.sampled_from(TEXTS), st.integers(0, 900), st.sampled_from(_PIECES)).map(
        lambda change: change[0][: change[1]] + change[2] + change[0][change[1] :]
    )
)
def test_libyaml_is_asked_only_for_what_it_reads_as_the_scanner_of_yaml_1_2_does(text: str) -> None:
    def told(events: Any) -> list[Any] | str:
        try:
            return [
                [event.start_mark.line, event.start_mark.column]
                + [
                    getattr(event, name, None) or None
                    for name in ("__class__", "value", "anchor", "tag", "style")
                ]
                for event in events
                if not isinstance(
                    event, yaml.CollectionEndEvent | yaml.DocumentEndEvent | yaml.StreamEndEvent
                )
            ]
        except yaml.YAMLError as error:
            return str(error)

    text += "\n"
    expected = told(yaml.parse(text, Loader=_yaml_scanner.Loader))
    assert told(_yaml_scanner.events(text)) == expected
