"""Projections: how far activations point along stored vectors (DESIGN section 5).

The projection of a response on a vector v at layer l is ⟨a, v⟩/‖v‖, a the mean of `block_output[l]` over the
response's tokens. Here it is read from given texts; `live_projection` reads it while a response is
generated. No activation outlives its forward pass: what is
kept is a number per token and vector.

Where edits act there are two values:

- before: of what block l gives, before any edit of `block_output[l]`. Edits of earlier layers, and of the
  attention and the MLP of this one, have acted.
- after: of what the edits of `block_output[l]` leave, which is what the rest of the model reads.

They differ at layers whose `block_output` is edited, and there only.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict, Unpack

import torch

from subvene.runner.data.span import Text
from subvene.runner.data.text import by_length, pad, pad_id_of
from subvene.runner.edits.hooks import take_output
from subvene.runner.edits.not_finite import ADVICE_OF_MODEL, NotFiniteError
from subvene.runner.edits.receipt import Receipt, check_together
from subvene.runner.files.progress import track
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.passes.activations import forward_reading
from subvene.specs import SubveneError

Vectors = Mapping[str, Mapping[int, torch.Tensor]]
"""Key → layer → v, shape [width of the residual stream]."""
ByVector = dict[str, dict[int, torch.Tensor]]
When = Literal["before", "after"]
WHEN: tuple[When, ...] = ("before", "after")

SITE = "block_output"
READ = {
    "before": f"what the block gives, before any edit of {SITE} at this layer (earlier edits have acted)",
    "after": f"what the edits of {SITE} at this layer leave, and the rest of the model reads",
}


class ProjectionError(SubveneError, ValueError):
    """Projections cannot be read; the message names the vector, the text or the setting."""


class Projected(TypedDict):
    """A text's mean projection on one vector; `after` the edits where there were any."""

    key: str
    layer: int
    tokens: int
    before: float
    after: NotRequired[float]


@dataclass(frozen=True)
class Projections:
    """Projections of texts on vectors.

    Attributes:
        before: key → layer → float64 [texts]; of an unedited model, what it reads on these texts. NaN for a
            text whose span is empty.
        after: likewise after the edits; None if the model was read unedited.
        tokens: Long[texts], how many tokens each mean is over.
        receipts: what the edits did, one a forward pass; empty if the model was read unedited.
    """

    before: ByVector
    after: ByVector | None
    tokens: torch.Tensor
    receipts: tuple[Receipt, ...] = ()

    @property
    def last(self) -> ByVector:
        """What the rest of the model reads: `after` where there were edits, else `before`."""
        return self.before if self.after is None else self.after

    def of(self, text: int) -> list[Projected]:
        """One text's projections as plain values for JSON; without `after` if the model was unedited."""
        found: list[Projected] = [
            {"key": key, "layer": layer, "tokens": int(self.tokens[text]), "before": float(values[text])}
            for key, by_layer in self.before.items()
            for layer, values in by_layer.items()
        ]
        if self.after is not None:
            for one in found:
                one["after"] = float(self.after[one["key"]][one["layer"]][text])
        return found


@dataclass(frozen=True)
class TokenProjections:
    """The projection of every token of the spans.

    Attributes:
        before: key → layer → one float32 [tokens of the span] per text.
        after: likewise after the edits; None if the model was read unedited.
        receipts: what the edits did, one a forward pass.
    """

    before: dict[str, dict[int, list[torch.Tensor]]]
    after: dict[str, dict[int, list[torch.Tensor]]] | None
    receipts: tuple[Receipt, ...] = ()


class Reading(TypedDict, total=False):
    """How texts are read; see `project`."""

    edited: bool
    prompt_lengths: Sequence[int] | None
    strengths: Mapping[str, Sequence[float]] | None
    batch_size: int
    description: str


