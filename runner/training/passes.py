"""Forward passes over answers: logits only where an answer is predicted, nothing twice that stays the same.

What lies below the first edited layer is the original model, so its output is computed once for each answer,
in the same pass that gives the reference log-probabilities, and later passes begin there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch

from subvene.runner.data.examples import Answers
from subvene.runner.edits.hooks import on_input
from subvene.runner.files.progress import track
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.models.evaluating import evaluating
from subvene.runner.models.forked_cache import why_not_forked, why_not_in_one_row
from subvene.runner.passes.restart import beginning_at, logits_at
from subvene.runner.training.layout import lay_out, starts_of, tokens_of
from subvene.runner.training.losses import token_log_probs
from subvene.runner.training.memory import is_out_of_memory
from subvene.runner.training.units import Extent, planned

CACHE_BYTES = 2 * 2**30
# How far two computations of one token's log-probability may be apart, in nats. A pass that begins at a
# layer where it cannot is off by much more.
_SAME = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_IN_LOW_PRECISION = 0.2
# Tokens of a sequence that takes in more answers of its prompt, unless the prompt alone is half as long.
_SEQUENCE = 512


@contextlib.contextmanager
def frozen(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradient for the model's own weights; afterwards all is as it was."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        with evaluating(model):
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class Passes:
    """The model as it scores some answers.

    Args:
        anatomy: of the model.
        answers: what may be scored.
        pad_id: any token id.
        pass_tokens: most tokens of a pass, padding included; a sequence that is longer has one of its own.
        full: tokens of a pass that is worth having, though another might take in more.

    Attributes:
        reference: log-probability of each answer under the original model, float32 [rows] summed over its
            tokens; 0 for rows that were not prepared.
        entries: layers at which passes may begin, ascending; 0 is always one of them.
        side_by_side: whether answers of one prompt share a sequence.
        note: why some layer that was asked for is not an entry, or answers are not side by side; None if
            nothing stood in the way.
    """

    def __init__(
        self, anatomy: Anatomy, answers: Answers, pad_id: int, pass_tokens: int, full: int = 0
    ) -> None:
        self.answers = answers
        self.pass_tokens, self._full = pass_tokens, full
        self._anatomy, self._pad_id = anatomy, pad_id
        self._model = self.model = cast(Any, anatomy.model)
        self.reference = torch.zeros(len(answers.rows), device=input_device(self._model))
        self.entries: tuple[int, ...] = (0,)
        self.side_by_side = False
        self._notes: list[str] = []
        # By entry: of each prompt, and of each row all but its answer's last token.
        self._prompts: dict[tuple[int, int], torch.Tensor] = {}
        self._answers: dict[tuple[int, int], torch.Tensor] = {}
        self._returns_tuple = False

    @property
    def note(self) -> str | None:
        """See `Passes`."""
        return "; ".join(self._notes) or None

    @torch.no_grad()
    def prepare(self, rows: Sequence[int], wanted: Sequence[int], cache_bytes: int = CACHE_BYTES) -> None:
        """Pass these rows through the original model: the reference, and what edited passes begin with.

        Args:
            rows: of `answers`.
            wanted: layers at which passes would like to begin, one for each that would.
            cache_bytes: at most so much of their inputs is kept; the layers that save most are kept first.
        """
        self._notes, self.side_by_side = [], False
        self._look_side_by_side(rows)
        entries = self._affordable(rows, wanted, cache_bytes)
        groups = [[rows[i] for i in one] for one in self.together([(row,) for row in rows])]
        passes = planned(
            [self.extent(group) for group in groups], self.pass_tokens, min(self._full, self.pass_tokens)
        )
        for chosen in track(list(passes), "reference"):
            some = [groups[g] for g in chosen]
            with self._keeping(entries, self._sequences(some)):
                self.reference[[row for group in some for row in group]] = self.log_probs(some)
        self.entries = (0, *entries)
        for entry in entries:
            self._check(entry, max(rows, key=self.answers.length))

    def entry_for(self, layer: int) -> int:
        """The highest layer, `layer` at most, at which a pass can begin."""
        return max(entry for entry in self.entries if entry <= layer)

    def together(self, items: Sequence[Sequence[int]]) -> list[list[int]]:
        """Indices of items whose answers are to share a sequence.

        Args:
            items: rows of one prompt each, which must share a pass.
        """
        if not self.side_by_side:
            return [[i] for i in range(len(items))]
        groups: list[tuple[list[int], set[int]]] = []
        last: dict[int, int] = {}
        for i, item in enumerate(items):
            prompt = self.answers.prompts[item[0]]
            if (place := last.get(prompt)) is not None:
                rows = groups[place][1] | set(item)
                # Attention costs the square of this, which is small beside the rest up to here.
                most = min(self.pass_tokens, max(_SEQUENCE, 2 * len(self.answers.rows[item[0]][0])))
                if tokens_of(self.answers, sorted(rows)) <= most:
                    groups[place][0].append(i)
                    groups[place][1].update(item)
                    continue
            last[prompt] = len(groups)
            groups.append(([i], set(item)))
        return [indices for indices, _ in groups]

    def extent(self, rows: Sequence[int], entry: int = 0) -> Extent:
        """What answers of one prompt that share a pass take of it."""
        sequences = self._sequences([rows])
        return Extent(entry, len(sequences), max(tokens_of(self.answers, one) for one in sequences))

    def log_probs(self, groups: Sequence[Sequence[int]], entry: int = 0) -> torch.Tensor:
        """Σ log p over each answer's tokens, float32, group by group; edits that act now act on it.

        Args:
            groups: rows of one prompt each; a row may be in several.
            entry: one of `entries` at which the pass begins.
        """
        sequences = self._sequences(groups)
        layout = lay_out(self.answers, sequences, self._pad_id, self._model)
        with contextlib.ExitStack() as stack:
            if entry:
                stack.enter_context(self._beginning_at(entry, sequences, layout.width))
            logits = logits_at(self._model, layout.predicting, **layout.inputs, use_cache=False)
        by_token = token_log_probs(logits, layout.targets.to(logits.device)).to(input_device(self._model))
        # Split rather than scattered: sums in one order on every device.
        return torch.stack([part.sum() for part in by_token.split(layout.counts)])

    def _sequences(self, groups: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """The rows of each sequence."""
        if self.side_by_side:
            return [tuple(group) for group in groups]
        return [(row,) for group in groups for row in group]

    def _look_side_by_side(self, rows: Sequence[int]) -> None:
        """Find out whether answers of one prompt can share a sequence: tried on the longest."""
        by_prompt: dict[int, list[int]] = {}
        for row in rows:
            by_prompt.setdefault(self.answers.prompts[row], []).append(row)
        shared = [some for some in by_prompt.values() if len(some) > 1]
        if not shared:
            return
        longest = max(self.answers.length(row) for row in rows)
        reason = why_not_forked(self._model) or why_not_in_one_row(self._model, longest, "longest row")
        if reason is None:
            some = max(shared, key=lambda rows: max(self.answers.length(row) for row in rows))
            some = sorted(some, key=self.answers.length)[-2:]
            apart = self.log_probs([some])
            self.side_by_side = True
            reason = self._reason(some, 0, apart)
            self.side_by_side = reason is None
        if reason is not None:
            self._notes.append(f"answers of one prompt are not side by side in a pass: {reason}")

    @contextlib.contextmanager
    def _keeping(self, entries: Sequence[int], sequences: Sequence[Sequence[int]]) -> Iterator[None]:
        """Within the block, what reaches the entry layers is kept, part by part and without padding."""

        def keep(entry: int) -> Any:
            def hook(hidden: torch.Tensor) -> None:
                for own, rows in zip(hidden, sequences, strict=True):
                    # Copies, so that no whole batch is kept for one row.
                    prompt = self.answers.prompts[rows[0]]
                    if (entry, prompt) not in self._prompts:
                        self._prompts[entry, prompt] = own[: len(self.answers.rows[rows[0]][0])].clone()
                    for row, start in zip(rows, starts_of(self.answers, rows), strict=True):
                        end = start + len(self.answers.rows[row][1]) - 1
                        self._answers[entry, row] = own[start:end].clone()

            return hook

        def see(_module: torch.nn.Module, _args: Any, output: Any) -> None:
            self._returns_tuple = isinstance(output, tuple)

        blocks = self._anatomy.blocks
        handles = [blocks[0].register_forward_hook(see)]
        try:
            handles += [on_input(blocks[entry], keep(entry)) for entry in entries]
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def _beginning_at(self, entry: int, sequences: Sequence[Sequence[int]], width: int) -> Iterator[None]:
        """Within the block, layers below `entry` pass on what they get, and `entry` gets what was kept."""
        parts = [
            [self._prompts[entry, self.answers.prompts[rows[0]]], *(self._answers[entry, r] for r in rows)]
            for rows in sequences
        ]
        kept = torch.nn.utils.rnn.pad_sequence([torch.cat(some) for some in parts], batch_first=True)
        kept = torch.nn.functional.pad(kept, (0, 0, 0, width - kept.shape[1]))

        with beginning_at(self._anatomy, entry, kept, returns_tuple=self._returns_tuple):
            yield

    def _affordable(self, rows: Sequence[int], wanted: Sequence[int], cache_bytes: int) -> list[int]:
        """The layers to begin at that save most, as far as memory goes, ascending."""
        width, bytes_each = self._anatomy.sizes.width, self._model.dtype.itemsize
        prompts = {self.answers.prompts[row]: len(self.answers.rows[row][0]) for row in rows}
        tokens = sum(prompts.values()) + sum(len(self.answers.rows[row][1]) - 1 for row in rows)
        one = max(1, width * bytes_each * tokens)
        chosen: list[int] = []

        def saved(entries: Sequence[int]) -> int:
            return sum(max((e for e in entries if e <= layer), default=0) for layer in wanted)

        candidates = sorted(set(wanted) - {0})
        while len(chosen) < len(candidates) and (len(chosen) + 1) * one <= cache_bytes:
            chosen.append(
                max(set(candidates) - set(chosen), key=lambda layer: (saved([*chosen, layer]), layer))
            )
        if len(chosen) < len(candidates):
            self._notes.append(
                f"the inputs of {len(chosen)} of {len(candidates)} layers are kept; each takes "
                f"{one / 2**20:.0f} MiB of {cache_bytes / 2**20:.0f}"
            )
        return sorted(chosen)

    def _check(self, entry: int, row: int) -> None:
        """Leave a layer out where a pass that begins there gives something else than a whole one."""
        reason = self._reason([row], entry, self.reference[[row]])
        if reason is not None:
            self.entries = tuple(e for e in self.entries if e != entry)
            self._notes.append(
                f"a pass of {type(self._model).__name__} that begins at layer {entry} {reason}"
            )

    def _reason(self, rows: Sequence[int], entry: int, expected: torch.Tensor) -> str | None:
        """What is wrong with a pass over these rows; None if it gives the log-probabilities expected."""
        tolerance = _SAME.get(self._model.dtype, _SAME_IN_LOW_PRECISION)
        counts = expected.new_tensor([len(self.answers.rows[row][1]) for row in rows])
        try:
            off = (self.log_probs([rows], entry) - expected).abs()
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            return f"fails ({error})"
        if bool((off <= tolerance * counts).all()):
            return None
        return f"gives log-probabilities that are off by {float(off.max()):.2g} nats"
