"""The proof that an artifact is complete: reload it in a fresh process and compare logits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from subvene.interventions.positions import names_text
from subvene.runner.data.text import pad, pad_id_of, prompt_ids
from subvene.runner.files.progress import status
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.loading import where_fetched
from subvene.specs import SubveneError


def reload_difference(
    m: IntervenedModel,
    folder: Path,
    prompts: Sequence[str],
    data: Sequence[Mapping[str, str]] | None = None,
) -> float:
    """The largest |Δ logit| between `m` and the artifact in `folder` as a new Python process loads it.

    Both run the same token ids teacher-forced; the last half of each row counts as response, so that every
    position rule has something to act on. Texts that rules name, and what sources are paired with, stand in
    whole prompts: there everything is prompt. `data` is the columns of each prompt.
    """
    rows = [prompt_ids(m.tokenizer, prompt) for prompt in prompts]
    whole = bool(m.spec.sources) or any(names_text(one.positions) for one in m.spec.interventions)
    lengths = [len(row) if whole else max(1, len(row) // 2) for row in rows]
    batch = pad(rows, lengths, pad_id_of(m.tokenizer), "right")
    inputs = {
        "input_ids": batch.input_ids,
        "attention_mask": batch.attention_mask,
        "prompt_lengths": batch.prompt_lengths,
    }
    with tempfile.TemporaryDirectory(prefix="subvene-reload-") as scratch:
        given, answer = Path(scratch, "inputs.safetensors"), Path(scratch, "logits.safetensors")
        safetensors.torch.save_file(inputs, given)
        command = [
            sys.executable,
            "-m",
            "subvene.runner.monitor.reload",
            str(folder),
            str(given),
            str(answer),
        ]
        command += [json.dumps(_placement(m.model) | where_fetched(m.model)), json.dumps(data)]
        with status("reloading the artifact in a fresh process"):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SubveneError(f"{folder} did not reload in a fresh process:\n{done.stderr.strip()[-2000:]}")
        there = safetensors.torch.load_file(answer)["logits"]
    here = _logits(m, inputs, data)
    return float((here - there).abs().max())


def _placement(model: Any) -> dict[str, object]:
    """Where a model lies, as overrides that load another one there: other devices round differently."""
    spread = getattr(model, "hf_device_map", None) or {}
    if len(set(spread.values())) > 1:
        return {
            "device_map": {
                name: where if isinstance(where, int) else str(where) for name, where in spread.items()
            }
        }
    return {"device": str(model.device)}


@torch.no_grad()
def _logits(
    m: IntervenedModel, inputs: dict[str, torch.Tensor], data: Sequence[Mapping[str, str]] | None
) -> torch.Tensor:
    # Whether the edits reach these few rows is not the question here, only whether both do the same.
    lengths = inputs["prompt_lengths"]
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    output = m(ids, mask, prompt_lengths=lengths, must_act=False, rows=data)
    return output.logits.float()[inputs["attention_mask"].bool()].cpu()


if __name__ == "__main__":
    _folder, _given, _answer, _where, _data = sys.argv[1:]
    _reloaded = IntervenedModel.from_pretrained(_folder, **json.loads(_where))
    _found = _logits(_reloaded, safetensors.torch.load_file(_given), json.loads(_data))
    safetensors.torch.save_file({"logits": _found}, _answer)
