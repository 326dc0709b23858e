"""Looking up stored tensors: `{key}.{site}[{layer}]`, or a plain key that is taken at its word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from subvene.interventions import Sizes, TensorError
from subvene.interventions.tensors import stored_name
from subvene.specs import parse_tensor_name

ONES = torch.ones(24)


def get(
    table: Any, key: str = "v", site: Any = "block_output", layer: int = 19, **kwargs: Any
) -> torch.Tensor:
    return table.get(key, site, layer, **{"shape": (24,), **kwargs})


@pytest.mark.parametrize(
    ("stored", "key"),
    [
        ("v.block_output[19]", "v"),
        ("v", "v"),
        ("v.block_output[19]", "v.block_output[19]"),
        ("a.b-c", "a.b-c"),
    ],
)
def test_full_names_plain_keys_and_keys_that_are_full_names(
    table: Callable[..., Any], stored: str, key: str
) -> None:
    assert torch.equal(get(table(**{stored: ONES}), key), ONES)


def test_the_full_name_comes_before_the_plain_key(table: Callable[..., Any]) -> None:
    both = table(**{"v": 2 * ONES, "v.block_output[19]": ONES})
    assert torch.equal(get(both), ONES)


def test_parts(table: Callable[..., Any]) -> None:
    tensors = table(**{"v.block_output[19].a": ONES, "p.a": 2 * ONES})
    assert torch.equal(get(tensors, part="a"), ONES)
    assert torch.equal(get(tensors, "p", part="a"), 2 * ONES)
    with pytest.raises(TensorError, match=r"no tensor 'v.block_output\[19\].b'"):
        get(tensors, part="b")


def test_layers_are_those_of_the_key_and_the_site(table: Callable[..., Any]) -> None:
    names = ["v.block_output[10]", "v.block_output[2]", "v.mlp_output[3]", "w.block_output[4]", "v"]
    tensors = table(**dict.fromkeys([*names, "v.block_output[5].sigma"], ONES))
    assert tensors.layers("v", "block_output") == [2, 10]
    assert tensors.layers("v", "mlp_output") == [3]
    assert tensors.layers("x", "block_output") == []


def test_tensor_of_another_layer_is_not_found(table: Callable[..., Any]) -> None:
    with pytest.raises(
        TensorError, match=r"t.safetensors: no tensor 'v.block_output\[19\]'; there is: v.block_output\[20\]"
    ):
        get(table(**{"v.block_output[20]": ONES}))


@pytest.mark.parametrize("name", ["v.block_output[20]", "v.mlp_output[19]"])
def test_key_that_names_another_place_is_refused(table: Callable[..., Any], name: str) -> None:
    with pytest.raises(TensorError) as caught:
        get(table(**{name: ONES}), name)
    assert f"tensor '{name}' was made for {name[2:]}, and the spec puts it at block_output[19]" in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(25), r"'v.block_output\[19\]' has shape \[25\], expected \[24\] for this model"),
        (torch.ones(1, 24), r"shape \[1, 24\], expected \[24\]"),
        (torch.tensor(1.0), r"shape \[\], expected \[24\]"),
        (ONES * torch.nan, "holds NaN or infinite values"),
        (ONES / 0, "holds NaN or infinite values"),
        (ONES.double() * 1e300, "holds NaN or infinite values"),
        (ONES.long(), "is torch.int64, expected floating point"),
        (ONES.bool(), "is torch.bool, expected floating point"),
        (0 * ONES, "is zero everywhere, so it has no direction"),
    ],
)
def test_what_a_tensor_must_be(table: Callable[..., Any], tensor: torch.Tensor, message: str) -> None:
    with pytest.raises(TensorError, match=f"^t.safetensors: .*{message}"):
        get(table(**{"v.block_output[19]": tensor}), nonzero=True)


def test_zero_is_a_value_like_any_other_where_no_direction_is_needed(table: Callable[..., Any]) -> None:
    assert torch.equal(get(table(**{"v": 0 * ONES})), 0 * ONES)


def test_result_is_a_float32_copy(table: Callable[..., Any]) -> None:
    stored = ONES.clone()
    tensors = table(v=stored)
    get(tensors).mul_(7)
    assert torch.equal(stored, ONES)
    assert get(table(v=ONES.bfloat16())).dtype == torch.float32


def test_an_empty_table_says_so(table: Callable[..., Any]) -> None:
    with pytest.raises(TensorError, match="it holds no tensors"):
        get(table())


def test_long_lists_are_cut(table: Callable[..., Any]) -> None:
    with pytest.raises(TensorError, match=r"… \(9 in all\)$"):
        get(table(**{f"w.block_output[{i}]": ONES for i in range(9)}))


def test_stored_names_read_back() -> None:
    assert parse_tensor_name(stored_name("v", "block_output", 3, "a")) == ("v", "block_output", 3, "a")
    assert stored_name("v", "model.layers[0].mlp.output", None) == "v"
    assert stored_name("v", "model.layers[0].mlp.output", None, "a") == "v.a"


def test_widths_of_sites() -> None:
    sizes = Sizes(n_layers=2, width=24, n_heads=4, head_dim=8)
    assert sizes.site_width("attention_heads") == 32
    assert {sizes.site_width(s) for s in ("block_output", "attention_output", "mlp_output")} == {24}
