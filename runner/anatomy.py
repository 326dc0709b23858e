"""Where a model keeps its decoder blocks, attention heads, output projections and MLPs.

Found from the module tree and the sizes in the config, never from a table of class names, so that an
architecture that is new tomorrow works, or fails here with a clear error.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from subvene.interventions import Sizes
from subvene.specs import SubveneError

# Children of an attention module that are not its output projection, whatever their shapes.
_INPUT_PROJECTION = re.compile(r"(^|_)(q|k|v|qkv|query|key|value)(_|$)")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe|experts")


class AnatomyError(SubveneError):
    """This model has no such part, or it cannot be told which module it is."""


@dataclass(frozen=True)
class Anatomy:
    """Module paths and sizes of one loaded decoder-only model.

    Attributes:
        model: the model itself.
        blocks_path: dotted path of the list of decoder blocks (`model.layers`).
        sizes: counts that tensors depend on; `head_dim` is read from the output projection.
    """

    model: nn.Module
    blocks_path: str
    sizes: Sizes

    @classmethod
    def of(cls, model: nn.Module) -> Anatomy:
        """Read the anatomy of a transformers causal language model.

        Raises:
            AnatomyError: the decoder blocks cannot be found, or there are several candidates.
        """
        text = text_config(model.config)
        sizes = sizes_from_config(model.config)
        n_heads = sizes.n_heads
        blocks_path = _find_blocks(model, sizes.n_layers)
        blocks = model.get_submodule(blocks_path)
        for block in blocks:
            if attention := _attention_of(block, text.hidden_size):
                projection = _output_projection(attention[1], text.hidden_size)
                head_dim, rest = divmod(_features(projection[1])[0], n_heads)
                if rest:
                    raise AnatomyError(
                        f"{type(model).__name__}: the output projection reads {_features(projection[1])[0]} features, "
                        f"which {n_heads} heads do not divide"
                    )
                return cls(model, blocks_path, Sizes(len(blocks), text.hidden_size, n_heads, head_dim))
        raise AnatomyError(
            f"{type(model).__name__}: no block of {blocks_path} holds an attention module with an output projection "
            f"to the residual width {text.hidden_size}"
        )

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return self.model.get_submodule(self.blocks_path)

    def component(self, site: str, layer: int) -> str:
        """The pyvene component (a raw module path) of `site` at block `layer` (0-based).

        Raises:
            AnatomyError: the layer is out of range, or this block has no such part.
        """
        if not 0 <= layer < self.sizes.n_layers:
            raise AnatomyError(f"layer {layer} is out of range: this model has layers 0 to {self.sizes.n_layers - 1}")
        block, path = self.blocks[layer], f"{self.blocks_path}[{layer}]"
        if site == "block_output":
            return f"{path}.output"
        if site == "mlp_output":
            return f"{path}.{_mlp_of(block, self.sizes.width, path)}.output"
        if (attention := _attention_of(block, self.sizes.width)) is None:
            raise AnatomyError(f"{path} has no attention module, so the site {site} does not exist there")
        if site == "attention_output":
            return f"{path}.{_before_residual(*attention, self.sizes.width)}.output"
        projection = _output_projection(attention[1], self.sizes.width)
        if _features(projection[1])[0] != self.sizes.n_heads * self.sizes.head_dim:
            raise AnatomyError(
                f"{path}.{attention[0]}.{projection[0]} reads {_features(projection[1])[0]} features, and other layers "
                f"have {self.sizes.n_heads} heads of {self.sizes.head_dim}"
            )
        return f"{path}.{attention[0]}.{projection[0]}.input"

    def output_projection(self, layer: int) -> nn.Module:
        """The module whose input is `attention_heads[layer]`: an `nn.Linear`, or GPT-2's `Conv1D`."""
        path = self.component("attention_heads", layer).removesuffix(".input")
        return self.model.get_submodule(re.sub(r"\[(\d+)\]", r".\1", path))


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model (itself, for a text-only model)."""
    return config.get_text_config(decoder=True)


def sizes_from_config(config: Any) -> Sizes:
    """Sizes as far as a config alone tells them, so that a spec can be checked before weights are fetched.

    Raises:
        AnatomyError: the config does not describe a model of attention blocks.
    """
    text = text_config(config)
    found = {name: getattr(text, name, None) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")}
    if missing := [name for name, value in found.items() if not isinstance(value, int) or value < 1]:
        raise AnatomyError(
            f"{type(text).__name__} ({text.model_type}) has no {' and no '.join(missing)}; subvene edits models that "
            "are made of attention blocks"
        )
    n_layers, width, n_heads = found.values()
    return Sizes(n_layers, width, n_heads, getattr(text, "head_dim", None) or width // n_heads)


def _find_blocks(model: nn.Module, count: int) -> str:
    """The list of `count` modules that stands beside the input embeddings."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    embeddings = model.get_input_embeddings()
    siblings = [
        name
        for name, _ in lists
        if any(child is embeddings for child in model.get_submodule(name.rpartition(".")[0]).children())
    ]
    candidates = siblings or [name for name, _ in lists]
    if len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise AnatomyError(f"{type(model).__name__}: expected one list of {count} decoder blocks, found: {found}")
    return candidates[0]


