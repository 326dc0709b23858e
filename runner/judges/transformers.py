"""A local causal language model as judge: the probability of ` yes` against ` no` after the answer.

The open Llama-2 truth and info judges were fine-tuned on the published form, and work as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from subvene.runner.data.text import quoted_ids
from subvene.runner.judges.base import Answer, Aspect, Judge, JudgeError, Judgement
from subvene.runner.judges.local import LocalModels, last_logits
from subvene.runner.judges.measured import known_accuracy
from subvene.runner.judges.prompts import NO, YES, completion_prompt

if TYPE_CHECKING:
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
        self._models = LocalModels(spec)

    def check(self) -> None:
        """Read the configs and the tokenizers, which are small; the weights are left for later.

        Raises:
            JudgeError: no such model, or its tokenizer does not tell ` yes` from ` no`.
        """
        for aspect, (_, tokenizer) in zip(self.aspects, self._models.tokenizers(), strict=True):
            yes_and_no(tokenizer, completion_prompt(_PROBE, aspect))

    @torch.no_grad()
    def judge(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """One judgement for each answer, in order; answers of like length share a forward pass."""
        model, tokenizer = self._models.load(f"{aspect}_model")
        rows = [yes_and_no(tokenizer, completion_prompt(answer, aspect)) for answer in answers]
        probabilities = [0.0] * len(rows)
        prompts = [ids for ids, _, _ in rows]
        said = last_logits(
            model, tokenizer, prompts, batch_size=self._spec.batch_size, description=f"judging {aspect}"
        )
        for chosen, logits in said:
            last = logits.float()
            two = torch.tensor([rows[i][1:] for i in chosen], device=last.device)
            p_yes = last.gather(1, two).softmax(1)[:, 0].tolist()
            for i, probability in zip(chosen, p_yes, strict=True):
                probabilities[i] = probability
        return [
            Judgement(p, p >= 0.5)
            if p == p
            else Judgement(None, None, "the model's logits are not numbers", missing=True)
            for p in probabilities
        ]

    def release(self) -> None:
        """Give back the memory of the model that is loaded."""
        self._models.release()

    def describe(self) -> dict[str, Any]:
        """What `LocalModels.describe` says of the models.

        `accuracy` is what `subvene judge check` measured on this machine.
        """
        described: dict[str, Any] = {"kind": "transformers", **self._models.describe()}
        return described | {"accuracy": {one: known_accuracy(described, one) for one in self.aspects}}


def yes_and_no(tokenizer: Any, prompt: str) -> tuple[list[int], int, int]:
    """Token ids after which ` yes` and ` no` differ, and the token that comes next for each.

    Tokenised together with the prompt, since that is how the judges were fine-tuned: sentencepiece makes
    another token of a space at the beginning, and some tokenizers give the space a token of its own.

    Raises:
        JudgeError: there is no such place.
    """
    yes, no = (quoted_ids(tokenizer, prompt + word, chat=False) for word in (YES, NO))
    shared = next((i for i, (a, b) in enumerate(zip(yes, no, strict=False)) if a != b), 0)
    if shared == 0:
        raise JudgeError(
            f"the tokenizer {type(tokenizer).__name__} makes the same tokens of {YES!r} and {NO!r}: "
            f"this model cannot judge"
        )
    return yes[:shared], yes[shared], no[shared]
