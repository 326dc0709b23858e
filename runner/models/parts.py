"""Where a model keeps the parts of a decoder block that pyvene has names for, and which columns they are.

Found in the module tree, as the rest of a model's anatomy. Query, key and value that one module computes
together are told apart for the attention modules whose order is known; others are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from subvene.interventions import Sizes
from subvene.interventions.tensors import Part
from subvene.runner.models.anatomy import Anatomy, AnatomyError, component_module
from subvene.runner.models.projections import projection_of

_SITES = {
    "block_output": "block_output",
    "mlp_output": "mlp_output",
    "attention_output": "attention_output",
    "attention_value_output": "attention_heads",
    "head_attention_value_output": "attention_heads",
}


@dataclass(frozen=True)
class ModuleSizes(Sizes):
    """Of a loaded model whose blocks are not known, only its modules."""

    model: nn.Module

    @classmethod
    def of(cls, model: nn.Module) -> ModuleSizes:
        """The sizes of a model."""
        return cls(n_layers=0, width=0, n_heads=0, head_dim=0, model=model)

    def module_width(self, component: str) -> int:
        """How wide a module's input or output is."""
        return _width_of(self.model, component)


def _width_of(model: nn.Module, component: str) -> int:
    """How wide a module's input or output is: as its own sizes say, else the config's hidden size.

    Another width than this is told when the module runs.

    Raises:
        AnatomyError: neither says it.
    """
    module: Any
    try:
        module, is_input = component_module(model, component)
    except AttributeError as error:
        raise AnatomyError(f"component {component!r}: this model has no such module ({error})") from error
    own = "in_features" if is_input else "out_features"
    if type(module).__name__ == "Conv1D":
        return int(module.weight.shape[0 if is_input else 1])
    for name in (own, "embedding_dim", "normalized_shape"):
        if (found := getattr(module, name, None)) is not None and not (is_input and name == "embedding_dim"):
            return int(found[-1] if isinstance(found, tuple) else found)
    config = getattr(model, "config", None)
    for name in ("hidden_size", "h_dim"):  # pyvene's own models have the second
        if isinstance(found := getattr(config, name, None), int):
            return found
    raise AnatomyError(f"how wide {component} is, neither the module nor the config says")


@dataclass(frozen=True)
class PartSizes(Sizes):
    """The sizes of a loaded model, which also knows where its parts are."""

    anatomy: Anatomy

    @classmethod
    def of(cls, anatomy: Anatomy) -> PartSizes:
        """The sizes of a model."""
        sizes = {field.name: getattr(anatomy.sizes, field.name) for field in fields(Sizes)}
        return cls(**sizes, anatomy=anatomy)

    def own_width(self, site: str, layer: int | None) -> int:
        """The width of a site that follows from no count of the model."""
        if layer is None:
            raise AnatomyError(f"{site} of which layer?")
        component = self.anatomy.component(site, layer)
        columns = self.anatomy.columns(site, layer)
        return _width_of(self.anatomy.model, component) if columns is None else len(columns)

    def module_width(self, component: str) -> int:
        """How wide a module's input or output is."""
        return _width_of(self.anatomy.model, component)

    def part(self, component: str, layer: int, heads: Sequence[int] | None) -> Part:
        """Where pyvene's component of block `layer` is.

        Raises:
            AnatomyError: this block has no such part or head, or it cannot be told which module it is.
        """
        path, columns, width = _place(self.anatomy, component, layer)
        if not component.startswith("head_"):
            if heads is not None:
                raise AnatomyError(
                    f"{component} has no heads; pyvene's component of heads is head_{component}"
                )
            return Part(path, width, columns)
        return _of_heads(path, columns, width, heads, self.head_dim)


def _of_heads(
    path: str, columns: tuple[int, ...] | None, width: int, heads: Sequence[int] | None, head_dim: int
) -> Part:
    count, rest = divmod(width, head_dim)
    if rest:
        raise AnatomyError(f"{path}: {width} columns are no heads of {head_dim}")
    if beyond := [head for head in heads or () if head >= count]:
        raise AnatomyError(f"{path}: heads: expected heads from 0 to {count - 1}, found {beyond[0]}")
    columns = columns or tuple(range(width))
    chosen = range(count) if heads is None else heads
    ours = tuple(column for h in chosen for column in columns[h * head_dim : (h + 1) * head_dim])
    return Part(path, head_dim, ours, head_dim)


def _place(anatomy: Anatomy, component: str, layer: int) -> tuple[str, tuple[int, ...] | None, int]:
    """The module's input or output, its columns (None: all of them), and how many these are."""
    if (site := _SITES.get(component)) is not None:
        return anatomy.component(site, layer), None, anatomy.sizes.site_width(site)
    width = anatomy.sizes.width
    if component in ("block_input", "mlp_input"):
        return anatomy.component(component, layer), None, width
    if component == "mlp_activation":
        path, features = _activation(anatomy, layer)
        return path, None, features
    projection = anatomy.component("attention_heads", layer).removesuffix(".input")
    attention = projection.rpartition(".")[0]
    if component == "attention_input":
        return f"{attention}.input", None, width
    which = component.removeprefix("head_").removesuffix("_output")
    module = component_module(anatomy.model, f"{attention}.output")[0]
    found = projection_of(module, which, attention, anatomy.sizes)
    return f"{attention}.{found.name}.output", found.columns, found.width


def _activation(anatomy: Anatomy, layer: int) -> tuple[str, int]:
    """The output of the activation function in the feed-forward part, and how wide it is."""
    path = anatomy.component("mlp_output", layer).removesuffix(".output")
    mlp = component_module(anatomy.model, f"{path}.output")[0]
    own = list(mlp.named_children())
    functions = [
        name for name, child in own if not any(True for _ in child.parameters()) and _is_function(child)
    ]
    linear = [child for _, child in own if any(p.ndim == 2 for p in child.parameters())]
    features = {size for child in linear for size in _shape(child)} - {anatomy.sizes.width}
    if len(functions) != 1 or len(features) != 1:
        found = ", ".join(functions) or "none"
        raise AnatomyError(
            f"{path}: which module is its activation function cannot be told (found: {found}); "
            "name it by its path"
        )
    return f"{path}.{functions[0]}.output", features.pop()


def _is_function(child: nn.Module) -> bool:
    return not isinstance(child, nn.Dropout | nn.Identity | nn.ModuleList)


def _shape(linear: Any) -> tuple[int, ...]:
    if hasattr(linear, "in_features"):
        return int(linear.in_features), int(linear.out_features)
    return tuple(next(p for p in linear.parameters() if p.ndim == 2).shape)
