"""Persona vectors: a `.pt` file with one row per entry of `hidden_states` (Chen et al. 2025)."""

from __future__ import annotations

from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer, Rows
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.exchange.imports.steered import MEANING, SITE, block_of, row_of, steered
from subvene.runner.models.anatomy import Anatomy


class PersonaVector(Importer):
    """A tensor [n_layers + 1, width]; row L is the output of block L − 1, and row 0 the embeddings.

    With `--rows inputs` or `--rows outputs`, a tensor [n_layers, width] whose row L is that of block L.
    """

    name = "persona-vector"
    says = "a persona vector, a .pt file of one tensor [n_layers + 1, width]"
    takes = frozenset({"layers", "strength", "positions", "rows"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        return source.is_torch_file

    def read(self) -> None:
        found: Any = self.source.torch()
        if not isinstance(found, torch.Tensor):
            raise self.refuse(f"expected one tensor, found {type(found).__name__}; save the tensor alone")
        if found.ndim != 2:
            raise self.refuse(
                f"has shape {list(found.shape)}, expected [n_layers + 1, width], a row per entry of "
                "`hidden_states`"
            )
        self.means: Rows = self.options.rows or "hidden_states"
        if not self.options.layers:
            last = block_of(len(found) - 1, self.means)
            raise self.refuse(
                f"has {len(found)} rows and one of them is steered along; say which block with --layer, "
                f"0 to {last} (--layer {last // 2} reads row {row_of(last // 2, self.means)})"
            )
        self.rows = found

    def check(self, sizes: Sizes) -> None:
        shape, count = list(self.rows.shape), sizes.n_layers + (self.means == "hidden_states")
        if shape != [count, sizes.width]:
            blocks = f"{sizes.n_layers} blocks"
            what = f"the embeddings and {blocks}" if self.means == "hidden_states" else blocks
            without = ""
            if self.options.rows is None and shape == [sizes.n_layers, sizes.width]:
                without = (
                    ", one row short: the embeddings' row, which comes first, is not there, or rows are "
                    "something else; say which, --rows outputs or --rows inputs"
                )
            raise self.refuse(
                f"has shape {shape}, expected {[count, sizes.width]} for this model ({what}){without}"
            )
        self.check_layers(self.options.layers, sizes)
        if self.means == "inputs" and sizes.n_layers - 1 in self.options.layers:
            raise self.refuse(
                f"{SITE}[{sizes.n_layers - 1}] is the input of no block, and rows are inputs; choose a "
                f"layer from 0 to {sizes.n_layers - 2}"
            )

    def onto(self, anatomy: Anatomy) -> Imported:
        rows = self.finite(self.rows, "the tensor")
        vectors = {block_of(row, self.means): rows[row] for row in range(len(rows))}
        vectors.pop(-1, None)
        layers = self.options.layers
        read = {layer: row_of(layer, self.means) for layer in layers}
        if empty := [layer for layer in layers if not vectors[layer].any()]:
            raise self.refuse(f"row {read[empty[0]]}, {SITE}[{empty[0]}], is zero: there is nothing to add")
        statements = [f"row {row} of the file is {SITE}[{layer}]" for layer, row in read.items()]
        if self.options.rows:
            statements.append(f"row L of the file is {MEANING[self.means]}, as --rows says")
        if (last := anatomy.sizes.n_layers - 1) in layers and self.means == "hidden_states":
            statements.append(
                f"row {last + 1} was read after the model's final norm, if the file comes from "
                f"transformers' hidden_states, and {SITE}[{last}] is before it: better choose another layer"
            )
        if self.means != "outputs":
            statements.append("row 0, the embeddings, is left out: it is the output of no block")
        facts = {"stored_as": str(self.rows.dtype).removeprefix("torch.")}
        return steered(self, vectors, layers, positions="response", statements=statements, facts=facts)
