"""Starts vLLM in a process of its own, asks it, and writes what it says: JSON in, JSON out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def ask(
    folder: Path, model: Path, artifacts: dict[str, str] | None, jobs: list[Any], **settings: Any
) -> tuple[list[Any], dict[str, float]]:
    """The outputs for jobs, as `vllm_cases.check` takes them, and what vLLM counted.

    Args:
        folder: for the question and the answer.
        model: the model's folder.
        artifacts: name → folder.
        jobs: what is asked.
        settings: `options` of `vllm.LLM`, and `environment`; `collect`: sites at which the texts of `read`,
            (token ids, start, end) each, are read (see `collected`).
    """
    question, answer = folder / "question.json", folder / "answer.json"
    asked = [{"prompt": list(job.prompt), "asked": job.asked} for job in jobs]
    said = {
        "model": str(model),
        "artifacts": artifacts,
        "jobs": asked,
        "collect": list(settings.get("collect", ())),
        "read": [list(text) for text in settings.get("read", ())],
        "options": settings.get("options", {}),
    }
    question.write_text(json.dumps(said))
    done = subprocess.run(
        [sys.executable, __file__, question, answer],
        env=os.environ | settings.get("environment", {}),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, "\n".join(reason(done.stdout + done.stderr))
    said = json.loads(answer.read_text())
    return [_output(one) for one in said["outputs"]], said["metrics"]


def collected(folder: Path) -> list[dict[str, Any]]:
    """What was read of each text of `read` in the process that `ask` has asked: by site, a record."""
    found: list[dict[str, Any]] = json.loads((folder / "answer.json").read_text())["collected"]
    return found


def reason(log: str) -> list[str]:
    """What of a log says why: lines of errors, of every process; the first are the cause."""
    lines = [line for line in log.splitlines() if "Error" in line or "error" in line]
    return [*lines[:30], *log.splitlines()[-20:]]


def _output(said: dict[str, Any]) -> Any:
    log_probs = [
        {token: SimpleNamespace(logprob=value)}
        for token, value in zip(said["tokens"], said["log_probs"], strict=True)
    ]
    answer = SimpleNamespace(token_ids=said["tokens"], logprobs=log_probs)
    receipts = said["receipts"]
    for one in receipts or []:
        one["strengths"], one["sites"] = tuple(one["strengths"]), tuple(one["sites"])
    steering = None if receipts is None else SimpleNamespace(to_dict=lambda: {"receipt": receipts})
    return SimpleNamespace(outputs=[answer], subvene=steering)


def main(question: Path, answer: Path) -> None:
    import vllm

    asked = json.loads(question.read_text())
    options: dict[str, Any] = {"dtype": "float32", "max_model_len": 128, "max_num_seqs": 32, "seed": 0}
    options["disable_log_stats"] = False
    if asked["artifacts"] is not None:
        held = {"artifacts": asked["artifacts"], "collect": asked["collect"]}
        options["additional_config"] = {"subvene": held}
    llm = vllm.LLM(model=asked["model"], **options | {"enforce_eager": True} | asked["options"])
    if asked["options"].get("pipeline_parallel_size", 1) > 1:
        # vLLM 0.32 on the CPU makes a stage's input buffers in a dummy run only, which eager mode leaves out.
        llm.collective_rpc(_dummy_run)
    sampling = [
        vllm.SamplingParams(
            temperature=0,
            max_tokens=12,
            logprobs=0,
            ignore_eos=True,
            extra_args={"subvene": job["asked"]} if job["asked"] else None,
        )
        for job in asked["jobs"]
    ]
    prompts = [{"prompt_token_ids": job["prompt"]} for job in asked["jobs"]]
    outputs = [_plain(one) for one in llm.generate(prompts, sampling, use_tqdm=False)]
    collected = _collected(llm, asked["read"])
    metrics = {one.name: one.value for one in llm.get_metrics() if hasattr(one, "value")}
    said = {"outputs": outputs, "metrics": metrics, "collected": collected}
    answer.write_text(json.dumps(said))


def _plain(output: Any) -> dict[str, Any]:
    (said,) = output.outputs
    pairs = zip(said.token_ids, said.logprobs, strict=True)
    steering = output.subvene if hasattr(output, "subvene") else None
    return {
        "tokens": list(said.token_ids),
        "log_probs": [at[token].logprob for token, at in pairs],
        "receipts": None if steering is None else steering.to_dict()["receipt"],
    }


def _collected(llm: Any, texts: list[Any]) -> list[Any]:
    import vllm

    sites = llm.llm_engine.input_processor.subvene.collects if texts else ()
    asks = [
        {"artifacts": [], "collect": {"sites": list(sites), "start": start, "end": end}}
        for _, start, end in texts
    ]
    sampling = [vllm.SamplingParams(max_tokens=1, extra_args={"subvene": ask}) for ask in asks]
    prompts = [{"prompt_token_ids": ids} for ids, _, _ in texts]
    outputs = llm.generate(prompts, sampling, use_tqdm=False) if texts else []
    return [one.subvene.to_dict()["collected"] for one in outputs]


def _dummy_run(worker: Any) -> None:
    worker.model_runner._dummy_run(worker.model_runner.max_num_tokens)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
