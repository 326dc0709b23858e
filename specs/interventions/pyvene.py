"""pyvene's own interventions, from an allow-list: nothing is imported by a path that a file names."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NoReturn, Self

from annotated_types import MinLen
from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._fields import Count, Index, Indices, Seed, Strength, full_match
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs._pyvene_names import instead_of
from subvene.specs.interventions.base import LAYER, STRENGTH, BaseIntervention
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

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

_WITHOUT_SOURCE = frozenset({"ZeroIntervention", "CollectIntervention", "SkipIntervention"})
# Their `forward` takes subspaces and does not look at them.
_WITHOUT_SUBSPACES = frozenset(
    {
        "BoundlessRotatedSpaceIntervention",
        "SigmoidMaskRotatedSpaceIntervention",
        "SigmoidMaskIntervention",
        "AutoencoderIntervention",
    }
)
_NEEDS: dict[str, tuple[str, str]] = {
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


def _by_path(component: object, info: ValidationInfo) -> object:
    if isinstance(component, str) and (instead := instead_of(component, info.data.get("layer"))):
        _refuse(instead)
    return component


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
    component: (
        Annotated[
            str,
            full_match(
                r"[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])*(\.[A-Za-z_][A-Za-z0-9_]*(\[[0-9]+\])*)*\.(input|output)"
            ),
            BeforeValidator(_by_path),
            Expect("a module path that ends in .input or .output, such as model.layers[3].mlp.act_fn.output"),
        ]
        | None
    ) = Field(
        default=None,
        description="Instead of `site` and `layer`: a module's path within the model, closed by `.input` or "
        "`.output`, such as `model.layers[3].mlp.act_fn.output`.",
    )
    source: TensorRef | None = Field(
        default=None,
        description="The constant source representation, shape [width]: `{key}.{site}[{layer}]`, or `{key}` "
        "itself with `component`. Needed by every class but Zero, Collect and Skip.",
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
    subspaces: Indices | None = Field(
        default=None, description="0-based subspaces to intervene on; left out: all of them."
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
        """The component."""
        return self.component

    @property
    def wanted_key(self) -> str | None:
        """As for any kind; `.state` stands behind the key, and is no part of it."""
        key = super().wanted_key
        return None if key is None else key.removesuffix(".state")

    def stored_refs(self, file: str, key: str, names: Collection[str]) -> dict[str, TensorRef]:
        """Parameters and the source have names of their own, and may be absent."""
        refs = {} if self.source is None else {"source": TensorRef(file=file, key=key)}
        if any(name.startswith(f"{key}.state.") for name in names):
            refs["state"] = TensorRef(file=file, key=f"{key}.state")
        return refs

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("PyveneSpec", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        place = "either `site` and `layer`, or `component`"
        if self.component is not None:
            if self.site is not None or self.layer is not None:
                yield Flaw(("component",), place, self.component, found="both")
        elif self.site is None and self.layer is None:
            yield Flaw(("site",), place, None, "missing_field")
        elif self.site is None:
            yield Flaw(("site",), "a site beside `layer`", None, "missing_field")
        elif self.layer is None:
            yield Flaw(("layer",), "an integer >= 0 beside `site`", None, "missing_field")
        if self.source is None and self.class_name not in _WITHOUT_SOURCE:
            yield Flaw(("source",), f"the source that {self.class_name} needs", None, "missing_field")
        needed, expected = _NEEDS.get(self.class_name, (None, ""))
        if needed is not None and getattr(self, needed) is None:
            yield Flaw((needed,), expected, None, "missing_field")
        yield from self._unheeded(needed)

    def _unheeded(self, needed: str | None) -> Iterator[Flaw]:
        """Fields that the class does not look at, so that they would change nothing."""
        if self.source is not None and self.class_name in _WITHOUT_SOURCE:
            yield Flaw(("source",), f"no source: {self.class_name} takes none", self.source)
        for field in ("low_rank_dimension", "latent_dim"):
            if field != needed and (value := getattr(self, field)) is not None:
                yield Flaw((field,), f"no {field}: {self.class_name} has none", value)
        for field in ("subspaces", "subspace_partition"):
            if self.class_name in _WITHOUT_SUBSPACES and (value := getattr(self, field)) is not None:
                yield Flaw((field,), f"no {field}: {self.class_name} does not look at them", value)
