from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from subvene.specs import SpecError, _json_reader, _nodes, _yaml_reader
from subvene.specs._nodes import MAX_NUMBERS, MAX_PROBLEMS
from subvene.specs.document import MAX_BYTES, MAX_DEPTH, MAX_NODES, parse_document, read_document


def error(text: str, format: str = "yaml") -> tuple[int | None, int | None, str, str]:
    with pytest.raises(SpecError) as caught:
        parse_document(text, "f", format)  # type: ignore[arg-type]
    (problem,) = caught.value.problems
    return problem.line, problem.column, problem.expected, problem.found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-1.", -1.0),
        ("+3", 3),
        ("017", 17),
        ("0o17", 15),
        ("0x1F", 31),
        ("true", True),
        ("False", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("-.inf", -math.inf),
        # text in YAML 1.2, something else in YAML 1.1
        ("on", "on"),
        ("off", "off"),
        ("yes", "yes"),
        ("No", "No"),
        ("y", "y"),
        ("12:30:45", "12:30:45"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2001-01-01", "2001-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("=", "="),
        ("1e", "1e"),
        (".", "."),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = parse_document(f"a: {text}").data["a"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("a: {prompt: How was it?, b: c}", {"prompt": "How was it?", "b": "c"}),
        ("a: {prompt: Ça va ?, b: What? No!}", {"prompt": "Ça va ?", "b": "What? No!"}),
        ("a: [x?, http://h/p?q=1&r=2, y]", ["x?", "http://h/p?q=1&r=2", "y"]),
        ("a: {q: {r: why?}}", {"q": {"r": "why?"}}),
        ("a: [?x, :y, ::z, -w]", ["?x", ":y", "::z", "-w"]),
        ("a: {?x: 1, :y: 2}", {"?x": 1, ":y": 2}),
        ("a: {? x : y, ? z}", {"x": "y", "z": None}),
        ('a: {"x":y, "z":[1], \'w\'::v}', {"x": "y", "z": [1], "w": ":v"}),
        ("a: {x: 12:30, y: b:c}", {"x": "12:30", "y": "b:c"}),
        ("a: x\u2028y\x85z", "x\u2028y\x85z"),
        ("a: 'x\x85 y'", "x\x85 y"),
        ('a: "x\u2029 \\x85"', "x\u2029 \x85"),
        ("a: |\n  x\u2028\n  y\n", "x\u2028\ny\n"),
        ("a: x\ue000\u2028y", "x\ue000\u2028y"),
    ],
)
def test_flow_collections_and_lines_follow_yaml_1_2(text: str, data: object) -> None:
    assert parse_document(text).data == {"a": data}


def test_lines_are_counted_as_editors_count_them() -> None:
    place = parse_document("a: x\u2028y\nb: {c: why?, d: 1}").locate(("b", "d"))
    assert (place.value.line, place.value.column) == (2, 17)


@pytest.mark.parametrize("text", ["a: {x: ?}", "a: {b?c: d: e}", "a: {x: 'y'? , z: w}", "a: [x: y: z]"])
def test_what_is_no_yaml_1_2_either_has_a_place(text: str) -> None:
    assert error(text)[0] == 1
    assert error(text)[2] == "YAML"


def test_a_file_that_says_it_is_yaml_1_1_is_refused_since_its_words_mean_something_else() -> None:
    assert error("%YAML 1.1\n---\na: on")[2:] == ("YAML 1.2", "version 1.1")
    assert parse_document("%YAML 1.2\n---\na: on").data == {"a": "on"}


def test_nan_is_read_as_a_number() -> None:
    found = parse_document("a: .nan").data["a"]
    assert isinstance(found, float)
    assert math.isnan(found)


def test_places_of_values_and_keys() -> None:
    text = '# comment\na:\n  - b: 1\n    c:   [x, yy]\n"d e": |\n  text\n'
    document = parse_document(text)
    assert document.data == {"a": [{"b": 1, "c": ["x", "yy"]}], "d e": "text\n"}
    place = document.locate(("a", 0, "c", 1))
    assert (place.path, place.value.line, place.value.column, place.key) == ("a[0].c[1]", 4, 14, None)
    place = document.locate(("a", 0, "c"))
    assert place.key is not None
    assert (place.key.line, place.key.column) == (4, 5)
    assert (document.locate(("d e",)).value.line, document.locate(("d e",)).value.column) == (5, 8)
    assert (document.locate(()).value.line, document.locate(()).value.column) == (2, 1)


def test_a_missing_place_is_that_of_the_mapping_around_it() -> None:
    place = parse_document("x: 1\na:\n  - b: 1\n").locate(("a", 0, "c"))
    assert (place.path, place.value.line, place.value.column, place.key) == ("a[0].c", 3, 5, None)


def test_json_with_tabs_has_places_too() -> None:
    document = parse_document('{\r\n\t"a": [\n\t\t1.5,\t{"b": "x\\u00e9\\ud83d\\ude00\\/"}]}', format="json")
    assert document.data == {"a": [1.5, {"b": "xé😀/"}]}
    place = document.locate(("a", 1, "b"))
    assert (place.path, place.value.line, place.value.column) == ("a[1].b", 3, 14)
    assert place.key is not None
    assert (place.key.line, place.key.column) == (3, 9)


@pytest.mark.parametrize(
    ("text", "line", "column", "found"),
    [
        ("a: 1\nb: 2\na: 3", 3, 1, "`a` again (first in line 1)"),
        ("a: {x: 1, x: 2}", 1, 11, "`x` again (first in line 1)"),
        ("12: 1\n'12': 2", 2, 1, "`12` again (first in line 1)"),
        ("12: 1\n0xC: 2", 2, 1, "`12` again (first in line 1)"),
        ("b: &b {x: 1}\na:\n  <<: *b\n  <<: *b", 4, 3, "`<<` again: give it a list of mappings"),
        (
            "a: !!python/object/apply:os.system [x]",
            1,
            4,
            "the tag tag:yaml.org,2002:python/object/apply:os.system",
        ),
        ("a: !mine x", 1, 4, "the tag !mine"),
        ("a: 1\nb: !!str 2", 2, 4, "the tag tag:yaml.org,2002:str"),
        ("a: ! x", 1, 4, "the tag !"),
        ("a: 1\n---\nb: 1", 2, 1, "a second one"),
        ("a: &x [*x]", 1, 8, "*x"),
        ("a: &x\n  b: {<<: *x}", 2, 11, "*x"),
        ("a: &x 1\nb: &x [*x]", 2, 8, "*x"),
        ("a: *nowhere", 1, 4, "*nowhere"),
        ("", 1, 1, "an empty file"),
        ("# only\n", 1, 1, "an empty file"),
        ("---\n", 2, 1, "nothing"),
        ("- a", 1, 1, "a list"),
        ("text", 1, 1, "a single value"),
        ("a: 1\n1.5: 2", 2, 1, "1.5"),
        ("a: 1\ntrue: 2", 2, 1, "True"),
        ("a: 1\n~: 2", 2, 1, "None"),
        ("? [a]\n: 1", 1, 3, "a list or mapping"),
        ("a:\n  <<: 3", 2, 3, "something else"),
        ("a: 1\nb: x\x00y", 2, 5, "the control character U+0000"),
        ("a: " + "9" * 5000, 1, 4, "one of 5000 digits"),
    ],
)
def test_yaml_that_is_refused(text: str, line: int, column: int, found: str) -> None:
    assert error(text)[0::3] == (line, found)
    assert error(text)[1] == column


def test_yaml_syntax_errors_have_a_place() -> None:
    line, column, expected, found = error("a: 1\nb: [1, 2\nc: 3")
    assert (line, column, expected) == (3, 2, "YAML")
    assert found.startswith("a syntax error (")


@pytest.mark.parametrize(
    ("text", "line", "column", "expected"),
    [
        ('{"a": 1,\n "a": 2}', 2, 2, "every key once"),
        ('{"a": [1,]}', 1, 10, "a JSON value"),
        ('{"a": 1,}', 1, 9, "a key in double quotes"),
        ('{"a" 1}', 1, 6, "`:` after the key"),
        ('{"a": 1', 1, 8, "`,` or `}`"),
        ('{"a": [1 2]}', 1, 10, "`,` or `]`"),
        ('{"a": NaN}', 1, 7, "a JSON value"),
        ('{"a": -Infinity}', 1, 7, "a JSON value"),
        ('{"a": tru}', 1, 7, "a JSON value"),
        ('{"a": 01}', 1, 8, "`,` or `}`"),
        ('{"a": "x\ny"}', 1, 7, "text in double quotes, closed on the same line"),
        ('{"a": "\\q"}', 1, 7, "text with JSON's escapes only"),
        ('{"a": 1} {"b": 2}', 1, 10, "the end of the file after the first value"),
        ("{'a': 1}", 1, 2, "a key in double quotes"),
        (" \n", 1, 1, "a mapping"),
        ("[1]", 1, 1, "a mapping"),
        ('{"a": ' + "9" * 5000 + "}", 1, 7, "a number"),
    ],
)
def test_json_that_is_refused(text: str, line: int, column: int, expected: str) -> None:
    assert error(text, "json")[:3] == (line, column, expected)


def test_problems_after_which_reading_goes_on_are_all_reported() -> None:
    with pytest.raises(SpecError) as caught:
        parse_document("a: 1\na: 2\nb: !x 1\n[c]: 3\nb: 4")
    assert [(p.line, p.column) for p in caught.value.problems] == [(2, 1), (3, 4), (4, 1), (5, 1)]


def test_the_number_of_problems_is_bounded() -> None:
    with pytest.raises(SpecError) as caught:
        parse_document("a: 1\n" * 5000)
    assert len(caught.value.problems) == MAX_PROBLEMS


def test_aliases_and_merge_keys() -> None:
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 9}\nd: {<<: *a}\ne: *b\n'<<': 1"
    data = parse_document(text).data
    assert data["c"] == {"x": 9, "y": 2, "z": 4}
    assert data["d"] == {"x": 1, "y": 2}
    assert data["e"] == {"y": 3, "z": 4}
    assert data["<<"] == 1


