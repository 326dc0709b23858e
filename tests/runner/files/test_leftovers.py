"""What killed writers leave: restored where it must be, removed by the next one, and never a living one's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from subvene.runner.files import leftovers
from subvene.runner.files.storage import atomic_file, atomic_folder

# Which of a save's renames a process dies before: it is the real code up to there, and a real SIGKILL.
DIES = """
import os, signal, sys
from pathlib import Path
from subvene.runner.files.storage import atomic_folder

rename, calls = Path.rename, []


def dies(self, target):
    calls.append(self)
    if len(calls) == {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, target)


Path.rename = dies
with atomic_folder(Path(sys.argv[1])) as temporary:
    (temporary / "file").write_text("new")
"""
WRITES = {
    "folder": "with atomic_folder(target) as t:\n    (t / 'file').write_text('half')\n",
    "file": "with atomic_file(target) as t:\n    t.write('half')\n    t.flush()\n",
}


def save(target: Path, text: str) -> None:
    with atomic_folder(target) as temporary:
        (temporary / "file").write_text(text)


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts a process that is in the middle of writing `tmp_path/target`."""
    started = []

    def start(kind: str) -> subprocess.Popen[str]:
        code = (
            "import time\nfrom pathlib import Path\n"
            "from subvene.runner.files.storage import atomic_file, atomic_folder\n"
            f"target = Path({str(tmp_path / 'target')!r})\n"
            + WRITES[kind]
            + "    print('writing', flush=True)\n    time.sleep(600)\n"
        )
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("back", ["load", "save", "save that fails"])
def test_a_save_killed_between_its_renames_loses_nothing(tmp_path: Path, back: str) -> None:
    target = tmp_path / "artifact"
    save(target, "old")
    code = DIES.format(before=2)
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not target.exists()  # the moment that is meant
    if back == "load":
        leftovers.restore(target)
        assert (target / "file").read_text() == "old"
        save(target, "newer")
    elif back == "save":
        save(target, "newer")
    else:
        with pytest.raises(RuntimeError), atomic_folder(target):
            raise RuntimeError
        assert (target / "file").read_text() == "old"
        save(target, "newer")
    assert (target / "file").read_text() == "newer"
    assert os.listdir(tmp_path) == ["artifact"]


def test_a_link_comes_back_as_a_link(tmp_path: Path) -> None:
    save(tmp_path / "real", "old")
    (tmp_path / "link").symlink_to("real")
    code = DIES.format(before=2)
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "link")], check=False)
    leftovers.restore(tmp_path / "link")
    assert (tmp_path / "link").readlink() == Path("real")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_the_next_write_removes_what_a_killed_one_left(
    tmp_path: Path, writing: Callable[[str], subprocess.Popen[str]], kind: str
) -> None:
    process = writing(kind)
    process.kill()
    process.wait()
    (left,) = os.listdir(tmp_path)
    assert left.startswith(".target-")
    if kind == "folder":
        save(tmp_path / "target", "new")
    else:
        with atomic_file(tmp_path / "target") as stream:
            stream.write("new")
    assert os.listdir(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_living_writer_is_left_alone(
    tmp_path: Path, writing: Callable[[str], subprocess.Popen[str]], kind: str
) -> None:
    process = writing(kind)
    (temporary,) = os.listdir(tmp_path)
    save(tmp_path / "target", "mine")
    leftovers.clean_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [temporary, "target"]
    # Stopped is not dead.
    process.send_signal(signal.SIGSTOP)
    leftovers.clean(tmp_path / "target")
    assert temporary in os.listdir(tmp_path)


def test_a_living_save_between_its_renames_is_waited_for(tmp_path: Path) -> None:
    target = tmp_path / "artifact"
    save(target, "old")
    code = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from subvene.runner.files.storage import atomic_folder
        rename, calls = Path.rename, []

        def slow(self, target):
            calls.append(self)
            if len(calls) == 2:
                print("between", flush=True)
                sys.stdin.readline()
            return rename(self, target)

        Path.rename = slow
        with atomic_folder(Path(sys.argv[1])) as temporary:
            (temporary / "file").write_text("new")
    """)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    saving = subprocess.Popen([sys.executable, "-c", code, str(target)], **pipes)  # type: ignore[call-overload]
    assert saving.stdout.readline() == "between\n"
    look = (
        "import sys; from pathlib import Path; from subvene.runner.files import leftovers\n"
        "print('looks', flush=True); leftovers.restore(Path(sys.argv[1])); print('done', flush=True)"
    )
    looking = subprocess.Popen([sys.executable, "-c", look, str(target)], **pipes)  # type: ignore[call-overload]
    assert looking.stdout.readline() == "looks\n"
    leftovers.clean_folder(tmp_path / "elsewhere")
    saving.communicate("\n")
    assert saving.returncode == 0
    assert looking.communicate()[0] == "done\n"
    assert (target / "file").read_text() == "new"
    leftovers.clean(target)
    assert os.listdir(tmp_path) == ["artifact"]


def test_what_only_looks_like_it_stays(tmp_path: Path) -> None:
    for name in (
        ".artifact-notes",
        ".artifact-0123456789abc",
        "artifact-0123456789ab",
        ".other-0123456789ab",
    ):
        (tmp_path / name).mkdir()
    before = sorted(os.listdir(tmp_path))
    save(tmp_path / "artifact", "x")
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "artifact"])


def test_a_folder_is_cleaned_at_every_depth(tmp_path: Path) -> None:
    for name in ("fits/.abc-0123456789ab", ".baked-k_12xy", "work/p/.x-0123456789ab"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text("half")
    (tmp_path / "artifacts" / ".iti-0123456789ab.old").mkdir(parents=True)
    (tmp_path / "work" / ".shard.safetensors-0123456789ab").write_text("half")
    (tmp_path / "work" / "kept").write_text("whole")
    leftovers.clean_folder(tmp_path)
    there = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    assert there == ["artifacts", "artifacts/iti", "fits", "work", "work/kept", "work/p"]
