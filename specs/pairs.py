"""Contrast pairs: what should and what should not be, side by side."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Text, path_ending
from subvene.specs._flaws import Expect, Flaw, Shaped, nearest, refuse


class TextPair(SpecModel):
    """Two texts that differ in the trait, after the same prompt or on their own."""

    expects: ClassVar[str] = "a mapping with `positive`, `negative` and perhaps `prompt` and `system`"

    prompt: Text | None = Field(
        default=None,
        description="The user's turn, put into the model's chat template; the two texts are then the "
        "assistant's replies. Left out: the two texts stand as they are, without a template.",
    )
    system: Text | None = Field(default=None, description="A system prompt before the user's turn.")
    positive: Text = Field(description="The text that shows the trait.")
    negative: Text = Field(description="The text that shows its opposite.")

    @model_validator(mode="after")
    def _turn_after_system(self) -> Self:
        if self.system is not None and self.prompt is None:
            refuse("TextPair", [Flaw(("system",), "a `prompt` beside it", self.system)])
        return self

    @property
    def asked(self) -> str | list[dict[str, str]] | None:
        """What the texts answer: the user's turn, or messages where a system prompt precedes it."""
        if self.system is None or self.prompt is None:
            return self.prompt
        return [{"role": "system", "content": self.system}, {"role": "user", "content": self.prompt}]


class SystemPair(SpecModel):
    """Two system prompts that ask for the trait and for its opposite."""

    expects: ClassVar[str] = "a mapping with `positive` and `negative`"

    positive: Text = Field(description="The system prompt that asks for the trait.")
    negative: Text = Field(description="The system prompt that asks for its opposite.")


class ContrastTexts(SpecModel):
    """Pairs of texts, written out."""

    expects: ClassVar[str] = "a mapping with `texts`"

    texts: Annotated[tuple[TextPair, ...], MinLen(1), Expect("a non-empty list of pairs")] = Field(
        description="The pairs, each with `positive`, `negative` and perhaps `prompt` and `system`."
    )


class ContrastSystems(SpecModel):
    """Pairs of system prompts, each asked every question."""

    expects: ClassVar[str] = "a mapping with `systems` and `questions`"

    systems: Annotated[tuple[SystemPair, ...], MinLen(1), Expect("a non-empty list of pairs")] = Field(
        description="The pairs of system prompts, each with `positive` and `negative`."
    )
    questions: Annotated[tuple[Text, ...], MinLen(1), Expect("a non-empty list of questions")] = Field(
        description="The user's turns; every question is asked under both prompts of every pair."
    )


DataPath = Annotated[
    str,
    path_ending(".yaml", ".yml", ".json", ".jsonl", ".csv"),
    Expect("a path that ends in .yaml, .yml, .json, .jsonl or .csv"),
]


class PairColumns(SpecModel):
    """Which columns of rows hold a pair; those that are left out have one of their usual names."""

    expects: ClassVar[str] = "a mapping from `positive`, `negative`, `prompt` or `system` to a column's name"

    positive: Text | None = Field(default=None, description="The column with the text that shows the trait.")
    negative: Text | None = Field(default=None, description="The column with the text of its opposite.")
    prompt: Text | None = Field(default=None, description="The column with the user's turn before both.")
    system: Text | None = Field(default=None, description="The column with the system prompt before that.")


_COLUMNS = (
    "Where `positive`, `negative`, `prompt` and `system` have other names than their usual ones (`chosen` "
    "and `rejected`, `question` or `instruction`, `answer_matching_behavior`): the names of the columns."
)


class PairsFile(SpecModel):
    """Pairs that stand in a file of their own."""

    expects: ClassVar[str] = "a mapping with `file`"

    file: DataPath = Field(
        description="A file, relative to the folder of this spec: YAML or JSON that holds just what could "
        "stand here (`texts`, `prompts`, or `systems` and `questions`), or rows (.jsonl, .csv, a JSON list) "
        "with the columns `prompt`, `system`, `positive` and `negative`, of preferences, or of CAA's "
        "questions."
    )
    columns: PairColumns | None = Field(default=None, description=_COLUMNS)


class PairsDataset(SpecModel):
    """Pairs that are rows of a Hub dataset."""

    expects: ClassVar[str] = "a mapping with `dataset`"

    dataset: Text = Field(description="A Hub dataset id.")
    subset: Text | None = Field(default=None, description="The dataset's configuration.")
    split: Text = Field(default="train", description="The dataset's split.")
    revision: Text | None = Field(default=None, description="Branch, tag or commit of the Hub dataset.")
    limit: Count | None = Field(default=None, description="The first so many rows; left out: all.")
    columns: PairColumns | None = Field(default=None, description=_COLUMNS)


