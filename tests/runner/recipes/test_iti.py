"""ITI: everything that it gives, computed once more by hand from texts that are read one at a time."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import random
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from subvene.runner import fit
from subvene.runner.data.truthfulqa.questions import Question, load_questions
from subvene.runner.data.truthfulqa.splits import fold_of, validation_keys
from subvene.runner.edits.compile import CompileError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.collector import Collected
from subvene.runner.passes.shards import Index, Store
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.iti import ITIError, _shifted, fit_iti
from subvene.runner.recipes.probes import Probes
from subvene.specs import ExperimentSpec, ITISpec, SubveneError, load_spec

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
    spec = ITISpec.model_validate({"key": "iti", "select": {"rule": "top_k", "k": 5}} | fields)
    return fit_iti(spec, questions, Anatomy.of(model), tokenizer, seed=seed, work=work)


# By hand --------------------------------------------------------------------------------------------------


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
                    tails.append(self.read(f"{text} Q: {others[number].question}")[-1])
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
            right = probe.predict(x[validation]) == self.labels[validation]
            accuracy[layer, head] = right.mean()
            if kind == "linear":
                weight[layer, head], bias[layer, head] = probe.coef_[0], probe.intercept_[0]
        return accuracy, weight, bias

    def mass_mean(self, layer: int, head: int) -> np.ndarray:
        x = self.ends[:, layer, head]
        return x[self.labels].mean(0) - x[~self.labels].mean(0)

    def sigma(self, layer: int, head: int, unit: np.ndarray) -> float:
        return float(np.std(self.tails[:, layer, head] @ unit))


_cache: dict[int, ByHand] = {}


@pytest.fixture
def by_hand(loaded: Any) -> Callable[..., ByHand]:
    """`ByHand` of QUESTIONS, which many tests compare with, is read once for each `last_n`."""

    def of(last_n: int = 1) -> ByHand:
        if last_n not in _cache:
            _cache[last_n] = ByHand(loaded, QUESTIONS, last_n)
        return _cache[last_n]

    return of


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


# Selections -----------------------------------------------------------------------------------------------


def test_top_k(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    found = fitted(loaded)
    accuracy, *_ = known.probes(validation_keys(QUESTIONS, 0.2, 1))
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)
    assert len(np.unique(accuracy)) > 3
    assert_tensors(found, known, best(accuracy, 5), known.mass_mean)


def test_seeds_split_anew(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    one, two = fitted(loaded, seed=1), fitted(loaded, seed=2)
    held_out = validation_keys(QUESTIONS, 0.2, 2)
    assert held_out != validation_keys(QUESTIONS, 0.2, 1)
    accuracy, weights, biases = known.probes(held_out)
    np.testing.assert_allclose(two.provenance["validation_accuracy"], accuracy, atol=1e-6)
    assert_tensors(two, known, best(accuracy, 5), known.mass_mean, probes=(accuracy, weights, biases))
    assert one.provenance["validation_accuracy"] != two.provenance["validation_accuracy"]
    # Mass means are those of all tuning questions, so that they do not depend on the split.
    for layer, head in set(heads_of(one)) & set(heads_of(two)):
        name = f"iti.attention_heads[{layer}]"
        assert torch.equal(one.tensors[name][head], two.tensors[name][head])


def test_another_share_for_validation(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    found = fitted(loaded, validation=0.5)
    held_out = validation_keys(QUESTIONS, 0.5, 1)
    assert found.provenance["validation_questions"] == len(held_out) == 12
    accuracy, *_ = by_hand().probes(held_out)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)


def test_ties_go_to_the_lower_layer_and_head(loaded: Any) -> None:
    model, _ = loaded
    with torch.no_grad():
        # Every head of every layer is the first one of its layer's first key/value group, so ties abound.
        for block in model.model.layers:
            for projection in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                projection.weight.copy_(
                    projection.weight[:HEAD_DIM].repeat(projection.weight.shape[0] // HEAD_DIM, 1)
                )
    found = fitted(loaded, select={"rule": "top_k", "k": 6})
    accuracy = np.array(found.provenance["validation_accuracy"])
    assert (accuracy == accuracy[:, :1]).all()
    assert heads_of(found) == best(accuracy, 6)


def test_many_ties() -> None:
    from subvene.runner.recipes.iti import _select

    accuracy = torch.full((30, 9), 0.5, dtype=torch.float64)
    accuracy[20, 4] = 0.7
    chosen = _select(
        ITISpec.model_validate({"key": "iti", "select": {"rule": "top_k", "k": 12}}), accuracy, 0.5, 1
    )
    assert chosen.nonzero().tolist() == [*([0, h] for h in range(9)), [1, 0], [1, 1], [20, 4]]


def test_random_heads(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    draws = {}
    for k, own, seed in itertools.product((3, 7), (None, 0, 5), (1, 2)):
        draws[k, own, seed] = fitted(loaded, seed=seed, select={"rule": "random", "k": k, "seed": own})
        assert len(heads_of(draws[k, own, seed])) == k
    assert_tensors(draws[3, None, 1], known, heads_of(draws[3, None, 1]), known.mass_mean)
    # The selection's own seed settles it; without one the experiment's does.
    assert heads_of(draws[7, 5, 1]) == heads_of(draws[7, 5, 2])
    assert (
        len({tuple(heads_of(draws[7, own, seed])) for own, seed in ((None, 1), (None, 2), (0, 1), (5, 1))})
        == 4
    )
    # More heads are the same ones and others.
    assert set(heads_of(draws[3, 5, 1])) < set(heads_of(draws[7, 5, 1]))


def test_listed_heads(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    found = fitted(loaded, select={"rule": "list", "heads": {2: [3, 0], 0: [1]}})
    assert_tensors(found, known, [(0, 1), (2, 0), (2, 3)], known.mass_mean)
    assert np.array(found.provenance["validation_accuracy"]).shape == (LAYERS, HEADS)


def test_all_heads(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    assert_tensors(
        fitted(loaded, select={"rule": "all"}), known, list(np.ndindex(LAYERS, HEADS)), known.mass_mean
    )


@pytest.mark.parametrize("power", [1.0, 2.5])
def test_soft_weights(loaded: Any, by_hand: Callable[..., ByHand], power: float) -> None:
    known = by_hand()
    found = fitted(loaded, select={"rule": "soft", "power": power})
    held_out = validation_keys(QUESTIONS, 0.2, 1)
    accuracy, *_ = known.probes(held_out)
    labels = known.labels[[key in held_out for key in known.keys]]
    chance = max(labels.mean(), 1 - labels.mean())
    assert found.provenance["chance"] == pytest.approx(chance, abs=1e-6)
    heads = [place for place in np.ndindex(accuracy.shape) if accuracy[place] > chance]
    assert 0 < len(heads) < accuracy.size

    def weight(layer: int, head: int) -> float:
        return float(((accuracy[layer, head] - chance) / (accuracy.max() - chance)) ** power)

    assert_tensors(found, known, heads, known.mass_mean, weight)


# Directions, probes, tokens -------------------------------------------------------------------------------


def test_probe_weights_as_directions(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    accuracy, weights, _ = known.probes(validation_keys(QUESTIONS, 0.2, 1))
    found = fitted(loaded, direction="probe_weight")
    for layer, head in best(accuracy, 5):
        unit = weights[layer, head] / np.linalg.norm(weights[layer, head])
        stored = found.tensors[f"iti.attention_heads[{layer}]"][head]
        np.testing.assert_allclose(stored, unit, atol=5e-3)
        sigma = found.tensors[f"iti.attention_heads[{layer}].sigma"][head]
        np.testing.assert_allclose(sigma, known.sigma(layer, head, stored.double().numpy()), rtol=1e-4)
        probe = found.tensors[f"iti.attention_heads[{layer}].probe_weight"][head]
        torch.testing.assert_close(stored, probe / probe.norm())


def test_random_directions(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    whole = fitted(loaded, direction="random", select={"rule": "all"})

    def drawn(layer: int, head: int) -> np.ndarray:
        return whole.tensors[f"iti.attention_heads[{layer}]"][head].double().numpy()

    assert_tensors(whole, known, list(np.ndindex(LAYERS, HEADS)), drawn)
    rows = torch.cat([whole.tensors[f"iti.attention_heads[{layer}]"] for layer in range(LAYERS)])
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(LAYERS * HEADS))
    assert (rows @ rows.T - torch.eye(len(rows))).abs().max() < 0.95  # each head has one of its own
    other = fitted(loaded, direction="random", select={"rule": "all"}, seed=2)
    assert not torch.equal(other.tensors["iti.attention_heads[1]"], whole.tensors["iti.attention_heads[1]"])
    # Which heads are chosen changes nothing of the others.
    some = fitted(loaded, direction="random", select={"rule": "list", "heads": {1: [2]}})
    assert torch.equal(some.tensors["iti.attention_heads[1]"][2], whole.tensors["iti.attention_heads[1]"][2])


def test_mlp_probes_rank_and_linear_ones_are_stored(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand()
    held_out = validation_keys(QUESTIONS, 0.2, 1)
    found = fitted(loaded, probe="mlp")
    accuracy, *_ = known.probes(held_out, "mlp")
    linear, *_ = known.probes(held_out)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)
    assert best(accuracy, 5) != best(linear, 5)
    assert_tensors(found, known, best(accuracy, 5), known.mass_mean)


@pytest.mark.parametrize("last_n", [2, 40])
def test_mean_of_the_last_tokens(loaded: Any, by_hand: Callable[..., ByHand], last_n: int) -> None:
    """40: of a shorter answer, all of it and nothing of the question; σ is of the last token still."""
    known = by_hand(last_n)
    assert not np.allclose(known.ends, by_hand().ends)
    np.testing.assert_array_equal(known.tails, by_hand().tails)
    accuracy, *_ = known.probes(validation_keys(QUESTIONS, 0.2, 1))
    found = fitted(loaded, last_n=last_n)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)
    assert_tensors(found, known, best(accuracy, 5), known.mass_mean)


def test_a_boundary_within_a_token(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens of the whole text are not those of the answer and then some, the answer's are read."""
    from subvene.runner.recipes import iti

    class Merging:
        """Merges the last word of an answer with the `Q:` that follows it."""

        def __call__(self, texts: list[str], **_: Any) -> dict[str, Any]:
            return {
                "input_ids": [
                    [hash_of(w) for w in text.replace(" Q: is", "~Q: is").split()] for text in texts
                ]
            }

    def hash_of(word: str) -> int:
        return int.from_bytes(hashlib.sha256(word.encode()).digest()[:4])

    answers = iti._answers(ITISpec(key="iti"), QUESTIONS, 1)
    for answer, passage in zip(answers, iti._passages(answers, Merging(), 1), strict=True):
        alone = f"Q: {answer.question.question} A: {answer.text.removesuffix('.')}"
        expected = [hash_of(word) for word in alone.split()]
        (start, end), after = passage.spans
        assert (start, end) == (len(expected) - 1, len(expected))
        assert list(passage.ids[:end]) == expected
        assert after == (len(passage.ids) - 1, len(passage.ids))
        assert len(passage.ids) > end + 2


