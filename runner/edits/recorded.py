"""What transformers records of a call (`output_hidden_states`), held to what the call really computed.

It records by hooks that it puts onto the modules when somebody first asks, and leaves there: before an edit's
hook or behind it, depending on what was called before. What it recorded of a module's output is therefore
replaced by what an edit hands on in its place.
"""

from __future__ import annotations

import torch
from transformers.utils import output_capturing


def replace_recorded(found: torch.Tensor, new: torch.Tensor) -> None:
    """Make `new` what this thread's or task's call records, if it has just recorded `found`."""
    # No public name leads to it; a hook of ours after the one that recorded is all that can reach it.
    for kept in (output_capturing._active_collector.get() or {}).values():
        if isinstance(kept, list) and kept and kept[-1] is found:
            kept[-1] = new
