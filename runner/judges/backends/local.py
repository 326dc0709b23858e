"""A local causal language model: the probability of ` yes` against ` no`, or of every number.

The open Llama-2 truth and info judges were fine-tuned on the published form, and work as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from subvene.runner.data.text import quoted_ids, reply_ids
from subvene.runner.files.json_value import Json
from subvene.runner.judges.base import Answer, AnyQuality, Aspect, Identity, Judge, JudgeError, Quality
from subvene.runner.judges.local.models import LocalModels, last_logits
from subvene.runner.judges.local.numerals import Numerals, follow_digits
from subvene.runner.judges.scales import yes_no
from subvene.runner.judges.scales.numbers import Distribution, whole_numbers
from subvene.runner.judges.scales.yes_no import ASPECTS, BOTH, NO, YES, Judgement, completion_prompt
from subvene.runner.judges.scales.zero_to_hundred import COHERENCE, Score, as_completion, filled
from subvene.runner.judges.training.measured import known_accuracy

if TYPE_CHECKING:
    from subvene.specs.judges import TransformersJudgeSpec

_PROBE = Answer("What is the capital of France?", "Paris.")


class LocalJudge(Judge):
    """One model at a time is in memory: both are one if they are declared alike.

    On the scale from 0 to 100 a model with a chat template is asked in it; any other continues the text
    with a number.

    Args:
        spec: the models and how many answers go through them at a time.
        folder: unused; a model's local folder is relative to the working directory, as everywhere.
        cache: unused; nothing that is asked costs anything.
    """

    kind: ClassVar[str] = "transformers"

    def __init__(self, spec: TransformersJudgeSpec, folder: Path, *, cache: Path | None = None) -> None:
        self._spec = spec
        self._models = LocalModels(spec)

    def check(self, qualities: Sequence[AnyQuality]) -> None:
        """Read the configs and the tokenizers, which are small; the weights are left for later.

        Raises:
            JudgeError: no such model, or its tokenizer does not tell ` yes` from ` no`, or cannot spell
                numbers.
        """
        scales = {quality.scale for quality in qualities}
        for aspect, (_, tokenizer) in zip(ASPECTS, self._models.tokenizers(), strict=True):
            if yes_no.SCALE in scales:
                yes_and_no(tokenizer, completion_prompt(_PROBE, aspect))
            if COHERENCE.scale in scales:
                Numerals(tokenizer)

    @torch.no_grad()
    def yes_no(self, answers: Sequence[Answer], aspect: Aspect) -> list[Judgement]:
        """One judgement for each answer, in order; answers of like length share a forward pass."""
        model, tokenizer = self._models.load(ASPECTS[aspect].model)
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

    def zero_to_hundred(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Score]:
        """The expected number. `refused`: REFUSAL is a likelier beginning than all numbers together."""
        # A response cannot refuse to be coherent.
        refused = False if quality == COHERENCE else None
        return [one.score(refused=refused) for one in self.distributions(answers, quality)]

    @torch.no_grad()
    def distributions(self, answers: Sequence[Answer], quality: Quality[Score]) -> list[Distribution]:
        """The probability of every number, for each answer."""
        if not answers:
            return []
        model, tokenizer = self._models.load(quality.model)
        chat = getattr(tokenizer, "chat_template", None) is not None
        # A response that comes twice is judged once.
        asked = {text: i for i, text in enumerate(dict.fromkeys(filled(quality, one) for one in answers))}
        rows = []
        for text in asked:
            ids = quoted_ids(tokenizer, text if chat else as_completion(text), chat=chat)
            # The number is read right here, outside of any block of reasoning that the template opens.
            rows.append(reply_ids(tokenizer, ids, "")[0])
        numerals = Numerals(tokenizer)
        read = self._whole if numerals.whole else self._split
        found = read(model, tokenizer, numerals, rows, f"judging {quality.name}")
        return [found[asked[filled(quality, one)]] for one in answers]

    def _whole(
        self, model: Any, tokenizer: Any, numerals: Numerals, rows: list[list[int]], description: str
    ) -> list[Distribution]:
        found: dict[int, Distribution] = {}
        said = last_logits(model, tokenizer, rows, batch_size=self._spec.batch_size, description=description)
        for chosen, logits in said:
            for i, top in zip(chosen, numerals.read(logits), strict=True):
                found[i] = whole_numbers(top)
        return [found[i] for i in range(len(rows))]

    def _split(
        self, model: Any, tokenizer: Any, numerals: Numerals, rows: list[list[int]], description: str
    ) -> list[Distribution]:
        size = self._spec.batch_size
        return follow_digits(model, tokenizer, numerals, rows, batch_size=size, description=description)

    def release(self) -> None:
        """Give back the memory of the model that is loaded."""
        self._models.release()

    def identity(self, qualities: Sequence[AnyQuality]) -> Identity:
        """What `LocalModels.describe` says of the models; a digest of what they are asked for numbers."""
        found: Identity = {"kind": self.kind, **self._models.describe()}
        if any(quality.scale == yes_no.SCALE for quality in qualities):
            return found
        words = hashlib.sha256((COHERENCE.prompt + as_completion("")).encode()).hexdigest()[:16]
        return {**found, "words": words}

    def accuracies(self) -> dict[str, Json]:
        """What `subvene judge check` measured on this machine."""
        return {aspect: known_accuracy(self.identity(BOTH), aspect) for aspect in ASPECTS}


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
