"""Which tokens an intervention edits, by their absolute position in the sequence.

A sequence is a prompt of P tokens followed by a response; padding has no position. The last prompt token,
P-1, is the generation cursor: its output decides the first response token. Tokens may also be named by the
text that they stand for, which each row's prompt holds at a place of its own. How positions become a mask is
the runner's business.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, SignedIndices, Text
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


class FieldTokens(SpecModel):
    """The tokens of the text that a column of the row's data holds, where it stands in the row's prompt."""

    expects: ClassVar[str] = "a mapping with `field`"

    field: Text = Field(
        description="Name of a column of the data. Its text must stand in the row's prompt exactly once."
    )


class SpanTokens(SpecModel):
    """The tokens of one text, where it stands in the row's prompt."""

    expects: ClassVar[str] = "a mapping with `span`"

    span: Text = Field(description="A text that stands in every row's prompt exactly once.")


_NAMED_TEXTS = "a mapping with `field` or `span`"


def _text_shape(value: object) -> int | None:
    if isinstance(value, FieldTokens | SpanTokens):
        return int(isinstance(value, SpanTokens))
    if not isinstance(value, Mapping):
        return None
    given = [key for key in value if key in ("field", "span")]
    given = given or [hint for key in value if (hint := nearest(key, ("field", "span")))]
    return int(given[0] == "span") if given else None


class LastOf(SpecModel):
    """The last token of a text in the row's prompt."""

    expects: ClassVar[str] = "a mapping with `last_of`"

    last_of: Annotated[FieldTokens | SpanTokens, Shaped(_text_shape, _NAMED_TEXTS)] = Field(
        description="The text: `{field: COLUMN}` or `{span: TEXT}`."
    )

    @property
    def text(self) -> FieldTokens | SpanTokens:
        """What names the text."""
        return self.last_of


TextPositions = FieldTokens | SpanTokens | LastOf
"""Rules that name tokens by their text."""
TEXT_POSITIONS = (FieldTokens, SpanTokens, LastOf)

_CLASSES: dict[str, type[SpecModel]] = {
    "first": FirstTokens,
    "last": LastTokens,
    "indices": TokenIndices,
    "field": FieldTokens,
    "span": SpanTokens,
    "last_of": LastOf,
}
_BY_KEY = {key: i for i, key in enumerate(_CLASSES, start=1)}
_BY_CLASS: dict[type, int] = {cls: i for i, cls in enumerate(_CLASSES.values(), start=1)}
_EXPECTED = (
    "one of: all, prompt, response, last_prompt_token, or a mapping with one of "
    f"{', '.join(f'`{key}`' for key in _CLASSES)}"
)


def _shape(value: object) -> int | None:
    if isinstance(value, str):
        return 0
    if not isinstance(value, Mapping):
        return _BY_CLASS.get(type(value))
    given = [key for key in value if key in _BY_KEY]
    if not given:
        # A misspelt key still says which of them was meant, and that one then names the misspelling.
        given = [hint for key in value if (hint := nearest(key, _BY_KEY))]
    return _BY_KEY[given[0]] if given else None


Positions = Annotated[
    PositionMode | FirstTokens | LastTokens | TokenIndices | FieldTokens | SpanTokens | LastOf,
    Shaped(_shape, _EXPECTED),
]
"""``all``, ``prompt``, ``response`` (the cursor P-1 and all that follows), ``last_prompt_token`` (the cursor
alone), counted tokens of one part, or the tokens of a text in the prompt."""


def is_within_prompt(rule: Positions) -> bool:
    """Returns whether a rule can never select a token after the prompt."""
    if isinstance(rule, str):
        return rule in ("prompt", "last_prompt_token")
    return isinstance(rule, TEXT_POSITIONS) or rule.of == "prompt"
