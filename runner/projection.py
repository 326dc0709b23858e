"""Projections: how far activations point along stored vectors (DESIGN section 5).

The projection of a response on a vector v at layer l is ⟨a, v⟩/‖v‖, a the mean of `block_output[l]` over the
response's tokens. It is read from given texts (`project`, `token_projections`) or while a response is
generated (`LiveProjections`, `generate_with_projections`). No activation outlives its forward pass: what is
kept is a number per token and vector.

Where edits act there are two values:

- before: of what block l gives, before any edit of `block_output[l]`. Edits of earlier layers, and of the
  attention and the MLP of this one, have acted.
- after: of what the edits of `block_output[l]` leave, which is what the rest of the model reads.

They differ at layers whose `block_output` is edited, and there only.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch

from subvene.runner.activations import Text, forward_reading
from subvene.runner.anatomy import Anatomy, component_module
from subvene.runner.generation import row_ends, setting
from subvene.runner.hooks import as_batch, take_output
from subvene.runner.intervened import IntervenedModel
from subvene.runner.packing import self_contained
from subvene.runner.positions import TokenTracker
from subvene.runner.progress import track
from subvene.runner.receipt import Receipt, check_together
from subvene.runner.text import Messages, by_length, pad, pad_id_of, prompt_ids
from subvene.specs import SubveneError, parse_tensor_name

Vectors = Mapping[str, Mapping[int, torch.Tensor]]
"""Key → layer → v, shape [width of the residual stream]."""
ByVector = dict[str, dict[int, torch.Tensor]]
When = Literal["before", "after"]
_WHEN: tuple[When, ...] = ("before", "after")

SITE = "block_output"
READ = {
    "before": f"what the block gives, before any edit of {SITE} at this layer (earlier edits have acted)",
    "after": f"what the edits of {SITE} at this layer leave, and the rest of the model reads",
}
OVER = (
    "mean over the generated tokens that went through the model: all of a response that ended itself "
    "(without the token that ended it), all but the last token of one that was cut off"
)


class ProjectionError(SubveneError, ValueError):
    """Projections cannot be read; the message names the vector, the text or the setting."""


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

    def of(self, text: int) -> list[dict[str, Any]]:
        """One text's projections as plain values for JSON; without `after` if the model was unedited."""
        return [
            {"key": key, "layer": layer, "tokens": int(self.tokens[text]), "before": float(values[text])}
            | ({} if self.after is None else {"after": float(self.after[key][layer][text])})
            for key, by_layer in self.before.items()
            for layer, values in by_layer.items()
        ]


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


def project(
    m: IntervenedModel,
    texts: Sequence[Text],
    vectors: Vectors,
    *,
    edited: bool = False,
    prompt_lengths: Sequence[int] | None = None,
    strengths: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 16,
    description: str = "projecting",
) -> Projections:
    """⟨mean of block_output[l] over the span, v⟩/‖v‖ for every text, vector and layer, teacher-forced.

    Args:
        m: the model. Unless `edited`, its interventions are off, and a pass ends at the last layer needed.
        texts: token ids and the span that is read, the response; it may be empty. Texts that begin another
            one (the turns of a conversation) cost nothing of their own unless `edited`.
        vectors: key → layer → v.
        edited: let the interventions act, at the tokens that generation would edit, and read on either side
            of those of `block_output`.
        prompt_lengths: tokens of each text that are prompt; default: those before its span (at least one).
        strengths: by intervention name, one value per text, in place of the spec's.
        batch_size: texts per forward pass.
        description: what the progress bar says.

    Raises:
        ProjectionError: a vector or a span does not fit.
        NotSteeredError: `edited`, and an intervention acted on none of the texts.
    """
    axes = _Axes(m.model, vectors)
    kept: dict[When, ByVector] = {}

    def keep(when: When, layer: int, i: int, values: torch.Tensor) -> None:
        if when not in kept:
            kept[when] = axes.by_vector(lambda _: torch.full((len(texts),), torch.nan, dtype=torch.float64))
        if len(values):
            for key, value in zip(axes.keys[layer], values.double().mean(0), strict=True):
                kept[when][key][layer][i] = value

    receipts = _read(m, texts, axes, keep, edited, prompt_lengths, strengths, batch_size, description)
    tokens = torch.tensor([text.end - text.start for text in texts], dtype=torch.long)
    nothing = axes.by_vector(lambda _: torch.zeros(0, dtype=torch.float64))
    return Projections(
        kept.get("before", nothing), kept.get("after", nothing) if edited else None, tokens, receipts
    )


