"""Arms: the model that one condition means for one seed and fold, fitted, compiled or baked when needed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import safetensors.torch
import torch
from pydantic import JsonValue
from transformers import AutoModelForCausalLM

from subvene.interventions import TensorError
from subvene.runner.artifacts.saes import Saes
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.edits.compile import load_tensors
from subvene.runner.engines.engine import Engine
from subvene.runner.exchange.exports.checkpoint import save_baked
from subvene.runner.files.json_value import Json, as_read
from subvene.runner.files.ledger import Ledger, digest
from subvene.runner.files.storage import atomic_folder
from subvene.runner.intervened.elsewhere import RunElsewhere
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import placed_as
from subvene.runner.models.identity import holds, model_sha256, reading_sha256, tensors_digest, versions
from subvene.runner.models.pretrained import load_weights
from subvene.runner.recipes import RECIPES, Fitted
from subvene.runner.recipes.fitting import fit_one, fitted_on, provenance_of_all
from subvene.specs import ExperimentSpec
from subvene.specs.recipes import BaseRecipe
from subvene.specs.regular_file import read_bytes

# How a result is computed; whoever changes that changes this number, and old units are done again.
UNITS = 2
_TENSORS, _PROVENANCE = "tensors.safetensors", "provenance.json"


class Stored(TypedDict):
    """What a fit's unit gives: where its tensors are, their digest, and where they come from."""

    folder: str
    tensors: str
    provenance: dict[str, JsonValue]


Tuning = Mapping[str, Sequence[Question]]
"""The first key of a recipe that learns from questions → those that it may see."""


@dataclass(frozen=True)
class Fits:
    """What the recipes of an arm gave, one record of the ledger each.

    Attributes:
        folders: where each has its tensors.
        digests: of the tensors of each.
        provenances: of each.
    """

    folders: tuple[str, ...]
    digests: tuple[str, ...]
    provenances: tuple[dict[str, JsonValue], ...]

    @property
    def identity(self) -> str | list[str]:
        """What results depend on: the digest of the one fit, or those of several."""
        return self.digests[0] if len(self.digests) == 1 else list(self.digests)

    @property
    def provenance(self) -> dict[str, JsonValue]:
        """Where the tensors come from: that of the one fit, or `fits` with those of several."""
        return as_read(provenance_of_all(self.provenances))


@dataclass(frozen=True)
class Arm:
    """One condition for one seed and fold.

    Attributes:
        variant: what is declared for it; None for the untouched model.
        bake: whether the checkpoint that it is baked into is meant.
        identity: what its results depend on, JSON values.
        fitted: what its fits gave; None without any.
        open: gives the model, for as long as its block lasts.
        swept: whether it is a point of a sweep, which goes on where one of its points is no longer finite.
        system: the system prompt before everything that the model is given; None without one.
    """

    variant: ExperimentSpec | None
    bake: bool
    identity: dict[str, Json]
    fitted: Fits | None
    open: Callable[[], contextlib.AbstractContextManager[IntervenedModel]]
    swept: bool = False
    system: str | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[Arm]:
        """The arm whose checkpoint, if it is one, is written and read once for all that opens it within."""
        with contextlib.ExitStack() as stack:
            opened: list[IntervenedModel] = []

            @contextlib.contextmanager
            def once() -> Iterator[IntervenedModel]:
                if not opened:
                    opened.append(stack.enter_context(self.open()))
                yield opened[0]

            yield replace(self, open=once) if self.bake else self


