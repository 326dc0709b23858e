"""Passes sized by free memory, and what happens when it runs out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from architectures import BY_NAME
from tiny_preferences import examples_of, experiment, train

from subvene.runner.training import memory
from subvene.runner.training.memory import default_pass_tokens, halving
from subvene.runner.training.passes import Passes

EXAMPLES = examples_of(8, seed=2)
WIDE = {"heads": {0: (1, 2), 1: (0,)}, "objective": {"kind": "ipo", "tau": 0.2}, "examples": EXAMPLES}


def test_a_pass_of_a_7b_model_fits_into_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    text = SimpleNamespace(num_hidden_layers=32, hidden_size=4096, vocab_size=32000)
    config = SimpleNamespace(get_text_config=lambda: text)
    model = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float16, config=config)

    def given(gigabytes: float) -> int:
        monkeypatch.setattr(memory, "free_bytes", lambda device: int(gigabytes * 1e9))
        return default_pass_tokens(model)

    # 132 KB by token and layer were measured: 4.2 MB by token, so that 16,384 tokens take 69 GB.
    assert 0.6 * 24e9 / 4.2e6 < given(24) < 24e9 / 4.2e6
    assert given(140) == 16384
    assert given(0.001) == 64
    monkeypatch.undo()
    assert default_pass_tokens(BY_NAME["llama"].shared()) == 2048


def test_memory_that_runs_out_halves_the_pass_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = BY_NAME["llama"].shared()
    (expected,) = train(model, EXAMPLES, experiment("whole", **WIDE))
    sizes: list[int] = []
    plain = Passes.log_probs

    def scarce(self: Passes, groups: Any, entry: int = 0) -> torch.Tensor:
        found = plain(self, groups, entry)
        tokens = sum(len(self.answers.rows[row][1]) for group in groups for row in group)
        # The gradient of what was passed before is in the parameters when this pass fails.
        if tokens > 8 and len(groups) > 1:
            raise torch.OutOfMemoryError("no room")
        sizes.append(self.pass_tokens)
        return found

    monkeypatch.setattr(Passes, "log_probs", scarce)
    (halved,) = train(model, EXAMPLES, experiment("whole", **WIDE))
    assert sizes[0] > sizes[-1]
    assert halved.losses == pytest.approx(expected.losses, rel=1e-4)
    assert halved.grad_norms == pytest.approx(expected.grad_norms, rel=1e-4)
    for name, factor in expected.factors.items():
        torch.testing.assert_close(halved.factors[name], factor, rtol=1e-3, atol=1e-5)


def test_what_no_smaller_pass_helps_is_raised() -> None:
    sized, tried = SimpleNamespace(pass_tokens=20), []

    def work() -> None:
        tried.append(sized.pass_tokens)
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(RuntimeError, match="allocate 9 bytes"):
        halving(sized, work)
    assert tried == [20, 10, 5, 2, 1]

    def wrong() -> None:
        tried.append(0)
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        halving(SimpleNamespace(pass_tokens=20), wrong)
    assert tried.count(0) == 1
