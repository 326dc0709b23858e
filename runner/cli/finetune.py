"""`subvene judge finetune`: a GPT-judge of one's own at an OpenAI-compatible endpoint."""

from __future__ import annotations

from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subvene.runner.cli._console import EPILOG, EXIT_INVALID, err, out, results
from subvene.runner.cli._judge_options import Aspect, AspectOption
from subvene.runner.cli._options import Json
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from subvene.runner.judges.server.client import Endpoint

finetune_app = typer.Typer(
    name="finetune",
    no_args_is_help=True,
    epilog=EPILOG,
    help="Fine-tune a GPT-judge at an OpenAI-compatible endpoint: prepare, start, follow.",
)


class Form(StrEnum):
    """The choices of `--form`."""

    COMPLETIONS = "completions"
    CHAT = "chat"


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
        from subvene.runner.judges.training import finetune
        from subvene.runner.judges.training.labels import read_labels

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
        from subvene.runner.judges.training import finetune

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
        from subvene.runner.judges.training import finetune

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
    from subvene.runner.judges.training.finetune import prepared

    return [aspect.value] if aspect else prepared(folder)


def _endpoint(base_url: str | None, api_key_env: str) -> Endpoint:
    from subvene.runner.judges.server.client import Endpoint

    return Endpoint(base_url=base_url, api_key_env=api_key_env)
