"""`subvene generate`: text in, edited text out, with the receipt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NotRequired, TypedDict, cast

import typer
from pydantic import JsonValue

from subvene.runner.cli._console import err, out, quiet_libraries, results, say
from subvene.runner.cli._options import (
    Attention,
    Device,
    DeviceMap,
    DtypeOption,
    Json,
    Model,
    SourcePath,
    Strengths,
    System,
    model_overrides,
    parse_strengths,
    read_prompts,
)
from subvene.runner.cli._source import open_source, tokenised
from subvene.specs.sources import needed_columns

if TYPE_CHECKING:
    from subvene.runner.edits.text_positions import DataRow
    from subvene.runner.intervened.model import IntervenedModel
    from subvene.runner.monitor.live_projection import Live

Write = Callable[..., list[str]]
_SAMPLING = "Sampling"


class _Options(TypedDict, total=False):
    """Of a call of `m.generate`."""

    do_sample: bool
    temperature: float
    top_p: float
    system: str | None
    chat: bool | None
    strengths: Mapping[str, float | Sequence[float]]
    max_new_tokens: int
    rows: Sequence[DataRow] | None


class _Record(TypedDict, total=False):
    prompt: str
    response: str | None
    baseline: str | None
    not_finite: str


class _Document(TypedDict):
    """What `--json` prints."""

    model: str
    strengths: Mapping[str, float | Sequence[float]]
    records: list[_Record]
    projections: NotRequired[Mapping[str, object]]
    receipt: list[dict[str, JsonValue]]


class _Answered(NamedTuple):
    """What came of the prompts.

    Attributes:
        answers: in the order of the prompts; to compare, the baseline's before each. None: not finite.
        marked: row → why it has no answer.
        told: projections, with what was read; None where none were asked for.
        receipt: what each intervention did.
    """

    answers: list[str | None]
    marked: dict[int, str]
    told: Live | None
    receipt: list[dict[str, JsonValue]]


def generate(
    source: SourcePath,
    prompt: Annotated[
        list[str] | None,
        typer.Option("-p", "--prompt", help="A user's turn; - reads standard input. Repeatable."),
    ] = None,
    prompts_file: Annotated[
        Path | None,
        typer.Option(
            help="Prompts, one a line, or rows (.jsonl, .json, .csv) with the columns that the spec names; "
            "- reads standard input."
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Show the untouched model's answer beside it.")
    ] = False,
    system: System = None,
    raw: Annotated[bool, typer.Option("--raw", help="Plain text: no chat template.")] = False,
    strength: Strengths = None,
    project: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY[@LAYER]", help="Project what is generated on this stored vector. Repeatable."
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 64,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Sample at this temperature; 0 is greedy.", rich_help_panel=_SAMPLING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Sample from this much probability.", rich_help_panel=_SAMPLING),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sampling.", rich_help_panel=_SAMPLING)] = 0,
    model: Model = None,
    dtype: DtypeOption = None,
    device: Device = None,
    device_map: DeviceMap = None,
    attn_implementation: Attention = None,
    as_json: Json = False,
) -> None:
    """Answer prompts with the interventions at work; greedy unless a temperature or top-p is given.

    One prompt is streamed as it is written. The receipt (what each intervention did) goes to standard error,
    or below the table with --compare. What the checkpoint's generation config asks for (a repetition penalty)
    is obeyed, but not with --compare.
    """
    if raw and system is not None:
        raise typer.BadParameter("--system needs the chat template, which --raw leaves out")
    overrides = model_overrides(model, dtype, device, attn_implementation, device_map)
    with results(as_json) as emit:
        opened = open_source(source)
        columns = needed_columns(opened.spec.sources, opened.spec.interventions)
        prompts, rows = read_prompts(prompt or [], prompts_file, columns)
        from subvene.runner.edits.compile import entry_name

        names = [entry_name(opened.spec, i) for i in range(len(opened.spec.interventions))]
        strengths = _per_row(parse_strengths(strength or [], opened.spec, names), len(prompts), compare)
        quiet_libraries()
        m = opened.load(**overrides)
        for text in prompts:
            tokenised(m.tokenizer, text, system=system, raw=raw)
        options: _Options = {
            **_sampling(m, temperature, top_p, seed, compare),
            "system": system,
            "chat": False if raw else None,
            "strengths": strengths,
            "max_new_tokens": max_new_tokens,
            "rows": _repeated(rows, 1 + compare),
        }
        streams = len(prompts) == 1 and not (compare or as_json)
        answered = _answer(m, prompts, options, project, compare=compare, streams=streams)
        if as_json:
            emit(_document(m, prompts, answered, strengths, compare))
            _fail(answered.marked, strengths)
            return
    _print(prompts, answered, compare=compare, streamed=streams)
    _print_projections(answered.told, prompts, compare)
    _fail(answered.marked, strengths)


def _answer(
    m: IntervenedModel,
    prompts: Sequence[str],
    options: _Options,
    project: Sequence[str] | None,
    *,
    compare: bool,
    streams: bool,
) -> _Answered:
    write, live = _writer(m, project)
    marked: dict[int, str] = {}
    answers: list[str | None]
    if compare:
        rows = [text for text in prompts for _ in range(2)]
        answers, marked = _compared(write, live, rows, options)
    else:
        answers = [*(_stream(m, write, prompts, options) if streams else _batch(write, prompts, options))]
    return _Answered(answers, marked, live[-1] if live else None, m.receipt.to_dict() if m.receipt else [])


def _document(
    m: IntervenedModel,
    prompts: Sequence[str],
    answered: _Answered,
    strengths: Mapping[str, float | Sequence[float]],
    compare: bool,
) -> _Document:
    records = _records(prompts, answered.answers, compare)
    for row, words in answered.marked.items():
        records[row // 2]["not_finite"] = words
    name, receipt = m.spec.model.name, answered.receipt
    document: _Document = {"model": name, "strengths": strengths, "records": records, "receipt": receipt}
    if answered.told:
        document["projections"] = _projections(answered.told, compare)
    return document


def _repeated(rows: Sequence[object] | None, times: int) -> list[DataRow] | None:
    return None if rows is None else cast("list[DataRow]", [row for row in rows for _ in range(times)])


def _compared(
    write: Write, live: Sequence[Live], rows: Sequence[str], options: _Options
) -> tuple[list[str | None], dict[int, str]]:
    """Each row's answer, None where the edited run is no longer finite; and of those rows why."""
    from subvene.runner.edits.finite_points import over_finite_points

    def answer(which: list[int]) -> list[str]:
        strengths = {
            name: [value[i] for i in which] if isinstance(value, list) else value
            for name, value in options["strengths"].items()
        }
        data = options["rows"]
        own = None if data is None else [data[i] for i in which]
        return _batch(write, [rows[i] for i in which], {**options, "strengths": strengths, "rows": own})

    kept, written, marked = over_finite_points(range(len(rows)), answer)
    answers = dict(zip(kept, written or [], strict=True))
    if live:
        read = dict(zip(kept, live[-1]["rows"], strict=True))
        live[-1]["rows"] = [read.get(i, []) for i in range(len(rows))]
    return [answers.get(i) for i in range(len(rows))], marked


