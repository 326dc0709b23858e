"""What an artifact's JSON says, checked when it is read: the fingerprint, and the metadata of the tensors.

Unknown fields are left alone; a known one that is not what it should be is named with its file and path.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, cast

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from subvene.runner.models.fingerprint import BlocksFingerprint, ModulesFingerprint
from subvene.specs import SubveneError
from subvene.specs.rows import short

FORMAT = "1"


class ArtifactError(SubveneError):
    """An artifact is incomplete, altered, or made for another model."""


_Count = Annotated[int, Field(ge=1, le=2**31 - 1)]


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _MadeFor(_Record):
    """A model as every fingerprint has it; its sizes are missing where modules are named by their paths."""

    name: str | None = None
    model_type: str
    architecture: str | None = None
    vocab_size: int | None = None
    revision: str | None = None


class _BlocksRecord(_MadeFor):
    n_layers: _Count
    width: _Count
    n_heads: _Count
    head_dim: _Count
    widths: dict[str, _Count] = {}


class _ModulesRecord(_MadeFor):
    architecture: str
    n_layers: None
    width: None = None
    n_heads: None = None
    head_dim: None = None
    modules: dict[str, str]


class Fingerprint(TypedDict):
    """What an artifact says of itself: the model it was made for, its files' hashes, versions."""

    format: str
    model: BlocksFingerprint | ModulesFingerprint
    stock_pyvene: bool
    versions: NotRequired[dict[str, str]]
    sha256: dict[str, str]


class _FingerprintRecord(_Record):
    format: Literal["1"]
    stock_pyvene: bool
    sha256: dict[str, str]
    model: dict[str, JsonValue]


class _Provenance(_Record):
    amended: list[str] = []


class _MetadataRecord(_Record):
    provenance: _Provenance = _Provenance()


def fingerprint_of(content: bytes, file: Path) -> Fingerprint:
    """The fingerprint in a file's content.

    Raises:
        ArtifactError: it is none, is of another format, or a field is missing or of another type.
    """
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file}: not a fingerprint ({error})") from error
    if isinstance(found, dict) and found.get("format", FORMAT) != FORMAT:
        raise ArtifactError(f"{file}: format {found['format']!r}, this subvene reads {FORMAT!r}")
    _check(_FingerprintRecord, found, f"{file}: not a fingerprint")
    model: type[_MadeFor] = _ModulesRecord if "modules" in found["model"] else _BlocksRecord
    _check(model, found["model"], f"{file}: not a fingerprint", "model")
    return cast(Fingerprint, found)


def provenance_of(content: bytes, file: Path) -> dict[str, JsonValue]:
    """The provenance in the header of a safetensors file's content; empty where nothing is said.

    Raises:
        ArtifactError: what is said is no JSON, or a field of it is of another type.
    """
    broken = f"{file}: not a readable safetensors file"
    try:
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        # safetensors takes null for no metadata.
        about = json.loads((header.get("__metadata__") or {}).get("subvene", "{}"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ArtifactError(f"{broken} of an artifact ({error})") from error
    _check(_MetadataRecord, about, f"{broken} of an artifact", "metadata")
    return dict(about.get("provenance", {}))


def _check(record: type[BaseModel], found: Any, broken: str, *within: str) -> None:
    try:
        record.model_validate(found)
    except ValidationError as error:
        flaws = [_in_words(flaw, within) for flaw in error.errors()]
        more = f" and {len(flaws) - 3} more" if len(flaws) > 3 else ""
        raise ArtifactError(
            f"{broken}: {'; '.join(flaws[:3])}{more}; take the artifact anew from where it came from"
        ) from error


def _in_words(flaw: Any, within: tuple[str, ...]) -> str:
    path = ".".join(map(str, (*within, *flaw["loc"])))
    if flaw["type"] == "missing":
        return f"{path}: missing"
    expected = flaw["msg"].replace("Input should be", "expected", 1)
    return f"{path}: {expected}, found {short(flaw['input'])}".removeprefix(": ")
