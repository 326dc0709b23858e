"""What every kind of intervention has: a name and the tokens it edits."""

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier
from subvene.specs.positions import Positions
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef, parse_tensor_name

STRENGTH = (
    "Multiplies the edit: one finite number, or a list with one number per row of the batch. 0 leaves the "
    "model as it is."
)
_EVERY_KIND_HAS = ("kind", "site", "strength")
LAYER = "0-based index of the decoder block: 19 is `model.layers[19]`."


class BaseIntervention(SpecModel):
    """One edit of activations; each kind adds its ``kind``, its site and its own fields.

    A kind has ``kind``, ``site`` and ``strength``, each as a field or as a property; where it names a layer
    or query heads, they are called ``layer`` and ``heads`` (or ``read_heads`` and ``write_heads``), and are
    held against the model's sizes by these names.
    """

    if TYPE_CHECKING:  # as fields of their own: a property here would be shadowed by them

        @property
        def kind(self) -> str:
            """By which files name it."""

        @property
        def site(self) -> Site | None:
            """The tensor that is edited; None where a module is named by its path."""

        @property
        def strength(self) -> float | tuple[float, ...]:
            """What multiplies the edit."""

    also_called: ClassVar[dict[str, str]] = {
        "coefficient": "strength",
        "scale": "strength",
        "layers": "layer",
    }

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Declarations that differ in what can be done with them: what stands behind the kind in words, such as
    `, other positions`, and the fields; the plainest first. Tables in the docs and tests of every kind take
    them, on a model of two layers and two heads, with tensors that are drawn."""

    name: Identifier | None = Field(
        default=None, description="What receipts and tables call this intervention; unique within a file."
    )
    positions: Positions = Field(
        default="all",
        description="The tokens that are edited, by absolute position: `all`; `prompt` (tokens 0 to P-1); "
        "`response` (the cursor P-1 and all that follows); `last_prompt_token` (P-1 alone); or counted "
        "tokens (`first`, `last` or `indices`) of the prompt or the response. Padding is never edited.",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a kind that lacks what every kind has.

        Raises:
            TypeError: Naming what it lacks.
        """
        missing = [
            name for name in _EVERY_KIND_HAS if name not in cls.model_fields and not hasattr(cls, name)
        ]
        if missing:
            raise TypeError(
                f"{cls.__name__} has no {' and no '.join(missing)}: expected as a field or a property"
            )

    def tensor_refs(self) -> Iterator[tuple[str, TensorRef]]:
        """Yields the name and value of every field that names stored tensors."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, TensorRef):
                yield field, value

    @property
    def module_path(self) -> str | None:
        """The module that is edited, where it is named by its path in the model rather than by a site."""
        return None

    @property
    def reads_whole_key(self) -> bool:
        """Whether what this does depends on all that is stored under its key.

        A kind that does not say is taken to; one that reads the tensors of its layer alone says False, and an
        artifact can then keep those of several interventions under one key.
        """
        return True

    @property
    def wanted_key(self) -> str | None:
        """The key under which an artifact is to keep its tensors; None for one made from its name."""
        wanted = next((ref.key for _, ref in self.tensor_refs()), None)
        # A reference may name one tensor in full; names are made from its first part.
        named = None if wanted is None else parse_tensor_name(wanted)
        return wanted if named is None else named.key

    def stored_refs(self, file: str, key: str, names: Collection[str]) -> dict[str, TensorRef]:
        """Returns the fields that name tensors, pointing to where an artifact keeps them.

        Args:
            file: The artifact's file of tensors.
            key: The key under which they are kept there.
            names: The full names of all of them.
        """
        fields = type(self).model_fields.items()
        return {
            name: TensorRef(file=file, key=key)
            for name, field in fields
            if "TensorRef" in str(field.annotation)
        }
