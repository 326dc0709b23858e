"""Sources: named inputs whose runs are read before the base is run, and how an intervention reads one.

A source's run may itself be intervened on, by interventions that read from other sources (pyvene's serial
mode). What is read becomes the `source` of an intervention's class.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import MinLen
from pydantic import AfterValidator, Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier, Index, Indices, Text, different
from subvene.specs._flaws import Expect, Flaw, Loc, nearest, one_of, refuse
from subvene.specs._pyvene_names import Component
from subvene.specs.positions import FieldTokens, FirstTokens, LastOf, LastTokens, Positions, TokenIndices
from subvene.specs.sites import Site

_INPUTS = ("prompt", "messages", "column")
Names = Annotated[
    tuple[Identifier, ...],
    MinLen(1),
    AfterValidator(different),
    Expect("a non-empty list of different names of interventions"),
]


class MessageSpec(SpecModel):
    """One turn of a conversation."""

    expects: ClassVar[str] = "a mapping with `role` and `content`"

    role: Text = Field(description="Whose turn it is: `system`, `user` or `assistant`.")
    content: str = Field(description="What is said.")


class SourceSpec(SpecModel):
    """A named input, whose run is read before the base is run: one of `prompt`, `messages` and `column`."""

    expects: ClassVar[str] = "a mapping with `prompt`, `messages` or `column`"

    prompt: Text | None = Field(default=None, description="A text, the same for every row of the base.")
    messages: Annotated[tuple[MessageSpec, ...], MinLen(1), Expect("a non-empty list of messages")] | None = (
        Field(default=None, description="A conversation, the same for every row of the base.")
    )
    column: Text | None = Field(
        default=None, description="The column of the data that holds each row's own source text."
    )
    chat: bool | None = Field(
        default=None,
        description="Whether a text is put into the chat template; left out: as the run's own prompts are, "
        "and where it was given token ids, if the tokenizer has a template.",
    )
    interventions: Names = Field(
        default=(),
        description="Names of interventions that act on this source's run, and on it alone (pyvene's serial "
        "mode).",
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        given = [name for name in _INPUTS if getattr(self, name) is not None]
        expected = f"one of {', '.join(f'`{name}`' for name in _INPUTS)}"
        if not given:
            refuse("SourceSpec", [Flaw(("prompt",), expected, None, "missing_field")])
        if len(given) > 1:
            refuse("SourceSpec", [Flaw((given[1],), expected, None, found=" and ".join(given))])
        return self


Pair = Literal["equal", "first", "last", "broadcast"]


def is_of_prompt(rule: Positions) -> bool:
    """Whether a rule can be one for a source, whose run is a prompt without a response."""
    counts_response = isinstance(rule, FirstTokens | LastTokens | TokenIndices) and rule.of == "response"
    return rule != "response" and not counts_response


def is_in_order(rule: Positions) -> bool:
    """Whether tokens are named in the order in which they stand in the text, which is that of their pairs."""
    if not isinstance(rule, TokenIndices):
        return True
    return list(rule.indices) == sorted(rule.indices, key=lambda index: (index < 0, index))


IN_ORDER = "indices in the order of the text, in which tokens of base and source are paired"


def _read_rule(rule: Positions) -> Positions:
    if not is_of_prompt(rule):
        expected = "tokens of a prompt, since a source is one, without a response"
        found = rule if isinstance(rule, str) else "tokens of the response"
        refuse("Positions", [Flaw((), expected, None, found=found)])
    return rule


class SourceRef(SpecModel):
    """What an intervention reads from the run of a source."""

    expects: ClassVar[str] = (
        "a mapping with `from` (a source's name), or with `key` (a constant, stored tensor)"
    )

    origin: Identifier = Field(
        validation_alias="from", serialization_alias="from", description="Name of the source, in `sources:`."
    )
    site: Site | None = Field(
        default=None, description="Where it is read, with `layer`; left out: where the intervention acts."
    )
    layer: Index | None = Field(
        default=None,
        description="0-based index of the decoder block that is read; left out: the intervention's.",
    )
    component: Component | None = Field(
        default=None, description="Instead of `site`: a component, as an intervention names one."
    )
    heads: Indices | None = Field(
        default=None, description="0-based heads that are read; left out: the intervention's."
    )
    positions: Annotated[Positions, AfterValidator(_read_rule)] | None = Field(
        default=None,
        description="The tokens that are read, in the source's prompt; left out: the intervention's rule.",
    )
    pair: Pair = Field(
        default="equal",
        description="How tokens of the source and of the base are paired, in order. `equal`: as many of the "
        "one as of the other in every row, or the run is refused. `first` and `last`: the first or last of "
        "the longer side, as many as the shorter has; what has no partner is left alone. `broadcast`: one "
        "token of the source is put into every token of the base.",
    )

    @classmethod
    def field_order(cls) -> list[str]:
        """`from` stands first."""
        return list(cls.model_fields)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if self.component is not None and self.site is not None:
            refuse("SourceRef", [Flaw(("component",), "`site` or `component`", None, found="both")])
        return self


def reads(declared: Any) -> SourceRef | None:
    """What an intervention reads from a source's run; None where it reads none."""
    found = getattr(declared, "source", None)
    return found if isinstance(found, SourceRef) else None


