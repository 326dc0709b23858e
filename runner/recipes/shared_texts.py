"""What two models make of the same texts: rows that stand for the same words, and their moments.

Rows are never kept: what a linear map needs are sums over them, so that memory is that of a few matrices a
layer, however many texts there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch

from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.text import by_length, pad, pad_id_of, raw_ids
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.activations import forward_reading
from subvene.specs import SubveneError

_ROUNDING = 1e-12
"""What is left of a sum of squares is less than this part of it where all rows are the same in float32."""

Tokens = Literal["aligned", "mean", "last"]


class Reader(NamedTuple):
    """A model, its tokenizer, and what errors call it."""

    anatomy: Anatomy
    tokenizer: Any
    name: str


class Row(NamedTuple):
    """A text's tokens in one tokenizer, and which of them are read: token by token, or as one mean."""

    ids: list[int]
    read: list[int]
    mean: bool


@dataclass
class Moments:
    """Sums over rows x of one model and y of another, float64.

    Attributes:
        n: how many rows.
        x: Σ x, [width of x].
        y: Σ y, [width of y].
        xx: Σ x·xᵀ.
        xy: Σ x·yᵀ, [width of x, width of y].
        yy: Σ ‖y‖².
    """

    n: int
    x: torch.Tensor
    y: torch.Tensor
    xx: torch.Tensor
    xy: torch.Tensor
    yy: float

    @classmethod
    def empty(cls, width_x: int, width_y: int) -> Self:
        """Of no rows."""
        zeros = torch.zeros(width_x, width_y, dtype=torch.float64)
        return cls(0, zeros[:, 0].clone(), zeros[0].clone(), zeros.new_zeros(width_x, width_x), zeros, 0.0)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Take in rows, [rows, width] each."""
        x, y = x.double(), y.double()
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx += x.T @ x
        self.xy += x.T @ y
        self.yy += float((y**2).sum())

    def about(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Σ x·xᵀ, Σ x·yᵀ and Σ ‖y‖² of rows from which a point of each model is taken away."""
        crossed = torch.outer(x, self.x)
        xx = self.xx - crossed - crossed.T + self.n * torch.outer(x, x)
        xy = self.xy - torch.outer(x, self.y) - torch.outer(self.x, y) + self.n * torch.outer(x, y)
        return xx, xy, self.yy - 2 * float(self.y @ y) + self.n * float(y @ y)


def least_squares(moments: Moments, ridge: float) -> torch.Tensor:
    """W, [width of y, width of x]: argmin Σ‖(y − ȳ) − W·(x − x̄)‖² + λ‖W‖², λ = ridge · Σ‖x − x̄‖² / width.

    Zero where the rows x do not differ.
    """
    xx, xy, _ = moments.about(moments.x / moments.n, moments.y / moments.n)
    width = len(xx)
    if float(xx.trace()) <= _ROUNDING * float(moments.xx.trace()):
        return torch.zeros_like(xy.T)
    penalty = ridge * float(xx.trace()) / width
    solved: torch.Tensor = torch.linalg.solve(xx + penalty * torch.eye(width, dtype=xx.dtype), xy)
    return solved.T.contiguous()


def explained(weight: torch.Tensor, fitted: Moments, held_out: Moments) -> float | None:
    """1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over rows that a map was not fitted on; ȳ and the constant are the fit's.

    None where the rows y do not differ.
    """
    xx, xy, yy = held_out.about(fitted.x / fitted.n, fitted.y / fitted.n)
    if yy <= _ROUNDING * held_out.yy:
        return None
    wrong = yy - 2 * float((weight.T * xy).sum()) + float((weight @ xx * weight).sum())
    return 1 - wrong / yy


