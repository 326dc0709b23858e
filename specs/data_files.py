"""From a file of pairs or of facts to what it holds, every problem of the file reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import TypeAdapter

from subvene.specs.document import read_document
from subvene.specs.errors import Problem, SpecError
from subvene.specs.facts import FactsFile, InlineFacts
from subvene.specs.loading import checked
from subvene.specs.pairs import (
    ContrastPrompts,
    Contrasts,
    ContrastSystems,
    ContrastTexts,
    InlinePairs,
    PairColumns,
    PairsFile,
    PromptsFile,
)
from subvene.specs.regular_file import open_regular

if TYPE_CHECKING:  # no document needs them
    from subvene.specs.rows import Row

_T = TypeVar("_T")


def load_pairs(path: str | Path, columns: PairColumns | None = None) -> Contrasts:
    """Reads and checks a file of contrast pairs.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file with ``texts``, ``prompts`` or ``systems`` and
            ``questions``; or rows: ``.jsonl``, ``.csv`` or a JSON list.
        columns: The columns of rows that are meant, where they have other names than the usual ones.

    Raises:
        SpecError: With every problem of the file.
    """
    pairs = _rows_or_document(Path(path), "pairs", partial(_pairs_of, columns=columns), _validate_pairs)
    return _with_prompts(pairs, Path(path).parent) if isinstance(pairs, ContrastPrompts) else pairs


def load_facts(path: str | Path) -> InlineFacts:
    """Reads and checks a file of facts.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file with ``facts``; or rows: ``.jsonl``, ``.csv`` or a JSON
            list.

    Raises:
        SpecError: With every problem of the file.
    """
    return _rows_or_document(Path(path), "facts", _facts_of, InlineFacts.model_validate)


def resolve_facts(facts: FactsFile | InlineFacts, folder: str | Path) -> InlineFacts:
    """Returns the facts themselves, read from their file if that is how a spec gives them.

    Args:
        facts: What a spec declares.
        folder: The folder that a file is relative to.

    Raises:
        SpecError: With every problem of the file.
    """
    return load_facts(Path(folder) / facts.file) if isinstance(facts, FactsFile) else facts


def _rows_or_document(
    path: Path,
    what: str,
    of_rows: Callable[[Iterable[Row], str], _T],
    validate: Callable[[object], _T],
) -> _T:
    """What a file holds: as rows, or as a document that says what could stand in a spec.

    Args:
        path: The file.
        what: What rows are of.
        of_rows: Makes it of rows and what to call them.
        validate: Makes it of a document.

    Raises:
        SpecError: With every problem of the file.
    """
    if path.suffix.lower() in (".jsonl", ".csv") or _is_list(path):
        from subvene.specs.rows import RowsError, file_rows

        try:
            return of_rows(file_rows(path), str(path))
        except RowsError as error:
            expected = f"rows that are {what}"
            raise SpecError([Problem(str(path), None, None, "", expected, str(error))]) from error
    return checked(read_document(path), validate)


def _pairs_of(rows: Iterable[Row], name: str, columns: PairColumns | None) -> Contrasts:
    from subvene.specs.pair_rows import pairs_of

    return pairs_of(rows, name, columns=columns)


def _facts_of(rows: Iterable[Row], name: str) -> InlineFacts:
    from subvene.specs.fact_rows import facts_of

    return facts_of(rows, name)


def _is_list(path: Path) -> bool:
    """Whether a JSON file is a list of rows; whatever else is wrong with it is said where it is read."""
    if path.suffix.lower() != ".json":
        return False
    try:
        with open_regular(path) as stream:
            return stream.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")
    except OSError:
        return False


def resolve_pairs(
    pairs: PairsFile | ContrastTexts | ContrastSystems | ContrastPrompts, folder: str | Path
) -> Contrasts:
    """Returns the pairs themselves, read from their files if that is how a spec gives them.

    Args:
        pairs: What a spec declares, but for a dataset of the Hub, which the runner reads.
        folder: The folder that a file is relative to.

    Raises:
        SpecError: With every problem of the file.
    """
    if isinstance(pairs, PairsFile):
        return load_pairs(Path(folder) / pairs.file, pairs.columns)
    return _with_prompts(pairs, Path(folder)) if isinstance(pairs, ContrastPrompts) else pairs


def _with_prompts(pairs: ContrastPrompts, folder: Path) -> ContrastPrompts:
    """The prompts in place of the files that hold them."""
    given = {"positive": pairs.prompts.positive, "negative": pairs.prompts.negative}
    read = {name: _prompts(side, folder) for name, side in given.items()}
    return ContrastPrompts.model_validate({"prompts": read})


def _prompts(prompts: PromptsFile | tuple[str, ...], folder: Path) -> tuple[str, ...]:
    from subvene.specs.prompt_rows import file_prompts
    from subvene.specs.rows import RowsError

    if not isinstance(prompts, PromptsFile):
        return prompts
    path = folder / prompts.file
    try:
        return file_prompts(path, prompts.column, prompts.limit)
    except RowsError as error:
        raise SpecError([Problem(str(path), None, None, "", "prompts", str(error))]) from error


@cache
def _pairs_adapter() -> TypeAdapter[Contrasts]:
    return TypeAdapter(InlinePairs)


def _validate_pairs(data: object) -> Contrasts:
    return _pairs_adapter().validate_python(data)
