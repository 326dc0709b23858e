"""Fine-tuning through the real openai client and real HTTP.

The server is a small fake of OpenAI's files and fine-tuning endpoints: no real one runs on this machine.
"""

from __future__ import annotations

import email
import http.server
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest

from subvene.runner.judges import JudgeError
from subvene.runner.judges.server.client import Endpoint
from subvene.runner.judges.training.finetune import Recipe, endpoint_of, follow, prepare, prepared, start
from subvene.runner.judges.training.labels import Label, read_labels

LABELS = [Label(f"Question {i % 20}?", f"Answer {i}.", i % 3 == 0) for i in range(60)]


class Tuning:
    """The fake's state: what was uploaded, which jobs run, and what shall go wrong."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[str, bytes]] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.lose_reply = False
        self.outcome = "succeeded"
        self.looks = 0

    def job(self, body: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(body)
        name = f"ftjob-{len(self.jobs) + 1}"
        self.jobs[name] = {
            "id": name,
            "object": "fine_tuning.job",
            "created_at": 1,
            "status": "queued",
            "model": body["model"],
            "training_file": body["training_file"],
            "fine_tuned_model": None,
            "error": None,
            "hyperparameters": body["method"]["supervised"]["hyperparameters"],
            "organization_id": "org",
            "result_files": [],
            "seed": 0,
        }
        return self.jobs[name]

    def look(self, name: str) -> dict[str, Any]:
        self.looks += 1
        job = self.jobs[name]
        if self.looks == 2:
            job["status"] = "running"
        elif self.looks > 2:
            job["status"] = self.outcome
            if self.outcome == "succeeded":
                job["fine_tuned_model"] = f"ft:{job['model']}:subvene"
            else:
                job["error"] = {"code": "x", "message": "the file is too dull", "param": None}
        return job

    def events(self, name: str) -> list[dict[str, Any]]:
        said = ["Created", "Running", "Done"][: self.looks]
        event = {"object": "fine_tuning.job.event", "level": "info", "type": "message", "data": None}
        # The newest first, as OpenAI gives them.
        return [event | {"id": f"e{i}", "created_at": i, "message": text} for i, text in enumerate(said)][
            ::-1
        ]


@pytest.fixture
def tuning() -> Iterator[tuple[Tuning, Endpoint]]:
    state = Tuning()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/files":
                head = f"Content-Type: {self.headers['Content-Type']}\n\n".encode()
                parts = {p.get_param("name", header="content-disposition"): p for p in _parts(head + body)}
                assert parts["purpose"].get_payload() == "fine-tune"
                name = f"file-{len(state.files) + 1}"
                state.files[name] = parts["file"].get_filename(), parts["file"].get_payload(decode=True)
                file = {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x"}
                self._send(file | {"purpose": "fine-tune", "status": "processed"})
            else:
                job = state.job(json.loads(body))
                if state.lose_reply:
                    state.lose_reply = False
                    self.close_connection = True
                else:
                    self._send(job)

        def do_GET(self) -> None:
            if self.path == "/v1/models":
                self._send({"object": "list", "data": []})
                return
            parts = self.path.partition("?")[0].removeprefix("/v1/fine_tuning/jobs").strip("/").split("/")
            if parts == [""]:
                self._send({"object": "list", "data": list(state.jobs.values())[::-1], "has_more": False})
            elif parts[1:] == ["events"]:
                self._send({"object": "list", "data": state.events(parts[0]), "has_more": False})
            else:
                self._send(state.look(parts[0]))

        def _send(self, document: Any) -> None:
            data = json.dumps(document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

    with loopback.serve(Handler) as url:
        yield state, Endpoint(base_url=f"{url}/v1", max_retries=2)


def _parts(message: bytes) -> Any:
    return email.message_from_bytes(message).get_payload()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    prepare({"truth": LABELS, "info": LABELS}, tmp_path / "tune", validation=0.2)
    return tmp_path / "tune"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_files(folder: Path) -> None:
    assert prepared(folder) == ["truth", "info"]
    train, kept = (lines(folder / f"truth.{part}.completions.jsonl") for part in ("train", "validation"))
    assert train[0] == {"prompt": "Q: Question 0?\nA: Answer 0.\nTrue:", "completion": " yes"} or kept[0][
        "prompt"
    ].startswith("Q: Question 0?")
    by_question = [{row["prompt"].split("\n")[0] for row in part} for part in (train, kept)]
    assert not by_question[0] & by_question[1]
    assert (len(by_question[0]), len(by_question[1])) == (16, 4)
    assert len(train) + len(kept) == len(LABELS)
    # What is written can be read again, and what is kept apart for truth is kept apart for info.
    aspect, rows = read_labels(folder / "truth.train.completions.jsonl")
    assert (aspect, set(rows) <= set(LABELS)) == ("truth", True)
    info = lines(folder / "info.validation.completions.jsonl")
    assert {row["prompt"].split("\n")[0] for row in info} == by_question[1]
    chat = lines(folder / "truth.train.chat.jsonl")
    assert len(chat) == len(train)
    assert [message["role"] for message in chat[0]["messages"]] == ["system", "user", "assistant"]
    assert {row["messages"][2]["content"] for row in chat} == {"yes", "no"}


def test_the_split_does_not_depend_on_the_order_of_labels(folder: Path, tmp_path: Path) -> None:
    prepare({"truth": LABELS[::-1]}, tmp_path / "again", validation=0.2)
    first, second = (lines(f / "truth.validation.chat.jsonl") for f in (folder, tmp_path / "again"))
    assert sorted(map(str, first)) == sorted(map(str, second))


def test_a_folder_is_not_written_over_and_a_split_has_two_sides(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="exists"):
        prepare({"truth": LABELS}, folder)
    with pytest.raises(JudgeError, match="none on one side"):
        prepare({"truth": LABELS[:1]}, tmp_path / "new", validation=0.1)
    assert not (tmp_path / "new").exists()
    prepare({"truth": LABELS[:1]}, tmp_path / "new", validation=0)
    assert not (tmp_path / "new" / "truth.validation.chat.jsonl").exists()


def test_a_job_has_the_papers_recipe_and_is_started_once(
    tuning: tuple[Tuning, Endpoint], folder: Path
) -> None:
    state, endpoint = tuning
    for _ in range(2):
        started = start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    assert (started["job"], len(state.jobs), len(state.files)) == ("ftjob-1", 1, 2)
    (asked,) = state.asked
    assert asked["method"]["supervised"]["hyperparameters"] == {
        "n_epochs": 5,
        "batch_size": 21,
        "learning_rate_multiplier": 0.1,
    }
    name, content = state.files[asked["training_file"]]
    assert (name, content.decode()) == (
        "truth.train.chat.jsonl",
        (folder / "truth.train.chat.jsonl").read_text(encoding="utf-8"),
    )
    assert state.files[asked["validation_file"]][0] == "truth.validation.chat.jsonl"
    assert endpoint_of(folder, "truth") == endpoint.base_url
    # The record is enough: a server may forget its jobs.
    forgotten = state.jobs.pop("ftjob-1")
    assert start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe()) == started
    assert len(state.asked) == 1
    state.jobs["ftjob-1"] = forgotten
    start(endpoint, folder, "info", model="nano", form="chat", recipe=Recipe())
    assert len(state.jobs) == 2
    with pytest.raises(JudgeError, match="recorded with other settings"):
        start(endpoint, folder, "truth", model="mini", form="chat", recipe=Recipe())


def test_a_job_whose_reply_was_lost_is_found_again(tuning: tuple[Tuning, Endpoint], folder: Path) -> None:
    state, endpoint = tuning
    state.lose_reply = True
    with pytest.raises(JudgeError, match="cannot be reached"):
        start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    assert len(state.jobs) == 1
    started = start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    assert (started["job"], len(state.jobs), len(state.files)) == ("ftjob-1", 1, 2)


def test_changed_files_are_not_uploaded(tuning: tuple[Tuning, Endpoint], folder: Path) -> None:
    state, endpoint = tuning
    with (folder / "truth.train.chat.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(JudgeError, match="not as it was prepared"):
        start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    assert state.files == {}
    with pytest.raises(JudgeError, match="expected a folder of"):
        start(endpoint, folder.parent, "truth", model="nano", form="chat", recipe=Recipe())


def test_following_tells_every_event_once(tuning: tuple[Tuning, Endpoint], folder: Path) -> None:
    _, endpoint = tuning
    with pytest.raises(JudgeError, match="no job for truth was started"):
        follow(endpoint, folder, "truth")
    start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    said: list[str] = []
    ended = follow(endpoint, folder, "truth", interval=0.01, say=said.append)
    assert said == ["Created", "Running", "Done"]
    assert (ended["status"], ended["fine_tuned_model"]) == ("succeeded", "ft:nano:subvene")
    assert json.loads((folder / "jobs.json").read_text())["truth"] == ended


def test_a_job_that_failed_says_why(tuning: tuple[Tuning, Endpoint], folder: Path) -> None:
    state, endpoint = tuning
    state.outcome = "failed"
    start(endpoint, folder, "truth", model="nano", form="chat", recipe=Recipe())
    ended = follow(endpoint, folder, "truth", interval=0.01)
    assert (ended["status"], ended["error"]) == ("failed", "the file is too dull")
