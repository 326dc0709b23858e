"""Activations of all heads at the last token of 500 answers `Q: … A: …`, on SmolLM2-135M-Instruct.

The collector (a question and its answers as one tree of tokens, batches of like length, no LM head) against
the loop of the published ITI code: one prompt at a time through the whole model with all hidden states, the
inputs of every output projection kept by hooks. The values must be the same to 1e-4. Ratio: loop / collector.

The answers are TruthfulQA's where $SUBVENE_TRUTHFULQA (or ../shared/data/truthfulqa) has them, and texts that
stand here where it has not.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import torch
from harness import EMBEDDED, arguments, interleaved, report

from subvene.runner import load_model
from subvene.runner.data.text import pad_id_of
from subvene.runner.data.truthfulqa.questions import load_questions
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last, shared_prefix
from subvene.specs.questions import QuestionsSpec

TOLERANCE = 1e-4
DATA = Path(__file__).parent.parent.parent / "shared/data/truthfulqa"
VERBS = ("grow", "sell", "measure", "repair", "paint", "carry", "store", "count")
THINGS = (
    "a watermelon",
    "an old clock",
    "wet sand",
    "a paper boat",
    "seven candles",
    "a glass of milk",
    "the moon",
)
ANSWERS = (
    "It takes patience and a quiet afternoon",
    "Nobody has ever managed to do that",
    "Most people ask a neighbour for help with it",
    "You wait until the rain has stopped",
    "The government forbids it in every country",
    "There is no special way, you simply begin",
    "It can only be done under a full moon",
)


def questions() -> tuple[str, list[tuple[str, list[str]]]]:
    """Where they are from, and each question with its answers, without the closing period."""
    if "SUBVENE_TRUTHFULQA" not in os.environ and DATA.is_dir():
        os.environ["SUBVENE_TRUTHFULQA"] = str(DATA)
    if "SUBVENE_TRUTHFULQA" in os.environ:
        found = load_questions(QuestionsSpec(), Path())
        pairs = [(q.question, [a.removesuffix(".") for a in (*q.correct, *q.incorrect)]) for q in found]
        return "TruthfulQA", pairs
    made = [(f"How do you {verb} {thing}?", list(ANSWERS)) for thing in THINGS for verb in VERBS]
    return "texts of our own", made * 2


def main() -> None:
    options = arguments(__doc__)
    count = 60 if options.quick else 500
    model, tokenizer = load_model(EMBEDDED, dtype="float32")
    anatomy = Anatomy.of(model)
    layers, pad_id = range(anatomy.sizes.n_layers), pad_id_of(tokenizer)
    origin, pairs = questions()
    groups: list[list[tuple[int, ...]]] = []
    for question, answers in pairs:
        answers = answers[: count - sum(map(len, groups))]
        if answers:
            groups.append([tuple(tokenizer(f"Q: {question} A: {answer}")["input_ids"]) for answer in answers])
    texts = [ids for group in groups for ids in group]
    counts: dict[str, int] = {}

    def collector() -> torch.Tensor:
        # A new folder each time: nothing is there already, and writing it down is part of the work.
        passages = [
            Passage(ids, (last(len(ids)),), shared_prefix(group)) for group in groups for ids in group
        ]
        with tempfile.TemporaryDirectory() as folder:
            found = collect(
                anatomy, "attention_heads", layers, passages, Path(folder), pad_id=pad_id, batch_size=64
            )
            counts["collector"] = found.tokens
            rows = torch.tensor(found.first_rows)
            return torch.stack([found.read(layer, rows) for layer in layers], 1)

    @torch.no_grad()
    def loop() -> torch.Tensor:
        kept: dict[int, torch.Tensor] = {}
        handles = [
            anatomy.output_projection(layer).register_forward_pre_hook(
                lambda _m, args, layer=layer: kept.update({layer: args[0].detach().cpu()})
            )
            for layer in layers
        ]
        rows = []
        for ids in texts:
            output = model(torch.tensor([ids]), output_hidden_states=True)
            torch.stack(output.hidden_states).squeeze()  # as published: kept beside the heads
            rows.append(torch.stack([kept[layer][0, -1] for layer in layers]))
        for handle in handles:
            handle.remove()
        return torch.stack(rows)

    results: dict[str, torch.Tensor] = {}
    rival = "one prompt at a time"
    arms = {
        rival: lambda: results.update(loop=loop()),
        "collector": lambda: results.update(collector=collector()),
    }
    # No warm-up: each arm is many passes, and its first is one of them.
    seconds = interleaved(arms, rival, options.rounds or (1 if options.quick else 5), warm_up=False)
    difference = float((results["loop"] - results["collector"]).abs().max())
    if difference > TOLERANCE:
        raise SystemExit(f"the activations differ by {difference:.2g}, more than {TOLERANCE}")
    notes = (
        f"{len(texts)} answers to {len(groups)} questions ({origin}); tokens through the model: "
        f"{sum(map(len, texts))} one at a time, {counts['collector']} collected; "
        f"largest difference of a value {difference:.1e}"
    )
    report("activations", seconds, rival, invert=True, notes=notes)


if __name__ == "__main__":
    main()