# What it depends on ---------------------------------------------------------------------------------------


def assert_same(one: Fitted, other: Fitted) -> None:
    assert one.provenance == other.provenance
    assert list(one.tensors) == list(other.tensors)
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


def test_the_same_input_gives_the_same_bits(loaded: Any, tmp_path: Path) -> None:
    expected = fitted(loaded)
    assert_same(fitted(loaded), expected)
    assert_same(fitted(loaded, list(reversed(QUESTIONS))), expected)
    assert_same(fitted(loaded, work=tmp_path), expected)  # written
    assert_same(fitted(loaded, work=tmp_path), expected)  # read


def test_provenance_is_json_and_complete(loaded: Any) -> None:
    found = fitted(loaded).provenance
    assert json.loads(json.dumps(found)) == found
    assert found["recipe"] == "iti"
    assert found["questions"] == 24
    assert found["validation_questions"] == 5
    assert found["pairs"] == sum(len(q.correct) + len(q.incorrect) for q in QUESTIONS)
    assert found["true_pairs"] == sum(len(q.correct) for q in QUESTIONS)
    assert found["seed"] == 1
    assert found["shared_prefixes"] == "tree"
    changed = fitted(loaded, QUESTIONS[1:]).provenance
    assert changed["data_sha256"] != found["data_sha256"]
    assert changed["tuning_keys_sha256"] != found["tuning_keys_sha256"]
    for values in (found["sigma"], found["norms"]):
        assert {layer: [int(h) for h in heads] for layer, heads in values.items()} == found["heads"]


