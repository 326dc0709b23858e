"""Which tokens an intervention edits, by their absolute position in the sequence.

A sequence is a prompt of P tokens followed by a response; padding has no position. The last prompt token,
P-1, is the generation cursor: its output decides the first response token. How positions become a mask is
the runner's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, SignedIndices
from subvene.specs._flaws import Shaped, nearest

Part = Literal["prompt", "response"]
PositionMode = Literal["all", "prompt", "response", "last_prompt_token"]

_OF = (
    "The part of the sequence that is counted: `prompt` is tokens 0 to P-1, `response` begins with token P, "
    "the first token of the response (the cursor, token P-1, is `last_prompt_token`)."
)


class FirstTokens(SpecModel):
    """The first tokens of the prompt or of the response."""

    expects: ClassVar[str] = "a mapping with `first`"

    first: Count = Field(description="How many tokens, counted from the beginning of the part.")
    of: Part = Field(default="prompt", description=_OF)


class LastTokens(SpecModel):
    """The last tokens of the prompt or of the response.

    The last tokens of a response are known only once it is there: in scoring, not while it is generated.
    """

    expects: ClassVar[str] = "a mapping with `last`"

    last: Count = Field(description="How many tokens, counted from the end of the part.")
    of: Part = Field(default="prompt", description=_OF)


class TokenIndices(SpecModel):
    """Single tokens of the prompt or of the response, by index."""

    expects: ClassVar[str] = "a mapping with `indices`"

    indices: SignedIndices = Field(
        description="0-based token indices within the part, all different; a negative one counts from the "
        "part's end (-1 is its last token)."
    )
    of: Part = Field(default="prompt", description=_OF)


_BY_KEY = {"first": 1, "last": 2, "indices": 3}
_BY_CLASS: dict[type, int] = {FirstTokens: 1, LastTokens: 2, TokenIndices: 3}
_EXPECTED = (
    "one of: all, prompt, response, last_prompt_token, or a mapping with one of `first`, `last`, `indices`"
)


def _shape(value: object) -> int | None:
    if isinstance(value, str):
        return 0
    if not isinstance(value, Mapping):
        return _BY_CLASS.get(type(value))
    given = [key for key in value if key in _BY_KEY]
    if not given:
        # A misspelt key still says which of the three was meant, and that one then names the misspelling.
        given = [hint for key in value if (hint := nearest(key, _BY_KEY))]
    return _BY_KEY[given[0]] if given else None


Positions = Annotated[
    PositionMode | FirstTokens | LastTokens | TokenIndices,
    Shaped(_shape, _EXPECTED),
]
"""``all``, ``prompt``, ``response`` (the cursor P-1 and all that follows), ``last_prompt_token`` (the cursor
alone), or counted tokens of one part."""
