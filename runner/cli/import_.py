"""`subvene import`: what other tools made, as an artifact."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Attention, Device, DtypeOption, Json, model_overrides

if TYPE_CHECKING:
    from subvene.runner.exchange.imports.base import Collected, Rows
    from subvene.runner.intervened.model import IntervenedModel
    from subvene.specs import Positions


class Format(StrEnum):
    """The choices of `--from`."""

    PEFT = "peft"
    PYVENE = "pyvene"
    GGUF_CONTROL_VECTOR = "gguf-control-vector"
    ITI = "iti"
    REFUSAL_DIRECTION = "refusal-direction"
    LAYER_VECTORS = "layer-vectors"
    PERSONA_VECTOR = "persona-vector"
    SAE_DECODER = "sae-decoder"


class RowsOf(StrEnum):
    """The choices of `--rows`."""

    OUTPUTS = "outputs"
    INPUTS = "inputs"
    HIDDEN_STATES = "hidden_states"


class CollectedAt(StrEnum):
    """The choices of `--collected`."""

    BEFORE_O_PROJ = "before_o_proj"
    AFTER_O_PROJ = "after_o_proj"


class Where(StrEnum):
    """The choices of `--positions`; the counted ones are for a spec."""

    ALL = "all"
    PROMPT = "prompt"
    RESPONSE = "response"
    LAST_PROMPT_TOKEN = "last_prompt_token"


Source = Annotated[
    Path,
    typer.Argument(
        metavar="SOURCE",
        help="A persona vector, one vector or a dictionary of them by layer (.pt), a refusal direction's "
        "direction.pt or mean_diffs.pt, a GGUF control vector, a folder of pyvene's, ITI's heads and "
        "directions in numpy files (a folder or .npz), the folder of a peft LoRA adapter, or an SAE of "
        "SAELens: its folder or its release/id.",
        show_default=False,
    ),
]
AcceptResidual = Annotated[
    bool,
    typer.Option(
        "--accept-residual",
        help="Take the nearest edit where a LoRA adapter does not factor through the output projection.",
    ),
]
CountedRows = Annotated[
    RowsOf | None,
    typer.Option(
        "--rows",
        help="What the layers of a .pt file count: the blocks' outputs, their inputs, or the entries of "
        "hidden_states.",
        show_default="as the format's own tool does",
    ),
]
PromptPosition = Annotated[
    int | None,
    typer.Option(
        "--position",
        help="Which token position of mean_diffs.pt, counted from the prompt's end: -1, -2, ….",
        show_default="the one in direction_metadata.json",
    ),
]
CollectedWhere = Annotated[
    CollectedAt | None,
    typer.Option(
        "--collected",
        help="Where ITI's directions were collected, which their shape does not tell.",
        show_default="before_o_proj, as the paper's",
    ),
]

Feature = Annotated[
    int | None,
    typer.Option("--feature", min=0, help="Which latent of an SAE, 0-based.", show_default=False),
]


def import_(
    source: Source,
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="ARTIFACT", help="Where the artifact goes.", show_default=False
        ),
    ],
    model: Annotated[
        str, typer.Option("--model", help="The model that SOURCE was made for.", show_default=False)
    ],
    format: Annotated[
        Format | None, typer.Option("--from", help="What SOURCE is.", show_default="told from its content")
    ] = None,
    layer: Annotated[
        list[int] | None,
        typer.Option(
            help="0-based decoder block, where SOURCE holds several; may be given again.", show_default=False
        ),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Coefficient or α.", show_default="1; for ITI 15, as published")
    ] = None,
    positions: Annotated[
        Where | None,
        typer.Option(help="The tokens that are edited.", show_default="as the format's own tool does"),
    ] = None,
    key: Annotated[
        str | None, typer.Option(help="What the tensors are called.", show_default="after SOURCE")
    ] = None,
    accept_residual: AcceptResidual = False,
    rows: CountedRows = None,
    position: PromptPosition = None,
    collected: CollectedWhere = None,
    feature: Feature = None,
    revision: Annotated[
        str | None, typer.Option(help="The model's branch, tag or commit.", show_default="main")
    ] = None,
    dtype: DtypeOption = None,
    device: Device = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Make an artifact of what another tool made; the conversion of its conventions is stated.

    Nothing of SOURCE is executed: a pickle, and a class that is not pyvene's own, are refused.
    """
    if strength is not None and not math.isfinite(strength):
        raise typer.BadParameter("--strength: expected a finite number")
    overrides = model_overrides(None, dtype, device, attn_implementation, revision=revision)
    model_overrides(model, None, None, None)
    with results(as_json) as emit:
        from subvene.runner.artifacts import artifact
        from subvene.runner.exchange.imports import Options, import_foreign

        quiet_libraries()
        # Before the work, not after it.
        artifact.check_free(output)
        options = Options(
            layers=tuple(dict.fromkeys(layer or ())),
            strength=strength,
            positions=cast("Positions | None", positions and positions.value),
            key=key,
            accept_residual=accept_residual,
            rows=cast("Rows | None", rows and rows.value),
            position=position,
            collected=cast("Collected | None", collected and collected.value),
            feature=feature,
        )
        m = import_foreign(source, model, format=format and format.value, options=options, **overrides)
        m.save_pretrained(output)
        if as_json:
            emit({"artifact": str(output), "provenance": m.provenance})
            return
    _print(m, source, output)


def _print(m: IntervenedModel, source: Path, output: Path) -> None:
    console = out()
    console.print(f"model    {m.spec.model.name}", soft_wrap=True)
    console.print(f"read     {source}  {m.provenance['format']}", soft_wrap=True)
    for statement in cast("list[str]", m.provenance["conversion"]):
        console.print(f"means    {statement}", soft_wrap=True)
    console.print(f"saved    {output}", soft_wrap=True)
