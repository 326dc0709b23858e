"""Where a model keeps its decoder blocks, attention heads, output projections and MLPs.

Found from the module tree and the sizes in the config, never from a table of class names, so that an
architecture that is new tomorrow works, or fails here with a clear error.
"""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

from torch import nn

from subvene.interventions import Sizes
from subvene.runner.models.linear import AnatomyError as AnatomyError
from subvene.runner.models.linear import features_of, is_linear
from subvene.runner.models.projections import PROJECTIONS, projection_of

# Children of an attention module that are not its output projection, whatever their shapes.
_INPUT_PROJECTION = re.compile(r"(^|_)(q|k|v|qkv|query|key|value)(_|$)|^W(q|k|v|qkv)$|gate")
# Children of a feed-forward module that give its neurons, where these are as many as the residual width.
_UP_PROJECTION = re.compile(r"(^|_)(up|gate|fc1|fc_in|w1|w3|fc|h_to_4h)(_|$)|_h_to_4h")
_EXPERTS = re.compile(r"experts?(_|$)")
_FEED_FORWARD = re.compile(r"mlp|ffn|feed_?forward|moe|experts")


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
        config = getattr(model, "config", None)
        if not hasattr(config, "get_text_config"):
            raise AnatomyError(
                f"{type(model).__name__} has no transformers config, so its blocks are not known"
            )
        text, sizes = text_config(config), sizes_from_config(config)
        blocks_path = _find_blocks(model, sizes.n_layers)
        blocks = cast(nn.ModuleList, model.get_submodule(blocks_path))
        for block in blocks:
            if attention := _attention_of(block, sizes.width):
                features = features_of(attention.projection)[0]
                head_dim, rest = divmod(features, sizes.n_heads)
                stated = [_of_all_layers(text, field) for field in ("head_dim", "v_head_dim")]
                # Where a config says how wide heads are, another width is something else than heads:
                # the rank of an output projection in two steps, for one.
                if rest or (any(stated) and head_dim not in (*stated, sizes.width // sizes.n_heads)):
                    raise AnatomyError(
                        f"{type(model).__name__}: {attention.projection_path} reads {features} features, "
                        f"which are not those of the config's {sizes.n_heads} heads"
                    )
                return cls(model, blocks_path, replace(sizes, n_layers=len(blocks), head_dim=head_dim))
        raise AnatomyError(
            f"{type(model).__name__}: no block of {blocks_path} holds an attention module with an output "
            f"projection to the residual width {sizes.width}"
        )

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks, in order."""
        return cast(nn.ModuleList, self.model.get_submodule(self.blocks_path))

    def component(self, site: str, layer: int) -> str:
        """The pyvene component (a raw module path) of `site` at block `layer` (0-based).

        Raises:
            AnatomyError: the layer is out of range, or this block has no such part.
        """
        if not 0 <= layer < self.sizes.n_layers:
            raise AnatomyError(
                f"layer {layer} is out of range: this model has layers 0 to {self.sizes.n_layers - 1}"
            )
        block, path = self.blocks[layer], f"{self.blocks_path}[{layer}]"
        if site in ("block_output", "block_input"):
            return f"{path}.{site.removeprefix('block_')}"
        if site.startswith("mlp_"):
            return f"{path}.{_of_mlp(block, self.sizes.width, path, site)}"
        if (attention := _attention_of(block, self.sizes.width)) is None:
            raise AnatomyError(f"{path} has no attention module, so the site {site} does not exist there")
        if site == "attention_output":
            return f"{path}.{_before_residual(attention.path, attention.module, self.sizes.width)}.output"
        if site in PROJECTIONS:
            found = projection_of(attention.module, site, attention.path, self.sizes)
            return f"{path}.{attention.path}.{found.name}.output"
        features = features_of(attention.projection)[0]
        if features != self.sizes.n_heads * self.sizes.head_dim:
            raise AnatomyError(
                f"{path}.{attention.projection_path} reads {features} features, "
                f"and other layers have {self.sizes.n_heads} heads of {self.sizes.head_dim}"
            )
        return f"{path}.{attention.projection_path}.input"

    def columns(self, site: str, layer: int) -> tuple[int, ...] | None:
        """The columns of `component(site, layer)` that are the site; None for all of them."""
        attention = _attention_of(self.blocks[layer], self.sizes.width) if site in PROJECTIONS else None
        if attention is None:
            return None
        return projection_of(attention.module, site, attention.path, self.sizes).columns

    def output_projection(self, layer: int) -> nn.Module:
        """The module whose input is `attention_heads[layer]`: an `nn.Linear`, or GPT-2's `Conv1D`."""
        return component_module(self.model, self.component("attention_heads", layer))[0]


def component_module(model: nn.Module, component: str) -> tuple[nn.Module, bool]:
    """The module of a pyvene component (`model.layers[3].mlp.output`), and whether its input is meant.

    Raises:
        AttributeError: the model has no such module.
    """
    path, _, end = component.rpartition(".")
    return model.get_submodule(path.replace("[", ".").replace("]", "")), end == "input"


def reads_one_text(model: Any) -> bool:
    """Whether a model's calls are about one sequence of tokens, so that it may have an anatomy.

    An encoder-decoder reads two, and an image model none.
    """
    if getattr(model.config, "is_encoder_decoder", False):
        return False
    return getattr(model, "main_input_name", None) == "input_ids"


def nearest_component(model: nn.Module, component: str) -> str | None:
    """The component of this model that a path which it does not have was probably meant to name.

    Tried are the path under the names that this model has for its own blocks (`transformer.h[3].input` for
    `model.layers[3].input`), then the nearest spelling.
    """
    path, _, end = component.rpartition(".")
    names = [_as_component(name) for name, _ in model.named_modules() if name]
    if found := re.search(r"\[(\d+)\](.*)$", path):
        blocks = [name for name in names if name.endswith(f"[{found[1]}]") and name.count("[") == 1]
        for block in blocks:
            if (candidate := block + found[2]) in names:
                return f"{candidate}.{end}"
    near = difflib.get_close_matches(path, names, n=1)
    return f"{near[0]}.{end}" if near else None


def _as_component(name: str) -> str:
    """A module's name (`model.layers.3.mlp`) as pyvene writes it (`model.layers[3].mlp`)."""
    return re.sub(r"\.(\d+)(?=\.|$)", r"[\1]", name)


def text_config(config: Any) -> Any:
    """The part of a config that describes the language model (itself, for a text-only model)."""
    return config.get_text_config(decoder=True)


def sizes_from_config(config: Any) -> Sizes:
    """Sizes as far as a config alone tells them, so that a spec can be checked before weights are fetched.

    Raises:
        AnatomyError: the config does not describe a model of attention blocks.
    """
    text = text_config(config)
    names = ("num_hidden_layers", "hidden_size", "num_attention_heads")
    found = {name: _of_all_layers(text, name) for name in names}
    if missing := [name for name, value in found.items() if not isinstance(value, int) or value < 1]:
        raise AnatomyError(
            f"{type(text).__name__} ({text.model_type}) has no {' and no '.join(missing)} that all layers "
            "share; subvene edits models that are made of attention blocks"
        )
    n_layers, width, n_heads = found.values()
    return Sizes(n_layers, width, n_heads, _of_all_layers(text, "head_dim") or width // n_heads)


def _of_all_layers(config: Any, name: str) -> Any:
    """A config's attribute; None where there is none, or where transformers says that layers differ in it."""
    try:
        return getattr(config, name, None)
    except RuntimeError:
        return None


def _find_blocks(model: nn.Module, count: int) -> str:
    """The list of `count` modules that stands beside the input embeddings."""
    lists = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    try:
        embeddings = cast(Any, model).get_input_embeddings()
    except (NotImplementedError, AttributeError) as error:
        raise AnatomyError(f"{type(model).__name__} does not say which its input embeddings are") from error
    siblings = [
        name
        for name, _ in lists
        if any(child is embeddings for child in model.get_submodule(name.rpartition(".")[0]).children())
    ]
    candidates = siblings or [name for name, _ in lists]
    if len(candidates) != 1:
        found = ", ".join(candidates) or "none"
        raise AnatomyError(
            f"{type(model).__name__}: expected one list of {count} decoder blocks, found: {found}"
        )
    return candidates[0]


@dataclass(frozen=True)
class _Attention:
    """An attention module and its output projection, with their paths within the block."""

    path: str
    module: nn.Module
    projection_path: str
    projection: nn.Module


def _attention_of(block: nn.Module, width: int) -> _Attention | None:
    """The module that is called attention and holds the output projection itself."""
    for path, module in block.named_modules():
        name = path.rpartition(".")[2]
        looks_like_it = re.search(r"att(ention|n)", name) or type(module).__name__.endswith("Attention")
        if not path or not looks_like_it or "norm" in name:
            continue
        if not _is_recurrent(module) and (projection := _output_projection(module, width)):
            return _Attention(path, module, f"{path}.{projection[0]}", projection[1])
    return None


def _output_projection(attention: nn.Module, width: int) -> tuple[str, nn.Module] | None:
    """The one linear child that maps to the residual width and is not one of the input projections."""
    candidates = _projections(attention.named_children(), width)
    if len(candidates) > 1:
        names = ", ".join(name for name, _ in candidates)
        raise AnatomyError(f"{type(attention).__name__}: cannot tell which is the output projection: {names}")
    return candidates[0] if candidates else None


def _projections(children: Iterable[tuple[str, nn.Module]], width: int) -> list[tuple[str, nn.Module]]:
    return [
        (name, child)
        for name, child in children
        if is_linear(child) and features_of(child)[1] == width and not _INPUT_PROJECTION.search(name)
    ]


def _of_mlp(block: nn.Module, width: int, path: str, site: str) -> str:
    """`mlp_output`, `mlp_input` or `mlp_neurons` as a component below the block."""
    name, module, first = _mlp_of(block, width, path)
    if site == "mlp_output":
        return f"{name if first else _before_residual(name, module, width)}.output"
    if site == "mlp_input":
        return f"{first or name}.input"
    down = name if first else f"{name}.{_down_projection(module, width, f'{path}.{name}')}"
    return f"{down}.input"


def _down_projection(mlp: nn.Module, width: int, path: str) -> str:
    """The one linear child that maps neurons to the residual width.

    Raises:
        AnatomyError: experts have a projection each, which sees the tokens that were sent to it only; or it
            cannot be told.
    """
    children = list(mlp.named_children())
    if experts := [name for name, _ in children if _EXPERTS.search(name)]:
        raise AnatomyError(
            f"{path}: {type(mlp).__name__} sends tokens to {', '.join(experts)}, and no one projection reads "
            "the neurons of all of them; the site mlp_neurons is of layers with one feed-forward part"
        )
    found = [name for name, child in _projections(children, width) if not _UP_PROJECTION.search(name)]
    if len(found) != 1:
        raise AnatomyError(f"{path}: cannot tell which is the down projection: {', '.join(found) or 'none'}")
    return found[0]


def _mlp_of(block: nn.Module, width: int, path: str) -> tuple[str, nn.Module, str | None]:
    """The child that is neither attention nor norm; or the last bare linear map to the residual width.

    Returns:
        Its name, the module, and of bare linear maps the name of the first.
    """
    attention = _attention_of(block, width)
    holds_attention = attention.path.partition(".")[0] if attention else None
    rest = [
        (name, child)
        for name, child in block.named_children()
        if name != holds_attention
        and any(p.ndim > 1 for p in child.parameters())
        and not _is_recurrent(child)
    ]
    if len(rest) > 1 and all(is_linear(child) for _, child in rest):
        if projections := _projections(rest, width):
            return *projections[-1], rest[0][0]
    elif len(named := [(name, child) for name, child in rest if _FEED_FORWARD.search(name)] or rest) == 1:
        return *named[0], None
    found = ", ".join(name for name, _ in rest) or "none"
    raise AnatomyError(f"{path}: cannot tell which module is the MLP; candidates: {found}")


def _is_recurrent(module: nn.Module) -> bool:
    """Whether this mixes tokens by a recurrence (Mamba, linear attention): those hold a convolution."""
    return any(isinstance(child, nn.Conv1d) for child in module.children())


def _before_residual(path: str, module: nn.Module, width: int) -> str:
    """`path`; or the projection in it, for a module that takes the residual stream and adds it itself."""
    if "residual" not in inspect.signature(module.forward).parameters:
        return path
    if (projection := _output_projection(module, width)) is None:
        raise AnatomyError(f"{path} adds the residual stream itself, and what it adds to cannot be told")
    return f"{path}.{projection[0]}"
