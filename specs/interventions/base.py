"""What every kind of intervention has: a name and the tokens it edits."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, get_args

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Identifier
from subvene.specs._flaws import Flaw, Loc, refuse
from subvene.specs.gates import AnyGateSpec, During, gate_flaws, gate_refs
from subvene.specs.positions import Positions, is_within_prompt
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
    when: AnyGateSpec | None = Field(
        default=None,
        description="The gate: what is read of the activations, and where it has to lie for these tokens to "
        "be edited. Left out: they always are.",
    )
    during: During | None = Field(
        default=None, description="The part of the response that is edited. Left out: all of it."
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

    @model_validator(mode="after")
    def _gate_reads_first(self) -> Self:
        flaws = []
        if self.when is not None:
            found = gate_flaws(self.when, self.site, getattr(self, "layer", None))
            flaws += [replace(flaw, loc=("when", *flaw.loc)) for flaw in found]
        if self.during is not None and is_within_prompt(self.positions):
            expected = "positions that reach the response, of which `during` is a part"
            flaws.append(Flaw(("positions",), expected, self.positions))
        if flaws:
            refuse(type(self).__name__, flaws)
        return self

    @classmethod
    def strength_field(cls) -> str:
        """Returns the name of the field that multiplies the edit."""
        return "coefficient" if "coefficient" in cls.model_fields else "strength"

    @property
    def is_gated(self) -> bool:
        """Whether the tokens that are edited, or how far, are decided while the model runs."""
        return self.when is not None or self.during is not None

    def gate_refs(self) -> Iterator[tuple[Loc, TensorRef]]:
        """Yields the place and value of everything in its gate that names stored tensors."""
        for loc, ref in gate_refs(self.when):
            yield ("when", *loc), ref

    def tensor_refs(self) -> Iterator[tuple[str, TensorRef]]:
        """Yields the name and value of every field that names stored tensors; not those of its gate."""
        for field in type(self).model_fields:
            value = getattr(self, field)
            if isinstance(value, TensorRef):
                yield field, value

    @classmethod
    def ref_fields(cls) -> tuple[str, ...]:
        """Returns the fields that name stored tensors, or may."""
        return tuple(name for name, field in cls.model_fields.items() if _may_be_ref(field.annotation))

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
        return {name: TensorRef(file=file, key=key) for name in self.ref_fields()}


def _may_be_ref(annotation: Any) -> bool:
    """Whether a field's type is that of references to tensors, or has it among its alternatives."""
    return annotation is TensorRef or any(map(_may_be_ref, get_args(annotation)))
