"""Gates: when an intervention acts, by what is read of the activations, and for how much of the response.

A gate is a measurement at a site, a threshold, and a moment at which it is decided. What one reads is what
the model computes there: after every edit that acts before the gated one (those of earlier layers, and at the
gated one's own place those before it in the file), and before the gated one itself. So a gate's site must
come before what it decides, and one pass over a whole text reads what generation had read token by token.

How a measurement is computed is the business of `subvene.interventions.measurements`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from annotated_types import Gt, Le, MinLen
from pydantic import AllowInfNan, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Finite, Index
from subvene.specs._flaws import Expect, Flaw, Loc, Shaped, nearest, refuse
from subvene.specs._registry import Registered, by_name
from subvene.specs.saes import AnySae, StoredSae
from subvene.specs.sites import Site
from subvene.specs.tensors import TensorRef

Moment = Literal["once", "turn", "token"]
"""When a gate is decided."""

ORDER: tuple[tuple[Site, ...], ...] = (
    ("block_input",),
    ("query", "key", "value"),
    ("attention_heads",),
    ("attention_output",),
    ("mlp_input",),
    ("mlp_neurons",),
    ("mlp_output",),
    ("block_output",),
)
"""The sites of a block in the order in which it computes them; those side by side have none."""

_RANK = {site: rank for rank, sites in enumerate(ORDER) for site in sites}


def comes_before(site: Site, layer: int, edited: Site, at: int) -> bool:
    """Returns whether what is read at ``site[layer]`` is there when ``edited[at]`` is edited.

    The edited place itself is: its activation is read before the edit.
    """
    return (site, layer) == (edited, at) or (layer, _RANK[site]) < (at, _RANK[edited])


class Gate(SpecModel):
    """When an intervention acts: one measurement, or `any`, `all` or `not` of other gates."""

    expects: ClassVar[str] = "a mapping with `measure`, `any`, `all` or `not`"

    must_open: bool = Field(
        default=False,
        strict=True,
        description="Whether a run in which this gate opens at no token that it is asked for has failed, as "
        "one without steering. Otherwise it is reported, and nothing more.",
    )

    def parts(self) -> Iterator[tuple[Loc, Gate]]:
        """Yields the gates that this is made of, each with its place in it."""
        yield from ()

    def walk(self, loc: Loc = ()) -> Iterator[tuple[Loc, Gate]]:
        """Yields this gate and all that are in it, each with its place, the outer ones first."""
        yield loc, self
        for place, part in self.parts():
            yield from part.walk((*loc, *place))

    def measured(self) -> Iterator[tuple[Loc, MeasuredGate]]:
        """Yields every measurement in it, with its place."""
        for loc, gate in self.walk():
            if isinstance(gate, MeasuredGate):
                yield loc, gate

    def mapped(self, change: Callable[[MeasuredGate], MeasuredGate]) -> Gate:
        """Returns the same gate with every measurement in it changed, in the order of `measured`."""
        raise NotImplementedError

    def with_refs(self, given: Callable[[MeasuredGate, TensorRef], TensorRef]) -> Gate:
        """Returns the same gate with other references to stored tensors."""
        return self.mapped(lambda gate: gate if gate.ref is None else gate.with_ref(given(gate, gate.ref)))


_THRESHOLD = (
    "It opens where the measurement is {word} this; beside it, `ramp`. Left out with its counterpart: the "
    "threshold and the side of it that are stored with the tensor, as the recipe `cast` finds them."
)


class MeasuredGate(Gate):
    """One measurement at a site, against a threshold; each kind adds its ``measure`` and its tensors."""

    site: Site = Field(default="block_output", description="Where it is read.")
    layer: Index | None = Field(
        default=None,
        description="0-based index of the decoder block that is read. Left out: the only one that is stored "
        "for its tensor at the site.",
    )
    above: Finite | None = Field(default=None, description=_THRESHOLD.format(word="above"))
    below: Finite | None = Field(default=None, description=_THRESHOLD.format(word="below"))
    ramp: Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a finite number above 0")] | None = (
        Field(
            default=None,
            description="Opens by degrees: from 0 at the threshold to 1 this far beyond it, linearly; the "
            "strength is multiplied by it. Left out: a step.",
        )
    )
    decide: Moment = Field(
        default="once",
        description="When: `once` at the cursor, the last token of the prompt, for the whole sequence; "
        "`turn` at the cursor of each of the assistant's turns, until the next one (before the first it is "
        "closed); `token` at every token for itself.",
    )
    tokens: Literal["last", "mean"] = Field(
        default="last",
        description="What is measured: `last` the activation at the token at which it is decided; `mean` the "
        "mean activation of the prompt without its first token, an attention sink (with `decide: once`).",
    )

    ref_field: ClassVar[str] = "vector"

    @property
    def measurement(self) -> str:
        """What it is called in files."""
        return str(vars(self)["measure"])

    @property
    def ref(self) -> TensorRef | None:
        """The tensor that it is measured with; None for a measurement without one."""
        return None

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if flaws := list(self._flaws()):
            refuse(type(self).__name__, flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        if self.above is not None and self.below is not None:
            yield Flaw(("below",), "`above` or `below`, not both", self.below)
        if self.ref is None:
            if self.above is None and self.below is None:
                yield Flaw(("above",), "`above` or `below`, a finite number", None, "missing_field")
            if self.layer is None:
                yield Flaw(("layer",), "an integer >= 0", None, "missing_field")
        if self.tokens == "mean" and self.decide != "once":
            yield Flaw(("tokens",), "`last`, since the mean is the prompt's and decided `once`", self.tokens)

    def mapped(self, change: Callable[[MeasuredGate], MeasuredGate]) -> Gate:
        """Returns it changed."""
        return change(self)

    def with_ref(self, ref: TensorRef) -> MeasuredGate:
        """Returns the same gate, its tensor named otherwise."""
        return self.model_copy(update={self.ref_field: ref})


_VECTOR = "`{key}.{site}[{layer}]` of shape [width of the site]"


class _VectorGate(MeasuredGate):
    """A measurement with one vector."""

    also_called: ClassVar[dict[str, str]] = {"direction": "vector", "condition": "vector"}

    vector: TensorRef = Field(description=f"The vector, {_VECTOR}.")

    @property
    def ref(self) -> TensorRef | None:
        """The vector."""
        return self.vector


class ProjectionGate(_VectorGate):
    """The projection on a direction, ⟨h, v⟩/‖v‖, in the units of the activation."""

    measure: Literal["projection"] = Field(default="projection", description="⟨h, v⟩/‖v‖.")


class CosineGate(_VectorGate):
    """The cosine of the angle to a direction, ⟨h, v⟩/(‖h‖·‖v‖), from -1 to 1."""

    measure: Literal["cosine"] = Field(default="cosine", description="⟨h, v⟩/(‖h‖·‖v‖).")


class CastGate(_VectorGate):
    """CAST's similarity to a condition vector, cos(h, tanh(⟨h, v⟩·v/‖v‖²)), from -1 to 1."""

    measure: Literal["cast"] = Field(default="cast", description="cos(h, tanh(⟨h, v⟩·v/‖v‖²)).")


