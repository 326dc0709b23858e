from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subvene.specs import SITES, parse_tensor_name, tensor_name

_keys = st.text(alphabet="abz09_-.[]", min_size=1, max_size=20) | st.sampled_from(
    ["a.block_output[1]", "a.mlp_output[2].b", "block_output[0]"]
)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        (("sycophantic", "block_output", 19), "sycophantic.block_output[19]"),
        (("iti", "attention_heads", 12, "sigma"), "iti.attention_heads[12].sigma"),
        (("edit", "attention_heads", 0, "a"), "edit.attention_heads[0].a"),
    ],
)
def test_names_as_documented(args: tuple[object, ...], name: str) -> None:
    assert tensor_name(*args) == name  # type: ignore[arg-type]
    assert parse_tensor_name(name) == (*args, None)[:4]


@given(_keys, st.sampled_from(SITES), st.integers(0, 10**6), st.none() | st.from_regex(r"\A[a-z0-9_]+\Z"))
def test_every_name_reads_back(key: str, site: object, layer: int, part: str | None) -> None:
    assert parse_tensor_name(tensor_name(key, site, layer, part)) == (key, site, layer, part)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    ["a", "a.b[1]", "a.block_output[01]", "a.block_output[-1]", "a.block_output", ".block_output[1]",
     "a.block_output[1].", "a.block_output[1].b.c", "a.block_output[1]\n",
     "a b.block_output[1]", "a.block_output[١]"],
)  # fmt: skip
def test_other_names_are_none(name: str) -> None:
    assert parse_tensor_name(name) is None


@pytest.mark.parametrize(
    "args",
    [("", "block_output", 1), ("a b", "block_output", 1), ("a", "o_proj", 1), ("a", "block_output", -1),
     ("a", "block_output", 1, ""), ("a", "block_output", 1, "a.b")],
)  # fmt: skip
def test_names_that_would_not_read_back_are_refused(args: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match="not"):
        tensor_name(*args)  # type: ignore[arg-type]
