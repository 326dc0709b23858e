"""`subvene validate` and `subvene schema`: what can be said about files without any model.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import EXIT_INVALID, err, results
from subvene.runner.files.printable import on_line
from subvene.specs import ExperimentSpec, InterventionSpec, Problem, SpecError, SubveneError
from subvene.specs.document import Document
from subvene.specs.kinds import ContrastPrompts, FactsFile, PairsFile, TracingEvaluation
from subvene.specs.loading import load_placed
from subvene.specs.local import absent


def validate(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE...", help="YAML or JSON files.", show_default=False)
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the problems as a JSON list.")] = False,
) -> None:
    """Check spec files, and say everything that is wrong with them.

    One line a problem: file, line, column, field, what was expected, what was found. Files of pairs that a
    spec names are checked with it; local models and other files have to be there. Nothing is loaded, and
    the Hub is not asked.
    """
    problems = []
    for file in files:
        found = list(_problems(file))
        problems += found
        if not as_json:
            # As of a linter, the problems are the result, so they go where results go.
            lines = [on_line(str(problem)) for problem in found] or [f"{on_line(str(file))}: ok"]
            typer.echo("\n".join(lines))
    with results(as_json) as emit:
        if as_json:
            emit([asdict(problem) for problem in problems])
    if problems:
        raise typer.Exit(EXIT_INVALID)


def _problems(file: Path) -> Iterator[Problem]:
    """Those of a spec, of the files of pairs that it names, and what it names that is not there."""
    try:
        spec, document = load_placed(file)
    except SpecError as error:
        yield from error.problems
        return
    yield from _absent(file, spec, document)
    if not isinstance(spec, ExperimentSpec):
        return
    traced = [part.facts for part in spec.evaluate if isinstance(part, TracingEvaluation)]
    paired = [getattr(part, "pairs", None) for part in (*spec.fits, *spec.evaluate)]
    declared = [
        part for part in (*traced, *paired) if isinstance(part, FactsFile | PairsFile | ContrastPrompts)
    ]
    if declared:
        yield from _misread(dict.fromkeys(declared), file.parent)


def _misread(files: Iterable[FactsFile | PairsFile | ContrastPrompts], folder: Path) -> Iterator[Problem]:
    """Those of files of facts and of pairs."""
    from subvene.specs.data_files import resolve_facts, resolve_pairs

    for declared in files:
        try:
            if isinstance(declared, FactsFile):
                resolve_facts(declared, folder)
            else:
                resolve_pairs(declared, folder)
        except SpecError as error:
            yield from error.problems


def _absent(file: Path, spec: InterventionSpec, document: Document) -> Iterator[Problem]:
    for loc, expected, name in absent(spec, file.parent):
        place = document.locate(loc)
        yield Problem(str(file), place.value.line, place.value.column, place.path, expected, repr(name))


def schema(
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write it to this file.")] = None,
    of_results: Annotated[
        bool, typer.Option("--results", help="That of a run's results.json, in place of that of specs.")
    ] = False,
) -> None:
    """Print the JSON Schema of spec files, for editors.

    A file that begins with `# yaml-language-server: $schema=PATH` is then checked as you type.
    """
    from subvene.runner.files.storage import atomic_file

    text = results_schema_text() if of_results else schema_text()
    if output is None:
        typer.echo(text, nl=False)
        return
    try:
        with atomic_file(output) as file:
            file.write(text)
    except OSError as error:
        raise SubveneError(f"{output}: cannot be written ({error.strerror})") from error
    err().print(f"wrote {output}", soft_wrap=True)


def schema_text() -> str:
    """The schema as `examples/subvene.schema.json` holds it."""
    from subvene.specs import json_schema

    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def results_schema_text() -> str:
    """The schema of results, as `docs/results.schema.json` holds it."""
    from subvene.runner.experiments.results import results_schema

    return json.dumps(results_schema(), indent=2, ensure_ascii=False) + "\n"
