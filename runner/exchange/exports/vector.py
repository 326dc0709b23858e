"""Plain safetensors with the vectors of the interventions, for whoever adds them with code of their own.

One tensor an edited place, flat and in float32: what the edit multiplies by its strength, the standard
deviations of head directions and the normalisation of steering vectors folded in. The strength stands beside
it, in the metadata, together with the place, the formula and the tokens: `about` reads them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import safetensors
import safetensors.torch
import torch
from pydantic import JsonValue

from subvene.interventions import ActivationIntervention, Tokens
from subvene.interventions.positions import parse_positions
from subvene.runner.edits.hooks import on_input, on_output
from subvene.runner.exchange.exports.approximation import MEAN_SHIFT, mean_shifts
from subvene.runner.exchange.exports.base import EXACT, KEEP, Consumer, Export, Verdict, Written
from subvene.runner.exchange.exports.cards import CARD, export_card
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.specs import AnyIntervention

VECTORS = "vectors.safetensors"
FORMAT = "1"
CONVENTION = (
    "layer is the 0-based index of the decoder block; block_output[l] is the residual stream after block l "
    "(transformers' hidden_states[l + 1], except for the last block, where that is after the final norm); "
    "attention_heads[l] is the input of the attention's output "
    "projection, all heads concatenated, head h at h*head_dim to (h+1)*head_dim; attention_output and "
    "mlp_output are what those parts of the block give, before they are added to the residual stream; "
    "block_input is the stream as the block receives it, mlp_input what the feed-forward part reads, after "
    "the norm before it, mlp_neurons the input of its down projection; query, key and value are what these "
    "projections give, before norms and rotary embeddings"
)
ADD, REMOVE = "h + strength * v", "h - strength * <h, v> * v"
CAP = "h + strength * (min(max(<h, v>, floor), ceiling) - <h, v>) * v"
_OF_FORM = {"add": ADD, "remove": REMOVE, "bound": CAP}


class Formula(TypedDict):
    """What stands beside a vector: its formula, the numbers in it."""

    formula: str
    floor: NotRequired[float]
    ceiling: NotRequired[float]
    strength: float


class Told(Formula):
    """What the metadata of a file says of a tensor."""

    kind: str
    site: str
    layer: int
    positions: JsonValue


_FORMULAS: dict[str, Callable[[torch.Tensor, torch.Tensor, Formula], torch.Tensor]] = {
    ADD: lambda h, v, about: v.expand_as(h),
    REMOVE: lambda h, v, about: -(h @ v).unsqueeze(-1) * v,
    CAP: lambda h, v, about: (
        ((h @ v).clamp(about.get("floor"), about.get("ceiling")) - h @ v).unsqueeze(-1) * v
    ),
}


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """What one vector, a number and a formula say is exact at any positions, which stand beside them."""
    if facts.formula is not None:
        return EXACT
    if facts.is_affine:
        return Verdict("refused", "it is two factors rather than a vector", f"`--to peft`, or {KEEP}")
    what = "what it does depends on the activation, by none of the file's formulas"
    if facts.monitored:
        what = f"its strength is self-monitored, {facts.monitored}, and depends on the activation"
    return Verdict("approximate", f"{what}; as an approximation {MEAN_SHIFT} is the vector", facts.nearest)


def about(path: Path) -> dict[str, Told]:
    """What a file's metadata says of each tensor: kind, site, layer, formula, strength, positions."""
    with safetensors.safe_open(path, framework="pt") as file:
        found: dict[str, Told] = json.loads(file.metadata()["vectors"])
    return found