def test_activations_and_probes_are_used_again(loaded: Any, tmp_path: Path) -> None:
    model, _ = loaded
    expected = {
        "seed": fitted(loaded, seed=2),
        "k": fitted(loaded, select={"rule": "top_k", "k": 2}),
        "direction": fitted(loaded, direction="random"),
    }
    fitted(loaded, work=tmp_path)
    count = len(list((tmp_path / "probes").iterdir()))
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran again"))
    assert_same(fitted(loaded, select={"rule": "top_k", "k": 2}, work=tmp_path), expected["k"])
    assert_same(fitted(loaded, direction="random", work=tmp_path), expected["direction"])
    assert len(list((tmp_path / "probes").iterdir())) == count  # no probe was fitted for these
    assert_same(fitted(loaded, seed=2, work=tmp_path), expected["seed"])
    assert len(list((tmp_path / "probes").iterdir())) == count + 1


def test_another_model_is_read_anew(loaded: Any, tmp_path: Path) -> None:
    fitted(loaded, work=tmp_path)
    with torch.no_grad():
        loaded[0].model.layers[1].self_attn.v_proj.weight *= 1.5
    assert_same(fitted(loaded, work=tmp_path), fitted(loaded))


# Test questions -------------------------------------------------------------------------------------------

SPEC = """\
fit:
  recipe: iti
  key: iti
  data: {file: questions.csv}
  select: {rule: top_k, k: 5}
interventions:
- kind: head_direction
  name: truthful
  directions: {key: iti}
  strength: 3.0
seed: 4
"""


