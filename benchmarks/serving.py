"""Steered and unsteered requests in one vLLM, and transformers: CPU seconds of 16 requests × 64 tokens.

SmolLM2-135M-Instruct, float32, one batch of 16 prompts of 8 tokens. Arms in the same engine: one site, four
ITI layers, twelve artifacts at once, every layer; the rival is the same requests without artifacts. Beside
them the same under transformers (`IntervenedModel.generate_ids`, one batch), steered at one site and at
strength 0. Seconds are those of this process, all threads, since other work on the machine does not count
then. Ratio: unsteered / arm.

Runs in vLLM's environment: OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/serving.py [--compiled]
On a GPU the seconds would have to be the wall's, and graphs full; none was at hand.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import EMBEDDED, arguments, interleaved, report

from subvene.runner import IntervenedModel, load_model
from subvene.runner.models.loading import resolve
from subvene.specs import InterventionSpec, ModelSpec

REQUESTS, PROMPT, TOKENS, LAYERS, WIDTH, HEADS, HEAD_DIM = 16, 8, 64, 30, 576, 9, 64
MODEL = {"name": EMBEDDED, "dtype": "float32"}
SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def declared() -> dict[str, list[dict[str, Any]]]:
    """Artifacts: twelve of one site each, ITI at four layers, steering at every layer."""
    steer = {"kind": "steering", "vector": {"key": "v"}, "coefficient": 0.5, "positions": "response"}
    heads = {layer: [0, 3, 8] for layer in (4, 9, 14, 20)}
    iti = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 1.0, "heads": heads}
    every = [steer | {"layer": layer, "name": f"l{layer}", "coefficient": 0.05} for layer in range(LAYERS)]
    one = {f"a{i}": [steer | {"layer": 2 * i + 1}] for i in range(12)}
    return {**one, "iti": [iti | {"positions": "response"}], "every": every}


def artifacts(folder: Path, model: Any, tokenizer: Any) -> tuple[dict[str, str], IntervenedModel]:
    tensors = {f"v.block_output[{layer}]": draw(WIDTH, seed=layer) for layer in range(LAYERS)}
    tensors |= {f"iti.attention_heads[{layer}]": draw(HEADS, HEAD_DIM, seed=layer) for layer in range(LAYERS)}
    made = {}
    for name, interventions in declared().items():
        spec = InterventionSpec(subvene=1, model=MODEL, interventions=interventions)
        made[name] = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)
        made[name].save_pretrained(folder / name)
    return {name: str(folder / name) for name in made}, made["a5"]


def main() -> None:
    compiled = "--compiled" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--compiled"]
    options = arguments(__doc__ or "")
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    import vllm

    tokens = 16 if options.quick else TOKENS
    ids = [[1, *(100 + 37 * i + 5 * k for k in range(PROMPT - 1))] for i in range(REQUESTS)]
    model, tokenizer = load_model(ModelSpec(**MODEL))
    with tempfile.TemporaryDirectory() as folder:
        folders, alone = artifacts(Path(folder), model, tokenizer)
        llm = vllm.LLM(
            model=resolve(ModelSpec(**MODEL)),
            dtype="float32",
            max_model_len=128,
            max_num_seqs=REQUESTS,
            enforce_eager=not compiled,
            enable_prefix_caching=False,
            additional_config={"subvene": {"artifacts": folders}},
        )

    def vllm_arm(names: list[str | None]) -> Callable[[], object]:
        each = [
            vllm.SamplingParams(
                temperature=0,
                max_tokens=tokens,
                ignore_eos=True,
                extra_args=None if name is None else {"subvene": name},
            )
            for name in names
        ]
        return lambda: llm.generate([{"prompt_token_ids": one} for one in ids], each, use_tqdm=False)

    def transformers_arm(strength: float) -> Callable[[], object]:
        settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
        return lambda: alone.generate_ids(torch.tensor(ids), strengths=strength, **settings)

    twelve = [f"a{i % 12}" for i in range(REQUESTS)]
    arms = {
        "unsteered": vllm_arm([None] * REQUESTS),
        "1 site": vllm_arm(["a5"] * REQUESTS),
        "4 ITI layers": vllm_arm(["iti"] * REQUESTS),
        "12 artifacts at once": vllm_arm(list(twelve)),
        "all 30 layers": vllm_arm(["every"] * REQUESTS),
        "transformers, steered": transformers_arm(0.5),
        "transformers, strength 0": transformers_arm(0.0),
    }
    rounds = options.rounds or (1 if options.quick else 6)
    seconds = interleaved(arms, "unsteered", rounds, clock=time.process_time)
    rates = {
        name: REQUESTS * tokens * len(pairs) / sum(own for own, _ in pairs) for name, pairs in seconds.items()
    }
    rates["unsteered"] = REQUESTS * tokens / (sum(rival for _, rival in seconds["1 site"]) / rounds)
    words = "; ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    mode = "compiled" if compiled else "eager"
    notes = f"vLLM {vllm.__version__}, {mode}. Tokens per CPU second: {words}"
    report(f"serving, {mode}", seconds, "unsteered", invert=True, notes=notes)


if __name__ == "__main__":
    main()
