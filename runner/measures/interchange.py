"""Interchange intervention accuracy at the cells of a layer, and the controls that it is read beside.

Geiger et al., 2021, "Causal Abstractions of Neural Networks". The controls say what else would have done as
well: the whole vector, a random subspace, sources that the labels are not of, a probe that only reads.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from subvene.interventions.rotation import ROTATION, parametrized, plain_state, random_rotation, rotation_of
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.passes.swaps import Edit, LayerSwaps

Arm = Literal["das", "whole", "random", "shuffled"]
ARMS: tuple[Arm, ...] = get_args(Arm)
"""What is swapped: the trained subspace, the whole vector, random subspaces of its rank, and the trained one
with the sources of other rows."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CellMeasured(_Record):
    """What one cell does.

    Attributes:
        layer: 0-based.
        place: of the cell.
        right: by arm, of each held-out row the share of draws in which the label is the likeliest answer.
        train: that of the trained subspace over the rows that it was trained on, their mean.
        probe: of each held-out state whether the probe tells its answer.
        probe_chance: the share of the commonest answer among these.
        equal: share of rows whose source has what the base has, so that nothing is swapped.
        moved: mean ‖change‖/‖base‖ of the trained subspace's swap over the held-out vectors.
    """

    layer: int
    place: str
    right: dict[Arm, tuple[float, ...]]
    train: float
    probe: tuple[int, ...]
    probe_chance: float
    equal: float
    moved: float


@dataclass(frozen=True, eq=False)
class Judged:
    """By what rows are judged.

    Attributes:
        labels: Long[rows], of every row of the data.
        answers: Long[answers], the tokens among which the label must be the likeliest; None: all tokens.
        train: Long[n], rows that were trained on.
        test: Long[n], rows that are held out.
        own: Long[rows], the answer of each base, which probes learn.
        of_source: Long[rows], the answer of each source.
    """

    labels: torch.Tensor
    answers: torch.Tensor | None
    train: torch.Tensor
    test: torch.Tensor
    own: torch.Tensor
    of_source: torch.Tensor

    def right(self, logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Bool[…, rows]: whether the label is the likeliest, of logits [..., rows, vocabulary]."""
        labels = self.labels[rows.to(self.labels.device)]
        if self.answers is None:
            return logits.argmax(-1) == labels
        return self.answers[logits[..., self.answers].argmax(-1)] == labels


class CellMeasure:
    """Measures cells.

    Args:
        judged: by what.
        subspaces: that the class swaps; None: all of its own.
        draws: of random subspaces.
        seed: of these, and of which source goes where.
        batch_size: rows of a pass for one edit.
    """

    def __init__(self, judged: Judged, edit_of: Any, *, draws: int, seed: int, batch_size: int) -> None:
        self._judged, self._edit_of = judged, edit_of
        self._draws, self._seed, self._batch_size = draws, seed, batch_size

    @torch.no_grad()
    def measured(self, swaps: LayerSwaps, place: str, inner: torch.nn.Module) -> CellMeasured:
        """One cell, its controls beside it.

        Args:
            swaps: of its layer.
            place: of the cell.
            inner: pyvene's intervention, as it was trained.
        """
        judged, swap = self._judged, swaps.swaps[place]
        edit = self._edit_of(inner)
        generator = self._generator(swaps.layer, place)
        test = judged.test
        edits: list[Edit] = [edit, _whole]
        edits += [self._edit_of(_randomized(inner, generator)) for _ in range(self._draws)]
        right = self._right(swaps, place, edits, test)
        others = shuffled(swap.counts[test.to(swap.counts.device)].cpu(), generator)
        return CellMeasured(
            layer=swaps.layer,
            place=place,
            right={
                "das": _plain(right[0]),
                "whole": _plain(right[1]),
                "random": _plain(right[2:].mean(0)),
                "shuffled": _plain(self._right(swaps, place, [edit], test, test[others])[0]),
            },
            train=float(self._right(swaps, place, [edit], judged.train).mean()),
            **self._probed(swaps, place),
            equal=swap.equal,
            moved=self._moved(swaps, place, edit),
        )

    def _right(
        self,
        swaps: LayerSwaps,
        place: str,
        edits: Sequence[Edit],
        rows: torch.Tensor,
        sources: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Float[edits, rows]: whether the label is the likeliest answer."""
        sources = rows if sources is None else sources
        found = []
        for batch, others in zip(rows.split(self._batch_size), sources.split(self._batch_size), strict=True):
            logits = swaps.logits([(place, edit) for edit in edits], batch, others)
            check_finite(logits, f"the answers with {place} swapped at layer {swaps.layer}")
            found.append(self._judged.right(logits, batch).float().cpu())
        return torch.cat(found, dim=1)

    def _probed(self, swaps: LayerSwaps, place: str) -> dict[str, Any]:
        """A linear probe of the states at the place, and what it says of held-out ones."""
        judged = self._judged
        base, source = (vectors.cpu().double().numpy() for vectors in swaps.swaps[place].means())
        own, of_source = judged.own.cpu().numpy(), judged.of_source.cpu().numpy()

        def both(rows: torch.Tensor) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
            i = rows.cpu().numpy()
            return np.concatenate([base[i], source[i]]), np.concatenate([own[i], of_source[i]])

        (x, y), (held, wanted) = both(judged.train), both(judged.test)
        _, counts = np.unique(wanted, return_counts=True)
        found = np.full_like(wanted, y[0]) if len(np.unique(y)) == 1 else _probe(x, y).predict(held)
        return {
            "probe": tuple(int(one) for one in found == wanted),
            "probe_chance": float(counts.max() / len(wanted)),
        }

    def _moved(self, swaps: LayerSwaps, place: str, edit: Edit) -> float:
        rows = self._judged.test.to(swaps.swaps[place].states.device)
        own, source = (vectors.float() for vectors in swaps.swaps[place].vectors(rows, rows))
        change = edit(own, source) - own
        return float((change.norm(dim=-1) / own.norm(dim=-1).clamp_min(1e-12)).mean())

    def _generator(self, layer: int, place: str) -> torch.Generator:
        """Random numbers of one cell, whichever cells there are beside it."""
        text = f"{self._seed} interchange {layer} {place}"
        state = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(state)


def shuffled(counts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Long[rows]: for each row another one whose source has as many vectors; its own where there is none."""
    found = torch.arange(len(counts))
    for count in counts.unique():
        alike = (counts == count).nonzero().flatten()
        order = alike[torch.randperm(len(alike), generator=generator)]
        # Along one circle nobody gets its own.
        found[order] = order.roll(1)
    return found


def _whole(_base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return source


def _randomized(inner: torch.nn.Module, generator: torch.Generator) -> torch.nn.Module:
    """The same intervention with a random rotation: as many dimensions, the same mask."""
    own = rotation_of(inner)
    if own is None:
        raise TypeError(f"{type(inner).__name__} has no rotation")
    made = copy.deepcopy(inner)
    state = {name: value.cpu() for name, value in plain_state(inner).items()}
    state[ROTATION] = random_rotation(own.shape[0], own.shape[1], generator)
    made.load_state_dict(parametrized(inner, state))
    return made


def _probe(x: NDArray[np.float64], y: NDArray[np.int64]) -> Any:
    # Imported here: scikit-learn takes a second to import.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=1000).fit(x, y)


def _plain(row: torch.Tensor) -> tuple[float, ...]:
    return tuple(round(float(value), 6) for value in row)