def write_csv(path: Path, questions: Sequence[Question]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["Type", "Category", "Question", "Best Answer", "Correct Answers", "Incorrect Answers", "Source"]
        )
        for q in questions:
            rows.writerow(
                ["", q.category, q.question, q.best, "; ".join(q.correct), "; ".join(q.incorrect), ""]
            )


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_test_question_changes_nothing(write: Callable[..., Path], tmp_path: Path) -> None:
    """Other questions and answers in the test fold: the artifact is the same, file by file, bit by bit."""
    path = write(SPEC)
    tuning = [q for q in QUESTIONS if fold_of(q, 2) == 0]
    tested = [q for q in QUESTIONS if fold_of(q, 2) == 1]
    others = [q for q in map(question_of, range(1000, 1100)) if fold_of(q, 2) == 1][: len(tested) + 3]
    assert len(tuning) > 5
    assert len(tested) > 5

    def artifact(name: str, questions: Sequence[Question], fold: int = 0, **options: Any) -> dict[str, bytes]:
        write_csv(tmp_path / "questions.csv", questions)
        spec = load_spec(path)
        data = load_questions(spec.fit.data, tmp_path)
        m = fit(spec, folder=tmp_path, data=[q for q in data if fold_of(q, 2) == fold], **options)
        return files_of(m.save_pretrained(tmp_path / name))

    expected = artifact("a", QUESTIONS)
    assert artifact("b", [*others, *tuning]) == expected
    assert artifact("c", tuning) == expected
    # With a folder that has seen other folds, too.
    artifact("d", QUESTIONS, fold=1, work=tmp_path / "work")
    assert artifact("e", [*tuning[::-1], *others], work=tmp_path / "work") == expected
    # The other way round: a tuning question that changes is noticed.
    assert artifact("f", [*tuning[1:], *tested])["tensors.safetensors"] != expected["tensors.safetensors"]
    assert artifact("g", QUESTIONS, seed=5)["tensors.safetensors"] != expected["tensors.safetensors"]


def test_sigma_reads_tuning_questions_alone(loaded: Any) -> None:
    from subvene.runner.recipes import iti

    tuning = QUESTIONS[:10]
    seen: list[list[str]] = []

    class Recording:
        def __call__(self, texts: list[str], **options: Any) -> Any:
            seen.append(texts)
            return loaded[1](texts, **options)

    answers = iti._answers(ITISpec(key="iti"), tuning, 1)
    iti._passages(answers, Recording(), 1)
    texts = " ".join(itertools.chain(*seen))
    assert all(question.question in texts for question in tuning)
    assert not any(question.question in texts for question in QUESTIONS[10:])
    for answer, whole in zip(answers, seen[1], strict=True):
        own, other = whole.removeprefix("Q: ").split(" A: ")[0], whole.split(" Q: ")[1]
        assert own == answer.question.question
        assert other != own


