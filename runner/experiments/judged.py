"""Who judges traits, and what that judge is worth: found out once a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subvene.runner.data.traits import Trait
from subvene.runner.files.json_value import Json
from subvene.runner.files.ledger import Ledger
from subvene.runner.judges import Description, Judge, scored


class _Described(Description, total=False):
    missing: int


def about_judge(
    judge: Judge, traits: Sequence[Trait], ledger: Ledger, base: Mapping[str, Json]
) -> Description:
    """What `describe` says of a judge of traits, as a unit of work: it is measured on written-out contrasts.

    Args:
        judge: with the untouched model, if it asks one.
        traits: that it scores.
        ledger: where it is recorded; a judge that owes verdicts is asked again by the next run.
        base: what every unit of the run depends on.
    """
    qualities = scored(traits)
    unit: dict[str, Json] = {
        "unit": "judge",
        "judge": judge.identity(qualities),
        "traits": [trait.sha256 for trait in traits],
    }

    def work() -> _Described:
        described = judge.describe(qualities)
        stated = described.get("agreement") or {}
        missing = sum(one.get("missing", 0) for one in stated.values() if one is not None)
        return {**described, "missing": missing} if missing else {**described}

    return ledger.do({**base, **unit}, work)
