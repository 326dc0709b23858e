"""Runs in an environment with vLLM: greedy answers and their log-probabilities with an export."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

# As little as a small model needs; all of it would be taken from the machine's memory.
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_DO_NOT_TRACK", "1")


def main(asked: Path, answered: Path) -> None:
    import vllm
    from vllm.lora.request import LoRARequest

    question = json.loads(asked.read_text())
    adapter = question["adapter"]
    options = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1} if adapter else {}
    llm = vllm.LLM(
        model=question["model"],
        dtype="float32",
        max_model_len=128,
        max_num_seqs=4,
        enforce_eager=True,  # compiling takes longer than these few tokens
        **options,
    )
    sampling = vllm.SamplingParams(temperature=0, max_tokens=question["max_tokens"], logprobs=0)
    outputs = llm.generate(
        [{"prompt_token_ids": ids} for ids in question["prompts"]],
        sampling,
        lora_request=LoRARequest("export", 1, adapter) if adapter else None,
    )
    found = []
    for output in outputs:
        (answer,) = output.outputs
        pairs = zip(answer.token_ids, answer.logprobs, strict=True)
        log_probs = [at[token].logprob for token, at in pairs]
        found.append({"tokens": list(answer.token_ids), "log_probs": log_probs})
    answered.write_text(json.dumps({"version": vllm.__version__, "answers": found}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
