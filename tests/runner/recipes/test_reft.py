"""The recipe `reft`: equation 3 of the paper, trained as a loop written out by hand trains it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyvene.models.layers import LowRankRotateLayer
from tiny_preferences import rows
from torch.nn.utils.parametrizations import orthogonal

from subvene.runner import IntervenedModel, fit
from subvene.runner.data.preferences import PreferenceError, encode, read_data
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.reft import REFT
from subvene.runner.training.loreft import LoreftEdits
from subvene.specs import ReFTSpec, SpecError

RANK, LAYERS = 2, (0, 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows(12))), encoding="utf-8")
    return tmp_path


def spec_of(**fields: Any) -> ReFTSpec:
    default = {
        "key": "glad",
        "data": {"file": "p.jsonl"},
        "layers": list(LAYERS),
        "rank": RANK,
        "learning_rate": 0.02,
        "epochs": 1,
        "validation": None,
    }
    return ReFTSpec.model_validate(default | fields)


def fitted(loaded: Any, folder: Path, spec: ReFTSpec, seed: int = 1, work: Path | None = None) -> Any:
    model, tokenizer = loaded
    return REFT.fit(spec, REFT.read(spec, folder), Anatomy.of(model), tokenizer, seed=seed, work=work)


class ByHand:
    """R, W and b of two layers, and a hook a layer that edits one text at tokens 0 and P-1."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.length = model, 0
        self.rotate, self.weight, self.bias = [], [], []
        for layer in LAYERS:
            torch.manual_seed(seed * 100_003 + layer)
            rotate = orthogonal(LowRankRotateLayer(model.config.hidden_size, RANK), "weight", "householder")
            self.rotate.append(rotate)
            self.weight.append(rotate.weight.detach().T.clone().requires_grad_())
            self.bias.append(torch.zeros(RANK, requires_grad=True))

    def hook(self, i: int) -> Callable[..., torch.Tensor]:
        def edit(_module: Any, _args: Any, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            r = self.rotate[i].weight.T
            for t in {0, self.length - 1}:
                x = h[0, t].clone()
                h[0, t] = x + r.T @ (self.weight[i] @ x + self.bias[i] - r @ x)
            return h

        return edit

    def score(self, prompt: Sequence[int], answer: Sequence[int], *, edited: bool = True) -> torch.Tensor:
        self.length = len(prompt)
        blocks = self.model.model.layers
        handles = [blocks[at].register_forward_hook(self.hook(i)) for i, at in enumerate(LAYERS) if edited]
        logits = self.model(torch.tensor([[*prompt, *answer]])).logits[0].float().log_softmax(-1)
        for handle in handles:
            handle.remove()
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        return torch.stack([logits[p, token] for p, token in zip(places, answer, strict=True)])

    def loss(self, example: Any, objective: str) -> torch.Tensor:
        if objective == "sft":
            return -self.score(example.prompt, example.chosen).mean()
        sides = [
            self.score(example.prompt, answer).sum()
            - self.score(example.prompt, answer, edited=False).sum().detach()
            for answer in (example.chosen, example.rejected)
        ]
        delta = sides[0] - sides[1]
        return (delta - 5.0) ** 2 if objective == "ipo" else -torch.nn.functional.logsigmoid(0.1 * delta)

    def train(self, examples: Sequence[Any], spec: ReFTSpec, seed: int) -> list[float]:
        parameters = [*self.weight, *self.bias, *(p for r in self.rotate for p in r.parameters())]
        optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
        order = np.random.default_rng([seed, 1, 0]).permutation(len(examples))
        steps, losses = math.ceil(len(examples) / spec.batch_size), []
        warm = math.ceil(spec.warmup * steps)
        for step in range(steps):
            batch = [examples[i] for i in order[step * spec.batch_size : (step + 1) * spec.batch_size]]
            optimizer.zero_grad()
            loss = torch.stack([self.loss(one, spec.objective.kind) for one in batch]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            share = (
                step / warm if step < warm else (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
            )
            optimizer.param_groups[0]["lr"] = spec.learning_rate * share
            optimizer.step()
            losses.append(loss.item())
        return losses


@pytest.mark.parametrize("objective", ["sft", "ipo", "dpo"])
def test_it_trains_as_a_loop_by_hand_does(loaded: Any, folder: Path, objective: str) -> None:
    model, tokenizer = loaded
    before = {name: value.clone() for name, value in model.state_dict().items()}
    spec = spec_of(objective={"kind": objective})
    found = fitted(loaded, folder, spec)
    hand = ByHand(model, seed=1)
    examples = encode(spec.data, read_data(spec.data, folder), tokenizer)
    losses = hand.train(examples, spec, seed=1)
    assert found.provenance["epoch_losses"] == pytest.approx([sum(losses) / len(losses)], rel=1e-4)
    for i, layer in enumerate(LAYERS):
        at = f"glad.block_output[{layer}]"
        r = hand.rotate[i].weight.T.detach()
        expected = {"a": hand.weight[i].detach() - r, "b": r, "bias": hand.bias[i].detach() @ r}
        for part, tensor in expected.items():
            assert (found.tensors[f"{at}.{part}"] - tensor).abs().max() < 2e-4
        assert expected["a"].abs().max() > 0.01
        rotation = found.tensors[f"{at}.b"]
        assert (rotation @ rotation.T - torch.eye(RANK)).abs().max() < 1e-5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_artifact_scores_as_it_was_trained(loaded: Any, folder: Path, tmp_path: Path) -> None:
    model, tokenizer = loaded
    m = fit("reft", model, tokenizer, data=folder / "p.jsonl", rank=RANK, validation=None)
    m.save_pretrained(tmp_path / "glad")
    again = IntervenedModel.from_pretrained(tmp_path / "glad", model=model, tokenizer=tokenizer)
    hand_of = {
        layer: {p: m.tensors[f"reft.block_output[{layer}].{p}"] for p in ("a", "b", "bias")}
        for layer in range(3)
    }

    def naive(prompt: Sequence[int], answer: Sequence[int]) -> float:
        def hook(layer: int) -> Callable[..., torch.Tensor]:
            def edit(_module: Any, _args: Any, h: torch.Tensor) -> torch.Tensor:
                h, parts = h.clone(), hand_of[layer]
                for t in {0, len(prompt) - 1}:
                    h[0, t] += (parts["a"] @ h[0, t]) @ parts["b"] + parts["bias"]
                return h

            return edit

        handles = [model.model.layers[at].register_forward_hook(hook(at)) for at in hand_of]
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        for handle in handles:
            handle.remove()
        return sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))

    # One with two tokens in common, one whose first token is its last one.
    for prompt, answer in (("hello world you", " is glad"), ("hello", " glad")):
        ids = tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
        expected = naive(*ids)
        scored = [log_probs(one, [ids])[0] for one in (m, again)]
        assert [float(one) for one in scored] == pytest.approx([expected] * 2, abs=1e-4)


def test_completions_need_no_unwanted_answer(loaded: Any, folder: Path) -> None:
    alone = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows(12)]
    spec = spec_of()
    with_pairs, without = (
        REFT.fit(spec, REFT.given(spec, data), Anatomy.of(loaded[0]), loaded[1], seed=1, work=None)
        for data in (rows(12), alone)
    )
    assert all(torch.equal(without.tensors[name], tensor) for name, tensor in with_pairs.tensors.items())
    assert without.provenance["columns"]["read"] == {"prompt": ["prompt"], "chosen": ["completion"]}
    preferred = spec_of(objective={"kind": "ipo"})
    with pytest.raises(PreferenceError, match="expected the field 'rejected'"):
        REFT.given(preferred, [{"prompt": "a", "chosen": "b"}])


