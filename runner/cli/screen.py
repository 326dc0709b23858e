"""`subvene screen`: how far a data set's answers lie along the stored vectors, beside the model's own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Json,
    Model,
    SourcePath,
    model_overrides,
)
from subvene.runner.cli._source import open_source
from subvene.runner.cli.project import (
    BatchSize,
    Csv,
    Keys,
    Layers,
    Limit,
    MessagesColumn,
    PromptColumn,
    Raw,
    ResponseColumn,
    SystemColumn,
    number,
    parse_layers,
    print_columns,
)

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.data.transcripts import Columns, Transcripts
    from subvene.runner.files import json_value
    from subvene.runner.monitor.screening import Screening

_HUB = "hub:"
_HUB_PANEL = "Data sets of the Hub"
_SHOWN = 3


def screen(
    source: SourcePath,
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="FILE|hub:NAME",
            help="Prompts with answers: .jsonl, .json, .csv, or a data set of the Hub.",
            show_default=False,
        ),
    ],
    key: Keys = None,
    layer: Layers = None,
    prompt: PromptColumn = None,
    response: ResponseColumn = None,
    messages: MessagesColumn = None,
    system: SystemColumn = None,
    subset: Annotated[str | None, typer.Option(help="Its subset.", rich_help_panel=_HUB_PANEL)] = None,
    split: Annotated[str, typer.Option(help="Its split.", rich_help_panel=_HUB_PANEL)] = "train",
    revision: Annotated[str | None, typer.Option(help="Its revision.", rich_help_panel=_HUB_PANEL)] = None,
    raw: Raw = False,
    limit: Limit = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the model's own.")] = 128,
    max_answer_tokens: Annotated[
        int, typer.Option(min=1, help="So much of an answer of the data is read.")
    ] = 1024,
    batch_size: BatchSize = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap.")] = 0,
    csv_file: Csv = None,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Screen training data: mean projection of its answers, less that of the model's own answers.

    The model answers every prompt itself, greedily and without interventions. A difference above 0 says that
    the data lies further along the vector than the model does. Intervals are bootstrapped over samples.
    """
    overrides = model_overrides(model, dtype, device, attn_implementation, device_map)
    layers = parse_layers(layer or [])
    with results(as_json) as emit:
        opened = open_source(source)
        from subvene.runner.data.transcripts import Columns

        columns = Columns(prompt, response, messages, system)
        # Before the model is loaded.
        transcripts = _read(dataset, columns, limit, subset=subset, split=split, revision=revision)
        from subvene.runner.monitor.screening import screen as run_screen
        from subvene.runner.monitor.stored_vectors import chosen_vectors

        quiet_libraries()
        m = opened.load(**overrides)
        found = run_screen(
            m,
            transcripts,
            chosen_vectors(m, key or [], layers),
            chat=False if raw else None,
            max_new_tokens=max_new_tokens,
            max_answer_tokens=max_answer_tokens,
            batch_size=batch_size,
            seed=seed,
        )
        if csv_file is not None:
            found.write_csv(csv_file)
        if as_json:
            emit(
                {"model": m.spec.model.name, "dataset": dataset, "columns": transcripts.used.to_dict()}
                | _document(found)
            )
            return
    _print(out(), found, csv_file)
    print_columns(out(), transcripts.used)


def _read(dataset: str, columns: Columns, limit: int | None, **of_hub: Any) -> Transcripts:
    from subvene.runner.data.transcripts import hub_transcripts, read_transcripts

    if dataset.startswith(_HUB):
        return hub_transcripts(dataset.removeprefix(_HUB), columns=columns, limit=limit, **of_hub)
    return read_transcripts(Path(dataset), columns, limit)


def _document(found: Screening) -> dict[str, json_value.Json]:
    from dataclasses import asdict

    return {
        "samples": len(found.samples),
        "left_out": found.left_out,
        "shortened": found.shortened,
        "confidence": found.confidence,
        "differences": [asdict(one) for one in found.differences],
        "per_sample": [
            {
                "where": found.where[i],
                "answer": found.samples[i].text,
                "own_answer": found.own[i].text,
                "data": found.data_projections.of(i),
                "own": found.own_projections.of(i),
            }
            for i in found.order()
        ],
    }


def _print(console: Console, found: Screening, csv_file: Path | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from subvene.runner.cli._tables import print_line

    table = Table(box=box.SIMPLE_HEAD)
    interval = f"{found.confidence:.0%} interval"
    for title in ("vector", "samples", "data", "own", "difference", interval):
        table.add_column(title, justify="left" if title == "vector" else "right", header_style="cyan")
    for one in found.differences:
        ends = "–" if one.low is None else f"{number(one.low)} to {number(one.high)}"
        cells = [number(value) for value in (one.data, one.own, one.difference)]
        table.add_row(Text(f"{one.key}@{one.layer}"), str(one.n), *cells, ends)
    console.print(table)
    first = found.differences[0]
    values = found.per_sample()[first.key][first.layer].tolist()
    for i in found.order()[:_SHOWN]:
        said = " ".join("".join(c if c.isprintable() else " " for c in found.samples[i].text).split())
        shown = said if len(said) <= 120 else f"{said[:120]}…"
        print_line(console, "furthest", f"{number(values[i])}  {found.where[i]}  {shown}")
    if found.left_out:
        print_line(console, "left out", f"{found.left_out} samples with an empty answer on one side")
    if found.shortened:
        print_line(console, "shortened", f"{found.shortened} answers were read to --max-answer-tokens only")
    if csv_file is not None:
        print_line(console, "written", str(csv_file))
