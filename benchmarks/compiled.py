"""Compiled decoding, steered and plain: a Llama of SmolLM2-135M's sizes with random weights, static cache.

Greedy decoding of one row. Arms: compiled plain transformers; compiled with a vector added at one block, and
at all; the same uncompiled. The ratio is compiled plain / arm: how fast an arm is, and the goal for compiled
steering is .97. The answers of a compiled arm have to be those of its uncompiled one. In CPU seconds.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from harness import arguments, interleaved, report
from made_models import made, prompts
from operations import intervened, steering
from transformers import CompileConfig


def compiled_by(backend: str) -> dict[str, Any]:
    """Options of `generate` that compile its decoding steps, on a CPU too."""
    config = CompileConfig(backend=backend, mode="default", fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def arms_of(size: str, backend: str, tokens: int, **changes: int) -> dict[str, Any]:
    """Arm → one generation by it; they give token ids. `changes` are made to the sizes."""
    model, inputs = made(size, **changes), prompts(1, 32)
    blocks = range(model.config.num_hidden_layers)
    one, every = (
        intervened(model, steering(chosen, coefficient=0.05)) for chosen in ([len(blocks) // 2], blocks)
    )
    greedy = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    static = compiled_by(backend)
    return {
        "compiled plain": lambda: model.generate(**inputs, **greedy, **static),
        "compiled, steered at one block": lambda: one.generate_ids(**inputs, **greedy, **static),
        "compiled, steered at all blocks": lambda: every.generate_ids(**inputs, **greedy, **static),
        "eager plain": lambda: model.generate(**inputs, **greedy),
        "eager, steered at one block": lambda: one.generate_ids(**inputs, **greedy),
        "eager, steered at all blocks": lambda: every.generate_ids(**inputs, **greedy),
    }


def alike(arms: dict[str, Any]) -> int:
    """How many compiled arms gave the tokens of their uncompiled ones; three would be all."""
    answers = {name: run() for name, run in arms.items()}
    return sum(
        torch.equal(answer, answers[name.replace("compiled", "eager", 1)])
        for name, answer in answers.items()
        if name.startswith("compiled")
    )


def main() -> None:
    options = arguments(__doc__ or "")
    size, backend, tokens = ("tiny", "eager", 4) if options.quick else ("135M", "inductor", 64)
    arms = arms_of(size, backend, tokens)
    equal = alike(arms)
    rounds = options.rounds or (1 if options.quick else 10)
    seconds = interleaved(arms, "compiled plain", rounds, warm_up=False, clock=time.process_time)
    notes = f"{equal} of 3 compiled arms have the tokens of their uncompiled one"
    report("compiled", seconds, "compiled plain", invert=True, notes=notes)


if __name__ == "__main__":
    main()
