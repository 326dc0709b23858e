"""What engines do to sequences, chunks, preemption, cached prefixes: every answer stays as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from vllm_cases import Job, check, few_jobs, prompt, requests, said


def generate(llm: Any, jobs: list[Job], **options: Any) -> list[Any]:
    import vllm

    return llm.generate(*requests(vllm, jobs, **options), use_tqdm=False)


def metric(llm: Any, name: str) -> float:
    return sum(getattr(one, "value", 0) for one in llm.get_metrics() if name in one.name)


def test_prompts_in_chunks(engines: Any, reference: Any) -> None:
    llm = engines(reference.path, reference.artifacts, max_num_batched_tokens=8, max_num_seqs=6)
    jobs = few_jobs()
    check(reference, jobs, generate(llm, jobs))


def test_preempted_and_recomputed_answers(engines: Any, reference: Any) -> None:
    # Blocks of 32: a prompt of 37 and its answer of 40 take three, and there are eight.
    llm = engines(
        reference.path, reference.artifacts, max_num_seqs=24, block_size=32, num_gpu_blocks_override=9
    )
    jobs = few_jobs()
    outputs = generate(llm, jobs, max_tokens=40)
    assert metric(llm, "preempt") > 0
    for job, output in zip(jobs, outputs, strict=True):
        expected = reference.answer(job, 40)
        tokens, log_probs = said(output)
        assert tokens == expected.tokens, job
        assert max(abs(a - b) for a, b in zip(log_probs, expected.log_probs, strict=True)) < 5e-4


class TestPrefixCache:
    """Cached tokens are told apart by what was done to them, and by nothing else."""

    @pytest.fixture(scope="class")
    def llm(self, engines: Any, reference: Any) -> Any:
        return engines(reference.path, reference.artifacts, block_size=32, enable_prefix_caching=True)

    def test_steered_and_plain_requests_share_what_is_the_same(self, llm: Any, reference: Any) -> None:
        long = tuple(prompt(37, seed=1))
        jobs = [Job(long, name, None, rule) for name in ("steering", "heads") for rule in ("response", "all")]
        jobs += [Job(long), Job(long, "steering", -2.0, "response"), Job(long, "steering", 0.5, "all")]
        for job in jobs:  # one after the other, so that each may find what was left before it
            check(reference, [job], generate(llm, [job]), steered=0)
        cached = [output.num_cached_tokens for output in generate(llm, jobs)]
        # A whole block of each is cached by now, and a steered response begins after it.
        assert cached == [32] * len(jobs)
        check(reference, jobs, generate(llm, jobs))

    def test_a_first_look_finds_the_plain_prefix_but_not_an_edited_one(self, llm: Any) -> None:
        fresh = tuple(prompt(37, seed=20))
        generate(llm, [Job(fresh, "steering", None, "all")])
        (plain,) = generate(llm, [Job(fresh)])
        assert plain.num_cached_tokens == 0
        (response,) = generate(llm, [Job(fresh, "capping", None, "response")])
        assert response.num_cached_tokens == 32
        (other,) = generate(llm, [Job(fresh, "steering", 0.5, "all")])
        assert other.num_cached_tokens == 0

    def test_the_next_turn_does_not_take_a_steered_answer_for_a_plain_prompt(
        self, llm: Any, reference: Any
    ) -> None:
        first = Job(tuple(prompt(30, seed=21)), "steering", 4.0, "response")
        (output,) = generate(llm, [first], max_tokens=40)
        turn = Job((*first.prompt, *output.outputs[0].token_ids), "steering", 4.0, "response")
        (again,) = generate(llm, [turn])
        assert again.num_cached_tokens == 0
        check(reference, [turn], [again], steered=0)

    def test_without_keys_the_cache_is_poisoned(
        self, llm: Any, reference: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # The control: what the test above would find if cached tokens were not told apart.
        from subvene.runner.engines.vllm import plugin

        monkeypatch.setattr(plugin, "block_keys", lambda *_: ())
        fresh = tuple(prompt(37, seed=22))
        generate(llm, [Job(fresh, "steering", 6.0, "all")])
        (plain,) = generate(llm, [Job(fresh)])
        assert plain.num_cached_tokens == 32
        _, log_probs = said(plain)
        expected = reference.answer(Job(fresh)).log_probs
        assert max(abs(a - b) for a, b in zip(log_probs, expected, strict=False)) > 1e-3


def test_artifacts_come_and_go_while_an_engine_runs(engines: Any, reference: Any) -> None:
    import vllm

    from subvene.runner.engines.errors import EngineError, RequestError
    from subvene.runner.engines.vllm.engine import add, remove

    held = {"steering": reference.artifacts["steering"]}
    reserve = {"sites": ["attention_heads[0]", "attention_heads[2]"], "columns": 2, "interventions": 1}
    llm = engines(reference.path, held, reserve=reserve, block_size=32, enable_prefix_caching=True)
    jobs = [Job(tuple(prompt(37, seed=1)), name, None, "all") for name in ("steering", "heads", "steering")]
    jobs += [Job(tuple(prompt(37, seed=1)))]
    with pytest.raises(EngineError, match="not built to edit attention_heads"):
        add(llm, "adaptive", reference.artifacts["adaptive"])
    add(llm, "heads", reference.artifacts["heads"])
    check(reference, jobs, generate(llm, jobs), steered=2)
    with pytest.raises(EngineError, match="room for 0 more interventions"):
        add(llm, "capping", reference.artifacts["capping"])
    llm.llm_engine.add_request("busy", *(one[0] for one in requests(vllm, [jobs[1]])))
    with pytest.raises(RequestError, match="1 requests are running"):
        remove(llm, "heads")
    while llm.llm_engine.has_unfinished_requests():
        llm.llm_engine.step()
    remove(llm, "heads")
    add(llm, "capping", reference.artifacts["capping"])
    moved = [
        Job(job.prompt, "capping" if job.artifact == "heads" else job.artifact, None, "all") for job in jobs
    ]
    moved[-1] = jobs[-1]
    check(reference, moved, generate(llm, moved), steered=2)


def test_a_steered_request_beside_a_lora(engines: Any, reference: Any) -> None:
    """LoRA on every projection, those that are edited among them; transformers by weights added up."""

    import peft
    import torch
    import vllm
    from vllm.lora.request import LoRARequest

    from subvene.runner import IntervenedModel

    base = copy.deepcopy(reference.model)
    config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=["o_proj", "down_proj", "q_proj"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        adapted = peft.get_peft_model(base, config)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data = 0.2 * torch.randn_like(parameter)
    folder = reference.folder / "lora"
    adapted.save_pretrained(folder)
    merged = adapted.merge_and_unload().eval()
    llm = engines(reference.path, reference.artifacts, enable_lora=True, max_lora_rank=8, max_loras=1)
    jobs = [Job(tuple(prompt(11, seed=4)), name, None, "all") for name in ("heads", "steering", "many")]
    lora = LoRARequest("lora", 1, str(folder))
    # One after the other: beside a request with a LoRA, vLLM 0.32 on the CPU gives it to one without, too,
    # and to a plain one.
    outputs = llm.generate(*requests(vllm, jobs), lora_request=[lora] * 3, use_tqdm=False)
    check(reference, jobs, generate(llm, jobs), steered=2)
    for job, output in zip(jobs, outputs, strict=True):
        m = reference.intervened(job)
        on_top = IntervenedModel.from_spec(m.spec, model=merged, tensors=reference.tensors)
        with torch.no_grad():
            ids = on_top.generate_ids(torch.tensor([job.prompt]), max_new_tokens=12, do_sample=False)
        assert said(output)[0] == ids[0, len(job.prompt) :].tolist(), job
        assert said(output)[0] != reference.answer(job).tokens
