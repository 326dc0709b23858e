"""What stock pyvene makes of an artifact's folder: whether, loaded there, it does what is declared."""

from __future__ import annotations

from subvene.interventions import REGISTRY
from subvene.interventions.positions import names_text, needs_length
from subvene.specs import AnyIntervention, InterventionSpec, PyveneSpec, SourceRef
from subvene.specs.sources import reads


def why_not_stock(spec: InterventionSpec, *, is_decoder: bool = True) -> str | None:
    """Why stock pyvene, on a model that it lists, cannot do what a spec declares; None if it can.

    It hands an intervention the activation, and where a call names `sources` and `unit_locations` what those
    hold at the same place; nothing else.

    Args:
        spec: what is declared.
        is_decoder: whether the model's blocks are known.
    """
    reading = [one for one in spec.interventions if reads(one) is not None]
    for one in spec.interventions:
        name = one.name or one.kind
        if one.is_gated:
            return f"{name} acts as its gate or its schedule says, which stock pyvene does not heed"
        if not is_decoder and (one in reading or one.positions != "all"):
            return (
                f"{name} is at vectors by their numbers, or reads a source, in a model that is no decoder; "
                "there stock pyvene writes into a GRU's other steps, too"
            )
        if (reason := _of_source(spec, one) if one in reading else _alone(one)) is not None:
            return f"{name} {reason}"
        if reading and one not in reading:
            # A call's `unit_locations` are those of every intervention.
            return f"{name} takes no source, and a call that gives the others theirs gives it tokens, too"
    return None


def reads_sources(spec: InterventionSpec) -> bool:
    """Whether a call of stock pyvene has to give sources."""
    return any(reads(one) is not None for one in spec.interventions)


def _alone(one: AnyIntervention) -> str | None:
    """Why an intervention without a source is more than stock passes on."""
    if isinstance(one, PyveneSpec):
        if one.class_name == "SkipIntervention":
            return "needs its module's input, which stock pyvene does not pass on"
    elif REGISTRY[one.kind].acts_alone is not True:
        return "does not say that the activation is enough for it"
    if names_text(one.positions):
        return "is at tokens that are found in each row's text, which stock pyvene does not pass on"
    if needs_length(one.positions):
        return "is at tokens that are counted from the end, which stock pyvene does not tell"
    return None


def _of_source(spec: InterventionSpec, one: AnyIntervention) -> str | None:
    """Why what is read of a source is more than stock reads: the same place in that run."""
    ref = reads(one)
    if not isinstance(ref, SourceRef) or not isinstance(one, PyveneSpec):
        return None
    if spec.sources[ref.origin].interventions:
        return f"reads the source {ref.origin!r}, whose run is intervened on, which stock pyvene gets wrong"
    declared = {"site": one.site, "layer": one.layer, "component": one.component, "heads": one.heads}
    for field, own in declared.items():
        if (other := getattr(ref, field)) is not None and other != own:
            return f"reads another {field} of its source, and stock pyvene reads where it edits"
    return None
