"""Local language models as judges: loaded when they are asked, one in memory at a time."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypedDict, cast

import torch

from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.text import by_length, pad, pad_id_of
from subvene.runner.files.progress import track
from subvene.runner.judges.base import JudgeError, ModelField, NamedModel
from subvene.runner.models.devices import input_device
from subvene.runner.models.identity import checkpoint_sha256
from subvene.runner.models.loading import ModelError, load_config, load_model, load_tokenizer, resolve
from subvene.specs import SubveneError

if TYPE_CHECKING:
    from subvene.specs import ModelSpec
    from subvene.specs.judges import TransformersJudgeSpec

FIELDS: tuple[ModelField, ...] = ("truth_model", "info_model")


class LocalIdentity(TypedDict):
    """What is said of the two models."""

    truth_model: NamedModel
    info_model: NamedModel


class LocalModels:
    """The two models of a judge; one if they are declared alike.

    Args:
        spec: names them.
    """

    def __init__(self, spec: TransformersJudgeSpec) -> None:
        self._spec = spec
        self._loaded: tuple[ModelSpec, Any, Any] | None = None
        self._digests: dict[str, str] = {}

    def tokenizers(self) -> Iterator[tuple[str, Any]]:
        """Each field with its tokenizer, after a look at the config: both are small.

        Raises:
            JudgeError: no such model.
        """
        for field in FIELDS:
            model = getattr(self._spec, field)
            try:
                load_config(model)
                yield field, load_tokenizer(model)
            except ModelError as error:
                raise JudgeError(f"{field} of the judge: {error}") from error

    def load(self, field: str) -> tuple[Any, Any]:
        """A model and its tokenizer; what was loaded before is given back first.

        Raises:
            JudgeError: it cannot be loaded.
        """
        spec: ModelSpec = getattr(self._spec, field)
        if self._loaded is None or self._loaded[0] != spec:
            self.release()
            try:
                self._loaded = (spec, *load_model(spec))
            except ModelError as error:
                raise JudgeError(f"{field} of the judge: {error}") from error
        return self._loaded[1:]

    def release(self) -> None:
        """Give back the memory of the model that is loaded."""
        self._loaded = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def describe(self) -> LocalIdentity:
        """The models as they are declared, without where they are put, and a digest of what answers.

        Their weights are read as files, once, and not loaded.

        Raises:
            JudgeError: no such model.
        """
        return {"truth_model": self._described("truth_model"), "info_model": self._described("info_model")}

    def _described(self, field: ModelField) -> NamedModel:
        declared: ModelSpec = getattr(self._spec, field)
        shown = declared.model_dump(exclude_none=True, exclude={"device", "device_map"})
        return cast(NamedModel, shown | {"sha256": self._sha256(field)})

    def _sha256(self, field: str) -> str:
        model: ModelSpec = getattr(self._spec, field)
        declared = model.model_dump_json()
        if declared not in self._digests:
            try:
                found = checkpoint_sha256(resolve(model), load_config(model), load_tokenizer(model))
            except SubveneError as error:
                raise JudgeError(f"{field} of the judge: {error}") from error
            self._digests[declared] = found
        return self._digests[declared]


@torch.no_grad()
def last_logits(
    model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], *, batch_size: int, description: str
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """What a model says after each row of token ids: indices of rows, and their logits [rows, vocabulary]."""
    takes = inspect.signature(model.forward).parameters
    refuse_beyond_context(model, [len(ids) for ids in rows], "what the judge is asked, row")
    for chosen in track(by_length([len(ids) for ids in rows], batch_size), description):
        prompts = [rows[i] for i in chosen]
        # Padded on the left, so that the last slot is every row's last token.
        batch = pad(prompts, [len(ids) for ids in prompts], pad_id_of(tokenizer), "left").to(
            input_device(model)
        )
        options: dict[str, object] = {"use_cache": False, "logits_to_keep": 1}
        # Given, because transformers counts slots, not tokens, where nobody says otherwise.
        options["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        options = {name: value for name, value in options.items() if name in takes}
        output = model(batch.input_ids, attention_mask=batch.attention_mask, **options)
        yield chosen, output.logits[:, -1]
