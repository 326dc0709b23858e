"""What somebody else made may be wrong or malicious: refused with a clear error, nothing run or written.

Each threat with the tests that show it, here and elsewhere; the last test holds the table to the files.
"""

from __future__ import annotations

import ast
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from artifact_to_spoil import WIDTH, billion_laughs, rehash, steered, tiny_llama
from checkout import TESTS

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.artifacts.card import CardError, finished
from subvene.runner.edits.compile import load_tensors
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import SpecError, SubveneError, load_spec

THREATS = {
    "a pickle in an artifact (.bin beside its files)": [
        "runner/artifacts/test_refusals.py::test_pickles_are_never_read",
    ],
    "a pickle to import (.pt, .pth, .bin, .pkl, .joblib), more than tensors under weights_only": [
        "runner/exchange/imports/test_vectors.py::test_pickles_are_refused_and_not_executed",
        "runner/exchange/imports/test_pyvene_folder.py::test_pickles_are_refused_and_not_executed",
        "runner/exchange/imports/test_lora.py::test_the_pickled_form_is_not_read",
    ],
    "a pickle within numpy files (object arrays, .npz)": [
        "runner/exchange/imports/test_head_directions.py::test_pickles_are_refused_and_not_executed",
    ],
    "a class path in a config file": [
        "runner/artifacts/test_refusals.py::test_class_path_of_the_config_is_never_imported",
        "runner/exchange/imports/test_pyvene_folder.py::test_class_paths_are_compared_and_never_imported",
    ],
    "a YAML tag that makes an object": [
        "runner/artifacts/test_refusals.py::test_yaml_tags_are_not_followed",
        "runner/artifacts/test_safety.py::test_front_matter_that_is_refused",
    ],
    "a link that leaves the folder, or takes a file's place after it was judged": [
        "runner/artifacts/test_refusals.py::test_link_that_leaves_the_folder",
        "runner/artifacts/hub/test_push_and_pull.py::test_a_link_of_the_cache_may_lead_into_its_blobs_only",
        "runner/exchange/imports/test_lora.py::test_a_link_that_leaves_the_folder",
        "runner/artifacts/test_safety.py::test_a_link_in_the_place_of_a_judged_file",
    ],
    "`..` and absolute paths in names": [
        "runner/artifacts/test_refusals.py::test_reference_that_leaves_the_folder",
        "runner/artifacts/test_refusals.py::test_fingerprint_that_names_a_file_elsewhere",
        "specs/test_loading.py::test_an_artifact_names_no_file_outside_its_folder",
        "runner/exchange/imports/test_head_directions.py::test_names_of_an_archive_write_nothing",
        "runner/exchange/imports/test_pyvene_folder.py::test_configs_that_are_refused",
    ],
    "a model's repository with code of its own, and a piped `y` to transformers' question": [
        "runner/models/test_pretrained.py::test_code_of_a_repository_never_runs",
        "runner/models/test_pretrained.py::test_a_repositorys_own_generate_is_not_taken",
        "runner/models/test_pretrained.py::test_every_call_says_that_no_code_of_a_repository_runs",
    ],
    "escape codes and markup in names, paths and answers": [
        "runner/cli/test_printable.py::test_no_command_sends_what_a_name_holds",
        "runner/cli/test_printable.py::test_names_of_weights_reach_no_terminal",
    ],
    "formulas in tables that a spreadsheet opens": [
        "runner/files/test_csv_file.py::test_text_that_begins_like_a_formula_is_marked_as_text",
        "runner/files/test_csv_file.py::test_nothing_else_writes_csv",
    ],
    "a pipe or folder in the place of a file": [
        "runner/artifacts/test_safety.py::test_what_is_no_regular_file",
        "runner/files/test_regular_files.py::test_what_is_no_file_is_refused_at_once",
    ],
    "a safetensors header that lies (shapes, offsets, its own length)": [
        "runner/artifacts/test_safety.py::test_headers_that_lie",
    ],
    "other headers that lie (numpy, GGUF, PyTorch, zip bombs)": [
        "runner/exchange/imports/test_head_directions.py::test_headers_that_lie",
        "runner/exchange/imports/test_head_directions.py::test_a_zip_bomb_is_not_unpacked",
        "runner/exchange/imports/test_vectors.py::test_a_header_that_promises_more_than_there_is_costs_nothing",
        "runner/exchange/imports/test_vectors.py::test_tensors_that_are_no_persona_vector",
    ],
    "truncated files": [
        "runner/artifacts/test_refusals.py::test_truncated_and_altered_files_are_named",
        "runner/artifacts/test_safety.py::test_every_truncation_is_refused",
        "runner/exchange/imports/test_vectors.py::test_every_truncation_is_refused",
    ],
    "NaN, infinite, wrongly shaped, missing tensors": [
        "runner/artifacts/test_refusals.py::test_tensors_that_do_not_fit",
        "runner/artifacts/test_safety.py::test_infinite_values_are_refused_in_every_kind",
        "runner/exchange/imports/test_lora.py::test_tensors_that_do_not_fit",
        "runner/exchange/imports/test_head_directions.py::test_arrays_that_do_not_fit",
    ],
    "a fingerprint of another model": [
        "runner/artifacts/test_refusals.py::test_model_of_other_sizes_is_refused",
        "runner/artifacts/test_refusals.py::test_another_architecture_is_refused",
        "runner/artifacts/test_refusals.py::test_config_alone_refuses_before_weights_are_loaded",
    ],
    "a sha256 that differs": [
        "runner/artifacts/test_refusals.py::test_truncated_and_altered_files_are_named",
        "runner/artifacts/test_artifact_properties.py::test_a_flipped_bit_is_refused_or_changes_nothing",
    ],
    "a YAML bomb: aliases, depth, size": [
        "specs/test_document.py::test_a_billion_laughs_is_refused_before_it_is_expanded",
        "specs/test_document.py::test_a_bomb_of_merge_keys_is_refused",
        "specs/test_document.py::test_deep_nesting_is_refused",
        "specs/test_document.py::test_too_many_values_are_refused",
        "specs/test_document.py::test_a_text_of_too_many_bytes_is_refused",
        "runner/artifacts/test_safety.py::test_bombs_in_specs_and_artifacts",
        "runner/artifacts/test_safety.py::test_front_matter_that_is_refused",
    ],
    "a file that changes between check and use": [
        "runner/artifacts/test_safety.py::test_what_was_hashed_is_what_is_used",
        "runner/artifacts/test_safety.py::test_files_that_change_all_the_time",
        "runner/artifacts/test_safety.py::test_a_link_in_the_place_of_a_judged_file",
    ],
    "anything else": [
        "runner/artifacts/test_artifact_properties.py::test_an_artifact_altered_on_purpose_is_read_or_refused",
        "specs/test_properties.py::test_a_spoilt_spec_is_read_or_its_problems_have_a_place",
        "fuzz/test_loaders.py::test_no_bytes_do_anything_but_load_or_be_refused",
    ],
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return steered().save_pretrained(tmp_path / "artifact")


@pytest.fixture
def nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is written beside what the test itself made, and nothing runs."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a command was run"))
    yield
    assert not list((tmp_path / "cwd").iterdir())


