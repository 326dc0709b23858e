"""Persona vectors: a `.pt` file with one row per entry of `hidden_states` (Chen et al. 2025)."""

from __future__ import annotations

from typing import Any, Final

import torch

from subvene.interventions import Sizes
from subvene.runner.anatomy import Anatomy
from subvene.runner.imports.base import Imported, Importer, identifier
from subvene.runner.imports.opened import Opened
from subvene.specs import SteeringSpec, TensorRef, tensor_name

_SITE: Final = "block_output"


class PersonaVector(Importer):
    """A tensor [n_layers + 1, width]; row L is the output of block L − 1, and row 0 the embeddings."""

    name = "persona-vector"
    says = "a persona vector, a .pt file of one tensor [n_layers + 1, width]"
    takes = frozenset({"layers", "strength", "positions"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        if source.is_folder or source.path.suffix in (".npz", ".safetensors"):
            return False
        # torch.save writes a zip archive, and before PyTorch 1.6 a pickle; what either holds is seen later.
        return source.head(count=4) == b"PK\x03\x04" or source.path.suffix in (".pt", ".pth")

    def read(self) -> None:
        found: Any = self.source.torch()
        if not isinstance(found, torch.Tensor):
            raise self.refuse(f"expected one tensor, found {type(found).__name__}; save the tensor alone")
        if found.ndim != 2:
            raise self.refuse(
                f"has shape {list(found.shape)}, expected [n_layers + 1, width], a row per entry of "
                "`hidden_states`; a vector of one layer does not say which, so write a spec for it instead"
            )
        if not self.options.layers:
            last = len(found) - 2
            raise self.refuse(
                f"has {len(found)} rows and one of them is steered along; say which block with --layer, "
                f"0 to {last} (--layer {last // 2} reads row {last // 2 + 1})"
            )
        self.rows = found

    def check(self, sizes: Sizes) -> None:
        shape, expected = list(self.rows.shape), [sizes.n_layers + 1, sizes.width]
        if shape != expected:
            without = (
                ", one row short: the embeddings' row, which comes first, is not there"
                if shape
                == [
                    sizes.n_layers,
                    sizes.width,
                ]
                else ""
            )
            raise self.refuse(
                f"has shape {shape}, expected {expected} for this model (the embeddings and "
                f"{sizes.n_layers} blocks){without}"
            )
        self.check_layers(self.options.layers, sizes)

    def onto(self, anatomy: Anatomy) -> Imported:
        rows = self.finite(self.rows, "the tensor")
        layers = self.options.layers
        if empty := [layer for layer in layers if not rows[layer + 1].any()]:
            raise self.refuse(f"row {empty[0] + 1}, {_SITE}[{empty[0]}], is zero: there is nothing to add")
        # Every layer is kept, so that another one can be chosen without the file.
        tensors = {tensor_name(self.key, _SITE, i): rows[i + 1] for i in range(anatomy.sizes.n_layers)}
        positions = self.options.positions or "response"
        strength = 1.0 if self.options.strength is None else self.options.strength
        interventions = tuple(
            SteeringSpec(
                name=identifier(self.key if len(layers) == 1 else f"{self.key}_{layer}"),
                site=_SITE,
                layer=layer,
                vector=TensorRef(key=self.key),
                coefficient=strength,
                positions=positions,
            )
            for layer in layers
        )
        statements = [f"row {layer + 1} of the file is {_SITE}[{layer}]" for layer in layers]
        if (last := anatomy.sizes.n_layers - 1) in layers:
            statements.append(
                f"row {last + 1} was read after the model's final norm, if the file comes from "
                f"transformers' hidden_states, and {_SITE}[{last}] is before it: better choose another layer"
            )
        statements += [
            "row 0, the embeddings, is left out: it is the output of no block",
            f"norms are kept; coefficient {strength:g} at positions {positions!r}",
        ]
        return Imported(
            interventions, tensors, statements, {"stored_as": str(self.rows.dtype).removeprefix("torch.")}
        )
