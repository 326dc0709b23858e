"""Which kind of intervention which engine runs, from what the kinds say: docs/serving.md has it."""

from __future__ import annotations

from subvene.interventions import ActivationIntervention
from subvene.interventions.positions import needs_length
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.served import columns_of, undeclared
from subvene.runner.exchange.exports.table import built, examples
from subvene.specs import AnyIntervention


def table() -> str:
    """Kind × engine as Markdown."""
    lines = [["declared", "transformers", "vLLM"], ["---"] * 3]
    lines += [[words, *_verdicts(declared)] for words, declared in examples()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _verdicts(declared: AnyIntervention) -> tuple[str, str]:
    if reason := undeclared(declared):
        return "exact", f"refused: {reason}"
    try:
        for edit in built(declared):
            columns_of(edit)
    except EngineError as error:
        return "exact", f"refused: {_short(error, built(declared))}"
    if needs_length(declared.positions):
        return "exact; scoring only", "exact; scoring only"
    if isinstance(declared.strength, tuple):
        return "exact", "exact; each request says its own"
    return "exact", "exact"


def _short(error: EngineError, edits: list[ActivationIntervention]) -> str:
    if all(edit.columns() is None for edit in edits):
        return "not made of columns"
    return str(error)
