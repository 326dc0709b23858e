"""The shared statistics, against torch's."""

from __future__ import annotations

import pytest
import torch

from subvene.runner.files.statistics import correlation, mean_and_sd


def test_mean_and_standard_deviation() -> None:
    assert mean_and_sd([1.0, None, 3.0]) == (2.0, pytest.approx(2**0.5))
    assert mean_and_sd([None]) == (None, None)
    assert mean_and_sd([4.0]) == (4.0, None)


def test_correlation() -> None:
    found = correlation([1.0, 2.0, 3.0], [2.0, 3.0, 10.0])
    assert found["n"] == 3
    assert found["spearman"] == pytest.approx(1.0)
    expected = torch.corrcoef(torch.tensor([[1.0, 2, 3], [2, 3, 10]]))[0, 1].item()
    assert found["pearson"] == pytest.approx(expected)
    assert correlation([1.0, 2.0], [1.0, 2.0]) == {"pearson": None, "spearman": None, "n": 2}
    assert correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])["pearson"] is None
