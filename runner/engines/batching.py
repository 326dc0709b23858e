"""Requests that arrive together as one batch, each row with artifacts, strengths and positions of its own.

Every request of a batch has its own copies of the interventions that it asks for, which are off in the rows
of the others: so what is done to a row is what is done to it alone, and so is its receipt. A row's tokens are
drawn from its own seed (`intervened.rollouts`), whatever it is batched with.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from pydantic import JsonValue

from subvene.runner.edits.compile import entry_name
from subvene.runner.edits.receipt import Receipt, check_together, merged
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Batch, Row
from subvene.runner.models.forked_cache import why_not_forked
from subvene.runner.models.generation import Settings, row_ends
from subvene.specs import InterventionSpec, Positions, PyveneSpec, SubveneError

MOST_ROWS = 64
"""Answers that are generated at one time."""
TOGETHER = 0.005
"""Seconds for which the first request waits for others."""
_SAMPLING = {"do_sample", "temperature", "top_k", "top_p"}


@dataclass(frozen=True)
class Edit:
    """An artifact that a request asks for.

    Attributes:
        m: the artifact's model.
        positions: in place of the declared ones; None: these.
        strengths: by the interventions' names, in place of the declared ones.
    """

    m: IntervenedModel
    positions: Positions | None
    strengths: Mapping[str, float]


@dataclass(eq=False)
class Job:
    """A request on its way.

    Attributes:
        edits: what is done to it, in this order.
        ids: tokens of the prompt.
        seeds: of each answer.
        temperature: 0 is greedy.
        top_p: sample from this much probability.
        max_tokens: longest answer.
        stop: texts that end an answer.
        stop_token_ids: token ids that do, beside the model's own.
        pieces: is given the text as it comes, and None at the end; only where it is streamed.
        left: whether the client has gone, so that nothing more need be generated.
        tokens: of each answer, without the token that ended it.
        ended: of each answer whether the model ended it.
        receipt: what each intervention did.
        error: why there is no answer.
    """

    edits: Sequence[Edit]
    ids: tuple[int, ...]
    seeds: tuple[int, ...]
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    stop_token_ids: frozenset[int] = frozenset()
    pieces: queue.SimpleQueue[str | None] | None = None
    left: bool = False
    tokens: list[list[int]] = field(default_factory=list)
    ended: list[bool] = field(default_factory=list)
    receipt: list[dict[str, JsonValue]] = field(default_factory=list)
    error: BaseException | None = None
    done: threading.Event = field(default_factory=threading.Event)
    told: int = 0
    """Tokens of which the text has been written."""

    def finish(self) -> None:
        """Let go whoever waits."""
        self.done.set()
        if self.pieces is not None:
            self.pieces.put(None)


def why_not_batched(
    plain: IntervenedModel, edits: Sequence[IntervenedModel], *, measured: bool = False
) -> str | None:
    """Why requests are answered one by one; None if they can be batched."""
    if (reason := why_not_forked(plain.model)) is not None:
        return reason
    asked = sorted(set(measured_options(plain.model)) - _SAMPLING)
    if asked and not measured:
        return f"the model's generation_config asks for {', '.join(asked)}"
    for m in edits:
        if any(ref.file is not None for _, ref in m.spec.tensor_refs()):
            return "its tensors are in files beside it"
        if any(one.is_gated for one in m.spec.interventions):
            return "its gate is read from the whole prompt"
        if m.spec.sources:
            return "it reads sources"
        if any(isinstance(one, PyveneSpec) and one.share is not None for one in m.spec.interventions):
            return "its interventions share parameters"
    return None


class Batcher:
    """A thread that answers jobs, those that are there at the same time together.

    Args:
        plain: the model without interventions.
        most_rows: answers that are generated at one time.

    Attributes:
        batches: jobs of each batch so far, the latest last; the last hundred.
    """

    def __init__(self, plain: IntervenedModel, *, most_rows: int = MOST_ROWS) -> None:
        self._plain, self._most = plain, most_rows
        self._jobs: queue.SimpleQueue[Job | Callable[[], None]] = queue.SimpleQueue()
        self._here: list[Job | Callable[[], None]] = []
        self._combined: OrderedDict[Any, IntervenedModel] = OrderedDict()
        self.batches: list[int] = []
        self._thread = threading.Thread(target=self._work, name="subvene-batches", daemon=True)
        self._thread.start()

    def answer(self, job: Job, write: Callable[[str], None] | None = None) -> None:
        """Have a job done, and wait for it.

        Args:
            job: is filled in.
            write: is given the text as it comes; for one answer only.

        Raises:
            SubveneError: nothing came of it.
        """
        if write is not None:
            job.pieces = queue.SimpleQueue()
        self._jobs.put(job)
        if write is not None and job.pieces is not None:
            try:
                while (piece := job.pieces.get()) is not None:
                    write(piece)
            except BaseException:
                job.left = True
                raise
        job.done.wait()
        if job.error is not None:
            raise job.error

    def alone(self, work: Callable[[], None]) -> None:
        """Have something done that cannot be batched, when nothing else runs; `work` must not raise."""
        done = threading.Event()

        def told() -> None:
            work()
            done.set()

        self._jobs.put(told)
        done.wait()

    @property
    def waiting(self) -> int:
        """Requests that have come and are in no batch yet."""
        return len(self._here) + self._jobs.qsize()

    def _work(self) -> None:
        while True:
            if not self._here:
                self._here.append(self._jobs.get())
                time.sleep(TOGETHER)
            while not self._jobs.empty():
                self._here.append(self._jobs.get())
            first = self._here[0]
            if isinstance(first, Job):
                batch = self._next(self._here)
                self._here = self._here[len(batch) :]
                self._answer(batch)
            else:
                self._here.pop(0)
                first()

    def _next(self, waiting: Sequence[Job | Callable[[], None]]) -> list[Job]:
        """The jobs that come first, as many as there is room for; one in any case."""
        batch: list[Job] = []
        rows = 0
        for job in waiting:
            if not isinstance(job, Job) or (batch and rows + len(job.seeds) > self._most):
                break
            batch.append(job)
            rows += len(job.seeds)
        return batch

    def _answer(self, batch: list[Job]) -> None:
        self.batches = [*self.batches[-99:], len(batch)]
        try:
            self._together(batch)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].error = error
                batch[0].finish()
                return
            # Whose fault it is shows when each is alone; what was streamed already is not sent again.
            for job in batch:
                self._answer([job])
        else:
            for job in batch:
                job.finish()

    def _together(self, batch: list[Job]) -> None:
        # In the order of what is asked for, so that the same interventions are compiled once.
        ordered = sorted(batch, key=lambda job: repr([_key(edit) for edit in job.edits]))
        m = self._compiled(ordered)
        rows, jobs = [], []
        for i, job in enumerate(ordered):
            strengths = {
                f"{_prefix(i, j)}{name}": value
                for j, edit in enumerate(job.edits)
                for name, value in _strengths(edit).items()
            }
            rows += [
                Row(job.ids, seed, strengths or None, job.temperature, job.top_p, job.max_tokens)
                for seed in job.seeds
            ]
            jobs += [job] * len(job.seeds)
            job.tokens, job.ended = [], []
        if any(job.edits for job in ordered):
            rows = [replace(row, strengths=row.strengths or {}) for row in rows]
        batched = _Rows(m, rows, jobs)
        with torch.no_grad():
            written, ended, receipts = batched.forked()
        for job, tokens, has_ended in zip(jobs, written, ended, strict=True):
            job.tokens.append(tokens)
            job.ended.append(has_ended)
        batched.end()
        for i, job in enumerate(ordered):
            try:
                job.receipt = _receipt(receipts, i, job)
            except SubveneError as error:
                job.error = error

    def _compiled(self, jobs: Sequence[Job]) -> IntervenedModel:
        """A model with every job's own interventions."""
        key = tuple(tuple(_key(edit) for edit in job.edits) for job in jobs)
        if key not in self._combined:
            self._combined[key] = self._combine(jobs)
            while len(self._combined) > 16:
                self._combined.popitem(last=False)
        self._combined.move_to_end(key)
        return self._combined[key]

    def _combine(self, jobs: Sequence[Job]) -> IntervenedModel:
        interventions: list[Any] = []
        tensors: dict[str, torch.Tensor] = {}
        for i, job in enumerate(jobs):
            for j, edit in enumerate(job.edits):
                prefix = _prefix(i, j)
                tensors |= {f"{prefix}{name}": tensor for name, tensor in edit.m.tensors.items()}
                interventions += _renamed(edit, prefix)
        if not interventions:
            return self._plain
        spec = InterventionSpec(subvene=1, model=self._plain.spec.model, interventions=tuple(interventions))
        plain = self._plain
        return IntervenedModel.from_spec(spec, model=plain.model, tokenizer=plain.tokenizer, tensors=tensors)


