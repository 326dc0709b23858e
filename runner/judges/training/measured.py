"""What `subvene judge check` found out about a judge, kept for the tables that use it.

A judge that somebody else made states no accuracy of its own. What was measured on this machine is kept in
subvene's cache folder, by everything that identifies the judge.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from subvene.runner.files.cache import cache_folder
from subvene.runner.files.json_value import Json
from subvene.runner.files.storage import atomic_file
from subvene.runner.judges.base import Aspect, Identity
from subvene.runner.judges.training.agreement import Agreement
from subvene.specs.regular_file import read_bytes, read_text

_STATED = ("n", "unjudged", "accuracy", "majority", "auc", "brier", "ece")


def known_accuracy(described: Identity, aspect: Aspect) -> dict[str, Json] | None:
    """What was last measured of a judge, None if nothing was.

    Args:
        described: the judge's `describe()`; its `accuracy` does not matter.
        aspect: which quality.
    """
    try:
        found = json.loads(read_text(_place(described, aspect)))
    except (OSError, ValueError, RecursionError):
        return None  # never measured here, or a file that is none of ours: the judge states no accuracy
    return found if isinstance(found, dict) else None


def keep_accuracy(described: Identity, aspect: Aspect, agreement: Agreement, labels: Path) -> bool:
    """Keeps an agreement for `known_accuracy`, unless one over more rows of the same labels is there.

    Args:
        described: the judge's `describe()`.
        aspect: which quality.
        agreement: what was measured.
        labels: the file of labels.

    Returns:
        Whether it was kept.
    """
    record: dict[str, Json] = {name: getattr(agreement, name) for name in _STATED}
    record["labels"] = {"file": labels.name, "sha256": hashlib.sha256(read_bytes(labels)).hexdigest()}
    before = known_accuracy(described, aspect)
    if before is not None and before.get("labels") == record["labels"] and _rows(before) > agreement.n:
        return False
    place = _place(described, aspect)
    place.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(place) as stream:
        stream.write(json.dumps(record, indent=2) + "\n")
    return True


def _rows(record: Mapping[str, Json]) -> int:
    n = record.get("n", 0)
    return n if isinstance(n, int) else 0


def _place(described: Identity, aspect: Aspect) -> Path:
    about = {name: value for name, value in described.items() if name != "accuracy"}
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return cache_folder() / "judgements" / "agreement" / f"{digest[:24]}.{aspect}.json"
