"""One engine, every kind at every rule in one batch: token for token what the intervened model says."""

from __future__ import annotations

from typing import Any

import pytest
from vllm_cases import RULES, Job, check, kinds, mixed_jobs, prompt, requests, said


@pytest.fixture(scope="module")
def llm(engines: Any, reference: Any) -> Any:
    return engines(reference.path, reference.artifacts, max_num_batched_tokens=512, max_num_seqs=64)


def generate(llm: Any, jobs: list[Job], **options: Any) -> list[Any]:
    import vllm

    return llm.generate(*requests(vllm, jobs, **options), use_tqdm=False)


def test_every_kind_at_every_rule_in_one_batch(llm: Any, reference: Any) -> None:
    jobs = mixed_jobs()
    assert {(job.artifact, str(job.positions)) for job in jobs} >= {
        (kind, str(rule)) for kind in kinds() for rule in RULES
    }
    check(reference, jobs, generate(llm, jobs), steered=40)


def test_strength_zero_is_bit_for_bit_plain(llm: Any, reference: Any) -> None:
    job = tuple(prompt(20, seed=5))
    steered = Job(job, "steering", 3.0)
    (plain,) = generate(llm, [Job(job)])
    for name in kinds():
        beside = generate(llm, [Job(job, name, 0.0), steered, Job(job)])
        assert said(beside[0]) == said(beside[2])
        assert said(beside[0])[0] == said(plain)[0]
        assert said(beside[1]) != said(plain)


def test_a_request_may_name_several_artifacts(llm: Any, reference: Any) -> None:
    import vllm

    ids = prompt(12, seed=6)
    asked = [
        {"artifact": "steering", "strength": 0.7},
        "ablation",
        {"artifact": "heads", "positions": "response"},
    ]
    params = vllm.SamplingParams(
        temperature=0, max_tokens=8, logprobs=0, ignore_eos=True, extra_args={"subvene": asked}
    )
    (output,) = llm.generate([{"prompt_token_ids": ids}], params, use_tqdm=False)
    declared = kinds()
    together = [
        declared["steering"] | {"name": "s", "coefficient": 0.7},
        declared["ablation"] | {"name": "a"},
        declared["heads"] | {"name": "h", "positions": "response"},
    ]
    reference.save("together", together)
    expected = reference.answer(Job(tuple(ids), "together"), 8)
    tokens, log_probs = said(output)
    assert tokens == expected.tokens
    assert max(abs(a - b) for a, b in zip(log_probs, expected.log_probs, strict=True)) < 2e-4
    assert [one["artifact"] for one in output.subvene.to_dict()["receipt"]] == [
        "steering",
        "ablation",
        "heads",
    ]


def test_several_answers_are_each_what_one_alone_is(llm: Any) -> None:
    jobs = [Job(tuple(prompt(9, seed=7)), name, None, "all") for name in ("steering", "adaptive", "capping")]
    sampled = {"n": 3, "temperature": 0.8, "seed": 3}
    together = generate(llm, jobs, **sampled)
    alone = [generate(llm, [job], **sampled)[0] for job in jobs]
    for ours, theirs in zip(together, alone, strict=True):
        assert [answer.token_ids for answer in ours.outputs] == [
            answer.token_ids for answer in theirs.outputs
        ]
        assert len({tuple(answer.token_ids) for answer in ours.outputs}) == 3
        (receipt,) = ours.subvene.to_dict()["receipt"]
        assert receipt["rows"] == 3
        assert receipt["edited"] == {"prompt": 24, "cursor": 3, "response": 33}


def test_aborted_requests_leave_their_neighbours_as_they_are(llm: Any, reference: Any) -> None:
    import vllm

    jobs = [Job(tuple(prompt(14, seed=8)), name, None, "response") for name in kinds()] * 2
    engine = llm.llm_engine
    for i, (ids, params) in enumerate(zip(*requests(vllm, jobs), strict=True)):
        engine.add_request(f"r{i}", ids, params)
    done, steps = {}, 0
    while engine.has_unfinished_requests():
        done |= {output.request_id: output for output in engine.step() if output.finished}
        steps += 1
        if steps == 4:
            engine.abort_request([f"r{i}" for i in range(0, len(jobs), 3)])
    kept = [i for i in range(len(jobs)) if i % 3]
    assert set(done) >= {f"r{i}" for i in kept}
    check(reference, [jobs[i] for i in kept], [done[f"r{i}"] for i in kept])


