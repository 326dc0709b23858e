"""Projections while responses are generated; `projection` says what before and after the edit mean."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypedDict

import torch
from pydantic import JsonValue

from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.text import Messages, pad, pad_id_of, prompt_ids
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.hooks import as_batch
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.edits.own_calls import has_other_loop
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.edits.source_runs import Rendering
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.devices import input_device
from subvene.runner.models.generation import Settings, row_ends
from subvene.runner.monitor.projection import (
    READ,
    SITE,
    WHEN,
    Axes,
    ByVector,
    Projected,
    ProjectionError,
    Projections,
    Vectors,
    When,
    around_edits,
)

OVER = (
    "mean over the generated tokens that went through the model: all of a response that ended itself "
    "(without the token that ended it), all but the last token of one that was cut off"
)


class LiveProjections:
    """Reads projections while responses are generated, on either side of the edits.

    A context around one `m.generate_ids` (or `generate`) of this batch; afterwards `of` gives the result:

        with LiveProjections(m, vectors, attention_mask, **options) as live:
            output = m.generate_ids(input_ids, attention_mask, **options)
        projections = live.of(output)

    The mean is over the generated tokens that went through the model: not the prompt, not the cursor, not
    the token that ended a response and what fills up its row, nor a block of reasoning before the answer
    (unless the model's spec says `reasoning: keep`). The last token of a response that was cut off
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
        self._axes = Axes(m.model, vectors)
        self._model: Any = m.model
        self._tokenizer = m.tokenizer
        self._names = acting(m)
        settings = Settings(m.model, **options)
        if (settings["num_beams"] or 1) > 1:
            raise ProjectionError(
                "num_beams: expected 1, since beams trade places while they are generated; generate without "
                "beams, or project the responses afterwards"
            )
        if has_other_loop(settings):
            raise ProjectionError(
                "custom_generate, or another loop than transformers' own: which of its calls are the "
                "generation's is not known here; project the responses afterwards"
            )
        for name in ("stopping_criteria", "stop_strings"):
            if settings[name] and len(attention_mask) > 1:
                raise ProjectionError(
                    f"{name}: expected none for several rows: which rows it ends, and which tokens fill them "
                    "up, is not known here; project the responses afterwards"
                )
        mask = attention_mask.to(input_device(m.model))
        self._tracker = TokenTracker(mask, mask.sum(-1), generating=True, end_ids=row_ends(settings))
        self._calls: dict[tuple[When, int], list[tuple[int, torch.Tensor, torch.Tensor]]] = defaultdict(list)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._calls.clear()

        def observe(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            self._tracker.observe(ForwardCall.made(model, args, **kwargs))

        observer = self._model.register_forward_pre_hook(observe, with_kwargs=True)
        self._stack.callback(observer.remove)
        self._stack.enter_context(around_edits(self._axes.anatomy, self._axes.layers, self._keep))
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
        starts = self._starts(sequences)
        found: dict[When, ByVector] = {}
        counts = torch.zeros(rows, dtype=torch.long)
        for when in WHEN:
            found[when] = self._axes.by_vector(lambda _: torch.full((rows,), torch.nan, dtype=torch.float64))
            for layer, keys in self._axes.keys.items():
                total, counts = self._sums(self._calls[when, layer], starts, first, slots, len(keys))
                check_finite(total, f"projections at {SITE}[{layer}] {when} the edits", self._names)
                for column, key in enumerate(keys):
                    found[when][key][layer] = total[:, column] / counts  # 0/0: NaN, as it should be
        return Projections(found["before"], found["after"], counts)

    def _starts(self, sequences: torch.Tensor) -> list[int]:
        """Of each row, which generated token is the first of its answer."""
        if self._tokenizer is None:
            return [0] * len(sequences)
        rows = ((row[: self._tracker.slots], row[self._tracker.slots :]) for row in sequences.tolist())
        return [answer_of(self._tokenizer, prompt, tokens)[0] for prompt, tokens in rows]

    @staticmethod
    def _sums(
        calls: list[tuple[int, torch.Tensor, torch.Tensor]],
        starts: list[int],
        first: int,
        slots: int,
        columns: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums over the tokens of each answer [rows, columns] and how many those are [rows]."""
        rows = len(starts)
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
        real &= torch.arange(slots) >= torch.tensor(starts).unsqueeze(1)
        # Not by multiplying with the mask: a filled-up slot may hold NaN.
        return values.masked_fill(~real.unsqueeze(-1), 0.0).sum(1), real.sum(1)


class Live(TypedDict):
    """Projections of what was generated, plain values for JSON.

    Attributes:
        read: what `before` and `after` mean.
        over: which tokens the means are over.
        rows: of each response, one entry a vector.
    """

    read: dict[str, str]
    over: str
    rows: list[list[Projected]]


def generate_with_projections(
    m: IntervenedModel,
    prompts: str | Sequence[str | Messages],
    vectors: Vectors,
    *,
    system: str | None = None,
    chat: bool | None = None,
    strengths: Any = None,
    chat_template_kwargs: Mapping[str, JsonValue] | None = None,
    **options: Any,
) -> tuple[list[str], Live]:
    """As `m.generate`, with the projections of what is being generated.

    Args:
        m: the model.
        prompts: as for `IntervenedModel.generate`.
        vectors: key → layer → v.
        system: likewise.
        chat: likewise.
        strengths: likewise.
        chat_template_kwargs: likewise.
        **options: likewise.

    Returns:
        The responses, and plain values for JSON: `read` says what `before` and `after` mean, `over` which
        tokens the means are over, and `rows` holds one list of {key, layer, tokens, before, after} a
        response.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    rows = [
        prompt_ids(m.tokenizer, prompt, system=system, chat=chat, chat_template_kwargs=chat_template_kwargs)
        for prompt in prompts
    ]
    told: Live = {"read": dict(READ), "over": OVER, "rows": []}
    if not rows:
        return [], told
    options.setdefault("pad_token_id", pad_id_of(m.tokenizer))
    batch = pad(rows, [len(row) for row in rows], pad_id_of(m.tokenizer), "left")
    rendering: Rendering = {"system": system, "chat": chat, "chat_template_kwargs": chat_template_kwargs}
    with LiveProjections(m, vectors, batch.attention_mask, **options) as live:
        output = m.generate_ids(
            batch.input_ids, batch.attention_mask, strengths=strengths, rendering=rendering, **options
        )
    sequences = output if isinstance(output, torch.Tensor) else output.sequences
    found = live.of(output)
    told["rows"] = [found.of(row) for row in range(len(sequences))]
    new = sequences[:, batch.input_ids.shape[1] :]
    return m.tokenizer.batch_decode(new, skip_special_tokens=True), told
