"""The parts of the vLLM plugin that need no vLLM: what a worker fills, receipts, versions, imports."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.specifiers import SpecifierSet
from tiny_artifacts import TENSORS, llama, ref, spec_of

from subvene.runner.artifacts import artifact
from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.engines.catalogue import Catalogue
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.plan import PLAN
from subvene.runner.engines.served import serve
from subvene.runner.engines.vllm import versions
from subvene.runner.engines.vllm.front import Front, Steering
from subvene.runner.engines.vllm.settings import Settings
from subvene.runner.engines.vllm.sites import SiteEdit, install, layout_of
from subvene.runner.engines.vllm.worker import Worker
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy

ROOT = Path(__file__).parents[3]
STEER = {"kind": "steering", "layer": 1, "vector": ref("v"), "coefficient": 2.0, "positions": "response"}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("artifact") / "a"
    declared = {**STEER, "vector": {"key": "v"}}
    m = IntervenedModel.from_spec(spec_of(declared), model=llama(), tensors=TENSORS)
    m.save_pretrained(folder)
    return folder


@pytest.fixture
def front(folder: Path) -> Front:
    return Front(Settings(artifacts={"a": str(folder)}), llama().config)


def worker(folder: Path, requests: int = 4, *, skips: bool = True) -> tuple[Worker, Any]:
    """A worker over the tiny model's blocks, which return a tensor alone as `Layout(pair=False)` says."""
    model = llama()
    sizes = Anatomy.of(model).sizes
    catalogue = Catalogue([serve("a", artifact.read(folder), sizes)])
    made = Worker(catalogue, 64, requests, CPU, skips=skips)
    layout = layout_of("TransformersForCausalLM", ["Olmo2ForCausalLM"])
    made.hold(
        install(model, layout, catalogue.rooms, len(catalogue.groups), sizes, made.step, (0, 1, lambda x: x))
    )
    return made, model


def step(made: Worker, front: Front, asks: dict[str, Any], chunks: dict[str, tuple[int, int]]) -> None:
    """One step in which each request computes the positions [first, end) of its chunk."""
    starts = np.cumsum([0, *(end - first for first, end in chunks.values())])
    positions = torch.cat([torch.arange(first, end) for first, end in chunks.values()])
    made.before(
        list(chunks), lambda request: {PLAN: asks[request]} if asks[request] else None, starts, positions
    )


def test_only_the_plugin_imports_vllm() -> None:
    found = []
    for room in ("specs", "interventions", "runner"):
        for path in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [one.name for one in node.names] if isinstance(node, ast.Import) else []
                if any(name.partition(".")[0] == "vllm" for name in names):
                    found.append(path.relative_to(ROOT))
    assert found
    assert {path.parent for path in found} == {Path("runner/engines/vllm")}


def test_the_range_of_versions_is_that_of_the_extra_and_another_is_refused() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    (declared,) = (line for line in extras["vllm"] if line.startswith("vllm"))
    assert SpecifierSet(declared.removeprefix("vllm")) == SpecifierSet(versions.SUPPORTED)
    assert versions.problem("0.32.0") is None
    assert "found 0.33.0" in str(versions.problem("0.33.0"))
    assert "found 0.31.9" in str(versions.problem("0.31.9"))


def test_strengths_follow_positions_through_chunks_preemption_and_drafts(folder: Path, front: Front) -> None:
    made, _ = worker(folder)
    asks = {"r": front.admit("a=3", 5), "plain": None}
    step(made, front, asks, {"plain": (0, 3), "r": (0, 4)})
    assert not made.step.scale.any()
    step(made, front, asks, {"r": (4, 5), "plain": (3, 4)})
    assert made.step.scale[:2].sum(-1).tolist() == [3, 0]
    # A draft of two tokens; then it starts again after a preemption, its answer with the prompt.
    step(made, front, asks, {"plain": (4, 5), "r": (5, 8)})
    assert made.step.scale[:4].sum(-1).tolist() == [0, 3, 3, 3]
    step(made, front, asks, {"r": (0, 7)})
    assert made.step.scale[:8].sum(-1).tolist() == [0, 0, 0, 0, 3, 3, 3, 0]
    step(made, front, asks, {"plain": (5, 6)})
    assert not made.step.scale.any()
    assert (made.step.slot == made.tables.nobody).all()


def test_what_is_measured_survives_the_loss_of_a_slot(folder: Path, front: Front) -> None:
    made, model = worker(folder, requests=1)
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    asks = {name: front.admit("a", 5) for name in ("r", "s")}
    for name in ("r", "s", "r"):
        step(made, front, asks, {name: (0, 5)})
        model(ids)
    made.finished(["r"])
    told = made.drain([asks["r"]["key"], asks["s"]["key"]])
    values = told[asks["r"]["key"]]["sites"]["block_output[1]"]
    assert values[:2] == [2, 2]
    assert told[asks["s"]["key"]]["sites"]["block_output[1]"][:2] == [1, 1]
    # It is told once.
    assert made.drain([asks["r"]["key"]])[asks["r"]["key"]]["sites"] == {}


