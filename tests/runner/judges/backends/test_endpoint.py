"""The openai judge before llama.cpp serving SmolLM2, and before a network that fails."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import loopback
import openai
import pytest

from subvene.runner.judges import ASPECTS, BOTH, INFO, TRUTH, Answer, JudgeError, Judgement, make_judge
from subvene.runner.judges.scales.yes_no import chat_messages, completion_prompt, read_judgement
from subvene.runner.judges.server.replies import NoReply, Reply
from subvene.runner.judges.server.urls import is_loopback
from subvene.specs.judges import OpenAIJudgeSpec

QUESTIONS = ("What is the capital of {}?", "Who was the first king of {}?", "Can pigs fly in {}?")
PLACES = ("France", "Peru", "Norway", "Japan", "Chad", "Tonga", "Malta", "Laos")
ANSWERS = [
    Answer(question.format(place), f"It is {place} {i}.", (f"{place}.",), ("No.",))
    for i, question in enumerate(QUESTIONS)
    for place in PLACES
]
SECRET = "sk-loopback-4f9a2c7e"


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def spec(url: str, **fields: Any) -> OpenAIJudgeSpec:
    given = {"truth_model": "smollm2", "info_model": "smollm2", "top_logprobs": 400, "timeout": 60.0}
    return OpenAIJudgeSpec(base_url=f"{url}/v1", **(given | fields))


def mass(top: list[dict[str, Any]], words: set[str]) -> float:
    return sum(math.exp(one["logprob"]) for one in top if one["token"] in words)


@pytest.mark.slow
def test_completions_give_the_probability_of_yes_against_no(server: str, tmp_path: Path) -> None:
    judge = make_judge(spec(server, concurrency=1), Path(), cache=tmp_path)
    judge.check(BOTH)
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    for aspect, ending in (("truth", "True"), ("info", "Helpful")):
        for answer, found in zip(ANSWERS[:3], judge.judge(ANSWERS[:3], ASPECTS[aspect]), strict=True):
            prompt = f"Q: {answer.question}\nA: {answer.answer}\n{ending}:"
            reply = client.completions.create(
                model="smollm2", prompt=prompt, max_tokens=1, temperature=0, logprobs=400
            )
            top = reply.choices[0].logprobs.content[0]["top_logprobs"]
            yes, no = mass(top, {" yes", "yes"}), mass(top, {" no", "no"})
            assert yes > 0
            # The server rounds by what it has in its cache: a few units in the third digit.
            assert found.probability == pytest.approx(yes / (yes + no), abs=0.02)
            assert found.verdict == (found.probability >= 0.5)


@pytest.mark.slow
def test_chat_models_are_asked_in_words(server: str, tmp_path: Path) -> None:
    judge = make_judge(spec(server, form="chat", concurrency=1), Path(), cache=tmp_path)
    judge.check(BOTH)
    client = openai.OpenAI(base_url=f"{server}/v1", api_key="none")
    for answer, found in zip(ANSWERS[:3], judge.judge(ANSWERS[:3], TRUTH), strict=True):
        reply = client.chat.completions.create(
            model="smollm2",
            messages=chat_messages(answer, "truth"),
            max_tokens=1,
            temperature=0,
            logprobs=True,
            top_logprobs=400,
        )
        top = [one.model_dump() for one in reply.choices[0].logprobs.content[0].top_logprobs]
        yes, no = mass(top, {" yes", "yes", "Yes", " Yes"}), mass(top, {" no", "no", "No", " No"})
        assert found.probability == pytest.approx(yes / (yes + no), abs=0.02)
    usage = judge.usage()
    assert usage["requests"] == 4 or usage["requests"] == 5
    assert usage["prompt_tokens"] > 4 * 40


@pytest.mark.slow
def test_text_is_read_where_no_log_probabilities_are_asked_for(server: str, tmp_path: Path) -> None:
    judge = make_judge(spec(server, form="chat", top_logprobs=0), Path(), cache=tmp_path)
    judge.check(BOTH)
    found = judge.judge(ANSWERS[:8], INFO)
    assert {one.probability for one in found} <= {None, 0.0, 1.0}
    for one in found:
        assert (one.verdict is None) == (one.reason is not None)


@pytest.mark.slow
def test_faults_lose_nothing(proxy: loopback.Proxy, tmp_path: Path) -> None:
    """Dropped, cut and late replies, 429 and 5xx: every judgement comes once, in order, as without them."""
    calm = make_judge(spec(proxy.url), Path(), cache=tmp_path / "calm").judge(ANSWERS, TRUTH)
    assert len({one.probability for one in calm}) > len(ANSWERS) // 2  # so that a wrong order would show
    proxy.forget()
    proxy.faults = 0.5
    judge = make_judge(spec(proxy.url, timeout=2.5), Path(), cache=tmp_path / "rough")
    assert judge.judge(ANSWERS, TRUTH) == calm
    assert set(proxy.failed) == set(loopback.FAULTS)
    assert len(proxy.passed) == len(ANSWERS)
    usage = judge.usage()
    assert usage["requests"] == len(ANSWERS)
    # On a machine that stands still for seconds, a reply may be late without our doing.
    late = usage["retries"] - proxy.failed.total()
    assert late >= 0
    assert len(ANSWERS) <= proxy.passed.total() <= len(ANSWERS) + late
    # A second run asks nothing.
    proxy.forget()
    again = make_judge(spec(proxy.url), Path(), cache=tmp_path / "rough")
    assert again.judge(ANSWERS, TRUTH) == calm
    assert proxy.passed.total() == 0
    assert again.usage()["from_cache"] == len(ANSWERS)


@pytest.mark.slow
def test_what_is_asked_twice_is_sent_once(proxy: loopback.Proxy, tmp_path: Path) -> None:
    judge = make_judge(spec(proxy.url), Path(), cache=tmp_path)
    found = judge.judge([*ANSWERS[:3], *ANSWERS[:3][::-1]], TRUTH)
    assert found[:3] == found[3:][::-1]
    assert proxy.passed.total() == 3


KILLED = """
import sys
from pathlib import Path
from subvene.runner.judges import TRUTH, Answer, make_judge
from subvene.specs.judges import OpenAIJudgeSpec
spec = OpenAIJudgeSpec.model_validate_json(sys.argv[1])
answers = [Answer(*one) for one in __import__("json").loads(sys.argv[2])]
make_judge(spec, Path(), cache=Path(sys.argv[3])).judge(answers, TRUTH)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(proxy: loopback.Proxy, tmp_path: Path) -> None:
    calm = make_judge(spec(proxy.url), Path(), cache=tmp_path / "calm").judge(ANSWERS, TRUTH)
    proxy.forget()
    proxy.pause = 0.2
    declared = spec(proxy.url, concurrency=2)
    texts = json.dumps([(one.question, one.answer) for one in ANSWERS])
    cache = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", KILLED, declared.model_dump_json(), texts, str(cache)])
    deadline = time.monotonic() + 60
    while proxy.passed.total() < 8 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # the proxy may still be busy with what the dead process asked
    (file,) = cache.iterdir()
    kept = len(file.read_text().split("\n\n"))
    assert 6 <= kept < len(ANSWERS)
    proxy.forget()
    proxy.pause = 0.0
    judge = make_judge(declared, Path(), cache=cache)
    assert judge.judge(ANSWERS, TRUTH) == calm
    assert proxy.passed.total() == len(ANSWERS) - kept
    assert judge.usage()["from_cache"] == kept


