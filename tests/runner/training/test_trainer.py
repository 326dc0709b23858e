"""The loop: schedules, best steps, checkpoints that resume exactly, and losses that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from architectures import BY_NAME
from tiny_preferences import examples_of, experiment, train
from torch import nn

from subvene.runner.data.examples import Example
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.training import checkpoints, trainer
from subvene.runner.training.experiments import Experiment, TrainingError

EXAMPLES = examples_of(12, seed=7)


def one(name: str = "edit", **fields: Any) -> Experiment:
    return experiment(name, fields.pop("heads", {0: (1,), 1: (2, 3)}), EXAMPLES, **fields)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
def test_the_schedule_is_that_of_transformers(warmup: float) -> None:
    declared = one(warmup=warmup, epochs=7, batch_size=5, learning_rate=0.3)
    assert declared.steps == 7 * math.ceil(len(declared.train) / 5)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    theirs = transformers.get_cosine_schedule_with_warmup(
        optimizer, math.ceil(warmup * declared.steps), declared.steps
    )
    for step in range(declared.steps):
        assert declared.rate(step) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    flat = one(warmup=warmup, epochs=7, schedule="constant", learning_rate=0.3)
    assert flat.rate(flat.steps - 1) == 0.3


def test_pairs_that_prefer_nothing_are_refused() -> None:
    same = [Example(one.key, one.prompt, one.chosen, one.chosen) for one in EXAMPLES]
    alike = experiment("edit", {0: (1,)}, same)
    with pytest.raises(TrainingError, match="edit: in every pair the wanted answer is the unwanted one"):
        train(BY_NAME["llama"].shared(), same, alike)


def test_a_model_that_is_not_finite_is_not_trained_on() -> None:
    model = BY_NAME["llama"].fresh()
    model.lm_head.weight.data[:] = math.nan
    with pytest.raises(NotFiniteError, match=r"fit.data: Σ log p .* without any edit"):
        train(model, EXAMPLES, one())


def test_training_is_a_plain_loop_of_adamw() -> None:
    """Against a loop with one edit as an ordinary module, torch's AdamW and clipping."""
    model = BY_NAME["llama"].shared()
    declared = one(heads={1: (2,)}, validation=None, weight_decay=0.05, max_grad_norm=0.5, epochs=2)
    (trained,) = train(model, EXAMPLES, declared)

    a = declared.shape.first_readers(1, trainer.Anatomy.of(model).sizes).requires_grad_()
    b = torch.zeros(1, 64, requires_grad=True)
    mask = torch.zeros(64)
    mask[32:48] = 1

    def log_p(prompt: tuple[int, ...], answer: tuple[int, ...]) -> torch.Tensor:
        logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(answer).unsqueeze(1)).sum()

    with torch.no_grad():
        base = [log_p(x.prompt, x.chosen) - log_p(x.prompt, x.rejected) for x in EXAMPLES]
    optimizer = torch.optim.AdamW([a, b], lr=0.0, weight_decay=0.05)
    projection = model.model.layers[1].self_attn.o_proj
    handle = projection.register_forward_pre_hook(
        lambda _module, args: (args[0] + (args[0] @ a.T) @ (b * mask),)
    )
    losses = []
    try:
        for step in range(declared.steps):
            epoch, within = divmod(step, declared.steps_per_epoch)
            order = trainer.np.random.default_rng([0, 1, epoch]).permutation(len(EXAMPLES))
            batch = order[3 * within : 3 * within + 3]
            loss = torch.stack(
                [
                    (log_p(x.prompt, x.chosen) - log_p(x.prompt, x.rejected) - base[i] - 5.0) ** 2
                    for i, x in ((i, EXAMPLES[i]) for i in batch)
                ]
            ).mean()
            optimizer.zero_grad()
            a.grad, b.grad = torch.autograd.grad(loss, [a, b])
            torch.nn.utils.clip_grad_norm_([a, b], 0.5)
            optimizer.param_groups[0]["lr"] = declared.rate(step)
            optimizer.step()
            losses.append(float(loss.detach()))
    finally:
        handle.remove()
    assert trained.losses == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(trained.factors["1.a"], a.detach(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(trained.factors["1.b"], (b * mask).detach(), rtol=1e-3, atol=1e-4)
    assert trained.about["optimizer"]["used"].startswith("torch.optim.AdamW, float32")


def test_the_step_with_the_least_validation_loss_is_kept() -> None:
    model = BY_NAME["llama"].shared()
    whole = one(
        epochs=4, evaluate_every=1, schedule="constant", warmup=0.0, learning_rate=0.3, validation=0.4
    )
    (trained,) = train(model, EXAMPLES, whole)
    losses = [found["loss"] for found in trained.evaluations]
    assert [found["step"] for found in trained.evaluations] == list(range(whole.steps + 1))
    assert losses[trained.best_step] == min(losses)
    assert 0 < trained.best_step < whole.steps
    # A training that ends at that step, and looks at nothing, comes out the same.
    model_again = BY_NAME["llama"].shared()
    steps = trained.best_step
    short = experiment(
        "short", {0: (1,), 1: (2, 3)}, EXAMPLES, epochs=4, schedule="constant", warmup=0.0, learning_rate=0.3,
        validation=0.4, evaluate_every=steps, patience=1,
    )  # fmt: skip
    (again,) = train(model_again, EXAMPLES, short)
    assert again.best_step == steps
    for name, tensor in again.factors.items():
        torch.testing.assert_close(trained.factors[name], tensor)


class _Killed(BaseException):
    """As a kill: nothing in the code handles it."""


@pytest.mark.parametrize("killed_at", [1, 4, 7])
def test_resumed_losses_are_the_same_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: int
) -> None:
    model = BY_NAME["llama"].shared()
    # One of them has stopped early by the time of a kill, and one has more steps than the other.
    experiments = [
        one("long", epochs=3, checkpoint_every=2),
        one("short", heads={1: (0,)}, seed=3, epochs=2, weight_decay=0.1, shape={"gate": "constant"}),
        one("early", heads={0: (0,)}, epochs=3, patience=1, evaluate_every=1, learning_rate=5.0),
    ]
    expected = train(model, EXAMPLES, *experiments, folder=tmp_path / "whole")
    assert {trained.start for trained in expected} == {0}

    optimize = trainer._Training._optimize

    def dies(self: Any, active: Any) -> None:
        if self.step == killed_at:
            raise _Killed
        optimize(self, active)

    with monkeypatch.context() as patch:
        patch.setattr(trainer._Training, "_optimize", dies)
        with pytest.raises(_Killed):
            train(model, EXAMPLES, *experiments, folder=tmp_path / "killed")
    found = train(model, EXAMPLES, *experiments, folder=tmp_path / "killed")
    for trained, whole in zip(found, expected, strict=True):
        assert trained.start == killed_at // 2 * 2
        assert trained.losses == whole.losses
        assert trained.grad_norms == whole.grad_norms
        assert trained.evaluations == whole.evaluations
        assert all(torch.equal(trained.factors[name], tensor) for name, tensor in whole.factors.items())
    # A training that is done is only read.
    with monkeypatch.context() as patch:
        patch.setattr(trainer._Training, "_optimize", lambda *_: pytest.fail("it was trained"))
        patch.setattr(trainer.Passes, "prepare", lambda *_: pytest.fail("it was scored"))
        again = train(model, EXAMPLES, *experiments, folder=tmp_path / "killed")
    assert [trained.losses for trained in again] == [trained.losses for trained in expected]


def test_a_checkpoint_is_of_one_training_alone(tmp_path: Path) -> None:
    model = BY_NAME["llama"].shared()

    def folders() -> list[Path]:
        return sorted(tmp_path.iterdir())

    train(model, EXAMPLES, one(epochs=1), folder=tmp_path)
    (first,) = folders()
    # How often it is written is nothing that a result depends on.
    train(model, EXAMPLES, one(epochs=1, checkpoint_every=7), folder=tmp_path)
    assert folders() == [first]
    train(model, EXAMPLES, one(epochs=1, learning_rate=0.5), folder=tmp_path)
    train(model, EXAMPLES[:-1] + EXAMPLES[:1], one(epochs=1), folder=tmp_path)
    train(BY_NAME["qwen3"].shared(), EXAMPLES, one(epochs=1), folder=tmp_path)
    assert len(folders()) == 4
    state = first / "state.json"
    whole = state.read_text()
    state.write_text(whole.replace('"identity": "', '"identity": "0'))
    with pytest.raises(TrainingError, match="checkpoint of another training"):
        train(model, EXAMPLES, one(epochs=1), folder=tmp_path)
    state.write_text(whole[:-20])
    with pytest.raises(TrainingError, match="not a checkpoint that can be read"):
        train(model, EXAMPLES, one(epochs=1), folder=tmp_path)


def test_an_interrupted_write_leaves_the_checkpoint_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "checkpoint"
    checkpoints.write(folder, "id", checkpoints.Checkpoint(3, [{}], {"x": torch.ones(2)}))
    monkeypatch.setattr(checkpoints.json, "dumps", lambda *_a, **_k: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        checkpoints.write(folder, "id", checkpoints.Checkpoint(4, [{}], {"x": torch.zeros(2)}))
    found = checkpoints.read(folder, "id")
    assert found is not None
    assert (found.step, found.tensors["x"].tolist()) == (3, [1.0, 1.0])
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]
    assert json.loads((folder / "state.json").read_text())["identity"] == "id"


@pytest.mark.parametrize("kept", [True, False])
def test_a_loss_that_is_not_finite_stops_and_says_where(tmp_path: Path, kept: bool) -> None:
    model = BY_NAME["llama"].fresh().half()  # where 1e6 is infinite
    good = one("good", heads={0: (0,)}, checkpoint_every=1, epochs=6)
    bad = one("bad", learning_rate=1e6, epochs=6, validation=None, warmup=0.0)
    with pytest.raises(TrainingError) as raised:
        train(model, EXAMPLES, good, bad, folder=tmp_path if kept else None)
    message = str(raised.value)
    assert message.startswith("bad: the ")
    assert "at step 2 of 24, in the batch of examples [" in message
    if kept:
        (folder,) = tmp_path.iterdir()
        assert f"the last good checkpoint is {folder}, after step 1" in message
        stored = checkpoints.safetensors.torch.load_file(folder / "tensors.safetensors")
        assert torch.isfinite(stored["0.now.b"]).all()
    else:
        assert "no checkpoint was kept" in message
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert any(parameter.requires_grad for parameter in model.parameters())


def test_what_cannot_be_trained() -> None:
    model = BY_NAME["llama"].shared()
    with pytest.raises(TrainingError, match="no experiment"):
        train(model, EXAMPLES)
    with pytest.raises(TrainingError, match="different names, found edit twice"):
        train(model, EXAMPLES, one(), one())
    with pytest.raises(TrainingError, match="edit: there is no head to write to"):
        train(model, EXAMPLES, one(heads={}))
    with pytest.raises(TrainingError, match="edit: there is no example"):
        train(model, EXAMPLES, experiment("edit", {0: (1,)}, [], validation=None))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_train_float32_factors(dtype: torch.dtype) -> None:
    model = BY_NAME["llama"].fresh().to(dtype)
    (trained,) = train(model, EXAMPLES, one(epochs=6, validation=None, learning_rate=0.05))
    assert {tensor.dtype for tensor in trained.factors.values()} == {torch.float32}
    assert trained.losses[-1] < trained.losses[0]
