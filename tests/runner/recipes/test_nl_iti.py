"""NL-ITI's probe against the published form: one perceptron a head, built of torch's own layers."""

from __future__ import annotations

import copy

import numpy as np
import torch

from subvene.runner.recipes import nl_iti
from subvene.runner.recipes.nl_iti import nl_iti_right

HEADS, WIDTH, TEXTS, ASKED = 3, 6, 500, 200


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    y, truth = rng.integers(0, 2, TEXTS), rng.integers(0, 2, ASKED)
    x, held_out = (rng.standard_normal((len(of), HEADS, WIDTH)) for of in (y, truth))
    for rows, of in ((x, y), (held_out, truth)):
        rows[:, 0] += 2.0 * of[:, None]  # the first head tells easily, the second by a square, the third not
        rows[:, 1, 0] *= 1.0 + 3.0 * of
    return x, y, held_out, truth


def alone(head: int, drawn: torch.Generator) -> int:
    """As Samsung/NL-ITI trains it: BCE of a sigmoid, Adam, batches of 32, best epoch."""
    x, y, held_out, truth = data()
    probes = nl_iti._Probes(HEADS, WIDTH, drawn)
    net = torch.nn.Sequential(
        torch.nn.Linear(WIDTH, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Linear(16, 1),
        torch.nn.Sigmoid(),
    )
    with torch.no_grad():
        net[0].weight.copy_(probes.first[head].T)
        net[0].bias.copy_(probes.first_bias[head, 0])
        net[3].weight.copy_(probes.second[head].T)
        net[3].bias.copy_(probes.second_bias[head, 0])
    optimizer = torch.optim.Adam(net.parameters(), lr=0.0005, weight_decay=0.0001)
    inputs, labels = torch.tensor(x[:, head]).float(), torch.tensor(y).float()
    best_accuracy, best_weights = -1.0, None
    for _ in range(10):
        net.train()
        order = torch.randperm(TEXTS, generator=drawn)
        for start in range(0, TEXTS - 31, 32):
            batch = order[start : start + 32]
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy(net(inputs[batch])[:, 0], labels[batch]).backward()
            optimizer.step()
        net.eval()
        said = net(torch.tensor(held_out[:, head]).float())[:, 0].round()
        accuracy = float((said == torch.tensor(truth)).double().mean())
        if accuracy > best_accuracy:
            best_accuracy, best_weights = accuracy, copy.deepcopy(net.state_dict())
    assert best_weights is not None
    net.load_state_dict(best_weights)
    said = net(torch.tensor(held_out[:, head]).float())[:, 0].round()
    return int((said == torch.tensor(truth)).sum())


def test_as_one_perceptron_a_head() -> None:
    right = nl_iti_right(*data(), seed=5)
    assert right.tolist() == [alone(head, torch.Generator().manual_seed(5)) for head in range(HEADS)]
    assert right[0] > right[2]
    assert right.tolist() != nl_iti_right(*data(), seed=6).tolist()


def test_fewer_texts_than_a_batch() -> None:
    x, y, held_out, truth = data()
    assert (nl_iti_right(x[:20], y[:20], held_out, truth, seed=1) > 0).all()
