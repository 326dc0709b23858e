"""Activations that vLLM's workers collect, without vLLM: chunks, preemption, neighbours, ranks, recipes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_artifacts import llama

from subvene.runner.data.span import Text
from subvene.runner.engines.collecting import Collect, Collected, Sums, joined
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.engines.plan import PLAN
from subvene.runner.engines.vllm.front import Front
from subvene.runner.engines.vllm.readers import Readers
from subvene.runner.engines.vllm.settings import Settings
from subvene.runner.engines.vllm.sites import layout_of
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import pooled, span_means, weighted_sums
from subvene.runner.passes.elsewhere import ReadElsewhere

CPU = torch.device("cpu")
SITES = ("block_output[1]", "attention_heads[0]", "mlp_output[1]", "attention_output[1]")
IDS = (5, 6, 7, 8, 9, 10, 11)


def readers(model: Any, requests: int = 4, split: tuple[int, int, Any] = (0, 1, None)) -> Readers:
    made = Readers(64, requests, CPU, skips=True)
    for block in model.model.layers:  # as vLLM's projections say it
        block.self_attn.o_proj.input_size_per_partition = 32 // split[1]
    layout = layout_of("TransformersForCausalLM", ["Olmo2ForCausalLM"])
    made.install(model, layout, SITES, Anatomy.of(llama()).sizes, split)
    return made


def front() -> Front:
    return Front(Settings(collect=SITES), llama().config)


def admitted(at: Front, start: int, end: int) -> Any:
    collect = {"sites": list(SITES), "start": start, "end": end}
    return at.admit({"artifacts": [], "collect": collect}, len(IDS), ends=True)


def step(made: Readers, asks: dict[str, Any], chunks: dict[str, tuple[int, int]]) -> None:
    starts = np.cumsum([0, *(end - first for first, end in chunks.values())])
    computed = [first for first, _ in chunks.values()]
    extra = lambda name: {PLAN: asks[name]} if asks[name] else None  # noqa: E731
    made.before(list(chunks), extra, starts, computed)


def collected(made: Readers, at: Front, plan: Any) -> dict[str, Collected]:
    steering = at.pending[plan["key"]]
    told = made.drain([plan["key"]])[plan["key"]]
    steering.conclude([{"problem": None, "sites": {}, "sums": told}])
    assert steering.collected is not None
    return steering.collected


def expected(start: int, end: int) -> dict[str, tuple[torch.Tensor, float]]:
    found, anatomy = {}, Anatomy.of(llama())
    for place in SITES:
        site, layer = place[:-3], int(place[-2])
        means = span_means(anatomy, site, [layer], [Text(IDS, start, end)], pad_id=0, batch_size=1)
        found[place] = (means.vectors[layer][0], float(means.norms[layer][0]))
    return found


def compare(found: dict[str, Collected], start: int, end: int) -> None:
    for place, (mean, norm) in expected(start, end).items():
        torch.testing.assert_close(torch.from_numpy(found[place].mean.copy()), mean)
        assert found[place].norm == pytest.approx(norm, rel=1e-5)


def test_a_text_is_read_whole_beside_others() -> None:
    model = llama()
    made, at = readers(model), front()
    asks = {"r": admitted(at, 2, 6), "plain": None, "s": admitted(at, 6, 7)}
    step(made, asks, {"plain": (0, 7), "r": (0, 7), "s": (0, 7)})
    # A row for each text; a neighbour whose activations are not finite spoils nobody's.
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor([IDS]))
        model(inputs_embeds=torch.cat([torch.full_like(embedded, float("nan")), embedded, embedded]))
    made.finished(["r"])
    compare(collected(made, at, asks["r"]), 2, 6)
    compare(collected(made, at, asks["s"]), 6, 7)
    assert asks["r"]["key"] not in made.drain([asks["r"]["key"]])  # it is told once
    step(made, asks, {"plain": (7, 8)})
    assert not made.step.is_reading
    assert (made.step.row == made.step.rows).all()


def test_chunks_and_tokens_that_are_computed_again_count_once() -> None:
    model = llama()
    made, at = readers(model, requests=1), front()
    asks = {"r": admitted(at, 1, 7), "s": admitted(at, 0, 2)}
    # In chunks, then from the start again after a preemption in which another text had its row.
    for name, (first, end) in (("r", (0, 3)), ("s", (0, 2)), ("r", (0, 4)), ("r", (4, 7))):
        step(made, asks, {name: (first, end)})
        with torch.no_grad():  # the whole text up to here, of which the chunk's tokens are the last
            tail = torch.tensor([IDS[:end]])
            run_chunk(model, made, tail, end - first)
    compare(collected(made, at, asks["r"]), 1, 7)
    compare(collected(made, at, asks["s"]), 0, 2)


def run_chunk(model: Any, made: Readers, ids: torch.Tensor, n: int) -> None:
    """Pass a text of which the last n tokens are the step's: the others' rows stand before them."""
    row, before = made.step.row, ids.shape[1] - n
    row.copy_(torch.cat([torch.full((before,), made.step.rows), row[: len(row) - before]]))
    model(ids)


def test_heads_of_ranks_are_put_together() -> None:
    parts: list[Sums] = []
    sent: list[list[torch.Tensor]] = [[], []]
    h = torch.randn(len(IDS), 32, generator=torch.Generator().manual_seed(0))
    squares = h.square().sum(-1, keepdim=True)
    at = front()
    plan = admitted(at, 2, 6)
    for rank in (0, 1):
        made = readers(llama(), split=(rank, 2, lambda x, rank=rank: sent[rank].append(x) or squares))
        step(made, {"r": plan}, {"r": (0, 7)})
        made.sites["attention_heads[0]"](h[:, 16 * rank : 16 * rank + 16])
        for name in ("block_output[1]", "mlp_output[1]", "attention_output[1]"):
            made.sites[name](h[:, :24])
        parts.append(made.drain([plan["key"]])[plan["key"]])
    torch.testing.assert_close(sent[0][0] + sent[1][0], squares)
    collect = Collect(sites=SITES, start=2, end=6)
    for name, one in joined(collect, parts).items():
        there = h[2:6, : len(one.mean)]
        assert len(one.mean) == (32 if name.startswith("attention_heads") else 24)
        torch.testing.assert_close(torch.from_numpy(one.mean.copy()), there.mean(0))
        assert one.norm == pytest.approx(float(there.norm(dim=-1).mean()), rel=1e-5)


def test_a_token_that_was_not_seen_is_an_error() -> None:
    told: Sums = {
        "tokens": {"block_output[1]": 3},
        "sums": {"block_output[1]": np.zeros(33, "<f4").tobytes()},
    }
    collect = Collect(sites=("block_output[1]",), start=0, end=4)
    with pytest.raises(EngineError, match=r"expected 4 tokens of the span, found \[3\]"):
        joined(collect, [told])
    with pytest.raises(EngineError, match="found none"):
        joined(collect, [])


@pytest.mark.parametrize(
    ("asked", "ends", "words"),
    [
        ({"sites": ["block_output[1]"], "start": 3, "end": 3}, True, "expected a span within the 7 tokens"),
        ({"sites": ["block_output[0]"], "start": 0, "end": 3}, True, "was not started to collect at"),
        ({"sites": ["block_output[1]"], "start": 0, "end": 3}, False, "`max_tokens` and `n` 1"),
        ({"sites": [], "start": 0, "end": 3}, True, r"subvene.collect.sites"),
    ],
)
def test_what_cannot_be_collected_is_refused_at_admission(asked: Any, ends: bool, words: str) -> None:
    at = front()
    with pytest.raises(RequestError, match=words):
        at.admit({"artifacts": [], "collect": asked}, len(IDS), ends=ends)
    assert not at.pending


@pytest.mark.parametrize("place", ["block_output", "block_output[9]", "mlp_neurons[0]"])
def test_a_site_that_is_none_is_refused_when_the_engine_starts(place: str) -> None:
    with pytest.raises(EngineError, match=r"collect: expected SITE\[LAYER\]"):
        Settings(collect=(place,)).load(llama().config)


def test_recipes_are_given_what_they_would_have_read(tmp_path: Path) -> None:
    anatomy = Anatomy.of(llama())
    texts = [Text(IDS, 2, 6), Text(IDS[:4], 1, 4), Text(IDS[2:], 0, 5)]
    how: dict[str, Any] = {"pad_id": 0, "batch_size": 2}

    def read(site: str, layers: Sequence[int], given: Sequence[Text], /) -> Any:
        return span_means(anatomy, site, layers, given, **how)

    elsewhere = ReadElsewhere(anatomy.model, anatomy.blocks_path, anatomy.sizes, read)
    weights = [0.5, -1.0, 0.5]
    here, there = (
        weighted_sums(one, "block_output", [0, 1], texts, weights, **how) for one in (anatomy, elsewhere)
    )
    for layer in (0, 1):
        torch.testing.assert_close(there.vectors[layer], here.vectors[layer])
        assert there.scales[layer] == pytest.approx(here.scales[layer], rel=1e-5)
    here_means, there_means = (
        pooled(one, "mlp_output", [1], texts, "mean", **how) for one in (anatomy, elsewhere)
    )
    torch.testing.assert_close(there_means[1], here_means[1])
    # Nothing is read in this process in its place.
    with pytest.raises(RuntimeError, match="an engine reads this model"):
        span_means(elsewhere, "block_output", [1], texts, **how)
