"""One model in this process, answering requests in batches, each with artifacts of its own."""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from pydantic import JsonValue

from subvene.interventions.positions import needs_length, plain_positions
from subvene.runner.data.limits import refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.data.text import pad_id_of, prompt_ids
from subvene.runner.edits.compile import entry_name, place
from subvene.runner.engines.admission import Wish, Wishes
from subvene.runner.engines.batching import Batcher, Edit, Job, Streamer, why_not_batched
from subvene.runner.engines.collecting import Collect, Collected, check_places
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import row_seed
from subvene.runner.intervened.scoring import log_normalizer
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.generation import Settings, row_ends
from subvene.runner.models.identity import model_sha256, reading_sha256
from subvene.runner.models.vocabulary import refuse_without_row
from subvene.runner.passes.activations import span_means


@dataclass(frozen=True)
class Sampling:
    """How a request is answered.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 is greedy.
        top_p: sample from this much probability.
        seed: of the sampling.
        n: answers.
        stop: texts that end an answer.
        stop_token_ids: token ids that do, beside the model's own.
        measured: whether nothing counts of what the checkpoint's generation_config asks for, as in what is
            measured (`intervened.measured`).
    """

    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    n: int
    stop: tuple[str, ...]
    stop_token_ids: tuple[int, ...] = ()
    measured: bool = False

    def options(self) -> dict[str, Any]:
        """As keywords of transformers' `generate`."""
        options: dict[str, Any] = {"max_new_tokens": self.max_tokens, "do_sample": self.temperature > 0}
        if self.temperature > 0:
            options |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        if self.n > 1:
            options["num_return_sequences"] = self.n
        if self.stop:
            options["stop_strings"] = list(self.stop)
        return options


class ModelHashes(TypedDict):
    """Of a model: its weights and config, and how text is read for it."""

    model: str
    text: str


@dataclass(frozen=True)
class Answers:
    """What came of a request.

    Attributes:
        texts: the answers.
        finished: of each `stop` or `length`.
        prompt_tokens: tokens of the prompt.
        tokens: tokens of all answers.
        receipt: what each intervention did; empty without any.
        ids: of the answers, without the tokens that ended them.
        log_probs: of the prompt's tokens but the first, each with its id; None where they were not asked for.
        collected: by site, what was collected; None where nothing was asked for.
    """

    texts: list[str]
    finished: list[str]
    prompt_tokens: int
    tokens: int
    receipt: list[dict[str, JsonValue]]
    ids: list[list[int]]
    log_probs: list[tuple[int, float]] | None = None
    collected: dict[str, Collected] | None = None


