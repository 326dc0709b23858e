"""What an export format is: how it judges a declared intervention, and how it writes one.

A format is a module of this folder with an object `EXPORT`, and one line in `FORMATS` (its name and what it
is). The driver (`subvene.runner.exchange.exports.driver`) does what all formats have in common: it refuses,
writes atomically, and measures what was written against the intervened model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from subvene.runner.edits.statements import contradictions
from subvene.runner.exchange.exports.facts import KEEP, Facts
from subvene.runner.files.json_value import Json
from subvene.specs import SITES, AnyIntervention, SubveneError

if TYPE_CHECKING:
    import torch

    from subvene.interventions import ActivationIntervention
    from subvene.runner.intervened.model import IntervenedModel

Exactness = Literal["exact", "approximate", "refused"]


class ExportError(SubveneError):
    """These interventions cannot be written in this format; the message lists each, why, and what else."""


class BakeError(ExportError):
    """These interventions cannot be put exactly into the weights of this model; the message lists why."""


@dataclass(frozen=True)
class Verdict:
    """What a format makes of one declared intervention.

    Attributes:
        exactness: `approximate` is written only where the user asks for it, and is measured.
        reason: why it is not exact; for an approximation also what is written in its place.
        nearest: the nearest exact alternative.
    """

    exactness: Exactness
    reason: str = ""
    nearest: str = ""


EXACT = Verdict("exact")


@dataclass(frozen=True)
class Consumer:
    """Who reads an export, as the equivalence record names it.

    Attributes:
        name: the package, such as `transformers`; `emulated llama.cpp` where its arithmetic is redone here.
        version: of that package; None for an emulation.
        logits: token ids [1, tokens] and the number of them that are prompt → the consumer's logits
            [1, tokens, vocabulary], from the files as they were written.
        how: in words, where that is not simply loading and calling.
    """

    name: str
    version: str | None
    logits: Callable[[torch.Tensor, int], torch.Tensor]
    how: str = ""


@dataclass(frozen=True)
class Written:
    """What a format wrote.

    Attributes:
        consumer: reads it back, for the measurement.
        record: what goes into `equivalence.json` beside the measurement, JSON values.
    """

    consumer: Consumer
    record: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True)
class Export:
    """One format.

    Attributes:
        name: as `--to` takes it.
        judge: from one declared intervention and what its class says of it; asked only where it says
            whether it depends on the activation, unless `judges_unknown`.
        write: the model, a fresh folder that is put in its place when everything has gone well, and whether
            approximations are wanted (`judge` has allowed them then). Writes the files, among them a card
            `README.md`. What only the model can tell is found here.

            Raises `ExportError` naming every intervention that this model cannot have in this format.
        judges_unknown: whether the format keeps an edit whole, so that it need not know what it does.
    """

    name: str
    judge: Callable[[AnyIntervention, Facts], Verdict]
    write: Callable[[IntervenedModel, Path, bool], Written]
    judges_unknown: bool = False


def of_no_map(declared: AnyIntervention) -> Verdict | None:
    """What formats made of weights say of sites that several maps read and none gives; None of others."""
    if declared.site not in ("block_input", "mlp_input"):
        return None
    nearest = "`site: block_output` of the layer before, " if declared.site == "block_input" else ""
    reason = f"{declared.site} is what several linear maps read, after norms, and no weight alone holds it"
    return Verdict("refused", reason, f"{nearest}{'or ' if nearest else ''}{KEEP}")


def positions_in_words(declared: AnyIntervention) -> str:
    """The position rule as JSON: `"response"`, `{"first": 2, "of": "prompt"}`."""
    return json.dumps(declared.model_dump(mode="json")["positions"])


def judged(export: Export, declared: AnyIntervention, edits: Sequence[ActivationIntervention]) -> Verdict:
    """A format's verdict, with what holds for all of them.

    Strength 0 is exact and one strength a row is not; and what nothing is known of is refused.

    Args:
        export: the format.
        declared: one intervention.
        edits: what it was built into, one a layer.
    """
    strength = declared.strength
    if isinstance(strength, tuple):
        return Verdict(
            "refused",
            f"it has one strength per row ({len(strength)} of them), and an export has one for all",
            "declare one number and export each by itself",
        )
    if strength == 0:
        return EXACT  # it does nothing, whatever it is
    if declared.is_gated:
        field = "when" if declared.when is not None else "during"
        reason = f"`{field}` decides while the model runs where it acts, and no other format carries that out"
        return Verdict("refused", reason, f"leave `{field}` out, which is another intervention, or {KEEP}")
    facts = Facts.of(edits)
    if not facts.is_declared and not export.judges_unknown:
        return Verdict(
            "refused",
            f"the class of `kind: {declared.kind}` does not say what it does (`affine`, `direction_formula`, "
            "`gates`, `depends_on_activation`), and it may depend on the activation in any way",
            facts.nearest,
        )
    if not export.judges_unknown and declared.site not in SITES:
        return Verdict("refused", "it acts at a module of its own, and the format knows sites only", KEEP)
    if problems := [problem for edit in edits for problem in contradictions(edit)]:
        return Verdict("refused", f"its class contradicts itself: {problems[0]}", KEEP)
    return export.judge(declared, facts)


def verdicts(m: IntervenedModel, export: Export) -> list[tuple[str, AnyIntervention, Verdict]]:
    """What a format makes of each intervention of a model: its name, its spec, the verdict."""
    return [
        (entry.name, declared, judged(export, declared, edits))
        for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True)
        for edits in [[m.intervenable.interventions[key] for key in entry.keys]]
    ]


def judge_all(
    m: IntervenedModel, export: Export, *, approximate: bool, error: type[ExportError] = ExportError
) -> Exactness:
    """The verdict on all interventions of a model together.

    Raises:
        ExportError: (or `error`) one is refused, or is not exact and approximations are not wanted; every one
            of them is named, with the reason and the nearest exact alternative.
    """
    from subvene.runner.edits.whole_tensor import WholeTensorModel

    if isinstance(m.intervenable, WholeTensorModel):
        raise error(
            f"{type(m.model).__name__} is no decoder language model, and the exports are for those; {KEEP}"
        )
    problems, is_exact, can_be_approximated = [], True, True
    for name, declared, verdict in verdicts(m, export):
        if verdict.exactness == "exact":
            continue
        is_exact = False
        if verdict.exactness == "refused" or not approximate:
            can_be_approximated &= verdict.exactness == "approximate"
            problems.append(f"{name} ({declared.kind}): {verdict.reason}; instead, {verdict.nearest}")
    if problems:
        hint = "\nWith --approximate (`approximate=True`) it is written, and measured." * can_be_approximated
        what = "baked" if export.name == "checkpoint" else f"exported as {export.name}"
        raise error(f"this cannot be {what} exactly:\n" + "\n".join(problems) + hint)
    return "exact" if is_exact else "approximate"
