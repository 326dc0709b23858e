"""The settings of a `generate` call as transformers will see them, and what callers hand into it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import torch

from subvene.runner.models.generation_types import generation_flaw
from subvene.runner.models.loading import ModelError

_T = TypeVar("_T")
Suspend = Callable[[], contextlib.AbstractContextManager[Any]]
# Called with Bool[rows], the rows that have ended, and the length of the sequences with their newest token.
OnEnded = Callable[[torch.Tensor, int], None]

_CRITERIA = "transformers.generation.stopping_criteria"
_PROCESSORS = "transformers.generation.logits_process"


class Settings:
    """The settings of one `generate`: each the keyword, else `generation_config`'s, else the model's own.

    Args:
        model: the model that generates.
        **given: keywords of the call.
    """

    def __init__(self, model: Any, /, **given: Any) -> None:
        self.model, self._given = model, given

    def __getitem__(self, name: str) -> Any:
        if name in self._given:
            return self._given[name]
        given = getattr(self._given.get("generation_config"), name, None)
        if given is not None:
            return given
        # A classifier has no such settings; what it pads with, its config says.
        own = getattr(self.model, "generation_config", None) or self.model.config
        return getattr(own, name, None)

    def given(self, name: str) -> Any:
        """A keyword of the call; None without it."""
        return self._given.get(name)


def row_ends(settings: Settings) -> list[int]:
    """The ids that end a row.

    Raises:
        ModelError: the setting is no token id.
    """
    end = settings["eos_token_id"]
    flaw = None if isinstance(end, torch.Tensor) else generation_flaw({"eos_token_id": end})
    if flaw is not None:
        raise ModelError(f"the end of an answer is not known: {flaw}")
    ends = [end]
    # A criterion of transformers' own takes the place of the one that `generate` would make.
    ends = [
        criterion.eos_token_id
        for criterion in settings.given("stopping_criteria") or []
        if hasattr(criterion, "eos_token_id")
    ] or ends
    return [token for end in ends if end is not None for token in torch.as_tensor(end).reshape(-1).tolist()]


def answer_ends(model: Any, tokenizer: Any) -> set[int]:
    """The ids that end an answer that is measured or served: the model's, and the tokenizer's.

    A checkpoint without a generation_config names no end, and its answers would go on behind their end.

    Raises:
        ModelError: the setting is no token id.
    """
    own = tokenizer.eos_token_id
    return {*row_ends(Settings(model)), *([] if own is None else [own])}


def drafts(settings: Settings) -> bool:
    """Whether a generation passes drafts, of which some are taken back."""
    names = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    return any(settings[name] for name in names)


def guard_callbacks(
    settings: Settings, kwargs: MutableMapping[str, Any], suspend: Suspend, on_ended: OnEnded | None
) -> None:
    """Make what the caller hands into `generate` run outside the run, and see which rows it ends.

    A criterion, processor or streamer may call the model itself: that call is not part of the generation.
    transformers fills up the rows that a criterion has ended, and does not say which those are.

    Args:
        settings: of the call.
        kwargs: its keywords; changed in place.
        suspend: makes calls of the model inside its block no part of the run.
        on_ended: is told which rows have ended; None where rows cannot be told apart (beams).
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList, StopStringCriteria

    criteria = list(kwargs.get("stopping_criteria") or [])
    stop_strings, tokenizer = settings["stop_strings"], kwargs.get("tokenizer")
    if stop_strings is not None and tokenizer is not None:
        # The same rule as `generate` would make of it, made here so that it can be seen. One given as a
        # criterion takes precedence there, too.
        if not any(type(criterion) is StopStringCriteria for criterion in criteria):
            criteria.append(StopStringCriteria(tokenizer=tokenizer, stop_strings=stop_strings))
        if "stop_strings" in kwargs:
            kwargs["stop_strings"] = None
    if criteria:
        kwargs["stopping_criteria"] = StoppingCriteriaList(
            _criterion(criterion, suspend, on_ended) for criterion in criteria
        )
    if processors := kwargs.get("logits_processor"):
        kwargs["logits_processor"] = LogitsProcessorList(
            processor if type(processor).__module__ == _PROCESSORS else _processor(processor, suspend)
            for processor in processors
        )
    if (allowed := kwargs.get("prefix_allowed_tokens_fn")) is not None:
        kwargs["prefix_allowed_tokens_fn"] = _suspended(allowed, suspend)
    if (streamer := kwargs.get("streamer")) is not None:
        kwargs["streamer"] = _Streamer(streamer, suspend)


def _suspended(function: Callable[..., _T], suspend: Suspend) -> Callable[..., _T]:
    def call(*args: Any, **kwargs: Any) -> _T:
        with suspend():
            return function(*args, **kwargs)

    return call


def _criterion(criterion: Any, suspend: Suspend, on_ended: OnEnded | None) -> Any:
    from transformers import StoppingCriteria, StopStringCriteria

    # transformers' own others end all rows at once, or by a token; and it replaces defaults by their type.
    if type(criterion).__module__ == _CRITERIA and not isinstance(criterion, StopStringCriteria):
        return criterion

    class Guarded(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
            with suspend():
                done = criterion(input_ids, scores, **kwargs)
            if on_ended is not None:
                ended = torch.as_tensor(done, dtype=torch.bool, device=input_ids.device)
                on_ended(ended.expand(input_ids.shape[0]), input_ids.shape[1])
            return done

    guarded: Any = Guarded()
    # By this attribute `generate` knows that ended rows are filled up.
    if hasattr(criterion, "eos_token_id"):
        guarded.eos_token_id = criterion.eos_token_id
    return guarded


def _processor(processor: Any, suspend: Suspend) -> Any:
    from transformers import LogitsProcessor

    class Guarded(LogitsProcessor):
        # `generate` looks at the parameters of `__call__` for further arguments.
        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            with suspend():
                return processor(input_ids, scores)

    return Guarded()


class _Streamer:
    """A caller's streamer, called outside the run."""

    def __init__(self, streamer: Any, suspend: Suspend) -> None:
        self._streamer = streamer
        self.put = _suspended(streamer.put, suspend)
        self.end = _suspended(streamer.end, suspend)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._streamer, name)