def test_a_chat_is_answered_as_the_same_tokens_are(llm: Any) -> None:
    import vllm

    messages = [{"role": "user", "content": "how are you"}]
    params = vllm.SamplingParams(
        temperature=0, max_tokens=8, ignore_eos=True, extra_args={"subvene": "steering"}
    )
    (chat,) = llm.chat(messages, params, use_tqdm=False)
    (plain,) = llm.generate([{"prompt_token_ids": chat.prompt_token_ids}], params, use_tqdm=False)
    assert chat.outputs[0].token_ids == plain.outputs[0].token_ids
    assert chat.subvene.receipts == plain.subvene.receipts
    assert chat.subvene.receipts[0].edited["response"] == 7


def test_given_responses_are_scored_as_the_intervened_model_scores_them(llm: Any, reference: Any) -> None:
    from subvene.runner.engines.vllm.engine import VllmEngine

    engine = VllmEngine.__new__(VllmEngine)
    engine.llm = llm
    whole = prompt(20, seed=9)
    rules = ("all", "prompt", "response", {"last": 3, "of": "response"}, {"indices": [-1], "of": "response"})
    jobs = [
        Job(tuple(whole[:8]), name, None, rule) for name in ("steering", "heads", "many") for rule in rules
    ]
    found = engine.score([(whole[:8], whole[8:])] * len(jobs), [job.asked for job in jobs])
    (plain,) = engine.score([(whole[:8], whole[8:])], [None])
    changed = 0
    for job, scores in zip(jobs, found, strict=True):
        expected = reference.log_probs(job, whole)
        assert max(abs(a - b) for a, b in zip(scores.log_probs, expected, strict=True)) < 2e-4, job
        changed += max(abs(a - b) for a, b in zip(scores.log_probs, plain.log_probs, strict=True)) > 1e-3
    assert changed > len(jobs) // 2


def test_an_answer_is_the_tokens_before_the_one_that_ended_it(llm: Any, reference: Any) -> None:
    from subvene.runner.engines.in_process import Sampling
    from subvene.runner.engines.vllm.engine import VllmEngine

    engine = VllmEngine.__new__(VllmEngine)
    engine.llm = llm
    job = Job(tuple(prompt(11, seed=8)), "steering", 0.5, "all")
    tokens = reference.answer(job).tokens
    end = next(i for i in range(1, len(tokens)) if tokens[i] not in tokens[:i])
    word = llm.get_tokenizer().decode([tokens[end]])
    common: dict[str, Any] = {"max_tokens": len(tokens), "temperature": 0, "top_p": 1, "seed": 0, "n": 1}
    how = [
        Sampling(**common, stop=()),
        Sampling(**common, stop=(), stop_token_ids=(tokens[end],)),
        Sampling(**common, stop=(word,)),
    ]
    whole, by_token, by_text = engine.generate([job.prompt] * 3, [job.asked] * 3, how)
    assert (whole.ids, whole.finished) == ([tokens], ["length"])
    # A text is spelt by tokens of the answer; a token that ends it belongs to none.
    assert (by_token.ids, by_token.finished, by_token.tokens) == ([tokens[:end]], ["stop"], end + 1)
    assert (by_text.ids, by_text.finished) == ([tokens[: end + 1]], ["stop"])
    assert word not in by_text.texts[0]


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("nonsense", "no artifact is called 'nonsense'"),
        ("steering=nan", "finite"),
        ("many=2", "give `strengths` by name"),
        ([{"artifact": "steering", "positions": {"last": 2, "of": "response"}}], "count from the end"),
        ([{"artifact": "steering", "sites": 3}], "sites"),
        ([{"artifact": "many"}, "many"], "follow each other"),
    ],
)
def test_what_cannot_be_done_is_refused_and_the_engine_lives_on(llm: Any, asked: Any, words: str) -> None:
    import vllm
    from vllm.exceptions import VLLMValidationError

    params = vllm.SamplingParams(temperature=0, max_tokens=2, extra_args={"subvene": asked})
    ids = [{"prompt_token_ids": prompt(5)}]
    with pytest.raises(VLLMValidationError, match=words):
        llm.generate(ids, params, use_tqdm=False)
    assert llm.generate(ids, vllm.SamplingParams(max_tokens=2), use_tqdm=False)[0].subvene is None


def test_a_rule_that_selects_nothing_is_an_error_of_its_request_alone(llm: Any, reference: Any) -> None:
    from subvene.runner.edits.receipt import NotSteeredError

    job = Job(tuple(prompt(5)), "steering", None, {"indices": [9]})
    beside = Job(tuple(prompt(5)), "steering")
    with pytest.raises(NotSteeredError, match="no position of this request matches") as raised:
        generate(llm, [job, beside])
    check(reference, [beside], raised.value.outputs[1:], steered=0)