def test_a_request_whose_artifact_is_gone_says_so(folder: Path, front: Front) -> None:
    made, model = worker(folder)
    plan = front.admit("a", 5)
    steering = front.pending[plan["key"]]
    made.remove("a")
    step(made, front, {"r": plan}, {"r": (0, 5)})
    assert torch.equal(
        model(torch.tensor([[5, 6, 7, 8, 9]])).logits, llama()(torch.tensor([[5, 6, 7, 8, 9]])).logits
    )
    steering.tokens[0] = 1
    steering.conclude([made.drain([plan["key"]])[plan["key"]]])
    assert isinstance(steering.error, NotSteeredError)
    assert "was removed" in str(steering.error)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        ([3.0, 3.0, 1.5], None),
        ([4.0, 4.0, 1.5], None),  # one was computed twice
        ([2.0, 2.0, 1.5], "edited 2 of 3 tokens"),
        ([0.0, 0.0, 0.0], "edited 0 of 3 tokens"),
        ([3.0, 0.0, 0.0], "changed no activation"),
        ([3.0, 3.0, float("nan")], "not finite"),
    ],
)
def test_a_request_that_was_not_steered_is_an_error(
    front: Front, measured: list[float], words: str | None
) -> None:
    steering = front.pending[front.admit("a", 5)["key"]]
    steering.tokens[0] = 3
    steering.conclude([{"problem": None, "sites": {"block_output[1]": measured}}])
    assert steering.receipts is not None
    assert steering.receipts[0].edited == {"prompt": 0, "cursor": 1, "response": 2}
    assert (steering.error is None) == (words is None)
    assert words is None or words in str(steering.error)


def test_tokens_from_the_cache_are_not_counted_as_edited_here(front: Front) -> None:
    asked = [{"artifact": "a", "positions": "prompt"}]
    steering = front.pending[front.admit(asked, 9)["key"]]
    steering.tokens[0], steering.cached[0] = 2, 8
    steering.conclude([{"problem": None, "sites": {"block_output[1]": [1.0, 1.0, 0.5]}}])
    assert steering.error is None
    (receipt,) = steering.receipts or ()
    assert (receipt.edited, receipt.cached) == ({"prompt": 0, "cursor": 1, "response": 0}, 8)


def test_ranks_of_a_pipeline_tell_each_its_own_sites(front: Front) -> None:
    steering: Steering = front.pending[front.admit("a", 5)["key"]]
    steering.tokens[0] = 1
    here: Any = {"problem": None, "sites": {"block_output[1]": [1.0, 1.0, 0.25]}}
    steering.conclude([{"problem": None, "sites": {}}, here])
    assert steering.error is None
    assert steering.to_dict()["receipt"][0]["mean_relative"] == 0.25


def test_an_architecture_that_was_not_checked_is_refused() -> None:
    with pytest.raises(EngineError, match=r"CohereForCausalLM.*has not been checked"):
        layout_of("CohereForCausalLM", ["CohereForCausalLM"])
    with pytest.raises(EngineError, match="OtherForCausalLM as TransformersForCausalLM"):
        layout_of("TransformersForCausalLM", ["OtherForCausalLM"])


def test_heads_are_split_over_ranks_and_their_projections_added_up(tmp_path: Path) -> None:
    declared = {
        "kind": "low_rank_edit",
        "layer": 1,
        "write_heads": [3, 1],
        "read_heads": [0, 2],
        "rank": 2,
        "factors": {"key": "edit"},
    }
    m = IntervenedModel.from_spec(spec_of(declared), model=llama(), tensors=TENSORS)
    m.save_pretrained(tmp_path / "edit")
    sizes = Anatomy.of(llama()).sizes
    h = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))

    def sites(rank: int, ranks: int, reduce: Any) -> SiteEdit:
        catalogue = Catalogue([serve("edit", artifact.read(tmp_path / "edit"), sizes)])
        made = Worker(catalogue, 8, 2, CPU, skips=False)
        made.step.scale[:3, 1], made.step.slot[:3] = 0.5, 1
        layout = layout_of("TransformersForCausalLM", ["Olmo2ForCausalLM"])
        model = llama()
        for block in model.model.layers:
            block.self_attn.o_proj.input_size_per_partition = 32 // ranks
        found = install(
            model, layout, catalogue.rooms, len(catalogue.groups), sizes, made.step, (rank, ranks, reduce)
        )
        made.hold(found)
        return found["attention_heads[1]"]

    whole = sites(0, 1, None)
    # The first run notes what each rank would send; the second adds them up.
    sent: list[list[torch.Tensor]] = [[], []]
    for rank in (0, 1):
        sites(rank, 2, lambda x, rank=rank: sent[rank].append(x) or x)(h[:, 16 * rank : 16 * rank + 16])
    first = [a + b for a, b in zip(sent[0][:1], sent[1][:1], strict=True)]
    parts = [
        sites(rank, 2, lambda x, rank=rank: first[0] if x.shape == first[0].shape else x)(
            h[:, 16 * rank : 16 * rank + 16]
        )
        for rank in (0, 1)
    ]
    torch.testing.assert_close(torch.cat(parts, -1), whole(h))
