"""The recipe `refusal`: every candidate and its three scores by plain hooks, a prompt at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contrast_by_hand import instruction, of_words
from tiny_model import LAYERS, WORDS

from subvene.runner import IntervenedModel, fit
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.refusal import fit_refusal
from subvene.specs import RefusalSpec, SubveneError, resolve_pairs

POSITIVE = ["hello world", "how are you", "i am glad", "sad day", "the rain", "not happy , gloomy"]
NEGATIVE = ["tell me", "about the train", "a good day .", "sun", "it is very bad ?"]
PAIRS = {"prompts": {"positive": POSITIVE, "negative": NEGATIVE}}
# In a model of random weights refusals begin with every second word.
REFUSAL = WORDS[7::2]
LOOSE: dict[str, Any] = {"max_kl": 100.0, "min_induced": -100.0, "filter": False, "refusal_words": REFUSAL}


def fitted(loaded: Any, **fields: Any) -> Any:
    spec = RefusalSpec.model_validate({"key": "x", "pairs": PAIRS, **LOOSE, **fields})
    pairs = resolve_pairs(spec.pairs, ".")
    return fit_refusal(spec, pairs, Anatomy.of(loaded[0]), loaded[1], seed=3)


def shares(prompts: list[str], share: float = 0.2) -> tuple[list[str], list[str]]:
    """What is read, and by what is chosen."""
    order = np.random.default_rng([3]).permutation(len(prompts)).tolist()
    n = max(1, round(len(prompts) * share))
    return [prompts[i] for i in sorted(order[n:])], [prompts[i] for i in sorted(order[:n])]


@contextmanager
def hooked(model: Any, places: list[tuple[str, int]], change: Callable[[Any], Any]) -> Iterator[None]:
    handles = []
    for site, layer in places:
        block = model.model.layers[layer]
        if site == "block_input":
            handles.append(block.register_forward_pre_hook(lambda _, args: (change(args[0]), *args[1:])))
        elif site == "attention_output":
            hook = lambda _m, _a, out: (change(out[0]), *out[1:])  # noqa: E731
            handles.append(block.self_attn.register_forward_hook(hook))
        else:
            handles.append(block.mlp.register_forward_hook(lambda _m, _a, out: change(out)))
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def next_logits(loaded: Any, prompt: str) -> torch.Tensor:
    ids = loaded[1].convert_tokens_to_ids(instruction(prompt).split())
    return loaded[0](torch.tensor([ids])).logits[0, -1].double()


def refusal_score(loaded: Any, prompts: list[str]) -> float:
    tokens = loaded[1].convert_tokens_to_ids(REFUSAL)
    found = []
    for prompt in prompts:
        p = float(next_logits(loaded, prompt).softmax(0)[tokens].sum())
        found.append(math.log(p) - math.log(1 - p))
    return sum(found) / len(found)


def input_of(loaded: Any, prompt: str, layer: int, position: int) -> torch.Tensor:
    """The input of a block is what the block below puts out, or the embeddings."""
    if layer:
        return of_words(loaded, instruction(prompt), layer - 1)[position]
    ids = loaded[1].convert_tokens_to_ids(instruction(prompt).split())
    return loaded[0].model.embed_tokens.weight.detach()[ids[position]].double()


def by_hand(loaded: Any, layer: int, position: int) -> tuple[torch.Tensor, dict[str, float]]:
    (read_p, chosen_p), (read_n, chosen_n) = shares(POSITIVE), shares(NEGATIVE)
    means = [
        torch.stack([input_of(loaded, prompt, layer, position) for prompt in prompts]).mean(0)
        for prompts in (read_p, read_n)
    ]
    direction = (means[0] - means[1]).float()
    unit = direction / direction.norm()
    everywhere = [
        (site, n) for n in range(LAYERS) for site in ("block_input", "attention_output", "mlp_output")
    ]
    before = [next_logits(loaded, prompt).log_softmax(0) for prompt in chosen_n]
    with hooked(loaded[0], everywhere, lambda h: h - (h @ unit)[..., None] * unit):
        bypass = refusal_score(loaded, chosen_p)
        after = [next_logits(loaded, prompt).log_softmax(0) for prompt in chosen_n]
    with hooked(loaded[0], [("block_input", layer)], lambda h: h + direction):
        induced = refusal_score(loaded, chosen_n)
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(before, after, strict=True)) / len(before)
    return direction, {"bypass": bypass, "induced": induced, "kl": kl}


@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_candidate_has_the_scores_of_the_paper_and_the_best_is_chosen(
    loaded: Any, batch_size: int
) -> None:
    found = fitted(loaded, batch_size=batch_size)
    candidates = found.provenance["candidates"]
    # Three tokens stand behind the instruction, and the last fifth of the layers gives no direction. At
    # block 0 these tokens are the same in all prompts.
    assert [(one["layer"], one["position"]) for one in candidates] == [(1, -3), (1, -2), (1, -1)]
    for one in candidates:
        _, expected = by_hand(loaded, one["layer"], one["position"])
        assert {name: one[name] for name in expected} == pytest.approx(expected, abs=1e-4)
    best = min(candidates, key=lambda one: one["bypass"])
    assert {name: found.provenance[name] for name in best} == best
    direction, _ = by_hand(loaded, best["layer"], best["position"])
    assert len(found.tensors) == 3 * LAYERS
    for tensor in found.tensors.values():
        assert (tensor - direction).abs().max() < 1e-5
    before = {"positive": refusal_score(loaded, shares(POSITIVE)[1])}
    before["negative"] = refusal_score(loaded, shares(NEGATIVE)[1])
    assert found.provenance["untouched"] == pytest.approx(before, abs=1e-4)


def test_limits_leave_candidates_out(loaded: Any) -> None:
    free = fitted(loaded).provenance
    limit = sorted(one["induced"] for one in free["candidates"])[-1]
    most = fitted(loaded, min_induced=limit - 1e-5).provenance
    assert most["induced"] == limit
    least = min(one["kl"] for one in free["candidates"])
    assert fitted(loaded, max_kl=least + 1e-5).provenance["kl"] == least
    with pytest.raises(SubveneError, match=r"none of 3 candidates has kl .* the least kl is"):
        fitted(loaded, max_kl=least / 2)


def test_what_is_chosen_by_is_what_the_artifact_does(loaded: Any, tmp_path: Path) -> None:
    m = fit("refusal", *loaded, pairs=PAIRS, seed=3, **LOOSE)
    assert [one.site for one in m.spec.interventions] == ["block_input", "attention_output", "mlp_output"]
    chosen = shares(POSITIVE)[1]
    tokens = loaded[1].convert_tokens_to_ids(REFUSAL)
    for model in (m, IntervenedModel.from_pretrained(m.save_pretrained(tmp_path / "art"))):
        found = []
        for prompt in chosen:
            ids = torch.tensor([loaded[1].convert_tokens_to_ids(instruction(prompt).split())])
            with torch.no_grad():
                p = float(model(ids).logits[0, -1].double().softmax(0)[tokens].sum())
            found.append(math.log(p / (1 - p)))
        assert sum(found) / len(found) == pytest.approx(m.provenance["bypass"], abs=1e-4)


def test_it_can_be_added_at_the_layer_that_gave_it(loaded: Any) -> None:
    layer = fitted(loaded).provenance["layer"]
    m = fit("refusal", *loaded, pairs=PAIRS, seed=3, kind="steering", layer=layer, coefficient=1.0, **LOOSE)
    (edit,) = m.spec.interventions
    assert (edit.site, edit.kind) == ("block_input", "steering")
    ids = torch.tensor([loaded[1].convert_tokens_to_ids(instruction(NEGATIVE[0]).split())])
    vector = m.tensors[f"refusal.block_input[{layer}]"]
    with hooked(loaded[0], [("block_input", layer)], lambda h: h + vector), torch.no_grad():
        expected = loaded[0](ids).logits
    with torch.no_grad():
        assert (m(ids).logits - expected).abs().max() < 1e-4


def test_prompts_are_filtered_by_what_the_untouched_model_does(loaded: Any) -> None:
    counts = fitted(loaded, filter=True, validation=0.4).provenance
    for side, prompts, sign in (("positive", POSITIVE, 1), ("negative", NEGATIVE, -1)):
        expected = [
            sum(sign * refusal_score(loaded, [prompt]) > 0 for prompt in part)
            for part in shares(prompts, 0.4)
        ]
        assert [counts[name][side] for name in ("prompts_read", "prompts_chosen_by")] == expected
    with pytest.raises(SubveneError, match=r"positive prompts is rather refused .*`refusal_words`"):
        fitted(loaded, filter=True, refusal_words=["sun"])


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "pairs": ([{"prompt": "q", "positive": "a", "negative": "b"}], {}, "expected two lists of `prompts`"),
    "one": ({"prompts": {"positive": ["a"], "negative": ["b", "c"]}}, {}, r"prompts\.positive: .* found 1"),
    "word": (PAIRS, {"refusal_words": ["i am"]}, "'i am', which is 2: "),
    "layers": (PAIRS, {"layers": [2]}, "expected a layer below 2, as `leave_last: 0.2` leaves 2 of 3"),
    "positions": (PAIRS, {"positions": 50}, "fit.positions: expected at most"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused(case: str, loaded: Any) -> None:
    pairs, fields, message = REFUSED[case]
    with pytest.raises(SubveneError, match=message):
        fit("refusal", *loaded, pairs=pairs, **LOOSE | fields)


def test_without_a_template_there_is_no_token_after_the_instruction(loaded: Any) -> None:
    loaded[1].chat_template = None
    with pytest.raises(SubveneError, match="prompts end with the instruction"):
        fitted(loaded)
