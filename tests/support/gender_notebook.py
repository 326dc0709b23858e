"""pyvene's notebook Probing_Gender: its names, its examples, its steps and its numbers, on our engine.

The names are the notebook's (tutorials/advanced_tutorials/Probing_Gender.ipynb of pyvene, Apache 2.0).
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.interchange import Interchanges
from subvene.runner.training.passes import frozen
from subvene.runner.training.rotations import edit_of, train_cells
from subvene.specs.recipes.das import DASSpec

NAMES: dict[str, list[str]] = json.loads((Path(__file__).parent / "gender_names.json").read_text("utf-8"))
PLACES = ("bos", "name", "walked", "because")
PUBLISHED = ((0, 98, 0, 0), (0, 100, 0, 0), (0, 98, 16, 10), (0, 52, 6, 10), (0, 0, 0, 98), (0, 0, 0, 98))
"""IIA in percent at layers 0 to 5 of EleutherAI/pythia-70m, by place."""
STEPS, HELD_OUT = 100, 50


@dataclass(frozen=True)
class Vocabulary:
    """Token ids: of names by their answer, of the answers, and of what stands around a name."""

    names: Mapping[str, list[int]]
    answers: Mapping[str, int]
    before: int
    behind: tuple[int, int]

    def text(self, name: int) -> tuple[int, ...]:
        return (self.before, name, *self.behind)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The notebook's: names of one token."""
    one = {s: [i for n in names if len(i := tokenizer.encode(n)) == 1] for s, names in NAMES.items()}
    return Vocabulary(
        {side: [ids[0] for ids in names] for side, names in one.items()},
        {side: tokenizer.encode(f" {side}")[0] for side in NAMES},
        tokenizer.eos_token_id,
        tuple(tokenizer.encode(" walked because")),
    )


def iia(
    model: Any, words: Vocabulary, *, steps: int, held_out: int, seed: int, agreed: bool
) -> list[list[float]]:
    """Percent of held-out pairs in which the source's answer is likelier than the base's, by layer and place.

    Args:
        model: in evaluation mode.
        words: its token ids.
        steps: pairs that are trained on, one a step.
        held_out: pairs that are not; of the same names, as in the notebook.
        seed: of the pairs and the rotations.
        agreed: only pairs on whose own answers the model agrees.
    """
    count = steps + held_out
    pairs = drawn(model, words, count, seed, agreed=agreed)
    places = {place: {"indices": [i]} for i, place in enumerate(PLACES)}
    fields = {"key": "gender", "data": {"file": "x.jsonl"}, "split": {"by": ["x"]}, "positions": places}
    spec = DASSpec.model_validate(fields | {"epochs": 1, "batch_size": 1, "learning_rate": 1e-3})
    base, source = ([words.text(pair[i][1]) for pair in pairs] for i in (0, 1))
    labels, own = (torch.tensor([words.answers[pair[i][0]] for pair in pairs]) for i in (1, 0))
    test = torch.arange(steps, count)
    anatomy, table = Anatomy.of(model), []
    with frozen(model):
        runs = Interchanges(
            anatomy,
            None,
            base,
            source,
            [{}] * count,
            site="block_output",
            places=spec.places,
            pad_id=0,
            pass_tokens=4096,
        )
        layers = range(anatomy.sizes.n_layers)
        runs.plan(layers)
        for swaps in runs.at(layers):
            cells = train_cells(
                swaps,
                spec,
                labels,
                torch.arange(steps),
                seed=seed,
                pass_tokens=4096,
                width=anatomy.sizes.width,
            )
            with torch.no_grad():
                logits = swaps.logits([(p, edit_of(spec, cells[p].inner)) for p in PLACES], test)
            wanted, others = (
                logits.gather(2, ids[test].expand(len(PLACES), -1).unsqueeze(2)).squeeze(2)
                for ids in (labels, own)
            )
            table.append((100 * (wanted > others).float().mean(1)).tolist())
    return table


def drawn(
    model: Any, words: Vocabulary, count: int, seed: int, *, agreed: bool
) -> list[tuple[tuple[str, int], tuple[str, int]]]:
    """Pairs of names with different answers."""
    random_numbers, sides = random.Random(seed), list(words.names)
    likelier: dict[int, str] = {}

    @torch.no_grad()
    def said(name: int) -> str:
        if name not in likelier:
            logits = model(torch.tensor([words.text(name)])).logits[0, -1]
            likelier[name] = max(sides, key=lambda side: float(logits[words.answers[side]]))
        return likelier[name]

    found = []
    while len(found) < count:
        side = random_numbers.choice(sides)
        other = next(one for one in sides if one != side)
        pair = [(one, random_numbers.choice(words.names[one])) for one in (side, other)]
        if not agreed or all(said(name) == one for one, name in pair):
            found.append((pair[0], pair[1]))
    return found