def project(
    m: IntervenedModel, texts: Sequence[Text], vectors: Vectors, **how: Unpack[Reading]
) -> Projections:
    """⟨mean of block_output[l] over the span, v⟩/‖v‖ for every text, vector and layer, teacher-forced.

    Args:
        m: the model. Unless `edited`, its interventions are off, and a pass ends at the last layer needed.
        texts: token ids and the span that is read, the response; it may be empty. Texts that begin another
            one (the turns of a conversation) cost nothing of their own unless `edited`.
        vectors: key → layer → v.
        **how: `edited`: let the interventions act (False if left out), at the tokens that generation would
            edit, and read on either side of those of `block_output`; `prompt_lengths`: tokens of each text
            that are prompt, by default those before its span (at least one); `strengths`: by intervention
            name, one value per text, in place of the spec's; `batch_size`: texts per forward pass, 16;
            `description`: what the progress bar says.

    Raises:
        ProjectionError: a vector or a span does not fit.
        NotSteeredError: `edited`, and an intervention acted on none of the texts.
    """
    axes = Axes(m.model, vectors)
    kept: dict[When, ByVector] = {}

    def keep(when: When, layer: int, i: int, values: torch.Tensor) -> None:
        if when not in kept:
            kept[when] = axes.by_vector(lambda _: torch.full((len(texts),), torch.nan, dtype=torch.float64))
        if len(values):
            for key, value in zip(axes.keys[layer], values.double().mean(0), strict=True):
                kept[when][key][layer][i] = value

    receipts = _read(m, texts, axes, keep, **how)
    tokens = torch.tensor([text.end - text.start for text in texts], dtype=torch.long)
    nothing = axes.by_vector(lambda _: torch.zeros(0, dtype=torch.float64))
    return Projections(
        kept.get("before", nothing),
        kept.get("after", nothing) if how.get("edited") else None,
        tokens,
        receipts,
    )


def token_projections(
    m: IntervenedModel, texts: Sequence[Text], vectors: Vectors, **how: Unpack[Reading]
) -> TokenProjections:
    """The projection of every single token of the spans, as for percentiles; arguments as for `project`."""
    axes = Axes(m.model, vectors)
    kept: dict[When, dict[str, dict[int, list[torch.Tensor]]]] = {
        when: axes.by_vector(lambda _: [torch.zeros(0) for _ in texts]) for when in WHEN
    }

    def keep(when: When, layer: int, i: int, values: torch.Tensor) -> None:
        for key, column in zip(axes.keys[layer], values.unbind(1), strict=True):
            kept[when][key][layer][i] = column.clone()

    receipts = _read(m, texts, axes, keep, **how)
    return TokenProjections(kept["before"], kept["after"] if how.get("edited") else None, receipts)


