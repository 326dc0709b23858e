"""The arithmetic of SAELens itself, in an environment of its own (`make test-saelens`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from sae_by_hand import ARCHITECTURES, config, drawn, write

from subvene.interventions import SaeFeatureIntervention, Sizes, TensorTable
from subvene.interventions.measurements import Measurement, measurement
from subvene.runner.artifacts.saelens import SaeLensFolder
from subvene.specs import SaeFeatureSpec, tensor_name
from subvene.specs.gates import SaeFeatureGate

VALUES = {"add": [2.0, -1.0], "clamp": [3.0, 0.0], "scale": [2.5, -1.0], "ablate": [0.0, 0.0]}
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((architecture, do, {}) for architecture in ARCHITECTURES for do in VALUES),
    ("topk", "clamp", {"rescale_acts_by_decoder_norm": True}),
    ("standard", "scale", {"apply_b_dec_to_input": False}),
    *(
        ("jumprelu", "clamp", {"normalize_activations": how})
        for how in ("layer_norm", "constant_norm_rescale")
    ),
]


def test_equals_saelens_to_1e_5(
    tmp_path: Path, ask: Callable[..., Any], consumer: Callable[[str], Path]
) -> None:
    consumer("saelens")
    h = 2 * torch.randn(3, 40, 24, generator=torch.Generator().manual_seed(1))
    safetensors.torch.save_file({"h": h}, tmp_path / "in.safetensors")
    asked = [
        _case(tmp_path / str(i), architecture, do, fields)
        for i, (architecture, do, fields) in enumerate(CASES)
    ]
    ask("saelens", "in_saelens.py", {"cases": asked})
    for case in asked:
        theirs = safetensors.torch.load_file(case["out"])
        edit, read = _ours(Path(case["folder"]), case["do"])
        torch.testing.assert_close(edit(h), theirs["edited"], rtol=1e-5, atol=1e-5)
        assert (edit(h) - h).abs().max() > 0.1
        found = read(h)
        torch.testing.assert_close(found, theirs["activations"][..., 3], rtol=1e-5, atol=1e-5)
        assert (found > 0).any()


def _case(folder: Path, architecture: str, do: str, fields: dict[str, Any]) -> dict[str, Any]:
    weights = drawn(architecture, 24)
    said = config(architecture, weights, "blocks.1.hook_resid_post", **fields)
    return {
        "folder": str(write(folder, said, weights)),
        "h": str(folder.parent / "in.safetensors"),
        "out": str(folder / "out.safetensors"),
        "features": [3, 5],
        "do": do,
        "values": VALUES[do],
    }


def _ours(folder: Path, do: str) -> tuple[SaeFeatureIntervention, Measurement]:
    sae, sizes = SaeLensFolder.read(folder), Sizes(n_layers=2, width=24, n_heads=4, head_dim=6)

    def table(features: list[int]) -> TensorTable:
        parts = sae.tensors(features).items()
        return TensorTable({tensor_name("s", "block_output", 1, p): t for p, t in parts}, "sae")

    value = {} if do == "ablate" else {"value": VALUES[do]}
    spec = SaeFeatureSpec(layer=1, sae=sae.stored("s", "here"), features=[3, 5], do=do, **value)
    ((_, _, edit),) = SaeFeatureIntervention.build(spec, table([3, 5]), sizes)
    gate = SaeFeatureGate(layer=1, sae=sae.stored("s", "here"), feature=3, above=0.0)
    return edit, measurement(gate, table([3]), 1, 24)