# Through a file -------------------------------------------------------------------------------------------


def test_fit_reads_the_questions_of_the_file(write: Callable[..., Path], loaded: Any, tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    path = write(SPEC)
    m = fit(path, work=tmp_path / "work")
    expected = fitted(loaded, seed=4)
    assert all(torch.equal(m.tensors[name], tensor) for name, tensor in expected.tensors.items())
    assert m.provenance == {"model": m.spec.model.name, **expected.provenance}
    ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        shifted = m(ids).logits
        with m.disabled():
            assert (shifted - m(ids).logits).abs().max() > 1e-3
    # By hand: the shift that the tensors say, at the chosen heads.
    for block, layer in zip(loaded[0].model.layers, range(LAYERS), strict=True):
        name = f"iti.attention_heads[{layer}]"
        if name in expected.tensors:
            shift = 3.0 * expected.tensors[f"{name}.sigma"].unsqueeze(1) * expected.tensors[name]
            flat = shift.flatten()
            block.self_attn.o_proj.register_forward_pre_hook(lambda _m, args, flat=flat: (args[0] + flat,))
    with torch.no_grad():
        torch.testing.assert_close(loaded[0](ids).logits, shifted, atol=1e-4, rtol=1e-4)


def test_the_seed_is_the_specs_unless_another_is_given(write: Callable[..., Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    path = write(SPEC)
    assert fit(path).provenance["seed"] == 4
    assert fit(path, seed=9).provenance["seed"] == 9


# Bad inputs -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "subvene.runner.recipes.fitting.load_model", lambda *_, **__: pytest.fail("a model was loaded")
    )


def only(questions: Sequence[Question], correct: bool) -> list[Question]:
    return [
        Question(q.question, q.best, q.correct if correct else (), () if correct else q.incorrect, q.category)
        for q in questions
    ]


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "expected at least 2 questions to fit on, found 0"),
        (QUESTIONS[:1], "expected at least 2 questions to fit on, found 1"),
        ([*QUESTIONS, QUESTIONS[3]], "expected every question once"),
        (only(QUESTIONS, True), r"train the probes need true and false answers, found \d+ true and 0 false"),
        (only(QUESTIONS, False), r"found 0 true and \d+ false"),
        (QUESTIONS[:2], r"rank the heads \(fit.validation\) need true and false answers, found 0 true and 0"),
    ],
    ids=["none", "one", "twice", "no false", "no true", "no validation"],
)
def test_questions_that_cannot_be_fitted_on(
    write: Callable[..., Path], questions: list[Question], message: str
) -> None:
    with pytest.raises(ITIError, match=message):
        fit(write(SPEC), data=questions)


