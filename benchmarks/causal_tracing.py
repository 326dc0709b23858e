"""Causal tracing of one fact on SmolLM2-135M-Instruct: 30 layers × 10 tokens, `block_output`, one draw.

subvene (a pass a layer, every token's text from that token on) against stock pyvene cell by cell, as its own
notebook does it (an `IntervenableModel` a cell: the noise at the embeddings, the clean state restored), and
against a loop with two forward hooks, one cell a pass. Stock pyvene and the loop run on a sample of the
cells, the same ones, evenly spread, and their time is scaled up to all. Every cell of the sample must be the
same probability in all three to 1e-5. Ratio: theirs / subvene, paired in one run.
"""

from __future__ import annotations

from typing import Any

import pyvene
import torch
from harness import EMBEDDED, arguments, report, timed

from subvene.runner import load_model
from subvene.runner.data.facts import fact_tokens
from subvene.runner.measures.tracing import Corrupted, FactTracer
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import Fact
from subvene.specs.evaluations.causal_tracing import TracedSite

TOLERANCE = 1e-5
FACT = Fact(prompt="The Eiffel Tower is located in the city of", subject="The Eiffel Tower", answer="Paris")
Cell = tuple[int, int]


class Noise(pyvene.ConstantSourceIntervention, pyvene.LocalistRepresentationIntervention):
    """Adds what its class holds, as the notebook's does."""

    noise: torch.Tensor

    def forward(self, base: torch.Tensor, source: Any = None, subspaces: Any = None) -> torch.Tensor:
        return base + type(self).noise


def main() -> None:
    options = arguments(__doc__)
    model, tokenizer = load_model(EMBEDDED, dtype="float32")
    anatomy, fact = Anatomy.of(model), fact_tokens(tokenizer, FACT, "fact")
    layers, tokens = anatomy.sizes.n_layers, len(fact.ids)
    cells = [(layer, token) for layer in range(layers) for token in range(tokens)]
    step = 37 if options.quick else 13  # neither divides the grid: all layers and tokens are met
    sample = cells[::step]
    ids = torch.tensor([fact.ids])
    noise = torch.zeros(1, tokens, anatomy.sizes.width)
    random = torch.Generator().manual_seed(0)
    subject = noise[:, fact.start : fact.end]
    noise[:, fact.start : fact.end] = 0.4 * torch.randn(subject.shape, generator=random)
    Noise.noise = noise[:, fact.start : fact.end]

    def subvene() -> torch.Tensor:
        tracer = FactTracer(anatomy, fact, Corrupted(ids, noise), [TracedSite(site="block_output")])
        traced = tracer.traced(TracedSite(site="block_output"), range(layers), "packed", floor=0, seed=0)
        return torch.tensor(traced.values["probability"])

    def stock() -> torch.Tensor:
        return torch.tensor([stock_cell(cell) for cell in sample])

    def stock_cell(cell: Cell) -> float:
        layer, token = cell
        config = pyvene.IntervenableConfig(
            model_type=type(model),
            representations=[
                pyvene.RepresentationConfig(0, "block_input", intervention_type=Noise),
                pyvene.RepresentationConfig(
                    layer, "block_output", intervention_type=pyvene.VanillaIntervention
                ),
            ],
        )
        intervenable = pyvene.IntervenableModel(config, model)
        where = [[list(range(fact.start, fact.end))]], [[[token]]]
        _, output = intervenable(
            {"input_ids": ids},
            [None, {"input_ids": ids}],
            {"sources->base": ([None, where[1][0]], [where[0][0], where[1][0]])},
        )
        return float(output.logits[0, -1].softmax(-1)[fact.answer])

    @torch.no_grad()
    def hooks() -> torch.Tensor:
        kept: dict[int, torch.Tensor] = {}
        blocks: Any = anatomy.blocks
        handles = [
            block.register_forward_hook(lambda _m, _a, out, layer=layer: kept.update({layer: out}))
            for layer, block in enumerate(blocks)
        ]
        model(ids)
        for handle in handles:
            handle.remove()
        found = []
        for layer, token in sample:

            def restore(_m: Any, _a: Any, out: torch.Tensor, at: Cell = (layer, token)) -> torch.Tensor:
                out[:, at[1]] = kept[at[0]][:, at[1]]
                return out

            handles = [
                model.get_input_embeddings().register_forward_hook(lambda _m, _a, out: out + noise),
                blocks[layer].register_forward_hook(restore),
            ]
            found.append(float(model(ids).logits[0, -1].softmax(-1)[fact.answer]))
            for handle in handles:
                handle.remove()
        return torch.tensor(found)

    results: dict[str, torch.Tensor] = {}
    arms = {
        "stock pyvene, cell by cell": lambda: results.update(stock=stock()),
        "hooks, cell by cell": lambda: results.update(hooks=hooks()),
    }
    subvene()  # the first pass of a process is a slow one
    own = [results.update(subvene=subvene()) or timed(subvene)]
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    scale = len(cells) / len(sample)
    for _ in range(options.rounds or (1 if options.quick else 5)):
        for name, run in arms.items():
            theirs = timed(run) * scale
            own.append(timed(subvene))
            seconds[name].append(((own[-2] + own[-1]) / 2, theirs))
    check(results, sample)
    notes = (
        f"{layers} layers × {tokens} tokens = {len(cells)} cells; the rivals ran {len(sample)} of them, "
        "their time is scaled to all; probabilities of those cells equal to 1e-5"
    )
    for name, pairs in seconds.items():
        report(f"causal tracing: subvene against {name}", {"subvene": pairs}, name, invert=True, notes=notes)


def check(results: dict[str, torch.Tensor], sample: list[Cell]) -> None:
    """Every cell of the sample is the same in all arms."""
    own = torch.stack([results["subvene"][layer, token] for layer, token in sample])
    for name in ("stock", "hooks"):
        off = float((results[name] - own).abs().max())
        if off > TOLERANCE:
            raise SystemExit(f"{name}: probabilities differ by {off:.2g}, more than {TOLERANCE}")


if __name__ == "__main__":
    main()
