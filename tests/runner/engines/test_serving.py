"""`subvene serve` without vLLM, asked by the real `openai` client."""

from __future__ import annotations

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from glad_artifact import write_glad_artifact
from serve_examples import check_demo, check_examples
from tiny_model import HEADS, WIDTH, write_tiny_model

from subvene.runner.data.text import prompt_ids
from subvene.runner.engines.admission import Wishes, parse
from subvene.runner.engines.collecting import Collected
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.fingerprints import does
from subvene.runner.engines.http import server
from subvene.runner.engines.in_process import InProcess, Sampling
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import model_sha256, reading_sha256, versions

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "how are you ?"}],
    "max_tokens": 6,
    "temperature": 0,
}
KEY = "secret"
LATE = {"artifact": "cheerful", "positions": {"last": 1, "of": "response"}}


@pytest.fixture(scope="module")
def cheerful(tmp_path_factory: pytest.TempPathFactory) -> IntervenedModel:
    folder = tmp_path_factory.mktemp("served")
    base = write_tiny_model(folder / "model")
    return write_glad_artifact(base, folder / "cheerful")


@pytest.fixture(scope="module")
def engine(cheerful: IntervenedModel) -> InProcess:
    spec = {
        "subvene": 1,
        "model": {"name": cheerful.spec.model.name, "dtype": "float32"},
        "interventions": [
            {"kind": "head_direction", "name": "h", "directions": {"key": "v"}, "strength": 2.0,
             "positions": "prompt"},
        ],
    }  # fmt: skip
    directions = torch.randn(HEADS, WIDTH // HEADS, generator=torch.Generator().manual_seed(1))
    tensors = {"v.attention_heads[0]": directions}
    heads = IntervenedModel.from_spec(
        spec, model=cheerful.model, tokenizer=cheerful.tokenizer, tensors=tensors
    )
    return InProcess({"cheerful": cheerful, "heads": heads}, ["block_output[1]", "attention_heads[0]"])


@pytest.fixture(scope="module")
def url(engine: InProcess) -> Iterator[str]:
    listening = server(engine, "127.0.0.1", 0, KEY)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)


def expected(m: IntervenedModel, strength: float) -> str:
    return m.generate(ASK["messages"][0]["content"], strengths=strength, max_new_tokens=6, do_sample=False)[0]


def text(answer: Any) -> str:
    return answer.choices[0].message.content


