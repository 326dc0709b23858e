"""The examples do on the real model what their comments say; `quickstart.yaml` is run by tests/runner/cli."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from short_examples import short_examples
from tracing_by_hand import patched_by_hand, states_by_hand

from subvene.runner import fit
from subvene.runner.data.facts import fact_tokens
from subvene.runner.experiments.tracing.entry import key_of
from subvene.runner.measures.tracing import corrupted, embedding_deviation
from subvene.specs import CausalTracingSpec, load_spec, resolve_facts

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_formal_caps_the_projection_from_below(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = smollm2
    m = fit(short_examples(tmp_path / "examples", 4) / "formal.yaml", model=model, tokenizer=tokenizer)
    prompts = ["How do I cook rice?"] * 2
    baseline, capped = m.generate(prompts, strengths=[0.0, 1.0], max_new_tokens=24, do_sample=False)
    assert capped != baseline
    assert m.receipt is not None
    receipt = m.receipt["formal"]
    assert receipt.rows_edited == 1
    assert receipt.changed > 0
    with m.disabled():
        assert m.generate(prompts[:1], max_new_tokens=24, do_sample=False) == [baseline]

    # What the next block receives, seen by a hook of our own, is nowhere below the floor of the spec.
    declared = m.spec.interventions[0]
    direction = m.tensors[f"formal.block_output[{declared.layer}]"]
    seen: list[torch.Tensor] = []
    block = model.model.layers[declared.layer + 1]
    handle = block.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        with torch.no_grad():
            m(torch.tensor([tokenizer(capped)["input_ids"]]), prompt_lengths=[1])
    finally:
        handle.remove()
    projections = seen[0][0] @ (direction / direction.norm())
    assert projections.min() >= declared.min - 1e-2


@pytest.mark.slow
def test_stored_cells_of_causal_tracing_are_what_plain_hooks_give(smollm2: tuple[Any, Any]) -> None:
    model, tokenizer = smollm2
    spec = load_spec(EXAMPLES / "causal-tracing.yaml")
    declared = spec.evaluate[0]  # type: ignore[union-attr]
    assert isinstance(declared, CausalTracingSpec)
    facts = [
        fact_tokens(tokenizer, fact, "fact", foil=True)
        for fact in resolve_facts(declared.facts, EXAMPLES).facts
    ]
    deviation = embedding_deviation(model, facts)
    stored = EXAMPLES.parent / "docs" / "results" / "causal-tracing-smollm2" / "cells.csv.gz"
    with gzip.open(stored, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    # One cell of each site, of another fact, layer and token each.
    for i, site in enumerate(declared.sites):
        fact = facts[7 * i]
        place = {"fact": key_of(fact.fact), "site": site.site, "layer": str(5 + 8 * i)}
        place["token"] = str(fact.end - 1 + i)
        row = next(row for row in rows if place.items() <= row.items())
        clean = states_by_hand(model, fact.ids, [site.site])
        noise = corrupted(model, fact, declared, deviation, seed=0).noise
        assert noise is not None
        low, high = 5 + 8 * i - site.window // 2, 5 + 8 * i - (-site.window // 2)
        found = [
            patched_by_hand(
                model,
                fact.ids,
                clean,
                site.site,
                range(low, high),
                [fact.end - 1 + i],
                noise=draw.unsqueeze(0),
            )
            for draw in noise
        ]
        p = sum(float(log_p[fact.answer].exp()) for log_p in found) / len(found)
        assert float(row["probability"]) == pytest.approx(p, abs=1e-5)