class InProcess:
    """A model, and the artifacts that requests may name.

    Args:
        artifacts: by the names that requests use: intervened models that share one loaded model.
        collect: `site[layer]`, where requests may have activations collected.

    Raises:
        EngineError: the artifacts do not share a model, or a site is none.
    """

    def __init__(self, artifacts: Mapping[str, IntervenedModel], collect: Sequence[str] = ()) -> None:
        first = next(iter(artifacts.values()))
        if any(m.model is not first.model for m in artifacts.values()):
            raise EngineError("the artifacts of one server act on one loaded model")
        self.artifacts, self.collects = dict(artifacts), tuple(collect)
        if collect:
            check_places(collect, Anatomy.of(first.model).sizes)
        self.tokenizer = first.tokenizer
        self.base = first.spec.model.name
        self.plain = IntervenedModel.plain(first.model, self.tokenizer, name=self.base)
        self.batcher = Batcher(self.plain)
        self._ends = set(row_ends(Settings(first.model)))

    @functools.cached_property
    def fingerprint(self) -> ModelHashes:
        """Of the model: the hashes that units of experiments hold (`model`, `text`)."""
        model = self.plain.model
        return {"model": model_sha256(model), "text": reading_sha256(model, self.tokenizer)}

    @classmethod
    def load(cls, folders: Mapping[str, Path], *, collect: Sequence[str] = (), **overrides: Any) -> InProcess:
        """Load the model of the first artifact, and every artifact onto it.

        Raises:
            SubveneError: an artifact cannot be read, or is of another model.
        """
        made: dict[str, IntervenedModel] = {}
        for name, folder in folders.items():
            if not made:
                made[name] = IntervenedModel.from_pretrained(folder, **overrides)
                continue
            first = next(iter(made.values()))
            made[name] = IntervenedModel.from_pretrained(folder, model=first.model, tokenizer=first.tokenizer)
        return cls(made, collect)

    def answer(
        self,
        prompt: Any,
        *,
        chat: bool,
        wishes: Wishes,
        sampling: Sampling,
        write: Callable[[str], None] | None = None,
    ) -> Answers:
        """Answer a prompt, together with others that are there at the same time.

        Args:
            prompt: messages, a text, or token ids.
            chat: whether the chat template is used.
            wishes: what is to be done to it.
            sampling: how.
            write: is given the text as it comes; for one answer only.

        Raises:
            RequestError: it cannot be done; nothing has run.
            NotSteeredError: an intervention that should have acted did not.
        """
        edits = [self._edit(wish) for wish in wishes.artifacts]
        if wishes.prompt_tokens is not None:
            raise RequestError("subvene.prompt_tokens: for log-probabilities of given tokens only")
        if wishes.collect is not None:
            raise RequestError("subvene.collect: for completions with `max_tokens`: 1 only")
        ids = self._ids(prompt, chat=chat, new=sampling.max_tokens)
        seed = secrets.randbits(48) if sampling.seed is None else sampling.seed
        job = Job(
            edits,
            ids,
            tuple(row_seed("served", seed, i) for i in range(sampling.n)),
            sampling.temperature,
            sampling.top_p,
            sampling.max_tokens,
            sampling.stop,
            frozenset(sampling.stop_token_ids),
        )
        reason = why_not_batched(self.plain, [edit.m for edit in edits], measured=sampling.measured)
        if reason is None:
            self.batcher.answer(job, write)
        else:
            self._alone(job, sampling, reason, write)
        answers = self._answers(job, sampling)
        return replace(answers, receipt=_named(answers.receipt, wishes, edits))

    def score(self, prompt: Any, wishes: Wishes) -> Answers:
        """How likely given tokens are, each after those before it, and the likeliest token after them.

        Args:
            prompt: a text, or token ids; the first `prompt_tokens` of the wishes are what positions call the
                prompt, the others the response.
            wishes: what is to be done.

        Raises:
            RequestError: it cannot be done; nothing has run.
            NotSteeredError: an intervention that should have acted did not.
        """
        if len(wishes.artifacts) > 1:
            raise RequestError("subvene: one artifact a request that scores; put the edits into one file")
        edits = [self._edit(wish, scores=True) for wish in wishes.artifacts]
        ids = self._ids(prompt, chat=False, new=0)
        begins = wishes.prompt_tokens or len(ids)
        if begins > len(ids):
            raise RequestError(f"subvene.prompt_tokens: expected at most {len(ids)}, found {begins}")
        answers = self._by_itself(lambda: self._scored(ids, begins, edits))
        return replace(answers, receipt=_named(answers.receipt, wishes, edits))

    def collect(self, prompt: Any, wishes: Wishes) -> Answers:
        """Activations of given tokens, as the untouched model has them; nothing is generated.

        Args:
            prompt: a text, or token ids.
            wishes: which, of how many of the tokens the mean.

        Raises:
            RequestError: it cannot be done; nothing has run.
        """
        if (collect := wishes.collect) is None or wishes.artifacts:
            raise RequestError("subvene.collect: of the untouched model (`artifacts: []`)")
        ids = self._ids(prompt, chat=False, new=0)
        collect.check(len(ids), self.collects)
        text = Text(ids, collect.start, collect.end)
        return self._by_itself(lambda: self._collected(text, collect))

    def _collected(self, text: Text, collect: Collect) -> Answers:
        by_site: dict[str, list[int]] = {}
        for name in collect.sites:
            site, _, layer = name[:-1].partition("[")
            by_site.setdefault(site, []).append(int(layer))
        anatomy, found = Anatomy.of(self.plain.model), dict[str, Collected]()
        for site, layers in by_site.items():
            means = span_means(anatomy, site, layers, [text], pad_id=pad_id_of(self.tokenizer), batch_size=1)
            for at in layers:
                mean, norm = means.vectors[at][0], means.norms[at][0]
                found[place(site, at)] = Collected(mean.numpy(), float(norm))
        return Answers([""], ["length"], len(text.ids), 0, [], [[]], collected=found)

    def _by_itself(self, work: Callable[[], Answers]) -> Answers:
        """What is done while nothing else runs on the model."""
        found: list[Answers | BaseException] = []

        def kept() -> None:
            try:
                found.append(work())
            except BaseException as error:
                found.append(error)

        self.batcher.alone(kept)
        if isinstance(found[0], BaseException):
            raise found[0]
        return found[0]

    @torch.no_grad()
    def _scored(self, ids: tuple[int, ...], begins: int, edits: Sequence[Edit]) -> Answers:
        m, strengths = (self._at(edits[0]), edits[0].strengths) if edits else (self.plain, None)
        given = torch.tensor([ids])
        logits = m(given, prompt_lengths=[begins], strengths=strengths, use_cache=False).logits[0]
        chosen = logits[:-1].gather(-1, given[0, 1:, None].to(logits.device)).squeeze(-1).cpu().double()
        log_p = chosen - log_normalizer(logits[:-1]).cpu()
        token = int(logits[-1].argmax())
        receipt = m.receipt.to_dict() if m.receipt and not m.is_disabled else []
        return Answers(
            [self.tokenizer.decode([token])],
            ["length"],
            len(ids),
            1,
            receipt,
            [[token]],
            list(zip(ids[1:], log_p.tolist(), strict=True)),
        )

    def _ids(self, prompt: Any, *, chat: bool, new: int) -> tuple[int, ...]:
        """The tokens of a prompt, which the model can read, and `new` after them."""
        is_ids = isinstance(prompt, list) and all(isinstance(one, int) for one in prompt)
        ids = tuple(prompt) if is_ids else tuple(prompt_ids(self.tokenizer, prompt, chat=chat))
        refuse_without_row(self.plain.model, torch.tensor([ids]), self.tokenizer)
        refuse_beyond_context(self.plain.model, [len(ids)], lambda _: "the prompt", new=new)
        return ids

    def _alone(self, job: Job, sampling: Sampling, reason: str, write: Callable[[str], None] | None) -> None:
        """Answer by the model's own `generate`, when nothing else runs."""
        if len(job.edits) > 1:
            raise RequestError(
                f"subvene: one artifact a request here, since it cannot be batched ({reason}); put the edits "
                "into one file"
            )
        m, strengths, ends = self.plain, None, self._ends | job.stop_token_ids
        for edit in job.edits:
            m, strengths = self._at(edit), edit.strengths

        def work() -> None:
            try:
                output = m.generate_ids(
                    torch.tensor([job.ids]),
                    strengths=strengths,
                    seed=sampling.seed,
                    eos_token_id=sorted(ends) or None,
                    pad_token_id=pad_id_of(self.tokenizer),
                    tokenizer=self.tokenizer if sampling.stop else None,
                    streamer=None if write is None else Streamer(self.tokenizer, write, skip_prompt=True),
                    **self._options(sampling),
                )
                job.receipt = m.receipt.to_dict() if m.receipt and not m.is_disabled else []
            except BaseException as error:
                job.error = error
                return
            for row in output[:, len(job.ids) :].tolist():
                length = next((i for i, token in enumerate(row) if token in ends), len(row))
                job.tokens.append(row[:length])
                job.ended.append(length < len(row))

        self.batcher.alone(work)
        if job.error is not None:
            raise job.error

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        options = sampling.options()
        return measured_options(self.plain.model, **options) if sampling.measured else options

    def _answers(self, job: Job, sampling: Sampling) -> Answers:
        texts, finished = [], []
        for tokens, has_ended in zip(job.tokens, job.ended, strict=True):
            text = self.tokenizer.decode(tokens, skip_special_tokens=True)
            cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
            texts.append(text if cut is None else text[:cut])
            finished.append("stop" if has_ended or cut is not None else "length")
        total = sum(map(len, job.tokens)) + sum(job.ended)
        return Answers(texts, finished, len(job.ids), total, job.receipt, job.tokens)

    def _edit(self, wish: Wish, *, scores: bool = False) -> Edit:
        """What a wish means, checked."""
        if wish.artifact not in self.artifacts:
            names = ", ".join(self.artifacts)
            raise RequestError(f"no artifact is called {wish.artifact!r}; there are: {names}")
        m = self.artifacts[wish.artifact]
        strengths = strengths_of(wish, m)
        for i, one in enumerate(m.spec.interventions):
            if needs_length(rule := wish.positions or one.positions) and not scores:
                raise RequestError(
                    f"positions {plain_positions(rule)} count from the end of the response, which is not "
                    "known while it is generated"
                )
            if isinstance(one.strength, tuple) and (name := entry_name(m.spec, i)) not in strengths:
                raise RequestError(
                    f"{wish.artifact}: {name!r} declares one strength a row; a request is one row: give one"
                )
        return Edit(m, wish.positions, strengths)

    def _at(self, edit: Edit) -> IntervenedModel:
        m, positions = edit.m, edit.positions
        if positions is None:
            return m
        moved = tuple(one.model_copy(update={"positions": positions}) for one in m.spec.interventions)
        spec = m.spec.model_copy(update={"interventions": moved})
        return IntervenedModel.from_spec(spec, model=m.model, tokenizer=m.tokenizer, tensors=m.tensors)