class ProbeGate(_VectorGate):
    """What a linear probe says, σ(⟨w, h⟩ + b), a probability from 0 to 1."""

    measure: Literal["probe"] = Field(default="probe", description="σ(⟨w, h⟩ + b).")
    vector: TensorRef = Field(
        description=f"The probe's weights w, {_VECTOR}; its intercept b, `….bias` of shape [], is 0 where "
        "none is stored."
    )


class NormGate(MeasuredGate):
    """The length of the activation, ‖h‖."""

    measure: Literal["norm"] = Field(default="norm", description="‖h‖.")


class SaeFeatureGate(MeasuredGate):
    """The activation of a feature of a sparse autoencoder, 0 where it is not active."""

    also_called: ClassVar[dict[str, str]] = {"features": "feature", "release": "sae"}
    ref_field: ClassVar[str] = "sae"

    measure: Literal["sae_feature"] = Field(default="sae_feature", description="A feature's activation.")
    sae: AnySae = Field(description="The SAE, as of the kind `sae_feature`; its `decoder` is not needed.")
    feature: Index = Field(description="The latent, 0-based.")

    @property
    def ref(self) -> TensorRef | None:
        """The SAE's tensors; None where they are not read yet."""
        return self.sae if isinstance(self.sae, StoredSae) else None

    def _flaws(self) -> Iterator[Flaw]:
        yield from (flaw for flaw in super()._flaws() if flaw.loc not in (("above",), ("layer",)))
        if self.above is None and self.below is None:
            yield Flaw(("above",), "`above` or `below`, a finite number", None, "missing_field")
        if isinstance(self.sae, StoredSae):
            yield from self.sae.feature_flaws("feature", self.feature)


MEASURES: dict[str, type[MeasuredGate]] = by_name(
    "measure", MeasuredGate, (ProjectionGate, CosineGate, CastGate, ProbeGate, NormGate, SaeFeatureGate)
)
"""Every measurement by its name; a new one is a class here and one in `interventions.measurements`."""

AnyMeasure = Annotated[MeasuredGate, Registered("measure", MEASURES)]
_COMBINED = ("any", "all", "not")


