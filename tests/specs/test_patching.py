"""Patching as it is declared."""

from __future__ import annotations

import pytest

from subvene.specs import PatchingSpec, SpecError, parse_spec

HEAD = "subvene: 1\nmodel: {name: a/b}\n"
FACT = "{prompt: the sun is, subject: sun, answer: good, foil: bad, swap: moon}"
PATCH = f"evaluate: [{{kind: patching, facts: {{facts: [{FACT}]}}}}]\n"


def test_what_is_left_out() -> None:
    declared = parse_spec(HEAD + PATCH).evaluate[0]  # type: ignore[union-attr]
    assert isinstance(declared, PatchingSpec)
    assert declared.directions == ("denoising", "noising")
    assert [(s.site, s.heads, s.positions) for s in declared.sites] == [
        ("block_output", None, "each"),
        ("attention_heads", "all", "all"),
    ]
    assert declared.metric == "logit_difference"
    assert declared.attribution is None


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ("sites: [{site: mlp_output, heads: all}]", "nothing, since only attention_heads has heads"),
        ("sites: [{site: block_output}, {site: block_output}]", "a non-empty list of different mappings"),
        ("directions: [denoise]", "did you mean 'denoising'?"),
        ("attribution: {sample: 1}", "an integer from 2 to 100000"),
        ("metrics: [probability]", "did you mean 'metric'?"),
    ],
)
def test_what_is_wrong_is_said_where_it_stands(added: str, expected: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec(HEAD + PATCH.replace("}}]", f"}}, {added}}}]"))
    assert expected in str(caught.value)
    assert len(caught.value.problems) == 1
