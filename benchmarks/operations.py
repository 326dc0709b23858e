"""Operations dispatched for one decoding step: what launches on a GPU, counted where there is none.

Greedy decoding of one row by a narrow Llama of 30 blocks, as SmolLM2-135M has, with random weights. Arms:
plain transformers; a bare hook that adds a vector; stock pyvene; subvene with receipts, at one block and at
all, and with every kind as its spec's examples declare it; repeng and steering-vectors where `.venv-peers` is
(`make bench-operations` makes it). Views and allocations are left out. Counts are exact and repeat.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from dispatched import of_a_step
from made_models import made, prompts
from rich.console import Console
from rich.table import Table

from subvene.interventions import REGISTRY, InventedTable, SteeringIntervention
from subvene.interventions._pyvene import pyvene
from subvene.runner import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.parts import PartSizes
from subvene.specs import AnyIntervention, InterventionSpec
from subvene.specs.interventions import REGISTRY as SPECS

#: As many as SmolLM2-135M has. Their width changes no count.
BLOCKS = 30
PEERS = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"


def intervened(model: Any, declared: Sequence[AnyIntervention]) -> IntervenedModel:
    """A model with these interventions, whose tensors are made up."""
    tensors: dict[str, torch.Tensor] = {}
    sizes = PartSizes.of(Anatomy.of(model))
    for one in declared:
        for site, layer, edit in REGISTRY[one.kind].build(one, InventedTable(), sizes):
            tensors |= edit.stored(one.wanted_key or one.kind, site, layer)
    spec = InterventionSpec(subvene=1, model={"name": "made/llama"}, interventions=declared)
    return IntervenedModel.from_spec(spec, model=model, tensors=tensors)


def steering(layers: Sequence[int], **fields: Any) -> list[AnyIntervention]:
    """A vector added at each of these blocks, to the response."""
    fields = {"vector": {"key": "v"}, "coefficient": 1.0, "positions": "response", **fields}
    return [
        SPECS["steering"].model_validate({"kind": "steering", "name": f"at_{i}", "layer": i, **fields})
        for i in layers
    ]


def every_kind() -> dict[str, AnyIntervention]:
    """Each example of each kind that runs without a source, its positions those of the response."""
    return {
        f"{kind}{words}": SPECS[kind].model_validate({"kind": kind, **example, "positions": "response"})
        for kind, spec in SPECS.items()
        for words, example in spec.examples.items()
    }


def counts(model: Any, rows: int = 1) -> dict[str, float]:
    """Arm → operations that it adds to a decoding step; `plain` → those of the untouched model."""
    blocks = list(range(model.config.num_hidden_layers))
    middle, width = len(blocks) // 2, model.config.hidden_size
    vector, inputs = torch.ones(width), prompts(rows, 8)

    def step(generate: Callable[..., object], *given: Any, **options: Any) -> float:
        return of_a_step(
            lambda n: generate(*given, min_new_tokens=n, max_new_tokens=n, do_sample=False, **options)
        )

    def ours(declared: Sequence[AnyIntervention]) -> float:
        return step(intervened(model, declared).generate_ids, **inputs)

    def hooked(chosen: Sequence[int]) -> float:
        with ExitStack() as stack:
            for block in chosen:
                handle = model.model.layers[block].register_forward_hook(lambda _m, _a, out: out + vector)
                stack.callback(handle.remove)
            return step(model.generate, **inputs)

    def stock(chosen: Sequence[int]) -> float:
        config = [
            {"component": f"model.layers[{i}].output", "intervention": SteeringIntervention(vector)}
            for i in chosen
        ]
        options = {"unit_locations": None, "intervene_on_prompt": True}
        return step(pyvene.IntervenableModel(config, model).generate, inputs, **options)

    plain = step(model.generate, **inputs)
    found = {
        "bare hook, one block": hooked([middle]),
        "bare hook, all blocks": hooked(blocks),
        "stock pyvene, one block": stock([middle]),
        "stock pyvene, all blocks": stock(blocks),
        "subvene, steering, one block": ours(steering([middle])),
        "subvene, steering, all blocks": ours(steering(blocks)),
        "subvene, steering by unit vectors, all blocks": ours(steering(blocks, normalize="unit")),
        "subvene, steering of all tokens, all blocks": ours(steering(blocks, positions="all")),
    }
    found |= {f"subvene, {name}": ours([declared]) for name, declared in every_kind().items()}
    return {"plain": plain} | {name: count - plain for name, count in found.items()}


def of_peers() -> dict[str, float] | None:
    """The same of the other libraries; None where they are not installed."""
    if not PEERS.exists():
        return None
    script = Path(__file__).with_name("operations_peers.py")
    done = subprocess.run(
        [PEERS, script], capture_output=True, text=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    found = json.loads(done.stdout.splitlines()[-1])
    places = {"one": "one block", "all": "all blocks"}
    return {
        f"{name}, {words}": of[place] - of["plain"]
        for name, of in found.items()
        for place, words in places.items()
    }


def main() -> None:
    found = counts(made("tiny", num_hidden_layers=BLOCKS))
    peers = of_peers()
    console = Console(width=100)
    table = Table(title="operations that a decoding step has more than plain transformers")
    table.add_column("arm")
    table.add_column("operations", justify="right")
    for name, count in {**found, **(peers or {})}.items():
        table.add_row(name, f"{count:g}")
    console.print(table)
    if peers is None:
        console.print(
            f"repeng and steering-vectors were skipped: no {PEERS}; `make bench-operations` makes it"
        )
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pyvene"))
    console.print(f"{packages}; {platform.machine()}, Python {platform.python_version()}")
    print(json.dumps({"benchmark": "operations", "counts": found | (peers or {})}))


if __name__ == "__main__":
    main()
