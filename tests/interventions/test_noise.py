"""Noise: h ← h + s·ε, drawn by seed and position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kind_cases import RESIDUAL, Case

from subvene.interventions import NoiseIntervention, Tokens


def drawn(seed: int, count: int, width: int = 24) -> torch.Tensor:
    rows = []
    for position in range(count):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + position)
        rows.append(torch.randn(width, generator=generator))
    return torch.stack(rows).double()


CASES = [
    Case(
        "noise",
        RESIDUAL,
        lambda **kw: NoiseIntervention(options={"seeds": [3]}, **kw),
        lambda h: drawn(3, h.shape[1]).expand_as(h),
    )
]


def at(*index: list[int]) -> Tokens:
    places = torch.tensor(index)
    return Tokens(places, torch.ones_like(places, dtype=torch.bool), torch.full((len(index),), 9))


def edited(index: list[list[int]], seeds: list[int], **kwargs: Any) -> torch.Tensor:
    h = torch.zeros(len(index), len(index[0]), 24)
    return NoiseIntervention(options={"seeds": seeds}, **kwargs)(h, tokens=at(*index)).double()


def test_a_position_has_its_noise_wherever_it_stands_in_a_call() -> None:
    whole = edited([list(range(40))], [5])[0]
    torch.testing.assert_close(whole, drawn(5, 40))
    parts = NoiseIntervention(options={"seeds": [5]})
    for index in ([0, 1, 2], [3], [37, 38]):
        found = parts(torch.zeros(1, len(index), 24), tokens=at(index))[0].double()
        assert torch.equal(found, whole[index])
    padded = edited([[-1, 0, 1], [0, 1, 2]], [5])
    assert torch.equal(padded[0, 1:], padded[1, :2])


def test_rows_have_the_noise_of_their_seeds() -> None:
    both = edited([[0, 1], [0, 1]], [5, 6])
    torch.testing.assert_close(both, torch.stack([drawn(5, 2), drawn(6, 2)]))
    beams = edited([[0, 1]] * 4, [5, 6])
    assert torch.equal(beams, both.repeat_interleave(2, 0))
    with pytest.raises(ValueError, match="seed has 2 values, one per row, and the batch has 3 rows"):
        edited([[0]] * 3, [5, 6])


def test_it_is_noise_of_the_declared_deviation() -> None:
    found = edited([list(range(2000))], [1], strength=0.25)
    assert abs(float(found.mean())) < 0.01
    assert abs(float(found.std()) - 0.25) < 0.01
    correlation = torch.corrcoef(found[0, :50])
    assert float((correlation - torch.eye(50)).abs().max()) < 0.9