def _features(module: nn.Module) -> tuple[int, int]:
    """(in, out) features of a linear map; transformers' Conv1D stores its weight transposed."""
    if hasattr(module, "in_features"):
        return module.in_features, module.out_features
    return tuple(module.weight.shape)


def _is_linear(module: nn.Module) -> bool:
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return True
    return type(module).__name__ == "Conv1D" and getattr(module, "weight", torch.empty(0)).ndim == 2


def _attention_of(block: nn.Module, width: int) -> tuple[str, nn.Module] | None:
    """Path within the block, and module: called attention, and holding the output projection itself."""
    for path, module in block.named_modules():
        name = path.rpartition(".")[2]
        looks_like_it = re.search(r"att(ention|n)", name) or type(module).__name__.endswith("Attention")
        # What is called linear attention is a recurrence with a short convolution: it has no attention heads.
        recurrent = any(isinstance(child, nn.Conv1d) for child in module.children())
        if path and looks_like_it and "norm" not in name and not recurrent and _output_projection(module, width):
            return path, module
    return None


def _output_projection(module: nn.Module, width: int) -> tuple[str, nn.Module] | None:
    """The last linear child that maps to the residual width and is not one of the input projections."""
    candidates = [
        (name, child)
        for name, child in module.named_children()
        if _is_linear(child) and _features(child)[1] == width and not _INPUT_PROJECTION.search(name)
    ]
    return candidates[-1] if candidates else None


def _mlp_of(block: nn.Module, width: int, path: str) -> str:
    """The child that is neither attention nor norm; or the last bare linear map back to the residual width."""
    attention = _attention_of(block, width)
    rest = [
        (name, child)
        for name, child in block.named_children()
        if not (attention and attention[0].partition(".")[0] == name) and any(p.ndim > 1 for p in child.parameters())
    ]
    if len(rest) > 1 and all(_is_linear(child) for _, child in rest):
        if projection := _output_projection(nn.ModuleDict(dict(rest)), width):
            return projection[0]
    elif len(rest) == 1 or len(rest := [(name, m) for name, m in rest if _FEED_FORWARD.search(name)]) == 1:
        return _before_residual(*rest[0], width)
    found = ", ".join(name for name, _ in rest) or "none"
    raise AnatomyError(f"{path}: cannot tell which module is the MLP; candidates: {found}")


def _before_residual(path: str, module: nn.Module, width: int) -> str:
    """`path`; or the projection in it, for a module that takes the residual stream and adds it itself."""
    if "residual" not in inspect.signature(module.forward).parameters:
        return path
    if (projection := _output_projection(module, width)) is None:
        raise AnatomyError(f"{path} adds the residual stream itself, and what it adds to cannot be told")
    return f"{path}.{projection[0]}"
