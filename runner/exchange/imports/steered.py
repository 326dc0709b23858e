"""Vectors of the residual stream by layer, however a file counts layers, as steering."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, get_args

import torch

from subvene.runner.exchange.imports.base import Imported, Importer, Rows, identifier
from subvene.runner.files.json_value import Json
from subvene.specs import Positions, SteeringSpec, TensorRef, tensor_name

SITE: Final = "block_output"
ROWS: Final[tuple[Rows, ...]] = get_args(Rows)
#: What row L of a file is, by what its rows are.
MEANING: Final[Mapping[Rows, str]] = {
    "outputs": "the output of block L",
    "inputs": "the input of block L, which is the output of block L - 1",
    "hidden_states": "entry L of `hidden_states`, which is the output of block L - 1",
}


def block_of(row: int, rows: Rows) -> int:
    """The block whose output a row is; -1 for the embeddings."""
    return row if rows == "outputs" else row - 1


def row_of(block: int, rows: Rows) -> int:
    """The row that holds the output of a block."""
    return block if rows == "outputs" else block + 1


def steered(
    importer: Importer,
    vectors: Mapping[int, torch.Tensor],
    layers: Sequence[int],
    *,
    positions: Positions,
    statements: Sequence[str],
    facts: Mapping[str, Json] | None = None,
) -> Imported:
    """Steering at some layers, with the vectors of all layers kept, so that another one can be chosen.

    Args:
        importer: says the key, the strength and the positions.
        vectors: by block whose output they are, [width].
        layers: the blocks that are steered at.
        positions: unless the user says others.
        statements: how the file's conventions were converted.
        facts: for the provenance.

    Raises:
        ImportRefusedError: a vector that is steered along is zero.
    """
    options, key = importer.options, importer.key
    if zero := [layer for layer in layers if not vectors[layer].any()]:
        raise importer.refuse(f"the vector of {SITE}[{zero[0]}] is zero: there is nothing to add")
    positions = options.positions or positions
    strength = 1.0 if options.strength is None else options.strength
    interventions = tuple(
        SteeringSpec(
            name=identifier(key if len(layers) == 1 else f"{key}_{layer}"),
            site=SITE,
            layer=layer,
            vector=TensorRef(key=key),
            coefficient=strength,
            positions=positions,
        )
        for layer in layers
    )
    tensors = {tensor_name(key, SITE, layer): vector for layer, vector in vectors.items()}
    told = [*statements, f"norms are kept; coefficient {strength:g} at positions {positions!r}"]
    return Imported(interventions, tensors, told, facts or {})
