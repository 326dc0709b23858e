"""A local causal language model as judge: the probability of ` yes` against ` no` after the answer.

The open Llama-2 truth and info judges were fine-tuned on the published form, and work as they are.
"""

from __future__ import annotations

import gc
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subvene.runner.judges.base import Answer, Aspect, Judge, JudgeError, Judgement
from subvene.runner.judges.measured import known_accuracy
from subvene.runner.judges.prompts import NO, YES, completion_prompt
from subvene.runner.model import ModelError, load_config, load_model, load_tokenizer
from subvene.runner.progress import track
from subvene.runner.text import by_length, pad, pad_id_of

if TYPE_CHECKING:
    from subvene.specs import ModelSpec
    from subvene.specs.judges import TransformersJudgeSpec

_PROBE = Answer("What is the capital of France?", "Paris.")


class TransformersJudge(Judge):
    """One model at a time is in memory: truth and info share one if they are declared alike.

    Args:
        spec: the models and how many answers go through them at a time.
        folder: unused; a model's local folder is relative to the working directory, as everywhere.
    """

    def __init__(self, spec: TransformersJudgeSpec, folder: Path) -> None:
        self._spec = spec
        self._loaded: tuple[ModelSpec, Any, Any] | None = None

    def check(self) -> None:
        """Read the configs and the tokenizers, which are small; the weights are left for later.

        Raises:
            JudgeError: no such model, or its tokenizer does not tell ` yes` from ` no`.
        """
        for aspect in self.aspects:
            model = self._model(aspect)
            try:
                load_config(model)
                tokenizer = load_tokenizer(model)
            except ModelError as error:
                raise JudgeError(f"{aspect}_model of the judge: {error}") from error
            yes_and_no(tokenizer, completion_prompt(_PROBE, aspect))

    @torch.no_grad()
    def judge(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """One judgement for each answer, in order; answers of like length share a forward pass."""
        model, tokenizer = self._load(aspect)
        rows = [yes_and_no(tokenizer, completion_prompt(answer, aspect)) for answer in answers]
        probabilities = [0.0] * len(rows)
        takes = inspect.signature(model.forward).parameters
        batches = by_length([len(ids) for ids, _, _ in rows], self._spec.batch_size)
        for chosen in track(batches, f"judging {aspect}"):
            prompts = [rows[i][0] for i in chosen]
            # Padded on the left, so that the last slot is every row's last token.
            batch = pad(prompts, [len(ids) for ids in prompts], pad_id_of(tokenizer), "left").to(model.device)
            options: dict[str, Any] = {"use_cache": False, "logits_to_keep": 1}
            # Given, because transformers counts slots, not tokens, where nobody says otherwise.
            options["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
            options = {name: value for name, value in options.items() if name in takes}
            output = model(batch.input_ids, attention_mask=batch.attention_mask, **options)
            last = output.logits[:, -1].float()
            two = torch.tensor([rows[i][1:] for i in chosen], device=last.device)
            p_yes = last.gather(1, two).softmax(1)[:, 0].tolist()
            for i, probability in zip(chosen, p_yes, strict=True):
                probabilities[i] = probability
        return [
            Judgement(p, p >= 0.5) if p == p else Judgement(None, None, "the model's logits are not numbers")
            for p in probabilities
        ]

    def _model(self, aspect: Aspect) -> ModelSpec:
        return self._spec.truth_model if aspect == "truth" else self._spec.info_model

    def _load(self, aspect: Aspect) -> tuple[Any, Any]:
        spec = self._model(aspect)
        if self._loaded is None or self._loaded[0] != spec:
            self.release()
            try:
                self._loaded = (spec, *load_model(spec))
            except ModelError as error:
                raise JudgeError(f"{aspect}_model of the judge: {error}") from error
        return self._loaded[1:]

    def release(self) -> None:
        """Give back the memory of the model that is loaded."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def describe(self) -> dict[str, Any]:
        """The models as they are declared, without where they are put.

        `accuracy` is what `subvene judge check` measured on this machine.
        """
        placed = {"device", "device_map"}
        described: dict[str, Any] = {"kind": "transformers"}
        for aspect in self.aspects:
            model = self._model(aspect)
            described[f"{aspect}_model"] = model.model_dump(exclude_none=True, exclude=placed)
        return described | {"accuracy": {one: known_accuracy(described, one) for one in self.aspects}}


def yes_and_no(tokenizer: Any, prompt: str) -> tuple[list[int], int, int]:
    """Token ids after which ` yes` and ` no` differ, and the token that comes next for each.

    Tokenised together with the prompt, since that is how the judges were fine-tuned: sentencepiece makes
    another token of a space at the beginning, and some tokenizers give the space a token of its own.

    Raises:
        JudgeError: there is no such place.
    """
    yes, no = (list(tokenizer(prompt + word)["input_ids"]) for word in (YES, NO))
    shared = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), 0)
    if shared == 0:
        raise JudgeError(
            f"the tokenizer {type(tokenizer).__name__} makes the same tokens of {YES!r} and {NO!r}: "
            f"this model cannot judge"
        )
    return yes[:shared], yes[shared], no[shared]
