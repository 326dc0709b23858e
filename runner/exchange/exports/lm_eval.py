"""A steering file for lm-evaluation-harness: `lm_eval --model steered --model_args …,steer_path=steering.pt`.

The harness (0.4.13, lm_eval/models/hf_steered.py) hooks the outputs of modules, named as in
`model.base_model.named_modules()`, one action each, at every token: `add` a vector, or `clamp` the projection
on a direction to a value. So what is added to the input of the output projection is folded through its
weight, W·(o + d) = W·o + W·d, and an ablation is a clamp to zero.

It reads the file with `torch.load(…, weights_only=False)`, as a pickle. What is written here holds tensors,
numbers and strings only, and loads with `weights_only=True`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch

from subvene.runner.edits.hooks import take_output
from subvene.runner.exchange.exports.additive import Addition, additions, judge_added, parsed_place
from subvene.runner.exchange.exports.base import EXACT, KEEP, Consumer, Export, ExportError, Verdict, Written
from subvene.runner.exchange.exports.cards import CARD, export_card
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.exchange.exports.linear_maps import weight_of
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import CORE_SITES, AnyIntervention

NAME, FILE = "lm-eval", "steering.pt"
HEADS = "attention_heads"
_CONSUMER = "the harness"


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """What is added at every token is exact at every site; so is a whole ablation, other than of heads."""
    if declared.site not in CORE_SITES:
        reason = f"it acts at {declared.site}, and this format is written for {', '.join(CORE_SITES)}"
        return Verdict("refused", reason, f"`--to checkpoint`, or {KEEP}")
    if _is_clamp(declared, facts):
        return EXACT
    return judge_added(declared, facts, _CONSUMER)


def write(m: IntervenedModel, folder: Path, _approximate: bool) -> Written:
    """Write the steering file and its card.

    Raises:
        ExportError: two interventions need one module's only action, or a module cannot be hooked.
    """
    actions = _actions(m)
    path = folder / FILE
    torch.save(actions, path)
    (folder / CARD).write_text(_card(m, actions), encoding="utf-8")
    return Written(
        consumer=Consumer(
            name="emulated lm-evaluation-harness",
            version=None,
            logits=_logits(m.model, path),
            how="the actions of the file at the outputs of its modules, at every token, as the harness's "
            "`steered` model does them, in the model that is loaded",
        ),
        record={"hookpoints": sorted(actions), "file": FILE},
    )


EXPORT = Export(NAME, judge, write)


def _is_clamp(declared: AnyIntervention, facts: Facts) -> bool:
    """Whether this sets the projection of a module's output to a fixed value, at every token."""
    if not facts.is_fixed or declared.site == HEADS:
        return False
    return declared.positions == "all" and declared.strength == 1


class _Action(TypedDict):
    action: Literal["add", "clamp"]
    steering_vector: torch.Tensor
    steering_coefficient: float
    bias: None
    head_index: None


def _actions(m: IntervenedModel) -> dict[str, _Action]:
    """By hookpoint, in the harness's own format.

    Raises:
        ExportError: as `write`.
    """
    anatomy = Anatomy.of(m.model)
    edits = m.intervenable.interventions
    pairs = list(zip(m.spec.interventions, m.intervenable.entries, strict=True))
    clamps = [
        (declared, entry)
        for declared, entry in pairs
        if _is_clamp(declared, Facts.of([edits[key] for key in entry.keys]))
    ]
    sums: dict[str, torch.Tensor] = {}
    names: dict[str, list[str]] = {}
    for addition in additions(m, without=[entry.name for _, entry in clamps]):
        module = _module(anatomy, addition.site, addition.layer)
        vector = _folded(anatomy, addition) if addition.site == HEADS else addition.vector
        sums[module] = sums[module] + vector if module in sums else vector
        names.setdefault(module, []).append(f"{addition.name} ({addition.kind})")
    actions = {module: _action("add", vector.float(), 1.0) for module, vector in sums.items()}
    for declared, entry in clamps:
        for place, key in zip(entry.sites, entry.keys, strict=True):
            formula: Any = edits[key].direction_formula()
            module = _module(anatomy, *parsed_place(place))
            names.setdefault(module, []).append(f"{entry.name} ({declared.kind})")
            value = formula.floor if formula.form == "bound" else 0.0
            actions[module] = _action("clamp", formula.vector, value)
    if problems := list(_problems(m.model, actions, names)):
        raise ExportError(f"this cannot be exported as {NAME}:\n" + "\n".join(problems))
    return actions


