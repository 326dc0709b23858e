"""The playground's server: what a screen says, its answers as they stream, its file, and who may ask."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny_model import HEADS, WIDTH, write_tiny_model

from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.in_process import InProcess
from subvene.runner.engines.playground.answers import pieces
from subvene.runner.engines.playground.screen import Shown
from subvene.runner.engines.playground.server import server
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.reports.experiment import run_experiment

PROMPT = "how are you ?"
SCREEN: dict[str, Any] = {
    "prompt": PROMPT,
    "max_new_tokens": 6,
    "artifacts": [
        {"artifact": "cheerful", "strengths": {"glad": -4.0}, "positions": "response"},
        {"artifact": "heads", "strengths": {"glad": 6.5}},
    ],
}


def steering(coefficient: float = 3.0) -> dict[str, Any]:
    return {
        "kind": "steering",
        "name": "glad",
        "layer": 1,
        "vector": {"key": "v"},
        "coefficient": coefficient,
    }


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shown]:
    folder = tmp_path_factory.mktemp("playground")
    base = {"subvene": 1, "model": {"name": str(write_tiny_model(folder / "model")), "dtype": "float32"}}
    drawn = torch.Generator().manual_seed(0)
    m = IntervenedModel.from_spec(
        base | {"interventions": [steering()]},
        tensors={"v.block_output[1]": torch.randn(WIDTH, generator=drawn)},
    )
    m.save_pretrained(folder / "cheerful")
    heads = IntervenedModel.from_spec(
        base
        | {
            "interventions": [
                {"kind": "head_direction", "name": "glad", "directions": {"key": "v"}, "strength": 2.0}
            ]
        },
        model=m.model,
        tokenizer=m.tokenizer,
        tensors={"v.attention_heads[0]": torch.randn(HEADS, WIDTH // HEADS, generator=drawn)},
    )
    heads.save_pretrained(folder / "heads")
    loaded = InProcess.load({name: folder / name for name in ("cheerful", "heads")})
    return {name: Shown(m, folder / name) for name, m in loaded.artifacts.items()}


@pytest.fixture(scope="module")
def engine(shown: dict[str, Shown]) -> InProcess:
    return InProcess({name: one.m for name, one in shown.items()})


@pytest.fixture(scope="module")
def address(engine: InProcess, shown: dict[str, Shown]) -> Iterator[str]:
    with listening(engine, shown) as address:
        yield address


class listening:
    """A server that answers while the block runs."""

    def __init__(self, engine: InProcess, shown: dict[str, Shown], key: str | None = None) -> None:
        self.server = server(engine, shown, "127.0.0.1", 0, key)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> str:
        self.thread.start()
        return f"127.0.0.1:{self.server.server_address[1]}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def ask(
    address: str, path: str, screen: Any = None, **headers: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection(address, timeout=60)
    try:
        body = None if screen is None else json.dumps(screen)
        connection.request("GET" if body is None else "POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def events(address: str, screen: Any) -> list[Any]:
    status, headers, data = ask(address, "/playground/answers", screen)
    assert status == 200, data
    assert headers["Content-Type"] == "text/event-stream"
    return [json.loads(line.removeprefix("data: ")) for line in data.decode().split("\n\n") if line]


def test_the_page_fetches_nothing_from_elsewhere(address: str) -> None:
    kinds = {"/": "text/html", "/page.css": "text/css", "/page.js": "text/javascript"}
    for path, kind in kinds.items():
        status, headers, data = ask(address, path)
        assert status == 200
        assert headers["Content-Type"].startswith(kind)
        assert "default-src 'none'; script-src 'self'" in headers["Content-Security-Policy"]
        assert b"http:" not in data
        assert b"https:" not in data
        assert b"innerHTML" not in data


def test_it_says_what_there_is_to_play_with(address: str, engine: InProcess) -> None:
    _, _, data = ask(address, "/playground")
    contents = json.loads(data)
    assert contents["model"] == engine.base
    (glad,), (heads,) = (one["interventions"] for one in contents["artifacts"])
    assert glad == {
        "name": "glad", "kind": "steering", "where": ["block_output[1]"], "positions": "all", "strength": 3.0,
        "reach": 6.0,
    }  # fmt: skip
    assert heads["where"] == ["attention_heads[0]"]


def test_both_answers_are_streamed_with_receipts_and_every_tokens_projection(
    address: str, shown: dict[str, Shown]
) -> None:
    told = events(address, SCREEN)
    assert told[-1] == {"end": True}
    done = {one["arm"]: one for one in told if "receipt" in one}
    for arm, one in done.items():
        streamed = "".join(e["text"] for e in told if e.get("arm") == arm and "text" in e)
        assert streamed.strip() == "".join(one["tokens"]).strip() != ""
        assert one["finished"] == ("length" if len(one["tokens"]) == 6 else "stop")
    assert done["baseline"]["receipt"] == []
    assert [(r["artifact"], r["strengths"]) for r in done["steered"]["receipt"]] == [
        ("cheerful", [-4.0]),
        ("heads", [6.5]),
    ]
    assert done["baseline"]["tokens"] != done["steered"]["tokens"]
    ((column,),) = (one["projections"] for one in told if "projections" in one)
    assert (column["artifact"], column["key"], column["layer"]) == ("cheerful", "v", 1)
    values = {how: column[how]["steered"] for how in ("text", "before", "after")}
    assert {len(one) for one in values.values()} == {len(done["steered"]["tokens"])}
    norm = float(shown["cheerful"].m.tensors["v.block_output[1]"].norm())
    for before, after in zip(values["before"], values["after"], strict=True):
        assert after - before == pytest.approx(-4.0 * norm, abs=2e-3)
    assert column["after"]["baseline"] == column["text"]["baseline"]


@pytest.mark.parametrize("system", ["", "very good day"])
def test_the_file_gives_the_same_answers_when_it_is_run(address: str, tmp_path: Path, system: str) -> None:
    screen = SCREEN | {"system": system}
    done = {e["arm"]: "".join(e["tokens"]) for e in events(address, screen) if "receipt" in e}
    status, _, data = ask(address, "/playground/export", screen)
    assert status == 200, data
    text = json.loads(data)["yaml"]
    assert [one["name"] for one in yaml.safe_load(text)["interventions"]] == ["glad_1", "glad_2"]
    (tmp_path / "screen.yaml").write_text(text)
    results = run_experiment(tmp_path / "screen.yaml", output=tmp_path / "out")
    written = {one.label: one.items[0].text for one in results.results.conditions}
    assert written == done


def test_with_nothing_switched_on_there_is_the_baseline_alone(address: str) -> None:
    told = events(address, {"prompt": PROMPT, "max_new_tokens": 3})
    assert {one["arm"] for one in told if "arm" in one} == {"baseline"}
    status, _, data = ask(address, "/playground/export", {"prompt": PROMPT})
    assert status == 400
    assert b"no artifact is on" in data


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": ""}, "prompt"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": 1}, "temperature"),
        ({"artifacts": [{"artifact": "gloomy"}]}, "no artifact is called 'gloomy'"),
        ({"artifacts": [{"artifact": "cheerful", "strengths": {"sad": 1}}]}, "'sad'"),
        ({"artifacts": [{"artifact": "cheerful", "positions": "never"}]}, "positions"),
    ],
)
@pytest.mark.parametrize("path", ["/playground/answers", "/playground/export"])
def test_what_cannot_be_shown_is_refused(address: str, path: str, change: Any, words: str) -> None:
    status, _, data = ask(address, path, SCREEN | change)
    assert status == 400
    assert words in json.loads(data)["error"]["message"]


def test_an_answer_that_could_not_be_had_leaves_the_other_one(address: str) -> None:
    loud = {"artifact": "cheerful", "strengths": {"glad": 1e38}}
    told = events(address, SCREEN | {"artifacts": [loud]})
    (error,) = (one for one in told if "error" in one)
    assert error["arm"] == "steered"
    assert "finite" in error["error"]
    assert [one["arm"] for one in told if "receipt" in one] == ["baseline"]


def test_another_page_may_not_ask(address: str) -> None:
    for headers in ({"Origin": "http://elsewhere.example"}, {"Host": "elsewhere.example"}):
        for path, screen in (("/playground", None), ("/playground/answers", SCREEN), ("/v1/models", None)):
            status, _, data = ask(address, path, screen, **headers)
            assert status == 403, data
    assert ask(address, "/playground", Origin=f"http://{address}")[0] == 200


def test_a_key_is_asked_for_and_the_page_is_open(engine: InProcess, shown: dict[str, Shown]) -> None:
    with listening(engine, shown, "secret") as address:
        assert ask(address, "/")[0] == 200
        assert ask(address, "/playground")[0] == 401
        assert ask(address, "/playground/answers", SCREEN)[0] == 401
        assert ask(address, "/playground", Authorization="Bearer secret")[0] == 200
    with pytest.raises(EngineError, match="other machines could use it"):
        server(engine, shown, "0.0.0.0", 0)


class _Bytes:
    """A tokenizer of bytes, which begins in the middle of characters."""

    def decode(self, ids: Any, **_: Any) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def test_a_character_of_several_tokens_is_the_last_ones() -> None:
    assert pieces(_Bytes(), "aé\N{GRINNING FACE}!".encode()) == [
        "a", "", "é", "", "", "", "\N{GRINNING FACE}", "!",
    ]  # fmt: skip
    assert "".join(pieces(_Bytes(), "é".encode()[:1])) == "\ufffd"
