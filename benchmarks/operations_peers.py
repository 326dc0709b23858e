"""The other libraries' side of `operations.py`, which runs it in their environment; it does nothing alone.

Prints one JSON object: package → operations of a decoding step, for one block and for all.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from dispatched import of_a_step
from made_models import made, prompts


def main() -> None:
    import numpy
    from repeng import ControlModel, ControlVector
    from steering_vectors import SteeringVector

    model = made("tiny", num_hidden_layers=30)
    layers, width = model.config.num_hidden_layers, model.config.hidden_size

    def generate(tokens: int) -> None:
        model.generate(**prompts(1, 8), min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False)

    @contextmanager
    def repeng(blocks: list[int]) -> Any:
        control = ControlModel(model, blocks)
        directions = {block: numpy.ones(width, dtype=numpy.float32) for block in blocks}
        control.set_control(ControlVector(model_type="llama", directions=directions), 1.0)
        yield
        control.unwrap()

    def steering_vectors(blocks: list[int]) -> Any:
        return SteeringVector({block: torch.ones(width) for block in blocks}).apply(model)

    def counts(apply: Callable[[list[int]], Any]) -> dict[str, float]:
        found = {"plain": of_a_step(generate)}
        for name, blocks in (("one", [layers // 2]), ("all", list(range(layers)))):
            with apply(blocks):
                found[name] = of_a_step(generate)
        return found

    results = {
        f"{name} {version(name)}": counts(apply)
        for name, apply in (("repeng", repeng), ("steering-vectors", steering_vectors))
    }
    print(json.dumps(results))


if __name__ == "__main__":
    main()