class PromptsFile(SpecModel):
    """Prompts that stand in a file of their own."""

    expects: ClassVar[str] = "a mapping with `file`"

    file: Annotated[
        str,
        path_ending(".txt", ".jsonl", ".json", ".csv", any_case=True),
        Expect("a path that ends in .txt, .jsonl, .json or .csv"),
    ] = Field(
        description="A file, relative to the folder of this spec: a prompt a line (.txt), or rows (.jsonl, "
        ".csv, a JSON list, whose members may be the prompts themselves)."
    )
    column: Text | None = Field(
        default=None,
        description="Of rows: the column with the prompt, where it has another name than `prompt`, "
        "`instruction` or `question` (AdvBench: `goal`).",
    )
    limit: Count | None = Field(default=None, description="The first so many prompts; left out: all.")


_PROMPTS = "a non-empty list of prompts, or a mapping with `file`"
Prompts = Annotated[
    Annotated[tuple[Text, ...], MinLen(1), Expect(_PROMPTS)] | PromptsFile,
    Shaped(lambda value: int(not isinstance(value, list | tuple)), _PROMPTS),
]


class PromptSides(SpecModel):
    """Two lists of prompts, which need not be equally long."""

    expects: ClassVar[str] = "a mapping with `positive` and `negative`"

    positive: Prompts = Field(description="Prompts that bring out what is looked for: harmful ones, say.")
    negative: Prompts = Field(description="Prompts that do not.")


class ContrastPrompts(SpecModel):
    """Two lists of a user's turns, each put into the chat template by itself."""

    expects: ClassVar[str] = "a mapping with `prompts`"

    prompts: PromptSides = Field(
        description="`positive` and `negative`: a list of user's turns each, or a `file` of them. They are "
        "not paired, and need not be equally many."
    )

    def side(self, name: Literal["positive", "negative"]) -> tuple[str, ...]:
        """Returns the prompts of a side.

        Raises:
            TypeError: They stand in a file that has not been read; `resolve_pairs` reads it.
        """
        prompts = getattr(self.prompts, name)
        if isinstance(prompts, PromptsFile):
            raise TypeError(f"{name}: {prompts.file} has not been read")
        return tuple(prompts)


Contrasts = ContrastTexts | ContrastSystems | ContrastPrompts
"""What a declaration of pairs is read into."""

_BY_KEY: dict[str, type] = {
    "file": PairsFile,
    "dataset": PairsDataset,
    "prompts": ContrastPrompts,
    "texts": ContrastTexts,
    "systems": ContrastSystems,
    "questions": ContrastSystems,
}


class ByKey:
    """Chooses among classes, numbered as they are given, by the keys that a mapping has.

    Args:
        *classes: The classes.
        keys: Each key that tells one of them; those of other classes are left out.
    """

    def __init__(self, *classes: type, keys: Mapping[str, type] = _BY_KEY) -> None:
        self.classes = classes
        self.keys = {key: kind for key, kind in keys.items() if kind in classes}

    def __call__(self, value: object) -> int | None:
        """Returns the number of a value's class, None if no key tells it."""
        chosen: type | None = type(value)
        if isinstance(value, Mapping):
            chosen = next((self.keys[key] for key in value if key in self.keys), None)
            if chosen is None:
                chosen = next((self.keys[hint] for key in value if (hint := nearest(key, self.keys))), None)
        return self.classes.index(chosen) if chosen in self.classes else None


_INLINE = "a mapping with `texts`, with `prompts`, or with `systems` and `questions`"

InlinePairs = Annotated[
    ContrastTexts | ContrastSystems | ContrastPrompts,
    Shaped(ByKey(ContrastTexts, ContrastSystems, ContrastPrompts), _INLINE),
]
"""What a file of pairs holds."""

ContrastPairs = Annotated[
    PairsFile | PairsDataset | ContrastTexts | ContrastSystems | ContrastPrompts,
    Shaped(
        ByKey(PairsFile, PairsDataset, ContrastTexts, ContrastSystems, ContrastPrompts),
        "a mapping with `file`, with `dataset`, with `texts`, with `prompts`, or with `systems` and "
        "`questions`",
    ),
]
"""Pairs in a file or a Hub dataset, or written out in one of three forms."""

ContrastTextPairs = Annotated[
    PairsFile | PairsDataset | ContrastTexts,
    Shaped(
        ByKey(PairsFile, PairsDataset, ContrastTexts), "a mapping with `file`, with `dataset` or with `texts`"
    ),
]
"""Pairs of texts, in a file or a Hub dataset, or written out."""