class Axes:
    """The vectors as unit vectors, those of a layer side by side."""

    def __init__(self, model: torch.nn.Module, vectors: Vectors) -> None:
        self.anatomy = Anatomy.of(model)
        n_layers, width = self.anatomy.sizes.n_layers, self.anatomy.sizes.width
        self._order = [(key, layer) for key, by_layer in vectors.items() for layer in by_layer]
        if not self._order:
            raise ProjectionError("there is no vector to project on")
        self.keys: dict[int, list[str]] = defaultdict(list)
        units: dict[int, list[torch.Tensor]] = defaultdict(list)
        for key, layer in sorted(self._order, key=lambda pair: pair[1]):
            name, v = f"{key}.{SITE}[{layer}]", vectors[key][layer].detach().cpu().double()
            if not 0 <= layer < n_layers:
                raise ProjectionError(f"{name}: expected a layer from 0 to {n_layers - 1} for this model")
            if v.shape != (width,):
                raise ProjectionError(f"{name}: expected shape [{width}] for this model, found {[*v.shape]}")
            norm = torch.linalg.vector_norm(v)
            if not torch.isfinite(norm) or norm == 0:
                raise ProjectionError(
                    f"{name}: expected a finite vector with a direction, found norm {norm:g}"
                )
            self.keys[layer].append(key)
            units[layer].append((v / norm).float())
        self.layers = list(self.keys)
        self._units = {layer: torch.stack(some, 1) for layer, some in units.items()}

    @torch.no_grad()
    def values(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """⟨h, v̂⟩ for the vectors of a layer: [..., width] → float32 [..., vectors], on h's device."""
        if self._units[layer].device != h.device:
            self._units[layer] = self._units[layer].to(h.device)
        return h.detach().float() @ self._units[layer]

    def by_vector(self, make: Callable[[int], Any]) -> dict[str, dict[int, Any]]:
        """Key → layer → what `make` gives for the layer, in the order in which the vectors were given."""
        made: dict[str, dict[int, Any]] = {}
        for key, layer in self._order:
            made.setdefault(key, {})[layer] = make(layer)
        return made


_Keep = Callable[[When, int, int, torch.Tensor], None]


def _read(
    m: IntervenedModel,
    texts: Sequence[Text],
    axes: Axes,
    keep: _Keep,
    *,
    edited: bool = False,
    prompt_lengths: Sequence[int] | None = None,
    strengths: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 16,
    description: str = "projecting",
) -> tuple[Receipt, ...]:
    """Calls `keep(when, layer, text, float32 [tokens of its span, vectors of the layer])`, on the CPU."""
    for i, text in enumerate(texts):
        if not 0 <= text.start <= text.end <= len(text.ids) or not text.ids:
            raise ProjectionError(
                f"texts[{i}]: expected a span within its {len(text.ids)} tokens, "
                f"found {text.start} to {text.end}"
            )
    groups = [[i] for i in range(len(texts))] if edited else _beginning_alike(texts)
    receipts: list[Receipt] = []
    for chosen in track(by_length([len(texts[group[0]].ids) for group in groups], batch_size), description):
        some = [groups[g] for g in chosen]
        rows = [texts[group[0]].ids for group in some]
        firsts = [group[0] for group in some]
        lengths = [max(texts[i].start, 1) if prompt_lengths is None else prompt_lengths[i] for i in firsts]
        batch = pad(rows, lengths, pad_id_of(m.tokenizer), "right")
        shape = batch.input_ids.shape

        def take(
            when: When, layer: int, h: torch.Tensor, some: list[list[int]] = some, shape: Any = shape
        ) -> None:
            values = axes.values(layer, h.view(*shape, -1)).cpu()
            for row, group in enumerate(some):
                for i in group:
                    own = values[row, texts[i].start : texts[i].end]
                    _refuse_not_finite(own, f"texts[{i}]", when, layer)
                    keep(when, layer, i, own)

        if not edited:
            with m.disabled():
                forward_reading(axes.anatomy, SITE, axes.layers, batch, functools.partial(take, "before"))
            continue
        of_rows = None
        if strengths is not None:
            of_rows = {name: [values[i] for i in firsts] for name, values in strengths.items()}
        with torch.no_grad(), around_edits(axes.anatomy, axes.layers, take):
            m(
                batch.input_ids,
                batch.attention_mask,
                prompt_lengths=batch.prompt_lengths,
                strengths=of_rows,
                must_act=False,
                use_cache=False,
                logits_to_keep=1,
            )
        if m.receipt is not None and not m.is_disabled:
            receipts.append(m.receipt)
    check_together(receipts)
    return tuple(receipts)


def _refuse_not_finite(values: torch.Tensor, text: str, when: When, layer: int) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NotFiniteError(
            f"{text}: the projections at {SITE}[{layer}] {when} the edits are not finite; {ADVICE_OF_MODEL}"
        )


def _beginning_alike(texts: Sequence[Text]) -> list[list[int]]:
    """Texts in groups whose first begins with each of the others, so that reading it reads them all."""
    groups: list[list[int]] = []
    # In this order whatever begins a text comes after it, with nothing else in between.
    for i in sorted(range(len(texts)), key=lambda i: texts[i].ids, reverse=True):
        ids = texts[i].ids
        if groups and texts[groups[-1][0]].ids[: len(ids)] == ids:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


@contextlib.contextmanager
def around_edits(
    anatomy: Anatomy, layers: Sequence[int], read: Callable[[When, int, torch.Tensor], None]
) -> Iterator[None]:
    """Calls `read` with each layer's block output before and after the edits, at every forward call."""
    model: Any = anatomy.model
    behind: list[Any] = []

    def attach(when: When, layer: int) -> Any:
        module, _ = component_module(model, anatomy.component(SITE, layer))

        def hook(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            read(when, layer, take_output(output)[0])

        return module.register_forward_hook(hook, prepend=when == "before")

    def to_the_end(_model: torch.nn.Module, _args: Any) -> None:
        # A run attaches its edits when it begins, so only now is there a place behind them.
        for handle in behind:
            handle.remove()
        behind[:] = [attach("after", layer) for layer in layers]

    handles = []
    try:
        handles.append(model.register_forward_pre_hook(to_the_end))
        for layer in layers:
            handles.append(attach("before", layer))
        yield
    finally:
        for handle in (*handles, *behind):
            handle.remove()
