"""A sweep over coefficients: 6 coefficients × 20 questions, 64 new tokens, greedy, on SmolLM2-135M-Instruct.

One batched subvene call, a strength for each row, against the loop that the field's scripts use: one
generation per question and coefficient, with a forward hook that adds the vector. The tokens must be the
same in both, except where two logits tie within float32 rounding of the batch shape; the benchmark counts
the rows that differ and fails if a difference is more than such a tie. Ratio: loop / batched.
"""

from __future__ import annotations

from pathlib import Path

from harness import arguments, interleaved, report
from hook_loop import TIE, check_tie, finish, generate_one

from subvene.runner import IntervenedModel, fit
from subvene.runner.data.text import pad, pad_id_of, prompt_ids
from subvene.specs import load_pairs, load_spec

ROOT = Path(__file__).parent.parent
COEFFICIENTS = [-1.5, -0.75, 0.0, 0.75, 1.5, 2.25]


def questions(count: int) -> list[str]:
    return [pair.prompt for pair in load_pairs(ROOT / "examples/data/cheerful-pairs.yaml").texts[:count]]


def main() -> None:
    options = arguments(__doc__)
    new_tokens = 16 if options.quick else 64
    prompts = questions(6 if options.quick else 20)
    m: IntervenedModel = fit(ROOT / "examples/quickstart.yaml")
    spec = load_spec(ROOT / "examples/quickstart.yaml").interventions[0]
    vector = m.tensors[f"{spec.vector.key}.{spec.site}[{spec.layer}]"]
    pad_id = pad_id_of(m.tokenizer)
    generation = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": pad_id}
    rows = [(prompt_ids(m.tokenizer, prompt), c) for prompt in prompts for c in COEFFICIENTS]

    def batched() -> list[list[int]]:
        batch = pad([ids for ids, _ in rows], [len(ids) for ids, _ in rows], pad_id, "left")
        strengths = [c for _, c in rows]
        output = m.generate_ids(batch.input_ids, batch.attention_mask, strengths=strengths, **generation)
        return [finish(m.model, row) for row in output[:, batch.input_ids.shape[1] :]]

    def loop() -> list[list[int]]:
        return [generate_one(m.model, ids, spec.layer, c * vector, **generation) for ids, c in rows]

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
        ids, c = rows[i]
        check_tie(m, ids, [c], one[i], other[i])
    same = f"{len(rows) - len(differing)} of {len(rows)} rows have the same tokens"
    if differing:
        same += f"; the other {len(differing)} part at a tie of two logits (gap below {TIE})"
    report("coefficient_sweep", seconds, "one at a time, hook", invert=True, notes=same)


if __name__ == "__main__":
    main()
