"""What a server says of its artifacts, so that a client can tell whether they are those that it means."""

from __future__ import annotations

from typing import Any

from subvene.runner.edits.compile import entry_name
from subvene.runner.files.ledger import digest
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.identity import tensors_digest


def does(m: IntervenedModel) -> dict[str, Any]:
    """What an artifact does, but for names and strengths, which a request can say.

    Returns:
        `sha256` over interventions and their tensors, and `interventions`, the names in their order.
    """
    interventions, keys = [], set()
    for declared in m.spec.interventions:
        strength = type(declared).also_called.get("strength", "strength")
        interventions.append(declared.model_dump(mode="json", exclude={"name", strength}))
        keys |= {ref.key for _, ref in declared.tensor_refs()}
    tensors = {name: t for name, t in m.tensors.items() if any(name.startswith(f"{key}.") for key in keys)}
    names = [entry_name(m.spec, i) for i in range(len(m.spec.interventions))]
    return {"sha256": digest([interventions, tensors_digest(tensors)]), "interventions": names}
