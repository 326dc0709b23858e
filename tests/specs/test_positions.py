from __future__ import annotations

from collections.abc import Callable

import pytest

from subvene.specs import FirstTokens, LastTokens, Problem, TokenIndices, parse_spec

HEAD = "subvene: 1\nmodel: {name: a}\ninterventions:\n"
LINE = "- {{kind: ablation, layer: 1, direction: {{file: t.safetensors, key: k}}, positions: {}}}"
COLUMN = LINE.format("").index("positions") + len("positions: ") + 1
MODES = "one of: all, prompt, response, last_prompt_token"
ANY = f"{MODES}, or a mapping with one of `first`, `last`, `indices`, `field`, `span`, `last_of`"


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("all", "all"),
        ("last_prompt_token", "last_prompt_token"),
        ("{first: 2}", FirstTokens(first=2, of="prompt")),
        ("{last: 3, of: response}", LastTokens(last=3, of="response")),
        ("{indices: [0, -1], of: prompt}", TokenIndices(indices=(0, -1))),
    ],
)
def test_positions_read(text: str, positions: object) -> None:
    assert parse_spec(HEAD + LINE.format(text)).interventions[0].positions == positions


@pytest.mark.parametrize(
    ("text", "path", "offset", "expected"),
    [
        ("al", "", 0, MODES),
        ("3", "", 0, ANY),
        ("[0]", "", 0, ANY),
        ("{}", "", 0, ANY),
        ("{zzz: 1}", "", 0, ANY),
        ("null", "", 0, ANY),
        ("{first: 0}", ".first", 8, "an integer >= 1"),
        ("{first: 1, last: 1}", ".last", 11, "one of: first, of"),
        ("{first: 1, of: all}", ".of", 15, "one of: prompt, response"),
        ("{indices: []}", ".indices", 10, "a non-empty list of different integers"),
        ("{indices: [1, 1]}", ".indices", 10, "a non-empty list of different integers"),
        ("{indices: [1, 1.5]}", ".indices[1]", 14, "an integer (negative counts from the end)"),
        ("{indcies: [1]}", ".indcies", 1, "one of: indices, of"),
    ],
)
def test_one_mistake_is_one_problem(
    problems_of: Callable[..., tuple[Problem, ...]], text: str, path: str, offset: int, expected: str
) -> None:
    (problem,) = problems_of(HEAD + LINE.format(text))
    assert problem.path == f"interventions[0].positions{path}"
    assert (problem.line, problem.column) == (4, COLUMN + offset)
    assert problem.expected == expected
