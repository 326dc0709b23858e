"""Multiple choice on TruthfulQA with the published prompt, SmolLM2-135M-Instruct, edited at the response.

What all prompts begin with encoded once, each question on top of it once, its answers on top of that,
against every answer with its whole prompt (in batches of like length; one at a time it takes longer still).
The scores must be the same. Ratio: from scratch / shared prefix, of wall time; and of tokens through the
model, padding included in both.

The questions and the published prompt come from $SUBVENE_TRUTHFULQA (or ../shared/data/truthfulqa).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from harness import EMBEDDED, arguments, interleaved, report

from subvene.runner import IntervenedModel, load_model
from subvene.runner.data.truthfulqa.prompts import Prompts, load_prompts
from subvene.runner.data.truthfulqa.questions import Question, load_questions
from subvene.runner.data.truthfulqa.splits import limited
from subvene.runner.intervened.prefix import counting_tokens
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.measures.truthfulqa_scores import ChoiceScores, score_choices
from subvene.specs import InterventionSpec
from subvene.specs.questions import QuestionsSpec

# Of a score, a sum of some ten log-probabilities, relative.
TOLERANCE = 1e-5
DATA = Path(__file__).parent.parent.parent / "shared/data/truthfulqa"
LAYER = 14
SPEC = {
    "subvene": 1,
    "model": {"name": EMBEDDED},
    "interventions": [
        {
            "kind": "steering",
            "layer": LAYER,
            "vector": {"key": "v"},
            "coefficient": 1,
            "positions": "response",
        }
    ],
}


def questions_and_prompts(count: int) -> tuple[list[Question], Prompts]:
    """The first questions of the data, and the published prompt."""
    folder = Path(os.environ.get("SUBVENE_TRUTHFULQA") or DATA)
    if not (folder / "TruthfulQA.csv").is_file():
        raise SystemExit(f"no TruthfulQA.csv in {folder}; set SUBVENE_TRUTHFULQA to its folder")
    questions = limited(load_questions(QuestionsSpec(file="TruthfulQA.csv"), folder), count)
    return list(questions), load_prompts("instruction_qa", "primer_qa.txt", "instruction.txt", folder)


def steered(model: Any, tokenizer: Any) -> IntervenedModel:
    """A vector drawn at random, added at one block at the response."""
    vector = torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    return IntervenedModel.from_spec(
        InterventionSpec.model_validate(SPEC),
        model=model,
        tokenizer=tokenizer,
        tensors={f"v.block_output[{LAYER}]": vector},
    )


def main() -> None:
    options = arguments(__doc__)
    questions, prompts = questions_and_prompts(3 if options.quick else 24)
    model, tokenizer = load_model(EMBEDDED, dtype="float32")
    m = steered(model, tokenizer)
    encoded = prompts.encode(tokenizer, [question.question for question in questions])
    pairs = [
        (prompt, answer)
        for prompt, q in zip(encoded.prompts, questions, strict=True)
        for answer in prompts.answer_ids(tokenizer, list(dict.fromkeys((*q.correct, *q.incorrect))))
    ]
    tokens: dict[str, int] = {}

    def scratch() -> torch.Tensor:
        with counting_tokens(model) as count:
            totals, _ = log_probs(m, pairs, batch_size=32)
        tokens["scratch"] = count[0]
        return totals

    def shared() -> ChoiceScores:
        scores = score_choices(m, prompts, questions)
        tokens["shared"] = scores.tokens
        return scores

    found: dict[str, torch.Tensor] = {}
    kept: dict[str, ChoiceScores] = {}
    rival = "from scratch"
    arms = {
        rival: lambda: found.update(scratch=scratch()),
        "shared prefix": lambda: kept.update(shared=shared()),
    }
    # No warm-up: each arm is many passes, and its first is one of them.
    seconds = interleaved(arms, rival, options.rounds or (1 if options.quick else 3), warm_up=False)
    scores = kept["shared"]
    flat = [
        value
        for q, score in zip(questions, scores.questions, strict=True)
        for value in dict(
            zip((*q.correct, *q.incorrect), (*score.correct, *score.incorrect), strict=True)
        ).values()
    ]
    difference = float(
        ((torch.tensor(flat, dtype=torch.float64) - found["scratch"]) / found["scratch"]).abs().max()
    )
    if scores.from_scratch is not None or difference > TOLERANCE:
        raise SystemExit(f"the scores differ by {difference:.2g} of their size, more than {TOLERANCE}")
    fewer = tokens["scratch"] / tokens["shared"]
    notes = (
        f"{len(questions)} questions, {len(pairs)} answers; tokens through the model: {tokens['scratch']} "
        f"from scratch, {tokens['shared']} with the prefix of {scores.shared_tokens} shared: {fewer:.1f} "
        f"times fewer; scores agree to {difference:.1g} of their size; MC1 {scores.mc1:.3f}, "
        f"MC2 {scores.mc2:.3f}, MC3 {scores.mc3:.3f}"
    )
    report("truthfulqa_mc", seconds, rival, invert=True, notes=notes)


if __name__ == "__main__":
    main()
