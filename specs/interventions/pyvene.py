"""pyvene's own interventions, from an allow-list: nothing is imported by a path that a file names."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._fields import Count, Identifier, Index, Indices, Seed, Strength
from subvene.specs._flaws import Expect, Flaw, Shaped, nearest, refuse
from subvene.specs._pyvene_names import LAYERED, Component
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.sources import IN_ORDER, SourceRef, is_in_order, is_of_prompt
from subvene.specs.tensors import TensorRef, is_cell_key

PyveneClass = Literal[
    "ZeroIntervention",
    "VanillaIntervention",
    "AdditionIntervention",
    "SubtractionIntervention",
    "CollectIntervention",
    "SkipIntervention",
    "RotatedSpaceIntervention",
    "BoundlessRotatedSpaceIntervention",
    "SigmoidMaskRotatedSpaceIntervention",
    "SigmoidMaskIntervention",
    "LowRankRotatedSpaceIntervention",
    "PCARotatedSpaceIntervention",
    "AutoencoderIntervention",
    "JumpReLUAutoencoderIntervention",
]

WITHOUT_SOURCE = frozenset({"ZeroIntervention", "CollectIntervention", "SkipIntervention"})
# Their `forward` takes subspaces and does not look at them.
WITHOUT_SUBSPACES = frozenset(
    {
        "BoundlessRotatedSpaceIntervention",
        "SigmoidMaskRotatedSpaceIntervention",
        "SigmoidMaskIntervention",
        "AutoencoderIntervention",
    }
)
NEEDS: dict[str, tuple[str, str]] = {
    "LowRankRotatedSpaceIntervention": ("low_rank_dimension", "an integer >= 1, which this class needs"),
    "JumpReLUAutoencoderIntervention": ("low_rank_dimension", "an integer >= 1, which this class needs"),
    "AutoencoderIntervention": ("latent_dim", "an integer >= 1, which this class needs"),
    "PCARotatedSpaceIntervention": ("state", "the stored principal components, which this class needs"),
}


def _refuse(expected: str) -> NoReturn:
    raise PydanticCustomError("expected", "expected {expected}", {"expected": expected})


def _declarable(name: object) -> object:
    if name == "NoiseIntervention":
        _refuse("another class: NoiseIntervention of pyvene 0.1.8 works on exactly 4 tokens only")
    if name == "LambdaIntervention":
        _refuse(
            "another class: a function cannot be declared in a file; take a class from the list, or build a "
            "stock pyvene.IntervenableModel with the function in Python"
        )
    return name


_SOURCE = "a mapping with `from` (a source's name), or with `key` (a constant, stored tensor)"
_SUBSPACES = "a non-empty list of different integers >= 0, or a list of such lists (one per row)"


def _source_shape(value: object) -> int | None:
    if isinstance(value, TensorRef | SourceRef):
        return int(isinstance(value, SourceRef))
    if not isinstance(value, Mapping):
        return None
    if "key" in value or "from" in value or "origin" in value:
        return int("key" not in value)
    hints = {nearest(key, ("from", "key")) for key in value}
    return int("from" in hints) if hints & {"from", "key"} else None


def _subspaces_shape(value: object) -> int:
    if not isinstance(value, list | tuple) or not value:
        return 0
    return int(all(isinstance(one, list | tuple) for one in value))


def _disjoint(partition: tuple[tuple[Hashable, ...], ...]) -> tuple[tuple[Hashable, ...], ...]:
    members = [index for part in partition for index in part]
    if len(set(members)) != len(members):
        raise PydanticCustomError("repeated", "repeated")
    return partition


class PyveneSpec(BaseIntervention):
    """One of pyvene's own interventions, at a site or at any module's input or output."""

    examples: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"class": "ZeroIntervention", "site": "mlp_output", "layer": 1}
    }

    kind: Literal["pyvene"] = Field(default="pyvene", description="A class of pyvene's own.")
    class_name: Annotated[PyveneClass, BeforeValidator(_declarable)] = Field(
        validation_alias="class",
        serialization_alias="class",
        description="The pyvene class. NoiseIntervention is left out: in pyvene 0.1.8 it works on exactly 4 "
        "tokens only.",
    )
    site: Site | None = Field(default=None, description="The tensor that is edited, together with `layer`.")
    layer: Index | None = Field(default=None, description=f"{LAYER} Together with `site`.")
    component: Component | None = Field(
        default=None,
        description="Instead of `site`: a module's path within the model, closed by `.input` or `.output` "
        "and without `layer`, such as `model.layers[3].mlp.act_fn.output`; or, with `layer`, pyvene's name "
        "of a part of a decoder block, such as `mlp_activation`.",
    )
    heads: Indices | None = Field(
        default=None,
        description="0-based heads that are edited, each on its own and by the same parameters, which are "
        "then head_dim wide; at `attention_heads` and pyvene's `head_…` components. Left out: all of them, "
        "side by side.",
    )
    source: Annotated[TensorRef | SourceRef, Shaped(_source_shape, _SOURCE)] | None = Field(
        default=None,
        description="What the class takes as its source: `{from: NAME}`, the activations of a run of that "
        "source of `sources:`; or a constant, stored tensor of shape [width], `{key}.{site}[{layer}]` "
        "(`{key}` itself with `component`). Needed by every class but Zero, Collect and Skip.",
    )
    share: Identifier | None = Field(
        default=None,
        description="A name that several interventions of one class have: they share one set of parameters.",
    )
    state: TensorRef | None = Field(
        default=None,
        description="The intervention's stored parameters, `{key}.{parameter}`. Left out: fresh ones.",
    )
    seed: Seed = Field(default=0, description="Seed of fresh parameters; without effect on stored ones.")
    low_rank_dimension: Count | None = Field(
        default=None,
        description="Dimensions of the low-rank subspace, or features of the JumpReLU autoencoder.",
    )
    latent_dim: Count | None = Field(default=None, description="Features of the autoencoder.")
    subspaces: (
        Annotated[Indices | Annotated[tuple[Indices, ...], MinLen(1)], Shaped(_subspaces_shape, _SUBSPACES)]
        | None
    ) = Field(
        default=None,
        description="0-based subspaces to intervene on, or a list of such lists, one per row of the batch; "
        "left out: all of them.",
    )
    subspace_partition: (
        Annotated[
            tuple[Indices, ...],
            MinLen(1),
            AfterValidator(_disjoint),
            Expect("a non-empty list of lists of integers >= 0, no integer in two of them"),
        ]
        | None
    ) = Field(default=None, description="The 0-based dimensions that make up each subspace.")
    strength: Strength = Field(default=1.0, description=f"s, in h ← h + s·(edited − h). {STRENGTH}")

    @property
    def module_path(self) -> str | None:
        """The component, where it is a path."""
        return None if self.component in LAYERED else self.component

    @property
    def constant(self) -> TensorRef | None:
        """The source, where it is a stored tensor."""
        return self.source if isinstance(self.source, TensorRef) else None

    @property
    def wanted_key(self) -> str | None:
        """As for any kind; `.state` stands behind the key, and is no part of it; shared ones have one key."""
        if self.share is not None and self.constant is None:
            return self.share
        if self.constant is None and self.state is not None and is_cell_key(self.state.key):
            return self.state.key
        key = super().wanted_key
        return None if key is None else key.removesuffix(".state")

    def stored_refs(self, file: str, key: str, names: Collection[str]) -> dict[str, TensorRef]:
        """Parameters and the source have names of their own, and may be absent."""
        refs = {} if self.constant is None else {"source": TensorRef(file=file, key=key)}
        state = key if is_cell_key(key) else f"{key}.state"
        if any(name.startswith(f"{state}.") for name in names):
            refs["state"] = TensorRef(file=file, key=state)
        return refs

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("PyveneSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        place = "either `site` and `layer`, or `component`"
        if self.component is not None:
            if self.site is not None or (self.layer is not None) > (self.component in LAYERED):
                yield Flaw(("component",), place, self.component, found="both")
            elif self.layer is None and self.component in LAYERED:
                expected = f"an integer >= 0, the block whose {self.component} is meant"
                yield Flaw(("layer",), expected, None, "missing_field")
        elif self.site is None and self.layer is None:
            yield Flaw(("site",), place, None, "missing_field")
        elif self.site is None:
            yield Flaw(("site",), "a site beside `layer`", None, "missing_field")
        elif self.layer is None:
            yield Flaw(("layer",), "an integer >= 0 beside `site`", None, "missing_field")
        if self.source is None and self.class_name not in WITHOUT_SOURCE:
            yield Flaw(("source",), f"the source that {self.class_name} needs", None, "missing_field")
        needed, expected = NEEDS.get(self.class_name, (None, ""))
        if needed is not None and getattr(self, needed) is None:
            yield Flaw((needed,), expected, None, "missing_field")
        yield from self._unheeded(needed)
        yield from self._headless()

    def _headless(self) -> Iterator[Flaw]:
        """Heads where there are none, and places that a source cannot be read at."""
        has_heads = self.site == "attention_heads" or (self.component or "").startswith("head_")
        if self.heads is not None and not has_heads:
            expected = "no heads, but at `site: attention_heads` or one of pyvene's `head_…` components"
            yield Flaw(("heads",), expected, self.heads)
        ref = self.source
        if not isinstance(ref, SourceRef):
            return
        component = ref.component
        if ref.site is not None and ref.layer is None and self.layer is None:
            yield Flaw(("source", "layer"), "an integer >= 0 beside `site`", None, "missing_field")
        if component in LAYERED and ref.layer is None and self.layer is None:
            expected = f"an integer >= 0, the block whose {component} is meant"
            yield Flaw(("source", "layer"), expected, None, "missing_field")
        path = component or (self.component if ref.site is None else None)
        if path is not None and path not in LAYERED and ref.layer is not None:
            yield Flaw(("source", "layer"), "no layer beside a module's path", ref.layer)
        if ref.heads is not None and len(ref.heads) != len(self.heads or ()):
            expected = f"as many heads as are edited, {len(self.heads or ())}"
            yield Flaw(("source", "heads"), expected, ref.heads)
        if ref.positions is None and not is_of_prompt(self.positions):
            expected = "the tokens of the source that are read, since it has no response"
            yield Flaw(("source", "positions"), expected, None, "missing_field")
        if ref.pair == "broadcast" or ref.positions in (None, self.positions):
            return
        if not is_in_order(self.positions):
            yield Flaw(("positions",), IN_ORDER, self.positions)
        if ref.positions is not None and not is_in_order(ref.positions):
            yield Flaw(("source", "positions"), IN_ORDER, ref.positions)

    def _unheeded(self, needed: str | None) -> Iterator[Flaw]:
        """Fields that the class does not look at, so that they would change nothing."""
        if self.source is not None and self.class_name in WITHOUT_SOURCE:
            yield Flaw(("source",), f"no source: {self.class_name} takes none", self.source)
        for field in ("low_rank_dimension", "latent_dim"):
            if field != needed and (value := getattr(self, field)) is not None:
                yield Flaw((field,), f"no {field}: {self.class_name} has none", value)
        for field in ("subspaces", "subspace_partition"):
            if self.class_name in WITHOUT_SUBSPACES and (value := getattr(self, field)) is not None:
                yield Flaw((field,), f"no {field}: {self.class_name} does not look at them", value)


_SHARED = ("class_name", "low_rank_dimension", "latent_dim", "subspace_partition", "seed")


def share_flaws(interventions: Sequence[BaseIntervention]) -> Iterator[Flaw]:
    """Yields interventions that are to share parameters, and are not made alike."""
    first: dict[str, tuple[int, PyveneSpec]] = {}
    for i, one in enumerate(interventions):
        if not isinstance(one, PyveneSpec) or one.share is None:
            continue
        j, other = first.setdefault(one.share, (i, one))
        for field in _SHARED:
            if (value := getattr(one, field)) != (wanted := getattr(other, field)):
                name = "class" if field == "class_name" else field
                expected = f"what interventions[{j}] has, which it shares parameters with: {wanted}"
                yield Flaw(("interventions", i, name), expected, value)
        if (one.heads is None) != (other.heads is None):
            expected = f"as in interventions[{j}], which it shares parameters with: heads or none"
            yield Flaw(("interventions", i, "heads"), expected, one.heads)
