"""One vector alone, or a dictionary with one a layer: `.pt` files that do not say what their layers count."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer, Rows
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.exchange.imports.steered import MEANING, SITE, block_of, steered
from subvene.runner.models.anatomy import Anatomy

# What a key may be called, and what such a name says that its layer counts.
_NAMES: tuple[tuple[re.Pattern[str], Rows | None], ...] = (
    (re.compile(r"(?:layers?|blocks?|l)?[ ._\-]?([0-9]+)", re.IGNORECASE), None),
    (
        re.compile(r"(?:model\.)?(?:language_model\.)?(?:layers|transformer\.h|gpt_neox\.layers)\.([0-9]+)"),
        None,
    ),
    (re.compile(r"blocks\.([0-9]+)\.hook_resid_pre"), "inputs"),
    (re.compile(r"blocks\.([0-9]+)\.hook_resid_post"), "outputs"),
    (re.compile(r"(?:.*\.)?block_output\[([0-9]+)\]"), "outputs"),
    (re.compile(r"hidden_states\[([0-9]+)\]"), "hidden_states"),
)


class LayerVectors(Importer):
    """`[width]`, whose block `--layer` says, or `{layer: [width], …}`, whose count `--rows` says.

    Without `--rows` a layer is a block whose output the vector is, unless the dictionary's own names say so.
    """

    name = "layer-vectors"
    says = "a vector [width] or a dictionary of them by layer, in a .pt file"
    takes = frozenset({"layers", "strength", "positions", "rows"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        if not source.is_torch_file:
            return False
        found: Any = source.torch()
        return isinstance(found, dict) or (isinstance(found, torch.Tensor) and found.ndim == 1)

    def read(self) -> None:
        found: Any = self.source.torch()
        if isinstance(found, torch.Tensor) and found.ndim == 1:
            self.vectors, self.rows = self._alone(found), None
        elif isinstance(found, Mapping) and found:
            self.vectors, self.rows = self._by_layer(found)
        else:
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise self.refuse(f"holds {shape}, expected a tensor [width] or a dictionary of them by layer")
        self.layers = self.options.layers or tuple(self.vectors)
        if missing := [layer for layer in self.layers if layer not in self.vectors]:
            there = ", ".join(map(str, sorted(self.vectors)))
            raise self.refuse(f"holds no vector of {SITE}[{missing[0]}]; there is: {there}")
        if len(self.layers) > 1 and not self.options.layers:
            raise self.refuse(
                f"holds vectors of {len(self.vectors)} layers; say which with --layer, once or several "
                f"times: {', '.join(map(str, sorted(self.vectors)))} (the blocks whose outputs they are)"
            )

    def _alone(self, vector: torch.Tensor) -> dict[int, torch.Tensor]:
        if self.options.rows is not None:
            raise self.refuse("--rows is of files with several layers; --layer says all of one vector")
        if len(self.options.layers) != 1:
            raise self.refuse(
                "is one vector, and does not say of which layer: give one --layer, the 0-based block whose "
                "output it is (the input of block L is the output of block L - 1)"
            )
        return {self.options.layers[0]: vector}

    def _by_layer(self, found: Mapping[Any, Any]) -> tuple[dict[int, torch.Tensor], Rows]:
        rows: dict[int, torch.Tensor] = {}
        said: set[Rows] = set()
        for key, vector in found.items():
            row, meaning = self._row(key)
            if row in rows:
                raise self.refuse(f"two keys of its dictionary name layer {row}")
            if not isinstance(vector, torch.Tensor) or vector.ndim != 1:
                shape = list(vector.shape) if isinstance(vector, torch.Tensor) else type(vector).__name__
                raise self.refuse(f"{key!r} is {shape}, expected a tensor [width]")
            rows[row] = vector
            said |= {meaning} if meaning else set()
        said |= {self.options.rows} if self.options.rows else set()
        if len(said) > 1:
            raise self.refuse(
                f"its layers count {' and '.join(sorted(said))} at once, by its names and --rows"
            )
        counted: Rows = said.pop() if said else "outputs"
        by_block = {block_of(row, counted): vector for row, vector in sorted(rows.items())}
        by_block.pop(-1, None)
        if not by_block:
            raise self.refuse("holds the embeddings only, which are the output of no block")
        return by_block, counted

    def _row(self, key: Any) -> tuple[int, Rows | None]:
        if isinstance(key, int) and not isinstance(key, bool) and key >= 0:
            return key, None
        for pattern, meaning in _NAMES:
            if isinstance(key, str) and (match := pattern.fullmatch(key)) and len(match[1]) < 6:
                return int(match[1]), meaning
        raise self.refuse(
            f"{key!r} is no layer: expected numbers from 0, or names such as 'layer_3', 'model.layers.3' or "
            "'blocks.3.hook_resid_pre'"
        )

    def check(self, sizes: Sizes) -> None:
        outside = [layer for layer in self.vectors if not 0 <= layer < sizes.n_layers]
        if outside and self.rows == "outputs" and outside == [sizes.n_layers]:
            raise self.refuse(
                f"holds a layer {sizes.n_layers}, and this model's blocks are 0 to {sizes.n_layers - 1}; "
                "if its layers are entries of `hidden_states`, say --rows hidden_states"
            )
        self.check_layers(list(self.vectors), sizes)
        for layer, vector in self.vectors.items():
            if len(vector) != sizes.width:
                raise self.refuse(
                    f"the vector of {SITE}[{layer}] has shape {list(vector.shape)}, expected [{sizes.width}]"
                )

    def onto(self, anatomy: Anatomy) -> Imported:
        vectors = {n: self.finite(vector, f"the vector of {SITE}[{n}]") for n, vector in self.vectors.items()}
        if self.rows is None:
            statement = (
                f"the vector is of {SITE}[{self.layers[0]}], as --layer says: the output of that block"
            )
        else:
            told = "as --rows says" if self.options.rows else "unless --rows says otherwise"
            statement = f"layer L of the file is {MEANING[self.rows]}, {told}"
        return steered(self, vectors, self.layers, positions="response", statements=[statement])
