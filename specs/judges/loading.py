"""From a file or a name to a judge's spec."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from subvene.specs._flaws import literal_options, nearest
from subvene.specs.document import read_document
from subvene.specs.errors import SubveneError
from subvene.specs.judges import AnyJudge
from subvene.specs.loading import checked


def load_judge(named: str | Path) -> Any:
    """Reads and checks a judge: a file that holds the mapping, or the kind alone where that says it all.

    Raises:
        SpecError: With every problem of the file.
        SubveneError: There is no such kind, or it needs more than its name.
    """
    text = str(named)
    kinds = judge_kinds()
    if Path(text).suffix.lower() in (".yaml", ".yml", ".json"):
        return checked(read_document(text), _adapter().validate_python)
    if text not in kinds:
        near = nearest(text, kinds)
        hint = f"; did you mean '{near}'?" if near else ""
        raise SubveneError(
            f"judge {text!r}: expected one of {', '.join(kinds)}, or a .yaml file with a judge{hint}"
        )
    try:
        return _adapter().validate_python({"kind": text})
    except ValidationError as error:
        missing = ", ".join(str(details["loc"][-1]) for details in error.errors())
        raise SubveneError(
            f"judge {text!r} needs more than its name ({missing}): write a .yaml file with `kind: {text}` "
            f"and its fields"
        ) from None


def judge_kinds() -> list[str]:
    """Returns the kinds that there are."""
    union = get_args(AnyJudge)[0]
    return [literal_options(member.model_fields["kind"].annotation)[0] for member in get_args(union)]


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(AnyJudge)
