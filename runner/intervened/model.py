"""What users hold: a model with declared interventions, text in and text out."""

from __future__ import annotations

import importlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import transformers
from huggingface_hub import CommitInfo

from subvene.runner.artifacts import artifact, hub
from subvene.runner.edits.compile import CompileError, check_config, compile_spec
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.files.json_value import Json
from subvene.runner.intervened.calls import Calls
from subvene.runner.models.chat_settings import refuse_overrides, with_chat
from subvene.runner.models.devices import input_device
from subvene.runner.models.loading import check_given, load_config, load_model, with_overrides
from subvene.specs import InterventionSpec, ModelSpec, load_spec, spec_of
from subvene.specs._nodes import Data

if TYPE_CHECKING:
    from subvene.runner.data.text import Messages


class IntervenedModel(Calls):
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

    def __init__(
        self,
        spec: InterventionSpec,
        model: torch.nn.Module,
        tokenizer: Any = None,
        *,
        intervenable: IntervenableModel,
        tensors: Mapping[str, torch.Tensor] | None = None,
        provenance: Mapping[str, Json] | None = None,
    ) -> None:
        self.spec = spec
        self.model: Any = model
        self.tokenizer = tokenizer
        self.intervenable = intervenable
        self.intervenable.tokenizer = tokenizer
        self.tensors = dict(tensors or {})
        self.provenance: dict[str, Json] = dict(provenance or {})
        self._is_plain = False

    @classmethod
    def from_spec(
        cls,
        spec: InterventionSpec | Mapping[str, Data] | str | os.PathLike[str],
        *,
        model: torch.nn.Module | None = None,
        tokenizer: Any = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        provenance: Mapping[str, Json] | None = None,
        folder: str | os.PathLike[str] | None = None,
        **overrides: Any,
    ) -> Self:
        """Load the model that a spec names and compile the interventions onto it.

        Args:
            spec: a spec, its fields as a mapping, or the path of a YAML or JSON file.
            model: an already loaded model to use instead of the one the spec names.
            tokenizer: its tokenizer.
            tensors: tensors for references without a file, by full name (`cheerful.block_output[14]`).
            provenance: how those came about, to be kept in an artifact.
            folder: where relative tensor files are; default: the folder of the spec's file, or the current
                one.
            **overrides: fields of the spec's `model:` to replace (`dtype="bfloat16"`, `device="cuda"`); of a
                model that is already loaded only those about conversations (`chat_template_kwargs`,
                `system="fold"`, `reasoning="keep"`).

        Raises:
            SpecError: the file is not a valid spec; nothing has been loaded.
            CompileError: the spec does not fit the model's config, or declares no interventions; no weights
                have been loaded.
        """
        if isinstance(spec, Mapping):
            spec = spec_of(spec, own_tensors=tensors is not None)
        elif not isinstance(spec, InterventionSpec):
            folder = Path(folder) if folder is not None else Path(spec).parent
            spec = load_spec(Path(spec))
        if not spec.interventions:
            raise CompileError(
                "the spec declares no interventions: it measures the model as it is (`subvene run`)"
            )
        if model is None:
            spec = with_overrides(spec, overrides)
            check_config(spec, load_config(spec.model, **overrides))
            model, tokenizer = load_model(spec.model, **overrides)
        else:
            refuse_overrides(overrides)
            spec = with_overrides(spec, overrides)
            check_given(model, tokenizer, spec.model.name)
        tokenizer = with_chat(tokenizer, spec.model)
        folder = None if folder is None else Path(folder)
        intervenable = compile_spec(spec, model, folder=folder, own_tensors=tensors)
        return cls(spec, model, tokenizer, intervenable=intervenable, tensors=tensors, provenance=provenance)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        model: torch.nn.Module | None = None,
        tokenizer: Any = None,
        **overrides: Any,
    ) -> Self:
        """Reload an artifact that `save_pretrained` wrote, or that `push_to_hub` put on the Hub.

        Nothing in the artifact is executed: the spec is plain YAML, the tensors are safetensors, and no class
        path or pickle is read. The artifact's files are checked against their hashes, and the model against
        the artifact's fingerprint, before the model is touched.

        Args:
            source: the artifact's folder or, where there is no such folder, its repository on the Hub,
                `user/name`: read from the Hub's cache, downloaded where it is not there and HF_HUB_OFFLINE
                allows it.
            revision: branch, tag or commit of that repository.
            token: for a private repository; None: `HF_TOKEN`, or the one that `hf auth login` stored.
            model: an already loaded model to use instead of the one the artifact names.
            tokenizer: its tokenizer.
            **overrides: fields of the model reference to replace.

        Raises:
            ArtifactError: a file is missing, truncated or altered, or the model is another one.
            HubError: the repository cannot be read, or holds no artifact.
        """
        loaded = hub.open_artifact(source, revision=revision, token=token)
        spec = with_overrides(loaded.spec, overrides)
        if model is None:
            loaded.check_config(load_config(spec.model, **overrides))
            model, tokenizer = load_model(spec.model, **overrides)
        else:
            refuse_overrides(overrides)
            check_given(model, tokenizer, spec.model.name)
        tokenizer = with_chat(tokenizer, spec.model)
        loaded.check_model(model)
        intervenable = compile_spec(spec, model, own_tensors=loaded.tensors)
        return cls(
            spec,
            model,
            tokenizer,
            intervenable=intervenable,
            tensors=loaded.tensors,
            provenance=loaded.provenance,
        )

    @classmethod
    def plain(cls, model: torch.nn.Module, tokenizer: Any = None, *, name: str = "plain") -> Self:
        """A model without interventions, to be measured beside edited ones: it is always disabled.

        Args:
            model: a transformers model, such as a baked checkpoint.
            tokenizer: its tokenizer.
            name: what its spec calls it; `plain` if its weights are as they were loaded, else what they were
                made into (`baked`, `lora`).

        Raises:
            ModelError: the tokenizer writes ids that the model has no row for, or its generation_config holds
                what is no such setting.
        """
        check_given(model, tokenizer, name)
        # Not a spec that a file could hold: it declares no intervention.
        spec = InterventionSpec.model_construct(subvene=1, model=ModelSpec(name=name), interventions=())
        plain = cls(spec, model, tokenizer, intervenable=IntervenableModel([], model, ()))
        plain._is_plain = True
        return plain

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
    ) -> Any:
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
        # By name: a sweep is made of models, rollouts and scores, which stand above this file.
        made = importlib.import_module("subvene.runner.intervened.layer_sweep").sweep(
            self,
            prompts,
            layers=layers,
            coefficients=coefficients,
            contrasts=contrasts,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
        )
        return made

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
