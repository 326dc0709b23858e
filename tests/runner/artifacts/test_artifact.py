"""Artifacts: saved, reloaded, refused; nothing in them executed; an interrupted save leaves the old one."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from huggingface_hub import ModelCard

from subvene.interventions import TensorError
from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import ArtifactError, RevisionWarning
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.loading import ModelError
from subvene.specs import InterventionSpec, SpecError, dump_spec, parse_tensor_name

WIDTH, HEADS, HEAD_DIM, LAYERS = 24, 4, 8, 3
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [0, 0, 11, 12, 13, 14]])
MASK = (IDS != 0).long()
LENGTHS = [3, 2]


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": HEAD_DIM,
        "initializer_range": 0.2,
        "pad_token_id": 0,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes | changes)).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


TENSORS = {
    "iti.attention_heads[0]": draw(HEADS, HEAD_DIM),
    "iti.attention_heads[0].sigma": draw(HEADS).abs(),
    "iti.attention_heads[2]": draw(HEADS, HEAD_DIM, seed=1),
    "sure.attention_heads[1]": draw(HEADS, HEAD_DIM, seed=10),
    "sure.attention_heads[1].probe_weight": draw(HEADS, HEAD_DIM, seed=11),
    "sure.attention_heads[1].probe_bias": draw(HEADS, seed=12),
    "v.block_output[1]": draw(WIDTH, seed=2),
    "edit.attention_heads[1].a": draw(2, 32, seed=3),
    "edit.attention_heads[1].b": draw(2, 32, seed=4),
    "refusal.block_output[0]": draw(WIDTH, seed=5),
    "cap.mlp_output[2]": draw(WIDTH, seed=6),
    "src.attention_output[1]": draw(WIDTH, seed=7),
    "src": draw(32, seed=8),
    "rot.mask": draw(WIDTH, seed=9),
    "rot.temperature": torch.tensor(0.5),
}


def ref(key: str) -> dict[str, str]:
    return {"file": "all.safetensors", "key": key}


EVERY_KIND: list[dict[str, Any]] = [
    {"kind": "head_direction", "directions": ref("iti"), "strength": 1.5, "positions": "response"},
    {
        "kind": "steering",
        "name": "persona",
        "layer": 1,
        "vector": ref("v"),
        "coefficient": [2.0, -1.0],
        "normalize": "unit",
        "positions": {"first": 2, "of": "response"},
    },
    {
        "kind": "low_rank_edit",
        "layer": 1,
        "write_heads": [3, 1],
        "read_heads": [0, 2],
        "rank": 2,
        "factors": ref("edit"),
        "strength": 0.5,
    },
    {"kind": "low_rank_edit", "layer": 2, "write_heads": [0], "rank": 3, "seed": 7},
    {"kind": "ablation", "layer": 0, "direction": ref("refusal"), "positions": "prompt"},
    {
        "kind": "capping",
        "site": "mlp_output",
        "layer": 2,
        "direction": ref("cap"),
        "max": 0.1,
        "min": -0.1,
        "positions": {"indices": [0, -1]},
    },
    {
        "kind": "pyvene",
        "class": "SigmoidMaskIntervention",
        "site": "attention_output",
        "layer": 1,
        "source": ref("src"),
        "state": ref("rot"),
        "strength": 0.25,
        "positions": {"last": 1},
    },
    {
        "kind": "pyvene",
        "class": "LowRankRotatedSpaceIntervention",
        "low_rank_dimension": 4,
        "component": "model.layers[0].mlp.act_fn.output",
        "source": ref("src"),
        "subspaces": [1, 2],
        "seed": 3,
    },
    {"kind": "pyvene", "class": "ZeroIntervention", "component": "model.layers[2].mlp.act_fn.output"},
    {"kind": "head_direction", "directions": ref("sure"), "strength": -2.0, "adaptive": "one_minus_p"},
]


def spec_of(*interventions: dict[str, Any], name: str = "user/tiny") -> InterventionSpec:
    return InterventionSpec(subvene=1, model={"name": name}, interventions=list(interventions))


STEERING = {"kind": "steering", "layer": 1, "vector": ref("v"), "coefficient": 3.0}


@pytest.fixture
def tensors(tmp_path: Path) -> Path:
    folder = tmp_path / "tensors"
    folder.mkdir()
    safetensors.torch.save_file(TENSORS, folder / "all.safetensors")
    return folder


@pytest.fixture
def made(tensors: Path) -> Callable[..., IntervenedModel]:
    def make(*interventions: dict[str, Any], **kwargs: Any) -> IntervenedModel:
        spec = spec_of(*(interventions or (STEERING,)), **kwargs)
        return IntervenedModel.from_spec(spec, model=llama(), folder=tensors)

    return make


@pytest.fixture
def saved(made: Callable[..., IntervenedModel], tmp_path: Path) -> Path:
    return made().save_pretrained(tmp_path / "artifact")


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, MASK, prompt_lengths=LENGTHS).logits


def load(folder: Path, **changes: Any) -> IntervenedModel:
    return IntervenedModel.from_pretrained(folder, model=llama(**changes))


def rehash(folder: Path) -> None:
    """What somebody who alters an artifact on purpose does last."""
    path = folder / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    for name in fingerprint["sha256"]:
        if (folder / name).is_file():
            fingerprint["sha256"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(fingerprint))


def alter_fingerprint(folder: Path, **model: Any) -> None:
    path = folder / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["model"] |= model
    path.write_text(json.dumps(fingerprint))


def alter_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "tensors.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path)
    rehash(folder)


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# --- round trips


def test_every_kind_in_one_spec_reloads_to_the_same_logits(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    m = made(*EVERY_KIND)
    fresh = m.intervenable.entries[3]
    assert fresh.name == "low_rank_edit_3"
    with torch.no_grad():  # as training leaves it
        m.intervenable.interventions[fresh.keys[0]].b += draw(3, 32, seed=11)
    before = logits(m)
    folder = m.save_pretrained(tmp_path / "artifact")
    again = load(folder)
    assert torch.equal(logits(again), before)
    with m.disabled():
        assert not torch.allclose(before, logits(m))
    assert [e.name for e in again.intervenable.entries] == [e.name for e in m.intervenable.entries]
    for one, other in zip(again.spec.interventions, m.spec.interventions, strict=True):
        drop = {"directions", "vector", "factors", "direction", "source", "state"}
        assert one.model_dump(exclude=drop) == other.model_dump(exclude=drop)
    # And each of them alone is what it was, so that no two have traded places or cancelled.
    for key in m.intervenable.interventions:
        mine, theirs = (x.intervenable.interventions[key] for x in (m, again))
        assert (mine.positions, mine.strength.tolist()) == (theirs.positions, theirs.strength.tolist())
        mine, theirs = (edit.stored("k", "block_output", 0) for edit in (mine, theirs))
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=1e-7)


@pytest.mark.parametrize("declared", EVERY_KIND, ids=lambda d: f"{d['kind']}-{d.get('class', '')}")
def test_saving_twice_changes_nothing(
    made: Callable[..., IntervenedModel], tmp_path: Path, declared: dict[str, Any]
) -> None:
    first = made(declared).save_pretrained(tmp_path / "first")
    second = load(first).save_pretrained(tmp_path / "second")
    one, two = (safetensors.torch.load_file(f / "tensors.safetensors") for f in (first, second))
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=0, atol=1e-7)
    assert (first / "intervention.yaml").read_text() == (second / "intervention.yaml").read_text()
    # A folder can also be saved over.
    third = load(second).save_pretrained(second)
    assert (third / "intervention.yaml").read_text() == (first / "intervention.yaml").read_text()


def test_trained_values_are_the_ones_that_are_saved(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    m = made({"kind": "low_rank_edit", "layer": 1, "write_heads": [2], "rank": 2})
    (edit,) = m.intervenable.interventions.values()
    optimizer = torch.optim.AdamW(edit.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        m(IDS, MASK, prompt_lengths=LENGTHS).logits.square().sum().backward()
        optimizer.step()
    trained = logits(m)
    again = load(m.save_pretrained(tmp_path / "artifact"))
    with m.disabled():
        assert not torch.allclose(trained, logits(m), atol=1e-3)
    torch.testing.assert_close(logits(again), trained, rtol=0, atol=1e-6)
    stored = safetensors.torch.load_file(tmp_path / "artifact" / "tensors.safetensors")
    assert torch.equal(stored["low_rank_edit_0.attention_heads[1].a"], edit.a.detach())
    assert torch.equal(stored["low_rank_edit_0.attention_heads[1].b"], edit.b.detach() * edit.write_mask)


def test_stock_pyvene_reloads_it(made: Callable[..., IntervenedModel], saved: Path) -> None:
    stock = pyvene.IntervenableModel.load(str(saved), llama())
    with torch.no_grad():
        _, output = stock({"input_ids": IDS, "attention_mask": MASK}, unit_locations=None)
        expected = made()(IDS, MASK, prompt_lengths=LENGTHS, position_ids=None).logits
    torch.testing.assert_close(output.logits[0], expected[0])


def test_provenance_is_kept(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    m = made()
    m.provenance = {"recipe": "mean_difference", "pairs": 8}
    folder = m.save_pretrained(tmp_path / "artifact")
    assert load(folder).provenance == m.provenance
    assert '"recipe": "mean_difference"' in (folder / "README.md").read_text()


@pytest.mark.parametrize("model", ["user/tiny", "package:m/f.gguf", "./here", "/abs/olute"])
def test_model_reference_is_kept(made: Callable[..., IntervenedModel], tmp_path: Path, model: str) -> None:
    folder = made(name=model).save_pretrained(tmp_path / "artifact")
    assert artifact.read(folder).spec.model.name == model


# --- keys


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


# --- what is written


def test_fingerprint(saved: Path) -> None:
    fingerprint = json.loads((saved / "fingerprint.json").read_text())
    assert fingerprint["format"] == "1"
    model = fingerprint["model"]
    assert model["architecture"] == "LlamaForCausalLM"
    assert model["model_type"] == "llama"
    assert (model["n_layers"], model["width"], model["n_heads"], model["head_dim"]) == (3, 24, 4, 8)
    assert model["name"] == "user/tiny"
    assert fingerprint["versions"]["torch"] == version("torch")
    assert set(fingerprint["versions"]) >= {"subvene", "pyvene", "transformers"}
    hashes = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in saved.iterdir()
        if p.name != "fingerprint.json"
    }
    assert fingerprint["sha256"] == hashes
    assert {"README.md", "intervention.yaml", "tensors.safetensors", "config.json"} < hashes.keys()
    assert len([name for name in hashes if name.startswith("intkey_")]) == 1


def test_tensor_metadata(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    folder = made(*EVERY_KIND).save_pretrained(tmp_path / "artifact")
    with safetensors.safe_open(folder / "tensors.safetensors", "pt") as file:
        metadata, names = file.metadata(), sorted(file.keys())
    about = json.loads(metadata["subvene"])
    assert about == {"format": "1", "sites": names, "provenance": {}}
    assert not [n for n in names if n.endswith(("embed_dim", "interchange_dim"))]


def test_the_same_artifact_has_the_same_bytes(made: Callable[..., IntervenedModel], tmp_path: Path) -> None:
    m = made(*EVERY_KIND)
    m.provenance = {"recipe": "mean_difference", "pairs": 8}
    first, *others = (m.save_pretrained(tmp_path / f"artifact-{i}") for i in range(4))
    for folder in others:
        for name in ("tensors.safetensors", "intervention.yaml"):
            assert (folder / name).read_bytes() == (first / name).read_bytes()


@pytest.mark.parametrize(
    ("model", "base"),
    [
        ("user/tiny", "user/tiny"),
        ("gpt2", "gpt2"),
        ("package:m/f.gguf", None),
        ("./x", None),
        ("a/b/c", None),
    ],
)
def test_model_card(
    made: Callable[..., IntervenedModel], tmp_path: Path, model: str, base: str | None
) -> None:
    m = made(*EVERY_KIND, name=model)
    logits(m)
    folder = m.save_pretrained(tmp_path / "artifact")
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "subvene"
    assert card.data.base_model == base
    assert getattr(card.data, "base_model_relation", None) == ("adapter" if base else None)
    assert card.data.pipeline_tag == "text-generation"
    kinds = {"head_direction", "steering", "low_rank_edit", "ablation", "capping", "pyvene"}
    assert set(card.data.tags) == {"activation-steering"} | kinds
    assert "None" not in card.data.to_yaml()
    assert (folder / "intervention.yaml").read_text() in card.text
    assert 'IntervenedModel.from_pretrained("this-folder")' in card.text
    assert "| persona | block_output[1] |" in card.text


def test_card_does_not_take_a_local_folder_for_a_repository(
    made: Callable[..., IntervenedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    folder = made(name="models/tiny").save_pretrained("artifact")
    assert ModelCard.load(folder / "README.md").data.base_model is None


@pytest.mark.parametrize(("mask", "file", "directory"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_permissions_follow_the_umask(
    made: Callable[..., IntervenedModel], tmp_path: Path, mask: int, file: int, directory: int
) -> None:
    old = os.umask(mask)
    try:
        folder = made().save_pretrained(tmp_path / "artifact")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == directory
    assert {stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir()} == {file}


# --- atomicity


def beside(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir() if p.name != "tensors")


@pytest.mark.parametrize("fails", ["dump_spec", "model_card", "hashlib"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_exception_during_a_save_leaves_the_old_artifact(
    made: Callable[..., IntervenedModel], saved: Path, monkeypatch: pytest.MonkeyPatch, fails: str, error: Any
) -> None:
    before = content(saved)

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        raise error("no space left")

    if fails == "hashlib":
        monkeypatch.setattr(artifact.hashlib, "sha256", fail)
    else:
        monkeypatch.setattr(artifact, fails, fail)
    with pytest.raises(error):
        made(STEERING | {"coefficient": 9.0}).save_pretrained(saved)
    assert content(saved) == before
    assert beside(saved) == ["artifact"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_exception_between_the_two_renames_puts_the_old_artifact_back(
    made: Callable[..., IntervenedModel], saved: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    before, rename, calls = content(saved), Path.rename, []

    def second_fails(self: Path, target: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(error):
        made(STEERING | {"coefficient": 9.0}).save_pretrained(saved)
    assert len(calls) == 3
    assert content(saved) == before
    assert beside(saved) == ["artifact"]


@pytest.mark.parametrize("there", [True, False], ids=["over an old one", "a first one"])
def test_kill_during_a_save_leaves_the_old_artifact(tensors: Path, tmp_path: Path, there: bool) -> None:
    # atomic_folder is the whole of it: a process that writes a file and is killed before the block ends.
    folder = tmp_path / "artifact"
    if there:
        m = IntervenedModel.from_spec(spec_of(STEERING), model=llama(), folder=tensors)
        m.save_pretrained(folder)
    before = content(folder) if there else None
    code = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from subvene.runner.files.storage import atomic_folder

        with atomic_folder(Path({str(folder)!r})) as temporary:
            (temporary / "intervention.yaml").write_text("half")
            print("writing", flush=True)
            time.sleep(60)
    """)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "writing"
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    if there:
        assert content(folder) == before
        artifact.read(folder)
    else:
        assert not folder.exists()
    # What is left beside it hides behind a dot, and a later save does not mind it.
    assert all(name == "artifact" or name.startswith(".artifact-") for name in beside(folder))
    m = IntervenedModel.from_spec(spec_of(STEERING), model=llama(), folder=tensors)
    m.save_pretrained(folder)
    artifact.read(folder)