class _Rows(Batch):
    """Rows that hand their text on as it is written."""

    def __init__(self, m: IntervenedModel, rows: Sequence[Row], jobs: Sequence[Job]) -> None:
        super().__init__(m, rows)
        # As `generate` has it: what the model's config says ends an answer, and no more.
        self.ends = set(row_ends(Settings(m.model)))
        self._jobs = jobs
        self._streams = [
            None if job.pieces is None else Streamer(m.tokenizer, job.pieces.put) for job in jobs
        ]

    def has_ended(self, row: int, tokens: list[int]) -> bool:
        """Also at a text that ends it, and when nobody waits for it any more."""
        job, stream = self._jobs[row], self._streams[row]
        if super().has_ended(row, tokens):
            return True
        if tokens[-1] in job.stop_token_ids:
            tokens.pop()
            self.ended[row] = True
            return True
        if stream is not None:
            stream.write(tokens[-1], silent=len(tokens) <= job.told)
            job.told = max(job.told, len(tokens))
        if job.stop and any(text in self.m.tokenizer.decode(tokens) for text in job.stop):
            self.ended[row] = True
            return True
        return job.left

    def end(self) -> None:
        """Write what is left of streamed texts."""
        for stream in self._streams:
            if stream is not None:
                stream.end()


class Streamer(transformers.TextStreamer):
    """Hands text on as it is written."""

    def __init__(self, tokenizer: Any, write: Callable[[str], None], *, skip_prompt: bool = False) -> None:
        super().__init__(tokenizer, skip_prompt=skip_prompt, skip_special_tokens=True)
        self._write, self._silent = write, False

    def write(self, token: int, *, silent: bool) -> None:
        """Take in a token.

        Args:
            token: its id.
            silent: whether its text has been handed on before.
        """
        self._silent = silent
        self.put(torch.tensor([token]))
        self._silent = False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by transformers with each piece of text."""
        if text and not self._silent:
            self._write(text)


def _key(edit: Edit) -> tuple[int, str]:
    """What is compiled of an edit: strengths are of each call."""
    return id(edit.m), repr(edit.positions)


def _prefix(i: int, j: int) -> str:
    return f"r{i}_{j}_"


def _strengths(edit: Edit) -> dict[str, float]:
    """By name, what is in force."""
    spec, found = edit.m.spec, {}
    for i, declared in enumerate(spec.interventions):
        name = entry_name(spec, i)
        strength = edit.strengths.get(name, declared.strength)
        if isinstance(strength, tuple):
            raise TypeError(f"{name} declares one strength a row, and a request is one row")
        found[name] = float(strength)
    return found


def _renamed(edit: Edit, prefix: str) -> list[Any]:
    """An edit's interventions under names and keys that no other request has, at the positions asked for."""
    spec, found = edit.m.spec, []
    for i, declared in enumerate(spec.interventions):
        changed: dict[str, Any] = {"name": f"{prefix}{entry_name(spec, i)}"}
        for loc, ref in declared.tensor_refs():
            changed[str(loc)] = ref.model_copy(update={"key": f"{prefix}{ref.key}"})
        if edit.positions is not None:
            changed["positions"] = edit.positions
        found.append(declared.model_copy(update=changed))
    return found


def _receipt(receipts: Sequence[Receipt], i: int, job: Job) -> list[dict[str, JsonValue]]:
    """A job's part of the receipts of its batch.

    Raises:
        NotSteeredError: an intervention of it acted nowhere.
    """
    names = {
        f"{_prefix(i, j)}{name}": (name, value)
        for j, edit in enumerate(job.edits)
        for name, value in _strengths(edit).items()
    }
    own = [
        Receipt(
            tuple(
                replace(one, name=names[one.name][0], strengths=(names[one.name][1],))
                for one in receipt
                if one.name in names
            )
        )
        for receipt in receipts
    ]
    check_together(own)
    whole = merged(own, same_rows=True)
    if not whole:
        return []
    rows = len(job.seeds)
    return Receipt(tuple(replace(one, rows=rows) for one in whole[0])).to_dict()
