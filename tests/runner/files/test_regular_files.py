"""What others hand in may be a pipe, a socket, a device or a folder: refused at once, never waited for."""

from __future__ import annotations

import ast
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from checkout import ROOT

from subvene.runner.cli._options import read_prompts
from subvene.runner.data.preferences import read_data
from subvene.runner.data.texts import read_texts
from subvene.runner.data.traits import read_trait
from subvene.runner.data.transcripts import read_transcripts
from subvene.runner.data.truthfulqa.prompts import load_prompts
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.edits.compile import load_tensors
from subvene.runner.experiments.results import Results
from subvene.runner.files.ledger import Ledger
from subvene.runner.judges.encoder import SentenceEncoder
from subvene.runner.judges.training.classifier import load_record
from subvene.runner.judges.training.labels import read_labels
from subvene.runner.models.loading import load_config
from subvene.specs import SubveneError, TextsSpec, load_pairs, load_spec
from subvene.specs.judges.loading import load_judge
from subvene.specs.preferences import TriplesSpec
from subvene.specs.questions import QuestionsSpec
from subvene.specs.traits import TraitSpec

PATIENCE = 20.0


def _ledger(path: Path) -> None:
    with Ledger(path.parent):
        pass


READERS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "spec": ("x.yaml", load_spec),
    "spec in JSON": ("x.json", load_spec),
    "pairs": ("x.yaml", load_pairs),
    "judge": ("x.yaml", load_judge),
    "texts": ("x.txt", lambda path: read_texts(TextsSpec(file=path.name), path.parent)),
    "preferences": ("x.jsonl", lambda path: read_data(TriplesSpec(file=path.name), path.parent)),
    "transcripts": ("x.jsonl", read_transcripts),
    "questions": ("x.csv", lambda path: load_questions(QuestionsSpec(file=path.name), path.parent)),
    "primer": ("x.txt", lambda path: load_prompts("qa", path.name, None, path.parent)),
    "trait": ("x.json", lambda path: read_trait(TraitSpec(name="kind", file=path.name), path.parent)),
    "labels": ("x.jsonl", read_labels),
    "a judge of one's own": ("judge.json", lambda path: load_record(path.parent)),
    "results of a run": ("results.json", Results.load),
    "units of a run": ("units.jsonl", _ledger),
    "tensors": ("x.safetensors", load_tensors),
    "prompts": ("x.txt", lambda path: read_prompts([], path, {})),
    "a model's config": ("config.json", lambda path: load_config(str(path.parent))),
    "an encoder's config": ("config.json", lambda path: SentenceEncoder(str(path.parent))),
}


@pytest.fixture
def pipes(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Makes what is no regular file, and lets go whoever waits for it."""
    made: list[Path] = []
    sockets = []

    def make(path: Path, what: str) -> None:
        if what == "pipe":
            os.mkfifo(path)
            made.append(path)
        elif what == "socket":
            sockets.append(socket.socket(socket.AF_UNIX))
            sockets[0].bind(str(path))
        elif what == "device":
            path.symlink_to("/dev/zero")
        else:
            path.mkdir()

    yield make
    for path in made:
        os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    for one in sockets:
        one.close()


@pytest.mark.parametrize("what", ["pipe", "socket", "device", "folder"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_refused_at_once(
    reader: str,
    what: str,
    pipes: Callable[[Path, str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, read = READERS[reader]
    monkeypatch.chdir(tmp_path)
    pipes(
        Path(name) if what == "socket" else tmp_path / name, what
    )  # by its name: the address of a socket has 108 bytes at most
    said: list[BaseException] = []

    def run() -> None:
        try:
            read(tmp_path / name)
        except BaseException as error:
            said.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive(), "it waits for a writer, or reads without end"
    assert said, "it was read"
    assert isinstance(said[0], SubveneError | OSError), repr(said[0])
    assert str(tmp_path) in str(said[0])


# Files that subvene ships, has just written, or has looked at (`is_file`) a line before.
OWN = {
    "runner/reports/page.py",
    "runner/measures/multiple_choice.py",
    "runner/data/truthfulqa/questions.py",
    "runner/data/truthfulqa/prompts.py",
    "runner/exchange/exports/cards.py",
    "runner/cli/export.py",
    "runner/cli/run.py",
    "runner/artifacts/artifact.py",
    "runner/artifacts/hub.py",
    "runner/engines/playground/server.py",
    "runner/models/loading.py",
    "runner/files/storage.py",  # opens what it writes
    "specs/regular_file.py",
}


OTHERWISE = {"os.open", "arm.open", "self.open", "Store.open", "archive.open", "webbrowser.open"}
"""What is called `open` and opens no file by itself."""


def _reads(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "read_bytes"):
        return True
    opens = ast.unparse(call.func)
    if opens == "open" or (opens.endswith(".open") and opens not in OTHERWISE):
        words = [ast.unparse(arg) for arg in call.args]
        return not any(mode in word for word in words for mode in ("'w", "'x", "'a", "r+"))
    return False


def test_every_file_of_others_is_opened_by_the_one_that_looks() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call)[:60]}"
        for path in [*ROOT.glob("runner/**/*.py"), *ROOT.glob("specs/**/*.py")]
        if str(path.relative_to(ROOT)) not in OWN
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and _reads(call)
    }
    assert not found, "read through specs/regular_file.py, which waits for no pipe"
