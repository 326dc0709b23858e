"""Python of the README and the docs runs as it stands, on a tiny model in place of the one that it names."""

from __future__ import annotations

import ast
import importlib
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import pyvene
import torch
import transformers
from checkout import ROOT
from doc_blocks import Block, blocks
from tiny_model import write_tiny_model

from subvene import IntervenedModel, fit

PYTHON = blocks("python")
ELSEWHERE = {
    "docs/gates.md": "tests/runner/edits/test_gates.py",
    "docs/localized-edits.md": "tests/runner/recipes/test_localized_edit.py",
    "docs/pyvene.md": "tests/runner/artifacts/test_stock.py",
    "docs/results-format.md": "tests/runner/experiments/test_results.py",
    "docs/serving.md": "tests/vllm/test_equal.py",
    "docs/sharing.md": "tests/runner/artifacts/hub/test_push_and_pull.py",
    "docs/truthfulqa.md": "tests/runner/data/truthfulqa/test_data.py",
}
"""What needs a server, vLLM, a whole run or a download runs in these tests; its names are looked up here."""
INSTEAD = {
    r'"(Qwen/[\w.-]+|package:[\w/.-]+)"': '"model"',
    r"layer=\d+": "layer=1",
    r"layers=\(19,\)": "layers=(1,)",
    r"layers=\[12, 16\]": "layers=[0, 1]",
    r"\[18\]": "[1]",
    r"max_new_tokens=\d+": "max_new_tokens=4",
    r"prompt_lengths=\[12, 9\]": "prompt_lengths=[2, 2]",
}
"""What is too large for a test: a model and its numbers."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the blocks name: a model, artifacts, a spec, others' files."""
    place = tmp_path_factory.mktemp("docs")
    model = str(write_tiny_model(place / "model"))
    edit = {"kind": "low_rank_edit", "name": "edit", "layer": 1, "write_heads": [0], "seed": 1}
    IntervenedModel.from_spec(_spec(model, edit)).save_pretrained(place / "my-artifact")
    pairs = [("i am glad", "i am sad"), ("very good day", "very bad day")]
    cheerful = fit("mean_difference", model, pairs=pairs, key="cheerful", layer=1, coefficient=1.0)
    cheerful.save_pretrained(place / "cheerful")
    vector = cheerful.tensors["cheerful.block_output[1]"]
    torch.save(torch.stack([vector] * 4), place / "evil_response_avg_diff.pt")
    (place / "heads.pkl").write_bytes(pickle.dumps(([(0, 1)], numpy.ones((4, 8)))))
    (place / "iti").mkdir()
    return place


def _spec(model: str, *interventions: dict[str, Any]) -> dict[str, Any]:
    return {"subvene": 1, "model": {"name": model}, "interventions": list(interventions)}


def _plain() -> dict[str, Any]:
    return {}


def _loaded() -> dict[str, Any]:
    m = IntervenedModel.from_pretrained("cheerful")
    ids = torch.tensor([[8, 9, 10], [11, 12, 13]])
    return {
        "m": m,
        "IntervenedModel": IntervenedModel,
        "pipeline": transformers.pipeline,
        "baked": m.model,
        "tokenizer": m.tokenizer,
        "texts": ["the rain is bad", "hello world"],
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }


def _trained() -> dict[str, Any]:
    m = IntervenedModel.from_pretrained("my-artifact")
    ids = torch.tensor([[8, 9, 10]])
    return {
        "m": m,
        "torch": torch,
        "ids": ids,
        "lengths": [2],
        "loss_of": lambda logits: logits.square().mean(),
    }


def _bert() -> dict[str, Any]:
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    zero = {"kind": "pyvene", "class": "ZeroIntervention", "component": "encoder.layer[0].output.output"}
    Path("edit.yaml").write_text(str(_spec("bert", zero)), "utf-8")
    ids = torch.tensor([[1, 2, 3]])
    bert = transformers.BertModel(config).eval()
    return {"IntervenedModel": IntervenedModel, "bert": bert, "ids": ids, "mask": torch.ones_like(ids)}


def _stock() -> dict[str, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained("model")
    ids = torch.tensor([[8, 9, 10]])
    return {
        "pyvene": pyvene,
        "folder": "cheerful",
        "model": model,
        "ids": ids,
        "mask": torch.ones_like(ids).bool(),
    }


def _steered() -> dict[str, Any]:
    vector = {
        "kind": "steering",
        "name": "sycophantic",
        "layer": 1,
        "coefficient": 2.0,
        "positions": "response",
    }
    stored = {"file": "cheerful/tensors.safetensors", "key": "cheerful"}
    Path("steer.yaml").write_text(str(_spec("model", vector | {"vector": stored})), "utf-8")
    return _loaded()


GIVEN: dict[str, Callable[[], dict[str, Any]]] = {
    "docs/divergence.md": _loaded,
    "docs/experiments.md": _loaded,
    "docs/positions.md": _loaded,
    "docs/spec.md": _steered,
}
"""The names that a page's blocks take as given."""


def given(block: Block) -> dict[str, Any]:
    if block.page == "docs/interventions.md":
        return _bert() if "bert" in block.code else _trained()
    if "pyvene.IntervenableModel" in block.code:
        return _stock()
    return GIVEN.get(block.page, _plain)() | {"transformers": transformers}


@pytest.mark.parametrize("block", [b for b in PYTHON if b.page not in ELSEWHERE], ids=lambda block: block.id)
def test_it_runs(block: Block, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    code = block.code
    for pattern, instead in INSTEAD.items():
        code = re.sub(pattern, instead, code)
    exec(compile(code, block.id, "exec"), given(block))


@pytest.mark.parametrize("block", [b for b in PYTHON if b.page in ELSEWHERE], ids=lambda block: block.id)
def test_names_of_what_runs_elsewhere_are_there(block: Block) -> None:
    assert (ROOT / ELSEWHERE[block.page]).is_file()
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("subvene"):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
