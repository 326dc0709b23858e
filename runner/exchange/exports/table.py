"""Which kind of intervention goes into which format, from the formats' verdicts: docs/exports.md has it."""

from __future__ import annotations

from collections.abc import Iterator

from subvene.interventions import REGISTRY, ActivationIntervention, InventedTable, Sizes
from subvene.interventions.tensors import OWN_WIDTHS
from subvene.runner.exchange.exports import FORMATS, load_format
from subvene.runner.exchange.exports.base import judged
from subvene.specs import AnyIntervention, SteeringSpec, TensorRef
from subvene.specs.interventions import REGISTRY as SPECS

_WIDTHS = {f"{site}[{layer}]": 4 for site in OWN_WIDTHS for layer in range(2)}
_SIZES = Sizes(n_layers=2, width=4, n_heads=2, head_dim=2, widths=_WIDTHS)


def examples() -> Iterator[tuple[str, AnyIntervention]]:
    """What is declared, in words, and an example of it. Positions are `all` where nothing is said."""
    for kind, spec in SPECS.items():
        for words, fields in spec.examples.items():
            yield f"`{kind}`{words}", spec.model_validate({"kind": kind, **fields})
    steer = SteeringSpec(layer=1, vector=TensorRef(key="v"), coefficient=(1.0, 2.0))
    yield "any kind, one strength per row", steer
    yield "any kind, strength 0", steer.model_copy(update={"coefficient": 0.0})


def built(declared: AnyIntervention) -> list[ActivationIntervention]:
    """What an example becomes on a model of two layers, with tensors that are made up."""
    table = InventedTable()
    return [edit for _, _, edit in REGISTRY[declared.kind].build(declared, table, _SIZES)]


def table() -> str:
    """Kind × format as Markdown: exact, approximate or refused."""
    formats = [load_format(name) for name in FORMATS]
    lines = [["declared", *FORMATS], ["---"] * (1 + len(formats))]
    for words, declared in examples():
        edits = built(declared)
        lines.append([words, *(judged(one, declared, edits).exactness for one in formats)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
