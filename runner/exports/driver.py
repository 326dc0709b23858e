"""What every export goes through: judged, written atomically, read back and measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from subvene.runner.cache import atomic_folder
from subvene.runner.exports import load_format
from subvene.runner.exports.base import Consumer, ExportError, judge_all, judged
from subvene.runner.exports.cards import add_measurement
from subvene.runner.exports.texts import MEASURED, Text, encoded
from subvene.runner.intervened import IntervenedModel
from subvene.runner.refusals import refuse_compiled
from subvene.specs.regular_file import read_text

EQUIVALENCE = "equivalence.json"
#: What rounding never explains in full precision: more than a part of the largest logit, or of what the edit
#: itself does where that is more than rounding.
TOLERANCE, OF_EFFECT, ROUNDING = 1e-3, 0.05, 2e-5


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
        name: the format (`subvene.runner.exports.FORMATS`).
        folder: where; a folder that is there and that no export wrote is left alone.
        approximate: also write what is not exact; its mean KL goes into the record and the card.
        prompts: what to measure on, each a prompt or a prompt and its response, as raw text; None: four
            short ones (`subvene.runner.exports.texts`).

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
        written = chosen.write(m, temporary, approximate)
        record: dict[str, Any] = {"format": name, "exactness": exactness}
        if exactness == "approximate":
            record["approximations"] = [
                f"{entry.name} ({declared.kind}): {verdict.reason}"
                for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True)
                if (verdict := judged(chosen, declared)).exactness == "approximate"
            ]
        record |= _measured(m, written.consumer, texts, exactness) | dict(written.record)
        packages = ("subvene", "torch", "transformers", "pyvene")
        record["versions"] = {package: version(package) for package in packages}
        # Before the card is finished, which is one of them: what a later export may replace.
        record["files"] = sorted({EQUIVALENCE, *(path.name for path in temporary.iterdir())})
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (temporary / EQUIVALENCE).write_text(text, encoding="utf-8")
        add_measurement(temporary, record)
    return folder


def check_free(folder: Path) -> None:
    """Check that an export may be written at `folder`: nothing is there, or an export to be replaced.

    Raises:
        ExportError: something else is there.
    """
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


@torch.no_grad()
def _measured(
    m: IntervenedModel, consumer: Consumer, texts: Sequence[Text], exactness: str
) -> dict[str, Any]:
    differences, effects, kls, kls_untouched, largest = [], [], [], [], 0.0
    rows = encoded(m, texts)
    for ids, prompt_length in rows:
        output = m(ids, prompt_lengths=[prompt_length], must_act=False, use_cache=False)
        expected = output.logits.detach().cpu().double()
        with m.disabled():
            untouched = m(ids, use_cache=False).logits.detach().cpu().double()
        found = consumer.logits(ids, prompt_length).detach().cpu().double()
        if found.shape != expected.shape or not torch.isfinite(found).all():
            raise ExportError(
                f"{consumer.name} gives logits of shape {list(found.shape)} with this export, expected "
                f"{list(expected.shape)} finite numbers; nothing was written"
            )
        differences.append(float((found - expected).abs().max()))
        effects.append(float((untouched - expected).abs().max()))
        kls.append(_kl(expected, found))
        kls_untouched.append(_kl(expected, untouched))
        largest = max(largest, float(expected.abs().max()))
    worst, dtype = max(differences), m.model.dtype
    scale = max(1.0, largest)
    allowed = min(TOLERANCE * scale, max(ROUNDING * scale, OF_EFFECT * max(effects)))
    if exactness == "exact" and dtype.itemsize >= 4 and worst > allowed:
        raise ExportError(
            f"{consumer.name} gives logits that differ by up to {worst:.3g} (they reach {largest:.3g}) from "
            "those of the intervened model, though this export should be exact; nothing was written. Please "
            "report this with the model's name and the spec"
        )
    texts_used = [asdict(text) for text in texts]
    if m.tokenizer is None:
        texts_used = [{"token_ids": ids[0].tolist(), "prompt_tokens": n} for ids, n in rows]
    record: dict[str, Any] = {
        "prompts": texts_used,
        "tokens": sum(ids.shape[1] for ids, _ in rows),
        "max_logit_difference": worst,
        "max_logit_effect": max(effects),
    }
    if exactness == "approximate":
        record["mean_kl"] = float(torch.cat(kls).mean())
        record["mean_kl_untouched"] = float(torch.cat(kls_untouched).mean())
    reader: dict[str, Any] = {"name": consumer.name, "version": consumer.version}
    if consumer.how:
        reader["how"] = consumer.how
    return record | {"consumer": reader, "dtype": str(dtype).removeprefix("torch.")}


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p ‖ q) of every token, in nats, from logits [1, tokens, vocabulary]."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).flatten()
