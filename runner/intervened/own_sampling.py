"""A checkpoint's own sampling: what its `generation_config.json` says of how a token is drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from subvene.runner.intervened.measured import measured_options
from subvene.runner.models.loading import ModelError

# In transformers' own order, which matters: each sees what those before it have left.
_PENALTIES: Mapping[str, Callable[[Any], LogitsProcessor]] = {
    "repetition_penalty": lambda value: RepetitionPenaltyLogitsProcessor(float(value)),
}
_WARPERS: Mapping[str, Callable[[Any], LogitsProcessor]] = {
    "temperature": lambda value: TemperatureLogitsWarper(float(value)),
    "top_k": lambda value: TopKLogitsWarper(int(value)),
    "top_p": lambda value: TopPLogitsWarper(float(value)),
    "min_p": lambda value: MinPLogitsWarper(float(value)),
    "typical_p": lambda value: TypicalLogitsWarper(mass=float(value)),
    "epsilon_cutoff": lambda value: EpsilonLogitsWarper(epsilon=float(value)),
    "eta_cutoff": lambda value: EtaLogitsWarper(epsilon=float(value)),
}
_TOP_K = 50


@dataclass(frozen=True)
class OwnSampling:
    """How a checkpoint draws a token.

    Attributes:
        draws: whether it draws, or takes the likeliest token.
        settings: its settings by name, those that change nothing left out.
        processors: transformers' own, which apply them.
    """

    draws: bool
    settings: dict[str, float]
    processors: LogitsProcessorList

    @classmethod
    def of(cls, model: Any) -> OwnSampling:
        """What the model's generation config says.

        Raises:
            ModelError: it asks for something that is not done row by row, such as beams.
        """
        # What `measured_options` undoes is all that is not as it would be without any setting.
        own = {name: getattr(model.generation_config, name) for name in measured_options(model)}
        own = {name: value for name, value in own.items() if value is not None}
        draws = bool(own.pop("do_sample", False))
        # transformers' own default where nobody says otherwise; 0 switches it off.
        own["top_k"] = _TOP_K if model.generation_config.top_k is None else model.generation_config.top_k
        if own["top_k"] == 0:
            del own["top_k"]
        known = {**_PENALTIES, **(_WARPERS if draws else {})}
        # Of a checkpoint that does not draw, transformers leaves these out too.
        kept = {name: value for name, value in own.items() if draws or name not in _WARPERS}
        if strange := sorted(kept.keys() - known.keys()):
            raise ModelError(
                f"sampling: model: the checkpoint's generation_config.json sets {', '.join(strange)}, which "
                f"responses that are measured do not take; those that they take: {', '.join(_PENALTIES)}, "
                f"{', '.join(_WARPERS)}. Write `temperature` and `top_p` in place of `model`"
            )
        order = [name for name in known if name in kept]
        processors = LogitsProcessorList([known[name](kept[name]) for name in order])
        return cls(draws, {name: kept[name] for name in order}, processors)

    def described(self) -> dict[str, float | bool]:
        """What responses depend on, JSON values."""
        return {"do_sample": self.draws, **self.settings}

    def scores(self, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """The logits [vocabulary] of a row's next token as the settings leave them, -inf where none is drawn.

        Args:
            ids: of the row so far, prompt and response, without padding.
            logits: of the model, [vocabulary].
        """
        row = torch.tensor([ids], device=logits.device)
        # transformers declares the classes of an older torch (LongTensor, FloatTensor).
        scores: torch.Tensor = self.processors(cast(Any, row), cast(Any, logits.unsqueeze(0).float()))[0]
        return scores
