"""Heads split over ranks, layers over stages, drafts, compiled graphs: in processes of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm_cases import Reference, check, few_jobs, prompt
from vllm_process import ask, collected

from subvene.runner.data.span import Text
from subvene.runner.engines.collecting import Collected
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import span_means
from subvene.specs import CORE_SITES

# The scheduler in the process that asks: one process less to import all of it.
PROCESSES = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}


# At sites that heads of ranks, all ranks, and the other stage of a pipeline have, edited ones among them.
SITES = [f"{site}[{layer}]" for site in CORE_SITES for layer in (0, 2)]
TEXTS = [Text(tuple(prompt(n, seed=n)), n // 3, n) for n in (9, 37, 60)]
READ = {"collect": SITES, "read": [(text.ids, text.start, text.end) for text in TEXTS]}


def check_read(reference: Reference, folder: Path) -> None:
    """Hold what was collected against what transformers reads."""
    found = collected(folder)
    for site in CORE_SITES:
        anatomy = Anatomy.of(reference.model)
        means = span_means(anatomy, site, [0, 2], TEXTS, pad_id=0, batch_size=3)
        for i, one in enumerate(found):
            for layer in (0, 2):
                record = Collected.from_json(one[f"{site}[{layer}]"])
                mean = torch.from_numpy(record.mean.copy())
                torch.testing.assert_close(mean, means.vectors[layer][i], rtol=1e-4, atol=1e-4)
                assert record.norm == pytest.approx(float(means.norms[layer][i]), rel=1e-4)
    assert len(found) == len(TEXTS)


@pytest.fixture(autouse=True)
def alone(engines: Any) -> None:
    """No engine of this process beside them."""
    engines.close()


@pytest.fixture(scope="module")
def divisible(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """vLLM rounds a vocabulary up to a multiple of 64, which three ranks have to be able to share."""
    return Reference(tmp_path_factory.mktemp("divisible"), vocabulary=150)


@pytest.mark.parametrize(("ranks", "cores"), [(2, "0|1"), (3, "0|1|0")])
def test_tensor_parallel(divisible: Reference, tmp_path: Path, ranks: int, cores: str) -> None:
    options = {
        "skip_tokenizer_init": True,
        "tensor_parallel_size": ranks,
        "distributed_executor_backend": "mp",
    }
    jobs = few_jobs()
    outputs, _ = ask(
        tmp_path,
        divisible.path,
        divisible.artifacts,
        jobs,
        options=options,
        environment=PROCESSES | {"VLLM_CPU_OMP_THREADS_BIND": cores},
        **READ,
    )
    check(divisible, jobs, outputs)
    check_read(divisible, tmp_path)


def test_pipeline_parallel(reference: Any, tmp_path: Path) -> None:
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    environment = PROCESSES | {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    environment["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
    jobs = few_jobs()
    outputs, _ = ask(
        tmp_path, reference.path, reference.artifacts, jobs, options=options, environment=environment, **READ
    )
    check(reference, jobs, outputs)
    check_read(reference, tmp_path)


def test_rejected_drafts(reference: Any, tmp_path: Path) -> None:
    # numba, which proposes them, is what vLLM 0.32 cannot start another engine beside.
    drafts = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_max": 3, "prompt_lookup_min": 1}
    options = {"speculative_config": drafts}
    jobs = few_jobs()
    outputs, counted = ask(tmp_path, reference.path, reference.artifacts, jobs, options=options)
    drafted, accepted = (counted[f"vllm:spec_decode_num_{name}_tokens"] for name in ("draft", "accepted"))
    assert drafted > accepted
    check(reference, jobs, outputs, relative=False)


def test_compiled(reference: Any, tmp_path: Path) -> None:
    """Twice with one cache of graphs, filled without artifacts first: those are not taken for these."""
    environment = PROCESSES | {"VLLM_CACHE_ROOT": str(tmp_path / "cache")}
    options = {"enforce_eager": False, "max_num_batched_tokens": 256}
    jobs = few_jobs()
    plain = [job for job in jobs if job.artifact is None]
    (tmp_path / "plain").mkdir()
    outputs, _ = ask(
        tmp_path / "plain", reference.path, None, plain, options=options, environment=environment
    )
    check(reference, plain, outputs, steered=0)
    for name in ("first", "again"):
        (tmp_path / name).mkdir()
        outputs, _ = ask(
            tmp_path / name,
            reference.path,
            reference.artifacts,
            jobs,
            options=options,
            environment=environment,
        )
        check(reference, jobs, outputs)