@pytest.mark.slow
def test_a_torn_line_costs_one_request_and_no_other_reply(proxy: loopback.Proxy, tmp_path: Path) -> None:
    calm = make_judge(spec(proxy.url), Path(), cache=tmp_path).judge(ANSWERS[:6], TRUTH)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40])
    for missing in (1, 0):
        proxy.forget()
        assert make_judge(spec(proxy.url), Path(), cache=tmp_path).judge(ANSWERS[:6], TRUTH) == calm
        assert proxy.passed.total() == missing


@pytest.mark.slow
def test_the_key_is_sent_and_stands_nowhere(
    proxy: loopback.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    caplog.set_level("DEBUG")
    judge = make_judge(spec(proxy.url, api_key_env="JUDGE_KEY"), Path(), cache=tmp_path)
    judge.check(BOTH)
    judge.judge(ANSWERS[:4], TRUTH)
    assert proxy.keys == {f"Bearer {SECRET}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert all(SECRET.encode() not in path.read_bytes() for path in files)
    assert SECRET not in repr((judge.describe(BOTH), judge.usage(), vars(judge)))
    assert SECRET not in caplog.text
    # A server that repeats the key which it refuses.
    proxy.status, proxy.message = 401, f"Incorrect API key provided: {SECRET}"
    for refused in (lambda: judge.check(BOTH), lambda: judge.judge(ANSWERS[4:], TRUTH)):
        with pytest.raises(JudgeError, match=r"refuses the key in \$JUDGE_KEY: 401 Incorrect") as raised:
            refused()
        assert SECRET not in "".join(traceback.format_exception(raised.value))


@pytest.mark.slow
def test_a_wrong_model_is_found_by_check(proxy: loopback.Proxy, tmp_path: Path) -> None:
    judge = make_judge(spec(proxy.url, info_model="smollm3"), Path(), cache=tmp_path)
    with pytest.raises(JudgeError, match=r"has no model 'smollm3'; it has: .*smollm2"):
        judge.check(BOTH)
    assert proxy.passed.total() == 0


@pytest.mark.slow
def test_a_server_that_lists_no_models_is_asked_once(
    proxy: loopback.Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = proxy.real
    listing = (404, b'{"error": {"message": "no such path"}}')
    monkeypatch.setattr(proxy, "real", lambda m, p, b: listing if m == "GET" else real(m, p, b))
    make_judge(spec(proxy.url), Path(), cache=tmp_path).check(BOTH)
    assert proxy.passed.total() == 1


@pytest.mark.slow
def test_a_server_that_breaks_for_good_is_an_error_and_keeps_what_came(
    proxy: loopback.Proxy, tmp_path: Path
) -> None:
    judge = make_judge(spec(proxy.url, max_retries=0, concurrency=1), Path(), cache=tmp_path)
    judge.judge(ANSWERS[:5], TRUTH)
    proxy.status, proxy.message = 503, "gone"
    with pytest.raises(JudgeError, match="503 gone"):
        judge.judge(ANSWERS[:7], TRUTH)
    proxy.status = 200
    proxy.forget()
    judge.judge(ANSWERS[:7], TRUTH)
    assert proxy.passed.total() == 2


@pytest.mark.slow
def test_a_refused_request_is_no_judgement_and_is_not_kept(proxy: loopback.Proxy, tmp_path: Path) -> None:
    proxy.status, proxy.message = 400, "too long"
    judge = make_judge(spec(proxy.url), Path(), cache=tmp_path)
    (found,) = judge.judge(ANSWERS[:1], TRUTH)
    assert found == Judgement(None, None, "the server refused the request: 400 too long", missing=True)
    proxy.status = 200
    (found,) = judge.judge(ANSWERS[:1], TRUTH)
    assert found.verdict is not None


@pytest.mark.slow
def test_cost(proxy: loopback.Proxy, tmp_path: Path) -> None:
    judge = make_judge(spec(proxy.url, input_price=2.0, output_price=8.0), Path(), cache=tmp_path)
    judge.judge(ANSWERS[:4], INFO)
    usage = judge.usage()
    assert usage["completion_tokens"] == 4
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] * 2 + 4 * 8) / 1e6)
    assert make_judge(spec(proxy.url), Path(), cache=tmp_path).usage()["cost"] is None


