"""A sweep over coefficients: 6 coefficients × 20 questions, 64 new tokens, greedy, on SmolLM2-135M-Instruct.

One batched subvene call, a strength for each row, against the loop that the field's scripts use: one
generation per question and coefficient, with a forward hook that adds the vector. The tokens must be the
same in both, except where two logits tie within float32 rounding of the batch shape; the benchmark counts
the rows that differ and fails if a difference is more than such a tie. Ratio: loop / batched.
"""

from __future__ import annotations

from pathlib import Path

import torch
from harness import arguments, interleaved, report

from subvene.runner import IntervenedModel, fit
from subvene.runner.text import pad, pad_id_of, prompt_ids
from subvene.specs import load_pairs, load_spec

ROOT = Path(__file__).parent.parent
COEFFICIENTS = [-1.5, -0.75, 0.0, 0.75, 1.5, 2.25]
TIE = 1e-3


def questions(count: int) -> list[str]:
    return [pair.prompt for pair in load_pairs(ROOT / "examples/data/cheerful-pairs.yaml").texts[:count]]


def main() -> None:
    options = arguments(__doc__)
    new_tokens = 16 if options.quick else 64
    prompts = questions(6 if options.quick else 20)
    m: IntervenedModel = fit(ROOT / "examples/quickstart.yaml")
    spec = load_spec(ROOT / "examples/quickstart.yaml").interventions[0]
    vector = m.tensors[f"{spec.vector.key}.{spec.site}[{spec.layer}]"]
    block, pad_id = m.model.model.layers[spec.layer], pad_id_of(m.tokenizer)
    generation = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": pad_id}
    rows = [(prompt_ids(m.tokenizer, prompt), c) for prompt in prompts for c in COEFFICIENTS]

    def finish(ids: torch.Tensor) -> list[int]:
        """A response up to its end."""
        tokens = ids.tolist()
        end = m.model.generation_config.eos_token_id
        return tokens[: tokens.index(end) + 1] if end in tokens else tokens

    def batched() -> list[list[int]]:
        batch = pad([ids for ids, _ in rows], [len(ids) for ids, _ in rows], pad_id, "left")
        strengths = [c for _, c in rows]
        output = m.generate_ids(batch.input_ids, batch.attention_mask, strengths=strengths, **generation)
        return [finish(row) for row in output[:, batch.input_ids.shape[1] :]]

    def loop() -> list[list[int]]:
        responses = []
        for ids, c in rows:
            cursor = len(ids) - 1

            def add(
                _m: object, _a: object, h: torch.Tensor, c: float = c, cursor: int = cursor
            ) -> torch.Tensor:
                # Its own rule, for one unpadded row with a cache: the prompt pass edits the cursor only.
                edited = h.clone()
                edited[:, cursor if h.shape[1] > 1 else 0 :] += c * vector
                return edited

            handle = block.register_forward_hook(add)
            prompt = torch.tensor([ids])
            output = m.model.generate(prompt, attention_mask=torch.ones_like(prompt), **generation)
            handle.remove()
            responses.append(finish(output[0, len(ids) :]))
        return responses

    responses: dict[str, list[list[int]]] = {}
    arms = {
        "one at a time, hook": lambda: responses.update(loop=loop()),
        "subvene, one batch": lambda: responses.update(batched=batched()),
    }
    # No warm-up: the loop takes minutes, and its first generation is one of many.
    rounds = options.rounds or (1 if options.quick else 2)
    seconds = interleaved(arms, "one at a time, hook", rounds, warm_up=False)
    one, other = responses["batched"], responses["loop"]
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    for i in differing:
        check_tie(m, rows[i], one[i], other[i])
    same = f"{len(rows) - len(differing)} of {len(rows)} rows have the same tokens"
    if differing:
        same += f"; the other {len(differing)} part at a tie of two logits (gap below {TIE})"
    report("coefficient_sweep", seconds, "one at a time, hook", invert=True, notes=same)


def check_tie(m: IntervenedModel, row: tuple[list[int], float], one: list[int], other: list[int]) -> None:
    """Where two greedy runs part, their candidates must have the same logit up to rounding."""
    ids, c = row
    at = next(i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    sequence = torch.tensor([[*ids, *one[:at]]])
    with torch.no_grad():
        logits = m(sequence, prompt_lengths=[len(ids)], strengths=[c]).logits[0, -1]
    gap = abs(float(logits[one[at]] - logits[other[at]]))
    if gap > TIE:
        raise SystemExit(f"coefficient {c}: the two runs differ at token {at} with a logit gap of {gap:.4f}")


if __name__ == "__main__":
    main()
