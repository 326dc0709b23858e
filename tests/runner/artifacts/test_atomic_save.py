"""An interrupted save leaves the old artifact, and nothing that is not one is overwritten."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_artifacts import STEERING, content, llama, spec_of

from subvene.runner.artifacts import artifact
from subvene.runner.artifacts.artifact import ArtifactError
from subvene.runner.intervened.model import IntervenedModel


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
