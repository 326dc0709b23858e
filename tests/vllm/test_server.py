"""`subvene serve` in vLLM, started by its command and asked by the real `openai` client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from counting_judge import install
from serve_examples import check_examples
from served_experiments import SCORED, SCORES, Words, check, write
from vllm_cases import TOKENS, Job, prompt

from subvene.runner import run_experiment
from subvene.runner.data.span import Text
from subvene.runner.engines.collecting import Collected
from subvene.runner.engines.errors import EngineError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import span_means

KEY = "secret"
IDS = prompt(11, seed=31)
NAMES = ("steering", "heads", "many")
COLLECTED = "block_output[1]"
BASE: dict[str, Any] = {"prompt": IDS, "max_tokens": TOKENS, "temperature": 0}
GREEDY: dict[str, Any] = BASE | {"extra_body": {"ignore_eos": True, "return_token_ids": True}}
START = "import sys; from subvene.runner.cli.app import main; sys.argv[0] = 'subvene'; main()"


@pytest.fixture(scope="module")
def url(engines: Any, reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    engines.close()
    port, log = free_port(), tmp_path_factory.mktemp("server") / "log.txt"
    artifacts = [f"{name}={reference.artifacts[name]}" for name in NAMES]
    artifacts += ["--collect", COLLECTED]
    options = ["--max-model-len", "128", "--max-num-seqs", "16", "--enforce-eager", "--dtype", "float32"]
    command = [sys.executable, "-c", START, "serve", *artifacts, "--port", str(port), *options]
    environment = os.environ | {
        "SUBVENE_API_KEY": KEY,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
    }
    with log.open("w") as file:
        server = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        begun = time.monotonic()
        while not is_up(port):
            assert server.poll() is None, log.read_text()[-6000:]
            assert time.monotonic() - begun < 900, log.read_text()[-6000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(300)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def is_up(port: int) -> bool:
    try:
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2).status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def body(**more: Any) -> dict[str, Any]:
    return GREEDY | {"extra_body": GREEDY["extra_body"] | more}


def tokens(answer: Any) -> list[int]:
    return list(answer.choices[0].token_ids)


def test_artifacts_are_models_beside_the_models_own_name(client: Any, reference: Any) -> None:
    assert [model.id for model in client.models.list()] == [str(reference.path), *NAMES]


def test_concurrent_requests_each_with_its_own(client: Any, reference: Any) -> None:
    jobs = [Job(tuple(IDS), "steering", strength) for strength in (-2.0, 0.0, 0.5, 2.0)]
    jobs += [Job(tuple(IDS), "heads"), Job(tuple(IDS), "many"), Job(tuple(IDS))]

    def ask(job: Job) -> Any:
        strength = "" if job.strength is None else f"={job.strength}"
        model = str(reference.path) if job.artifact is None else f"{job.artifact}{strength}"
        return client.completions.create(model=model, **GREEDY)

    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(ask, jobs))
    for job, answer in zip(jobs, answers, strict=True):
        expected = reference.answer(job)
        assert tokens(answer) == expected.tokens, job
        if job.artifact is None:
            assert "subvene" not in answer.model_extra
        elif job.strength != 0:
            found = answer.model_extra["subvene"]["receipt"]
            assert [one["edited"] for one in found] == [one["edited"] for one in expected.receipt]
    assert len({tuple(tokens(answer)) for answer in answers}) > 4


def test_strength_and_positions_of_a_request(client: Any, reference: Any) -> None:
    asked = [{"artifact": "steering", "strength": 1.0, "positions": "prompt"}]
    answer = client.completions.create(model=str(reference.path), **body(subvene=asked))
    job = Job(tuple(IDS), "steering", 1.0, "prompt")
    assert tokens(answer) == reference.answer(job).tokens
    (receipt,) = answer.model_extra["subvene"]["receipt"]
    assert receipt["edited"] == {"prompt": 10, "cursor": 1, "response": 0}


def test_a_streamed_chat_ends_with_its_receipt(client: Any) -> None:
    ask = {"messages": [{"role": "user", "content": "how are you"}], "max_tokens": 6, "temperature": 0}
    more = {"extra_body": {"ignore_eos": True}}
    whole = client.chat.completions.create(model="steering=1.5", **ask, **more)
    pieces = list(client.chat.completions.create(model="steering=1.5", stream=True, **ask, **more))
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content
    told = [piece.model_extra["subvene"] for piece in pieces if "subvene" in (piece.model_extra or {})]
    assert told == [whole.model_extra["subvene"]]
    assert {piece.model for piece in pieces} == {"steering=1.5"}


def test_several_prompts_and_answers(client: Any) -> None:
    answer = client.completions.create(model="steering", **GREEDY | {"prompt": [IDS, IDS[:5]]})
    assert [one[0]["edited"]["prompt"] for one in answer.model_extra["subvene"]["receipts"]] == [10, 4]
    answer = client.completions.create(model="steering", n=2, **GREEDY | {"temperature": 0.7, "seed": 1})
    assert answer.model_extra["subvene"]["receipt"][0]["rows"] == 2


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        ("steering", {"subvene": "heads"}, "names an artifact already"),
        (None, {"subvene": "nonsense"}, "no artifact is called 'nonsense'"),
        (None, {"subvene": "many=2"}, "give `strengths` by name"),
        (None, {"subvene": "steering", "use_beam_search": True}, "beam search passes over"),
    ],
)
def test_refusals(client: Any, reference: Any, model: str | None, more: dict[str, Any], words: str) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(model=model or str(reference.path), **body(**more))


def test_what_is_not_steered_is_an_error_of_that_request(client: Any, reference: Any) -> None:
    import openai

    asked = [{"artifact": "steering", "positions": {"indices": [99]}}]
    with pytest.raises(openai.UnprocessableEntityError, match="no position of this request") as raised:
        client.completions.create(model=str(reference.path), **body(subvene=asked))
    assert raised.value.type == "NotSteeredError"
    stream = client.completions.create(model=str(reference.path), stream=True, **body(subvene=asked))
    with pytest.raises(openai.APIError, match="no position of this request"):
        list(stream)
    with pytest.raises(openai.NotFoundError):
        client.completions.create(model="nobody", **GREEDY)


def test_activations_are_collected_beside_steered_requests(client: Any, reference: Any) -> None:
    collect = {"sites": [COLLECTED], "start": 2, "end": len(IDS)}
    asked = {"max_tokens": 1, "extra_body": {"subvene": {"artifacts": [], "collect": collect}}}
    with ThreadPoolExecutor(8) as pool:
        steered = [pool.submit(client.completions.create, model="steering", **GREEDY) for _ in range(4)]
        read = [
            pool.submit(client.completions.create, model=str(reference.path), prompt=IDS, **asked)
            for _ in range(4)
        ]
    text = Text(tuple(IDS), 2, len(IDS))
    anatomy = Anatomy.of(reference.model)
    expected = span_means(anatomy, "block_output", [1], [text], pad_id=0, batch_size=1)
    for one in read:
        found = Collected.from_json(one.result().model_extra["subvene"]["collected"][COLLECTED])
        mean = torch.from_numpy(found.mean.copy())
        torch.testing.assert_close(mean, expected.vectors[1][0], rtol=1e-4, atol=1e-4)
        assert found.norm == pytest.approx(float(expected.norms[1][0]), rel=1e-4)
    assert all(
        tokens(one.result()) == reference.answer(Job(tuple(IDS), "steering")).tokens for one in steered
    )


def test_other_paths_do_not_pass_over_artifacts(url: str) -> None:
    document = {"model": "steering", "input": "hello"}
    request = urllib.request.Request(
        f"{url}/v1/responses",
        json.dumps(document).encode(),
        {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"},
    )
    with pytest.raises(urllib.error.HTTPError) as raised:
        urllib.request.urlopen(request)
    assert raised.value.code == 400
    assert "cannot be steered" in raised.value.read().decode()


def test_a_key_is_needed(url: str) -> None:
    import openai

    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0).completions.create(
            model="steering", **GREEDY
        )


def test_counters_stand_beside_vllms_own(url: str, client: Any) -> None:
    client.completions.create(model="heads", **GREEDY)
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    assert 'subvene_requests_total{artifact="heads"}' in text
    assert 'subvene_tokens_edited_total{artifact="heads",role="response"}' in text
    assert "vllm:" in text


def test_the_examples_run(url: str) -> None:
    check_examples(url, KEY, "steering")


def test_an_experiment_by_this_server(
    url: str, reference: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBVENE_API_KEY", KEY)
    (tensors,) = (reference.folder / "steering").glob("*.safetensors")
    held = {"model": reference.path, "tensors": tensors}
    install(Words(), monkeypatch)
    fields = {"more": SCORES + SCORED, "positions": "all"}
    here = run_experiment(write(tmp_path, held, **fields), output=tmp_path / "here").results
    path = write(tmp_path, held, f"engine: {{url: '{url}/v1'}}", **fields)
    served = run_experiment(path, output=tmp_path / "served").results
    check(served, here)
    said = served.manifest["engine"]
    assert (said["engine"], list(said["artifacts"]), said["holds"]["dtype"]) == (
        "vllm",
        list(NAMES),
        "float32",
    )
    other = write(tmp_path, held, f"engine: {{url: '{url}/v1'}}", **fields | {"layer": 2})
    with pytest.raises(EngineError, match="holds no artifact that does what other here does"):
        run_experiment(other, output=tmp_path / "other")
