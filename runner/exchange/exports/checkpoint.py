"""Baking: an intervened model as an ordinary checkpoint that transformers loads by itself.

An affine edit of an activation at every token is a change of the linear map beside it, exactly but for
rounding: W·(o + B·A·o + d) + b = (W + (W·B)·A)·o + (b + W·d). Everything else is refused, each with its
reason, or approximated where the caller says so.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from subvene.runner.edits.refusals import refuse_compiled
from subvene.runner.exchange.exports.approximation import MEAN_SHIFT
from subvene.runner.exchange.exports.base import (
    EXACT,
    KEEP,
    BakeError,
    Consumer,
    Export,
    ExportError,
    Verdict,
    Written,
    judge_all,
    of_no_map,
    positions_in_words,
)
from subvene.runner.exchange.exports.cards import CARD, HERE, export_card, own_spec
from subvene.runner.exchange.exports.config_switches import bias_switches, switch_on
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.exchange.exports.linear_maps import Change, changes, is_transposed
from subvene.runner.files.leftovers import restore
from subvene.runner.files.storage import atomic_folder
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.devices import is_offloaded, placed_as
from subvene.runner.models.pretrained import load_weights
from subvene.specs import AnyIntervention, dump_spec

RECORD = "baked.json"
FORMAT = "1"


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """An affine edit at all positions is exact; of others the mean of what they add can be written."""
    mean = f"as an approximation {MEAN_SHIFT} is added to a bias"
    if (verdict := of_no_map(declared)) is not None:
        return verdict
    if facts.monitored:
        return Verdict(
            "approximate",
            f"its strength is self-monitored, {facts.monitored}: it depends on the activation, and a bias "
            f"does not; {mean}",
            facts.nearest,
        )
    if not facts.is_affine or (facts.is_linear and declared.site == "block_output"):
        where = ", and no weight carries the residual stream on" if facts.is_affine else ""
        return Verdict(
            "approximate",
            f"what it does depends on the activation{where}, and a bias does not; {mean}",
            facts.nearest,
        )
    if declared.positions != "all":
        return Verdict(
            "approximate",
            f"positions {positions_in_words(declared)}: a bias acts on every token, and so does a weight; "
            "as an approximation it is written as if it were `positions: all`",
            f"`positions: all` can be baked, which is another intervention (measure it as such), or {KEEP}",
        )
    return EXACT


def bake(m: IntervenedModel, *, approximate: bool = False) -> Any:
    """A copy of the model with the interventions in its weights; the model of `m` stays as it is.

    Its logits are those of the intervened model, up to rounding (1e-5 in float32; in half precision weights
    are rounded to the model's dtype). The spec is taken as it stands, with the strengths that it declares.

    Args:
        m: what is baked.
        approximate: also write what is not exact (see `judge`).

    Raises:
        BakeError: naming every intervention that no weight expresses, why, and what there is instead.
        CompiledModelError: the model went through `torch.compile`.
    """
    return _baked(m, approximate=approximate, shared=False)


def _baked(m: IntervenedModel, *, approximate: bool, shared: bool) -> Any:
    """`bake`; with `shared`, what is not changed is the model's own, on whichever device it lies."""
    found, switches = _plan(m, approximate=approximate)
    changed = [m.model.get_submodule(change.path) for change in found]
    model = copy.deepcopy(m.model, _unchanged(m.model, changed) if shared else None)
    _forget_quantization(model)
    switch_on(model, switches)
    with torch.no_grad():
        for change in found:
            module = model.get_submodule(change.path)
            # Float64 until here, and rounded once.
            if change.right.numel():
                update = change.left @ change.right
                update = update.T if is_transposed(module) else update
                module.weight.copy_(module.weight.cpu().double() + update)
            if change.bias.any():
                module.bias.copy_(module.bias.cpu().double() + change.bias)
    return model


def _unchanged(model: torch.nn.Module, changed: Sequence[torch.nn.Module]) -> dict[int, Any]:
    """What `copy.deepcopy` is to take as it is: all tensors but those of the changed modules."""
    own = {id(tensor) for module in changed for tensor in module.parameters()}
    return {id(t): t for t in (*model.parameters(), *model.buffers()) if id(t) not in own}


def check_bakeable(m: IntervenedModel) -> None:
    """Check that `bake` can be done, without copying the model.

    Raises:
        BakeError: as `bake` does.
    """
    _plan(m, approximate=False)


def save_baked(m: IntervenedModel, folder: Path | str, *, approximate: bool = False) -> Path:
    """Write the baked model, its tokenizer, generation config and card; atomically.

    `subvene.runner.exchange.exports.driver.export` also measures it.

    Args:
        m: what is baked.
        folder: where; a folder that is there and that `save_baked` did not write is left alone.
        approximate: as for `bake`.

    Returns:
        The folder: `AutoModelForCausalLM.from_pretrained` loads it, without subvene.

    Raises:
        BakeError: as `bake` does, or something else is at `folder`.
    """
    folder = Path(folder)
    restore(folder)
    is_ours = (folder / RECORD).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not is_ours:
        raise BakeError(f"{folder} exists and holds no baked model; choose another place, or remove it first")
    model = _baked(m, approximate=approximate, shared=True)
    with atomic_folder(folder) as temporary:
        _write_files(m, model, temporary)
    return folder


def _write(m: IntervenedModel, folder: Path, approximate: bool) -> Written:
    model = _baked(m, approximate=approximate, shared=True)
    _write_files(m, model, folder)
    dtype, kind = model.dtype, type(m.model)
    del model
    opened: list[Any] = []

    @torch.no_grad()
    def logits(ids: torch.Tensor, _prompt_length: int) -> torch.Tensor:
        if not opened:
            opened.append(placed_as(m.model, partial(load_weights, kind, str(folder), dtype=dtype)).eval())
        found: torch.Tensor = opened[0](input_ids=ids, use_cache=False).logits
        return found

    return Written(Consumer("transformers", version("transformers"), logits))


def _write_files(m: IntervenedModel, model: Any, folder: Path) -> None:
    model.save_pretrained(folder)
    if m.tokenizer is not None:
        m.tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(_card(m, model), encoding="utf-8")
    record = {
        "format": FORMAT,
        "model": m.spec.model.model_dump(mode="json", exclude_none=True),
        "spec": dump_spec(own_spec(m.spec)),
        "provenance": m.provenance,
        "versions": {name: version(name) for name in ("subvene", "torch", "transformers")},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _plan(m: IntervenedModel, *, approximate: bool) -> tuple[list[Change], dict[str, bool]]:
    """The changes, one per linear map, and the switches of the config that give those maps a bias."""
    refuse_compiled(m.model)
    _refuse_model(m.model)
    judge_all(m, EXPORT, approximate=approximate, error=BakeError)
    try:
        found = changes(m, approximate=approximate)
    except ExportError as error:
        raise BakeError(f"this cannot be baked:\n{error}") from error
    without = [c.path for c in found if c.bias.any() and m.model.get_submodule(c.path).bias is None]
    return found, bias_switches(m.model, without)


def _refuse_model(model: Any) -> None:
    config, name = getattr(model, "config", None), type(model).__name__
    if config is None or not hasattr(model, "save_pretrained"):
        raise BakeError(f"{name} is no transformers model, and only those are saved as checkpoints")
    if not type(model).__module__.startswith("transformers."):
        raise BakeError(
            f"{name} comes with code of its own ({type(model).__module__}), and a baked checkpoint is to "
            f"load without any; {KEEP}"
        )
    method = getattr(getattr(model, "hf_quantizer", None), "quantization_config", None)
    method = getattr(method, "quant_method", method)
    if method is not None and str(getattr(method, "value", method)) != "gguf":
        raise BakeError(
            f"the weights are quantised ({getattr(method, 'value', method)}), and a change does not go into "
            "them exactly; load the model in full or half precision"
        )
    if is_offloaded(model):
        raise BakeError(
            "some weights are offloaded, and a change is added to weights that are there; load the model "
            "without offloading (`device: cpu`) to bake it"
        )


def _forget_quantization(model: Any) -> None:
    """What transformers believes of a model whose GGUF weights it has dequantised, and then cannot save."""
    if getattr(model, "hf_quantizer", None) is None:
        return
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _card(m: IntervenedModel, model: Any) -> str:
    return export_card(
        m,
        library="transformers",
        relation="finetune",
        title="with interventions in its weights",
        about="An ordinary checkpoint: what the interventions below do to activations, at every token, is "
        "written into weights and biases. It gives the logits of the model that subvene edits while it runs, "
        f"up to rounding ({str(model.dtype).removeprefix('torch.')}).",
        load="from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{HERE}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{HERE}")',
        heading="What was baked",
    )


EXPORT = Export("checkpoint", judge, _write)
