"""What stands before vLLM's server, in front of an application that answers as vLLM does."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_artifacts import TENSORS, llama, spec_of
from typer.testing import CliRunner

from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.vllm.front import Front
from subvene.runner.engines.vllm.http import Artifacts
from subvene.runner.engines.vllm.serve import command
from subvene.runner.engines.vllm.settings import Settings
from subvene.runner.intervened.model import IntervenedModel

STEER = {"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "a"
    IntervenedModel.from_spec(spec_of(STEER), model=llama(), tensors=TENSORS).save_pretrained(folder)
    return folder


@pytest.fixture
def front(folder: Path) -> Front:
    return Front(Settings(artifacts={"a": str(folder)}), llama().config)


class Vllm:
    """Admits what it is given, computes what is asked for, and answers whole or in pieces."""

    def __init__(self, front: Front, edited: float = 8.0) -> None:
        self.front, self.edited, self.seen = front, edited, []
        self.state = SimpleNamespace(
            engine_client=SimpleNamespace(
                input_processor=SimpleNamespace(subvene=front),
                model_config=SimpleNamespace(model=str(Path(__file__).parent), dtype="torch.float32"),
            ),
            openai_serving_models=SimpleNamespace(base_model_paths=[SimpleNamespace(name="base")]),
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "GET":
            await self.send(send, 200, [json.dumps({"data": [{"id": "base"}]})])
            return
        message = await receive()
        length = dict(scope["headers"])[b"content-length"]
        assert int(length) == len(message["body"])
        document = json.loads(message["body"])
        self.seen.append(document)
        if asked := (document.get("vllm_xargs") or {}):
            plan = self.front.admit(asked["subvene"], 5, tag=asked["subvene_tag"])
            steering = self.front.pending.pop(plan["key"])
            steering.tokens[0] = 4
            steering.conclude([{"problem": None, "sites": {"block_output[1]": [self.edited] * 3}}])
            if steering.error and document.get("raise"):
                raise steering.error
            if steering.error and not document.get("stream"):
                await self.send(send, 500, [json.dumps({"error": {"message": "internal"}})])
                return
        if not document.get("stream"):
            await self.send(send, 200, [json.dumps({"model": "base", "choices": []})])
            return
        pieces = [{"model": "base", "choices": [{"finish_reason": end}]} for end in (None, "stop")]
        events = "".join(f"data: {json.dumps(piece)}\n\n" for piece in pieces) + "data: [DONE]\n\n"
        await self.send(send, 200, [events[:20], events[20:]], b"text/event-stream; charset=utf-8")

    async def send(self, send: Any, status: int, parts: list[str], kind: bytes = b"application/json") -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
        for i, part in enumerate(parts):
            more = i + 1 < len(parts)
            await send({"type": "http.response.body", "body": part.encode(), "more_body": more})


def call(app: Vllm, document: Any = None, path: str = "/v1/completions") -> tuple[int, str]:
    body, sent = json.dumps(document).encode(), []
    scope = {
        "type": "http",
        "app": app,
        "path": path,
        "method": "GET" if document is None else "POST",
        "headers": [(b"content-length", str(len(body)).encode())],
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Artifacts(app)(scope, receive, send))
    assert not app.front.tagged
    return sent[0]["status"], b"".join(one.get("body", b"") for one in sent[1:]).decode()


def test_an_artifact_as_model_is_handed_on_and_its_receipt_handed_back(front: Front) -> None:
    app = Vllm(front)
    status, text = call(app, {"model": "a=1.5", "prompt": "hi", "vllm_xargs": {"other": 1}})
    document = json.loads(text)
    assert (status, document["model"]) == (200, "a=1.5")
    (receipt,) = document["subvene"]["receipt"]
    assert (receipt["strengths"], receipt["edited"]) == ([1.5], {"prompt": 4, "cursor": 1, "response": 3})
    (seen,) = app.seen
    assert seen["model"] == "base"
    assert seen["vllm_xargs"]["other"] == 1
    assert "subvene" not in seen


def test_a_stream_ends_with_the_receipt_once(front: Front) -> None:
    _, text = call(Vllm(front), {"model": "base", "subvene": ["a"], "stream": True})
    *pieces, done = text.strip().split("\n\n")
    documents = [json.loads(piece.removeprefix("data: ")) for piece in pieces]
    assert [("subvene" in one) for one in documents] == [False, True]
    assert done == "data: [DONE]"


@pytest.mark.parametrize("more", [{}, {"raise": True}])
def test_what_was_not_steered_is_an_error(front: Front, more: Any) -> None:
    status, text = call(Vllm(front, edited=0.0), {"model": "a", "prompt": "hi", **more})
    error = json.loads(text)["error"]
    assert (status, error["type"]) == (422, "NotSteeredError")
    assert "edited 0 of 8 tokens" in error["message"]


def test_who_names_no_artifact_is_left_alone(front: Front) -> None:
    app = Vllm(front)
    document = {"model": "base", "prompt": "hi"}
    assert call(app, document) == (200, json.dumps({"model": "base", "choices": []}))
    assert app.seen == [document]


def test_artifacts_are_listed(front: Front) -> None:
    _, text = call(Vllm(front), path="/v1/models")
    base, a = json.loads(text)["data"]
    assert (base["id"], a["id"], a["parent"]) == ("base", "a", "base")
    assert (base["subvene"]["engine"], base["subvene"]["dtype"]) == ("vllm", "float32")
    assert len(base["subvene"]["files"]) == 64
    assert (a["subvene"]["interventions"], len(a["subvene"]["sha256"])) == (["steering_0"], 64)


@pytest.mark.parametrize(
    ("document", "path", "words"),
    [
        ({"model": "a", "subvene": "a"}, "/v1/completions", "names an artifact already"),
        ({"model": "a", "use_beam_search": True}, "/v1/completions", "passes over"),
        ({"model": "a"}, "/v1/responses", "cannot be steered"),
        ({"model": "base", "subvene": "a"}, "/v1/embeddings", "cannot be steered"),
    ],
)
def test_what_vllm_would_pass_over_is_refused(front: Front, document: Any, path: str, words: str) -> None:
    app = Vllm(front)
    status, text = call(app, document, path)
    assert status == 400
    assert words in text
    assert app.seen == []


def test_the_command_of_vllms_server() -> None:
    found = command({"a": Path("x")}, "m", port=9, api_key="k", options=["--max-model-len", "64"])
    assert found[-2:] == ["--max-model-len", "64"]
    settings = Settings.of(json.loads(found[found.index("--additional-config") + 1]))
    assert settings is not None
    assert settings.artifacts == {"a": "x"}
    with pytest.raises(EngineError, match="give --api-key"):
        command({"a": Path("x")}, "m", host="0.0.0.0")
    with pytest.raises(EngineError, match="--additional-config: subvene says this"):
        command({"a": Path("x")}, "m", options=["--additional-config={}"])


def test_an_option_of_vllms_needs_vllm(folder: Path) -> None:
    from subvene.runner.cli.app import app

    found = CliRunner().invoke(
        app, ["serve", f"a={folder}", "--engine", "transformers", "--max-num-seqs", "4"]
    )
    assert found.exit_code == 2
    assert "no such option: --max-num-seqs" in " ".join(found.output.split())
