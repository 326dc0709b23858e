"""How a model with declared interventions comes about: from a spec, from an artifact, or without any.

What runs models (`rollouts`, `scoring`, `layer_sweep`) takes this class, above which stands
`model.IntervenedModel`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch

from subvene.runner.artifacts import hub
from subvene.runner.edits.compile import CompileError, check_config, compile_spec
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.files.json_value import Json
from subvene.runner.intervened.calls import Calls
from subvene.runner.models.chat_settings import refuse_overrides, with_chat
from subvene.runner.models.loading import check_given, load_config, load_model, with_overrides
from subvene.specs import InterventionSpec, ModelSpec, load_spec, spec_of
from subvene.specs._nodes import Data


class LoadedModel(Calls):
    """A model with the interventions that its spec declares, however it came about.

    Attributes:
        spec: the spec.
        model: the plain transformers model.
        tokenizer: its tokenizer, or None.
        intervenable: what edits the model while it runs.
        tensors: what a fit or an artifact holds, by full name.
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
