"""Artifacts, whatever their tensors are and whatever is done to their bytes."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from artifact_to_spoil import WIDTH, rehash, steered, tiny_llama
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import Artifact
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import SubveneError

_DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
_shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
_names = st.text(alphabet="abcXYZ019_-.[]", min_size=1, max_size=12).map(lambda text: f"x.{text}")


@st.composite
def _tensors(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    tensors = {}
    for name in draw(st.lists(_names, max_size=3, unique=True)):
        generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
        values = torch.randn(draw(_shapes), generator=generator) * draw(st.sampled_from([1e-40, 1.0, 1e4]))
        tensors[name] = values.to(draw(st.sampled_from(_DTYPES)))
    return tensors


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_llama()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    extra=_tensors(),
    vector=st.lists(
        st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=WIDTH, max_size=WIDTH
    ),
    coefficient=st.floats(allow_nan=False, allow_infinity=False),
)
def test_what_is_saved_is_what_is_loaded(
    model: Any, extra: dict[str, torch.Tensor], vector: list[float], coefficient: float
) -> None:
    v = torch.tensor(vector)
    assume(bool(v.any()))  # a zero vector is refused when it is compiled
    m = steered(extra | {"v.block_output[1]": v}, model, coefficient=coefficient)
    with tempfile.TemporaryDirectory() as scratch:
        folder = m.save_pretrained(Path(scratch, "artifact"))
        found = artifact.read(folder)
        again = IntervenedModel.from_pretrained(folder, model=model)
    assert found.tensors.keys() == {"v.block_output[1]", *extra}
    for name, tensor in (extra | {"v.block_output[1]": v}).items():
        assert found.tensors[name].dtype == tensor.dtype
        assert found.tensors[name].shape == tensor.shape
        # Bit for bit, where 0.0 == -0.0.
        assert torch.equal(found.tensors[name].view(-1).view(torch.uint8), tensor.view(-1).view(torch.uint8))
    assert again.spec.interventions[0].strength == coefficient
    assert again.provenance == m.provenance
    (edit,) = again.intervenable.interventions.values()
    assert torch.equal(edit.vector, v)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return steered({"u.block_output[0]": torch.ones(WIDTH)}).save_pretrained(
        tmp_path_factory.mktemp("saved") / "artifact"
    )


def is_same(found: Artifact, expected: Artifact) -> bool:
    return (
        found.spec == expected.spec
        and found.provenance == expected.provenance
        and found.tensors.keys() == expected.tensors.keys()
        and all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.tensors.items())
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_changes_nothing(saved: Path, model: Any, data: st.DataObject) -> None:
    expected = artifact.read(saved)
    names = sorted(p.name for p in saved.iterdir())
    name = data.draw(st.sampled_from(names))
    whole = (saved / name).read_bytes()
    at, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "artifact")
        shutil.copytree(saved, folder)
        (folder / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
        try:
            found = artifact.read(folder)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # another revision or vocabulary warns
                found.check_model(model)
        except SubveneError as error:
            event("refused")
            named = str(folder) in str(error)
        else:
            event("read")
            named = None
    if named is not None:
        assert named  # the error says which artifact it is about
        return
    # The card is for people, and what the fingerprint says beyond sizes and hashes is, too.
    assert name in ("README.md", "fingerprint.json")
    assert is_same(found, expected)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_artifact_altered_on_purpose_is_read_or_refused(
    saved: Path, model: Any, data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(["intervention.yaml", "tensors.safetensors"]))
    whole = (saved / name).read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.integers(0, 12))
    new = data.draw(st.binary(max_size=12))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "artifact")
        shutil.copytree(saved, folder)
        (folder / name).write_bytes(whole[:at] + new + whole[at + cut :])
        rehash(folder)
        with contextlib.suppress(SubveneError):
            IntervenedModel.from_pretrained(folder, model=model)
        assert {p.name for p in Path(scratch).iterdir()} == {"artifact"}