def test_artifacts_are_models(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    base = cheerful.spec.model.name
    assert [model.id for model in client.models.list()] == [base, "cheerful", "heads"]
    answers = {
        s: text(client.chat.completions.create(model=f"cheerful={s}", **ASK)) for s in (-4.0, 0.0, 4.0)
    }
    assert answers == {s: expected(cheerful, s) for s in answers}
    assert len(set(answers.values())) > 1
    assert text(client.chat.completions.create(model=base, **ASK)) == answers[0.0]


def test_the_examples_run(url: str) -> None:
    check_examples(url, KEY, "cheerful")


def test_the_demo_serves_and_ends(cheerful: IntervenedModel, tmp_path: Path) -> None:
    cheerful.save_pretrained(tmp_path / "cheerful")
    check_demo(f"cheerful={tmp_path / 'cheerful'}")


def test_token_ids_go_in_and_out(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    ids = prompt_ids(cheerful.tokenizer, "how are you ?")
    answer = client.completions.create(
        model="cheerful", prompt=list(ids), max_tokens=5, temperature=0, extra_body={"return_token_ids": True}
    )
    output = cheerful.generate_ids(torch.tensor([ids]), max_new_tokens=5, do_sample=False)
    assert answer.choices[0].model_extra["token_ids"] == output[0, len(ids) :].tolist()
    with pytest.raises(openai.BadRequestError, match="embedding has 39 rows"):
        client.completions.create(model="cheerful", prompt=[10**6], max_tokens=1)
    with pytest.raises(openai.BadRequestError, match="not in a stream"):
        client.completions.create(
            model="cheerful", prompt="a", stream=True, extra_body={"return_token_ids": True}
        )


def test_the_list_of_models_says_what_they_are(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    base, glad, heads = (model.model_extra["subvene"] for model in client.models.list())
    assert base == {
        "engine": "transformers",
        "versions": versions(),
        "collect": ["block_output[1]", "attention_heads[0]"],
        "model": model_sha256(cheerful.model),
        "text": reading_sha256(cheerful.model, cheerful.tokenizer),
    }
    assert glad["interventions"] == ["glad"]
    (declared,) = cheerful.spec.interventions
    same = declared.model_copy(update={"name": "other", "coefficient": 7.0})
    moved = declared.model_copy(update={"positions": "all"})
    assert done(changed(cheerful, same)) == {**glad, "interventions": ["other"]}
    assert len({heads["sha256"], glad["sha256"], done(changed(cheerful, moved))["sha256"]}) == 3
    tensors = {name: 2 * tensor for name, tensor in cheerful.tensors.items()}
    assert done(changed(cheerful, declared, tensors))["sha256"] != glad["sha256"]


def done(m: IntervenedModel) -> dict[str, Any]:
    return does(m.spec, m.tensors)


def changed(m: IntervenedModel, declared: Any, tensors: Any = None) -> IntervenedModel:
    spec = m.spec.model_copy(update={"interventions": (declared,)})
    return IntervenedModel.from_spec(spec, model=m.model, tokenizer=m.tokenizer, tensors=tensors or m.tensors)


def test_a_request_says_artifact_strength_and_positions_and_has_its_receipt(
    client: openai.OpenAI, cheerful: IntervenedModel
) -> None:
    wish = {"artifact": "cheerful", "strength": 2.0, "positions": {"first": 2}}
    answer = client.chat.completions.create(
        model=cheerful.spec.model.name, extra_body={"subvene": [wish]}, **ASK
    )
    (receipt,) = answer.model_extra["subvene"]["receipt"]
    assert receipt["artifact"] == "cheerful"
    assert receipt["strengths"] == [2.0] or receipt["strengths"] == (2.0,)
    assert receipt["edited"] == {"prompt": 2, "cursor": 0, "response": 0}
    assert receipt["changed"] == 2
    prompt = prompt_ids(cheerful.tokenizer, ASK["messages"])
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.choices[0].finish_reason == "length"


WISHES: tuple[Any, ...] = (
    [],
    "cheerful",
    "cheerful=-4",
    {"artifact": "cheerful", "strength": 4.0, "positions": "all"},
    {"artifact": "cheerful", "strength": 4.0, "positions": {"first": 2}},
    {"artifact": "heads", "strength": 6.0},
    ["heads", "cheerful=2"],
    "cheerful=0",
)
PROMPTS = ("how are you ?", "hello", "tell me about the rain and the sun", "hello")


def test_activations_of_given_tokens_are_collected(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    ids, m = prompt_ids(cheerful.tokenizer, "how are you ?"), cheerful
    collect = {"sites": ["attention_heads[0]", "block_output[1]"], "start": 1, "end": len(ids)}
    answer = client.completions.create(
        model=m.spec.model.name,
        prompt=ids,
        max_tokens=1,
        extra_body={"subvene": {"artifacts": [], "collect": collect}},
    )
    found = {
        site: Collected.from_json(one) for site, one in answer.model_extra["subvene"]["collected"].items()
    }
    assert list(found) == ["attention_heads[0]", "block_output[1]"]
    kept: list[torch.Tensor] = []
    handle = m.model.model.layers[1].register_forward_hook(lambda _, __, output: kept.append(output[0, 1:]))
    with torch.no_grad():
        m.model(torch.tensor([ids]))
    handle.remove()
    mean = torch.from_numpy(found["block_output[1]"].mean.copy())
    torch.testing.assert_close(mean, kept[0].mean(0))
    assert found["block_output[1]"].norm == pytest.approx(float(kept[0].norm(dim=-1).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("collect", "more", "words"),
    [
        (
            {"sites": ["block_output[0]"], "start": 0, "end": 1},
            {},
            r"not started to collect at block_output\[0\]",
        ),
        ({"sites": ["block_output[1]"], "start": 0, "end": 99}, {}, "expected a span within"),
        ({"sites": ["block_output[1]"], "start": 0, "end": 1}, {"max_tokens": 2}, "`max_tokens`: 1"),
        (
            {"sites": ["block_output[1]"], "start": 0, "end": 1},
            {"artifacts": ["cheerful"]},
            "untouched model",
        ),
    ],
)
def test_what_cannot_be_collected_is_refused(
    client: openai.OpenAI, cheerful: IntervenedModel, collect: Any, more: dict[str, Any], words: str
) -> None:
    collect = {"sites": ["block_output[1]"], "start": 0, "end": 1} | collect
    asked = {"artifacts": more.pop("artifacts", []), "collect": collect}
    settings = {"max_tokens": 1, "extra_body": {"subvene": asked}} | more
    with pytest.raises(openai.BadRequestError, match=words):
        client.completions.create(model=cheerful.spec.model.name, prompt="how are you", **settings)


def test_requests_at_once_are_one_batch_and_each_is_what_it_is_alone(engine: InProcess) -> None:
    asked = [(prompt, parse(wish)) for wish in WISHES for prompt in PROMPTS]
    alone = [answered(engine, *one) for one in asked]
    # Nothing begins until all are there.
    held, begin = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        begin.wait(timeout=60)

    with ThreadPoolExecutor(len(asked) + 1) as pool:
        pool.submit(engine.batcher.alone, hold)
        held.wait(timeout=60)
        together = [pool.submit(answered, engine, *one) for one in asked]
        while engine.batcher.waiting < len(asked) and not any(one.done() for one in together):
            time.sleep(0.01)
        begin.set()
        assert [one.result() for one in together] == alone
    assert engine.batcher.batches[-1] == len(asked)
    assert len({tokens for tokens, _, _ in alone}) > len(PROMPTS)


def answered(engine: InProcess, prompt: str, wishes: Wishes) -> tuple[str, list[dict[str, Any]], str]:
    sampling = Sampling(max_tokens=len(prompt), temperature=0, top_p=1, seed=None, n=1, stop=())
    answers = engine.answer(prompt, chat=True, wishes=wishes, sampling=sampling)
    return str(answers.ids), [close(one) for one in answers.receipt], answers.finished[0]


def close(receipt: dict[str, Any]) -> dict[str, Any]:
    """A receipt without the last digits of its means, and without the batch's calls."""
    rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in receipt.items()}
    return rounded | {"calls": None}


def test_requests_at_once_have_each_their_own(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    strengths, found = [-4.0, -1.0, 0.0, 1.0, 4.0], {}

    def ask(strength: float) -> None:
        answer = client.chat.completions.create(model=f"cheerful={strength}", **ASK)
        found[strength] = (text(answer), answer.model_extra["subvene"]["receipt"][0]["strengths"])

    threads = [threading.Thread(target=ask, args=(s,)) for s in strengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {s: (expected(cheerful, s), [s]) for s in strengths}


def test_streamed_is_what_comes_whole(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    pieces = list(client.chat.completions.create(model="cheerful=4", stream=True, **ASK))
    assert (
        "".join(p.choices[0].delta.content or "" for p in pieces).strip() == expected(cheerful, 4.0).strip()
    )
    assert pieces[-1].choices[0].finish_reason == "length"
    assert pieces[-1].model_extra["subvene"]["receipt"][0]["changed"] > 0


def test_plain_completions_and_several_answers(client: openai.OpenAI, cheerful: IntervenedModel) -> None:
    answer = client.completions.create(model="cheerful", prompt="hello world", max_tokens=5, temperature=0)
    m = cheerful.generate("hello world", chat=False, max_new_tokens=5, do_sample=False)
    assert [choice.text for choice in answer.choices] == m
    sampled = [
        [c.text for c in client.completions.create(
            model="cheerful", prompt="hello", max_tokens=5, seed=3, n=3).choices] for _ in range(2)
    ]  # fmt: skip
    assert sampled[0] == sampled[1]
    assert len(sampled[0]) == 3


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"model": "gloomy"}, 400, "no model is called 'gloomy'"),
        ({"model": "cheerful=much"}, 400, "expected NAME=NUMBER"),
        ({"model": "cheerful", "extra_body": {"subvene": "cheerful"}}, 400, "names an artifact already"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"extra_body": {"subvene": [LATE]}}, 400, "from the end of the response"),
        ({"extra_body": {"subvene": "gloomy"}}, 400, "no artifact is called"),
        ({"extra_body": {"subvene": {"artifact": "cheerful", "strengths": {"sad": 1}}}}, 400, "'sad'"),
        ({"frequency_penalty": 1.0}, 400, "frequency_penalty"),
        ({"messages": []}, 400, "messages"),
        ({"max_tokens": 100_000}, 400, "100000"),
        ({"stream": True, "n": 2}, 400, "streams one answer"),
    ],
)
def test_what_it_cannot_do_is_refused(
    client: openai.OpenAI, cheerful: IntervenedModel, change: dict[str, Any], status: int, words: str
) -> None:
    name = cheerful.spec.model.name if isinstance(change.get("extra_body"), dict) else "cheerful"
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(**{"model": name, **ASK, **change})
    assert refused.value.status_code == status
    assert words in str(refused.value)


def test_a_request_that_was_not_steered_is_an_error_of_that_request(
    client: openai.OpenAI, cheerful: IntervenedModel
) -> None:
    wish = {"artifact": "cheerful", "positions": {"indices": [40], "of": "response"}}
    with pytest.raises(openai.UnprocessableEntityError, match="no position of this run matches") as refused:
        client.chat.completions.create(model=cheerful.spec.model.name, extra_body={"subvene": wish}, **ASK)
    assert refused.value.type == "NotSteeredError"
    assert text(client.chat.completions.create(model="cheerful", **ASK)) == expected(cheerful, 3.0)


def test_a_key_is_asked_for_and_health_is_open(url: str, cheerful: IntervenedModel) -> None:
    with urllib.request.urlopen(f"{url}/health") as answer:
        assert json.load(answer) == {"status": "ok"}
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(EngineError, match="other machines could use it"):
        server(InProcess({"cheerful": cheerful}), "0.0.0.0", 0)
