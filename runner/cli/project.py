"""`subvene project`: how far the turns of a transcript lie along the stored vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

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
from subvene.runner.files.csv_file import CsvWriter
from subvene.runner.files.storage import atomic_file

if TYPE_CHECKING:
    from pydantic import JsonValue
    from rich.console import Console

    from subvene.runner.data.transcripts import Transcript
    from subvene.runner.data.turn_statistics import Drift, OfScores
    from subvene.runner.data.turns import Turn
    from subvene.runner.intervened.model import IntervenedModel
    from subvene.runner.monitor.projection import ByVector, Projected, Projections
    from subvene.specs.columns import Used

_COLUMNS = "Columns"
_TURNS, _VECTORS = 30, 4
"""A table of single turns is no longer read beyond so many turns, or vectors."""

Keys = Annotated[
    list[str] | None,
    typer.Option("--key", metavar="KEY[@LAYER]", help="A stored vector. Repeatable."),
]
Layers = Annotated[
    list[str] | None,
    typer.Option("--layer", metavar="L|all", help="Layers of the vectors. Repeatable."),
]
PromptColumn = Annotated[
    str | None, typer.Option("--prompt", help="Column of the prompt.", rich_help_panel=_COLUMNS)
]
ResponseColumn = Annotated[
    str | None, typer.Option("--response", help="Column of the response.", rich_help_panel=_COLUMNS)
]
MessagesColumn = Annotated[
    str | None, typer.Option("--messages", help="Column of a conversation.", rich_help_panel=_COLUMNS)
]
SystemColumn = Annotated[
    str | None, typer.Option("--system", help="Column of a system prompt.", rich_help_panel=_COLUMNS)
]
Raw = Annotated[bool, typer.Option("--raw", help="Prompts as plain text: no chat template.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Read the first so many rows only.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Texts per forward pass.")]
Csv = Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write the single values there.")]


def project(
    source: SourcePath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Transcripts: .jsonl, .json or .csv.", show_default=False)
    ],
    key: Keys = None,
    layer: Layers = None,
    edited: Annotated[
        bool, typer.Option("--edited", help="Let the interventions act, and read what they leave.")
    ] = False,
    prompt: PromptColumn = None,
    response: ResponseColumn = None,
    messages: MessagesColumn = None,
    system: SystemColumn = None,
    score: Annotated[
        str | None,
        typer.Option("--score", help="Column of a number to correlate with.", rich_help_panel=_COLUMNS),
    ] = None,
    raw: Raw = False,
    limit: Limit = None,
    batch_size: BatchSize = 16,
    csv_file: Csv = None,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Project every assistant's turn of a transcript on the stored vectors.

    The model reads each turn after what came before it, without interventions (unless --edited). Told are
    the mean, the drift (least-squares slope per turn of each conversation, averaged) and, where the file has
    scores, their correlation with the projections.
    """
    overrides = model_overrides(model, dtype, device, attn_implementation, device_map)
    layers = parse_layers(layer or [])
    with results(as_json) as emit:
        opened = open_source(source)
        from subvene.runner.data.transcripts import Columns, read_transcripts
        from subvene.runner.data.turns import refuse_long, turns_of

        # Before the model is loaded.
        transcripts = read_transcripts(file, Columns(prompt, response, messages, system, score), limit)
        from subvene.runner.monitor import projection
        from subvene.runner.monitor.stored_vectors import chosen_vectors

        quiet_libraries()
        m = opened.load(**overrides)
        vectors = chosen_vectors(m, key or [], layers)
        turns = turns_of(m.tokenizer, transcripts, chat=False if raw else None)
        refuse_long(m.model, turns, transcripts)
        texts = [turn.read for turn in turns]
        found = projection.project(m, texts, vectors, edited=edited, batch_size=batch_size)
        if csv_file is not None:
            _write_csv(csv_file, found, turns, transcripts)
        document = _document(m, file, found, turns, transcripts, vectors)
        document["columns"] = transcripts.used.to_dict()
        if as_json:
            emit(document)
            return
    _print(out(), document, csv_file)
    print_columns(out(), transcripts.used)


def parse_layers(given: Sequence[str]) -> Any:
    """None, `all`, or layer numbers.

    Raises:
        typer.BadParameter: neither.
    """
    if not given:
        return None
    if "all" in given:
        return "all"
    for text in given:
        if not text.isdecimal():
            raise typer.BadParameter(f"--layer {text}: expected a layer like 14, or all")
    return list(dict.fromkeys(map(int, given)))


class _OfTurns(TypedDict):
    n: int
    empty: int
    mean: float | None
    sd: float | None
    min: float | None
    max: float | None
    drift: Drift
    correlation: OfScores | None


class _Summary(_OfTurns):
    key: str
    layer: int
    norm: float


class _Projected(TypedDict):
    where: str
    transcript: int
    turn: int
    score: float | None
    projections: list[Projected]


class _Document(TypedDict):
    columns: NotRequired[dict[str, JsonValue]]
    model: str
    file: str
    read: dict[str, str]
    summary: list[_Summary]
    turns: list[_Projected]


