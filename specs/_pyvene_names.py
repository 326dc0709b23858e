"""pyvene's own names of components, and what a spec says instead.

pyvene knows these names for the model classes that it lists, with widths that are wrong where
`n_heads*head_dim` is not the hidden size. A spec names one of its own sites, or a module by its path.
"""

from __future__ import annotations

from typing import Final

# Name → our site; heads stand side by side in `attention_heads`.
_SITES: Final = {
    "block_output": "block_output",
    "mlp_output": "mlp_output",
    "attention_output": "attention_output",
    "attention_value_output": "attention_heads",
    "head_attention_value_output": "attention_heads",
}
# Name → path below block {0} where blocks are as in Llama, Mistral, Qwen, Gemma and OLMo; and as in GPT-2.
_PATHS: Final = {
    "block_input": ("input", "input"),
    "mlp_input": ("mlp.input", "mlp.input"),
    "mlp_activation": ("mlp.act_fn.output", "mlp.act.output"),
    "attention_input": ("self_attn.input", "attn.input"),
    "query_output": ("self_attn.q_proj.output", "attn.c_attn.output"),
    "key_output": ("self_attn.k_proj.output", "attn.c_attn.output"),
    "value_output": ("self_attn.v_proj.output", "attn.c_attn.output"),
    "head_query_output": ("self_attn.q_proj.output", "attn.c_attn.output"),
    "head_key_output": ("self_attn.k_proj.output", "attn.c_attn.output"),
    "head_value_output": ("self_attn.v_proj.output", "attn.c_attn.output"),
}
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
    """What a spec says instead of pyvene's component `name` at `layer`; None for a name that is not pyvene's.

    Args:
        name: what stands in `component:`.
        layer: what stands in `layer:`; anything but an index is left open in the answer.
    """
    at = layer if isinstance(layer, int) and not isinstance(layer, bool) else "N"
    if name in _SITES:
        alone = " (all heads side by side)" if _SITES[name] == "attention_heads" else ""
        return (
            f"`site: {_SITES[name]}` with `layer: {at}` and without `component`{alone}, "
            f"which is what pyvene calls {name}"
        )
    if name in _PATHS:
        llama, gpt2 = _PATHS[name]
        return (
            f"a module path without `layer`: what pyvene calls {name} is model.layers[{at}].{llama} in "
            f"models laid out as Llama, transformer.h[{at}].{gpt2} in GPT-2{_width(name)}"
        )
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


def _width(name: str) -> str:
    if name.startswith("head_"):
        return "; heads stand side by side there, and `subspaces` picks one's dimensions"
    if name in ("query_output", "key_output", "value_output"):
        return ", where query, key and value stand side by side"
    return ""
