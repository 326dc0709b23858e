"""LoRA adapters on the attention's output projection, as low-rank edits of that projection's input.

An adapter adds s·B·A·o to W·o. A low-rank edit changes o by Σ_r ⟨a_r, o⟩·b_r, so the output changes by
W·b_r·⟨a_r, o⟩: the two agree if a_r is row r of A and W·b_r is column r of s·B. That is a linear system for
b_r: solvable exactly where the columns of s·B lie in the range of W, and else as well as least squares can.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import JsonValue

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer, identifier
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.files.json_value import Json
from subvene.runner.models.anatomy import Anatomy, AnatomyError
from subvene.specs import LowRankEditSpec, TensorRef, tensor_name

_SITE: Final = "attention_heads"
_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<part>[AB])(?:\.default)?\.weight")
#: ‖W·B′·A − ΔW‖ / ‖ΔW‖ above this is refused: float32 leaves about 1e-6 where W is well conditioned.
THRESHOLD = 1e-3

# What these settings say is in the tensors already, or matters in training only.
_HARMLESS = frozenset(
    {
        "task_type", "peft_type", "auto_mapping", "peft_version", "base_model_name_or_path",
        "revision", "inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha",
        "lora_dropout", "use_rslora", "fan_in_fan_out", "bias", "init_lora_weights",
        "layers_to_transform", "layers_pattern", "megatron_core", "megatron_config", "eva_config",
        "qalora_group_size", "runtime_config", "ensure_weight_tying",
    }
)  # fmt: skip
# Initialisations that leave the base model's weights alone.
_OWN_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
_REASONS = {
    "use_dora": "DoRA rescales the whole weight, which is no low-rank edit",
    "modules_to_save": "it replaces whole modules",
    "rank_pattern": "modules have ranks, and so scales, of their own",
    "alpha_pattern": "modules have scales of their own",
    "lora_bias": "it has a bias beside the low-rank factors",
    "trainable_token_indices": "it changes token embeddings",
    "layer_replication": "it repeats blocks of the model",
}


@dataclass
class _Pair:
    module: str
    a: torch.Tensor | None = None
    b: torch.Tensor | None = None


class Lora(Importer):
    """A peft adapter folder: `adapter_config.json` and `adapter_model.safetensors`."""

    name = "peft"
    says = "a peft LoRA adapter"
    takes = frozenset({"strength", "accept_residual"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        return source.is_folder and _CONFIG in source.names

    def read(self) -> None:
        config = self.source.json(_CONFIG)
        self.base = config.get("base_model_name_or_path")
        self._check_config(config)
        alpha, rank = (self._number(config, name) for name in ("lora_alpha", "r"))
        self.scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
        self.rank = int(rank)
        if _WEIGHTS not in self.source.names:
            if "adapter_model.bin" in self.source.names:
                raise self.refuse(
                    "a pickle, which is not read; save the adapter as safetensors, where you trust it: "
                    "PeftModel.from_pretrained(model, folder).save_pretrained(new_folder)",
                    "adapter_model.bin",
                )
            raise self.refuse(f"{_WEIGHTS} is missing")
        self.pairs = self._pairs(self.source.safetensors(_WEIGHTS))

    def _check_config(self, config: Mapping[str, JsonValue]) -> None:
        if str(config.get("peft_type")).upper() != "LORA":
            raise self.refuse(f"peft_type {config.get('peft_type')!r}, expected LORA", _CONFIG)
        for name, value in config.items():
            if name not in _HARMLESS and value not in (None, False, [], {}):
                reason = _REASONS.get(name, "what it does is not known here")
                raise self.refuse(f"{name} is set: {reason}", _CONFIG)
        if config.get("bias", "none") != "none":
            raise self.refuse(
                f"bias {config['bias']!r}: it changes biases, which no low-rank edit does", _CONFIG
            )
        if config.get("use_rslora") not in (None, True, False):
            raise self.refuse(f"use_rslora is {config['use_rslora']!r}, expected true or false", _CONFIG)
        start = config.get("init_lora_weights", True)
        if start not in _OWN_BASE:
            raise self.refuse(
                f"init_lora_weights {start!r}: the adapter belongs to a base model that its initialisation "
                "changed; convert it first (peft: path_initial_model_for_weight_conversion)",
                _CONFIG,
            )

    def _number(self, config: Mapping[str, JsonValue], name: str) -> float:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.refuse(f"{name} is {value!r}, expected a number", _CONFIG)
        if value == 0:
            raise self.refuse(f"{name} is 0, so the adapter changes nothing", _CONFIG)
        if name == "r" and (value != int(value) or not 1 <= value <= 2**16):
            raise self.refuse(f"r is {value!r}, expected an integer >= 1", _CONFIG)
        return float(value)

    def _pairs(self, tensors: dict[str, torch.Tensor]) -> list[_Pair]:
        pairs: dict[str, _Pair] = {}
        for name, tensor in sorted(tensors.items()):
            match = _NAME.fullmatch(name)
            if match is None:
                raise self.refuse(f"tensor {name!r} is no LoRA factor", _WEIGHTS)
            pair = pairs.setdefault(match["module"], _Pair(match["module"]))
            tensor = self.finite(tensor, f"tensor {name!r}", _WEIGHTS)
            if tensor.ndim != 2 or tensor.shape[0 if match["part"] == "A" else 1] != self.rank:
                raise self.refuse(
                    f"tensor {name!r} has shape {list(tensor.shape)}, expected rank {self.rank} as r says",
                    _WEIGHTS,
                )
            setattr(pair, match["part"].lower(), tensor)
        if not pairs:
            raise self.refuse("holds no tensors", _WEIGHTS)
        if half := next((p.module for p in pairs.values() if p.a is None or p.b is None), None):
            raise self.refuse(f"{half} has one of its two factors only", _WEIGHTS)
        return list(pairs.values())

    def check(self, sizes: Sizes) -> None:
        for pair in self.pairs:
            if pair.b is not None and pair.b.shape[0] != sizes.width:
                raise self.refuse(
                    f"{pair.module}: lora_B has {pair.b.shape[0]} rows, and this model's width is "
                    f"{sizes.width}; it is for another model, or another module than the output projection",
                    _WEIGHTS,
                )

    def onto(self, anatomy: Anatomy) -> Imported:
        modules = _output_projections(anatomy)
        if other := [pair.module for pair in self.pairs if pair.module not in modules]:
            raise self.refuse(
                f"it changes {', '.join(other[:4])}{', …' if len(other) > 4 else ''}; only an adapter of the "
                f"attention's output projections ({next(iter(modules), 'this model has none')}, …) is a "
                "low-rank edit at a site",
                _WEIGHTS,
            )
        tensors: dict[str, torch.Tensor] = {}
        residuals: dict[int, float] = {}
        without: list[int] = []
        for pair in self.pairs:
            layer = modules[pair.module]
            a, b = self._factors(pair)
            if not (b.double() @ a.double()).any():
                without.append(layer)
                continue
            writers, residuals[layer] = self._solve(anatomy, layer, a, b)
            tensors[tensor_name(self.key, _SITE, layer, "a")] = a
            tensors[tensor_name(self.key, _SITE, layer, "b")] = writers
        if not tensors:
            raise self.refuse("it changes nothing: B·A is zero at every layer", _WEIGHTS)
        worst = max(residuals, key=lambda layer: residuals[layer])
        if residuals[worst] > THRESHOLD and not self.options.accept_residual:
            raise self.refuse(
                f"the update of layer {worst} does not factor through the output projection: "
                f"{residuals[worst]:.1%} of it is out of reach (‖W·B′·A − ΔW‖/‖ΔW‖ is "
                f"{residuals[worst]:.3g}; accepted: {THRESHOLD:g}); --accept-residual takes the nearest edit"
            )
        strength = 1.0 if self.options.strength is None else self.options.strength
        edit = LowRankEditSpec(
            name=identifier(self.key), factors=TensorRef(key=self.key), strength=strength, positions="all"
        )
        statements = [
            f"lora_A is `a`; `b` solves W·b = {self.scale:g}·lora_B for the layer's output projection W",
            f"rank {self.rank} in {len(residuals)} layers; largest residual ‖W·B′·A − ΔW‖/‖ΔW‖ "
            f"{residuals[worst]:.2g}, at layer {worst}",
            f"strength {strength:g} at positions 'all', as an adapter acts",
        ]
        if without:
            statements.append(
                f"left out, since B·A is zero there: layers {', '.join(map(str, sorted(without)))}"
            )
        if self.base:
            statements.append(f"the adapter names the base model {str(self.base)[:200]!r}")
        facts: dict[str, Json] = {
            "rank": self.rank,
            "scale": self.scale,
            "residual_by_layer": {str(layer): residuals[layer] for layer in sorted(residuals)},
        }
        return Imported((edit,), tensors, statements, facts)

    def _factors(self, pair: _Pair) -> tuple[torch.Tensor, torch.Tensor]:
        if pair.a is None or pair.b is None:  # `read` has refused such an adapter
            raise self.refuse(f"{pair.module} has one of its two factors only", _WEIGHTS)
        return pair.a, pair.b

    def _solve(
        self, anatomy: Anatomy, layer: int, a: torch.Tensor, b: torch.Tensor
    ) -> tuple[torch.Tensor, float]:
        """The writing factors [rank, n_heads*head_dim], and what of the update they miss, as a fraction."""
        projection: Any = anatomy.output_projection(layer)
        weight = projection.weight.detach().cpu().double()
        # GPT-2's Conv1D stores its weight transposed; an adapter's factors are the same either way.
        weight = weight if type(projection).__name__ != "Conv1D" else weight.T
        if a.shape[1] != weight.shape[1] or b.shape[0] != weight.shape[0]:
            raise self.refuse(
                f"layer {layer}: the factors are for a projection {list((b.shape[0], a.shape[1]))}, and this "
                f"model's is {list(weight.shape)}",
                _WEIGHTS,
            )
        wanted = self.scale * b.double()
        # gelsd: the solution of least norm, also where W has not full rank.
        solved = torch.linalg.lstsq(weight, wanted, driver="gelsd").solution
        writers = solved.T.float().contiguous()
        if not torch.isfinite(writers).all():
            raise self.refuse(f"layer {layer}: its update is too large for float32", _WEIGHTS)
        # Of what is stored, rounded to float32, not of what was solved.
        missed = (weight @ writers.T.double() - wanted) @ a.double()
        update = wanted @ a.double()
        return writers, float(missed.norm() / update.norm())


def _output_projections(anatomy: Anatomy) -> dict[str, int]:
    """Dotted path of each block's output projection → layer; blocks without attention have none."""
    projections = {}
    names = {id(module): name for name, module in anatomy.model.named_modules()}
    for layer in range(anatomy.sizes.n_layers):
        try:
            projections[names[id(anatomy.output_projection(layer))]] = layer
        except AnatomyError:
            continue
    return projections
