"""`subvene fit`: run a spec's recipe and keep what came out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Required, TypedDict, cast

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Json
from subvene.runner.cli._source import experiment
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.files import json_value
    from subvene.specs import InterventionSpec


def fit(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="A spec file with a `fit:` block.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where the artifact goes.", show_default=False),
    ],
    work: Annotated[
        Path | None,
        typer.Option(
            "--work",
            metavar="FOLDER",
            help="Where activations and checkpoints are kept, so that a fit that was stopped can go on.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit the tensors that a spec declares, and save them with it as an artifact.

    The folder can then be given to `generate` and `show`. It is written whole or not at all.
    """
    declared = experiment(spec, "there is no `fit:` block, so there is nothing to fit")
    if declared.fit is None:
        raise SubveneError(f"{spec}: there is no `fit:` block, so there is nothing to fit")
    with results(as_json) as emit:
        from subvene.runner.artifacts import artifact
        from subvene.runner.recipes.fitting import fit as run_fit

        quiet_libraries()
        # Before the work, not after it.
        artifact.check_free(output)
        m = run_fit(declared, folder=spec.parent, work=work)
        m.save_pretrained(output)
        if as_json:
            emit({"artifact": str(output), "provenance": m.provenance})
            return
    console = out()
    console.print(f"model    {m.spec.model.name}", soft_wrap=True)
    for provenance in fits_in(m.provenance):
        print_fitted(console, provenance)
        print_norms(console, provenance, m.spec)
        print_heads(console, provenance)
    console.print(f"saved    {output}", soft_wrap=True)


class _Trait(TypedDict):
    kept: int
    pairs: int


class _Source(TypedDict):
    name: str


class _Columns(TypedDict):
    read: dict[str, list[str]]
    said_again: list[str]
    not_read: list[str]


class _Rule(TypedDict):
    rule: str


class _Objective(TypedDict, total=False):
    kind: Required[str]
    tau: float
    beta: float


class _Evaluation(TypedDict):
    step: int
    loss: float


class Provenance(TypedDict, total=False):
    """What is told of a fit, by whichever recipe; which fields there are is the recipe's business."""

    recipe: str
    key: str
    site: str
    seed: int
    warnings: list[str]
    traits: dict[str, _Trait]
    tokens: str
    directions: int
    like: str
    heads: dict[str, list[int]]
    columns: _Columns
    left_out: dict[str, str]
    pairs: int
    positive: int
    negative: int
    questions: int
    probe: str
    select: _Rule
    direction: str
    objective: _Objective
    evaluations: list[_Evaluation]
    epoch_losses: list[float]
    stopped_early: bool
    rank: int
    layers: list[int]
    per: str
    steps: int
    norm_by_layer: dict[str, float]
    form: str
    texts_cut: int
    texts_held_out: list[int] | int
    source: _Source
    by: str
    rows: int
    texts: int
    explained_by_layer: dict[str, float | None]
    cosine_to_native_by_layer: dict[str, float]
    measure: str
    layer: int
    side: str
    threshold: float
    f1_held_out: float
    max_tokens: int
    tokens_read: int
    validation_accuracy: list[list[float]]
    chance: float


def fits_in(provenance: Mapping[str, json_value.Json]) -> list[Provenance]:
    """What is known of each fit of an artifact."""
    return cast("list[Provenance]", provenance.get("fits", [provenance]))


def print_fitted(console: Console, provenance: Provenance) -> None:
    """What was fitted from what, in a sentence."""
    from subvene.runner.cli._tables import print_line

    if "traits" in provenance:
        for name, trait in provenance["traits"].items():
            kept = f"{trait['kept']} of {trait['pairs']} pairs of responses"
            print_line(
                console, "fitted", f"{name} from {kept}: {provenance['recipe']}, {provenance['tokens']}"
            )
        for warning in provenance["warnings"]:
            print_line(console, "warning", warning)
        return
    if provenance["recipe"] == "random_direction":
        drawn = f"{provenance['directions']} random directions, as long as those of {provenance['like']}"
        print_line(console, "fitted", f"{provenance['key']}: {drawn}, seed {provenance['seed']}")
        return
    sentence = _of_heads if "heads" in provenance else _of_layers
    if "objective" in provenance:
        sentence = _of_an_edit
    if provenance["recipe"] == "cast":
        sentence = _of_a_gate
    if provenance["recipe"] == "transfer":
        sentence = _of_a_transfer
    print_line(console, "fitted", f"{provenance['key']} from {sentence(provenance)}")
    if "columns" in provenance:
        from subvene.specs.columns import Used

        columns = provenance["columns"]
        used = Used(columns["read"], columns["said_again"], columns["not_read"])
        print_line(console, "columns", used.in_words())
    for layer, reason in provenance.get("left_out", {}).items():
        print_line(console, "left out", f"layer {layer}: {reason}")


def _of_heads(provenance: Provenance) -> str:
    heads = sum(len(chosen) for chosen in provenance["heads"].values())
    return (
        f"{provenance['pairs']} answers to {provenance['questions']} questions: {provenance['recipe']}, "
        f"{provenance['probe']} probes, {heads} heads in {len(provenance['heads'])} layers by "
        f"{provenance['select']['rule']}, {provenance['direction']} directions"
    )


