"""`subvene validate` and `subvene schema`: what can be said about files without any model.

Imports neither torch nor transformers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from subvene.runner.cli._console import EXIT_INVALID, err, results
from subvene.runner.files.printable import on_line
from subvene.runner.files.storage import atomic_file
from subvene.specs import (
    ExperimentSpec,
    FactsFile,
    InterventionSpec,
    PairsFile,
    Problem,
    SpecError,
    SubveneError,
    json_schema,
    load_facts,
    resolve_pairs,
)
from subvene.specs.document import Document
from subvene.specs.evaluations import TracingEvaluation
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
    facts = [one.facts for one in spec.evaluate if isinstance(one, TracingEvaluation)]
    for name in dict.fromkeys(declared.file for declared in facts if isinstance(declared, FactsFile)):
        try:
            load_facts(file.parent / name)
        except SpecError as error:
            yield from error.problems
    declared = [getattr(part, "pairs", None) for part in (*spec.fits, *spec.evaluate)]
    for pairs in dict.fromkeys(pairs for pairs in declared if isinstance(pairs, PairsFile)):
        try:
            resolve_pairs(pairs, file.parent)
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
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"


def results_schema_text() -> str:
    """The schema of results, as `docs/results.schema.json` holds it."""
    from subvene.runner.experiments.results import results_schema

    return json.dumps(results_schema(), indent=2, ensure_ascii=False) + "\n"
