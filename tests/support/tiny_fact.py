"""A fact of six tokens, of which two are the subject's, for tiny models of any vocabulary above 23."""

from __future__ import annotations

from subvene.runner.data.facts import FactTokens
from subvene.specs import Fact

IDS, SWAPPED = (11, 12, 13, 14, 15, 16), (11, 22, 23, 14, 15, 16)
FACT = FactTokens(
    fact=Fact(prompt="a b", subject="b", answer="c"),
    ids=IDS,
    pieces=tuple("abcdef"),
    start=1,
    end=3,
    answer=20,
    foil=21,
    swapped=SWAPPED,
)
