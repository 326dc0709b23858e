"""The calls of a generation whose loop is somebody else's (`custom_generate`), told from others.

transformers' own loops call the model on the sequences that they return and on nothing else. Another loop may
score further texts; such a call would be placed, edited and counted as if it were one of the generation's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from subvene.interventions import Tokens
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.positions import PositionError
from subvene.runner.models.generation import Settings

_INPUTS = ("input_ids", "inputs_embeds")
_ELSE = (
    "For a call of your own inside a run use `with m.disabled()` (the untouched model) or `m(…)` (a run of "
    "its own)"
)
# Decoding methods that transformers loads from repositories, by the setting that asks for them.
_MOVED = ("penalty_alpha", "dola_layers", "constraints", "force_words_ids")


def has_other_loop(settings: Settings) -> bool:
    """Whether a `generate` call is looped by something other than transformers' own decoding methods."""
    from transformers import GenerationMixin

    if settings.given("custom_generate") is not None or any(settings[name] for name in _MOVED):
        return True
    if (settings["num_beam_groups"] or 1) > 1:
        return True
    model = settings.model
    # A repository may bring a `generate` of its own, which then stands on the model.
    own = vars(model).get("generate")
    declared = getattr(type(model), "generate", None)
    return declared is not GenerationMixin.generate or getattr(own, "own", own) is not None


class OwnCalls:
    """Sees that each call is about the prompts of one generation, and that it returns what went through it.

    Args:
        base: what the generation starts from: `input_ids` or `inputs_embeds`.
        cache: the one that it was given, perhaps filled; None without one.
        slots: columns of its mask: tokens in `base`, and in the cache beside them.
    """

    def __init__(self, base: Mapping[str, torch.Tensor], cache: Any, slots: int) -> None:
        self._prompt = {name: base[name] for name in _INPUTS if base.get(name) is not None}
        self._caches: dict[int, Any] = {} if cache is None else {id(cache): cache}
        self._slots = slots
        self._rows: int | None = None
        # Token ids by slot, [rows, slots], as the last pass of each had them; −1: embeddings.
        self._passed: torch.Tensor | None = None

    def check(self, tokens: Tokens, call: ForwardCall) -> None:
        """Refuse a call that is none of this generation's steps.

        Args:
            tokens: where the call was placed.
            call: what it is given.

        Raises:
            PositionError: it carries another prompt or other rows, or goes on from another cache.
        """
        cache, found = call.cache, call.inputs
        name = _INPUTS[0] if call.input_ids is not None else _INPUTS[1]
        if self._rows not in (None, len(found)):
            raise PositionError(
                f"a forward call has {len(found)} rows, and this generation has had {self._rows}; a loop "
                f"that changes its rows (contrastive search) cannot be followed. {_ELSE}"
            )
        if tokens.start and id(cache) not in self._caches:
            raise PositionError(
                f"a forward call goes on from a cache that this generation did not fill. {_ELSE}"
            )
        self._refuse_other_prompt(name, found, tokens.start, is_whole=cache is None)
        self._rows = len(found)
        self._note(found if found.ndim == 2 else found.new_full(found.shape[:2], -1).long(), tokens.start)
        self.hold(cache)

    def hold(self, cache: Any) -> None:
        """Know a cache that a call was given or has made."""
        if cache is not None:
            self._caches[id(cache)] = cache

    def check_output(self, sequences: Any) -> None:
        """Refuse a result of which the calls were not the steps, so that the receipt would be of another.

        Args:
            sequences: what the loop returned, [rows, tokens] expected.

        Raises:
            PositionError: it is not what went through the model, without its last token.
        """
        passed = self._passed
        if passed is None:
            return  # it called nothing, and the run says so
        expected = None
        if isinstance(sequences, torch.Tensor) and sequences.ndim == 2:
            expected = sequences[:, :-1].to(passed.device)
            passed = passed[:, self._first("input_ids") :][:, : expected.shape[1]]
        if expected is None or not torch.equal(passed, expected):
            raise PositionError(
                "custom_generate: expected the sequences [rows, tokens] whose tokens went through the model, "
                "each at its place, all but the last one; it returned something else, so it cannot be said "
                "what of that was edited (a search that lets rows trade places, a loop that scores other "
                f"answers last). {_ELSE}"
            )

    def _refuse_other_prompt(self, name: str, found: torch.Tensor, start: int, *, is_whole: bool) -> None:
        count = min(self._slots - start, found.shape[1])
        if is_whole and count < self._slots:
            raise PositionError(f"a forward call without a cache carries a part of the prompts. {_ELSE}")
        if count <= 0:
            return
        prompt = self._prompt.get(name)
        if prompt is not None:
            prompt = prompt.repeat_interleave(len(found) // len(prompt), 0)
            first = start - self._first(name)
            prompt = prompt[:, first : first + count] if first >= 0 else None
        if prompt is None or not torch.equal(found[:, :count], prompt.to(found.device)):
            raise PositionError(
                f"a forward call of this generation carries {name} that are not its prompts', so it is about "
                f"another text. {_ELSE}"
            )

    def _note(self, ids: torch.Tensor, start: int) -> None:
        before = self._passed
        if before is None:
            before = ids.new_full((len(ids), self._slots), -1)
            if (prompt := self._prompt.get("input_ids")) is not None:
                before[:, self._first("input_ids") :] = prompt.repeat_interleave(len(ids) // len(prompt), 0)
        self._passed = torch.cat([before[:, :start], ids], 1)

    def _first(self, name: str) -> int:
        """The slot of the first token of `base`: with a cache it may hold the new tokens alone."""
        return self._slots - (self._prompt[name].shape[1] if name in self._prompt else 0)