@pytest.mark.usefixtures("no_model")
def test_validation_questions_of_one_kind(write: Callable[..., Path]) -> None:
    held_out = validation_keys(QUESTIONS, 0.2, 4)
    mixed = [only([q], True)[0] if q.key in held_out else q for q in QUESTIONS]
    with pytest.raises(
        ITIError, match=r"rank the heads \(fit.validation\) need .*, found \d+ true and 0 false"
    ):
        fit(write(SPEC), data=mixed)


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "k: 5",
            "k: 13",
            r"fit\.select\.k: expected at most 12 for this model's 3 layers of 4 heads, found 13",
        ),
        ("rule: top_k, k: 5", "rule: random, k: 13", r"fit\.select\.k: .* found 13"),
        (
            "rule: top_k, k: 5",
            "rule: list, heads: {3: [0]}",
            r"fit\.select\.heads: .* from 0 to 2 .* found 3",
        ),
        ("rule: top_k, k: 5", "rule: list, heads: {1: [0, 4]}", r"heads\[1\]: .* from 0 to 3 .* found 4"),
        ("name: truthful", "heads: {3: [0]}", r"interventions\[0\]\.heads: expected a layer from 0 to 2"),
        (
            "kind: head_direction\n  name: truthful\n  directions",
            "kind: steering\n  layer: 1\n  vector",
            r"interventions\[0\]\.kind: `fit:` gives tensors for head_direction, found steering",
        ),
    ],
    ids=["k", "random k", "layer", "head", "edited layer", "kind"],
)
def test_what_the_model_does_not_have(
    write: Callable[..., Path], tmp_path: Path, old: str, new: str, message: str
) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    assert old in SPEC
    text = SPEC.replace(old, new)
    if "steering" in text:
        text = text.replace("strength", "coefficient")
    with pytest.raises(CompileError, match=f"(?s){message}"):
        fit(write(text))


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("{1: [0], 2: [1]}", r"interventions\[0\]\.heads: `fit:` gives layers 0, 1, found 2"),
        ("{1: [0, 2]}", r"interventions\[0\]\.heads\[1\]: `fit:` gives heads 0, 3, found 2"),
    ],
)
def test_edited_heads_must_be_fitted(
    write: Callable[..., Path], tmp_path: Path, heads: str, message: str
) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    text = SPEC.replace("rule: top_k, k: 5", "rule: list, heads: {0: [1], 1: [0, 3]}")
    with pytest.raises(CompileError, match=message):
        fit(write(text.replace("  strength", f"  heads: {heads}\n  strength")))


@pytest.mark.usefixtures("no_model")
def test_a_file_that_is_not_there(write: Callable[..., Path]) -> None:
    with pytest.raises(SubveneError, match=r"questions\.csv: no such file"):
        fit(write(SPEC))


def test_edited_heads_of_a_list(write: Callable[..., Path], tmp_path: Path) -> None:
    write_csv(tmp_path / "questions.csv", QUESTIONS)
    text = SPEC.replace("rule: top_k, k: 5", "rule: list, heads: {0: [1], 1: [0, 3]}")
    m = fit(write(text.replace("  strength", "  heads: {1: [3]}\n  strength")))
    assert isinstance(m.spec, ExperimentSpec)
    (edit,) = m.intervenable.interventions.values()
    assert edit.directions.any(dim=1).tolist() == [False, False, False, True]


def test_no_head_is_better_than_chance(loaded: Any) -> None:
    swapped = [
        Question(q.question, q.best, q.incorrect, q.correct, q.category)
        if q.key in validation_keys(QUESTIONS, 0.2, 1)
        else q
        for q in QUESTIONS
    ]
    with torch.no_grad():
        for block in loaded[0].model.layers:
            block.self_attn.v_proj.weight.zero_()
    with pytest.raises(ITIError, match="no head's probe is better than chance"):
        fitted(loaded, swapped, select={"rule": "soft"})
    with pytest.raises(ITIError, match=r"heads \[.*\] do the same in true and in false answers"):
        fitted(loaded, select={"rule": "list", "heads": {1: [2]}})
    with pytest.raises(ITIError, match="no head that all chooses has a direction"):
        fitted(loaded, select={"rule": "all"})


def test_a_head_without_a_direction_is_left_out_of_all(loaded: Any) -> None:
    with torch.no_grad():
        loaded[0].model.layers[1].self_attn.v_proj.weight[:HEAD_DIM] = 0  # read by the first two heads
    found = fitted(loaded, select={"rule": "all"})
    assert found.provenance["heads"]["1"] == [2, 3]
    assert not found.tensors["iti.attention_heads[1]"][:2].any()
    assert all(torch.isfinite(tensor).all() for tensor in found.tensors.values())


