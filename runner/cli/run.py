"""`subvene run`: an experiment from end to end, told as it goes."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subvene.runner.cli._comparison import ComparisonStory
from subvene.runner.cli._console import err, out, quiet_libraries, results
from subvene.runner.cli._localization import LocalizationStory
from subvene.runner.cli._look import LookStory, check_reload
from subvene.runner.cli._options import Json
from subvene.runner.cli._persona import PersonaStory
from subvene.runner.cli._source import experiment
from subvene.runner.cli._tracing import TracingStory
from subvene.runner.cli._units import UnitStory
from subvene.specs import ExperimentSpec

if TYPE_CHECKING:
    from subvene.runner.experiments.on_ray import RayExecutor


class Executor(StrEnum):
    """The choices of `--executor`."""

    HERE = "here"
    RAY = "ray"


def run(
    spec: Annotated[
        Path,
        typer.Argument(
            metavar="EXPERIMENT", help="A spec file with `fit:` or `evaluate:`.", show_default=False
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FOLDER",
            help="Where the results go; by default the spec's `output`, or runs/NAME.",
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="vllm|URL",
            help="vLLM in this process, or the URL of a running `subvene serve`, which generates and scores; "
            "in place of the file's `engine`.",
        ),
    ] = None,
    executor: Annotated[
        Executor,
        typer.Option(help="Who does the units of work: this process, or tasks of Ray (`subvene[ray]`)."),
    ] = Executor.HERE,
    ray_address: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="Of a Ray cluster (`auto`, HOST:6379); left out: Ray on this machine."
        ),
    ] = None,
    unit_cpus: Annotated[float, typer.Option(min=0, help="CPUs that a unit takes on Ray.")] = 1,
    unit_gpus: Annotated[float, typer.Option(min=0, help="GPUs that a unit takes on Ray.")] = 0,
    as_json: Json = False,
) -> None:
    """Run an experiment: fit, evaluate, save.

    Run again with the same output, it goes on where it was stopped. What was saved of one that looks at
    coefficients is reloaded in a fresh process as a proof.
    """
    declared = experiment(
        spec, "this is no experiment: it has neither `fit:` nor `evaluate:`; try `subvene generate`", engine
    )
    with results(as_json) as emit:
        from subvene.runner.reports.experiment import run_experiment

        quiet_libraries()
        with _story(declared, quiet=as_json) as story:
            done = run_experiment(
                spec,
                output=output,
                on_step=story.step,
                engine=engine,
                executor=_executor(executor, ray_address, unit_cpus, unit_gpus),
            )
        if as_json:
            emit(
                {"output": str(done.output), **json.loads((done.output / "results.json").read_text("utf-8"))}
            )
        else:
            story.end(done.output)
        check_reload(done.results)


def _executor(executor: Executor, address: str | None, cpus: float, gpus: float) -> RayExecutor | None:
    if executor is Executor.RAY:
        from subvene.runner.experiments.on_ray import RayExecutor

        return RayExecutor(address, cpus, gpus)
    if address is not None or (cpus, gpus) != (1, 0):
        raise typer.BadParameter("--ray-address, --unit-cpus and --unit-gpus need `--executor ray`")
    return None


def _story(declared: ExperimentSpec, *, quiet: bool) -> UnitStory:
    if declared.traces:
        return TracingStory(out(), err())
    if declared.asks_localization:
        return LocalizationStory(out(), err())
    if declared.compares_conditions:
        return ComparisonStory(out(), err())
    if declared.measures_traits:
        return PersonaStory(out(), err())
    return LookStory(out(), err(), declared, quiet=quiet)
