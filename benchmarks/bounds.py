"""What is slow, beside what it cannot go below on this machine, SmolLM2-135M-Instruct in float32.

A bound is the floating-point operations of the products that have to be done, at the rate at which this
machine does these very products, measured in the same round. What has to be done: the blocks for every
distinct token in its context (texts that begin alike share what they begin with), the vocabulary for every
token that is predicted, and, in training, the gradient of both from the edited block up (the weights have
none). Attention, norms, sampling and Python are in the time and not in the bound. Ratio: time / bound, in
CPU seconds.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from activations import questions as texts_of_answers
from edit_training import Setting, spec_of
from harness import EMBEDDED, arguments, report, timed
from truthfulqa_mc import questions_and_prompts, steered

from subvene.runner.data.text import pad_id_of, prompt_ids
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.measures.truthfulqa_scores import score_choices
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last, shared_prefix
from subvene.runner.recipes.localized_heads import choose_heads
from subvene.runner.recipes.probes import fit_probes
from subvene.runner.training.experiments import Experiment
from subvene.runner.training.multiplex import EditShape

Ids = Sequence[int]
# Of the process, all its threads: others at the machine's cores do not count.
CLOCK = time.process_time
# Tokens of the pass at which the rate of a whole text is measured: more make it no higher here.
WIDE = 1024
# Of scikit-learn's perceptron, where it does not converge before.
EPOCHS = 200


@dataclass
class Part:
    """A part of the product's work, and the products that it cannot do without.

    Attributes:
        run: does it.
        blocks: tokens × blocks, by how many tokens a pass of the bound has at once.
        words: tokens of which the vocabulary is scored, likewise.
        fixed: seconds of a bound that is measured otherwise.
    """

    run: Callable[[], object]
    blocks: dict[int, float] = field(default_factory=dict)
    words: dict[int, float] = field(default_factory=dict)
    fixed: Callable[[], float] = float


def distinct(texts: Iterable[Ids]) -> int:
    """Tokens in their contexts, each once: the distinct beginnings of the texts."""
    return len({tuple(ids[: end + 1]) for ids in texts for end in range(len(ids))})


class Rates:
    """Seconds that the products of one block, and of the vocabulary, take for a token.

    Of all blocks in turn, as a pass has them: one block again and again would stay in the processor's cache.
    """

    def __init__(self, model: Any) -> None:
        blocks = model.model.layers
        linear = [module for module in blocks.modules() if isinstance(module, torch.nn.Linear)]
        self._products = {"block": (linear, len(blocks)), "vocabulary": ([model.lm_head], 1)}
        self.measured: dict[tuple[str, int], float] = {}

    def measure(self, sizes: Iterable[int]) -> None:
        """Measure them anew for passes of so many tokens."""
        for size in sizes:
            for name, (layers, times) in self._products.items():
                self.measured[name, size] = _seconds(layers, size) / size / times

    def bound(self, part: Part) -> float:
        """Seconds that a part cannot go below."""
        blocks = sum(count * self.measured["block", size] for size, count in part.blocks.items())
        words = sum(count * self.measured["vocabulary", size] for size, count in part.words.items())
        return blocks + words + part.fixed()


@torch.no_grad()
def _seconds(layers: Sequence[torch.nn.Linear], tokens: int) -> float:
    inputs = [torch.randn(tokens, layer.in_features) for layer in layers]

    def once() -> None:
        for layer, given in zip(layers, inputs, strict=True):
            layer(given)

    once()
    repeats = max(1, int(0.5 / timed(once, CLOCK)))
    return timed(lambda: [once() for _ in range(repeats)], CLOCK) / repeats


def collection(setting: Setting, count: int) -> tuple[Part, Part]:
    """The heads' activations at the last token of answers, and probes of what was collected."""
    anatomy, tokenizer = setting.anatomy, setting.tokenizer
    layers, pad_id = range(anatomy.sizes.n_layers), pad_id_of(tokenizer)
    _, pairs = texts_of_answers()
    groups: list[list[tuple[int, ...]]] = []
    for question, answers in pairs:
        if kept := answers[: count - sum(map(len, groups))]:
            groups.append([tuple(tokenizer(f"Q: {question} A: {answer}")["input_ids"]) for answer in kept])
    texts = [ids for group in groups for ids in group]
    passages = [Passage(ids, (last(len(ids)),), shared_prefix(group)) for group in groups for ids in group]

    def collecting() -> None:
        with tempfile.TemporaryDirectory() as folder:
            heads(folder, layers)

    def heads(folder: str, chosen: Sequence[int]) -> Any:
        return collect(
            anatomy, "attention_heads", chosen, passages, Path(folder), pad_id=pad_id, batch_size=64
        )

    few = layers[:: len(layers) // 2]
    found = heads(tempfile.mkdtemp(), few)
    # Labels that nothing predicts: no perceptron is done before scikit-learn's last epoch.
    labels = torch.randint(2, (len(texts),)).bool().tolist()
    folds = [0 if i % 5 == 0 else -1 for i in range(len(texts))]
    n_heads = anatomy.sizes.n_heads

    def probing() -> None:
        with tempfile.TemporaryDirectory() as folder:
            fit_probes(
                found,
                range(len(texts)),
                labels,
                folds,
                n_heads,
                kind="mlp",
                seed=0,
                folder=Path(folder),
            )

    def perceptrons() -> float:
        """The first layer's output and its weights' gradient: a product each, in batches of 200."""
        given = torch.randn(200, anatomy.sizes.head_dim, dtype=torch.float64)
        weight = given.new_ones(anatomy.sizes.head_dim, anatomy.sizes.head_dim)
        product = timed(lambda: [given @ weight for _ in range(1000)], CLOCK) / 1000
        batches = sum(fold < 0 for fold in folds) / 200
        return 2 * product * batches * EPOCHS * n_heads * len(few)

    return (
        Part(collecting, blocks={WIDE: distinct(texts) * len(layers)}),
        Part(probing, fixed=perceptrons),
    )


def choices(setting: Setting, count: int) -> Part:
    """Multiple choice of a steered model with the published prompt."""
    questions, prompts = questions_and_prompts(count)
    m = steered(setting.model, setting.tokenizer)
    encoded = prompts.encode(setting.tokenizer, [question.question for question in questions])
    answers = [
        (prompt, answer)
        for prompt, q in zip(encoded.prompts, questions, strict=True)
        for answer in prompts.answer_ids(setting.tokenizer, list(dict.fromkeys((*q.correct, *q.incorrect))))
    ]
    texts = [(*prompt, *answer[:-1]) for prompt, answer in answers]
    return Part(
        lambda: score_choices(m, prompts, questions),
        blocks={WIDE: distinct(texts) * setting.anatomy.sizes.n_layers},
        words={WIDE: sum(len(answer) for _, answer in answers)},
    )


def training(setting: Setting, count: int) -> Part:
    """Edits of one head each, trained together for an epoch."""
    validation = tuple(range(0, len(setting.examples), 4))
    train = tuple(i for i in range(len(setting.examples)) if i not in validation)
    experiments = []
    for seed in range(count):
        spec = spec_of(heads={"rule": "random", "k": 1}, epochs=1, warmup=0.0)
        shape = EditShape(choose_heads(spec, setting.anatomy.sizes, seed), seed=seed)
        experiments.append(Experiment(f"single-{seed}", spec, shape, seed, train, validation))
    pairs = [[(*one.prompt, *one.chosen[:-1]), (*one.prompt, *one.rejected[:-1])] for one in setting.examples]
    tokens = [distinct(pair) for pair in pairs]
    words = [len(one.chosen) + len(one.rejected) for one in setting.examples]
    n_layers = setting.anatomy.sizes.n_layers
    blocks, predicted = sum(tokens) * n_layers, sum(words)
    for experiment in experiments:
        above = n_layers - min(experiment.shape.heads)
        for chosen, passes in ((train, 2), (validation, 1)):
            blocks += passes * above * sum(tokens[i] for i in chosen)
            predicted += passes * sum(words[i] for i in chosen)
    return Part(lambda: setting.train(experiments), blocks={WIDE: blocks}, words={WIDE: predicted})


def personas(setting: Setting, rows: int, new_tokens: int) -> Part:
    """Answers of a steered model, sampled, as a persona experiment has them: a batch at a time."""
    m = steered(setting.model, setting.tokenizer)
    prompts = [tuple(prompt_ids(setting.tokenizer, triple.prompt)) for triple in setting.triples]
    asked = [
        Row(prompts[i % len(prompts)], temperature=0.7, top_p=0.9, max_new_tokens=new_tokens, seed=i)
        for i in range(rows)
    ]
    n_layers = setting.anatomy.sizes.n_layers

    def run() -> None:
        answers, _ = rollouts(m, asked, batch_size=rows)
        # The rate of a whole batch, though rows that have ended leave it: more rows are no slower, each.
        generated = sum(len(answer.tokens) + answer.ended for answer in answers)
        part.blocks = {WIDE: distinct(prompts) * n_layers, rows: (generated - rows) * n_layers}
        part.words = {rows: generated}

    part = Part(run, blocks={rows: 0})
    return part


def main() -> None:
    options = arguments(__doc__ or "")
    quick = options.quick
    torch.manual_seed(0)
    setting = Setting(8)
    collecting, probing = collection(setting, 60 if quick else 500)
    parts = {
        "collection of head activations": collecting,
        "perceptron probes of all heads": probing,
        "multiple choice": choices(setting, 3 if quick else 24),
        "training of single-head edits together": training(setting, 4 if quick else 24),
        "persona answers": personas(setting, 12 if quick else 64, 8 if quick else 40),
    }
    rates = Rates(setting.model)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
    for _ in range(options.rounds or (1 if quick else 3)):
        for name, part in parts.items():
            taken = timed(part.run, CLOCK)
            rates.measure({*part.blocks, *part.words})
            seconds[name].append((taken, rates.bound(part)))
    report("bounds", seconds, "bound", notes=f"{EMBEDDED}; the bound's rates are measured after each part")


if __name__ == "__main__":
    main()