def _document(
    m: IntervenedModel,
    file: Path,
    found: Projections,
    turns: Sequence[Turn],
    transcripts: Sequence[Transcript],
    vectors: ByVector,
) -> _Document:
    from subvene.runner.monitor.projection import READ

    return {
        "model": m.spec.model.name,
        "file": str(file),
        "read": {"before": "the model without interventions"} if found.after is None else dict(READ),
        "summary": [
            {
                "key": key,
                "layer": layer,
                "norm": float(vectors[key][layer].double().norm()),
                **_summary(values.tolist(), turns, transcripts),
            }
            for key, by_layer in found.last.items()
            for layer, values in by_layer.items()
        ],
        "turns": [
            {
                "where": transcripts[turn.transcript].where,
                "transcript": turn.transcript,
                "turn": turn.turn,
                "score": _score(turn, transcripts),
                "projections": found.of(i),
            }
            for i, turn in enumerate(turns)
        ],
    }


def _summary(values: Sequence[float], turns: Sequence[Turn], transcripts: Sequence[Transcript]) -> _OfTurns:
    import numpy as np

    from subvene.runner.data.turn_statistics import against_scores, drift

    known = np.array([value for value in values if math.isfinite(value)])
    return {
        "n": len(known),
        "empty": len(values) - len(known),
        "mean": float(known.mean()) if len(known) else None,
        "sd": float(known.std(ddof=1)) if len(known) > 1 else None,
        "min": float(known.min()) if len(known) else None,
        "max": float(known.max()) if len(known) else None,
        "drift": drift(values, turns),
        "correlation": against_scores(values, turns, transcripts),
    }


def _score(turn: Turn, transcripts: Sequence[Transcript]) -> float | None:
    return transcripts[turn.transcript].score if turn.score is None else turn.score


def _write_csv(
    path: Path, found: Projections, turns: Sequence[Turn], transcripts: Sequence[Transcript]
) -> None:
    columns = {}
    for key, by_layer in found.before.items():
        for layer, values in by_layer.items():
            columns[f"{key}@{layer} before"] = values.tolist()
            if found.after is not None:
                columns[f"{key}@{layer} after"] = found.after[key][layer].tolist()
    with atomic_file(path) as file:
        writer = CsvWriter(file)
        writer.writerow(["where", "transcript", "turn", "tokens", "score", *columns, "text"])
        for i, turn in enumerate(turns):
            score = _score(turn, transcripts)
            shown = [f"{column[i]:.6g}" if math.isfinite(column[i]) else "" for column in columns.values()]
            first = [transcripts[turn.transcript].where, turn.transcript, turn.turn, int(found.tokens[i])]
            writer.writerow([*first, "" if score is None else score, *shown, turn.text])


def _print(console: Console, document: _Document, csv_file: Path | None) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from subvene.runner.cli._tables import print_line

    turns, summary = document["turns"], document["summary"]
    if len(turns) <= _TURNS and len(summary) <= _VECTORS:
        table = Table(box=box.SIMPLE_HEAD)
        table.add_column("where", header_style="cyan", overflow="fold")
        for title in ("turn", "tokens", *(f"{one['key']}@{one['layer']}" for one in summary)):
            table.add_column(Text(title), justify="right", header_style="cyan")
        for turn in turns:
            values = [number(one.get("after", one["before"])) for one in turn["projections"]]
            tokens = str(turn["projections"][0]["tokens"])
            table.add_row(Text(turn["where"]), str(turn["turn"]), tokens, *values)
        console.print(table)
    with_scores = any(one["correlation"] for one in summary)
    table = Table(box=box.SIMPLE_HEAD)
    scored = ("r", "ρ") if with_scores else ()
    for title in ("vector", "turns", "mean", "s.d.", "min", "max", "drift per turn", *scored):
        table.add_column(title, justify="left" if title == "vector" else "right", header_style="cyan")
    for one in summary:
        drift, related = one["drift"], one["correlation"]
        slope = number(drift["mean_slope"])
        if drift["standard_error"] is not None:
            slope += f" ± {drift['standard_error']:.2g}"
        cells = map(number, (one["mean"], one["sd"], one["min"], one["max"]))
        row = [f"{one['key']}@{one['layer']}", str(one["n"]), *cells, slope]
        if with_scores:
            row += map(number, (related["pearson"], related["spearman"]) if related else (None, None))
        table.add_row(*map(Text, row))
    console.print(table)
    after = "after" in document["read"]
    print_line(console, "read", "after the edits" if after else "without interventions (before any edit)")
    conversations = summary[0]["drift"]["conversations"]
    if conversations:
        print_line(console, "drift", f"mean slope of {conversations} conversations of two turns or more")
    if related := summary[0]["correlation"]:
        print_line(console, "scores", f"r Pearson, ρ Spearman, over {related['n']} {related['unit']}s")
    if summary[0]["empty"]:
        print_line(console, "empty", f"{summary[0]['empty']} turns say nothing and have no projection")
    if csv_file is not None:
        print_line(console, "written", str(csv_file))


def print_columns(console: Console, used: Used) -> None:
    """Which columns were read as what, and which were not."""
    from subvene.runner.cli._tables import print_line

    print_line(console, "columns", used.in_words())


def number(value: float | None) -> str:
    """A projection for a table; – where there is none."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
