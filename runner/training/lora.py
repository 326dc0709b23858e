"""LoRA on the output projections of all layers, as a reference for edits that are restricted to heads.

The same data, objective, optimizer and loop as a localized edit, and the same starting point; what differs is
that the writers may be any vectors of the residual stream. It is peft's own LoRA, and needs peft.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from subvene.runner.data.examples import Example
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.training.experiments import Experiment, Trained, TrainingError
from subvene.runner.training.multiplex import SITE
from subvene.runner.training.trainer import train_edits


class LoraEdits:
    """One experiment's LoRA, as the training loop sees it; the adapter is off outside `acting`.

    Args:
        model: the model with the adapter in it.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        # Parameters that the loop trains, whatever is frozen around it; peft would freeze those of an
        # adapter that is off, and with them their gradients.
        self._parameters = {n.replace(".", "/"): p for n, p in model.named_parameters() if "lora_" in n}
        self.switch(on=False)

    def switch(self, *, on: bool) -> None:
        """Turn the adapter on or off, without touching what is trainable."""
        for layer in self._layers:
            layer._disable_adapters = not on

    def parameters_of(self, experiment: int) -> dict[str, torch.nn.Parameter]:
        """A and B of every layer."""
        return self._parameters

    def first_layer(self, experiment: int) -> int:
        """It acts from the first block on."""
        return 0

    def factors_of(self, experiment: int, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The values as they are, under the parameters' own names."""
        return {name.replace("/", "."): value.detach().cpu().clone() for name, value in values.items()}

    @contextlib.contextmanager
    def acting(self, experiments: Sequence[int], prompts: Sequence[int] = ()) -> Iterator[None]:
        """Within the block, the adapter is on, for every row."""
        self.switch(on=True)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            self.switch(on=False)


def check_peft() -> None:
    """Check that peft is there.

    Raises:
        TrainingError: it is not.
    """
    if importlib.util.find_spec("peft") is None:
        raise TrainingError("a LoRA needs the package peft: pip install 'subvene[train]'")


@contextlib.contextmanager
def trained_lora(
    anatomy: Anatomy,
    examples: Sequence[Example],
    experiment: Experiment,
    *,
    pad_id: int,
    folder: Path | None = None,
) -> Iterator[Trained]:
    """Train a LoRA of the experiment's rank; within the block, the model has it, and afterwards it is gone.

    Args:
        anatomy: of the model.
        examples: what the experiment's indices mean.
        experiment: as for an edit; the heads of its shape are not looked at.
        pad_id: any token id.
        folder: as for `train_edits`.

    Yields:
        What came out; `factors` holds peft's own parameters by name.

    Raises:
        TrainingError: peft is not installed, or as `train_edits` does.
    """
    check_peft()
    import peft

    if experiment.shape.gate == "constant":
        raise TrainingError(f"{experiment.name}: a LoRA has no constant gate; use `gate: adaptive`")
    model: Any = anatomy.model
    targets = [_path(anatomy, layer) for layer in range(anatomy.sizes.n_layers)]
    rank = experiment.shape.rank
    config = peft.LoraConfig(
        r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=targets
    )  # α = r: the update is B·A itself, as an edit's is
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=[] if input_device(model).type == "cpu" else None):
        torch.manual_seed(experiment.shape.seed)
        adapted = peft.get_peft_model(model, config)
    edits = LoraEdits(model)
    try:
        for parameter in edits.parameters_of(0).values():
            parameter.data = parameter.data.float()
        (trained,) = train_edits(
            anatomy, examples, [experiment], pad_id=pad_id, folder=folder, edits=edits, description="LoRA"
        )
        with torch.no_grad():
            own = dict(model.named_parameters())
            for name, value in trained.factors.items():
                own[name].copy_(value)
        edits.switch(on=True)
        yield trained
    finally:
        adapted.unload()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])


def _path(anatomy: Anatomy, layer: int) -> str:
    """The dotted path of a layer's output projection."""
    return anatomy.component(SITE, layer).removesuffix(".input").replace("[", ".").replace("]", "")
