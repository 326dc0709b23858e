"""One model in this process, answering requests one after the other, each with an artifact of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from subvene.interventions.positions import needs_length, plain_positions
from subvene.runner.data.text import pad_id_of, prompt_ids
from subvene.runner.edits.compile import entry_name
from subvene.runner.engines.admission import Wish, Wishes
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import Positions


@dataclass(frozen=True)
class Sampling:
    """How a request is answered.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: sample from this much probability.
        seed: of the sampling.
        n: answers.
        stop: texts that end an answer.
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    n: int
    stop: tuple[str, ...]

    def options(self) -> dict[str, Any]:
        """As keywords of transformers' `generate`."""
        options: dict[str, Any] = {"max_new_tokens": self.max_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        if self.n > 1:
            options["num_return_sequences"] = self.n
        if self.stop:
            options["stop_strings"] = list(self.stop)
        return options


@dataclass(frozen=True)
class Answers:
    """What came of a request.

    Attributes:
        texts: the answers.
        finished: of each `stop` or `length`.
        prompt_tokens: tokens of the prompt.
        tokens: tokens of all answers.
        receipt: what each intervention did; empty without any.
    """

    texts: list[str]
    finished: list[str]
    prompt_tokens: int
    tokens: int
    receipt: list[dict[str, Any]]


class InProcess:
    """A model, and the artifacts that requests may name.

    Args:
        artifacts: by the names that requests use: intervened models that share one loaded model.
    """

    def __init__(self, artifacts: Mapping[str, IntervenedModel]) -> None:
        first = next(iter(artifacts.values()))
        if any(m.model is not first.model for m in artifacts.values()):
            raise EngineError("the artifacts of one server act on one loaded model")
        self.artifacts = dict(artifacts)
        self.tokenizer = first.tokenizer
        self.base = first.spec.model.name
        self.plain = IntervenedModel.plain(first.model, self.tokenizer, name=self.base)
        # With other positions than the artifact declares.
        self._placed: dict[tuple[str, Positions], IntervenedModel] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folders: Mapping[str, Path], **overrides: Any) -> InProcess:
        """Load the model of the first artifact, and every artifact onto it.

        Raises:
            SubveneError: an artifact cannot be read, or is of another model.
        """
        made: dict[str, IntervenedModel] = {}
        for name, folder in folders.items():
            if not made:
                made[name] = IntervenedModel.from_pretrained(folder, **overrides)
                continue
            first = next(iter(made.values()))
            made[name] = IntervenedModel.from_pretrained(folder, model=first.model, tokenizer=first.tokenizer)
        return cls(made)

    def answer(
        self,
        prompt: Any,
        *,
        chat: bool,
        wishes: Wishes,
        sampling: Sampling,
        write: Callable[[str], None] | None = None,
    ) -> Answers:
        """Answer a prompt.

        Args:
            prompt: messages, or a text.
            chat: whether the chat template is used.
            wishes: what is to be done to it.
            sampling: how.
            write: is given the text as it comes; for one answer only.

        Raises:
            RequestError: it cannot be done; nothing has run.
            NotSteeredError: an intervention that should have acted did not.
        """
        m, strengths = self._chosen(wishes)
        ids = prompt_ids(self.tokenizer, prompt, chat=chat)
        with self._lock:
            output = m.generate_ids(
                torch.tensor([ids]),
                strengths=strengths,
                seed=sampling.seed,
                pad_token_id=pad_id_of(self.tokenizer),
                tokenizer=self.tokenizer if sampling.stop else None,
                streamer=None if write is None else _Streamer(self.tokenizer, write),
                **sampling.options(),
            )
            receipt = m.receipt.to_dict() if m.receipt and not m.is_disabled else []
        return self._answers(output[:, len(ids) :], len(ids), sampling, receipt)

    def _answers(
        self, rows: torch.Tensor, prompt: int, sampling: Sampling, receipt: list[dict[str, Any]]
    ) -> Answers:
        ends = self.plain.model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        texts, finished, total = [], [], 0
        for row in rows.tolist():
            length = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
            text = self.tokenizer.decode(row[:length], skip_special_tokens=True)
            cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
            is_whole = cut is None and row[length - 1] not in ends and length >= sampling.max_tokens
            texts.append(text if cut is None else text[:cut])
            finished.append("length" if is_whole else "stop")
            total += length
        return Answers(texts, finished, prompt, total, receipt)

    def _chosen(self, wishes: Wishes) -> tuple[IntervenedModel, Mapping[str, float] | None]:
        """The intervened model that does what is asked for, and the strengths."""
        if wishes.prompt_tokens is not None:
            raise RequestError(
                "subvene.prompt_tokens: this engine generates only, and scores no given response"
            )
        if not wishes.artifacts:
            return self.plain, None
        if len(wishes.artifacts) > 1:
            raise RequestError(
                "subvene: this engine takes one artifact a request; put the edits into one file"
            )
        (wish,) = wishes.artifacts
        if wish.artifact not in self.artifacts:
            names = ", ".join(self.artifacts)
            raise RequestError(f"no artifact is called {wish.artifact!r}; there are: {names}")
        for one in self.artifacts[wish.artifact].spec.interventions:
            if needs_length(rule := wish.positions or one.positions):
                raise RequestError(
                    f"positions {plain_positions(rule)} count from the end of the response, which is not "
                    "known while it is generated"
                )
        return self._at(wish), _strengths(wish, self.artifacts[wish.artifact])

    def _at(self, wish: Wish) -> IntervenedModel:
        m = self.artifacts[wish.artifact]
        if wish.positions is None:
            return m
        key = (wish.artifact, wish.positions)
        with self._lock:
            if key not in self._placed:
                moved = tuple(
                    one.model_copy(update={"positions": wish.positions}) for one in m.spec.interventions
                )
                spec = m.spec.model_copy(update={"interventions": moved})
                self._placed[key] = IntervenedModel.from_spec(
                    spec, model=m.model, tokenizer=m.tokenizer, tensors=m.tensors
                )
            return self._placed[key]


def _strengths(wish: Wish, m: IntervenedModel) -> dict[str, float] | None:
    names = [entry_name(m.spec, i) for i in range(len(m.spec.interventions))]
    if wish.strength is None:
        if unknown := sorted(set(wish.strengths or {}) - set(names)):
            raise RequestError(
                f"{wish.artifact}: no intervention is called {unknown[0]!r}; there are: {', '.join(names)}"
            )
        return wish.strengths
    if wish.strengths is not None:
        raise RequestError(f"{wish.artifact}: give `strength` or `strengths`, not both")
    if len(names) > 1:
        raise RequestError(
            f"{wish.artifact} has several interventions: give `strengths` by name: {', '.join(names)}"
        )
    return {names[0]: wish.strength}


class _Streamer(transformers.TextStreamer):
    """Hands text on as it is written."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece of text."""
        if text:
            self._write(text)