# --- safetensors


def with_header(header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"v.block_output[1]": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


LIES = {
    "header beyond the file": with_header(entry([WIDTH], [0, 64]), bytes(64), 2**40),
    "header of 2**63": with_header(entry([WIDTH], [0, 64]), bytes(64), 2**63),
    "empty header": with_header(b"", b""),
    "header that is no JSON": with_header(b"{'a': 1}", b""),
    "deep header": with_header(b'{"a":' + b"[" * 100_000, b""),
    "huge shape": with_header(entry([2**40, 2**20], [0, 64]), bytes(64)),
    "shape that overflows": with_header(entry([2**62, 8], [0, 64]), bytes(64)),
    "shape that overflows to fit": with_header(entry([2**62, 16], [0, 0]), b""),
    "negative shape": with_header(entry([-WIDTH], [0, 64]), bytes(64)),
    "shape of text": with_header(entry(["16"], [0, 64]), bytes(64)),  # type: ignore[list-item]
    "offsets beyond the file": with_header(entry([WIDTH], [0, 64]), bytes(60)),
    "offsets that do not begin at 0": with_header(entry([WIDTH], [2**40, 2**40 + 64]), bytes(64)),
    "offsets the wrong way round": with_header(entry([WIDTH], [64, 0]), bytes(64)),
    "more data than offsets": with_header(entry([WIDTH], [0, 64]), bytes(100)),
    "unknown dtype": with_header(entry([WIDTH], [0, 64], "PICKLE"), bytes(64)),
    "two tensors in one place": with_header(
        entry([WIDTH], [0, 64]) | {"w": {"dtype": "F32", "shape": [WIDTH], "data_offsets": [0, 64]}},
        bytes(64),
    ),
    "metadata that is no text": with_header(
        entry([WIDTH], [0, 64]) | {"__metadata__": {"a": [1]}}, bytes(64)
    ),
    "metadata of ours that is a list": with_header(
        entry([WIDTH], [0, 64]) | {"__metadata__": {"subvene": "[1, 2]"}}, bytes(64)
    ),
    "metadata of ours that is deep": with_header(
        entry([WIDTH], [0, 64]) | {"__metadata__": {"subvene": "[" * 100_000}}, bytes(64)
    ),
    "provenance that is text": with_header(
        entry([WIDTH], [0, 64]) | {"__metadata__": {"subvene": '{"provenance": "abc"}'}}, bytes(64)
    ),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.usefixtures("nothing_else")
def test_headers_that_lie(saved: Path, lie: str) -> None:
    (saved / "tensors.safetensors").write_bytes(LIES[lie])
    rehash(saved)
    with pytest.raises(ArtifactError, match=r"tensors\.safetensors: not a readable safetensors file"):
        artifact.read(saved)
    if "ours" not in lie and "provenance" not in lie:
        with pytest.raises(SubveneError, match=r"tensors\.safetensors: not a readable safetensors file"):
            load_tensors(saved / "tensors.safetensors")


def test_metadata_that_is_null_says_nothing(saved: Path) -> None:
    header = entry([WIDTH], [0, 64]) | {"__metadata__": None}
    (saved / "tensors.safetensors").write_bytes(with_header(header, bytes(64)))
    rehash(saved)
    assert artifact.read(saved).provenance == {}


def test_every_truncation_is_refused(saved: Path) -> None:
    for name in ("tensors.safetensors", "intervention.yaml", "fingerprint.json"):
        whole = (saved / name).read_bytes()
        before = artifact.read(saved)
        for length in range(0, len(whole) - 1, 11):
            (saved / name).write_bytes(whole[:length])
            if name != "fingerprint.json":
                rehash(saved)
            try:
                found = artifact.read(saved)
            except SubveneError:
                continue
            # A truncated YAML file can be a whole one; no tensor differs.
            assert name == "intervention.yaml"
            assert found.tensors.keys() == before.tensors.keys()
        (saved / name).write_bytes(whole)
        rehash(saved)


_VECTOR = {"v.block_output[1]": torch.ones(16)}
KINDS: list[tuple[dict[str, Any], dict[str, torch.Tensor]]] = [
    ({"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 1.0}, _VECTOR),
    ({"kind": "ablation", "layer": 1, "direction": {"key": "v"}}, _VECTOR),
    ({"kind": "capping", "layer": 1, "direction": {"key": "v"}, "max": 1.0}, _VECTOR),
    (
        {"kind": "head_direction", "directions": {"key": "v"}, "strength": 1.0},
        {"v.attention_heads[1]": torch.ones(2, 8), "v.attention_heads[1].sigma": torch.ones(2)},
    ),
    (
        {"kind": "low_rank_edit", "layer": 1, "rank": 1, "factors": {"key": "v"}},
        {"v.attention_heads[1].a": torch.ones(1, 16), "v.attention_heads[1].b": torch.ones(1, 16)},
    ),
    (
        {
            "kind": "pyvene",
            "class": "SigmoidMaskIntervention",
            "site": "block_output",
            "layer": 1,
            "source": {"key": "v"},
            "state": {"key": "v.state"},
        },
        {
            "v.block_output[1]": torch.ones(16),
            "v.state.mask": torch.ones(16),
            "v.state.temperature": torch.tensor(1.0),
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("declared", "tensors"), KINDS, ids=lambda v: v.get("kind") if isinstance(v, dict) else None
)
def test_infinite_values_are_refused_in_every_kind(
    declared: dict[str, Any], tensors: dict[str, torch.Tensor], value: float
) -> None:
    from subvene.specs import InterventionSpec

    spec = InterventionSpec(subvene=1, model={"name": "user/tiny"}, interventions=[declared])
    model = tiny_llama()
    IntervenedModel.from_spec(spec, model=model, tensors=tensors)
    for name, tensor in tensors.items():
        spoilt = tensor.clone()
        spoilt.view(-1)[-1] = value
        with pytest.raises(SubveneError, match="NaN or infinite"):
            IntervenedModel.from_spec(spec, model=model, tensors=tensors | {name: spoilt})


# --- YAML


BOMBS = {
    "aliases": billion_laughs(),
    "aliases within": "subvene: 1\nmodel: {name: a/b}\ninterventions:\n- kind: steering\n  layer: 1\n"
    + "  vector:\n" + "".join(f"    {line}\n" for line in billion_laughs().splitlines()),
    "depth": "subvene: " + "[" * 100_000,
    "depth of mappings": "subvene: " + "{a: " * 10_000,
    "digits": "subvene: " + "9" * 1_000_000,
    "text": "subvene: '" + "x" * (9 * 2**20) + "'",
    "merges": "a0: &a0 {x: 1, y: 2}\n"
    + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 40)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.usefixtures("nothing_else")
def test_bombs_in_specs_and_artifacts(saved: Path, bomb: str) -> None:
    (saved / "intervention.yaml").write_text(BOMBS[bomb])
    rehash(saved)
    before = time.process_time()
    for read in (
        lambda: artifact.read(saved),
        lambda: load_spec(saved / "intervention.yaml"),
    ):
        with pytest.raises(SpecError, match=r"intervention\.yaml") as caught:
            read()
        assert len(str(caught.value)) < 50_000
    # Seconds of this process, not of the clock: other tests may be running.
    assert time.process_time() - before < 20


@pytest.mark.parametrize(
    "front",
    [
        billion_laughs(),
        "a: " + "[" * 100_000,
        "a: [",
        "a: !!python/object/apply:os.mkdir [executed]",
        "a: &a [*a]",
        "a: \x00",
    ],
    ids=["aliases", "depth", "syntax", "object", "itself", "control character"],
)
@pytest.mark.usefixtures("nothing_else")
def test_front_matter_that_is_refused(front: str) -> None:
    before = time.process_time()
    with pytest.raises(CardError, match="front matter"):
        finished(f"---\nlibrary_name: subvene\n{front}\n---\n\n# A card\n", repo_id="user/name")
    assert time.process_time() - before < 10


# --- the folder


@pytest.mark.parametrize(
    "name", ["tensors.safetensors", "intervention.yaml", "fingerprint.json", "README.md"]
)
@pytest.mark.parametrize("what", ["pipe", "folder"])
@pytest.mark.usefixtures("nothing_else")
def test_what_is_no_regular_file(saved: Path, name: str, what: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name) if what == "pipe" else (saved / name).mkdir()
    with pytest.raises(ArtifactError, match=f"{name}: missing"):
        artifact.read(saved)


@pytest.mark.parametrize(
    "sha256",
    [
        [[1, 2]],
        [["a", 1]],
        {"a" * 5000: "x"},
        {"\ud800": "x"},
        {"": "x"},
        {".": "x"},
        {"a/": "x"},
        "ab",
        None,
    ],
)
@pytest.mark.usefixtures("nothing_else")
def test_hashes_that_are_none(saved: Path, sha256: Any) -> None:
    path = saved / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sha256": sha256}))
    with pytest.raises(ArtifactError):
        artifact.read(saved)


# --- between check and use


def other_content(name: str, folder: Path) -> bytes:
    """What an attacker puts there: valid, and not what was vouched for."""
    if name == "tensors.safetensors":
        return safetensors.torch.save({"v.block_output[1]": torch.full((WIDTH,), 666.0)})
    return (folder / name).read_bytes().replace(b"2.0", b"9.0")


@pytest.mark.parametrize("name", ["tensors.safetensors", "intervention.yaml"])
@pytest.mark.parametrize("moment", ["before the hash", "after the hash"])
@pytest.mark.usefixtures("nothing_else")
def test_what_was_hashed_is_what_is_used(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str, moment: str
) -> None:
    expected = artifact.read(saved)
    evil, whole = other_content(name, saved), (saved / name).read_bytes()
    real, swapped = artifact.hashlib.sha256, []
    assert evil != whole

    def sha256(data: bytes) -> Any:
        # Only at this file's own hash: what is swapped earlier is read, and refused for its hash.
        vouched_for = real(data) if moment == "after the hash" else None
        if data == whole:
            (saved / name).write_bytes(evil)
            swapped.append(name)
        return real(data) if vouched_for is None else vouched_for

    monkeypatch.setattr(artifact.hashlib, "sha256", sha256)
    found = artifact.read(saved)
    assert swapped == [name]
    assert (saved / name).read_bytes() == evil
    assert found.spec == expected.spec
    assert torch.equal(found.tensors["v.block_output[1]"], expected.tensors["v.block_output[1]"])
    monkeypatch.undo()
    with pytest.raises(ArtifactError, match="truncated or altered"):
        artifact.read(saved)


def test_files_that_change_all_the_time(saved: Path) -> None:
    expected = artifact.read(saved)
    path = saved / "tensors.safetensors"
    contents = [path.read_bytes(), other_content(path.name, saved)]
    stop = threading.Event()

    def swap() -> None:
        # One in place, one by a rename, as downloads and editors do.
        while not stop.is_set():
            path.write_bytes(contents[1])
            (saved / "new").write_bytes(contents[0])
            (saved / "new").rename(path)

    thread = threading.Thread(target=swap)
    thread.start()
    read = refused = 0
    try:
        for _ in range(300):
            try:
                found = artifact.read(saved)
            except ArtifactError:
                refused += 1
            else:
                assert torch.equal(found.tensors["v.block_output[1]"], expected.tensors["v.block_output[1]"])
                read += 1
    finally:
        stop.set()
        thread.join()
    assert read + refused == 300


@pytest.mark.parametrize("name", ["tensors.safetensors", "intervention.yaml", "fingerprint.json"])
def test_a_link_in_the_place_of_a_judged_file(
    saved: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    outside, is_symlink = saved.parent / "outside", Path.is_symlink
    outside.write_bytes((saved / name).read_bytes())  # even of the right hash

    def judged_then_swapped(path: Path) -> bool:
        found = is_symlink(path)
        if path.name == name and not found:
            path.unlink()
            path.symlink_to(outside)
        return found

    monkeypatch.setattr(Path, "is_symlink", judged_then_swapped)
    with pytest.raises(ArtifactError, match=name):
        artifact.read(saved)


# --- the table


@pytest.mark.parametrize("threat", THREATS)
def test_the_table_names_tests_that_are_there(threat: str) -> None:
    for shown in THREATS[threat]:
        file, _, name = shown.partition("::")
        defined = {
            node.name
            for node in ast.parse((TESTS / file).read_text(encoding="utf-8")).body
            if isinstance(node, ast.FunctionDef)
        }
        assert name in defined, shown
