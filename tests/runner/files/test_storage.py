"""A disk that refuses: one error that names the place and says what to do, and nothing half-written."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tokenizers
import torch

from subvene.runner.files.ledger import Ledger
from subvene.runner.files.storage import (
    StorageError,
    atomic_file,
    atomic_folder,
    check_writable,
    write_json,
    write_text,
)
from subvene.runner.judges.server.replies import Reply
from subvene.runner.judges.server.store import Store
from subvene.runner.passes import shards

LIMIT = 4096
REFUSED = r"cannot be written: File too large; .*ulimit.* run the same command again"


@contextlib.contextmanager
def small_files(size: int = LIMIT) -> Iterator[None]:
    """The system refuses to let a file grow further, as a full disk does: a real error of a real write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def words(target: Path) -> None:
    vocabulary = {f"word{i}": i for i in range(2000)} | {"?": 2000}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?")).save(str(target))


TOO_LARGE: dict[str, Callable[[Path], Any]] = {
    "text": lambda place: place.write_text("x" * 9000),
    "safetensors": lambda place: safetensors.torch.save_file({"a": torch.zeros(5000)}, place),
    "torch": lambda place: torch.save({"a": torch.zeros(5000)}, place),
    "tokenizers": words,
}


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the rights of the one who may write everywhere."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


UNWRITABLE = {
    "file/run": "Not a directory",
    "file/a/b/run": "Not a directory",
    "x" * 300: "File name too long",
}


@pytest.mark.parametrize("place", UNWRITABLE)
def test_a_place_that_takes_nothing_is_found_out(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "a" / "b" / "run")
    check_writable(tmp_path / "file")
    with pytest.raises(StorageError, match=rf"{place}: cannot be written: {UNWRITABLE[place]}.*--output"):
        check_writable(tmp_path / place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_without_the_right_to_write_is_found_out(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with nobody(), pytest.raises(StorageError, match="run: cannot be written: Permission denied"):
        check_writable(tmp_path / "run")
    tmp_path.chmod(0o755)
    check_writable(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", TOO_LARGE)
@pytest.mark.parametrize("there", [True, False])
def test_a_folder_stays_as_it_was_whoever_writes_into_it(tmp_path: Path, library: str, there: bool) -> None:
    target = tmp_path / "artifact"
    if there:
        with atomic_folder(target) as temporary:
            (temporary / "file").write_text("old")
    refused = pytest.raises(StorageError, match=r"artifact: cannot be written: ")
    with small_files(), refused as raised, atomic_folder(target) as temporary:
        TOO_LARGE[library](temporary / "file")
    assert "run the same command again" in str(raised.value)
    assert os.listdir(tmp_path) == (["artifact"] if there else [])
    assert not there or (target / "file").read_text() == "old"


def test_files_stay_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    for write in (lambda: write_text(path, "y" * 9000), lambda: write_json(path, ["y"] * 9000)):
        write_text(path, "old")
        with small_files(), pytest.raises(StorageError, match=rf"results\.json: {REFUSED}"):
            write()
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["results.json"]


def test_another_error_is_not_the_disks(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), atomic_folder(tmp_path / "a"):
        raise ValueError("mine")
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "no" / "folder.txt") as stream:
        stream.write("x")


def test_a_ledger_keeps_whole_lines_and_goes_on(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.do({"unit": 1}, lambda: {"value": 1})
        before = ledger.path.read_bytes()
        with small_files(), pytest.raises(StorageError, match=rf"units\.jsonl: {REFUSED}"):
            ledger.do({"unit": 2}, lambda: {"value": "x" * 9000})
        assert ledger.path.read_bytes() == before
        assert not ledger.has({"unit": 2})
        ledger.do({"unit": 3}, lambda: {"value": 3})
    with Ledger(tmp_path) as ledger:
        assert [ledger.has({"unit": i}) for i in (1, 2, 3)] == [True, False, True]


def test_shards_are_whole_or_not_there(tmp_path: Path) -> None:
    index = shards.Index("c", "block_output", (0,), 8, (1000,), "whole")  # type: ignore[arg-type]
    store = shards.Store.create(tmp_path / "s", index)
    with small_files(), pytest.raises(StorageError, match=rf"shard-00000\.safetensors: {REFUSED}"):
        store.put(0, {0: torch.zeros(1000, 8)})
    assert not store.has(0)
    assert os.listdir(tmp_path / "s") == ["index.json"]


def test_a_store_of_replies_keeps_what_came_before(tmp_path: Path) -> None:
    store = Store(tmp_path / "replies.jsonl")
    with store:
        store.add("a", Reply("yes", ((" yes", -0.1),)))
        with small_files(), pytest.raises(StorageError, match=rf"replies\.jsonl: {REFUSED}"):
            store.add("b", Reply("x" * 9000, ((" yes", -0.1),)))
        store.add("c", Reply("no", ((" no", -0.1),)))
    assert sorted(Store(tmp_path / "replies.jsonl").read()) == ["a", "c"]


def test_what_is_no_file_is_written_as_it_is(tmp_path: Path) -> None:
    with atomic_file(Path("/dev/null")) as stream:
        stream.write("x")
    assert Path("/dev/null").is_char_device()
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with atomic_file(tmp_path / "link") as stream:
        stream.write("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


FULL = """
import sys
from pathlib import Path
import safetensors.torch, torch
from subvene.runner.files.ledger import Ledger
from subvene.runner.files.storage import write_text
from subvene.runner.files.storage import StorageError, atomic_folder
disk = Path(sys.argv[1])


def refused(work):
    try:
        work()
    except StorageError as error:
        assert "free some space there" in str(error), error
        return
    raise SystemExit("a full disk took it")


def folder(write):
    with atomic_folder(disk / "a") as temporary:
        write(temporary / "file")


with Ledger(disk) as ledger:
    ledger.do({"unit": 0}, lambda: {"value": 0})
    refused(lambda: ledger.do({"unit": 1}, lambda: {"value": "x" * 400_000}))
    ledger.do({"unit": 2}, lambda: {"value": 2})
refused(lambda: write_text(disk / "t", "x" * 400_000))
refused(lambda: folder(lambda p: safetensors.torch.save_file({"a": torch.zeros(100_000)}, p)))
# The archive's last blocks are written when it is closed: a disk that ends there must not pass for whole.
for size in range(38_000, 62_000, 1500):
    try:
        folder(lambda p: torch.save(torch.zeros(size), p))
    except StorageError:
        continue
    torch.load(disk / "a" / "file")
refused(lambda: folder(lambda p: torch.save(torch.zeros(100_000), p)))
assert {p.name for p in disk.iterdir()} <= {".lock", "units.jsonl", "a"}, list(disk.iterdir())
with Ledger(disk) as ledger:
    assert [ledger.has({"unit": i}) for i in range(3)] == [True, False, True]
print("right")
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare, and so no file system of one's own")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """A file system of 256 KiB, in a namespace that needs no rights."""
    disk = tmp_path / "disk"
    disk.mkdir()
    own = ["unshare", "-rm", "sh", "-c"]
    mount = f"mount -t tmpfs -o size=256k subvene {disk}"
    if subprocess.run([*own, mount], capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no file systems of one's own")
    code = [sys.executable, "-c", FULL, str(disk)]
    whole = f'{mount} && exec "$@"'
    done = subprocess.run([*own, whole, "sh", *code], capture_output=True, text=True, check=False)
    assert done.stdout == "right\n", done.stderr[-3000:]