def _fail(marked: Mapping[int, str], strengths: Mapping[str, float | Sequence[float]]) -> None:
    """Fail where an answer is missing, unless its strength is one of several, of which the others count.

    Raises:
        NotFiniteError: an edited answer is not finite.
    """
    swept = {name: set(value[1::2]) for name, value in strengths.items() if isinstance(value, list)}
    is_sweep = any(len(values) > 1 for values in swept.values())
    rows = max((len(value) for value in strengths.values() if isinstance(value, list)), default=0)
    if marked and not (is_sweep and len(marked) < rows // 2):
        from subvene.runner.edits.not_finite import NotFiniteError

        raise NotFiniteError(f"{len(marked)} edited answers are not finite: {next(iter(marked.values()))}")


def _print(prompts: Sequence[str], answered: _Answered, *, compare: bool, streamed: bool) -> None:
    from subvene.runner.cli._tables import print_receipt, print_side_by_side

    console, marked = out(), answered.marked
    answers = [
        f"(no answer: not finite: {marked[i]})" if i in marked else str(answer)
        for i, answer in enumerate(answered.answers)
    ]
    for i, text in enumerate(prompts):
        if compare:
            print_side_by_side(console, text, ("baseline", "intervened"), answers[2 * i : 2 * i + 2])
        elif not streamed:
            say(f"› {text}\n{answers[i]}\n")
    print_receipt(console if compare else err(), answered.receipt)


def _records(prompts: Sequence[str], answers: Sequence[str | None], compare: bool) -> list[_Record]:
    if not compare:
        return [{"prompt": text, "response": answer} for text, answer in zip(prompts, answers, strict=True)]
    triples = zip(prompts, answers[0::2], answers[1::2], strict=True)
    return [{"prompt": text, "baseline": before, "response": after} for text, before, after in triples]


def _per_row(
    strengths: Mapping[str, float | tuple[float, ...]], n_prompts: int, compare: bool
) -> Mapping[str, float | Sequence[float]]:
    """Strengths for the batch; to compare, every prompt has a row at 0 and a row at its strength."""
    for name, value in strengths.items():
        if isinstance(value, tuple) and len(value) != n_prompts:
            raise typer.BadParameter(
                f"{name} declares {len(value)} strengths, one a row, and there are {n_prompts} prompts; "
                "give --strength"
            )
    if not compare:
        return strengths
    rows = {n: v if isinstance(v, tuple) else (v,) * n_prompts for n, v in strengths.items()}
    return {name: [s for value in values for s in (0.0, value)] for name, values in rows.items()}


def _sampling(
    m: IntervenedModel, temperature: float | None, top_p: float | None, seed: int, compare: bool
) -> _Options:
    options: _Options = {"do_sample": False}
    if temperature != 0 and not (temperature is None and top_p is None):
        import transformers

        transformers.set_seed(seed)
        options = {"do_sample": True}
        if temperature is not None:
            options["temperature"] = temperature
        if top_p is not None:
            options["top_p"] = top_p
    if compare:
        from subvene.runner.intervened.measured import measured_options

        # Two answers set beside each other are a measurement.
        options = cast("_Options", measured_options(m.model, **options))
    return options


def _writer(m: IntervenedModel, keys: Sequence[str] | None) -> tuple[Write, list[Live]]:
    """`m.generate`, and where it leaves the projections that were asked for, the last call's last."""
    if not keys:
        return m.generate, []
    from subvene.runner.monitor.live_projection import generate_with_projections
    from subvene.runner.monitor.stored_vectors import chosen_vectors

    vectors = chosen_vectors(m, keys)
    live: list[Live] = []

    def write(prompts: Sequence[str], **options: Any) -> list[str]:
        answers, found = generate_with_projections(m, prompts, vectors, **options)
        live.append(found)
        return answers

    return write, live


def _projections(told: Live, compare: bool) -> Mapping[str, object]:
    """For the JSON document: what was read, and in the order of its records the values of each answer."""
    step = 2 if compare else 1
    rows = [told["rows"][i : i + step] for i in range(0, len(told["rows"]), step)]
    names = ("baseline", "response") if compare else ("response",)
    return {**told, "rows": [dict(zip(names, row, strict=True)) for row in rows]}


def _print_projections(told: Live | None, prompts: Sequence[str], compare: bool) -> None:
    if not told:
        return
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from subvene.runner.cli._tables import print_line

    console = out()
    table = Table(box=box.SIMPLE_HEAD)
    for title in ("prompt", *(("answer",) if compare else ()), "vector", "tokens", "before", "after"):
        left = title in ("prompt", "answer", "vector")
        table.add_column(title, justify="left" if left else "right", header_style="cyan", overflow="fold")
    names = ("baseline", "intervened") if compare else ("",)
    for i, row in enumerate(told["rows"]):
        prompt, name = prompts[i // len(names)], names[i % len(names)]
        for one in row:
            cells = [prompt if len(prompt) <= 30 else f"{prompt[:30]}…", *((name,) if compare else ())]
            cells += [f"{one['key']}@{one['layer']}", str(one["tokens"])]
            both = (one["before"], one["after"])
            cells += [f"{value:.3f}" if one["tokens"] else "–" for value in both]
            table.add_row(*map(Text, cells))
    console.print(table)
    for when, words in told["read"].items():
        print_line(console, when, words)
    print_line(console, "over", told["over"])


def _stream(m: IntervenedModel, write: Write, prompts: Sequence[str], options: _Options) -> list[str]:
    import transformers

    class Streamer(transformers.TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            say(text, end="\n" if stream_end else "")

    streamer = Streamer(m.tokenizer, skip_prompt=True, skip_special_tokens=True)
    return write(prompts, streamer=streamer, **options)


def _batch(write: Write, prompts: Sequence[str], options: _Options) -> list[str]:
    from subvene.runner.files.progress import generating

    with generating(options["max_new_tokens"]) as streamer:
        return write(prompts, streamer=streamer, **options)