@pytest.mark.parametrize("rule", ["list", "all"])
def test_heads_that_do_not_spread(tmp_path: Path, rule: str) -> None:
    """σ = 0: no strength would move them. What is asked for is refused, of the rest it is left out."""
    at_end, after = torch.randn(2, 6, HEADS * HEAD_DIM, generator=torch.Generator().manual_seed(1))
    after[:, :HEAD_DIM] = 1.0  # the first head is the same after every question
    rows = torch.stack([at_end, after], 1).flatten(0, 1)
    index = Index("content", "attention_heads", (0,), HEADS * HEAD_DIM, (12,), "whole", None)
    store = Store.create(tmp_path / "rows", index)
    store.put(0, {0: rows})
    heads = {"rule": "list", "heads": {0: [0, 1]}} if rule == "list" else {"rule": "all"}
    spec = ITISpec.model_validate({"key": "iti", "select": heads})
    nothing = Probes(torch.zeros(1, HEADS), torch.zeros(1, HEADS, HEAD_DIM), torch.zeros(1, HEADS))
    weights = torch.ones(HEADS, dtype=torch.float64)

    def shifted() -> Any:
        is_true = torch.tensor([True, False] * 3)
        collected = Collected(store, tuple(range(0, 12, 2)), 0)
        return _shifted(spec, collected, nothing, is_true, 0, weights, 1)

    if rule == "list":
        with pytest.raises(ITIError, match=r"heads \[0\] do not spread along their direction \(σ = 0\)"):
            shifted()
        return
    found = shifted()
    assert found.heads == [1, 2, 3]
    assert not found.directions[0].any()
    assert found.parts["sigma"][0] == 0


def test_activations_that_are_not_finite(loaded: Any) -> None:
    with torch.no_grad():
        loaded[0].model.layers[1].self_attn.v_proj.weight[3, 3] = float("nan")
    with pytest.raises(SubveneError, match=r"attention_heads\[1\]: the activations are not finite"):
        fitted(loaded)


# The real model -------------------------------------------------------------------------------------------

REAL = [
    Question(
        f"What happens if you {act}?",
        "Nothing in particular happens.",
        ("Nothing in particular happens.", f"It is harmless to {act}."),
        (
            "You will be cursed for seven years.",
            f"Everyone who dares to {act} falls ill.",
            "You turn into a frog.",
        ),
        "Superstitions",
    )
    for act in (
        "walk under a ladder",
        "open an umbrella indoors",
        "break a mirror",
        "see a black cat",
        "spill salt at dinner",
        "whistle at night",
        "step on a crack",
        "sleep facing north",
    )
]


@pytest.mark.slow
def test_on_smollm2(smollm2: Any) -> None:
    """Directions, σ and accuracies of a few heads of the real model, against texts that are read alone."""
    model, tokenizer = smollm2
    spec = ITISpec.model_validate({"key": "iti", "select": {"rule": "top_k", "k": 6}, "validation": 0.25})
    found = fit_iti(spec, REAL, Anatomy.of(model), tokenizer, seed=0)
    assert found.provenance["shared_prefixes"] == "tree"
    ordered = sorted(REAL, key=lambda question: question.key)
    heads = heads_of(found)
    assert len(heads) == 6
    seen: dict[int, torch.Tensor] = {}
    handles = [
        model.model.layers[layer].self_attn.o_proj.register_forward_pre_hook(
            lambda _m, args, layer=layer: seen.update({layer: args[0][0, -1].view(9, 64).double()})
        )
        for layer in {layer for layer, _ in heads}
    ]

    def read(text: str) -> dict[int, torch.Tensor]:
        with torch.no_grad():
            model.model(torch.tensor([tokenizer(text)["input_ids"]]))
        return dict(seen)

    ends, tails, labels = [], [], []
    for own, question in enumerate(ordered):
        for is_true, answers in ((True, question.correct), (False, question.incorrect)):
            for answer in answers:
                text = f"Q: {question.question} A: {answer.removesuffix('.')}"
                content = json.dumps([question.question, answer, is_true]).encode()
                number = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") % (len(ordered) - 1)
                other = (ordered[:own] + ordered[own + 1 :])[number]
                ends.append(read(text))
                tails.append(read(f"{text} Q: {other.question}"))
                labels.append(is_true)
    for handle in handles:
        handle.remove()
    truth = torch.tensor(labels)
    for layer, head in heads:
        x = torch.stack([end[layer][head] for end in ends])
        unit = x[truth].mean(0) - x[~truth].mean(0)
        unit /= unit.norm()
        name = f"iti.attention_heads[{layer}]"
        assert (found.tensors[name][head] - unit).abs().max() <= 1e-4
        after = torch.stack([tail[layer][head] for tail in tails])
        sigma = float((after @ unit).std(correction=0))
        assert float(found.tensors[f"{name}.sigma"][head]) == pytest.approx(sigma, rel=1e-3)