def needed_columns(sources: Mapping[str, SourceSpec], interventions: Sequence[Any]) -> dict[str, str]:
    """The columns of the data that a file names, and who names each, in words."""
    found = {str(s.column): f"source {name!r}" for name, s in sources.items() if s.column is not None}
    for i, one in enumerate(interventions):
        ref = reads(one)
        for rule in (one.positions, None if ref is None else ref.positions):
            text = rule.text if isinstance(rule, LastOf) else rule
            if isinstance(text, FieldTokens):
                found.setdefault(text.field, f"positions of {one.name or f'interventions[{i}]'}")
    return found


def needed_sources(
    sources: Mapping[str, SourceSpec], interventions: Sequence[Any], names: Sequence[str]
) -> set[str]:
    """The sources that the interventions on the base need, directly and by the runs of other sources.

    Args:
        sources: Those of a file.
        interventions: Those of it.
        names: What each of them is called.
    """
    by_name = dict(zip(names, interventions, strict=True))
    serial = {name for source in sources.values() for name in source.interventions}
    todo = [reads(one) for name, one in by_name.items() if name not in serial]
    needed: set[str] = set()
    while todo:
        ref = todo.pop()
        if ref is None or ref.origin in needed or ref.origin not in sources:
            continue
        needed.add(ref.origin)
        todo += [reads(by_name[name]) for name in sources[ref.origin].interventions if name in by_name]
    return needed


def source_flaws(sources: Mapping[str, SourceSpec], interventions: Sequence[Any]) -> Iterator[Flaw]:
    """Yields what is wrong with how a file's interventions and sources name each other."""
    by_name = {one.name: one for one in interventions if one.name is not None}
    unknown = False
    for i, one in enumerate(interventions):
        ref = reads(one)
        if ref is not None and ref.origin not in sources:
            unknown = True
            expected = one_of(sources) if sources else "a source of `sources:`, and this file declares none"
            place: Loc = ("interventions", i, "source", "from")
            yield Flaw(place, expected, ref.origin, hint=nearest(ref.origin, sources))
    for name, source in sources.items():
        for j, acting in enumerate(source.interventions):
            if acting not in by_name:
                unknown = True
                expected = one_of(by_name) if by_name else "the `name` of an intervention, and none has one"
                place = ("sources", name, "interventions", j)
                yield Flaw(place, expected, acting, hint=nearest(acting, by_name))
    if unknown:
        return
    if (cycle := _cycle(sources, by_name)) is not None:
        expected = "sources that can be run one after the other"
        yield Flaw(("sources", cycle[0]), expected, None, found=f"a circle: {' → '.join(cycle)}")
        return
    names = [one.name or f"#{i}" for i, one in enumerate(interventions)]
    needed = needed_sources(sources, interventions, names)
    for name in sources:
        if name not in needed:
            yield Flaw(("sources", name), "a source that an intervention on the base reads", None, found=name)
    serial = {name for source in sources.values() for name in source.interventions}
    if interventions and all(one.name in serial for one in interventions):
        expected = "an intervention that acts on the base, and not on a source's run alone"
        yield Flaw(("interventions",), expected, None, found="none")


def _cycle(sources: Mapping[str, SourceSpec], by_name: Mapping[str, Any]) -> list[str] | None:
    """The names of a circle of sources, the first again at the end; None if there is none."""

    def following(name: str) -> list[str]:
        refs = (reads(by_name[acting]) for acting in sources[name].interventions)
        return [ref.origin for ref in refs if ref is not None and ref.origin in sources]

    def search(path: list[str]) -> list[str] | None:
        for name in following(path[-1]):
            if name in path:
                return [*path[path.index(name) :], name]
            if (found := search([*path, name])) is not None:
                return found
        return None

    return next((found for name in sources if (found := search([name])) is not None), None)
