"""A persona sweep: 6 coefficients × 3 layers × 10 questions, 40 new tokens, greedy, SmolLM2-135M-Instruct.

One call of `subvene.runner.intervened.rollouts` (a layer and a strength for each row; what the rows' prompts
have in common before the edit is encoded once), against the loop that the field's scripts use: one
generation per question, layer and coefficient, with a forward hook that adds the vector. The tokens must be
the same in both, except where two logits tie within float32 rounding of the batch shape; the benchmark
counts the rows that differ and fails if a difference is more than such a tie. Ratio: loop / batched.
"""

from __future__ import annotations

from pathlib import Path

from harness import arguments, interleaved, report
from hook_loop import TIE, check_tie, generate_one

from subvene.runner import IntervenedModel, fit
from subvene.runner.data.text import pad_id_of, prompt_ids
from subvene.runner.experiments.persona.sweep import panel, strengths_at
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.specs import SteeringSpec, load_pairs, load_spec

ROOT = Path(__file__).parent.parent
COEFFICIENTS = [-1.5, -0.75, 0.0, 0.75, 1.5, 2.25]
LAYERS = [12, 16, 20]


def main() -> None:
    options = arguments(__doc__)
    new_tokens = 8 if options.quick else 40
    pairs = load_pairs(ROOT / "examples/data/cheerful-pairs.yaml").texts[: 3 if options.quick else 10]
    fitted: IntervenedModel = fit(ROOT / "examples/quickstart.yaml")
    steering = load_spec(ROOT / "examples/quickstart.yaml").interventions[0]
    if not isinstance(steering, SteeringSpec):
        raise SystemExit("examples/quickstart.yaml steers no more")
    m = panel(steering, LAYERS, fitted.tensors, fitted)
    vectors = {layer: fitted.tensors[f"{steering.vector.key}.block_output[{layer}]"] for layer in LAYERS}
    prompts = [tuple(prompt_ids(m.tokenizer, pair.prompt)) for pair in pairs]
    rows = [(ids, layer, c) for ids in prompts for layer in LAYERS for c in COEFFICIENTS]
    generation = {
        "max_new_tokens": new_tokens,
        "do_sample": False,
        "pad_token_id": pad_id_of(m.tokenizer),
    }
    end = m.model.generation_config.eos_token_id

    def batched() -> list[list[int]]:
        asked = [
            Row(ids, strengths=strengths_at((layer, c)), temperature=0.0, max_new_tokens=new_tokens)
            for ids, layer, c in rows
        ]
        found, _ = rollouts(m, asked, batch_size=90)
        return [[*one.tokens, *([end] if one.ended else [])] for one in found]

    def loop() -> list[list[int]]:
        return [generate_one(m.model, ids, layer, c * vectors[layer], **generation) for ids, layer, c in rows]

    responses: dict[str, list[list[int]]] = {}
    arms = {
        "one at a time, hook": lambda: responses.update(loop=loop()),
        "subvene, batched": lambda: responses.update(batched=batched()),
    }
    # No warm-up: the loop takes minutes, and its first generation is one of many.
    rounds = options.rounds or (1 if options.quick else 2)
    seconds = interleaved(arms, "one at a time, hook", rounds, warm_up=False)
    one, other = responses["batched"], responses["loop"]
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b]
    for i in differing:
        ids, layer, c = rows[i]
        strengths = {entry.name: 0.0 for entry in m.intervenable.entries} | strengths_at((layer, c))
        check_tie(m, ids, strengths, one[i], other[i])
    same = f"{len(rows) - len(differing)} of {len(rows)} rows have the same tokens"
    if differing:
        same += f"; the other {len(differing)} part at a tie of two logits (gap below {TIE})"
    report("persona_sweep", seconds, "one at a time, hook", invert=True, notes=same)


if __name__ == "__main__":
    main()