def token_projections(
    m: IntervenedModel,
    texts: Sequence[Text],
    vectors: Vectors,
    *,
    edited: bool = False,
    prompt_lengths: Sequence[int] | None = None,
    strengths: Mapping[str, Sequence[float]] | None = None,
    batch_size: int = 16,
    description: str = "projecting",
) -> TokenProjections:
    """The projection of every single token of the spans, as for percentiles; arguments as for `project`."""
    axes = _Axes(m.model, vectors)
    kept: dict[When, dict[str, dict[int, list[torch.Tensor]]]] = {
        when: axes.by_vector(lambda _: [torch.zeros(0) for _ in texts]) for when in _WHEN
    }

    def keep(when: When, layer: int, i: int, values: torch.Tensor) -> None:
        for key, column in zip(axes.keys[layer], values.unbind(1), strict=True):
            kept[when][key][layer][i] = column.clone()

    receipts = _read(m, texts, axes, keep, edited, prompt_lengths, strengths, batch_size, description)
    return TokenProjections(kept["before"], kept["after"] if edited else None, receipts)


class LiveProjections:
    """Reads projections while responses are generated, on either side of the edits.

    A context around one `m.generate_ids` (or `generate`) of this batch; afterwards `of` gives the result:

        with LiveProjections(m, vectors, attention_mask, **options) as live:
            output = m.generate_ids(input_ids, attention_mask, **options)
        projections = live.of(output)

    The mean is over the generated tokens that went through the model: not the prompt, not the cursor, not
    the token that ended a response and what fills up its row. The last token of a response that was cut off
    at `max_new_tokens` is chosen and never passed on, so it has no activation; a response of one such token
    has no projection (NaN). Nothing is generated otherwise than without this context, and no step waits for
    the device.

    Args:
        m: the model, disabled or not.
        vectors: key → layer → v.
        attention_mask: of the prompts, [batch, slots], padded on the left.
        **options: of the `generate` call, which say what ends a row.

    Raises:
        ProjectionError: a vector does not fit, or beams are asked for, whose rows trade places.
    """

    def __init__(
        self, m: IntervenedModel, vectors: Vectors, attention_mask: torch.Tensor, **options: Any
    ) -> None:
        self._axes = _Axes(m.model, vectors)
        self._model: Any = m.model
        if (setting(m.model, options, "num_beams") or 1) > 1:
            raise ProjectionError(
                "num_beams: expected 1, since beams trade places while they are generated; generate without "
                "beams, or project the responses afterwards"
            )
        ends, pad_id = row_ends(m.model, options)
        mask = attention_mask.to(m.model.device)
        self._tracker = TokenTracker(mask, mask.sum(-1), generating=True, end_ids=ends, pad_id=pad_id)
        self._calls: dict[tuple[When, int], list[tuple[int, torch.Tensor, torch.Tensor]]] = defaultdict(list)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._calls.clear()
        observer = self._model.register_forward_pre_hook(self._tracker.observe, with_kwargs=True)
        self._stack.callback(observer.remove)
        self._stack.enter_context(_around_edits(self._axes.anatomy, self._axes.layers, self._keep))
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _keep(self, when: When, layer: int, activation: torch.Tensor) -> None:
        tokens = self._tracker.current
        if tokens is None:
            raise ProjectionError("a block ran before the model's own forward did; call the model")
        h = as_batch(activation, tokens, f"{SITE}[{layer}]")
        prompt = max(self._tracker.slots - tokens.start, 0)
        if prompt >= h.shape[1]:
            return
        values = self._axes.values(layer, h[:, prompt:])
        self._calls[when, layer].append((tokens.start + prompt, values, tokens.real[:, prompt:]))

    def of(self, output: Any) -> Projections:
        """What was read.

        Args:
            output: what `generate_ids` returned: the sequences tell which drafts were accepted.
        """
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        rows, first = len(sequences), self._tracker.slots
        slots = max(sequences.shape[1] - first - 1, 0)
        found: dict[When, ByVector] = {}
        counts = torch.zeros(rows, dtype=torch.long)
        for when in _WHEN:
            found[when] = self._axes.by_vector(lambda _: torch.full((rows,), torch.nan, dtype=torch.float64))
            for layer, keys in self._axes.keys.items():
                total, counts = self._sums(self._calls[when, layer], rows, first, slots, len(keys))
                for column, key in enumerate(keys):
                    found[when][key][layer] = total[:, column] / counts  # 0/0: NaN, as it should be
        return Projections(found["before"], found["after"], counts)

    @staticmethod
    def _sums(
        calls: list[tuple[int, torch.Tensor, torch.Tensor]], rows: int, first: int, slots: int, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the tokens [rows, columns] and how many those are [rows]."""
        values = torch.zeros(rows, slots, columns, dtype=torch.float64)
        real = torch.zeros(rows, slots, dtype=torch.bool)
        for start, some, is_real in calls:
            at = start - first
            count = min(some.shape[1], slots - at)
            # A slot whose draft was rejected is passed again, and that is the pass that counts; only the
            # last one is not, and `slots` ends before it.
            if count > 0:
                values[:, at : at + count] = some[:, :count].cpu().double()
                real[:, at : at + count] = is_real[:, :count].cpu()
        # Not by multiplying with the mask: a filled-up slot may hold NaN.
        return values.masked_fill(~real.unsqueeze(-1), 0.0).sum(1), real.sum(1)


def generate_with_projections(
    m: IntervenedModel,
    prompts: str | Sequence[str | Messages],
    vectors: Vectors,
    *,
    system: str | None = None,
    chat: bool | None = None,
    strengths: Any = None,
    **options: Any,
) -> tuple[list[str], dict[str, Any]]:
    """As `m.generate`, with the projections of what is being generated.

    Args:
        m: the model.
        prompts: as for `IntervenedModel.generate`.
        vectors: key → layer → v.
        system: likewise.
        chat: likewise.
        strengths: likewise.
        **options: likewise.

    Returns:
        The responses, and plain values for JSON: `read` says what `before` and `after` mean, `over` which
        tokens the means are over, and `rows` holds one list of {key, layer, tokens, before, after} a
        response.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [prompt_ids(m.tokenizer, prompt, system=system, chat=chat) for prompt in prompts]
    told: dict[str, Any] = {"read": dict(READ), "over": OVER, "rows": []}
    if not rows:
        return [], told
    options.setdefault("pad_token_id", pad_id_of(m.tokenizer))
    batch = pad(rows, [len(row) for row in rows], pad_id_of(m.tokenizer), "left")
    with LiveProjections(m, vectors, batch.attention_mask, **options) as live:
        output = m.generate_ids(batch.input_ids, batch.attention_mask, strengths=strengths, **options)
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    found = live.of(output)
    told["rows"] = [found.of(row) for row in range(len(sequences))]
    new = sequences[:, batch.input_ids.shape[1] :]
    return m.tokenizer.batch_decode(new, skip_special_tokens=True), told


def stored_vectors(m: IntervenedModel) -> ByVector:
    """Every vector at `block_output` that an artifact holds or an intervention uses, by key and layer."""
    found: ByVector = {}
    names = {**m.tensors, **_used(m)}
    parsed = [(name, parse_tensor_name(name)) for name in names]
    for name, parts in sorted(parsed, key=lambda pair: pair[1].layer if pair[1] else -1):
        if parts and parts.site == SITE and parts.part is None and names[name].ndim == 1:
            found.setdefault(parts.key, {})[parts.layer] = names[name]
    return found


def chosen_vectors(
    m: IntervenedModel, keys: Sequence[str] = (), layers: Sequence[int] | Literal["all"] | None = None
) -> ByVector:
    """Some of the stored vectors.

    Args:
        m: the model with its tensors.
        keys: which, each `KEY` or `KEY@LAYER`; none: those that the interventions use at `block_output`.
        layers: which; None: those at which the interventions use the key; `all`: all that are stored.

    Raises:
        ProjectionError: there is no such vector.
    """
    stored = stored_vectors(m)
    if not stored:
        raise ProjectionError(
            f"there is no vector at {SITE} to project on: neither the interventions nor the artifact have one"
        )
    used: dict[str, list[int]] = defaultdict(list)
    for name in _used(m):
        parts = parse_tensor_name(name)
        if parts and parts.layer in stored.get(parts.key, {}) and parts.site == SITE and parts.part is None:
            used[parts.key].append(parts.layer)
    chosen: ByVector = {}
    for wanted in keys or list(used) or list(stored):
        key, at, number = wanted.partition("@")
        if key not in stored:
            raise ProjectionError(f"no vector {key!r} at {SITE}; there is: {', '.join(sorted(stored))}")
        there = stored[key]
        if at:
            if not number.isdecimal():
                raise ProjectionError(f"{wanted!r}: expected KEY@LAYER, a layer like 14")
            which: Sequence[int] = [int(number)]
        elif layers is None:
            which = used.get(key) or (list(there) if len(there) == 1 else [])
            if not which:
                raise ProjectionError(
                    f"no intervention uses {key!r} at {SITE}, so no layer is the obvious one; "
                    f"say which: {_listed(there)}, or all"
                )
        else:
            which = list(there) if layers == "all" else layers
        for layer in which:
            if layer not in there:
                raise ProjectionError(f"no vector {key!r} at {SITE}[{layer}]; there is: {_listed(there)}")
            chosen.setdefault(key, {})[layer] = there[layer]
    return chosen


def _used(m: IntervenedModel) -> dict[str, torch.Tensor]:
    """The tensors that the interventions use, by full name."""
    return self_contained(m.spec, m.intervenable)[1] if m.spec.interventions else {}


def _listed(layers: Mapping[int, Any]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, sorted(layers)))}"


class _Axes:
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
    axes: _Axes,
    keep: _Keep,
    edited: bool,
    prompt_lengths: Sequence[int] | None,
    strengths: Mapping[str, Sequence[float]] | None,
    batch_size: int,
    description: str,
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
                    keep(when, layer, i, values[row, texts[i].start : texts[i].end])

        if not edited:
            with m.disabled():
                forward_reading(
                    axes.anatomy,
                    SITE,
                    axes.layers,
                    batch,
                    lambda layer, h, take=take: take("before", layer, h),
                )
            continue
        of_rows = None
        if strengths is not None:
            of_rows = {name: [values[i] for i in firsts] for name, values in strengths.items()}
        with torch.no_grad(), _around_edits(axes.anatomy, axes.layers, take):
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
def _around_edits(
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
