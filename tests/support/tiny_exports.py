"""What the tests of exports share: tiny models with interventions of every kind on them."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from architectures import HEADS, LAYERS, WIDTH, Architecture

from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

IDS = torch.tensor([[11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 0, 0]])
MASK = (IDS != 0).long()

HEAD = {"kind": "head_direction", "directions": {"key": "iti"}, "strength": 3.0}
EDIT = {"kind": "low_rank_edit", "layer": 0, "write_heads": [1, 3], "factors": {"key": "edit"}}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tensors(arch: Architecture) -> dict[str, torch.Tensor]:
    found = {f"v.{site}[{LAYERS - 1}]": draw(WIDTH, seed=3) for site in ("block_output", "mlp_output")}
    found |= {
        f"v.attention_output[{LAYERS - 1}]": draw(WIDTH, seed=4),
        f"v.attention_heads[{LAYERS - 1}]": draw(arch.width("attention_heads"), seed=5),
    }
    for layer in range(LAYERS):
        name = f"iti.attention_heads[{layer}]"
        found |= {
            name: draw(HEADS, arch.head_dim, seed=layer),
            f"{name}.sigma": draw(HEADS, seed=layer + 9).abs(),
            f"{name}.probe_weight": draw(HEADS, arch.head_dim, seed=layer + 20),
            f"{name}.probe_bias": draw(HEADS, seed=layer + 30),
            f"edit.attention_heads[{layer}].a": draw(1, arch.width("attention_heads")),
            f"edit.attention_heads[{layer}].b": draw(1, arch.width("attention_heads"), seed=1),
            f"two.attention_heads[{layer}].a": draw(2, arch.width("attention_heads"), seed=layer + 40),
            f"two.attention_heads[{layer}].b": draw(2, arch.width("attention_heads"), seed=layer + 50),
        }
    return found


def steer(site: str = "block_output", **fields: Any) -> dict[str, Any]:
    declared = {"kind": "steering", "site": site, "layer": LAYERS - 1, "vector": {"key": "v"}}
    return declared | {"coefficient": 2.0} | fields


def intervened(arch: Architecture, *declared: dict[str, Any], model: Any = None, **kwargs: Any) -> Any:
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": f"tiny/{arch.name}"}, "interventions": list(declared)}
    )
    return IntervenedModel.from_spec(spec, model=model or arch.fresh(), tensors=tensors(arch), **kwargs)


@torch.no_grad()
def logits(model: Any, **kwargs: Any) -> torch.Tensor:
    return model(input_ids=IDS, attention_mask=MASK, **kwargs).logits[MASK.bool()].float()


def untouched(m: IntervenedModel) -> torch.Tensor:
    with m.disabled():
        return logits(m)


def ablate(site: str, **fields: Any) -> dict[str, Any]:
    declared = {"kind": "ablation", "site": site, "layer": LAYERS - 1, "direction": {"key": "v"}}
    return declared | fields


class _Loud(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


@contextlib.contextmanager
def silence(name: str = "transformers") -> Iterator[None]:
    """Within the block a warning is an error, and what the library logs may not sound like one."""
    logger, loud = logging.getLogger(name), _Loud()
    level = logger.level
    logger.addHandler(loud)
    logger.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            yield
    finally:
        logger.removeHandler(loud)
        logger.setLevel(level)
    suspicious = ("newly initialized", "unexpected", "missing", "mismatch", "not used", "not initialized")
    told = [line for line in loud.said if any(word in line.lower() for word in suspicious)]
    assert not told, told


def load_in_silence(folder: Path, auto: Any, dtype: Any = torch.float32) -> Any:
    """The model as transformers alone loads it: a warning is an error, and its log is read."""
    with silence():
        model, info = auto.from_pretrained(
            folder, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
    assert not any(info.values()), info
    return model.eval()
