"""ITI by hand: activations, probes and spread, from texts that are read one at a time."""

from __future__ import annotations

import hashlib
import json
import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import ranking_folds, validation_keys
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.iti import fit_iti
from subvene.specs import ITISpec

LAYERS, HEADS, HEAD_DIM = 3, 4, 8
TOPICS = ["day", "rain", "sun", "train", "world", "hello"]
TRUE, FALSE = ["glad", "very", "good", "happy", "i", "am"], ["sad", "bad", "gloomy", "not", "you", "are"]


def question_of(number: int) -> Question:
    """A question in the words of the tiny tokenizer, unlike all others."""
    draw = random.Random(number)
    words = [draw.choice(TOPICS) for _ in range(2 + number % 5)]

    def answers(own: Sequence[str], other: Sequence[str], count: int) -> tuple[str, ...]:
        # Mostly words of the own side, so that probes are right more often than not and not always.
        kinds = [[*own, *own, *own, *other, *TOPICS] for _ in range(count)]
        texts = {f"it is {' '.join(draw.choices(kind, k=1 + draw.randrange(4)))}." for kind in kinds}
        return tuple(sorted(texts))

    true, false = answers(TRUE, FALSE, 2 + number % 3), answers(FALSE, TRUE, 2 + number % 2)
    false = tuple(answer for answer in false if answer not in true) or ("gloomy.",)
    return Question(f"is the {' '.join(words)} {number} ?", true[0], true, false, "Weather")


QUESTIONS = [question_of(number) for number in range(24)]


def fitted(loaded: Any, questions: Sequence[Question] = QUESTIONS, seed: int = 1, **fields: Any) -> Fitted:
    model, tokenizer = loaded
    work = fields.pop("work", None)
    known = {"key": "iti", "select": {"rule": "top_k", "k": 5}, "ranking": "split"}
    spec = ITISpec.model_validate(known | fields)
    return fit_iti(spec, questions, Anatomy.of(model), tokenizer, seed=seed, work=work)


class ByHand:
    """The activations of every answer to every question, one text at a time, by a plain hook."""

    def __init__(self, loaded: Any, questions: Sequence[Question], last_n: int = 1) -> None:
        self.model, self.tokenizer = loaded
        ordered = sorted(questions, key=lambda question: question.key)
        self.keys: list[str] = []
        labels, ends, tails = [], [], []
        for own, question in enumerate(ordered):
            for is_true, answers in ((True, question.correct), (False, question.incorrect)):
                for answer in answers:
                    text = f"Q: {question.question} A: {answer.removesuffix('.')}"
                    words = len(answer.removesuffix(".").split())
                    self.keys.append(question.key)
                    labels.append(is_true)
                    ends.append(self.read(text)[-min(last_n, words) :].mean(0))
                    content = json.dumps([question.question, answer, is_true]).encode()
                    number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % (len(ordered) - 1)
                    others = ordered[:own] + ordered[own + 1 :]
                    after = others[number].question
                    window = min(last_n, len(after.split()))
                    tails.append(self.read(f"{text} Q: {after}")[-window:].mean(0))
        self.labels = np.array(labels)
        self.ends, self.tails = np.stack(ends), np.stack(tails)  # [texts, layers, heads, head_dim]

    @torch.no_grad()
    def read(self, text: str) -> np.ndarray:
        """[tokens, layers, heads, head_dim]."""
        seen: list[torch.Tensor] = []
        handles = [
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0][0]))
            for block in self.model.model.layers
        ]
        self.model(torch.tensor([self.tokenizer(text)["input_ids"]]))
        for handle in handles:
            handle.remove()
        tokens = len(seen[0])
        return torch.stack(seen, 1).view(tokens, len(handles), -1, HEAD_DIM).double().numpy()

    def probes(self, held_out: frozenset[str], kind: str = "linear", seed: int = 1) -> Any:
        """Accuracies, weights and biases of a probe per head."""
        validation = np.array([key in held_out for key in self.keys])
        shape = self.ends.shape[1:3]
        accuracy, weight, bias = np.zeros(shape), np.zeros((*shape, HEAD_DIM)), np.zeros(shape)
        for layer, head in np.ndindex(shape):
            x = self.ends[:, layer, head]
            if kind == "linear":
                probe = LogisticRegression(max_iter=1000)
            else:
                probe = make_pipeline(StandardScaler(), MLPClassifier((HEAD_DIM,), random_state=seed))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                probe.fit(x[~validation], self.labels[~validation])
            if validation.any():
                right = probe.predict(x[validation]) == self.labels[validation]
                accuracy[layer, head] = right.mean()
            if kind == "linear":
                weight[layer, head], bias[layer, head] = probe.coef_[0], probe.intercept_[0]
        return accuracy, weight, bias

    def cross_validated(self, folds: int = 5, seed: int = 1) -> Any:
        """Accuracies over all answers, each by a probe of other questions; weights and biases of all."""
        of_key = ranking_folds(self.keys, folds, seed)
        right = np.zeros(self.ends.shape[1:3])
        for fold in range(folds):
            held_out = frozenset(key for key, own in of_key.items() if own == fold)
            asked = sum(key in held_out for key in self.keys)
            right += self.probes(held_out)[0] * asked
        return (right / len(self.keys), *self.probes(frozenset())[1:])

    def mass_mean(self, layer: int, head: int) -> np.ndarray:
        x = self.ends[:, layer, head]
        return x[self.labels].mean(0) - x[~self.labels].mean(0)

    def sigma(self, layer: int, head: int, unit: np.ndarray) -> float:
        return float(np.std(self.tails[:, layer, head] @ unit))


