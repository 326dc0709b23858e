"""Runs in an environment with SAELens: SAEs from folders, features changed by hooks, the error term kept."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from sae_lens import SAE


def edited(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    sae = SAE.load_from_disk(case["folder"])
    h = safetensors.torch.load_file(case["h"])["h"]
    features, values, do = case["features"], torch.tensor(case["values"]), case["do"]

    def change(acts: torch.Tensor, hook: object) -> torch.Tensor:
        old = acts[..., features]
        new = {"add": old + values, "clamp": values.expand_as(old), "scale": old * values, "ablate": old * 0}
        changed = acts.clone()
        changed[..., features] = new[do]
        return changed

    activations = sae.encode(h)
    sae.use_error_term = True
    out = sae.run_with_hooks(h, fwd_hooks=[("hook_sae_acts_post", change)])
    return {"edited": out.contiguous(), "activations": activations.contiguous()}


def main(asked: Path, answered: Path) -> None:
    with torch.no_grad():
        for case in json.loads(asked.read_text())["cases"]:
            safetensors.torch.save_file(edited(case), case["out"])
    answered.write_text(json.dumps({"done": True}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