def test_a_merged_value_is_placed_where_it_stands() -> None:
    document = parse_document("a: &a\n  x: 1\n  y: 2\nc:\n  <<: *a\n  x: 9\n")
    own, merged = document.locate(("c", "x")), document.locate(("c", "y"))
    assert (own.value.line, own.value.column) == (6, 6)
    assert (merged.value.line, merged.value.column) == (3, 6)
    assert merged.key is not None
    assert (merged.key.line, merged.key.column) == (3, 3)


def bomb(item: str) -> str:
    lines = [f"a0: &a0 {item}"]
    for i in range(1, 12):
        lines.append(f"a{i}: &a{i} [" + ", ".join([f"*a{i - 1}"] * 9) + "]")
    return "\n".join(lines)


@pytest.mark.parametrize("item", ["[x, x, x, x, x, x, x, x, x]", "{k: v}"])
def test_a_billion_laughs_is_refused_before_it_is_expanded(
    item: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0
    nodes = _yaml_reader.YamlReader._node

    def counted(*args: object) -> object:
        nonlocal seen
        seen += 1
        return nodes(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(_yaml_reader.YamlReader, "_node", counted)
    assert error(bomb(item))[2] == f"at most {MAX_NODES} values in a file, aliases written out"
    assert seen < 150  # the nodes as written: the laughs themselves were never visited


def test_a_bomb_of_merge_keys_is_refused() -> None:
    keys = ", ".join(f"k{i}: 1" for i in range(100))
    lines = [f"a0: &a0 {{{keys}}}"]
    lines += [f"a{i}: &a{i} {{<<: [" + ", ".join([f"*a{i - 1}"] * 20) + "]}" for i in range(1, 6)]
    assert "aliases written out" in error("\n".join(lines))[2]


@pytest.mark.parametrize(("format", "text"), [("yaml", "a: " + "[" * 50_000), ("json", "[" * 50_000)])
def test_deep_nesting_is_refused(format: str, text: str) -> None:
    assert error(text, format)[2] == f"at most {MAX_DEPTH} levels of nesting"


def test_nesting_by_way_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [[[[x]]]]"] + [f"a{i}: &a{i} [[[[*a{i - 1}]]]]" for i in range(1, 20)]
    assert error("\n".join(lines))[2] == f"at most {MAX_DEPTH} levels of nesting"


@pytest.mark.parametrize(
    ("format", "open", "close"), [("yaml", "a: [", "]"), ("json", '{"a": [', "]}"), ("yaml", "a: {x: ", "}")]
)
def test_too_many_values_are_refused(
    format: str, open: str, close: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reader in (_yaml_reader, _json_reader, _nodes):
        monkeypatch.setattr(reader, "MAX_NODES", 1000)
    items = [f"{i}: 1" if "{x" in open else "1" for i in range(1200)]
    assert error(open + "1," + ",".join(items) + close, format)[2] == "at most 1000 values in a file"
    assert parse_document(open + "1," + ",".join(items[:400]) + close, format=format).data  # type: ignore[arg-type]


def test_real_nesting_and_size_are_fine() -> None:
    depth = MAX_DEPTH - 2
    assert parse_document("a: " + "[" * depth + "]" * depth).data
    assert parse_document("a: [" + "1, " * 5000 + "1]").data


@pytest.mark.parametrize("format", ["yaml", "json"])
def test_a_list_of_very_many_numbers_is_refused_before_it_is_read_to_its_end(format: str) -> None:
    text = '{"a": {"b": [%s' % ("1.5, " * (MAX_NUMBERS + 1))  # and nothing closes it
    assert error(text, format) == (
        *(1, 13),
        f"at most {MAX_NUMBERS} numbers in a list (more of them belong in a tensor file)",
        "more than that",
    )
    assert parse_document('{"a": [%s 1]}' % ("1, " * (MAX_NUMBERS - 1)), format=format).data  # type: ignore[arg-type]


def test_a_text_of_too_many_bytes_is_refused() -> None:
    assert error("a: " + "x" * MAX_BYTES)[2] == f"at most {MAX_BYTES} bytes"
    assert error("a: " + "é" * (MAX_BYTES // 2))[2] == f"at most {MAX_BYTES} bytes"


def test_files(tmp_path: Path) -> None:
    def write(name: str, raw: bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(raw)
        return path

    def place(path: Path) -> tuple[int | None, int | None, str]:
        with pytest.raises(SpecError) as caught:
            read_document(path)
        (problem,) = caught.value.problems
        assert problem.file == str(path)
        return problem.line, problem.column, problem.expected

    assert read_document(write("bom.yaml", b"\xef\xbb\xbfa: 1")).data == {"a": 1}
    assert read_document(write("bom.json", b'\xef\xbb\xbf{"a": 1}')).data == {"a": 1}
    assert place(write("latin.yaml", "a: 1\nü: ä\xe4".encode() + b"\xe4")) == (2, 6, "UTF-8 text")
    assert place(write("utf16.yaml", "a: 1".encode("utf-16"))) == (1, 1, "UTF-8 text")
    assert place(write("big.yaml", b"a" * (MAX_BYTES + 1))) == (None, None, f"at most {MAX_BYTES} bytes")
    assert place(write("a.toml", b"")) == (None, None, "a file that ends in .yaml, .yml or .json")
    assert place(tmp_path / "none.yaml") == (None, None, "a readable file")


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
_data = st.dictionaries(
    st.text(),
    st.recursive(_scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20),
)


@given(_data, st.sampled_from([None, 2, "\t"]), st.booleans())
def test_json_reads_as_the_json_module_does(
    data: dict[str, object], indent: object, ascii_only: bool
) -> None:
    text = json.dumps(data, indent=indent, ensure_ascii=ascii_only)  # type: ignore[arg-type]
    found = parse_document(text, format="json").data
    assert found == data
    assert repr(found) == repr(data)


@given(st.text(max_size=60) | st.text(alphabet="&*!?:-[]{}<#|>'\"% \n\tab1.", max_size=40))
def test_no_text_does_anything_but_read_or_say_why_not(text: str) -> None:
    for format in ("yaml", "json"):
        try:
            data: object = parse_document(text, format=format).data  # type: ignore[arg-type]
        except SpecError as error:
            data = error.problems[0].expected
        assert data or data == {}


def test_no_yaml_that_pyyaml_refuses_is_read() -> None:
    for text in ("a: b: c", "{a", "'a", "%x\na: 1", "a: @b", "a: `b"):
        with pytest.raises(yaml.YAMLError):
            yaml.safe_load(text)
        assert error(text)[2] == "YAML"


def test_there_is_one_reader_of_yaml() -> None:
    root = Path(__file__).parents[2]
    calls = re.compile(r"yaml\.(safe_)?(load|parse|compose|scan)|SafeLoader|yaml_load")
    found = [
        str(path.relative_to(root))
        for folder in ("specs", "interventions", "runner")
        for path in sorted((root / folder).rglob("*.py"))
        if calls.search(path.read_text())
    ]
    # SAELens' own directory of releases, a large file that nobody writes by hand.
    assert found == ["specs/_yaml_scanner.py", "runner/artifacts/sae_releases.py"]