def _problems(model: Any, actions: Mapping[str, _Action], names: Mapping[str, list[str]]) -> Iterator[str]:
    known = {name for name, _ in _base(model).named_modules()}
    for module, action in actions.items():
        there = " and ".join(names[module])
        if action["action"] == "clamp" and len(names[module]) > 1:
            yield f"{there}: at {module} the harness has one action, and a clamp and another are two; {KEEP}"
        if module not in known:
            yield f"{there}: {module} is outside of the base model, whose modules the harness hooks; {KEEP}"
        if not bool(action["steering_vector"].isfinite().all()):
            yield f"{there}: at {module} the vector is out of float32's range; use a smaller strength"


def _folded(anatomy: Anatomy, addition: Addition) -> torch.Tensor:
    """W·d, for what is added to the input of the output projection."""
    projection: Any = anatomy.output_projection(addition.layer)
    if not projection.weight.is_floating_point() or projection.weight.is_meta:
        raise ExportError(
            f"{addition.name} ({addition.kind}): it goes through the weight of the output projection, which "
            f"is {projection.weight.dtype} on {projection.weight.device}; load the model in full or half "
            "precision, without offloading"
        )
    return weight_of(projection) @ addition.vector


def _action(action: Literal["add", "clamp"], vector: torch.Tensor, coefficient: float) -> _Action:
    return {
        "action": action,
        # A copy: a view would drag the whole of its storage into the file.
        "steering_vector": vector.clone().contiguous(),
        "steering_coefficient": coefficient,
        "bias": None,
        "head_index": None,
    }


def _module(anatomy: Anatomy, site: str, layer: int) -> str:
    """The hookpoint of a site: for head directions, the output projection, whose output is hooked."""
    model: Any = anatomy.model
    path = anatomy.component(site, layer).rpartition(".")[0].replace("[", ".").replace("]", "")
    base = _base(model)
    prefix = next((name for name, module in model.named_modules() if module is base), "")
    return path.removeprefix(f"{prefix}.") if prefix else path


def _base(model: Any) -> Any:
    """What the harness looks for hookpoints in."""
    return getattr(model, "base_model", model)


# The harness's arithmetic ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _steered(model: Any, actions: Mapping[str, _Action]) -> Iterator[None]:
    handles = []
    try:
        for name, action in actions.items():
            handles.append(_base(model).get_submodule(name).register_forward_hook(_hook(action)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(action: _Action) -> Any:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        h, put_back = take_output(output)
        vector = action["steering_vector"].to(h)
        if action["action"] == "add":
            return put_back(h + vector * action["steering_coefficient"])
        direction = vector / torch.norm(vector)
        projection = (h * direction).sum(-1, keepdim=True)
        return put_back(h + direction * (action["steering_coefficient"] - projection))

    return hook


def _logits(model: Any, path: Path) -> Any:
    actions = torch.load(path, weights_only=True)

    @torch.no_grad()
    def logits(ids: torch.Tensor, _prompt_length: int) -> torch.Tensor:
        with _steered(model, actions):
            found: torch.Tensor = model(input_ids=ids, use_cache=False).logits
            return found

    return logits


def _card(m: IntervenedModel, actions: Mapping[str, _Action]) -> str:
    rows = [
        f"| `{name}` | {action['action']} | {float(action['steering_vector'].norm()):.4g} |"
        for name, action in sorted(actions.items())
    ]
    about = (
        "A steering file for lm-evaluation-harness: what the interventions below do, at every token, to the "
        "outputs of the modules in the table. The harness reads such a file as a pickle, and executes what "
        "one says: use only files that you trust. This one holds tensors, numbers and strings and nothing "
        "else (`torch.load(…, weights_only=True)` loads it).\n\n"
        "| module of the base model | action | norm |\n|---|---|--:|\n" + "\n".join(rows)
    )
    return export_card(
        m,
        library="lm-evaluation-harness",
        relation="adapter",
        title="steered in lm-evaluation-harness",
        about=about,
        load="lm_eval --model steered "
        f"--model_args pretrained={m.spec.model.name},dtype=float32,steer_path={FILE} --tasks TASK",
        language="sh",
        tags=["lm-evaluation-harness"],
    )
