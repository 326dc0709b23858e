"""Tensors of one key: those that are one stay one, and others are not merged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from tiny_artifacts import HEAD_DIM, HEADS, STEERING, TENSORS, WIDTH, draw, load, logits, ref

from subvene.interventions._pyvene import pyvene
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import parse_tensor_name


def other_file(folder: Path, tensors: dict[str, torch.Tensor]) -> str:
    safetensors.torch.save_file(tensors, folder / "other.safetensors")
    return "other.safetensors"


def test_same_key_of_two_files_keeps_both_tensors(
    made: Callable[..., IntervenedModel], tensors: Path, tmp_path: Path
) -> None:
    file = other_file(tensors, {"v.block_output[1]": draw(WIDTH, seed=20)})
    twin = STEERING | {"vector": {"file": file, "key": "v"}}
    taken = STEERING | {"vector": {"file": "more.safetensors", "key": "v_2"}}
    safetensors.torch.save_file({"v_2.block_output[1]": draw(WIDTH, seed=21)}, tensors / "more.safetensors")
    for order in ([STEERING, twin, taken], [taken, STEERING, twin]):
        m = made(*order)
        assert torch.equal(logits(load(m.save_pretrained(tmp_path / "artifact"))), logits(m))
        stored = safetensors.torch.load_file(tmp_path / "artifact" / "tensors.safetensors")
        assert len(stored) == 3


def test_same_tensor_twice_is_stored_once(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    m = made(STEERING, STEERING | {"positions": "response", "coefficient": -1.0})
    folder = m.save_pretrained(tmp_path / "artifact")
    assert safetensors.torch.load_file(folder / "tensors.safetensors").keys() == {"v.block_output[1]"}
    assert torch.equal(logits(load(folder)), logits(m))


def test_same_key_at_two_layers_stays_one_key(
    made: Callable[..., IntervenedModel], tensors: Path, tmp_path: Path
) -> None:
    file = other_file(tensors, {f"w.block_output[{i}]": draw(WIDTH, seed=i) for i in range(3)})
    both = [
        {"kind": "steering", "layer": i, "vector": {"file": file, "key": "w"}, "coefficient": 1.0}
        for i in (0, 2)
    ]
    folder = made(*both).save_pretrained(tmp_path / "artifact")
    stored = safetensors.torch.load_file(folder / "tensors.safetensors")
    assert stored.keys() == {"w.block_output[0]", "w.block_output[2]"}


def test_head_directions_of_one_key_in_two_files_do_not_merge(
    made: Callable[..., IntervenedModel], tensors: Path, tmp_path: Path
) -> None:
    # Without `heads`, an entry reads every layer stored under its key: the other entry's too, were it shared.
    file = other_file(tensors, {"iti.attention_heads[1]": draw(HEADS, HEAD_DIM, seed=20)})
    entry = {"kind": "head_direction", "strength": 1.0}
    m = made(entry | {"directions": ref("iti")}, entry | {"directions": {"file": file, "key": "iti"}})
    again = load(m.save_pretrained(tmp_path / "artifact"))
    assert [e.sites for e in again.intervenable.entries] == [e.sites for e in m.intervenable.entries]
    assert torch.equal(logits(again), logits(m))


def test_low_rank_edits_of_one_key_in_two_files_do_not_merge(
    made: Callable[..., IntervenedModel], tensors: Path, tmp_path: Path
) -> None:
    # Without `layer`, an entry reads every layer stored under its key.
    factors = {f"edit.attention_heads[2].{part}": draw(2, 32, seed=i) for i, part in enumerate("ab")}
    elsewhere = {"kind": "low_rank_edit", "factors": {"file": other_file(tensors, factors), "key": "edit"}}
    here = {"kind": "low_rank_edit", "factors": ref("edit")}
    for second in (elsewhere, elsewhere | {"layer": 2, "rank": 2}):
        m = made(here, second)
        again = load(m.save_pretrained(tmp_path / "artifact"))
        assert [e.sites for e in again.intervenable.entries] == [e.sites for e in m.intervenable.entries]
        assert torch.equal(logits(again), logits(m))


def test_pyvene_states_of_one_key_do_not_merge(
    made: Callable[..., IntervenedModel], tensors: Path, tmp_path: Path
) -> None:
    fields = {"site": "block_output", "layer": 1, "source": ref("v"), "state": ref("rot")}
    sigmoid = {"kind": "pyvene", "class": "SigmoidMaskIntervention", **fields}
    state = {"rot.masks": draw(WIDTH), "rot.temperature": torch.tensor(2.0)}
    rotation = pyvene.SigmoidMaskRotatedSpaceIntervention(embed_dim=WIDTH).state_dict()
    rotation = {f"rot.{n}": t for n, t in rotation.items() if not n.endswith("_dim")} | state
    file = other_file(tensors, {n: t.detach().contiguous() for n, t in rotation.items()})
    other = sigmoid | {
        "class": "SigmoidMaskRotatedSpaceIntervention",
        "state": {"file": file, "key": "rot"},
        "source": {"file": "src.safetensors", "key": "v"},
    }
    safetensors.torch.save_file({"v.block_output[1]": draw(WIDTH, seed=30)}, tensors / "src.safetensors")
    m = made(sigmoid, other)
    again = load(m.save_pretrained(tmp_path / "artifact"))
    torch.testing.assert_close(logits(again), logits(m))


def test_reference_that_names_one_tensor_in_full(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    m = made(STEERING | {"vector": ref("v.block_output[1]")})
    folder = m.save_pretrained(tmp_path / "artifact")
    (name,) = safetensors.torch.load_file(folder / "tensors.safetensors")
    assert parse_tensor_name(name) == ("v", "block_output", 1, None)
    assert torch.equal(logits(load(folder)), logits(m))


def test_source_and_state_of_two_files_that_disagree_are_refused(
    made: Callable[..., IntervenedModel], tensors: Path
) -> None:
    file = other_file(tensors, {n: t for n, t in TENSORS.items() if n.startswith("rot")} | {"src": draw(32)})
    fields = {"component": "model.layers[0].mlp.act_fn.output", "source": ref("src")}
    with pytest.raises(CompileError, match=r"other.safetensors: tensor 'src' is another one"):
        made(
            {
                "kind": "pyvene",
                "class": "SigmoidMaskIntervention",
                **fields,
                "state": {"file": file, "key": "rot"},
            }
        )
