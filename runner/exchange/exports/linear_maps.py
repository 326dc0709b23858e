"""What interventions amount to in the linear maps of a model: W ← W + L·R, b ← b + β.

An affine edit of the input of a map (`attention_heads`, `mlp_neurons`), o ↦ o + B·A·o + d, is the change
(W·B)·A of its weight and W·d of its bias; one of its output, y ↦ y + B·A·y + d, is B·(A·W) and B·A·b + d.
What is added to the output of a whole block is added to the bias of a map whose output arrives there as it
is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from subvene.interventions import Affine
from subvene.runner.edits.hooks import take_output
from subvene.runner.exchange.exports.affine import affine_of
from subvene.runner.exchange.exports.approximation import mean_shifts
from subvene.runner.exchange.exports.base import KEEP, ExportError
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.devices import input_device
from subvene.runner.models.evaluating import evaluating
from subvene.runner.models.projections import PROJECTIONS

INPUTS = ("attention_heads", "mlp_neurons")
"""Sites that are the input of a linear map."""
# The order in which a block computes its sites, as far as two of them can share a map.
_ORDER = ("query", "key", "value", *INPUTS, "attention_output", "mlp_output", "block_output")


@dataclass(frozen=True)
class Change:
    """What becomes of one linear map, in float64 on the CPU.

    Attributes:
        path: the module's dotted path in the model.
        left: [features out, rank].
        right: [rank, features in]; `left @ right` is added to the weight [out, in].
        bias: what is added to its bias, [features out].
    """

    path: str
    left: torch.Tensor
    right: torch.Tensor
    bias: torch.Tensor


def changes(m: IntervenedModel, *, approximate: bool = False) -> list[Change]:
    """What the interventions of `m` amount to, one change a linear map, in the order of the model.

    The caller has judged them: positions are not looked at.

    Args:
        m: the intervened model.
        approximate: put the mean of what it adds in the place of an edit that is no affine map.

    Raises:
        ExportError: naming every intervention that no map of this model can hold.
    """
    anatomy = Anatomy.of(m.model)
    composed: dict[tuple[int, str], Affine] = {}
    names: dict[tuple[int, str], list[str]] = {}
    means: Mapping[str, torch.Tensor] | None = None
    for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True):
        if declared.strength == 0:
            continue
        for place, key in zip(entry.sites, entry.keys, strict=True):
            edit = m.intervenable.interventions[key]
            affine = affine_of(edit)
            site, _, layer = place.rstrip("]").rpartition("[")
            if affine is None or (site == "block_output" and len(affine.a)):
                if not approximate:
                    raise ExportError(f"{entry.name} ({declared.kind}) at {place}: no affine map; {KEEP}")
                means = mean_shifts(m) if means is None else means
                affine = Affine.constant(means[key])
            elif edit.site_columns is not None:
                module: Any = anatomy.model.get_submodule(module_path(anatomy.component(site, int(layer))))
                affine = affine.at(edit.site_columns, weight_of(module).shape[0])
            where = (int(layer), site)
            composed[where] = composed[where].then(affine) if where in composed else affine
            names.setdefault(where, []).append(f"{entry.name} ({declared.kind})")
    found: dict[str, Change] = {}
    problems: list[str] = []
    for block, site in sorted(composed, key=lambda at: (at[0], _ORDER.index(at[1]))):
        affine = composed[block, site]
        try:
            path = _path_for(anatomy, site, block, is_constant=not len(affine.a))
            found[path] = _changed(m.model, found.get(path) or _unchanged(m.model, path), site, affine)
        except ExportError as error:
            problems += [f"{name} at {site}[{block}]: {error}" for name in names[block, site]]
    if problems:
        raise ExportError("\n".join(problems))
    return list(found.values())


def module_path(component: str) -> str:
    """The dotted path of a component's module: `model.layers[3].mlp.output` is of `model.layers.3.mlp`."""
    return component.rpartition(".")[0].replace("[", ".").replace("]", "")


def is_transposed(module: nn.Module) -> bool:
    """Whether a linear map keeps its weight as [in, out], as GPT-2's Conv1D does."""
    return type(module).__name__ == "Conv1D"


def weight_of(module: Any) -> torch.Tensor:
    """The weight of a linear map as [out, in], float64 on the CPU."""
    weight: torch.Tensor = module.weight.detach().cpu().double()
    return weight.T if is_transposed(module) else weight


