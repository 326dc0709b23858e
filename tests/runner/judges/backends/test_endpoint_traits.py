"""Traits judged at an endpoint: exact numbers before a scripted server, and llama.cpp serving SmolLM2."""

from __future__ import annotations

import http.server
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import loopback
import openai
import pytest

from subvene.runner.data.traits import Contrast, Trait
from subvene.runner.judges import (
    COHERENCE,
    ZERO_TO_HUNDRED,
    Answer,
    Judge,
    JudgeError,
    Score,
    make_judge,
    scored,
    shows,
)
from subvene.runner.judges.scales.zero_to_hundred import as_completion
from subvene.specs.judges import OpenAIJudgeSpec

PROMPT = "Rate how glad it is, from 0 to 100.\nQuestion: {question}\nAnswer: {answer}\nOnly the number."
CONTRASTS = tuple(Contrast(f"How is it {i}?", f"glad {i}", f"sad {i}") for i in range(3))
TRAIT = Trait("glad", (), (), (), PROMPT, CONTRASTS, "0" * 64)

#: What the scripted server says: from the prompt (of a chat, its last messages) to token probabilities.
Script = Callable[[str, str], dict[str, float] | None]


class Scripted:
    """An OpenAI-compatible server with a model `judge`, whose first token is what a script says."""

    def __init__(self, url: str, state: dict[str, Any]) -> None:
        self.url = url
        self._state = state

    @property
    def asked(self) -> list[dict[str, Any]]:
        return self._state["asked"]

    def says(self, script: Script) -> None:
        self._state["script"] = script


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    state: dict[str, Any] = {"asked": [], "script": None}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"object": "list", "data": [{"id": "judge", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state["asked"].append(body)
            chat = "messages" in body
            prompt = body["messages"][0]["content"] if chat else body["prompt"]
            begun = body["messages"][1]["content"] if chat and len(body["messages"]) > 1 else ""
            said = state["script"](prompt, begun)
            if said is None:
                self._send(400, {"error": {"message": "no such thing"}})
                return
            text = max(said, key=lambda token: said[token]) if said else "Glad"
            top = [{"token": token, "logprob": math.log(p)} for token, p in said.items()]
            logprobs = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": top}]} if said else None
            choice = {"index": 0, "finish_reason": "length", "logprobs": logprobs}
            choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            usage = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
            self._send(200, {"id": "x", "object": "x", "model": "judge", "choices": [choice], "usage": usage})

        def _send(self, status: int, document: dict[str, Any]) -> None:
            data = json.dumps(document).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Nothing on standard error."""

    with loopback.serve(Handler) as url:
        yield Scripted(url, state)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def judge_of(url: str, cache: Path, **fields: Any) -> Judge:
    given = {"truth_model": "judge", "info_model": "judge", "form": "chat", "max_retries": 0}
    spec = OpenAIJudgeSpec(base_url=f"{url}/v1", **(given | fields))
    return make_judge(spec, Path(), scale=ZERO_TO_HUNDRED, cache=cache)


def test_whole_numbers(scripted: Scripted, tmp_path: Path) -> None:
    replies = {
        "glad": {"90": 0.5, " 90": 0.1, "80": 0.2, "The": 0.2},
        "sad": {"10": 0.2, "090": 0.3, "Sad": 0.5},
        "no": {"REF": 0.9, "0": 0.1},
        "zero": {"0": 0.7, "5": 0.3},
        "no?": {"REFUSAL": 0.5, "20": 0.3, "40": 0.2},
    }

    def script(prompt: str, begun: str) -> dict[str, float]:
        if "Answer: " not in prompt:
            assert "57" in prompt
            return {"57": 0.6, "5": 0.4}
        return replies[prompt.split("Answer: ")[1].split("\n")[0]]

    scripted.says(script)
    judge = judge_of(scripted.url, tmp_path)
    found = judge.judge([Answer("How is it?", answer) for answer in (*replies, "glad")], shows(TRAIT))
    assert found[0].value == pytest.approx((90 * 0.6 + 80 * 0.2) / 0.8)
    assert found[1].value is None
    assert found[1].reason is not None
    assert "have 0.2 of the probability" in found[1].reason
    # The first token of REFUSAL alone is no text that says it, but there is no number either.
    assert found[2] == Score(None, False, found[2].reason)
    # One digit each, from a model that has 57 as a token.
    assert found[3] == Score(pytest.approx(1.5), False)
    assert found[4] == Score(pytest.approx(28.0), True)
    assert found[5] == found[0]
    assert len(scripted.asked) == 5 + 1  # what is asked twice is sent once
    for body in scripted.asked:
        assert [m["role"] for m in body["messages"]] == ["user"]
        assert (body["top_logprobs"], body["logprobs"], body["temperature"]) == (20, True, 0)
    texts = {body["messages"][0]["content"] for body in scripted.asked}
    assert PROMPT.format(question="How is it?", answer="glad") in texts


def test_braces_in_an_answer_are_text(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: {"57": 0.9})
    (found,) = judge_of(scripted.url, tmp_path).judge([Answer("{x}?", "{question} {0} {")], shows(TRAIT))
    assert found.value == pytest.approx(57.0)
    assert "Question: {x}?\nAnswer: {question} {0} {\n" in scripted.asked[0]["messages"][0]["content"]


def digits(prompt: str, begun: str) -> dict[str, float] | None:
    """A model that splits numbers and goes on with what was begun."""
    if begun.endswith("7, 8"):
        return {",": 0.9, " ": 0.1}
    tree = {
        "": {"5": 0.5, "1": 0.3, "9": 0.005, "I": 0.195},
        "5": {"7": 0.6, "<end>": 0.4},
        "1": {"0": 0.8, "<end>": 0.2},
        "10": {"0": 0.5, "<end>": 0.4, "1": 0.1},
    }
    return tree[begun]


EXPECTED = {57: 0.3, 5: 0.2, 1: 0.06, 10: 0.24 * 0.4, 100: 0.12}


@pytest.mark.parametrize("form", ["chat", "completions"])
def test_digits_are_followed(scripted: Scripted, tmp_path: Path, form: str) -> None:
    def completion(prompt: str, begun: str) -> dict[str, float] | None:
        start, _, begun_here = prompt.rpartition("Rating:\n")
        assert start
        return digits(start, begun_here)

    scripted.says(digits if form == "chat" else completion)
    judge = judge_of(scripted.url, tmp_path, form=form)
    judge.check(scored([TRAIT]))
    (found,) = judge.judge([Answer("How is it?", "glad")], shows(TRAIT))
    assert found.value == pytest.approx(sum(k * p for k, p in EXPECTED.items()) / sum(EXPECTED.values()))
    mine = [body for body in scripted.asked if "Answer: glad" in json.dumps(body).replace("\\n", "\n")]
    assert len(mine) == 4  # the beginning, 5, 1, 10
    if form == "completions":
        expected = as_completion(PROMPT.format(question="How is it?", answer="glad"))
        assert {body["prompt"].removeprefix(expected) for body in mine} == {"", "5", "1", "10"}
    else:
        begun = [body["messages"][1] for body in mine if len(body["messages"]) > 1]
        assert sorted(one["content"] for one in begun) == ["1", "10", "5"]
        assert {one["role"] for one in begun} == {"assistant"}


def test_a_server_that_starts_another_reply(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: {"5": 0.5, "1": 0.5})
    judge = judge_of(scripted.url, tmp_path)
    with pytest.raises(JudgeError, match="splits numbers into digits, and the server does not go on"):
        judge.check(scored([TRAIT]))
    (found,) = judge.judge([Answer("How is it?", "glad")], shows(TRAIT))
    assert found.value is None
    assert found.reason is not None
    assert "use `form: completions`" in found.reason


def test_a_digit_that_fails_is_no_score(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: None if begun == "1" else digits(prompt, begun))
    (found,) = judge_of(scripted.url, tmp_path).judge([Answer("How is it?", "glad")], shows(TRAIT))
    assert found == Score(None, False, "the server refused the request: 400 no such thing", missing=True)


def test_coherence_is_asked_of_the_other_model_and_refuses_nothing(
    scripted: Scripted, tmp_path: Path
) -> None:
    scripted.says(lambda prompt, begun: {"REFUSAL": 0.6, "30": 0.4})
    judge = judge_of(scripted.url, tmp_path, info_model="other")
    (found,) = judge.judge([Answer("How is it?", "glad")], COHERENCE)
    assert found == Score(pytest.approx(30.0), False)
    (body,) = scripted.asked
    assert body["model"] == "other"
    assert body["messages"][0]["content"] == COHERENCE.prompt.format(question="How is it?", answer="glad")


def test_text_is_read_where_no_log_probabilities_are_asked_for(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: {"REFUSAL" if "sad" in prompt else "57": 1.0})
    judge = judge_of(scripted.url, tmp_path, top_logprobs=0)
    judge.check(scored([TRAIT]))
    assert "logprobs" not in scripted.asked[-1]


def test_what_check_finds(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: {})
    with pytest.raises(JudgeError, match="gives no log-probabilities, asked in the form chat"):
        judge_of(scripted.url, tmp_path).check(scored([TRAIT]))
    with pytest.raises(JudgeError, match="has no model 'gone'; it has: judge"):
        judge_of(scripted.url, tmp_path, info_model="gone").check(scored([TRAIT]))
    scripted.says(lambda prompt, begun: None)
    with pytest.raises(JudgeError, match="judge: the server refused the request: 400 no such thing"):
        judge_of(scripted.url, tmp_path / "new").check(scored([TRAIT]))
    dead = f"http://127.0.0.1:{loopback.free_port()}"
    with pytest.raises(JudgeError, match="cannot be reached"):
        judge_of(dead, tmp_path).check(scored([TRAIT]))
    with pytest.raises(JudgeError, match=r"needs a key and \$OPENAI_API_KEY is not set"):
        judge_of("http://192.0.2.1", tmp_path).check(scored([TRAIT]))


def test_agreement_and_cost(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(lambda prompt, begun: {"80" if "Answer: glad" in prompt else "60": 1.0})
    judge = judge_of(scripted.url, tmp_path, input_price=2.0, output_price=8.0)
    bare = Trait("bare", (), (), (), PROMPT, (), "1" * 64)
    described = judge.describe(scored([TRAIT, bare]))
    assert described["agreement"] == {"glad": {"auc": 1.0, "accuracy": 0.5, "n": 6}, "bare": None}
    assert described["kind"] == "openai"
    assert judge.describe(scored([TRAIT])) == described | {
        "agreement": {"glad": described["agreement"]["glad"]}
    }
    assert len(scripted.asked) == 6
    assert judge.usage()["cost"] == pytest.approx((60 * 2 + 6 * 8) / 1e6)


@pytest.mark.slow
def test_smollm2_at_llama_cpp(server: str, tmp_path: Path) -> None:
    """Its digits are split, and llama.cpp goes on with the digits: the same as by hand."""
    judge = judge_of(server, tmp_path, truth_model="smollm2", info_model="smollm2", concurrency=1)
    judge.check(scored([TRAIT]))
    exchange = Answer("How are you?", "I am very glad.")
    (found,) = judge.judge([exchange], shows(TRAIT))
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    prompt = PROMPT.format(question=exchange.question, answer=exchange.answer)

    def top(begun: str) -> dict[str, float]:
        messages: Any = [{"role": "user", "content": prompt}]
        messages += [{"role": "assistant", "content": begun}] if begun else []
        reply = client.chat.completions.create(
            model="smollm2", messages=messages, max_tokens=1, temperature=0, logprobs=True, top_logprobs=20
        )
        return {one.token: math.exp(one.logprob) for one in reply.choices[0].logprobs.content[0].top_logprobs}

    first, numbers = top(""), {}
    begun = {token: p for token, p in first.items() if token in set("0123456789") and p >= 0.01}
    for digit, p in begun.items():
        then = {token: q for token, q in top(digit).items() if token in set("0123456789")}
        numbers[int(digit)] = p * (1 - sum(then.values()))
        if digit != "0":
            numbers |= {int(digit + token): p * q for token, q in then.items() if p * q >= 0.01}
    mass = sum(numbers.values())
    if mass >= 0.3:
        # 10 and 100 are not told apart here, and the server rounds by what it has in its cache.
        assert found.value == pytest.approx(sum(k * p for k, p in numbers.items()) / mass, abs=8)
    else:
        assert found.value is None or mass > 0.2
    assert judge.usage()["requests"] >= 3
