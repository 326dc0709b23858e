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
from subvene.specs.pairs import ContrastSystems, ContrastTexts, InlinePairs, PairColumns, PairsFile
from subvene.specs.regular_file import open_regular

if TYPE_CHECKING:  # no document needs them
    from subvene.specs.rows import Row

_T = TypeVar("_T")


def load_pairs(path: str | Path, columns: PairColumns | None = None) -> ContrastTexts | ContrastSystems:
    """Reads and checks a file of contrast pairs.

    Args:
        path: A ``.yaml``, ``.yml`` or ``.json`` file with ``texts``, or with ``systems`` and ``questions``;
            or rows: ``.jsonl``, ``.csv`` or a JSON list.
        columns: The columns of rows that are meant, where they have other names than the usual ones.

    Raises:
        SpecError: With every problem of the file.
    """
    return _rows_or_document(Path(path), "pairs", partial(_pairs_of, columns=columns), _validate_pairs)


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


def _pairs_of(rows: Iterable[Row], name: str, columns: PairColumns | None) -> ContrastTexts:
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
    pairs: PairsFile | ContrastTexts | ContrastSystems, folder: str | Path
) -> ContrastTexts | ContrastSystems:
    """Returns the pairs themselves, read from their file if that is how a spec gives them.

    Args:
        pairs: What a spec declares, but for a dataset of the Hub, which the runner reads.
        folder: The folder that a file is relative to.

    Raises:
        SpecError: With every problem of the file.
    """
    return load_pairs(Path(folder) / pairs.file, pairs.columns) if isinstance(pairs, PairsFile) else pairs


@cache
def _pairs_adapter() -> TypeAdapter[ContrastTexts | ContrastSystems]:
    return TypeAdapter(InlinePairs)


def _validate_pairs(data: object) -> ContrastTexts | ContrastSystems:
    return _pairs_adapter().validate_python(data)