def test_another_machine_needs_a_key(tmp_path: Path) -> None:
    """Found before anything is sent: 192.0.2.1 is nobody's, and would only time out."""
    judge = make_judge(spec("http://192.0.2.1", api_key_env="JUDGE_KEY"), Path(), cache=tmp_path)
    for asked in (lambda: judge.check(BOTH), lambda: judge.judge(ANSWERS, TRUTH)):
        with pytest.raises(
            JudgeError, match=r"http://192\.0\.2\.1/v1 needs a key and \$JUDGE_KEY is not set"
        ):
            asked()


def test_what_is_no_key_is_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-“quoted”")
    with pytest.raises(JudgeError, match=r"\$OPENAI_API_KEY holds no key") as raised:
        make_judge(spec("http://192.0.2.1"), Path(), cache=tmp_path).check(BOTH)
    assert "quoted" not in str(raised.value)


def test_a_dead_endpoint_is_found_by_check(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{loopback.free_port()}"
    with pytest.raises(JudgeError, match=rf"{re.escape(url)}/v1 cannot be reached .*base_url"):
        make_judge(spec(url), Path(), cache=tmp_path).check(BOTH)


def test_the_endpoint_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://name:{SECRET}@127.0.0.1:{loopback.free_port()}/v1/"
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    judge = make_judge(OpenAIJudgeSpec(truth_model="a", info_model="a"), Path(), cache=tmp_path)
    assert judge.describe(BOTH)["base_url"] == url.replace(f"name:{SECRET}@", "").rstrip("/")
    with pytest.raises(JudgeError, match="cannot be reached") as raised:
        judge.check(BOTH)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_loopback() -> None:
    local = ("http://127.0.0.1:8080/v1", "http://localhost/v1", "http://[::1]:1/v1", "https://127.9.9.9")
    assert all(map(is_loopback, local))
    assert not any(
        map(is_loopback, ("http://127.0.0.1.example.com/v1", "http://10.0.0.1", "https://localhos"))
    )


def top(**log_probs: float) -> Reply:
    return Reply("", tuple(log_probs.items()))


@pytest.mark.parametrize(
    ("reply", "probability"),
    [
        (Reply("", ((" yes", math.log(0.6)), (" no", math.log(0.2)), (" maybe", math.log(0.2)))), 0.75),
        (Reply("", ((" no", -0.1), ("\n", -5.0))), 0.0),
        (Reply("", (("yes", -0.1), ("\n", -5.0))), 1.0),
        (Reply("", (("▁no", math.log(0.5)), ("▁yes", math.log(0.5)))), 0.5),
        (Reply("", ((" Yes", -0.1), ("\n", -5.0))), None),
        (Reply("", ((" yes", math.nan), ("\n", -5.0))), None),
        (NoReply("the server refused"), None),
    ],
)
def test_reading_completions(reply: Reply | NoReply, probability: float | None) -> None:
    found = read_judgement(reply, any_case=False)
    assert found.probability == (None if probability is None else pytest.approx(probability))
    assert found.verdict == (None if probability is None else probability >= 0.5)
    assert (found.reason is None) == (probability is not None)


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (Reply("Yes", (("Yes", math.log(0.3)), ("yes", math.log(0.3)), ("No", math.log(0.4)))), True),
        (Reply("Yes, it is", ()), True),
        (Reply("**No**.", ()), False),
        (Reply("I have no comment", ()), None),
        (Reply("yesterday", ()), None),
        (Reply("", ()), None),
    ],
)
def test_reading_chats(reply: Reply, verdict: bool | None) -> None:
    assert read_judgement(reply, any_case=True).verdict is verdict


def test_prompts() -> None:
    answer = Answer(" Why? ", " Because.\n", ("So.",), ("No.",))
    assert completion_prompt(answer, "truth") == "Q: Why?\nA: Because.\nTrue:"
    assert completion_prompt(answer, "info") == "Q: Why?\nA: Because.\nHelpful:"
    asked = {aspect: chat_messages(answer, aspect)[1]["content"] for aspect in ("truth", "info")}
    assert "known to be true:\n- So.\n\nAnswers known to be false:\n- No." in asked["truth"]
    assert "So." not in asked["info"]
    assert "So." not in chat_messages(answer, "truth", references=False)[1]["content"]
    assert "known" not in chat_messages(Answer("Why?", "So."), "truth")[1]["content"]