def _shape(value: object) -> int:
    """Which of `any`, `all`, `not` a mapping has; 3 for a measurement."""
    if isinstance(value, Gate):
        return next((i for i, cls in enumerate((AnyGate, AllGate, NotGate)) if isinstance(value, cls)), 3)
    if not isinstance(value, Mapping) or "measure" in value:
        return 3
    given = [key for key in value if key in _COMBINED]
    given = given or [hint for key in value if (hint := nearest(key, (*_COMBINED, "measure")))]
    return (*_COMBINED, "measure").index(given[0]) if given else 3


class _Several(Gate):
    """A gate made of others."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The others."""
        raise NotImplementedError

    def parts(self) -> Iterator[tuple[Loc, Gate]]:
        """Yields the others, each with its place."""
        field = self._field()
        called = type(self).model_fields[field].serialization_alias or field
        for i, gate in enumerate(self.gates):
            yield (called, i), gate

    def mapped(self, change: Callable[[MeasuredGate], MeasuredGate]) -> Gate:
        """Returns the same of changed gates."""
        return self.model_copy(update={self._field(): tuple(gate.mapped(change) for gate in self.gates)})

    def _field(self) -> str:
        (field,) = (name for name in type(self).model_fields if name != "must_open")
        return field


class AnyGate(_Several):
    """Open as far as the widest open of its gates."""

    expects: ClassVar[str] = "a mapping with `any`"

    any_of: Gates = Field(
        validation_alias="any", serialization_alias="any", description="The gates, of which one is enough."
    )

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates, of which one is enough."""
        return self.any_of


class AllGate(_Several):
    """Open as far as the least open of its gates."""

    expects: ClassVar[str] = "a mapping with `all`"

    all_of: Gates = Field(
        validation_alias="all", serialization_alias="all", description="The gates, all of which must open."
    )

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The gates, all of which must open."""
        return self.all_of


class NotGate(Gate):
    """Open as far as its gate is closed."""

    expects: ClassVar[str] = "a mapping with `not`"

    negated: AnyGateSpec = Field(
        validation_alias="not", serialization_alias="not", description="The gate that must not open."
    )

    def parts(self) -> Iterator[tuple[Loc, Gate]]:
        """Yields its gate."""
        yield ("not",), self.negated

    def mapped(self, change: Callable[[MeasuredGate], MeasuredGate]) -> Gate:
        """Returns the same of a changed gate."""
        return self.model_copy(update={"negated": self.negated.mapped(change)})


AnyGateSpec = Annotated[
    AnyGate | AllGate | NotGate | AnyMeasure,
    Shaped(_shape, "a mapping with `measure`, `any`, `all` or `not`"),
]
"""A gate as a file declares one."""
Gates = Annotated[tuple[AnyGateSpec, ...], MinLen(1), Expect("a non-empty list of gates")]


class During(SpecModel):
    """The part of the response for which an intervention acts, and how it fades.

    What is counted is the token of the response that an activation decides: 0 at the cursor, 1 at the first
    token of the response.
    """

    expects: ClassVar[str] = "a mapping with `from`, `to`, `decay` or `max_tokens`"

    begin: Index = Field(
        default=0,
        validation_alias="from",
        serialization_alias="from",
        description="The first token of the response, from 0, whose choice is steered.",
    )
    to: Count | None = Field(
        default=None, description="The first one whose choice is no longer steered. Left out: none."
    )
    decay: Annotated[
        float, Strict(), Gt(0), Le(1), AllowInfNan(False), Expect("a number above 0 and at most 1")
    ] = Field(
        default=1.0,
        description="The strength is multiplied by this once more for every token after `from`; 1 keeps it.",
    )
    max_tokens: Count | None = Field(
        default=None,
        description="At most so many tokens of a sequence are edited, the first ones at which the gate is "
        "open. Left out: all of them.",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.to is not None and self.to <= self.begin:
            refuse("During", [Flaw(("to",), f"an integer above `from`, {self.begin}", self.to)])
        if not self.model_fields_set:
            refuse("During", [Flaw((), self.expects, None, found="none of them, which limits nothing")])
        return self


def gate_flaws(when: Gate, site: Site | None, layer: int | None) -> Iterator[Flaw]:
    """Yields the measurements that are read after what they decide, as far as a file tells.

    `site` and `layer` are the intervention's; None where it has several, or none is known.
    """
    if site is None or layer is None:
        return
    for loc, gate in when.measured():
        if gate.layer is not None and not comes_before(gate.site, gate.layer, site, layer):
            yield Flaw(
                (*loc, "layer"),
                f"a place that the model computes before {site}[{layer}], which is edited",
                None,
                found=f"{gate.site}[{gate.layer}]",
            )


def gate_refs(when: Gate | None) -> Iterator[tuple[Loc, TensorRef]]:
    """Yields the references to stored tensors in a gate, each with its place."""
    for loc, gate in when.measured() if when is not None else ():
        if gate.ref is not None:
            yield (*loc, gate.ref_field), gate.ref
