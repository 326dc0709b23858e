"""Whether a run stayed finite, and which intervention it is that it did not.

An edit that is too strong for a dtype makes infinities or NaN at its own site, or further on, where the model
squares what it was given. What is seen of that is kept on the device, a flag a token, and looked at once when
the run is over. Only real tokens are judged: what padding holds is nobody's result.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from subvene.interventions import Tokens
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.not_finite import ADVICE, ADVICE_OF_MODEL, NotFiniteError, rows_in_words
from subvene.runner.edits.positions import TokenTracker
from subvene.runner.models.devices import input_device

if TYPE_CHECKING:
    from subvene.runner.edits.recorder import Recorder

# What a call may be given and still be run again without its edits. Anything else (embeddings, images) may
# have been made by somebody who makes it only once.
_REPEATABLE = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "cache_position",
    "past_key_values",
    "use_cache",
    "logits_to_keep",
    "return_dict",
    "output_attentions",
    "output_hidden_states",
    "labels",
}


@dataclass(frozen=True)
class _Call:
    """One forward call.

    Attributes:
        tokens: where its tokens stand.
        ids: Long[rows, tokens]; None where it was given embeddings.
        largest: the largest logit of each token that has logits, [rows, some tokens], or of each row, [rows];
            None where there is none.
        where: which tokens those of [rows, some tokens] are; None where that cannot be told.
    """

    tokens: Tokens
    ids: torch.Tensor | None
    largest: torch.Tensor | None
    where: Any


class FiniteWatch:
    """Sees the logits of every call of a run, and says afterwards what was no longer finite.

    Args:
        tracker: says where the tokens of each call stand.

    Attributes:
        clears: whether logits that are not finite are made 0 at once in a generation. Sampling from NaN
            raises an error of its own, and on an accelerator ends the process; taking the largest does not
            mind.
    """

    def __init__(self, tracker: TokenTracker) -> None:
        self._tracker = tracker
        self._calls: list[_Call] = []
        self._is_repeatable = True
        self.clears = True

    def observe(self, call: ForwardCall, output: Any) -> None:
        """Look at what a call of the whole model has given."""
        tokens = self._tracker.current
        if tokens is None:
            return
        if call.given - _REPEATABLE:
            self._is_repeatable = False
        found, largest, where = _last_tensor(output), None, None
        if found is not None:
            # The largest is enough: it is NaN if any is, and −inf alone is a token that is ruled out.
            largest = found.detach().amax(-1)
            if self.clears and self._tracker.generating and not found.requires_grad:
                found.masked_fill_((largest - largest != 0).unsqueeze(-1), 0.0)
            if largest.ndim > 1:
                where = _columns(call.logits_to_keep, tokens.shape[1], largest.shape[1])
        self._calls.append(_Call(tokens, call.input_ids, largest, where))

    def check(
        self,
        model: torch.nn.Module,
        recorder: Recorder,
        entries: Sequence[tuple[str, Sequence[str], Sequence[str], Any]],
    ) -> None:
        """Check the run that is over; the model's edits are off while this looks at it.

        Args:
            model: the model that ran.
            recorder: what was measured at the sites.
            entries: (name, keys, sites, one of the interventions) of each declared intervention.

        Raises:
            NotFiniteError: naming the interventions that made it so, or saying that it was none.
        """
        if not self._calls:
            return
        real, bad, ids = self._columns(recorder.end)
        first = self._calls[0].tokens.start
        nothing = torch.zeros_like(bad)
        places: list[_Place] = []
        for name, keys, sites, _ in entries:
            for key, site in zip(keys, sites, strict=True):
                if (norms := recorder.norms(key)) is not None:
                    here = norms[:, :, first : first + real.shape[1]].to(real.device)
                    here = torch.nn.functional.pad(here, (0, real.shape[1] - here.shape[2]))
                    before, moved = ~torch.isfinite(here[0]) & real, ~torch.isfinite(here[1]) & real
                    places.append(_Place(site, name, before | moved, moved & ~before, here[1]))
        # The last of all places, so that of one token the first place is told.
        places.append(_Place("the logits", None, bad, nothing, nothing.float()))
        is_bad = torch.stack([place.bad.any(1) for place in places]).any(0)
        if not bool(is_bad.any()):
            return
        rows = is_bad.nonzero().flatten().tolist()
        untouched: dict[int, bool | None] = {}

        def is_finite_untouched(row: int) -> bool | None:
            if not untouched:
                untouched.update(self._untouched(model, rows, ids, real, first))
            return untouched[row]

        index = self._index(first, real)
        verdicts = {row: _verdict(row, places, index[row], is_finite_untouched) for row in rows}
        repeat = len(is_bad) // len(self._tracker.real)  # beams, several sequences a prompt
        _raise({row // repeat: verdicts[row] for row in reversed(rows)}, len(is_bad) // repeat)

    def _columns(self, slots: int | None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Of every slot, as the last call that passed it saw it: real, bad [rows, slots], and the ids."""
        chosen: list[int] = []
        first, count = self._calls[0].tokens.start, 0
        for call in self._calls:
            # What an earlier call had seen from here on (rejected drafts, a pass without cache) is replaced.
            del chosen[max(call.tokens.start - first, 0) :]
            chosen += range(count, count + call.tokens.shape[1])
            count += call.tokens.shape[1]
        if slots is not None:
            del chosen[max(slots - first, 0) :]
        which = torch.tensor(chosen, dtype=torch.long)
        ids = [call.ids for call in self._calls if call.ids is not None]
        every = torch.ones(1, 1, dtype=torch.bool)
        seen = _on_cpu([None if call.tokens.all_real else call.tokens.real for call in self._calls])
        real = [
            every.expand(call.tokens.shape) if one is None else one
            for call, one in zip(self._calls, seen, strict=True)
        ]
        largest = _on_cpu([call.largest for call in self._calls], lambda flat: ~torch.isfinite(flat))
        bad = [_bad(*one) for one in zip(self._calls, largest, real, strict=True)]
        return (
            torch.cat(real, 1)[:, which],
            torch.cat(bad, 1)[:, which],
            torch.cat(ids, 1).cpu()[:, which] if len(ids) == len(self._calls) else None,
        )

    def _index(self, first: int, real: torch.Tensor) -> torch.Tensor:
        """The position of each slot in its own row, [rows, slots]."""
        tracker = self._tracker
        index = tracker.index.cpu()[:, first:]
        if (ahead := real.shape[1] - index.shape[1]) > 0:
            index = torch.cat([index, tracker.length.cpu().unsqueeze(1) + torch.arange(ahead)], 1)
        index = index[:, : real.shape[1]]
        return index.repeat_interleave(len(real) // len(index), 0)

    def _untouched(
        self,
        model: torch.nn.Module,
        rows: Sequence[int],
        ids: torch.Tensor | None,
        real: torch.Tensor,
        first: int,
    ) -> dict[int, bool | None]:
        """Whether the untouched model is finite on the same tokens; None where they cannot be run again."""
        if ids is None or first or not self._is_repeatable:
            return dict.fromkeys(rows)
        chosen = torch.tensor(rows)
        found = _last_tensor(_run(model, ids[chosen], real[chosen].long()))
        if found is None:
            return dict.fromkeys(rows)
        finite = torch.isfinite(found.amax(-1)).cpu()
        # A classifier's logits are of the row.
        finite = (finite.unsqueeze(1) if finite.ndim == 1 else finite) | ~real[chosen]
        return dict(zip(rows, finite.all(1).tolist(), strict=True))


@dataclass(frozen=True)
class _Place:
    """What was seen at one place [rows, slots].

    Attributes:
        where: `site[layer]`, or the logits.
        name: the intervention that acts there.
        bad: what is not finite, before or after the edit.
        made: what the edit itself made so.
        delta: ‖Δ‖.
    """

    where: str
    name: str | None
    bad: torch.Tensor
    made: torch.Tensor
    delta: torch.Tensor


@dataclass(frozen=True)
class _Verdict:
    """What became of a row, in words, and the interventions whose doing it is: none if it is the model's."""

    words: str
    names: tuple[str, ...]


def _verdict(
    row: int, places: Sequence[_Place], index: torch.Tensor, untouched: Callable[[int], bool | None]
) -> _Verdict:
    makers = [place for place in places if bool(place.made[row].any())]
    if makers:
        names = tuple(dict.fromkeys(str(place.name) for place in makers))
        maker, slot = makers[0], int(makers[0].made[row].nonzero()[0])
        norm = float(maker.delta[row, slot])
        return _Verdict(
            f"{maker.name!r} at {maker.where} moves token {int(index[slot])} by ‖Δ‖ = {norm}", names
        )
    seen = min(
        (place for place in places if bool(place.bad[row].any())),
        key=lambda place: int(place.bad[row].nonzero()[0]),
    )
    slot = int(seen.bad[row].nonzero()[0])
    what = f"{seen.where} of token {int(index[slot])} are not finite"
    if seen.name is not None:
        what = f"{seen.where} is not finite at token {int(index[slot])}, before {seen.name!r} acts there"
    acted = [place for place in places if bool((place.delta[row, : slot + 1] > 0).any())]
    names = tuple(dict.fromkeys(str(place.name) for place in acted))
    finite = untouched(row) if names else False
    if finite is False:
        return _Verdict(what, ())
    acting = ", ".join(f"{place.name!r} at {place.where}" for place in acted)
    if finite:
        return _Verdict(f"{what}, after {acting}; without the edit they are finite", names)
    return _Verdict(
        f"{what}, after {acting} (whether they are finite without it cannot be told from this call)",
        names,
    )


def _raise(verdicts: Mapping[int, _Verdict], count: int) -> None:
    """Raise what there is to say; that the model itself is not finite comes before what its edits do."""
    own = {row: verdict.words for row, verdict in verdicts.items() if not verdict.names}
    if own:
        raise NotFiniteError(
            f"the untouched model is not finite in {rows_in_words(list(own), count)}: "
            f"{next(iter(own.values()))}, and no intervention is the cause; {ADVICE_OF_MODEL}",
            own,
            of_model=True,
        )
    told = {row: verdict.words for row, verdict in verdicts.items()}
    names = ", ".join(dict.fromkeys(repr(name) for one in verdicts.values() for name in one.names))
    raise NotFiniteError(
        f"this run is no longer finite under {names}, in {rows_in_words(list(told), count)}: "
        f"{next(iter(told.values()))}; {ADVICE}",
        told,
    )


def _last_tensor(output: Any) -> torch.Tensor | None:
    """The logits of a model's output, or the hidden states of one without; None if there is neither."""
    for name in ("logits", "last_hidden_state"):
        if isinstance(found := getattr(output, name, None), torch.Tensor):
            return found
    parts = output if isinstance(output, tuple) else (output,)
    return next((part for part in parts if isinstance(part, torch.Tensor) and part.ndim == 3), None)


def _run(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    """A pass over whole sequences [rows, slots], real where `mask` is 1."""
    mask, places = mask.to(input_device(model)), {}
    if "position_ids" in inspect.signature(model.forward).parameters:
        places["position_ids"] = (mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        return model(input_ids=ids.to(mask.device), attention_mask=mask, use_cache=False, **places)


def _on_cpu(
    tensors: Sequence[torch.Tensor | None],
    of_each: Callable[[torch.Tensor], torch.Tensor] = lambda tensor: tensor,
) -> list[torch.Tensor | None]:
    """`of_each` of the numbers of these tensors, brought there in one piece."""
    given = [tensor for tensor in tensors if tensor is not None]
    if not given:
        return list(tensors)
    flat = of_each(torch.cat([tensor.reshape(-1) for tensor in given]).cpu())
    parts = iter(flat.split([tensor.numel() for tensor in given]))
    return [None if tensor is None else next(parts).view(tensor.shape) for tensor in tensors]


def _bad(call: _Call, not_finite: torch.Tensor | None, real: torch.Tensor) -> torch.Tensor:
    """Bool[rows, tokens], the real tokens whose logits are not finite."""
    if not_finite is not None and call.tokens.all_real and not_finite.shape == real.shape:
        return not_finite
    bad = torch.zeros_like(real)
    if not_finite is None:
        return bad
    if not_finite.ndim == 1:  # a classifier's, of each row as a whole
        return not_finite.unsqueeze(1) & real
    if call.where is not None:
        where = call.where.cpu() if isinstance(call.where, torch.Tensor) else call.where
        bad[:, where] = not_finite & real[:, where]
    return bad


def _columns(keep: Any, count: int, given: int) -> Any:
    """Which of a call's tokens the logits are of; None if that cannot be told."""
    if isinstance(keep, torch.Tensor) and keep.ndim == 1:
        return keep
    if given > count:
        return None
    return slice(count - given, count)
