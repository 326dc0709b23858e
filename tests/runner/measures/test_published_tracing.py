"""pyvene's published tracing of GPT2-XL, where its weights are: p(Seattle) .976, and .0262 under its noise.

The weights are looked for in $SUBVENE_GPT2_XL (a folder) and among what the Hub's cache holds; nothing is
downloaded. The numbers are those of pyvene's notebook on causal tracing (causal tracing with factual recall).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError

from subvene.runner import load_model
from subvene.runner.data.facts import fact_tokens
from subvene.runner.measures.tracing import Corrupted, FactTracer, embedding_deviation
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import Fact

FACT = Fact(prompt="The Space Needle is in downtown", subject="The Space Needle", answer="Seattle")
NOISE_LEVEL = 0.13462981581687927


def weights() -> str:
    if folder := os.environ.get("SUBVENE_GPT2_XL"):
        return folder
    for name in ("openai-community/gpt2-xl", "gpt2-xl"):
        try:
            folder = snapshot_download(name, local_files_only=True)
        except LocalEntryNotFoundError:
            continue
        if any(Path(folder).glob("*.safetensors")) or any(Path(folder).glob("*.bin")):
            return folder
    return pytest.skip("GPT2-XL is not on this machine: name its folder in SUBVENE_GPT2_XL")


@pytest.mark.slow
def test_noise_takes_seattle_from_976_to_26_in_a_thousand() -> None:
    model, tokenizer = load_model(weights(), dtype="float32")
    fact = fact_tokens(tokenizer, FACT, "fact")
    assert (fact.start, fact.end, tokenizer.decode([fact.answer])) == (0, 4, " Seattle")
    drawn = np.random.RandomState(1).randn(1, 4, model.config.n_embd)
    noise = torch.zeros(1, len(fact.ids), model.config.n_embd)
    noise[:, :4] = torch.from_numpy(drawn * NOISE_LEVEL).float()
    read = FactTracer(Anatomy.of(model), fact, Corrupted(torch.tensor([fact.ids]), noise), ()).read()
    assert read.clean["probability"] == pytest.approx(0.976, abs=5e-4)
    assert read.corrupted["probability"] == pytest.approx(0.0262, abs=5e-5)
    # The published level is three deviations of embeddings; ours is of this subject's alone.
    assert 3 * embedding_deviation(model, [fact]) == pytest.approx(NOISE_LEVEL, rel=0.2)
