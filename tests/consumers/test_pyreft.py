"""LoReFT beside its authors' package: the logits of a trained artifact, and the gradients of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny_model import write_tiny_model
from tiny_preferences import rows

from subvene.runner import fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.training.loreft import LoreftEdits
from subvene.specs import ReFTSpec

LAYERS, RANK = [0, 2], 2
IDS, PROMPT = [9, 14, 3, 20, 11, 17, 12], 4


def test_logits_and_gradients_are_those_of_pyreft(
    ask: Callable[..., Any], consumer: Callable[[str], Path], tmp_path: Path
) -> None:
    consumer("pyreft")
    folder = write_tiny_model(tmp_path / "model")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows(12))))
    m = fit(
        "reft",
        str(folder),
        data=str(tmp_path / "rows.jsonl"),
        layers=LAYERS,
        rank=RANK,
        learning_rate=0.02,
        epochs=1,
        validation=None,
        dtype="float32",
    )
    parameters = {}
    for layer in LAYERS:
        a, b, bias = (m.tensors[f"reft.block_output[{layer}].{part}"] for part in ("a", "b", "bias"))
        # Readers are W − R, writers R, the constant Rᵀb: so R, W and b are these.
        parameters[str(layer)] = {"rotation": b.T, "weight": a + b, "bias": b @ bias}
    plain = {
        layer: {part: tensor.tolist() for part, tensor in parts.items()}
        for layer, parts in parameters.items()
    }
    question = {"model": str(folder), "rank": RANK, "ids": IDS, "prompt": PROMPT, "parameters": plain}
    found = ask("pyreft", "in_pyreft.py", question)
    ids = torch.tensor([IDS])
    with torch.no_grad():
        own = m(ids, prompt_lengths=[PROMPT]).logits[0]
        with m.disabled():
            untouched = m(ids, prompt_lengths=[PROMPT]).logits[0]
    assert float((own - torch.tensor(found["logits"])).abs().max()) < 1e-4
    assert float((own - untouched).abs().max()) > 0.01

    # A step of training: what the loss of a completion says of W and b.
    edits = LoreftEdits(Anatomy.of(m.model), LAYERS, RANK, ReFTSpec.model_fields["positions"].default, 1)
    for layer in LAYERS:
        edit = edits._of(layer)
        edit.rotate.weight = parameters[str(layer)]["rotation"]
        edit.weight.data, edit.bias.data = (
            parameters[str(layer)][part].clone() for part in ("weight", "bias")
        )
    with edits.acting([0], [PROMPT]):
        logits = m.model(ids).logits[0]
    answer = logits[PROMPT - 1 : -1].log_softmax(-1)
    (-answer[range(len(IDS) - PROMPT), ids[0, PROMPT:]].mean()).backward()
    for layer in LAYERS:
        for part in ("weight", "bias"):
            mine, theirs = getattr(edits._of(layer), part).grad, found["gradients"][str(layer)][part]
            assert mine.abs().max() > 1e-4
            assert float((mine - torch.tensor(theirs)).abs().max()) < 1e-5, (layer, part)