@pytest.mark.parametrize("back", ["read", "is_artifact", "check_free"])
def test_an_artifact_that_a_killed_save_left_aside_is_found(saved: Path, back: str) -> None:
    """As a SIGKILL between the two renames leaves it (`test_leftovers` sends a real one)."""
    before = content(saved)
    saved.rename(saved.with_name(".artifact-0123456789ab.old"))
    saved.with_name(".artifact-0123456789ab").mkdir()
    getattr(artifact, back)(saved)
    assert content(saved) == before
    artifact.read(saved)


@pytest.mark.parametrize("relative", [".", "nested/../artifact", "new/folders/artifact"])
def test_relative_folders(
    made: Callable[..., IntervenedModel], saved: Path, monkeypatch: pytest.MonkeyPatch, relative: str
) -> None:
    m = made(STEERING | {"coefficient": 9.0})
    monkeypatch.chdir(saved if relative == "." else saved.parent)
    if ".." in relative:
        Path("nested").mkdir()
    m.save_pretrained(relative)
    target = saved.parent / "new/folders/artifact" if "new" in relative else saved
    assert artifact.read(target).spec.interventions[0].strength == 9.0


def test_what_is_not_an_artifact_is_not_overwritten(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    folder, file, empty = tmp_path / "thesis", tmp_path / "file", tmp_path / "empty"
    folder.mkdir()
    empty.mkdir()
    (folder / "chapter.tex").write_text("years")
    file.write_text("x")
    for place in (folder, file):
        with pytest.raises(ArtifactError, match=f"{place} exists and is no artifact"):
            made().save_pretrained(place)
    assert (folder / "chapter.tex").read_text() == "years"
    assert file.read_text() == "x"
    assert artifact.is_artifact(made().save_pretrained(empty))
    assert not artifact.is_artifact(folder)


# --- refusals


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refusals come before any model is touched."""

    def touched(*_args: Any, **_kwargs: Any) -> Any:
        raise AssertionError("a model was asked for")

    monkeypatch.setattr("subvene.runner.intervened.model.load_config", touched)
    monkeypatch.setattr("subvene.runner.intervened.model.load_model", touched)
    return


FILES = ["intervention.yaml", "tensors.safetensors", "config.json", "intkey_*.bin"]


@pytest.mark.parametrize("pattern", [*FILES, "README.md", "fingerprint.json"])
@pytest.mark.usefixtures("no_model")
def test_missing_file_is_named(saved: Path, pattern: str) -> None:
    (path,) = saved.glob(pattern)
    path.unlink()
    with pytest.raises(ArtifactError) as caught:
        IntervenedModel.from_pretrained(saved)
    assert str(caught.value) == f"{path}: missing; the artifact is incomplete"


@pytest.mark.parametrize("how", ["truncated", "altered", "emptied"])
@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.usefixtures("no_model")
def test_truncated_and_altered_files_are_named(saved: Path, pattern: str, how: str) -> None:
    (path,) = saved.glob(pattern)
    data = path.read_bytes()
    flipped = data[:-1] + bytes([data[-1] ^ 1])
    path.write_bytes({"truncated": data[: len(data) // 2], "altered": flipped, "emptied": b""}[how])
    with pytest.raises(ArtifactError, match="truncated or altered") as caught:
        IntervenedModel.from_pretrained(saved)
    assert str(path) in str(caught.value)


def test_card_may_be_edited(saved: Path) -> None:
    with (saved / "README.md").open("a") as card:
        card.write("\nMy notes.\n")
    load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        '"x"',
        "{}",
        '{"sha256": {}, "model": 3}',
        '{"sha256": 3, "model": {"n_layers": 1}}',
        "[" * 100_000,
        "\xff",
    ],
)
@pytest.mark.usefixtures("no_model")
def test_fingerprint_that_is_none(saved: Path, text: str) -> None:
    (saved / "fingerprint.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=r"fingerprint.json: not a fingerprint"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_format_of_the_future(saved: Path) -> None:
    path = saved / "fingerprint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "2"}))
    with pytest.raises(ArtifactError, match="format '2', this subvene reads '1'"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("place", ["missing", "file"])
def test_no_such_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=f"{place}: no such artifact folder"):
        IntervenedModel.from_pretrained(tmp_path / place)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 32}, "width: the artifact has 24, the model 32"),
        ({"num_hidden_layers": 4}, "n_layers: the artifact has 3, the model 4"),
        ({"num_attention_heads": 2}, "n_heads: the artifact has 4, the model 2"),
        ({"head_dim": 16}, "head_dim: the artifact has 8, the model 16"),
    ],
)
def test_model_of_other_sizes_is_refused(saved: Path, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ArtifactError, match="was made for another model") as caught:
        load(saved, **changes)
    assert message in str(caught.value)
    assert "load it onto user/tiny" in str(caught.value)


def test_another_architecture_is_refused(saved: Path) -> None:
    config = transformers.Qwen2Config(
        vocab_size=64,
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    with pytest.raises(ArtifactError, match="model_type: the artifact has 'llama', the model 'qwen2'"):
        IntervenedModel.from_pretrained(saved, model=transformers.Qwen2ForCausalLM(config))


def test_every_difference_is_named(saved: Path) -> None:
    with pytest.raises(ArtifactError, match=r"n_layers.*; width.*; n_heads"):
        load(saved, hidden_size=32, num_hidden_layers=4, num_attention_heads=2)


def test_config_alone_refuses_before_weights_are_loaded(
    made: Callable[..., IntervenedModel], tmp_path: Path
) -> None:
    only_config = tmp_path / "model"
    llama(num_hidden_layers=5).config.save_pretrained(only_config)
    folder = made(name=str(only_config)).save_pretrained(tmp_path / "artifact")
    with pytest.raises(ArtifactError, match="n_layers: the artifact has 3, the model 5"):
        IntervenedModel.from_pretrained(folder)


@pytest.mark.parametrize(("made_with", "found", "warns"), [("a1", "b2", 1), ("a1", "a1", 0), (None, "b2", 0)])
def test_another_revision_warns_once(
    saved: Path, recwarn: pytest.WarningsRecorder, made_with: str | None, found: str, warns: int
) -> None:
    alter_fingerprint(saved, revision=made_with)
    model = llama()
    model.config._commit_hash = found
    IntervenedModel.from_pretrained(saved, model=model)
    messages = [str(w.message) for w in recwarn if w.category is RevisionWarning]
    assert len(messages) == warns
    if warns:
        assert "made with revision a1 of the model, and this is b2" in messages[0]


def test_a_vocabulary_of_another_size_warns_only(saved: Path) -> None:
    model = llama()
    model.resize_token_embeddings(65)
    with pytest.warns(RevisionWarning, match="vocab_size 64 .* 65"):
        IntervenedModel.from_pretrained(saved, model=model)


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/tmp/x.safetensors", "C:\\x.safetensors", "a/../../x.safetensors"]
)
@pytest.mark.usefixtures("no_model")
def test_reference_that_leaves_the_folder(saved: Path, file: str) -> None:
    shutil.copy(saved / "tensors.safetensors", saved.parent / "x.safetensors")
    path = saved / "intervention.yaml"
    path.write_text(path.read_text().replace("tensors.safetensors", json.dumps(file)))
    rehash(saved)
    with pytest.raises(SpecError, match="a path within the artifact's folder"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_reference_to_another_file_of_the_folder(saved: Path) -> None:
    shutil.copy(saved / "tensors.safetensors", saved / "second.safetensors")
    path = saved / "intervention.yaml"
    path.write_text(path.read_text().replace("tensors.safetensors", "second.safetensors"))
    rehash(saved)
    with pytest.raises(
        ArtifactError, match=r"interventions\[0\].vector.file: expected 'tensors.safetensors'"
    ):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", "..", "a\0b"])
@pytest.mark.usefixtures("no_model")
def test_fingerprint_that_names_a_file_elsewhere(saved: Path, name: str) -> None:
    (saved.parent / "secret").write_text("x")
    path = saved / "fingerprint.json"
    fingerprint = json.loads(path.read_text())
    fingerprint["sha256"][name] = hashlib.sha256(b"x").hexdigest()
    path.write_text(json.dumps(fingerprint))
    with pytest.raises(ArtifactError, match=r"not a plain file name|missing"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["tensors.safetensors", "intervention.yaml", "fingerprint.json"])
@pytest.mark.usefixtures("no_model")
def test_link_that_leaves_the_folder(saved: Path, name: str) -> None:
    outside = saved.parent / "outside"
    (saved / name).rename(outside)
    (saved / name).symlink_to(outside)
    with pytest.raises(ArtifactError, match=f"{name}: a link that leaves the artifact's folder"):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("name", ["intervention.yaml", "tensors.safetensors"])
def test_files_that_are_not_what_they_should_be(saved: Path, name: str) -> None:
    (saved / name).write_bytes(b"\xff\xfe not this")
    rehash(saved)
    with pytest.raises(ArtifactError, match=f"{name}: not "):
        IntervenedModel.from_pretrained(saved)


@pytest.mark.usefixtures("no_model")
def test_yaml_tags_are_not_followed(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (saved / "intervention.yaml").write_text(f"subvene: !!python/object/apply:os.mkdir ['{marker}']\n")
    rehash(saved)
    with pytest.raises(SpecError):
        IntervenedModel.from_pretrained(saved)
    assert not marker.exists()


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_pickles_are_never_read(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    (path,) = saved.glob("intkey_*.bin")
    path.write_bytes(pickle.dumps(Bomb(marker)))
    rehash(saved)
    assert load(saved).spec.interventions[0].kind == "steering"
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the bomb is one
    assert marker.exists()


def test_class_path_of_the_config_is_never_imported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = saved / "config.json"
    config = json.loads(path.read_text())
    assert config["intervention_types"] == ["<class 'subvene.interventions.steering.SteeringIntervention'>"]
    path.write_text(json.dumps(config | {"intervention_types": ["<class 'evil_module.Evil'>"]}))
    rehash(saved)
    load(saved)
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {n: v * torch.nan for n, v in t.items()}, "holds NaN"),
        (lambda t: {n: v.int() for n, v in t.items()}, "floating point"),
        (lambda t: {n: v[:5] for n, v in t.items()}, r"shape \[5\], expected \[24\]"),
        (
            lambda t: {"v.block_output[2]": t["v.block_output[1]"]},
            r"no tensor 'v.block_output\[1\]'; there is: v.b",
        ),
        (lambda t: {}, "it holds no tensors"),
    ],
    ids=["nan", "integer", "shape", "renamed", "missing"],
)
def test_tensors_that_do_not_fit(saved: Path, change: Any, message: str) -> None:
    alter_tensors(saved, change)
    with pytest.raises((TensorError, CompileError), match=message) as caught:
        load(saved)
    assert "interventions[0] (steering)" in str(caught.value)


# --- before any weight is loaded


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layer": 3}, r"interventions\[0\].layer: expected a layer from 0 to 2 for this model, found 3"),
        (
            {"kind": "low_rank_edit", "layer": 0, "write_heads": [4], "read_heads": [1, 9]},
            r"write_heads: expected a head from 0 to 3 .* found 4\n.*read_heads: .* found 9",
        ),
        (
            {"kind": "head_direction", "directions": ref("iti"), "strength": 1.0, "heads": {5: [0], 1: [7]}},
            r"heads: expected a layer from 0 to 2 .* found 5\n.*heads\[1\]: expected a head .* found 7",
        ),
    ],
)
def test_spec_out_of_range_fails_with_only_a_config(
    tmp_path: Path, tensors: Path, fields: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    llama().config.save_pretrained(folder)
    assert [p.name for p in folder.iterdir()] == ["config.json"]
    good = spec_of(STEERING, name=str(folder))
    with pytest.raises(ModelError, match="cannot be loaded"):  # the weights are looked for only now
        IntervenedModel.from_spec(good, folder=tensors)
    bad = fields if "kind" in fields else STEERING | fields
    path = tensors / "bad.yaml"
    path.write_text(dump_spec(spec_of(bad, name=str(folder))))
    with pytest.raises(CompileError, match=message):
        IntervenedModel.from_spec(path)


def test_problems_of_all_interventions_are_listed(made: Callable[..., IntervenedModel]) -> None:
    with pytest.raises(CompileError) as caught:
        made(
            STEERING | {"vector": {"file": "none.safetensors", "key": "v"}},
            STEERING,
            STEERING | {"vector": ref("w")},
        )
    first, second = str(caught.value).splitlines()
    assert first.startswith("interventions[0] (steering): ")
    assert first.endswith("none.safetensors: no such tensor file")
    assert second.startswith("interventions[2] (steering): ")
    assert "no tensor 'w.block_output[1]'" in second
