"""What every export goes through: judged, written atomically, read back and measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from subvene.runner.edits.refusals import refuse_compiled
from subvene.runner.exchange.exports import load_format
from subvene.runner.exchange.exports.base import Export, ExportError, judge_all, verdicts
from subvene.runner.exchange.exports.cards import add_measurement
from subvene.runner.exchange.exports.measurement import Equivalence, float32_copy, is_half, measured
from subvene.runner.exchange.exports.texts import MEASURED, Text
from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder, check_writable
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs.regular_file import read_text

EQUIVALENCE = "equivalence.json"


def export(
    m: IntervenedModel,
    name: str,
    folder: Path | str,
    *,
    approximate: bool = False,
    prompts: Sequence[str | tuple[str, str]] | None = None,
) -> Path:
    """Write the interventions of `m` in another format, and measure what was written.

    Args:
        m: the intervened model; it stays as it is.
        name: the format (`subvene.runner.exchange.exports.FORMATS`).
        folder: where; a folder that is there and that no export wrote is left alone.
        approximate: also write what is not exact; its mean KL goes into the record and the card.
        prompts: what to measure on, each a prompt or a prompt and its response, as raw text; None: four
            short ones (`subvene.runner.exchange.exports.texts`).

    Returns:
        The folder, in which `equivalence.json` is the record of the measurement.

    Raises:
        ExportError: naming every intervention that this format does not express, why, and the nearest exact
            alternative; or something else is at `folder`; or what was written is not what was declared.
    """
    chosen = load_format(name)
    texts = MEASURED if prompts is None else [Text(p) if isinstance(p, str) else Text(*p) for p in prompts]
    if not texts or not all(text.prompt for text in texts):
        raise ExportError("prompts: expected at least one, and none of them empty")
    folder = Path(folder)
    check_free(folder)
    refuse_compiled(m.model)
    exactness = judge_all(m, chosen, approximate=approximate)
    with atomic_folder(folder) as temporary:
        proof = None
        if exactness == "exact" and is_half(m):
            proof = _proven(m, chosen, texts, temporary / "float32")
        written = chosen.write(m, temporary, approximate)
        record: dict[str, object] = {"format": name, "exactness": exactness}
        if exactness == "approximate":
            record["approximations"] = [
                f"{called} ({declared.kind}): {verdict.reason}"
                for called, declared, verdict in verdicts(m, chosen)
                if verdict.exactness == "approximate"
            ]
        record |= measured(m, written.consumer, texts, exactness, is_proven=bool(proof))
        record |= written.record
        if proof:
            record["in_float32"] = proof
        packages = ("subvene", "torch", "transformers", "pyvene")
        record["versions"] = {package: version(package) for package in packages}
        # Before the card is finished, which is one of them: what a later export may replace.
        record["files"] = sorted({EQUIVALENCE, *(path.name for path in temporary.iterdir())})
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (temporary / EQUIVALENCE).write_text(text, encoding="utf-8")
        add_measurement(temporary, cast(Equivalence, record))
    return folder


def check_free(folder: Path) -> None:
    """Check that an export may be written at `folder`: nothing is there, or an export to be replaced.

    Raises:
        ExportError: something else is there.
        StorageError: nothing can be written there.
    """
    check_writable(folder)
    restore(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        files = set(json.loads(read_text(folder / EQUIVALENCE))["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(
            f"{folder} exists and holds no export (no readable {EQUIVALENCE}); choose another place, or "
            "remove it"
        ) from error
    if others := sorted(path.name for path in folder.iterdir() if path.name not in files):
        raise ExportError(
            f"{folder} holds more than the export that is there ({', '.join(others[:3])}"
            f"{', …' if len(others) > 3 else ''}), which would be lost; choose another place"
        )


def _proven(m: IntervenedModel, chosen: Export, texts: Sequence[Text], scratch: Path) -> dict[str, float]:
    """The measurement of an exact export of the model's float32 copy, which rounding does not blur.

    Raises:
        ExportError: it is not what was declared.
    """
    copied = float32_copy(m)
    if copied is None:
        return {}
    scratch.mkdir()
    try:
        found = measured(copied, chosen.write(copied, scratch, False).consumer, texts, "exact")
    finally:
        shutil.rmtree(scratch)
    return {
        "max_logit_difference": found["max_logit_difference"],
        "max_logit_effect": found["max_logit_effect"],
    }
