"""Baking: an intervened model as an ordinary checkpoint that transformers loads by itself.

What an intervention adds to the input of a linear map, at every token and whatever the activation, is a bias
of that map: W·(o + d) + b = W·o + (b + W·d). So an additive edit at all positions is exactly a bias, up to
the rounding of the model's dtype. Everything else is refused, each with its reason.

A later kind of change (of weights, W ← W + (W·B)·A) is a further field of `Change` and a further branch of
`_change`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCardData
from torch import nn

from subvene.interventions import ActivationIntervention
from subvene.runner.anatomy import Anatomy, component_module, text_config
from subvene.runner.cache import atomic_folder
from subvene.runner.card import hub_id
from subvene.runner.hooks import take_output
from subvene.runner.intervened import IntervenedModel
from subvene.runner.refusals import refuse_compiled
from subvene.specs import InterventionSpec, SubveneError, dump_spec

CARD, RECORD = "README.md", "baked.json"
FORMAT = "1"

_KEEP = (
    "keep it in an artifact (`save_pretrained`), which subvene reloads and which edits exactly as declared"
)
_KINDS = {
    "low_rank_edit": "it changes weights rather than a bias, which this export does not write",
    "capping": "what it does depends on the activation, and a bias does not",
    "ablation": "what it does depends on the activation, and a bias does not",
    "pyvene": "what pyvene's class does may depend on the activation, and a bias does not",
}


class BakeError(SubveneError):
    """These interventions cannot be put exactly into the weights of this model; the message lists why."""


@dataclass(frozen=True)
class Change:
    """What baking changes of one linear map.

    Attributes:
        path: the module's dotted path in the model.
        bias: what is added to its bias, float64 [features out].
    """

    path: str
    bias: torch.Tensor


def bake(m: IntervenedModel) -> Any:
    """A copy of the model with the interventions in its weights; the model of `m` stays as it is.

    Its logits are those of the intervened model, up to rounding (1e-5 in float32; in half precision a bias is
    rounded to the model's dtype). The spec is taken as it stands, with the strengths that it declares.

    Raises:
        BakeError: naming every intervention that no bias expresses, why, and what there is instead.
        CompiledModelError: the model went through `torch.compile`.
    """
    changes, switches = _plan(m)
    model = copy.deepcopy(m.model)
    _forget_quantization(model)
    for name, value in switches.items():
        setattr(text_config(model.config), name, value)
    if switches:
        _add_biases(model, switches)
    with torch.no_grad():
        for change in changes:
            module = model.get_submodule(change.path)
            # Float64 until here, and rounded once.
            module.bias.copy_(module.bias.cpu().double() + change.bias)
    return model


def check_bakeable(m: IntervenedModel) -> None:
    """Check that `bake` can be done, without copying the model.

    Raises:
        BakeError: as `bake` does.
    """
    _plan(m)


def save_baked(m: IntervenedModel, folder: Path | str) -> Path:
    """Write the baked model, its tokenizer, generation config and card; atomically.

    Args:
        m: what is baked.
        folder: where; a folder that is there and that `save_baked` did not write is left alone.

    Returns:
        The folder: `AutoModelForCausalLM.from_pretrained` loads it, without subvene.

    Raises:
        BakeError: as `bake` does, or something else is at `folder`.
    """
    folder = Path(folder)
    is_ours = (folder / RECORD).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not is_ours:
        raise BakeError(f"{folder} exists and holds no baked model; choose another place, or remove it first")
    model = bake(m)
    record = {
        "format": FORMAT,
        "model": m.spec.model.model_dump(mode="json", exclude_none=True),
        "spec": dump_spec(_own(m.spec)),
        "provenance": m.provenance,
        "versions": {name: version(name) for name in ("subvene", "torch", "transformers")},
    }
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if m.tokenizer is not None:
            m.tokenizer.save_pretrained(temporary)
        (temporary / CARD).write_text(_card(m, model), encoding="utf-8")
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return folder


# What is to be changed ------------------------------------------------------------------------------------


def _plan(m: IntervenedModel) -> tuple[list[Change], dict[str, bool]]:
    """The changes, one per linear map, and the switches of the config that give those maps a bias."""
    model = m.model
    refuse_compiled(model)
    _refuse_model(model)
    anatomy = Anatomy.of(model)
    problems: list[str] = []
    sums: dict[str, torch.Tensor] = {}
    for declared, entry in zip(m.spec.interventions, m.intervenable.entries, strict=True):
        edits = [m.intervenable.interventions[key] for key in entry.keys]
        strength = edits[0].strength
        if strength.ndim == 0 and not strength.any():
            continue  # it does nothing, whatever it is
        if reason := next((r for edit in edits if (r := _refusal(declared, edit)) is not None), None):
            problems.append(f"{entry.name} ({declared.kind}): {reason}")
            continue
        for place, edit in zip(entry.sites, edits, strict=True):
            try:
                change = _change(anatomy, place, edit)
            except BakeError as error:
                problems.append(f"{entry.name} ({declared.kind}) at {place}: {error}")
                break
            sums[change.path] = sums[change.path] + change.bias if change.path in sums else change.bias
    if problems:
        raise BakeError("this cannot be baked: " + "\n".join(problems))
    switches = _switches(model, [path for path in sums if model.get_submodule(path).bias is None])
    return [Change(path, bias) for path, bias in sums.items()], switches


def _refusal(declared: Any, edit: ActivationIntervention) -> str | None:
    """Why an edit is no constant at every token, and the nearest thing that can be had exactly."""
    if not edit.is_additive:
        if getattr(edit, "is_adaptive", False):
            return (
                "its strength is self-monitored, α·(1 − p): it depends on the activation, and a bias does "
                f"not; with `adaptive: none` it can be baked, which is another intervention, or {_KEEP}"
            )
        reason = _KINDS.get(edit.kind, "what it does may depend on the activation, and a bias does not")
        return f"{reason}; {_KEEP}"
    if edit.strength.ndim:
        return (
            f"it has one strength per row ({len(edit.strength)} of them), and a checkpoint has one for all; "
            "declare one number and bake each by itself"
        )
    if edit.positions != "all":
        rule = json.dumps(declared.model_dump(mode="json")["positions"])
        return (
            f"positions {rule}: a bias acts on every token; with `positions: all` it can be baked, which is "
            f"another intervention (measure it as such), or {_KEEP}"
        )
    return None


def _change(anatomy: Anatomy, place: str, edit: ActivationIntervention) -> Change:
    """The change of one linear map that an additive edit at `site[layer]` amounts to."""
    site, _, index = place.rstrip("]").rpartition("[")
    layer, constant = int(index), edit.delta(torch.zeros(1, 1, 1)).detach().cpu().double().reshape(-1)
    vector = edit.strength.cpu().double() * constant
    if site == "attention_heads":
        path = _path(anatomy.component(site, layer))
        weight = _linear(anatomy.model, path).weight.detach().cpu().double()
        return Change(path, vector @ weight if _is_transposed(anatomy.model, path) else weight @ vector)
    component = anatomy.component(site, layer)
    for path in _candidates(anatomy, layer):
        if _adds_to(anatomy, path, component):
            return Change(path, vector)
    raise BakeError(
        "in this model no linear map's bias is added to this site as it is (a norm, a factor or a router "
        f"stands between); {_KEEP}"
    )


def _path(component: str) -> str:
    """The dotted path of a component's module: `model.layers[3].mlp.output` → `model.layers.3.mlp`."""
    return component.rpartition(".")[0].replace("[", ".").replace("]", "")


def _linear(model: nn.Module, path: str) -> Any:
    module: Any = model.get_submodule(path)
    is_plain = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    if not is_plain or not module.weight.is_floating_point() or module.weight.is_meta:
        raise BakeError(
            f"{path} is a {type(module).__name__} whose weights are {module.weight.dtype} on "
            f"{module.weight.device}; baking needs them as they are: load the model in full or half "
            "precision, without an adapter and without offloading"
        )
    return module


def _is_transposed(model: nn.Module, path: str) -> bool:
    return type(model.get_submodule(path)).__name__ == "Conv1D"


def _candidates(anatomy: Anatomy, layer: int) -> Iterator[str]:
    """The linear maps of a block to the residual width, the last one first."""
    found = []
    for name, module in anatomy.blocks[layer].named_modules():
        features = getattr(module, "out_features", getattr(module, "nf", None))  # nf: GPT-2's Conv1D
        is_linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        if is_linear and features == anatomy.sizes.width:
            found.append(f"{anatomy.blocks_path}.{layer}.{name}")
    return reversed(found)


@torch.no_grad()
def _adds_to(anatomy: Anatomy, path: str, component: str) -> bool:
    """Whether adding a vector to the output of `path` adds this vector to `component`, whatever is between.

    Found out by adding one, so that norms, residual factors and routers need not be known by name.
    """
    model: Any = anatomy.model
    target, _ = component_module(model, component)
    ids = torch.arange(1, 5, device=model.device).unsqueeze(0)
    added: torch.Tensor | None = None
    seen: list[torch.Tensor] = []

    def add(_module: nn.Module, _args: Any, output: torch.Tensor) -> torch.Tensor:
        return output if added is None else output + added.to(output)

    def see(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(take_output(output)[0].detach().cpu().double())

    training = [module for module in model.modules() if module.training]
    handles = [
        model.get_submodule(path).register_forward_hook(add),
        target.register_forward_hook(see),
    ]
    try:
        for module in training:
            module.training = False
        model(input_ids=ids, use_cache=False)
        # As large as what is there, so that rounding does not hide it.
        size = float(seen[0].abs().max()) or 1.0
        generator = torch.Generator().manual_seed(0)
        added = size * (2 * torch.rand(anatomy.sizes.width, generator=generator) - 1)
        model(input_ids=ids, use_cache=False)
    finally:
        for module in training:
            module.training = True
        for handle in handles:
            handle.remove()
    before, after = (h.reshape(-1, h.shape[-1]) for h in seen)
    tolerance = 32 * torch.finfo(model.dtype).eps * size
    return bool(((after - before) - added.double()).abs().max() <= tolerance)


# Models whose config can carry the biases -----------------------------------------------------------------


def _refuse_model(model: Any) -> None:
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None or not hasattr(model, "save_pretrained"):
        raise BakeError(f"{name} is no transformers model, and only those are saved as checkpoints")
    if not type(model).__module__.startswith("transformers."):
        raise BakeError(
            f"{name} comes with code of its own ({type(model).__module__}), and a baked checkpoint is to "
            f"load without any; {_KEEP}"
        )
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    method = getattr(method, "quant_method", method)
    if method is not None and str(getattr(method, "value", method)) != "gguf":
        raise BakeError(
            f"the weights are quantised ({getattr(method, 'value', method)}), and a bias does not go into "
            "them exactly; load the model in full or half precision"
        )
    if len(set((getattr(model, "hf_device_map", None) or {}).values())) > 1:
        raise BakeError("the model is spread over several devices; load it on one (`device: cpu`) to bake it")


def _switches(model: Any, without_bias: Sequence[str]) -> dict[str, bool]:
    """The fields of the config which, set so, give every module of `without_bias` a bias, and nothing else.

    Found by building the class anew on the meta device, so that no table of architectures grows old.

    Raises:
        BakeError: the architecture has no such field for one of them.
    """
    chosen: dict[str, bool] = {}
    wanted = set(without_bias)
    if not wanted:
        return chosen
    plain = _shapes(model, {})
    for name, value in sorted(vars(text_config(model.config)).items()):
        if "bias" not in name or not isinstance(value, bool) or not wanted:
            continue
        try:
            shapes = _shapes(model, {name: not value})
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError):
            continue  # a combination that this class refuses
        more = {key for key in shapes if key not in plain}
        same = all(shapes.get(key) == shape for key, shape in plain.items())
        given = {path for path in wanted if f"{path}.bias" in more}
        if given and same and all(key.endswith("bias") for key in more):
            chosen[name] = not value
            wanted -= given
    if wanted:
        example = min(wanted)
        raise BakeError(
            f"this cannot be baked: {type(model).__name__} has no field in its config that gives {example} a "
            "bias, so transformers would load the checkpoint without it (or only with code of its own). "
            f"Instead, {_KEEP}; or use a model whose config can carry it (`attention_bias` of Llama and "
            "Qwen3, GPT-2, GPT-NeoX, OPT, Phi, …)"
        )
    return chosen


def _shapes(model: Any, switches: Mapping[str, bool]) -> dict[str, torch.Size]:
    """Names and shapes of the state of a model of this class, with these fields of its config."""
    config = copy.deepcopy(model.config)
    for name, value in switches.items():
        setattr(text_config(config), name, value)
    with torch.device("meta"):
        built = type(model)(config)
    return {name: tensor.shape for name, tensor in built.state_dict().items()}


def _add_biases(model: Any, switches: Mapping[str, bool]) -> None:
    """Give every module the bias that it has by its config, as zeros."""
    present = model.state_dict()
    for name, shape in _shapes(model, {}).items():
        if name in present:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        weight = next(module.parameters(recurse=False), next(model.parameters()))
        bias = nn.Parameter(weight.new_zeros(shape), requires_grad=weight.requires_grad)
        module.register_parameter(name.rpartition(".")[2], bias)


def _forget_quantization(model: Any) -> None:
    """What transformers believes of a model whose GGUF weights it has dequantised, and then cannot save."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


# What is written ------------------------------------------------------------------------------------------


def _own(spec: InterventionSpec) -> InterventionSpec:
    """The spec without what an experiment adds."""
    fields = {name: getattr(spec, name) for name in InterventionSpec.model_fields}
    return InterventionSpec.model_construct(**fields)


def _card(m: IntervenedModel, model: Any) -> str:
    base = hub_id(m.spec.model.name)
    data = ModelCardData(
        library_name="transformers",
        base_model=base,
        base_model_relation="finetune" if base else None,
        pipeline_tag="text-generation",
        tags=["subvene", "activation-steering", *dict.fromkeys(one.kind for one in m.spec.interventions)],
    )
    places = [place for entry in m.intervenable.entries for place in entry.sites]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {m.spec.model.name} with interventions in its weights",
        "An ordinary checkpoint: what the interventions below add to activations, at every token, is written "
        "into biases. It gives the logits of the model that subvene edits while it runs, up to rounding "
        f"({str(model.dtype).removeprefix('torch.')}).",
        "## How to load it",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("this-folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("this-folder")\n```',
        "## What was baked",
        f"```yaml\n{dump_spec(_own(m.spec))}```",
        f"Sites: {', '.join(f'`{place}`' for place in places)}. Layers count from 0.",
    ]
    if m.provenance:
        told = json.dumps(dict(m.provenance), indent=2, sort_keys=True)
        parts += ["## Provenance", f"```json\n{told}\n```"]
    return "\n\n".join(parts) + "\n"
