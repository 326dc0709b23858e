"""Screening of training data (Chen et al. 2025, "Persona vectors", on projection differences).

ΔP on a vector = the mean over samples of [projection of the data set's answer − projection of the model's own
answer to the same prompt]. Data whose answers lie further along a trait's vector than what the model would
have said moves a model that is trained on it towards the trait; a single sample's difference says which
samples do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from subvene.runner.data.span import Text
from subvene.runner.data.transcripts import Transcript
from subvene.runner.data.turns import Turn, refuse_long, turns_of
from subvene.runner.files.csv_file import CsvWriter
from subvene.runner.files.storage import atomic_file
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row, rollouts
from subvene.runner.monitor.projection import ByVector, Projections, Vectors, project

# How many resampled values the bootstrap holds at a time.
_HELD = 2**22


@dataclass(frozen=True)
class Difference:
    """ΔP on one vector.

    Attributes:
        key: of the vector.
        layer: of the vector.
        n: samples with a projection on both sides.
        data: mean projection of the data set's answers.
        own: mean projection of the model's own.
        difference: ΔP, their difference.
        low: lower end of the interval.
        high: upper end; None for both where fewer than two samples are left.
    """

    key: str
    layer: int
    n: int
    data: float | None
    own: float | None
    difference: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Screening:
    """What a data set was found to be.

    Attributes:
        samples: the data set's answers, one a transcript: its last assistant's turn.
        where: of each, where it stands.
        own: the model's own answers.
        data_projections: of the data set's answers.
        own_projections: of the model's own.
        differences: one per vector.
        shortened: how many of the data set's answers were read up to `max_answer_tokens` only.
        left_out: how many samples have an empty answer on one side, and so no difference.
        confidence: of the intervals.
    """

    samples: tuple[Turn, ...]
    where: tuple[str, ...]
    own: tuple[Rollout, ...]
    data_projections: Projections
    own_projections: Projections
    differences: tuple[Difference, ...]
    shortened: int
    left_out: int
    confidence: float

    def per_sample(self) -> ByVector:
        """Key → layer → float64 [samples], the data set's projection minus the model's own."""
        return {
            key: {layer: data - self.own_projections.before[key][layer] for layer, data in by_layer.items()}
            for key, by_layer in self.data_projections.before.items()
        }

    def order(self) -> list[int]:
        """Samples by their difference on the first vector, the largest first; those without one last."""
        first = next(iter(next(iter(self.per_sample().values())).values())).tolist()
        return sorted(range(len(first)), key=lambda i: -first[i] if math.isfinite(first[i]) else math.inf)

    def write_csv(self, path: Path) -> None:
        """A row per sample, in `order`: where it stands, both answers, and three columns per vector."""
        differences = self.per_sample()
        vectors = [(key, layer) for key, by_layer in differences.items() for layer in by_layer]
        with atomic_file(path) as file:
            writer = CsvWriter(file)
            names = [
                f"{key}@{layer} {what}" for key, layer in vectors for what in ("difference", "data", "own")
            ]
            writer.writerow(["rank", "sample", "where", *names, "answer", "own_answer"])
            for rank, i in enumerate(self.order()):
                values = []
                for key, layer in vectors:
                    sides = differences, self.data_projections.before, self.own_projections.before
                    values += [_cell(float(side[key][layer][i])) for side in sides]
                writer.writerow([rank, i, self.where[i], *values, self.samples[i].text, self.own[i].text])


def screen(
    m: IntervenedModel,
    transcripts: Sequence[Transcript],
    vectors: Vectors,
    *,
    chat: bool | None = None,
    max_new_tokens: int = 128,
    max_answer_tokens: int = 1024,
    batch_size: int = 16,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Screening:
    """Compare a data set's answers with those that the model gives to the same prompts.

    The answer is the last assistant's turn of each transcript, the prompt all that precedes it. The model
    answers greedily, and is read, without its interventions.

    Args:
        m: the model.
        transcripts: the data set.
        vectors: key → layer → v.
        chat: False for prompts without a chat template.
        max_new_tokens: longest own answer.
        max_answer_tokens: so much of an answer of the data set is read.
        batch_size: texts at a time.
        confidence: of the bootstrap interval of ΔP (percentile method, samples drawn with replacement).
        resamples: how many times they are drawn.
        seed: of the drawing.
    """
    by_transcript: dict[int, Turn] = {
        turn.transcript: turn for turn in turns_of(m.tokenizer, transcripts, chat=chat)
    }
    samples = [by_transcript[i] for i in range(len(transcripts))]
    ends = [min(sample.read.end, sample.read.start + max_answer_tokens) for sample in samples]
    refuse_long(m.model, samples, transcripts, ends)
    prompts = [sample.read.ids[: sample.read.start] for sample in samples]
    # A prompt that comes twice is answered once: the model's own answer is the same.
    distinct = list(dict.fromkeys(prompts))
    with m.disabled():
        answers, _ = rollouts(
            m,
            [Row(prompt, temperature=0.0, max_new_tokens=max_new_tokens) for prompt in distinct],
            batch_size=batch_size,
            description="the model's own answers",
        )
    answer_to = dict(zip(distinct, answers, strict=True))
    own = [answer_to[prompt] for prompt in prompts]
    data_texts, shortened = [], 0
    for sample, end in zip(samples, ends, strict=True):
        shortened += end < sample.read.end
        data_texts.append(Text(sample.read.ids[:end], sample.read.start, end))
    own_texts = [
        # A block of reasoning is no part of an answer; the data's answers have none.
        Text((*prompt, *answer.tokens), len(prompt) + answer.start, len(prompt) + len(answer.tokens))
        for prompt, answer in zip(prompts, own, strict=True)
    ]
    both = project(m, [*data_texts, *own_texts], vectors, batch_size=batch_size)
    n = len(samples)
    of_data, of_own = _part(both, slice(n)), _part(both, slice(n, None))
    known = torch.isfinite(next(iter(next(iter(of_data.before.values())).values())))
    known &= torch.isfinite(next(iter(next(iter(of_own.before.values())).values())))
    drawn = (confidence, resamples, seed)
    differences = tuple(
        _difference(key, layer, values[known], of_own.before[key][layer][known], *drawn)
        for key, by_layer in of_data.before.items()
        for layer, values in by_layer.items()
    )
    return Screening(
        tuple(samples),
        tuple(transcript.where for transcript in transcripts),
        tuple(own),
        of_data,
        of_own,
        differences,
        shortened,
        n - int(known.sum()),
        confidence,
    )


def interval(
    values: Sequence[float], confidence: float, resamples: int, seed: int
) -> tuple[float, float] | None:
    """The bootstrap interval of a mean, by the percentile method; None for fewer than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    found = stats.bootstrap(
        (np.asarray(values, dtype=np.float64),),
        np.mean,
        n_resamples=resamples,
        batch=max(1, _HELD // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(found.low), float(found.high)


def _difference(
    key: str,
    layer: int,
    data: torch.Tensor,
    own: torch.Tensor,
    confidence: float,
    resamples: int,
    seed: int,
) -> Difference:
    if not len(data):
        return Difference(key, layer, 0, None, None, None, None, None)
    differences = data - own
    found = interval(differences.tolist(), confidence, resamples, seed)
    low, high = found or (None, None)
    means = (float(data.mean()), float(own.mean()), float(differences.mean()))
    return Difference(key, layer, len(data), means[0], means[1], means[2], low, high)


def _part(projections: Projections, which: slice) -> Projections:
    before = {
        key: {layer: values[which] for layer, values in by_layer.items()}
        for key, by_layer in projections.before.items()
    }
    return Projections(before, None, projections.tokens[which])


def _cell(value: float) -> str:
    return f"{value:.6g}" if math.isfinite(value) else ""
