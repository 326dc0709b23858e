"""What an IntervenableModel shows of itself to a training loop: the edits, and never the language model.

Stock pyvene freezes the model that it is given, so that what still requires a gradient there is meant to be
trained. subvene leaves the model as it is, and pyvene's own recipe (an optimizer over
`get_trainable_parameters()`, then `save`) would train the model and save the edit alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NoReturn, Self

import torch

from subvene.interventions._pyvene import pyvene
from subvene.runner.edits.pyvene_calls import PyveneCallError


class EditsOnly(pyvene.IntervenableModel):
    """The part of pyvene's IntervenableModel that is about parameters: those of the edits.

    `state_dict`, `to` and `cuda` are about edits and model together, as everywhere in torch.
    """

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Name (`{key}.{parameter}`, as in pyvene) and value of every parameter of the edits."""
        seen: set[int] = set()
        for key, edit in self.interventions.items():
            for name, parameter in edit.named_parameters(f"{prefix}{'.' if prefix else ''}{key}", recurse):
                if remove_duplicate and id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                yield name, parameter

    def get_trainable_parameters(self) -> list[torch.nn.Parameter]:
        """The edits' parameters that require a gradient, for an optimizer."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def count_parameters(self, include_model: bool = False) -> int:
        """How many numbers of the edits (and of the model, if asked for) require a gradient."""
        own = self.get_trainable_parameters()
        if include_model:
            own += [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return sum(parameter.numel() for parameter in own)

    def train(self, mode: bool = True) -> Self:
        """Set the edits' mode; `m.model.train()` is for the model, whose dropout changes every run."""
        self.training = mode
        self.interventions.train(mode)
        return self

    def eval(self) -> Self:
        """Set the edits' mode to evaluation; the model's stays."""
        return self.train(False)

    def set_temperature(self, temp: torch.Tensor | float) -> None:
        """Set the temperature of every mask (boundless and sigmoid-mask classes).

        Raises:
            PyveneCallError: no intervention has a temperature.
        """
        inner = [getattr(edit, "inner", None) or edit for edit in self.interventions.values()]
        masks = [edit for edit in inner if hasattr(edit, "set_temperature")]
        if not masks:
            raise PyveneCallError("set_temperature: no intervention here has a mask with a temperature")
        for edit in masks:
            with torch.no_grad():
                # In place and in its own precision: an optimizer may hold it, and a stored one is float32.
                edit.temperature.copy_(torch.as_tensor(temp))

    def enable_model_gradients(self) -> NoReturn:
        """Refused: the model's weights are no part of what is saved."""
        raise PyveneCallError(
            "enable_model_gradients: the model's weights are no part of the edits, and no artifact keeps "
            "them; to train them as well, set m.model.requires_grad_(True), give m.model.parameters() to "
            "an optimizer of your own, and save the model yourself"
        )

    def train_alignment(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it hands sources and unit locations to each call."""
        raise PyveneCallError(
            "train_alignment swaps in runs of sources at unit locations, and subvene's interventions declare "
            "both in the spec; train with an optimizer over get_trainable_parameters() and a loss on "
            "m.intervenable(base, prompt_lengths=…)[1], or use stock pyvene.IntervenableModel"
        )

    def eval_alignment(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused, as `train_alignment` is."""
        raise PyveneCallError(
            "eval_alignment swaps in runs of sources at unit locations, and subvene's interventions declare "
            "both in the spec; measure m.intervenable(base, prompt_lengths=…)[1], or use stock "
            "pyvene.IntervenableModel"
        )

    def get_cached_activations(self) -> NoReturn:
        """Refused: stock's cache stays empty here."""
        raise PyveneCallError(
            "get_cached_activations: no source is run, so nothing is cached; what a CollectIntervention read "
            "in the last run is m.intervenable.collected, by key and row"
        )

    def get_cached_hot_activations(self) -> NoReturn:
        """Refused: interventions are not linked here, so that none is hot."""
        raise PyveneCallError("get_cached_hot_activations: no interventions are linked, so nothing is kept")

    @staticmethod
    def load(*args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it would give a stock model, without positions and receipts."""
        raise PyveneCallError(
            "load reads pyvene's own files into a stock model, without positions and receipts: "
            "IntervenedModel.from_pretrained(folder) reloads the artifact; pyvene.IntervenableModel.load("
            "folder, model) is stock's"
        )

    def load_intervention(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: it unpickles the edits' state, and the model's weights with it."""
        raise PyveneCallError(
            "load_intervention unpickles the edits' state and the model's weights; "
            "IntervenedModel.from_pretrained(folder, model=m.model) reloads an artifact"
        )

    def save_intervention(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused: what it writes cannot be read without pickle."""
        raise PyveneCallError(
            "save_intervention pickles the edits' state and the model's weights; m.save_pretrained(folder) "
            "writes the artifact, with pyvene's own files beside it"
        )

    def __str__(self) -> str:
        places = ", ".join(str(self.representations[key].component) for key in self.sorted_keys)
        return f"{type(self).__name__} on {type(self.model).__name__}: {places or 'no intervention'}"