class Arms:
    """Makes arms on one loaded model; a fit is a unit of work, done once for all that share it.

    Args:
        model: the loaded model.
        tokenizer: its tokenizer.
        ledger: where fits are recorded.
        output: the run's folder.
        folder: where relative files of the spec are looked for.
        saes: those that its variants name.

    Attributes:
        work: where activations, probes and checkpoints are kept by content.
        engine: runs the model for fits; None: this process does.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Any,
        ledger: Ledger,
        output: Path,
        folder: Path,
        saes: Saes,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._ledger, self._output, self._folder, self._saes = ledger, output, folder, saes
        self.work = output / "work"
        self.engine: Engine | None = None
        self._read: dict[str, object] = {}
        reading = reading_sha256(model, tokenizer)
        self.base: dict[str, Json] = {
            "model": model_sha256(model),
            "text": reading,
            "versions": versions(),
            "units": UNITS,
        }

    def make(
        self,
        variant: ExperimentSpec | None,
        seed: int,
        tuning: Tuning | None,
        *,
        bake: bool,
        system: str | None = None,
    ) -> Arm:
        """The arm that a variant declares, its fit done.

        Args:
            variant: an experiment without conditions, or None for the untouched model.
            seed: seed of the fit.
            tuning: the questions that its fits may see.
            bake: measure the checkpoint that its interventions are baked into.
            system: the system prompt of the condition.
        """
        prompted = {} if system is None else {"system": system}
        if variant is None:
            return Arm(None, False, self.base | prompted, None, self._untouched, system=system)
        fitted = self._fitted(variant, seed, tuning or {})
        declared = [i.model_dump(mode="json", exclude={"name"}) for i in variant.interventions]
        identity = (
            self.base
            | {
                "interventions": declared,
                "tensors": None if fitted is None else fitted.identity,
                "files": self._files(variant),
                "baked": bake,
            }
            | prompted
        )

        @contextlib.contextmanager
        def opened() -> Iterator[IntervenedModel]:
            m = self.compiled(variant, fitted)
            if not bake:
                yield m
                return
            with self._baked(m) as baked:
                yield baked

        return Arm(variant, bake, identity, fitted, opened, system=system)

    def compiled(self, variant: ExperimentSpec, fitted: Fits | None) -> IntervenedModel:
        """The variant's interventions on the shared model."""
        tensors = None if fitted is None else self.tensors(fitted)
        return self.compiled_with(variant, tensors, None if fitted is None else fitted.provenance)

    def compiled_with(
        self,
        variant: ExperimentSpec,
        tensors: Mapping[str, torch.Tensor] | None,
        provenance: Mapping[str, Json] | None = None,
    ) -> IntervenedModel:
        """The variant's interventions with given tensors, on the shared model."""
        resolved = self._saes.resolved(variant)
        resolved.check(self.model)
        if resolved.tensors:
            tensors = {**(tensors or {}), **resolved.tensors}
        return IntervenedModel.from_spec(
            resolved.spec,
            model=self.model,
            tokenizer=self.tokenizer,
            tensors=tensors,
            provenance=provenance,
            folder=self._folder,
        )

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[IntervenedModel]:
        yield IntervenedModel.plain(self.model, self.tokenizer)

    @contextlib.contextmanager
    def _baked(self, m: IntervenedModel) -> Iterator[IntervenedModel]:
        # What is measured is what a user would load: the checkpoint, read back by transformers.
        with tempfile.TemporaryDirectory(dir=self._output, prefix=".baked-") as temporary:
            saved = save_baked(m, Path(temporary) / "checkpoint")
            load = partial(load_weights, AutoModelForCausalLM, str(saved), dtype=m.model.dtype)
            yield IntervenedModel.plain(placed_as(m.model, load).eval(), self.tokenizer, name="baked")

    def tensors(self, fitted: Fits) -> dict[str, torch.Tensor]:
        """All tensors that fits gave, by full name."""
        found: dict[str, torch.Tensor] = {}
        for folder in fitted.folders:
            found |= load_tensors(self._output / "fits" / folder / _TENSORS)
        return found

    def fitted_for(self, spec: ExperimentSpec, keys: Sequence[str], seed: int, tuning: Tuning) -> Fits | None:
        """What the fits give that some keys need, each done now or before; None where none is needed."""
        records: list[Stored] = []
        tensors: dict[str, torch.Tensor] = {}
        for recipe in spec.fits_for(keys):
            data = fitted_on(spec, recipe, lambda one: self._data(one, tuning), tensors)
            identity = self.fit_identity(recipe, seed, data)

            def work(recipe: BaseRecipe = recipe, data: Any = data, identity: Any = identity) -> Stored:
                fitted = fit_one(
                    spec,
                    recipe,
                    data,
                    self.model,
                    self.tokenizer,
                    seed=seed,
                    work=self.work,
                    anatomy=self._elsewhere(),
                )
                return self._stored(identity, fitted.tensors, {"model": spec.model.name, **fitted.provenance})

            records.append(self._kept(identity, work))
            if len(spec.fits) > 1:
                tensors |= load_tensors(self._output / "fits" / records[-1]["folder"] / _TENSORS)
        if not records:
            return None
        return Fits(
            tuple(record["folder"] for record in records),
            tuple(record["tensors"] for record in records),
            tuple(record["provenance"] for record in records),
        )

    def _fitted(self, variant: ExperimentSpec, seed: int, tuning: Tuning) -> Fits | None:
        return self.fitted_for(variant, variant.fitted_keys, seed, tuning)

    def _elsewhere(self) -> Anatomy | None:
        if self.engine is None:
            return None
        return RunElsewhere.by(Anatomy.of(self.model), self.engine.activations, self.engine.rollouts)

    def _data(self, recipe: BaseRecipe, tuning: Tuning) -> Any:
        if recipe.learns_from is not None:
            return tuning.get(recipe.keys[0], ())
        name = recipe.model_dump_json()
        if name not in self._read:
            self._read[name] = RECIPES[recipe.recipe].read(recipe, self._folder)
        return self._read[name]

    def fit_identity(self, recipe: BaseRecipe, seed: int, data: Any) -> dict[str, Json]:
        """What a fit depends on.

        Args:
            recipe: the recipe.
            seed: the experiment's.
            data: what the recipe reads, or the questions that it may see.
        """
        return (
            self.base
            | ({} if self.engine is None else self.engine.identity)
            | {
                "unit": "fit",
                "recipe": recipe.model_dump(mode="json", exclude=set(recipe.immaterial)),
                "data": RECIPES[recipe.recipe].sha256(data),
                "seed": seed,
            }
        )

    def is_fitted(self, identity: Mapping[str, Json]) -> bool:
        """Whether a fit is done, and its tensors are there and are those of the record."""
        recorded = self._ledger.recorded(identity, Stored)
        return recorded is not None and holds(self._place(identity) / _TENSORS, recorded["tensors"])

    def keep_fit(self, identity: Mapping[str, Json], fitted: Fitted) -> None:
        """Record a fit that was made elsewhere, such as several at once.

        Args:
            identity: as `fit_identity` gives it.
            fitted: what came of it.
        """
        self._kept(identity, lambda: self._stored(identity, fitted.tensors, fitted.provenance))

    def kept_fit(self, identity: Mapping[str, Json]) -> tuple[Fitted, str] | None:
        """A fit that is recorded, and the digest of its tensors; None where there is none."""
        recorded = self._ledger.recorded(identity, Stored)
        if recorded is None or not self.is_fitted(identity):
            return None
        provenance = dict[str, Json](recorded["provenance"])
        tensors = load_tensors(self._output / "fits" / recorded["folder"] / _TENSORS)
        return Fitted(tensors, provenance), recorded["tensors"]

    def _kept(self, identity: Mapping[str, Json], work: Callable[[], Stored]) -> Stored:
        if self._ledger.has(identity) and not self.is_fitted(identity):
            self._ledger.forget(identity)
        return self._ledger.do(identity, work)

    def _place(self, identity: Mapping[str, Json]) -> Path:
        return self._output / "fits" / digest(identity)[:16]

    def _stored(
        self,
        identity: Mapping[str, Json],
        tensors: Mapping[str, torch.Tensor],
        provenance: Mapping[str, Json],
    ) -> Stored:
        folder = self._place(identity)
        with atomic_folder(folder) as temporary:
            safetensors.torch.save_file(dict(tensors), temporary / _TENSORS)
            (temporary / _PROVENANCE).write_text(
                json.dumps(provenance, indent=1, allow_nan=False) + "\n", encoding="utf-8"
            )
        return {"folder": folder.name, "tensors": tensors_digest(tensors), "provenance": as_read(provenance)}

    def _files(self, variant: ExperimentSpec) -> dict[str, str]:
        names = sorted({ref.file for _, ref in variant.tensor_refs() if ref.file is not None})
        return {name: _sha256(self._folder / name) for name in names} | self._saes.resolved(variant).origins


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(read_bytes(path)).hexdigest()
    except OSError as error:
        raise TensorError(f"{path}: no such tensor file ({error.strerror or error})") from error
