"""ITI: everything that it gives, computed once more by hand from texts that are read one at a time."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from iti_by_hand import HEAD_DIM, HEADS, LAYERS, QUESTIONS, ByHand, assert_tensors, best, fitted, heads_of

from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.data.truthfulqa.splits import validation_keys
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes import iti
from subvene.runner.recipes.base import Fitted
from subvene.runner.recipes.iti import ITIError, fit_iti
from subvene.runner.recipes.iti_passages import passages
from subvene.specs import ITISpec


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
    """40: of a shorter answer, all of it and nothing of its question; of the question after it likewise."""
    known = by_hand(last_n)
    assert not np.allclose(known.ends, by_hand().ends)
    assert not np.allclose(known.tails, by_hand().tails)
    accuracy, *_ = known.probes(validation_keys(QUESTIONS, 0.2, 1))
    found = fitted(loaded, last_n=last_n)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)
    assert_tensors(found, known, best(accuracy, 5), known.mass_mean)


def test_directions_of_another_window_than_the_probes(loaded: Any, by_hand: Callable[..., ByHand]) -> None:
    known = by_hand(3)
    accuracy, *probes = by_hand().probes(validation_keys(QUESTIONS, 0.2, 1))
    found = fitted(loaded, direction_last_n=3)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], accuracy, atol=1e-6)
    probes = (accuracy, *probes)
    assert_tensors(found, known, best(accuracy, 5), known.mass_mean, probes=probes)


@pytest.mark.parametrize("folds", [3, 5])
def test_ranked_by_cross_validation(loaded: Any, by_hand: Callable[..., ByHand], folds: int) -> None:
    known = by_hand()
    found = fitted(loaded, ranking="cross_validation", ranking_folds=folds)
    whole = known.cross_validated(folds)
    np.testing.assert_allclose(found.provenance["validation_accuracy"], whole[0], atol=1e-6)
    assert found.provenance["validation_questions"] == 24
    assert found.provenance["ranking_folds"] == folds
    assert_tensors(found, known, best(whole[0], 5), known.mass_mean, probes=whole)
    assert not np.allclose(whole[0], known.probes(validation_keys(QUESTIONS, 0.2, 1))[0])


def test_more_folds_than_questions(loaded: Any) -> None:
    with pytest.raises(ITIError, match=r"fit\.ranking_folds: expected at most as many .* 4, found 5"):
        fitted(loaded, QUESTIONS[:4], ranking="cross_validation")


def test_periods_as_the_data_has_them(loaded: Any) -> None:
    """An answer that is written with a period is read with it, and none that is written without."""
    written = [replace(QUESTIONS[0], with_period=QUESTIONS[0].correct[:1]), *QUESTIONS[1:]]
    texts: list[str] = []

    def tokenizer(some: list[str], **options: Any) -> Any:
        texts.extend(some)
        return loaded[1](some, **options)

    answers = iti.answers_of(written)
    passages(answers, tokenizer, ITISpec(key="iti"))
    assert sum(text.endswith(".") for text in texts) == 1
    answer = f"Q: {QUESTIONS[0].question} A: {QUESTIONS[0].correct[0]}"
    assert answer in texts
    assert answer.endswith(".")
    as_written = fitted(loaded, written)
    assert_same(fitted(loaded, written, periods="stripped"), fitted(loaded, periods="stripped"))
    stripped = fitted(loaded).tensors
    assert any(not torch.equal(as_written.tensors[name], stripped[name]) for name in stripped)


def test_a_boundary_within_a_token(loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens of the whole text are not those of the answer and then some, the answer's are read."""

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

    answers = iti.answers_of(QUESTIONS)
    for answer, passage in zip(answers, passages(answers, Merging(), ITISpec(key="iti")), strict=True):
        alone = f"Q: {answer.question.question} A: {answer.text.removesuffix('.')}"
        expected = [hash_of(word) for word in alone.split()]
        (start, end), after = passage.spans
        assert (start, end) == (len(expected) - 1, len(expected))
        assert list(passage.ids[:end]) == expected
        assert after == (len(passage.ids) - 1, len(passage.ids))
        assert len(passage.ids) > end + 2


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


@pytest.mark.long
@pytest.mark.slow
def test_on_smollm2(smollm2: Any) -> None:
    """Directions, σ and accuracies of a few heads of the real model, against texts that are read alone."""
    model, tokenizer = smollm2
    spec = ITISpec.model_validate(
        {"key": "iti", "select": {"rule": "top_k", "k": 6}, "validation": 0.25, "ranking": "split"}
    )
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