def _of_an_edit(provenance: Provenance) -> str:
    objective = provenance["objective"]
    names: tuple[Literal["tau", "beta"], ...] = ("tau", "beta")
    by = objective["kind"] + "".join(f", {name} {objective[name]:g}" for name in names if name in objective)
    losses = [(one["step"], one["loss"]) for one in provenance["evaluations"]]
    outcome = f"loss {provenance['epoch_losses'][0]:.4g} to {provenance['epoch_losses'][-1]:.4g} by epoch"
    if losses:
        best = min(losses, key=lambda one: one[1])
        outcome = f"validation loss {losses[0][1]:.4g} to {best[1]:.4g}, at step {best[0]}"
    early = ", stopped early" if provenance["stopped_early"] else ""
    per, where = "", f"at {len(provenance.get('layers', ()))} layers"
    if "heads" in provenance:
        heads = sum(len(chosen) for chosen in provenance["heads"].values())
        per = f" per {provenance['per']}"
        where = f"{heads} heads in {len(provenance['heads'])} layers by {provenance['select']['rule']}"
    return (
        f"{provenance['pairs']} pairs of {provenance['questions']} questions: {provenance['recipe']} of rank "
        f"{provenance['rank']}{per} ({by}), {where}, {provenance['steps']} steps{early}, {outcome}"
    )


def _of_layers(provenance: Provenance) -> str:
    layers = provenance.get("norm_by_layer", {})
    where = provenance["site"] + (f" of {len(layers)} layers in one pass" if layers else "")
    what = f"{provenance['pairs']} pairs of {provenance['form']}" if "pairs" in provenance else ""
    what = what or f"{provenance['positive']} positive and {provenance['negative']} negative prompts"
    cut = f"; {provenance['texts_cut']} texts cut at {provenance['max_tokens']} tokens"
    return f"{what}: {provenance['recipe']} at {where}, {provenance['tokens_read']} tokens read" + cut * bool(
        provenance.get("texts_cut")
    )


def _of_a_transfer(provenance: Provenance) -> str:
    source, near = provenance["source"]["name"], provenance["cosine_to_native_by_layer"]
    layers = f"{len(near)} layers of {source} at {provenance['site']}"
    cosines = f"cosine to {provenance['like']} from {min(near.values()):.2f} to {max(near.values()):.2f}"
    if provenance["by"] == "none":
        return f"{layers}, as they are there; {cosines}"
    shares = [share for share in provenance["explained_by_layer"].values() if share is not None]
    explained = f"{min(shares):.2f} to {max(shares):.2f}" if shares else "nothing"
    return (
        f"{layers}: {provenance['rows']} rows of {provenance['texts']} texts; of the variance of "
        f"{provenance['texts_held_out']} others {explained} is explained; {cosines}"
    )


def _of_a_gate(provenance: Provenance) -> str:
    sides = cast("list[int]", provenance["texts_held_out"])
    held = " and ".join(map(str, sides))
    return (
        f"{_of_layers(provenance)}; open where {provenance['measure']} at "
        f"{provenance['site']}[{provenance['layer']}] is {provenance['side']} {provenance['threshold']:.4g}: "
        f"F1 {provenance['f1_held_out']:.2f} on {held} held-out texts, which chose it"
    )


def print_heads(console: Console, provenance: Provenance) -> None:
    """The chosen heads by layer, each with its probe's accuracy on the validation questions."""
    from rich import box
    from rich.table import Table

    if "heads" not in provenance or "validation_accuracy" not in provenance:
        return
    table = Table("layer", "head: accuracy on validation questions", box=box.SIMPLE_HEAD)
    for layer, heads in provenance["heads"].items():
        accuracy = provenance["validation_accuracy"][int(layer)]
        table.add_row(layer, "  ".join(f"{head}: {accuracy[head]:.1%}" for head in heads))
    console.print(table)
    console.print(f"chance is {provenance['chance']:.1%}, the share of the commoner label")


def print_norms(console: Console, provenance: Provenance, spec: InterventionSpec) -> None:
    """The norm of every fitted layer, several beside each other; those that the spec edits are marked."""
    from rich import box
    from rich.table import Table

    norms = provenance.get("norm_by_layer")
    if not norms:
        return
    edited = {getattr(declared, "layer", None) for declared in spec.interventions}
    table = Table(box=box.SIMPLE_HEAD)
    columns = max(1, min(5, (console.width - 2) // 17, len(norms)))
    for _ in range(columns):
        table.add_column("layer", justify="right", header_style="cyan")
        table.add_column("‖v‖", justify="left", header_style="cyan")
    cells = [(layer, f"{norm:.2f}{' *' if int(layer) in edited else ''}") for layer, norm in norms.items()]
    height = -(-len(cells) // columns)
    for row in range(height):
        table.add_row(*(part for cell in cells[row::height] for part in cell))
    console.print(table)
    if any("*" in text for _, text in cells):
        console.print("* the layer that the spec edits")
