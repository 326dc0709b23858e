"""Forward passes over answers: logits only where an answer is predicted, nothing twice that stays the same.

What lies below the first edited layer is the original model, so its output is computed once for each answer,
in the same pass that gives the reference log-probabilities, and later passes begin there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from subvene.runner.anatomy import Anatomy
from subvene.runner.hooks import take_input
from subvene.runner.progress import track
from subvene.runner.text import pad
from subvene.runner.training.examples import Answers
from subvene.runner.training.losses import token_log_probs

CACHE_BYTES = 2 * 2**30
# How far two computations of one token's log-probability may be apart, in nats. A pass that begins at a
# layer where it cannot is off by much more.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.2


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradient for the model's own weights; afterwards all is as it was."""
    training = [module for module in model.modules() if module.training]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for module in training:
            module.training = False
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in training:
            module.training = True
        for parameter in trainable:
            parameter.requires_grad_(True)


class Passes:
    """The model as it scores some answers.

    Args:
        anatomy: of the model.
        answers: what may be scored.
        pad_id: any token id.
        pass_tokens: most tokens of a pass, padding included; a row that is longer has one of its own.

    Attributes:
        reference: log-probability of each answer under the original model, float32 [rows] summed over its
            tokens; 0 for rows that were not prepared.
        entries: layers at which passes may begin, ascending; 0 is always one of them.
        note: why some layer that was asked for is not one of them; None if all are.
    """

    def __init__(self, anatomy: Anatomy, answers: Answers, pad_id: int, pass_tokens: int) -> None:
        self.answers = answers
        self.pass_tokens = pass_tokens
        self._anatomy, self._pad_id = anatomy, pad_id
        self._model = cast(Any, anatomy.model)
        self.reference = torch.zeros(len(answers.rows), device=self._model.device)
        self.entries: tuple[int, ...] = (0,)
        self.note: str | None = None
        self._hidden: dict[tuple[int, int], torch.Tensor] = {}
        self._returns_tuple = False

    @torch.no_grad()
    def prepare(self, rows: Sequence[int], wanted: Sequence[int], cache_bytes: int = CACHE_BYTES) -> None:
        """Pass these rows through the original model: the reference, and what edited passes begin with.

        Args:
            rows: of `answers`.
            wanted: layers at which passes would like to begin, one for each that would.
            cache_bytes: at most so much of their inputs is kept; the layers that save most are kept first.
        """
        entries = self._affordable(rows, wanted, cache_bytes)
        for chosen in track(
            cut([(row, self.answers.length(row)) for row in rows], self.pass_tokens), "reference"
        ):
            with self._keeping(entries, chosen):
                self.reference[chosen] = self.log_probs(chosen)
        self.entries = (0, *entries)
        for entry in entries:
            self._check(entry, max(rows, key=self.answers.length))

    def entry_for(self, layer: int) -> int:
        """The highest layer, `layer` at most, at which a pass can begin."""
        return max(entry for entry in self.entries if entry <= layer)

    def log_probs(self, rows: Sequence[int], entry: int = 0) -> torch.Tensor:
        """Σ log p over each answer's tokens, float32 [rows]; edits that act now act on it.

        Args:
            rows: of `answers`; one may come several times.
            entry: one of `entries` at which the pass begins.
        """
        parts = [self.answers.rows[row] for row in rows]
        ids = [[*prompt, *answer] for prompt, answer in parts]
        batch = pad(ids, [len(prompt) for prompt, _ in parts], self._pad_id, "right").to(self._model.device)
        # The token before each one of the answer predicts it.
        where = [
            row * batch.input_ids.shape[1] + place
            for row, (prompt, answer) in enumerate(parts)
            for place in range(len(prompt) - 1, len(prompt) - 1 + len(answer))
        ]
        predicting = torch.tensor(where, device=batch.input_ids.device)
        with contextlib.ExitStack() as stack:
            if entry:
                stack.enter_context(self._beginning_at(entry, rows, batch.input_ids.shape[1]))
            logits = self._logits(batch.input_ids, batch.attention_mask, predicting)
        targets = batch.input_ids.flatten()[predicting + 1].to(logits.device)
        by_token = token_log_probs(logits, targets).to(self._model.device)
        # Split rather than scattered: sums in one order on every device.
        return torch.stack([part.sum() for part in by_token.split([len(answer) for _, answer in parts])])

    def _logits(self, input_ids: torch.Tensor, mask: torch.Tensor, predicting: torch.Tensor) -> torch.Tensor:
        """Logits [tokens, vocabulary] of chosen tokens of the flattened batch."""
        head = self._model.get_output_embeddings()

        def select(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden, put_back = take_input(args, kwargs)
            return put_back(hidden.reshape(-1, hidden.shape[-1])[predicting.to(hidden.device)].unsqueeze(0))

        handles = [] if head is None else [head.register_forward_pre_hook(select, with_kwargs=True)]
        try:
            output = self._model(input_ids=input_ids, attention_mask=mask, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        logits: torch.Tensor = output.logits
        if logits.shape[:2] == (1, len(predicting)) and head is not None:
            return logits[0]
        return logits.flatten(0, 1)[predicting.to(logits.device)]

    @contextlib.contextmanager
    def _keeping(self, entries: Sequence[int], rows: Sequence[int]) -> Iterator[None]:
        """Within the block, what reaches the entry layers is kept, row by row and without padding."""

        def keep(entry: int) -> Any:
            def hook(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
                hidden, _ = take_input(args, kwargs)
                for place, row in enumerate(rows):
                    # A copy, so that no whole batch is kept for one row.
                    self._hidden[entry, row] = hidden[place, : self.answers.length(row)].clone()

            return hook

        def see(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        blocks = self._anatomy.blocks
        handles = [blocks[0].register_forward_hook(see)]
        try:
            handles += [
                blocks[entry].register_forward_pre_hook(keep(entry), with_kwargs=True) for entry in entries
            ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _beginning_at(self, entry: int, rows: Sequence[int], width: int) -> Iterator[None]:
        """Within the block, layers below `entry` pass on what they get, and `entry` gets what was kept."""
        kept = torch.nn.utils.rnn.pad_sequence([self._hidden[entry, row] for row in rows], batch_first=True)
        kept = torch.nn.functional.pad(kept, (0, 0, 0, width - kept.shape[1]))

        def pass_on(hidden_states: torch.Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_states, None) if self._returns_tuple else hidden_states

        def enter(_module: torch.nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden, put_back = take_input(args, kwargs)
            return put_back(kept.to(hidden.device))

        skipped: list[Any] = list(self._anatomy.blocks[:entry])
        # Another library may have put a forward of its own on an instance, as accelerate's offloading does.
        before = [block.__dict__.get("forward") for block in skipped]
        handle = self._anatomy.blocks[entry].register_forward_pre_hook(enter, with_kwargs=True)
        try:
            for block in skipped:
                block.forward = pass_on
            yield
        finally:
            handle.remove()
            for block, own in zip(skipped, before, strict=True):
                if own is None:
                    del block.forward
                else:
                    block.forward = own

    def _affordable(self, rows: Sequence[int], wanted: Sequence[int], cache_bytes: int) -> list[int]:
        """The layers to begin at that save most, as far as memory goes, ascending."""
        width, bytes_each = self._anatomy.sizes.width, self._model.dtype.itemsize
        one = max(1, width * bytes_each * sum(self.answers.length(row) for row in rows))
        chosen: list[int] = []

        def saved(entries: Sequence[int]) -> int:
            return sum(max((e for e in entries if e <= layer), default=0) for layer in wanted)

        candidates = sorted(set(wanted) - {0})
        while len(chosen) < len(candidates) and (len(chosen) + 1) * one <= cache_bytes:
            chosen.append(
                max(set(candidates) - set(chosen), key=lambda layer: (saved([*chosen, layer]), layer))
            )
        if len(chosen) < len(candidates):
            self.note = (
                f"the inputs of {len(chosen)} of {len(candidates)} layers are kept; each takes "
                f"{one / 2**20:.0f} MiB of {cache_bytes / 2**20:.0f}"
            )
        return sorted(chosen)

    def _check(self, entry: int, row: int) -> None:
        """Leave a layer out where a pass that begins there gives something else than a whole one."""
        tolerance = _SAME.get(self._model.dtype, _SAME_IN_LOW_PRECISION) * len(self.answers.rows[row][1])
        try:
            off = float((self.log_probs([row], entry) - self.reference[row]).abs())
            reason = None if off <= tolerance else f"gives log-probabilities that are off by {off:.2g} nats"
        except (RuntimeError, TypeError, IndexError, AttributeError) as error:
            reason = f"fails ({error})"
        if reason is not None:
            self.entries = tuple(e for e in self.entries if e != entry)
            self.note = f"a pass of {type(self._model).__name__} that begins at layer {entry} {reason}"


def cut(rows: Sequence[tuple[int, int]], most: int) -> list[list[int]]:
    """Rows, as (which, tokens), by length in passes of at most `most` tokens with padding.

    The longest come first, so that too little memory shows at once.
    """
    passes: list[list[int]] = []
    longest = 0
    for row, length in sorted(rows, key=lambda item: (-item[1], item[0])):
        if not passes or (len(passes[-1]) + 1) * longest > most:
            passes.append([])
            longest = length
        passes[-1].append(row)
    return passes