def _write(m: IntervenedModel, folder: Path, approximate: bool) -> Written:
    means: Mapping[str, torch.Tensor] | None = None
    sizes = Anatomy.of(m.model).sizes
    tensors: dict[str, torch.Tensor] = {}
    told: dict[str, Told] = {}
    for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True):
        if declared.strength == 0:
            continue
        positions = declared.model_dump(mode="json")["positions"]
        for place, key in zip(entry.sites, entry.keys, strict=True):
            edit, name = m.intervenable.interventions[key], f"{entry.name}.{place}"
            found = _vector(edit)
            if found is None:
                means = mean_shifts(m) if means is None else means
                found = means[key].float(), {"formula": ADD, "strength": 1.0}
            tensors[name], formula = found
            site, _, layer = place.rstrip("]").rpartition("[")
            place_of = {"kind": declared.kind, "site": site, "layer": int(layer)}
            told[name] = cast(Told, {**place_of, **formula, "positions": positions})
    metadata = {
        "format": f"subvene vectors {FORMAT}",
        "model": m.spec.model.name,
        "revision": m.spec.model.revision or "",
        "n_heads": str(sizes.n_heads),
        "head_dim": str(sizes.head_dim),
        "convention": CONVENTION,
        "order": json.dumps(list(tensors)),
        "vectors": json.dumps(told),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / VECTORS, metadata=metadata)
    (folder / CARD).write_text(_card(m), encoding="utf-8")

    @torch.no_grad()
    def logits(ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        with _applied(m.model, folder / VECTORS, ids.shape[1], prompt_length):
            found: torch.Tensor = m.model(input_ids=ids, use_cache=False).logits
            return found

    how = (
        f"the formulas of {VECTORS}, at the tokens that it names, read with safetensors and applied by hooks"
    )
    return Written(Consumer("the file's own formulas", None, logits, how))


def _vector(edit: ActivationIntervention) -> tuple[torch.Tensor, Formula] | None:
    """The vector of an edit and what stands beside it; None where no formula of the file is what it does."""
    formula = edit.direction_formula() if edit.linear_in_strength else None
    if formula is None:
        return None
    bounds = {"floor": formula.floor, "ceiling": formula.ceiling}
    finite = {name: value for name, value in bounds.items() if abs(value) != float("inf")}
    told = {"formula": _OF_FORM[formula.form], **finite, "strength": float(edit.strength)}
    return formula.vector.clone(), cast(Formula, told)


@contextlib.contextmanager
def _applied(model: Any, path: Path, length: int, prompt_length: int) -> Iterator[None]:
    """The file alone, as somebody would use it: one row, teacher-forced."""
    anatomy, handles = Anatomy.of(model), []
    tensors, told = safetensors.torch.load_file(path), about(path)
    with safetensors.safe_open(path, framework="pt") as file:
        order = json.loads(file.metadata()["order"])
    tokens = Tokens(
        index=torch.arange(length).unsqueeze(0),
        real=torch.ones(1, length, dtype=torch.bool),
        prompt_length=torch.tensor([prompt_length]),
        length=torch.tensor([length]),
    )
    try:
        for name in order:
            one = told[name]
            mask = tokens.mask(parse_positions(one["positions"])).unsqueeze(-1)
            module, is_input = component_module(model, anatomy.component(one["site"], one["layer"]))
            columns = anatomy.columns(one["site"], one["layer"])
            handles.append(_hooked(module, tensors[name], one, mask, columns, is_input=is_input))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hooked(
    module: Any,
    vector: torch.Tensor,
    one: Told,
    mask: torch.Tensor,
    columns: tuple[int, ...] | None,
    *,
    is_input: bool,
) -> Any:
    def of_site(whole: torch.Tensor) -> torch.Tensor:
        if columns is None:
            return edited(whole)
        index = torch.tensor(columns, device=whole.device)
        return whole.index_copy(-1, index, edited(whole.index_select(-1, index)))

    def edited(h: torch.Tensor) -> torch.Tensor:
        wide = torch.promote_types(h.dtype, torch.float32)
        rows = h.to(wide).view(1, -1, h.shape[-1])
        delta = _FORMULAS[one["formula"]](rows, vector.to(rows), one)
        return (rows + one["strength"] * delta * mask.to(rows)).to(h.dtype).view_as(h)

    return (on_input if is_input else on_output)(module, of_site)


def _card(m: IntervenedModel) -> str:
    return export_card(
        m,
        library="safetensors",
        relation="adapter",
        title="interventions, as plain vectors",
        about=f"`{VECTORS}` holds one flat float32 tensor an edited place. Its metadata (text; `vectors` is "
        "JSON by tensor name) says of each its site, layer, formula, strength and positions, and `order` in "
        "which order they act. The strength is not folded in; standard deviations of head directions and the "
        f"normalisation of vectors are. Convention: {CONVENTION}.",
        load="import json\nfrom safetensors import safe_open\n\n"
        f'with safe_open("{VECTORS}", framework="pt") as file:\n'
        '    told = json.loads(file.metadata()["vectors"])\n'
        "    vectors = {name: file.get_tensor(name) for name in told}",
    )


EXPORT = Export("vector", judge, _write)
