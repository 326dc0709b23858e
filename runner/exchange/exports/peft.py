"""Low-rank edits as a LoRA adapter, which peft and vLLM load.

At all positions an edit o ↦ o + B·A·o is W ← W + (W·B)·A, which is a LoRA with lora_A = A and lora_B = W·B.
Rank and alpha are the same for every layer (vLLM wants one), alpha is the rank, so that nothing is scaled,
and factors of a smaller rank are filled up with zeros. The target modules are plain names (`o_proj`), which
both accept; a layer of that name that is not edited has zeros.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from subvene.runner.exchange.exports.base import (
    EXACT,
    KEEP,
    Consumer,
    Export,
    ExportError,
    Verdict,
    Written,
    of_no_map,
    positions_in_words,
)
from subvene.runner.exchange.exports.cards import CARD, HERE, export_card
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.exchange.exports.linear_maps import Change, changes, is_transposed, module_path
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, AnatomyError
from subvene.specs import AnyIntervention

WEIGHTS = "adapter_model.safetensors"
_CHECKPOINT = "the format checkpoint holds it as a bias"


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """Linear edits of attention at all positions are exact; a LoRA has no bias for what is added."""
    if (verdict := of_no_map(declared)) is not None:
        return verdict
    if facts.monitored:
        return Verdict("refused", "it adds a vector, and a LoRA has no bias", KEEP)
    if facts.is_constant:
        return Verdict("refused", "it adds a constant, and a LoRA has no bias", _CHECKPOINT)
    if not facts.is_affine:
        return Verdict("refused", "what it does depends on the activation, and a LoRA is linear", KEEP)
    if facts.adds_constant:
        return Verdict(
            "refused", "it adds a constant beside a linear map, and a LoRA has no bias", _CHECKPOINT
        )
    if declared.site == "block_output":
        return Verdict("refused", "no weight carries the residual stream on, and a LoRA is of weights", KEEP)
    if declared.positions != "all":
        return Verdict(
            "approximate",
            f"positions {positions_in_words(declared)}: a LoRA acts on every token; as an approximation it "
            "is written as if it were `positions: all`",
            f"`positions: all` is exact, and another intervention (measure it as such), or {KEEP}",
        )
    return EXACT


def write_adapter(m: IntervenedModel, folder: Path, *, approximate: bool = False) -> int:
    """Write `adapter_config.json` and `adapter_model.safetensors`, as peft does.

    Args:
        m: whose edits are written; the caller has judged them.
        folder: where.
        approximate: as for the driver.

    Returns:
        The rank.

    Raises:
        ExportError: this model cannot have them as a LoRA, or peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise ExportError("an adapter needs the package peft: pip install 'subvene[train]'")
    import peft

    try:
        found = changes(m, approximate=approximate)
    except ExportError as error:
        raise ExportError(f"this cannot be exported as peft:\n{error}") from error
    if with_bias := [change.path for change in found if change.bias.any()]:
        raise ExportError(
            f"the output of {', '.join(with_bias)} has a bias, which the edit changes too, and a LoRA has "
            f"none; {_CHECKPOINT}, or {KEEP}"
        )
    rank = max([1, *(change.right.shape[0] for change in found)])
    # Where nothing is edited (strength 0), an adapter of zeros, since peft loads none without a target.
    paths = [change.path for change in found] or [_an_output_projection(m.model)]
    targets = sorted({path.rpartition(".")[2] for path in paths})
    modules = _targeted(m.model, targets)
    by_path = {change.path: change for change in found}
    state: dict[str, torch.Tensor] = {}
    for path, module in modules.items():
        a, b = _factors(module, by_path.get(path), rank)
        state |= {f"base_model.model.{path}.lora_{x}.weight": t for x, t in (("A", a), ("B", b))}
    config = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets,
        fan_in_fan_out=all(is_transposed(module) for module in modules.values()),
        base_model_name_or_path=m.spec.model.name,
        revision=m.spec.model.revision,
        inference_mode=True,
    )
    # peft writes a set in no fixed order; a list stays as it is.
    config.target_modules = targets
    config.save_pretrained(str(folder))
    safetensors.torch.save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    return rank


def _write(m: IntervenedModel, folder: Path, approximate: bool) -> Written:
    rank = write_adapter(m, folder, approximate=approximate)
    if m.tokenizer is not None:
        m.tokenizer.save_pretrained(folder)
    (folder / CARD).write_text(_card(m, rank), encoding="utf-8")
    opened: list[Any] = []

    @torch.no_grad()
    def logits(ids: torch.Tensor, _prompt_length: int) -> torch.Tensor:
        if not opened:
            import peft

            # A copy: peft puts its layers into the model that it is given.
            opened.append(peft.PeftModel.from_pretrained(copy.deepcopy(m.model), str(folder)).eval())
        found: torch.Tensor = opened[0](input_ids=ids, use_cache=False).logits
        return found

    return Written(Consumer("peft", version("peft"), logits), {"rank": rank})


def _targeted(model: nn.Module, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The modules that peft will adapt: every one of these names, all of them linear maps of one kind."""
    found = {path: module for path, module in model.named_modules() if path.rpartition(".")[2] in targets}
    if odd := [p for p, found_one in found.items() if not _is_linear(found_one)]:
        raise ExportError(
            f"{', '.join(targets)} also names {odd[0]}, a {type(found[odd[0]]).__name__}, which peft would "
            f"adapt too; {KEEP}"
        )
    return found


def _an_output_projection(model: nn.Module) -> str:
    anatomy = Anatomy.of(model)
    for layer in range(anatomy.sizes.n_layers):
        with contextlib.suppress(AnatomyError):
            return module_path(anatomy.component("attention_heads", layer))
    raise ExportError("this model has no output projection of attention")


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed(module)


def _factors(module: Any, change: Change | None, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """lora_A [rank, in] and lora_B [out, rank]."""
    out, into = module.weight.shape[::-1] if is_transposed(module) else module.weight.shape
    # Float32 for half-precision models too: peft keeps adapters so, and vLLM rounds them itself.
    dtype = torch.promote_types(module.weight.dtype, torch.float32)
    a, b = torch.zeros(rank, into, dtype=dtype), torch.zeros(out, rank, dtype=dtype)
    if change is not None:
        used = change.right.shape[0]
        a[:used], b[:, :used] = change.right.to(dtype), change.left.to(dtype)
    return a, b


def _card(m: IntervenedModel, rank: int) -> str:
    revision = f', revision="{m.spec.model.revision}"' if m.spec.model.revision else ""
    return export_card(
        m,
        library="peft",
        relation="adapter",
        title="with low-rank edits, as a LoRA adapter",
        about=f"A LoRA of rank {rank} and alpha {rank} (scaling 1): what the interventions below do to "
        "activations, at every token. Modules of the same name that are not edited have zeros.",
        load="from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{m.spec.model.name}"{revision})\n'
        f'model = PeftModel.from_pretrained(model, "{HERE}")',
        tags=("lora",),
    )


EXPORT = Export("peft", judge, _write)
