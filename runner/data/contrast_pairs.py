"""Contrast pairs as a spec declares them: in a file, in a data set of the Hub, or written out."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from subvene.runner.data.hub_rows import hub_rows
from subvene.specs import ContrastPrompts, Contrasts, ContrastSystems, ContrastTexts, PairsFile, resolve_pairs
from subvene.specs.pair_rows import pairs_of
from subvene.specs.pairs import PairsDataset


def read_pairs(
    pairs: PairsFile | PairsDataset | ContrastTexts | ContrastSystems | ContrastPrompts, folder: Path
) -> Contrasts:
    """The pairs themselves.

    Args:
        pairs: what a spec declares.
        folder: what a relative file is looked for in.

    Raises:
        SpecError: a file of pairs is not valid.
        RowsError: a dataset cannot be read, or its rows are no pairs.
    """
    if not isinstance(pairs, PairsDataset):
        return resolve_pairs(pairs, folder)
    rows = hub_rows(pairs.dataset, subset=pairs.subset, split=pairs.split, revision=pairs.revision)
    return pairs_of(islice(rows, pairs.limit), f"dataset {pairs.dataset}", columns=pairs.columns)