def _named(
    receipt: Sequence[dict[str, JsonValue]], wishes: Wishes, edits: Sequence[Edit]
) -> list[dict[str, JsonValue]]:
    """A receipt that says of each intervention which artifact declares it, as vLLM's do."""
    pairs = zip(wishes.artifacts, edits, strict=True)
    artifacts = [wish.artifact for wish, edit in pairs for _ in edit.m.spec.interventions]
    return [{"artifact": name, **one} for name, one in zip(artifacts, receipt, strict=True)]


def strengths_of(wish: Wish, m: IntervenedModel) -> dict[str, float]:
    """The strengths that a wish gives, by the interventions' names.

    Raises:
        RequestError: there is no such intervention, or it is not said of which it is.
    """
    names = [entry_name(m.spec, i) for i in range(len(m.spec.interventions))]
    if wish.strength is None:
        if unknown := sorted(set(wish.strengths or {}) - set(names)):
            raise RequestError(
                f"{wish.artifact}: no intervention is called {unknown[0]!r}; there are: {', '.join(names)}"
            )
        return dict(wish.strengths or {})
    if wish.strengths is not None:
        raise RequestError(f"{wish.artifact}: give `strength` or `strengths`, not both")
    if len(names) > 1:
        raise RequestError(
            f"{wish.artifact} has several interventions: give `strengths` by name: {', '.join(names)}"
        )
    return {names[0]: wish.strength}
