"""What a server says of its artifacts, so that a client can tell whether they are those that it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from subvene.runner.edits.compile import entry_name, load_tensors
from subvene.runner.files.ledger import digest
from subvene.runner.models.identity import tensors_digest
from subvene.specs import InterventionSpec


def does(
    spec: InterventionSpec, held: Mapping[str, torch.Tensor], folder: Path | None = None
) -> dict[str, Any]:
    """What an artifact does, but for names and strengths, which a request can say, and where its tensors lie.

    Args:
        spec: of the artifact, or of what might be saved as one.
        held: its tensors, by full name.
        folder: where tensor files that its spec names are looked for; None: it names none but its own.

    Returns:
        `sha256` over interventions and their tensors, and `interventions`, the names in their order.
    """
    interventions, keys = [], set()
    tensors = dict(held)
    for declared in spec.interventions:
        strength = type(declared).also_called.get("strength", "strength")
        fields = declared.model_dump(mode="json", exclude={"name", strength})
        for field, ref in declared.tensor_refs():
            said = ref.model_dump(mode="json", exclude={"file"}, exclude_none=True)
            fields[field] = ref.key if said.keys() == {"key"} else said
            keys.add(ref.key)
            if ref.file is not None and folder is not None:
                tensors |= load_tensors(folder / ref.file)
        interventions.append(fields)
    tensors = {name: t for name, t in tensors.items() if any(name.startswith(f"{key}.") for key in keys)}
    names = [entry_name(spec, i) for i in range(len(spec.interventions))]
    return {"sha256": digest([interventions, tensors_digest(tensors)]), "interventions": names}
