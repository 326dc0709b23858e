"""An endpoint that fails in ten ways: nothing lost, nothing wrong, nothing kept that is no answer."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_judge import DEEP, FAULTS, NO_LOG_PROBS, Faulty, bodies, faulty_judge, good, probability

from subvene.runner.judges import BOTH, TRUTH, Answer, JudgeError, Judgement, make_judge
from subvene.runner.judges.scales.yes_no import completion_prompt
from subvene.runner.judges.server.replies import NoReply, Reply, read_reply
from subvene.specs.judges import OpenAIJudgeSpec

ANSWERS = [Answer(f"How is it {i}?", f"It is {i}.") for i in range(2000)]
PROMPTS = [completion_prompt(answer, "truth") for answer in ANSWERS]
ONLY_200 = FAULTS[4:]


@pytest.fixture
def server() -> Iterator[Faulty]:
    with faulty_judge() as state:
        yield state


def judge(server: Faulty, cache: Path, **fields: Any) -> Any:
    given = {"model": "judge", "concurrency": 64, "max_retries": 6, "timeout": 30.0}
    return make_judge(OpenAIJudgeSpec(base_url=f"{server.url}/v1", **(given | fields)), Path(), cache=cache)


def wrong(found: list[Judgement], prompts: list[str]) -> list[int]:
    return [
        i
        for i, (one, prompt) in enumerate(zip(found, prompts, strict=True))
        if one.probability is None or abs(one.probability - probability(prompt)) > 1e-9
    ]


def test_two_thousand_calls_of_which_a_third_fail(server: Faulty, tmp_path: Path) -> None:
    def choose(prompt: str, n: int) -> str | None:
        draw = random.Random(f"{n}{prompt}")
        return draw.choice(FAULTS) if n <= 2 and draw.random() < 0.35 else None

    server.choose = choose
    asking = judge(server, tmp_path)
    found = asking.judge(ANSWERS, TRUTH)
    assert wrong(found, PROMPTS) == []
    assert set(server.failed) == set(FAULTS)
    assert server.failed.total() > 700
    assert asking.usage()["requests"] == len(ANSWERS)
    # What is kept is what was said, and is all that a second run needs.
    server.forget()
    assert judge(server, tmp_path).judge(ANSWERS, TRUTH) == found
    assert server.tries.total() == 0


@pytest.mark.parametrize("fault", ONLY_200)
def test_what_stays_no_answer_is_missing_and_asked_again(server: Faulty, tmp_path: Path, fault: str) -> None:
    some, prompts = ANSWERS[:12], PROMPTS[:12]
    server.choose = lambda prompt, n: fault if prompt in prompts[:4] else None
    found = judge(server, tmp_path, max_retries=2).judge(some, TRUTH)
    assert wrong(found, prompts) == [0, 1, 2, 3]
    assert all(one.missing and one.reason for one in found[:4])
    assert [server.tries[prompt] for prompt in prompts] == [3] * 4 + [1] * 8
    server.choose, _ = (lambda prompt, n: None), server.forget()
    assert wrong(judge(server, tmp_path).judge(some, TRUTH), prompts) == []
    assert sorted(server.tries) == sorted(prompts[:4])


def test_a_server_that_gives_no_answers_any_more_stops_the_run(server: Faulty, tmp_path: Path) -> None:
    server.choose = lambda prompt, n: "html" if prompt in PROMPTS[10:] else None
    asking = judge(server, tmp_path, max_retries=1, concurrency=2)
    with pytest.raises(JudgeError, match=r"20 requests in a row came to nothing.*is no JSON"):
        asking.judge(ANSWERS, TRUTH)
    assert len(server.tries) < 60
    server.choose, _ = (lambda prompt, n: None), server.forget()
    judge(server, tmp_path).judge(ANSWERS[:10], TRUTH)
    assert server.tries.total() == 0


def test_a_judge_that_does_not_tell_is_not_asked_again(server: Faulty, tmp_path: Path) -> None:
    """It was understood: neither word is among the likeliest. That is its answer."""
    first = bodies.__globals__["good"]

    def declines(prompt: str) -> dict[str, Any]:
        document = first(prompt)
        document["choices"][0]["logprobs"] = {"top_logprobs": [{" maybe": math.log(0.9)}]}
        return dict(document)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("faulty_judge.good", declines)
        (found,) = judge(server, tmp_path).judge(ANSWERS[:1], TRUTH)
    assert found.verdict is None
    assert not found.missing
    assert judge(server, tmp_path).judge(ANSWERS[:1], TRUTH) == [found]
    assert server.tries.total() == 1


@pytest.mark.parametrize(
    "line",
    [
        {"text": " yes", "top": []},
        {"text": " yes", "top": [[" yes", math.nan], [" no", -0.5]]},
        {"text": " yes", "top": [[" yes", 2.0]]},
        {"text": " yes", "top": [[" yes", "x"]]},
        {"text": 3, "top": [[" yes", -0.1]]},
        {"text": " yes", "top": [[" yes", -0.5], [" no", -0.9]], "sha256": "0" * 64},
        None,
    ],
)
def test_what_was_kept_and_is_no_answer_is_asked_for_again(
    server: Faulty, tmp_path: Path, line: dict[str, Any] | None
) -> None:
    """Also where an earlier version kept it."""
    judge(server, tmp_path).judge(ANSWERS[:2], TRUTH)
    (file,) = tmp_path.iterdir()
    first, *rest = (json.loads(one) for one in file.read_text().split("\n") if one)
    spoilt = DEEP.decode() if line is None else json.dumps({"key": first["key"], **line})
    file.write_text("\n".join([spoilt, *map(json.dumps, rest)]) + "\n")
    server.forget()
    assert wrong(judge(server, tmp_path).judge(ANSWERS[:2], TRUTH), PROMPTS[:2]) == []
    assert server.tries.total() == 1


def test_what_an_earlier_version_kept_and_is_an_answer_stays(server: Faulty, tmp_path: Path) -> None:
    judge(server, tmp_path).judge(ANSWERS[:1], TRUTH)
    (file,) = tmp_path.iterdir()
    record = json.loads(file.read_text())
    del record["sha256"]
    file.write_text(json.dumps(record) + "\n")
    server.forget()
    assert wrong(judge(server, tmp_path).judge(ANSWERS[:1], TRUTH), PROMPTS[:1]) == []
    assert server.tries.total() == 0


def test_faults_in_the_list_of_models(server: Faulty, tmp_path: Path) -> None:
    server.choose = lambda prompt, n: "deep" if n == 1 else None
    judge(server, tmp_path).check(BOTH)
    assert set(server.tries.values()) == {2}


@pytest.mark.parametrize("logprobs", NO_LOG_PROBS, ids=repr)
def test_log_probabilities_that_are_none(logprobs: Any) -> None:
    document = good("x")
    document["choices"][0]["logprobs"] = logprobs
    assert isinstance(read_reply(json.dumps(document), 5), NoReply)
    # Where none were asked for, the text is what counts.
    assert read_reply(json.dumps(document), 0) == Reply(document["choices"][0]["text"], ())


@pytest.mark.parametrize(
    "content",
    [
        "",
        "null",
        "[]",
        '"yes"',
        '{"choices": null}',
        '{"choices": ["yes"]}',
        '{"choices": [{"text": 3, "logprobs": {"top_logprobs": [{" yes": -0.1}]}}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{" yes": -0.1}]}}]}',
        '{"choices": [{"message": "yes"}]}',
        '{"choices": [{"text": " yes", "finish_reason": "error"}]}',
        '{"choices": [{"text": " yes"}], "error": {"message": "half way"}}',
        "{" * 100_000,
    ],
)
def test_documents_that_are_none(content: str) -> None:
    for top in (0, 5):
        assert isinstance(read_reply(content, top), NoReply)


def test_rounding_is_no_fault() -> None:
    document = good("x")
    document["choices"][0]["logprobs"] = {"top_logprobs": [{" yes": 1e-4, " no": -9999.0, "x": -math.inf}]}
    assert isinstance(read_reply(json.dumps(document), 5), Reply)
    # A chat that ends at once has no content, and log-probabilities all the same.
    chat = {"message": {"content": None}, "logprobs": {"content": [{"top_logprobs": [_END]}]}}
    assert read_reply(json.dumps({"choices": [chat]}), 5) == Reply("", (("</s>", -0.1),))
    assert isinstance(read_reply(json.dumps({"choices": [chat]}), 0), NoReply)


_END = {"token": "</s>", "logprob": -0.1}


def test_what_a_server_says_is_told_without_the_key(
    server: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-17")
    said = b'{"error": {"message": "no quota for sk-secret-17"}}'
    monkeypatch.setattr("faulty_judge.bodies", lambda prompt, n: {"error": said})
    server.choose = lambda prompt, n: "error"
    (found,) = judge(server, tmp_path, max_retries=0).judge(ANSWERS[:1], TRUTH)
    assert found.reason == "the server answered with an error: no quota for …"
