"""The refusal direction's files (Arditi et al. 2024, arXiv:2406.11717), whose layers count block inputs."""

from __future__ import annotations

from typing import Any

import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.exchange.imports.steered import SITE, block_of, row_of, steered
from subvene.runner.models.anatomy import Anatomy

DIRECTION, MEANS, METADATA = "direction.pt", "mean_diffs.pt", "direction_metadata.json"


class RefusalDirection(Importer):
    """`direction.pt` [width] with `direction_metadata.json`, or `mean_diffs.pt` [positions, n_layers, width].

    The published code reads the inputs of the blocks, and adds the direction to the input of block `layer` at
    every token: row L is the output of block L − 1, and row 0 the embeddings.
    """

    name = "refusal-direction"
    says = f"a refusal direction, {DIRECTION} with {METADATA}, or {MEANS} [positions, n_layers, width]"
    takes = frozenset({"layers", "strength", "positions", "position"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        if source.is_folder:
            return bool({DIRECTION, MEANS} & set(source.names))
        if not source.is_torch_file:
            return False
        found: Any = source.torch()
        if not isinstance(found, torch.Tensor):
            return False
        return found.ndim == 3 or (found.ndim == 1 and source.beside(METADATA) is not None)

    def read(self) -> None:
        file = None
        if self.source.is_folder:
            file = next((name for name in (DIRECTION, MEANS) if name in self.source.names), None)
            if file is None:
                raise self.refuse(f"holds neither {DIRECTION} nor {MEANS}")
        found: Any = self.source.torch(file)
        if not isinstance(found, torch.Tensor) or found.ndim not in (1, 3):
            shape = list(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise self.refuse(f"holds {shape}, expected [width] or [positions, n_layers, width]", file)
        self.pos, self.row = self._metadata()
        self.found = found
        self.layers = self._layers()
        if found.ndim == 3:
            self.pos = self._position(len(found))

    def _metadata(self) -> tuple[int | None, int | None]:
        """The position and the layer that the published code chose; None where no file says them."""
        if self.source.is_folder:
            there = METADATA in self.source.names
            data = self.source.json(METADATA) if there else None
        else:
            beside = self.source.beside(METADATA)
            data = None if beside is None else beside.json()
        if data is None:
            return None, None
        pos, layer = data.get("pos"), data.get("layer")
        if type(pos) is not int or type(layer) is not int or pos >= 0 or layer < 0:
            raise self.refuse(
                f"{METADATA} says pos {pos!r} and layer {layer!r}, expected a position from the prompt's end "
                "(-1, -2, …) and a 0-based layer"
            )
        return pos, layer

    def _layers(self) -> tuple[int, ...]:
        """The blocks whose outputs are steered."""
        chosen: tuple[int, ...] = () if self.row is None else (block_of(self.row, "inputs"),)
        if self.found.ndim == 1:
            if self.row is None:
                raise self.refuse(
                    f"has no {METADATA} beside it, which says its layer; or --from layer-vectors"
                )
            if self.options.layers and self.options.layers != chosen:
                raise self.refuse(
                    f"{METADATA} says layer {self.row}, the input of block {self.row}, which is {SITE}"
                    f"[{', '.join(map(str, chosen))}], and --layer says "
                    f"{', '.join(map(str, self.options.layers))}; leave --layer out"
                )
        layers = self.options.layers or chosen
        if not layers:
            raise self.refuse(
                "holds vectors of every layer; say which with --layer, the 0-based block whose output is "
                "steered (the published layer, which counts inputs, less 1)"
            )
        if -1 in layers:
            raise self.refuse(
                f"{METADATA} says layer 0, the input of block 0: the embeddings are the output of no block"
            )
        return layers

    def _position(self, count: int) -> int:
        given = self.options.position
        chosen = given if given is not None else self.pos
        if chosen is None and count == 1:
            return -1
        if chosen is None or not -count <= chosen < 0:
            found = "nothing" if chosen is None else chosen
            raise self.refuse(
                f"holds {count} token positions, counted from the prompt's end; expected --position from "
                f"-{count} to -1, found {found}"
            )
        return chosen

    def check(self, sizes: Sizes) -> None:
        shape = list(self.found.shape)
        expected = [sizes.n_layers, sizes.width] if self.found.ndim == 3 else [sizes.width]
        if shape[-len(expected) :] != expected:
            raise self.refuse(f"has shape {shape}, expected {expected} at its end for this model")
        self.check_layers(self.layers, sizes)
        if self.found.ndim == 3 and sizes.n_layers - 1 in self.layers:
            raise self.refuse(
                f"{SITE}[{sizes.n_layers - 1}] is the input of no block, and the file holds inputs; choose a "
                f"layer from 0 to {sizes.n_layers - 2}"
            )

    def onto(self, anatomy: Anatomy) -> Imported:
        if self.found.ndim == 1:
            vectors = {self.layers[0]: self.finite(self.found, "the direction")}
        else:
            rows = self.finite(self.found[self.pos], "the directions")
            vectors = {block_of(row, "inputs"): rows[row] for row in range(1, len(rows))}
        statements = [
            f"layer {row} of the file is the input of block {row}, which is {SITE}[{layer}]"
            for layer, row in ((layer, row_of(layer, "inputs")) for layer in self.layers)
        ]
        if self.found.ndim == 3:
            statements.append(f"the token position {self.pos}, counted from the prompt's end, is read")
        statements.append(
            "the direction is added, as the published `actadd` does (1 induces refusal, -1 takes it away); "
            "for the published ablation declare `kind: ablation` with this tensor"
        )
        facts = {"pos": self.pos, "layer_of_inputs": [row_of(layer, "inputs") for layer in self.layers]}
        return steered(self, vectors, self.layers, positions="all", statements=statements, facts=facts)
