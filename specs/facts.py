"""Facts: what a model is asked to complete, what the statement is about, and what is true of it."""

from typing import Annotated, ClassVar, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Text
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse
from subvene.specs.pairs import ByKey, DataPath


class Fact(SpecModel):
    """A statement that breaks off before what it says of its subject."""

    expects: ClassVar[str] = "a mapping with `prompt`, `subject`, `answer` and perhaps `foil` and `swap`"

    prompt: Text = Field(description="The statement up to its answer, as plain text.")
    subject: Text = Field(description="What it is about; stands in the prompt exactly once.")
    answer: Text = Field(
        description="How it goes on. What is measured is the first token of it behind the prompt."
    )
    foil: Text | None = Field(
        default=None, description="Something else of the answer's kind, for the logit difference."
    )
    swap: Text | None = Field(
        default=None,
        description="Another subject of as many tokens, which takes the subject's place in the corrupted run "
        "where the corruption is `swap`.",
    )

    @model_validator(mode="after")
    def _subject_stands_once(self) -> Self:
        count = self.prompt.count(self.subject)
        if count != 1:
            expected = "a text that stands in the prompt exactly once"
            found = f"{self.subject!r}, which stands there {'not at all' if not count else f'{count} times'}"
            refuse("Fact", [Flaw(("subject",), expected, self.subject, found=found)])
        for name in ("foil", "swap"):
            other = getattr(self, name)
            same = "answer" if name == "foil" else "subject"
            if other is not None and other.strip() == getattr(self, same).strip():
                refuse("Fact", [Flaw((name,), f"another text than the {same}", other)])
        return self

    @property
    def swapped_prompt(self) -> str | None:
        """The prompt about the other subject; None where there is none."""
        return None if self.swap is None else self.prompt.replace(self.subject, self.swap)


class InlineFacts(SpecModel):
    """Facts, written out."""

    expects: ClassVar[str] = "a mapping with `facts`"

    facts: Annotated[tuple[Fact, ...], MinLen(1), Expect("a non-empty list of facts")] = Field(
        description="The facts, each with `prompt`, `subject`, `answer` and perhaps `foil` and `swap`."
    )


class FactsFile(SpecModel):
    """Facts that stand in a file of their own."""

    expects: ClassVar[str] = "a mapping with `file`"

    file: DataPath = Field(
        description="A file, relative to the folder of this spec: YAML or JSON with `facts`, or rows "
        "(.jsonl, .csv, a JSON list) with the columns `prompt`, `subject`, `answer` (or `attribute`) and "
        "perhaps `foil` and `swap`."
    )


_BY_KEY: dict[str, type] = {"file": FactsFile, "facts": InlineFacts}

Facts = Annotated[
    FactsFile | InlineFacts,
    Shaped(ByKey(FactsFile, InlineFacts, keys=_BY_KEY), "a mapping with `file` or with `facts`"),
]
