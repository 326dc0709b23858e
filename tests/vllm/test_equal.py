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