def test_untrained_it_does_nothing_at_all(loaded: Any) -> None:
    anatomy = Anatomy.of(loaded[0])
    edits = LoreftEdits(anatomy, [1], 3, "prompt", 0)
    ids = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1]])
    with torch.no_grad():
        plain = loaded[0](ids).logits
        with edits.acting([0, 0], [2, 3]):
            assert (loaded[0](ids).logits - plain).abs().max() < 1e-6


def test_a_stopped_training_is_taken_up(loaded: Any, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(checkpoint_every=1)
    first, second = (fitted(loaded, folder, spec, work=tmp_path / "work") for _ in range(2))
    fresh = fitted(loaded, folder, spec)
    for name, tensor in fresh.tensors.items():
        assert torch.equal(first.tensors[name], tensor)
        assert torch.equal(second.tensors[name], tensor)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positions": "response"}, "tokens of the prompt"),
        ({"positions": {"span": "x"}}, "tokens of the prompt"),
        ({"weight_decay": 0.1}, "R is a rotation"),
    ],
)
def test_what_is_no_loreft_is_refused(fields: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spec_of(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rank": 1000}, r"fit.rank: expected at most \d+, the width of block_output, found 1000"),
        (
            {"interventions": [{"kind": "affine", "map": {"key": "reft"}, "form": "low_rank"}]},
            "positions: `fit:`",
        ),
        (
            {
                "interventions": [
                    {"kind": "affine", "map": {"key": "reft"}, "positions": {"indices": [0, -1]}}
                ]
            },
            "form: `fit:` gives low_rank, found dense",
        ),
    ],
)
def test_interventions_act_as_they_were_trained(loaded: Any, fields: Any, message: str) -> None:
    with pytest.raises((CompileError, SpecError), match=message):
        fit("reft", *loaded, data=rows(12), **({"rank": 1} | fields))