def heads_of(found: Fitted) -> list[tuple[int, int]]:
    return [(int(layer), head) for layer, heads in found.provenance["heads"].items() for head in heads]


def best(accuracy: np.ndarray, k: int) -> list[tuple[int, int]]:
    order = sorted(np.ndindex(accuracy.shape), key=lambda place: (-accuracy[place], place))
    return sorted(order[:k])


def assert_tensors(
    found: Fitted,
    known: ByHand,
    heads: Sequence[tuple[int, int]],
    direction: Callable[[int, int], np.ndarray],
    weight: Callable[[int, int], float] = lambda layer, head: 1.0,
    probes: Any = None,
) -> None:
    """Every tensor of these heads is what is expected, and everything else is zero or not there."""
    assert heads_of(found) == sorted(heads)
    layers = sorted({layer for layer, _ in heads})
    parts = ("", ".sigma", ".probe_weight", ".probe_bias")
    assert set(found.tensors) == {f"iti.attention_heads[{layer}]{part}" for layer in layers for part in parts}
    _, weights, biases = probes or known.probes(validation_keys(QUESTIONS, 0.2, 1))
    for layer in layers:
        name = f"iti.attention_heads[{layer}]"
        directions, sigma, w, b = (found.tensors[name + part] for part in parts)
        assert directions.shape == w.shape == (HEADS, HEAD_DIM)
        assert sigma.shape == b.shape == (HEADS,)
        assert {t.dtype for t in (directions, sigma, w, b)} == {torch.float32}
        for head in range(HEADS):
            if (layer, head) not in heads:
                assert not any(t[head].any() for t in (directions, sigma, w, b))
                continue
            unit = direction(layer, head) / np.linalg.norm(direction(layer, head))
            np.testing.assert_allclose(directions[head], unit * weight(layer, head), atol=1e-4)
            np.testing.assert_allclose(sigma[head], known.sigma(layer, head, unit), rtol=1e-3)
            # A fit that stops early tells apart activations that differ by rounding.
            np.testing.assert_allclose(w[head], weights[layer, head], atol=2e-3 * np.abs(weights).max())
            np.testing.assert_allclose(b[head], biases[layer, head], atol=2e-3 * np.abs(biases).max())
            assert float(sigma[head]) > 0