def moments(
    texts: Sequence[str],
    source: Reader,
    target: Reader,
    site: str,
    layers: Mapping[int, int],
    *,
    tokens: Tokens,
    max_tokens: int,
    batch_size: int,
    description: str,
) -> dict[int, Moments]:
    """The moments of both models' activations on texts.

    Args:
        texts: as they stand, without a template.
        source: gives x.
        target: gives y.
        site: where, in both.
        layers: the target's layer → the source's.
        tokens: what of a text is a row.
        max_tokens: the first so many tokens of each text are read, in either tokenizer.
        batch_size: texts per forward pass.
        description: what the progress bar says.

    Returns:
        The target's layer → moments.

    Raises:
        SubveneError: a text has no row, or a tokenizer does not say where its tokens stand.
        TooLongError: a text is longer than a model's context.
    """
    rows = [_rows(text, source, target, tokens, max_tokens) for text in texts]
    for reader, side in ((source, 0), (target, 1)):
        lengths = [len(both[side].ids) for both in rows]
        refuse_beyond_context(reader.anatomy.model, lengths, lambda i: repr(texts[i][:60]))
    found: dict[int, Moments] = {}
    for chosen in track(by_length([len(both[0].ids) for both in rows], batch_size), description):
        x = _read(source, site, set(layers.values()), [rows[i][0] for i in chosen])
        y = _read(target, site, layers, [rows[i][1] for i in chosen])
        for layer, its in layers.items():
            if layer not in found:
                found[layer] = Moments.empty(x[its].shape[1], y[layer].shape[1])
            found[layer].add(x[its], y[layer])
    return found


def _rows(text: str, source: Reader, target: Reader, tokens: Tokens, max_tokens: int) -> tuple[Row, Row]:
    """A text in both tokenizers, with as many rows in the one as in the other."""
    if tokens == "aligned":
        ids, ends = zip(*(_ends(text, reader, max_tokens) for reader in (source, target)), strict=True)
        # The first token of a sequence, an attention sink, stands for no words in either.
        shared = [end for end, i in ends[0].items() if i and ends[1].get(end)]
        if not shared:
            raise SubveneError(
                f"recipe transfer: no token of {text[:60]!r} ends where one of the other tokenizer ends, but "
                "for the first; take longer texts, or `tokens: last`"
            )
        one, other = (Row(ids[i], [ends[i][end] for end in shared], mean=False) for i in (0, 1))
        return one, other
    both = []
    for reader in (source, target):
        own = raw_ids(reader.tokenizer, text)[:max_tokens]
        if not own:
            raise SubveneError(f"recipe transfer: {text[:60]!r} has no token in {reader.name}'s tokenizer")
        mean = tokens == "mean"
        both.append(Row(own, list(range(min(1, len(own) - 1), len(own))) if mean else [len(own) - 1], mean))
    return both[0], both[1]


def _ends(text: str, reader: Reader, max_tokens: int) -> tuple[list[int], dict[int, int]]:
    """Token ids, and for each character that a token ends at the last such token."""
    if not getattr(reader.tokenizer, "is_fast", False):
        raise SubveneError(
            f"recipe transfer: the tokenizer of {reader.name} does not say which characters its tokens are; "
            "take `tokens: last` or `mean`"
        )
    encoded = reader.tokenizer(text, return_offsets_mapping=True)
    ids = list(encoded["input_ids"])[:max_tokens]
    spans = list(encoded["offset_mapping"])[:max_tokens]
    return ids, {end: i for i, (start, end) in enumerate(spans) if end > start}


def _read(reader: Reader, site: str, layers: Iterable[int], rows: Sequence[Row]) -> dict[int, torch.Tensor]:
    """Layer → the activations of all rows, [rows, width], on the CPU."""
    batch = pad(
        [row.ids for row in rows], [len(row.ids) for row in rows], pad_id_of(reader.tokenizer), "right"
    )
    found: dict[int, torch.Tensor] = {}

    def read(layer: int, activation: torch.Tensor) -> None:
        h = activation.float().view(*batch.input_ids.shape, -1)
        picked = [h[i, row.read] for i, row in enumerate(rows)]
        means = [of.mean(0, keepdim=True) if row.mean else of for of, row in zip(picked, rows, strict=True)]
        found[layer] = torch.cat(means).cpu()

    forward_reading(reader.anatomy, site, sorted(layers), batch, read)
    return found
