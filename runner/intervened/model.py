"""What users hold: a model with declared interventions, text in and text out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Self

import torch
import transformers
from huggingface_hub import CommitInfo

from subvene.runner.artifacts import artifact, hub
from subvene.runner.data.text import Messages
from subvene.runner.intervened.layer_sweep import LayerSweep, sweep
from subvene.runner.intervened.loaded import LoadedModel
from subvene.runner.models.devices import input_device


class IntervenedModel(LoadedModel):
    """A language model whose activations are edited as a spec declares.

    Make one with `from_spec` or `from_pretrained`. The model is edited only while one of the methods here
    runs it; in between, and in `disabled()`, it is the model that was loaded.

    Attributes:
        spec: the spec.
        model: the plain transformers model. What calls it directly (a pipeline, a harness, a trainer) runs it
            unedited; `with m.attached() as model:` edits such calls.
        tokenizer: its tokenizer; None if none was given, and then only token ids are accepted.
        intervenable: the pyvene `IntervenableModel`, for pyvene users.
        tensors: what a fit or an artifact holds, by full name; more than the interventions use, perhaps.
        provenance: how the tensors came about; empty if nobody said.
    """

    def __repr__(self) -> str:
        entries = (
            ", ".join(f"{e.name} at {' '.join(e.sites)}" for e in self.intervenable.entries) or "nothing"
        )
        return (
            f"IntervenedModel({self.spec.model.name}: {entries}; edited by generate, generate_ids, calls and "
            f"`with attached()`; .model is the plain {type(self.model).__name__}, never edited by itself)"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the interventions, and what each did in the last run."""
        head = f"<p><b>IntervenedModel</b> {escape(self.spec.model.name)}, {self.device}, {self.dtype}</p>"
        if self.receipt is not None:
            return f"{head}{self.receipt._repr_html_()}"
        return f"{head}<p>{escape(repr(self))}</p>"

    @property
    def config(self) -> transformers.PretrainedConfig:
        """The config of the model."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return input_device(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The model's floating-point type."""
        return self.model.dtype

    def to(self, device: str | int | torch.device) -> Self:
        """Move the model to a device; what edits it follows its activations.

        Returns:
            This model.

        Raises:
            ValueError: a dtype was passed: tensors were fitted, and the artifact is checked, in the one that
                the model was loaded with.
        """
        if isinstance(device, torch.dtype):
            raise ValueError(f"to: expected a device, found {device}; load the model with dtype= instead")
        self.model.to(device)
        return self

    def eval(self) -> Self:
        """Put the model into evaluation mode, in which it was loaded.

        Returns:
            This model.
        """
        self.model.eval()
        return self

    def sweep(
        self,
        prompts: Sequence[str | Messages],
        *,
        layers: Sequence[int],
        coefficients: Sequence[float],
        contrasts: Sequence[tuple[str | Messages, str, str]] = (),
        max_new_tokens: int = 32,
        batch_size: int = 32,
    ) -> LayerSweep[Self]:
        """Answer prompts with the steering vector of each layer at each coefficient, all in shared batches.

            m.sweep(["How are you?"], layers=[12, 16], coefficients=[0, 1, 2], contrasts=[(q, good, bad)])

        Args:
            prompts: users' turns, or conversations; answered with the likeliest tokens.
            layers: 0-based; the model must hold a vector for each, as what a recipe fitted does.
            coefficients: in the intervention's unit; 0 is the untouched model. Positions stay as declared.
            contrasts: (prompt, positive answer, negative answer), by whose log-probabilities `choose()`
                chooses; those that chose are no test of what was chosen.
            max_new_tokens: of each answer.
            batch_size: rows at a time.

        Returns:
            The sweep: cells with answers and preferences, `to_pandas()`, `choose()`, `at(layer, c)`, and a
            heat map in notebooks. A point at which the model is no longer finite says so and has no numbers.

        Raises:
            SubveneError: the model has not just one steering intervention, or no vector at a layer.
        """
        return sweep(
            self,
            prompts,
            layers=layers,
            coefficients=coefficients,
            contrasts=contrasts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )

    def save_pretrained(self, folder: str | os.PathLike[str]) -> Path:
        """Write the artifact: spec, tensors, fingerprint, model card, and pyvene's own files; atomically.

        Returns:
            The folder.
        """
        return artifact.write(
            Path(folder),
            self.spec,
            self.intervenable,
            tensors=self.tensors,
            provenance=self.provenance,
            receipt=self.receipt,
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        branch: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        licence: str | None = None,
        measured: str | None = None,
    ) -> CommitInfo:
        """Push the artifact to a repository of the Hub, as one commit.

        Args:
            repo_id: `user/name`; made if it does not exist.
            private: make it private; an existing public one is then refused.
            branch: the branch to commit to, made if it does not exist; None: `main`.
            commit_message: None: a sentence that says what was pushed.
            token: None: `HF_TOKEN`, or the one that `hf auth login` stored.
            licence: of the artifact, as the Hub names it (`apache-2.0`); None: the card says so.
            measured: tables of what was measured, Markdown, for the card.

        Returns:
            The library's record of the commit: `oid`, `commit_url`.

        Raises:
            HubError: anything that the Hub refused, with what to do.
        """
        with tempfile.TemporaryDirectory(prefix="subvene-push-") as scratch:
            return hub.push(
                self.save_pretrained(Path(scratch, "artifact")),
                repo_id,
                private=private,
                branch=branch,
                commit_message=commit_message,
                token=token,
                licence=licence,
                measured=measured,
            )
