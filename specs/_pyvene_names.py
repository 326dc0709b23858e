"""pyvene's own names of components: those that a spec may use with `layer:`, and what it says for the others.

pyvene knows these names for the model classes that it lists, with widths that are wrong where
`n_heads*head_dim` is not the hidden size. Here the names of parts of a decoder block are looked for in the
model itself; whatever is no such part is named by its path.
"""

from __future__ import annotations

from typing import Annotated, Final

from pydantic import BeforeValidator, ValidationInfo
from pydantic_core import PydanticCustomError

from subvene.specs._fields import full_match
from subvene.specs._flaws import Expect

LAYERED: Final = (
    "block_input",
    "block_output",
    "mlp_input",
    "mlp_activation",
    "mlp_output",
    "attention_input",
    "attention_value_output",
    "head_attention_value_output",
    "attention_output",
    "query_output",
    "key_output",
    "value_output",
    "head_query_output",
    "head_key_output",
    "head_value_output",
)
"""pyvene's names of the parts of a decoder block, which stand beside `layer:`."""
# Name → path below cell {0} of pyvene's GRUs.
_CELLS: Final = {
    "cell_input": "input",
    "cell_output": "output",
    "reset_gate_input": "reset_act.input",
    "reset_gate_output": "reset_act.output",
    "update_gate_input": "update_act.input",
    "update_gate_output": "update_act.output",
    "new_gate_input": "new_act.input",
    "new_gate_output": "new_act.output",
    "x2h_output": "x2h.output",
    "h2h_output": "h2h.output",
}
# The gates of such a cell stand side by side in x2h and h2h.
_THIRDS: Final = ("reset", "update", "new")


def instead_of(name: str, layer: object) -> str | None:
    """What a spec says instead of pyvene's component `name` at `layer`; None for a name that may stand there.

    Args:
        name: what stands in `component:`.
        layer: what stands in `layer:`; anything but an index is left open in the answer.
    """
    at = layer if isinstance(layer, int) and not isinstance(layer, bool) else "N"
    if name == "attention_weight":
        return (
            f"a module path without `layer`: what pyvene calls {name} is "
            f"transformer.h[{at}].attn.attn_dropout.input in GPT-2 with `attn_implementation: eager`; models "
            "laid out as Llama compute it in no module of its own"
        )
    gate, _, rest = name.partition("_")
    whole = rest if gate in _THIRDS and rest in ("x2h_output", "h2h_output") else name
    if whole in _CELLS:
        part = "" if whole == name else f"; it is the {gate} gate's third there, which `subspaces` picks"
        return (
            f"a module path without `layer`: what pyvene calls {name} is cells[{at}].{_CELLS[whole]} in its "
            f"GRU, gru.cells[{at}].{_CELLS[whole]} with a head on it{part}"
        )
    return None


def _known(component: object, info: ValidationInfo) -> object:
    if isinstance(component, str) and (instead := instead_of(component, info.data.get("layer"))):
        raise PydanticCustomError("expected", "expected {expected}", {"expected": instead})
    return component


_PATH = r"[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])*(\.[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])*)*\.(input|output)"

Component = Annotated[
    str,
    full_match(f"{_PATH}|{'|'.join(LAYERED)}"),
    BeforeValidator(_known),
    Expect(
        "a module path that ends in .input or .output, such as model.layers[3].mlp.act_fn.output, or (with "
        f"`layer`) one of pyvene's names: {', '.join(LAYERED)}"
    ),
]
"""A module's input or output by its path, or the part of a decoder block by pyvene's name of it."""
