"""What recipes have in common: they give tensors under keys that a spec tells before anything runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier
from subvene.specs.questions import QuestionsSpec
from subvene.specs.sites import Site


class BaseRecipe(SpecModel):
    """One way in which tensors come about; each recipe adds its ``recipe`` and its own fields."""

    expects: ClassVar[str] = "a mapping with `recipe`"
    immaterial: ClassVar[frozenset[str]] = frozenset()
    """Fields that no result depends on, and what the data's hash says in their place."""
    usual_intervention: ClassVar[str | None] = None
    """The kind that is mostly made of what this gives."""
    usual_sites: ClassVar[tuple[Site, ...]] = ()
    """Where it mostly acts; empty: at the one site that is the kind's own."""
    trains: ClassVar[bool] = False
    """Whether it takes steps of an optimizer, whose losses are reported (`report_to`)."""
    methods: ClassVar[Mapping[str, str]] = {}
    """What its method is called in the field → where it was published; the docs' table is made of it."""
    data_field: ClassVar[str | None] = None
    """The field that says what is fitted on."""
    dataset_field: ClassVar[str | None] = "dataset"
    """Where that field names a Hub dataset; None: rows cannot stand in for what it declares."""

    @classmethod
    def usual_fields(cls, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """Returns what its usual intervention has to say, by the fields that the recipe is given."""
        return {}

    if TYPE_CHECKING:

        @property
        def recipe(self) -> str:
            """What the recipe is called in files."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the tensors that this gives, by which interventions name them."""
        raise NotImplementedError

    @property
    def refs(self) -> tuple[str, ...]:
        """What interventions call what it gives: its keys, unless a key has several things under it."""
        return self.keys

    def gives(self, key: str) -> bool:
        """Returns whether an intervention may name a key as one that this gives."""
        return key in self.refs

    @property
    def learns_from(self) -> QuestionsSpec | None:
        """The TruthfulQA questions that it learns from; None if it learns from something else."""
        return None

    @property
    def made_from(self) -> str | None:
        """The key of another fit of the file, whose tensors this is made from; None if it needs none."""
        return None


class OneKeyRecipe(BaseRecipe):
    """A recipe that gives one thing, under a key of the file's choice."""

    key: Identifier = Field(
        description="The key of the tensors that this gives, by which the interventions of this file name "
        "them."
    )

    @property
    def keys(self) -> tuple[str, ...]:
        """The one key."""
        return (self.key,)
