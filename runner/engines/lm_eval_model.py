"""A model of lm-evaluation-harness: `model="subvene", model_args={"artifact": FOLDER_OR_REPO}`.

Importing this registers it with the harness, which has no other door for models that are not its own; so
`subvene lm-eval …` is `lm-eval …` with it. Every kind of edit and every rule for positions acts as anywhere
else: a context is the prompt, and what is scored or generated after it the response.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from subvene.runner.edits.receipt import Receipt
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.scoring import scores
from subvene.specs import SubveneError

_Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""What the harness's cache knows it by, tokens of the context, tokens of what is scored."""
_ABOUT_TEXTS = frozenset(
    {
        *("max_length", "max_batch_size", "add_bos_token", "prefix_token_id", "truncation"),
        *("think_end_token", "enable_thinking", "chat_template_args"),
    }
)
"""Options of the harness's `hf` model that are carried out; others are about loading, or numbers' types."""


@register_model("subvene")
class HarnessModel(HFLM):
    """An artifact as a model of the harness.

    Args:
        artifact: its folder, or its repository on the Hub; or, in Python, a model with its edits.
        strength: one number in place of the declared strength; 0 is the untouched model.
        batch_size: texts at a time.
        device: as of a spec's `model:`; None: the best there is.
        dtype: as of a spec's `model:`; None: the declared one.
        **options: of the harness's own `hf` model, those about texts (`max_length`, `add_bos_token`, …).

    Attributes:
        receipts: what the edits did, a batch each.

    Raises:
        SubveneError: the artifact cannot be read or is of another model, or an option is none of these.
    """

    def __init__(
        self,
        artifact: str | IntervenedModel,
        strength: float | None = None,
        batch_size: int | str = 1,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        if not str(batch_size).isdigit() or int(batch_size) < 1:
            raise SubveneError(f"batch_size: expected a number, found {batch_size!r}")
        options = {name: value for name, value in options.items() if value is not None}
        if other := sorted(options.keys() - _ABOUT_TEXTS):
            raise SubveneError(
                f"model_args: {', '.join(other)}: expected artifact, strength, device, dtype, or one of "
                f"{', '.join(sorted(_ABOUT_TEXTS))}"
            )
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # the harness's word for "none was named"; its `hf` takes the CPU then, too
        if isinstance(artifact, IntervenedModel):
            self.m, artifact = artifact, artifact.spec.model.name
        else:
            self.m = IntervenedModel.from_pretrained(artifact, device=device, dtype=dtype)
        self.receipts: list[Receipt] = []
        self.strength = None if strength is None else float(strength)
        self._check_strength()
        super().__init__(
            self.m.model, tokenizer=self.m.tokenizer, batch_size=int(batch_size), backend="causal", **options
        )
        if "max_length" not in options:
            # The harness leaves the last token of what it scores out of its pass; here it is passed too.
            self._max_length = self.max_length - 1
        # What the harness looks up for its record.
        self.artifact, self.pretrained = artifact, self.m.spec.model.name
        self.revision = self.m.spec.model.revision or "main"

    def get_model_info(self) -> dict[str, Any]:
        """What the harness keeps beside the numbers: of its model, and which edits were at work."""
        edits = [f"{one.name} at {' '.join(one.sites)}" for one in self.m.intervenable.entries]
        info: dict[str, Any] = super().get_model_info()
        return info | {"artifact": self.artifact, "interventions": edits, "strength": self.strength}

    def _check_strength(self) -> None:
        names = [entry.name for entry in self.m.intervenable.entries]
        if self.strength and len(names) > 1:
            raise SubveneError(
                f"strength: one number for one intervention, and the artifact has {', '.join(names)}; leave "
                "it out, or save it with other strengths"
            )

    def _acting(self) -> AbstractContextManager[object]:
        """Within it the edits act, or none do where the strength is 0."""
        return self.m.disabled() if self.strength == 0 else nullcontext()

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Σ log p of each continuation, and whether it is what greedy decoding gives.

        As the harness has it, a text that is too long loses its beginning.
        """
        if not requests:
            return []
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        strengths = None
        if self.strength:
            strengths = {e.name: [self.strength] * len(pairs) for e in self.m.intervenable.entries}
        with self._acting():
            found = scores(
                self.m,
                pairs,
                strengths=strengths,
                batch_size=override_bs or int(self.batch_size),
                description="loglikelihood",
                likeliest=True,
            )
        self.receipts += found.receipts
        likeliest = [] if found.likeliest is None else found.likeliest.tolist()
        answers = list(zip(found.totals.tolist(), likeliest, strict=True))
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise SubveneError(
                f"a text to score has {len(continuation)} tokens, more than the model reads "
                f"({self.max_length})"
            )
        return context[-room:], continuation

    def _model_generate(
        self, context: torch.Tensor, max_length: int, stop: list[str], **generation_kwargs: Any
    ) -> torch.Tensor:
        """The harness's own generation, with the edits."""
        with self._acting(), self.m.attached(strengths=self.strength or None):
            generated: torch.Tensor = super()._model_generate(context, max_length, stop, **generation_kwargs)
        if self.strength != 0 and not self.m.is_disabled and self.m.receipt is not None:
            self.receipts.append(self.m.receipt)
        return generated

    def _model_call(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Refused: the harness asks for logits here, and does not say where the prompts end."""
        raise SubveneError("this task needs logits of the harness's own passes, which say nothing of prompts")
