"""A model's weights are read once in a block, which may stand in another."""

from __future__ import annotations

import torch
from architectures import BY_NAME

from subvene.runner.models.identity import hashed_once, model_sha256


def test_weights_are_read_once_until_the_outermost_block_ends() -> None:
    model = BY_NAME["llama"].fresh()
    before = model_sha256(model)
    with hashed_once(model):
        with hashed_once(model):
            pass
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        assert model_sha256(model) == before
    assert model_sha256(model) != before