def _unchanged(model: nn.Module, path: str) -> Change:
    module: Any = model.get_submodule(path)
    is_plain = isinstance(module, nn.Linear) or is_transposed(module)
    if not is_plain or not module.weight.is_floating_point() or module.weight.is_meta:
        raise ExportError(
            f"{path} is a {type(module).__name__} whose weights are {module.weight.dtype} on "
            f"{module.weight.device}; they are needed as they are: load the model in full or half precision, "
            "without an adapter and without offloading"
        )
    shared = [n for n, p in model.named_parameters(remove_duplicate=False) if p is module.weight]
    if len(shared) > 1:
        raise ExportError(f"{path} shares its weight with {', '.join(shared)}; {KEEP}")
    out, into = weight_of(module).shape
    zeros = torch.zeros(out, into + 1, dtype=torch.float64)
    return Change(path, zeros[:, :0], zeros[:0, :into], zeros[:, -1])


def _changed(model: nn.Module, change: Change, site: str, affine: Affine) -> Change:
    """A change followed by an affine edit of the map's input (the first) or output."""
    module: Any = model.get_submodule(change.path)
    weight = weight_of(module)
    if site in INPUTS:
        return Change(change.path, weight @ affine.b.T, affine.a, weight @ affine.d)
    bias = change.bias if module.bias is None else change.bias + module.bias.detach().cpu().double()
    return Change(
        change.path,
        torch.cat([change.left + affine.b.T @ (affine.a @ change.left), affine.b.T], 1),
        torch.cat([change.right, affine.a @ weight]),
        change.bias + (affine.a @ bias) @ affine.b + affine.d,
    )


def _path_for(anatomy: Anatomy, site: str, layer: int, *, is_constant: bool) -> str:
    """The path of the linear map that holds an edit of `site[layer]`."""
    component = anatomy.component(site, layer)
    if site in INPUTS or site in PROJECTIONS:
        return module_path(component)
    for path in _candidates(anatomy, layer):
        if _arrives(anatomy, path, component, alone=not is_constant):
            return path
    stands = "a norm, a factor or a router stands between"
    if is_constant:
        raise ExportError(
            f"in this model no linear map's bias is added to this site as it is ({stands}); {KEEP}"
        )
    raise ExportError(f"in this model this site is not the output of a linear map ({stands}); {KEEP}")


def _candidates(anatomy: Anatomy, layer: int) -> Iterator[str]:
    """The linear maps of a block to the residual width, the last one first."""
    found = []
    for name, module in anatomy.blocks[layer].named_modules():
        features = getattr(module, "out_features", getattr(module, "nf", None))  # nf: GPT-2's Conv1D
        if (isinstance(module, nn.Linear) or is_transposed(module)) and features == anatomy.sizes.width:
            found.append(f"{anatomy.blocks_path}.{layer}.{name}")
    return reversed(found)


@torch.no_grad()
def _arrives(anatomy: Anatomy, path: str, component: str, *, alone: bool) -> bool:
    """Whether what is added to the output of `path` is added to `component`, whatever is between.

    Found out by adding something, so that norms, residual factors and routers need not be known by name.

    Args:
        anatomy: of the model.
        path: a linear map.
        component: the output of a module.
        alone: also ask that nothing else is added: that the component is the map's output.
    """
    model: Any = anatomy.model
    target, _ = component_module(model, component)
    ids = torch.arange(1, 5, device=input_device(model)).unsqueeze(0)
    added: torch.Tensor | None = None
    given: list[torch.Tensor] = []
    seen: list[torch.Tensor] = []

    def add(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        output = output if added is None else output + added.to(output)
        given.append(output.detach().cpu().double())
        return output

    def see(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(take_output(output)[0].detach().cpu().double())

    handles = [
        model.get_submodule(path).register_forward_hook(add),
        target.register_forward_hook(see),
    ]
    try:
        with evaluating(model):
            model(input_ids=ids, use_cache=False)
            # As large as what is there, so that rounding does not hide it.
            size = float(seen[0].abs().max()) or 1.0
            generator = torch.Generator().manual_seed(0)
            added = size * (2 * torch.rand(anatomy.sizes.width, generator=generator) - 1)
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    before, after = (h.reshape(-1, h.shape[-1]) for h in seen)
    tolerance = 32 * torch.finfo(model.dtype).eps * size
    if alone and (given[-1].shape[-1] != after.shape[-1] or given[-1].numel() != after.numel()):
        return False
    if alone and not bool((given[-1].reshape(after.shape) - after).abs().max() <= tolerance):
        return False
    return bool(((after - before) - added.double()).abs().max() <= tolerance)
