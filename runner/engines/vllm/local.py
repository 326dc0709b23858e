"""vLLM in this process as the engine of an experiment: it holds all that the conditions declare."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subvene.runner.artifacts import artifact
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.span import Text
from subvene.runner.edits.compile import place
from subvene.runner.edits.not_finite import check_finite
from subvene.runner.edits.receipt import Receipt
from subvene.runner.engines.collecting import check_places
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.fingerprints import does
from subvene.runner.engines.in_process import Sampling
from subvene.runner.engines.served import serve
from subvene.runner.engines.vllm import versions
from subvene.runner.engines.vllm.engine import VllmEngine, check_active
from subvene.runner.engines.wording import Held, held_for, means_of, receipt_of, together, wishes
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import status
from subvene.runner.intervened.acting import acting
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row
from subvene.runner.intervened.scoring import refuse_empty
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.generation import answer_ends
from subvene.runner.models.identity import EngineManifest
from subvene.runner.models.loading import resolve
from subvene.runner.passes.elsewhere import SpanMeans
from subvene.specs import ModelSpec, VllmOptions


class Local:
    """vLLM with the model of an experiment; it starts when something is first asked of it.

    Args:
        options: of vLLM.
        spec: which model.
        plain: the same, untouched, as this process has it.
        folder: where tensor files that specs name are looked for.
        work: where artifacts are written for it.

    Raises:
        EngineError: vLLM is not there or is another version, or would compute something else.
    """

    def __init__(
        self, options: VllmOptions, spec: ModelSpec, plain: IntervenedModel, folder: Path, work: Path
    ) -> None:
        check_active()
        if getattr(plain.model.config, "quantization_config", None) is not None:
            raise EngineError(
                "engine: vllm: the model is quantised, and vLLM computes with such weights in another way "
                "than transformers; leave `engine` out"
            )
        self._options = options.model_dump(exclude_none=True)
        self._spec, self._plain, self._folder, self._work = spec, plain, folder, work
        self._artifacts: dict[str, Held] = {}
        self._reads: set[str] = set()
        self._running: _Running | None = None

    @property
    def identity(self) -> dict[str, Json]:
        """VLLM and its version, and those that are in every unit."""
        return {"engine": {"server": "vllm", "versions": {"vllm": str(versions.installed())}}}

    def check(self, m: IntervenedModel) -> None:
        """Write what a model's interventions do as an artifact, and find out whether vLLM runs it."""
        if m.is_disabled:
            return
        what = does(m.spec, m.tensors, self._folder)
        if what["sha256"] in self._artifacts:
            return
        name = str(what["sha256"])[:16]
        place = self._work / name
        if not place.exists():
            m.save_pretrained(place)
        serve(name, artifact.read(place), sizes_from_config(m.model.config))
        self._artifacts[what["sha256"]] = Held(name, tuple(what["interventions"]))

    def close(self) -> None:
        """End vLLM and its processes."""
        if self._running is not None:
            self._running.engine.close()
            self._running = None

    def rollouts(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `Engine.rollouts`, all rows at once."""
        for row in rows:
            refuse_beyond_context(m.model, [len(row.prompt)], "a prompt, row", new=row.max_new_tokens)
        held, ends = self._held(m), tuple(sorted(answer_ends(m.model, m.tokenizer)))
        with _refused(), status(description):
            answers = self._vllm(held).generate(
                [row.prompt for row in rows],
                [wishes(m, held, row.strengths) for row in rows],
                [_sampling(row, ends) for row in rows],
            )
        found = []
        for row, answer in zip(rows, answers, strict=True):
            tokens = answer.ids[0]
            start, text = answer_of(m.tokenizer, row.prompt, tokens)
            found.append(Rollout(tuple(tokens), answer.finished[0] == "stop", start, text))
        return found, _told(m, held, [answer.receipt for answer in answers])

    def log_probs(
        self,
        m: IntervenedModel,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        *,
        batch_size: int = 16,
        description: str = "scoring",
    ) -> tuple[torch.Tensor, list[Receipt]]:
        """As `Engine.log_probs`, all pairs at once."""
        refuse_empty(pairs)
        held = self._held(m)
        with _refused(), status(description):
            scores = self._vllm(held).score(pairs, [wishes(m, held)] * len(pairs))
        totals = torch.tensor([sum(score.log_probs) for score in scores], dtype=torch.float64)
        check_finite(totals, "Σ log p", acting(m))
        return totals, _told(m, held, [score.receipt for score in scores])

    def _held(self, m: IntervenedModel) -> Held | None:
        return None if m.is_disabled else held_for(m, self._artifacts, self._folder, "vllm")

    def check_reads(self, sites: Sequence[str]) -> None:
        """Keep in mind where activations are to be collected beside what is generated."""
        check_places(sites, sizes_from_config(self._plain.model.config))
        self._reads |= set(sites)

    def activations(self, site: str, layers: Sequence[int], texts: Sequence[Text], /) -> SpanMeans:
        """As `Engine.activations`, all texts at once."""
        refuse_beyond_context(self._plain.model, [len(text.ids) for text in texts], "a text", new=1)
        places = [place(site, layer) for layer in layers]
        with _refused(), status("activations"):
            found = self._vllm(None, places).activations(texts, places)
        return means_of(found, layers, places)

    def _vllm(self, held: Held | None, reads: Sequence[str] = ()) -> VllmEngine:
        """VLLM with this artifact, reading at these sites; started again where it was started without."""
        wanted = set() if held is None else {held.name}
        if (now := self._running) is not None and wanted <= now.artifacts and set(reads) <= now.reads:
            return now.engine
        self.close()
        source = resolve(self._spec)
        options: dict[str, Any] = {"seed": 0, "disable_log_stats": True} | self._options
        if self._spec.revision is not None and source == self._spec.name and not Path(source).exists():
            options |= {"revision": self._spec.revision, "tokenizer_revision": self._spec.revision}
        dtype = str(self._plain.model.dtype).removeprefix("torch.")
        folders = {one.name: self._work / one.name for one in self._artifacts.values()}
        # What a fit reads, often every layer, is read by an engine that ends with the fits.
        sites = self._reads | set(reads)
        with status("vLLM starts"):
            made = VllmEngine(source, folders, dtype=dtype, collect=sorted(sites), **options)
        self._running = _Running(made, set(folders), sites)
        return made


@dataclass(frozen=True)
class _Running:
    """An engine that runs, and what it was started with."""

    engine: VllmEngine
    artifacts: set[str]
    reads: set[str]


def vllm_manifest(options: Mapping[str, Any]) -> EngineManifest:
    """What a run's manifest says of vLLM in its own process.

    Raises:
        EngineError: vLLM is not there, or is another version.
    """
    versions.check()
    return {"engine": "vllm", "versions": {"vllm": str(versions.installed())}, "options": dict(options)}


def _sampling(row: Row, ends: tuple[int, ...]) -> Sampling:
    return Sampling(
        max_tokens=row.max_new_tokens,
        temperature=row.temperature,
        top_p=row.top_p,
        seed=row.seed,
        n=1,
        stop=() if row.stop is None else (row.stop,),
        stop_token_ids=ends,
    )


def _told(m: IntervenedModel, held: Held | None, receipts: Sequence[Any]) -> list[Receipt]:
    return [] if held is None else together([receipt_of(m, told) for told in receipts])


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """What vLLM refuses is an error of the engine."""
    from vllm.exceptions import VLLMError

    try:
        yield
    except (ValueError, VLLMError) as error:
        raise EngineError(f"engine: vllm: {error}") from error
