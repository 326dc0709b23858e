"""What the tests of the runner share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from tiny_model import CHAT, HEADS, LAYERS, WIDTH, WORDS, write_tiny_model
from tiny_specs import EXPERIMENT, STEER

__all__ = ["CHAT", "HEADS", "LAYERS", "WIDTH", "WORDS"]


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tiny models are several times faster without a thread pool, above all on a machine that is busy."""
    if request.node.get_closest_marker("slow"):
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 3 blocks with a tokenizer of whole words and a chat template."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama")


@pytest.fixture
def loaded(model_folder: Path) -> tuple[Any, Any]:
    """The model of `model_folder` and its tokenizer, loaded anew: a test may change both."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def write(tmp_path: Path, model_folder: Path) -> Callable[..., Path]:
    """Writes a spec with these lines after its model; beside it tensors `v`, `w` (orthogonal) and `u`."""
    tensors = {}
    for layer in range(LAYERS):
        v, w = torch.eye(WIDTH)[3] * 4, torch.eye(WIDTH)[5] * 2
        tensors |= {
            f"v.block_output[{layer}]": v,
            f"w.block_output[{layer}]": w,
            f"u.block_output[{layer}]": v + w,
        }
    safetensors.torch.save_file(tensors, tmp_path / "t.safetensors")

    def write(lines: str, name: str = "spec.yaml") -> Path:
        path = tmp_path / name
        path.write_text(f"subvene: 1\nmodel: {{name: {model_folder}, dtype: float32}}\n{lines}")
        return path

    return write


@pytest.fixture
def steer(write: Callable[..., Path]) -> Path:
    """One steering vector at block 1, on the response."""
    return write(STEER)


@pytest.fixture
def experiment(write: Callable[..., Path]) -> Path:
    """Fit, samples and contrast."""
    return write(EXPERIMENT, "experiment.yaml")
