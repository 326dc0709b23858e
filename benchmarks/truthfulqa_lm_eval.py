"""Multiple choice on TruthfulQA with the published prompt, SmolLM2-135M-Instruct as it is, beside lm-eval.

The same texts in both: lm-evaluation-harness's model of transformers scores each answer after its whole
prompt, in batches of 32, as its task does. It runs in an environment of its own (`make bench-peers`). The
scores must be the same. Ratio: lm-eval / subvene.

The questions and the published prompt come from $SUBVENE_TRUTHFULQA (or ../shared/data/truthfulqa).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import EMBEDDED, arguments, interleaved, report
from truthfulqa_mc import questions_and_prompts, steered
from worker import worker

from subvene.runner import load_model
from subvene.runner.measures.truthfulqa_scores import ChoiceScores, score_choices

LM_EVAL = Path(__file__).parent.parent / ".venv-lm-eval/bin/python"
BATCH = 32
# Relative, of sums of float32 logarithms that the two compute in other batches.
SAME = 1e-4


def main() -> None:
    options = arguments(__doc__)
    questions, prompts = questions_and_prompts(3 if options.quick else 24)
    model, tokenizer = load_model(EMBEDDED, dtype="float32")
    m = steered(model, tokenizer)
    encoded = prompts.encode(tokenizer, [question.question for question in questions])
    rows = [
        (tokenizer.decode(prompt), tokenizer.decode(answer))
        for prompt, q in zip(encoded.prompts, questions, strict=True)
        for answer in prompts.answer_ids(tokenizer, [*q.correct, *q.incorrect])
    ]
    job = {"model": model.config.name_or_path, "rows": rows, "batch_size": BATCH}
    found: dict[str, Any] = {}
    kept: dict[str, ChoiceScores] = {}
    # The harness knows no edits: both score the model as it is.
    with m.disabled(), worker(LM_EVAL, "choices_worker.py", job) as theirs:
        arms = {
            "lm-eval": lambda: found.update(theirs()),
            "subvene": lambda: kept.update(own=score_choices(m, prompts, questions)),
        }
        rounds = options.rounds or (1 if options.quick else 2)
        seconds = interleaved(arms, "subvene", rounds, warm_up=False)
    own = torch.tensor([one for q in kept["own"].questions for one in (*q.correct, *q.incorrect)])
    off = float(((own - torch.tensor(found["scores"])) / own).abs().max())
    if off > SAME:
        raise SystemExit(f"lm-eval's scores differ by {off:.2g} of their size, more than {SAME}")
    notes = f"{len(questions)} questions, {len(rows)} answers, {found['version']}; scores equal to {off:.1g}"
    report("multiple choice: lm-eval", seconds, "subvene", notes=notes)


if __name__ == "__main__":
    main()
