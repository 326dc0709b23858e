"""The recipe: which heads, which tensors, and an artifact that does what was trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from tiny_preferences import rows
from typer.testing import CliRunner

from subvene.runner import IntervenedModel, fit
from subvene.runner.cli.app import app
from subvene.runner.data.examples import split
from subvene.runner.data.preferences import encode, read_data
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.iti import fit_iti
from subvene.runner.recipes.localized_edit import Request, fit_localized_edits
from subvene.runner.recipes.localized_heads import LocalizedEditError, Probed, choose_heads, probe_heads
from subvene.specs import ITISpec, LocalizedEditSpec
from subvene.specs.recipes.localized_edit import ProbedHeads

LAYERS, HEADS, HEAD_DIM = 3, 4, 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows())), encoding="utf-8")
    return tmp_path


def spec_of(**fields: Any) -> LocalizedEditSpec:
    default = {
        "key": "glad",
        "data": {"file": "p.jsonl"},
        "learning_rate": 0.02,
        "heads": {"rule": "list", "heads": {1: [0, 2]}},
    }
    return LocalizedEditSpec.model_validate(default | fields)


def fitted(loaded: Any, folder: Path, *specs: LocalizedEditSpec, seed: int = 1, **options: Any) -> Any:
    model, tokenizer = loaded
    data = read_data(specs[0].data, folder)
    requests = [Request(f"e{i}", spec, seed) for i, spec in enumerate(specs)]
    return fit_localized_edits(requests, data, Anatomy.of(model), tokenizer, **options)


def test_heads_by_rule(loaded: Any) -> None:
    sizes = Anatomy.of(loaded[0]).sizes
    accuracy = torch.full((LAYERS, HEADS), 0.5, dtype=torch.float64)
    accuracy[2, 1], accuracy[0, 3] = 0.9, 0.7
    probed = Probed(accuracy, 0.5)

    def heads(experiment_seed: int = 1, **rule: Any) -> dict[int, tuple[int, ...]]:
        return choose_heads(spec_of(heads=rule), sizes, experiment_seed, probed)

    # Of equally good ones the lower layer and head comes first.
    assert heads(rule="probed", k=3) == {0: (0, 3), 2: (1,)}
    assert heads(rule="list", heads={2: [3, 1]}) == {2: (1, 3)}
    assert heads(rule="all") == {layer: (0, 1, 2, 3) for layer in range(LAYERS)}
    drawn = [heads(seed, rule="random", k=3) for seed in (1, 2)]
    assert drawn[0] != drawn[1]
    assert drawn[0] == heads(9, rule="random", k=3, seed=1)
    places = np.random.default_rng([1, 0]).permutation(12)[:3]
    assert {(layer, head) for layer, chosen in drawn[0].items() for head in chosen} == {
        divmod(int(place), HEADS) for place in places
    }


def test_a_draw_is_that_of_iti(loaded: Any) -> None:
    questions = [
        Question(f"is the day {i} ?", "it is good.", ("it is good.", "good."), ("it is bad.",), "Weather")
        for i in range(12)
    ]
    model, tokenizer = loaded
    how = ITISpec.model_validate({"key": "iti", "select": {"rule": "random", "k": 4}})
    theirs = fit_iti(how, questions, Anatomy.of(model), tokenizer, seed=3).provenance["heads"]
    spec = spec_of(heads={"rule": "random", "k": 4}, data={"truthfulqa": {}})
    (found,) = fit_localized_edits([Request("e", spec, 3)], questions, Anatomy.of(model), tokenizer)
    # A head without a direction is none of ITI's; here every drawn head has one.
    assert found.provenance["heads"] == theirs
    assert found.provenance["pairs"] + found.provenance["validation_pairs"] == 24
    probes = probe_heads(ProbedHeads(), questions, [], Anatomy.of(model), tokenizer, seed=3)
    how = ITISpec.model_validate({"key": "iti", "select": {"rule": "all"}})
    expected = fit_iti(how, questions, Anatomy.of(model), tokenizer, seed=3).provenance["validation_accuracy"]
    assert probes.accuracy.tolist() == expected


def test_triples_are_probed_at_the_last_token_of_every_answer(loaded: Any, folder: Path) -> None:
    model, tokenizer = loaded
    spec = spec_of(heads={"rule": "probed", "k": 3, "ranking": "split"})
    examples = encode(spec.data, read_data(spec.data, folder), tokenizer)
    held_out = set(split(examples, 0.2, 1)[1])
    features, labels, validation = [], [], []
    for i, example in enumerate(examples):
        for answer, wanted in ((example.chosen, True), (example.rejected, False)):
            seen: list[torch.Tensor] = []
            handles = [
                block.self_attn.o_proj.register_forward_pre_hook(
                    lambda _m, args, seen=seen: seen.append(args[0][0, -1])
                )
                for block in model.model.layers
            ]
            with torch.no_grad():
                model(torch.tensor([[*example.prompt, *answer]]))
            for handle in handles:
                handle.remove()
            features.append(torch.stack(seen).view(LAYERS, HEADS, HEAD_DIM).double().numpy())
            labels.append(wanted)
            validation.append(i in held_out)
    x, y, v = np.stack(features), np.array(labels), np.array(validation)
    expected = [
        [
            LogisticRegression(max_iter=1000).fit(x[~v, l, h], y[~v]).score(x[v, l, h], y[v])
            for h in range(HEADS)
        ]
        for l in range(LAYERS)  # noqa: E741
    ]
    (found,) = fitted(loaded, folder, spec)
    assert found.provenance["validation_accuracy"] == [[round(a, 6) for a in row] for row in expected]
    assert found.provenance["chance"] == 0.5
    ranked = torch.tensor(expected).flatten().argsort(descending=True, stable=True)[:3].tolist()
    chosen = {(int(layer), head) for layer, heads in found.provenance["heads"].items() for head in heads}
    assert chosen == {divmod(place, HEADS) for place in ranked}
    assert {int(name.split("[")[1].split("]")[0]) for name in found.tensors} == {layer for layer, _ in chosen}


def test_fits_together_are_fits_alone(loaded: Any, folder: Path) -> None:
    specs = [
        spec_of(),
        spec_of(heads={"rule": "random", "k": 2}, objective={"kind": "ipo", "tau": 0.4}, seed=7),
        spec_of(gate="constant", heads={"rule": "all"}),
    ]
    together = fitted(loaded, folder, *specs)
    for spec, found in zip(specs, together, strict=True):
        (alone,) = fitted(loaded, folder, spec)
        assert alone.tensors.keys() == found.tensors.keys()
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-4, atol=1e-4)
    assert [found.provenance["trained_together"] for found in together] == [3, 3, 3]
    assert [found.provenance["seed"] for found in together] == [1, 7, 1]
    with pytest.raises(LocalizedEditError, match="need the same `data`"):
        fitted(loaded, folder, specs[0], spec_of(data={"file": "q.jsonl"}))


FIT = """\
fit:
  recipe: localized_edit
  key: glad
  data: {file: p.jsonl}
  heads: {rule: list, heads: {0: [1], 2: [0, 3]}}
  learning_rate: 0.03
  evaluate_every: 2
  epochs: 4
  objective: {kind: ipo, tau: 0.25}
  %s
interventions:
- %s
"""


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ("rank: 2", "{kind: low_rank_edit, name: edit, factors: {key: glad}}"),
        ("per: head", "{kind: low_rank_edit, name: edit, factors: {key: glad}}"),
        ("gate: constant", "{kind: head_direction, name: edit, directions: {key: glad}, strength: 1}"),
    ],
    ids=["layer", "head", "constant"],
)
def test_the_artifact_favours_what_was_preferred(
    write: Callable[..., Path], folder: Path, loaded: Any, fields: str, entry: str
) -> None:
    spec = write(FIT % (fields, entry), "fit.yaml")
    m = fit(spec, model=loaded[0], tokenizer=loaded[1])
    m.generate("hello", max_new_tokens=2)
    saved = m.save_pretrained(folder / "art")
    again = IntervenedModel.from_pretrained(saved)
    about = again.provenance
    assert about["best_step"] > 0
    assert about["optimizer"]["used"].startswith("torch.optim.AdamW")
    best = min(one["loss"] for one in about["evaluations"])
    assert best < about["evaluations"][0]["loss"] == pytest.approx(4.0, rel=1e-4)
    # The margins of the reloaded edit, scored by the library, give the loss that training saw last.
    examples = encode(spec_of().data, read_data(spec_of().data, folder), again.tokenizer)
    _, held_out = split(examples, 0.2, 0)
    pairs = [
        (examples[i].prompt, side) for i in held_out for side in (examples[i].chosen, examples[i].rejected)
    ]
    edited, receipts = log_probs(again, pairs)
    with again.disabled():
        plain, _ = log_probs(again, pairs)
    delta = (edited - plain).view(-1, 2).diff(dim=1).neg().squeeze(1)
    assert float(((delta - 2) ** 2).mean()) == pytest.approx(best, rel=1e-3)
    assert receipts[0]["edit"].changed > 0
    heads = {layer: sorted(heads) for layer, heads in about["heads"].items()}
    assert heads == {"0": [1], "2": [0, 3]}


@pytest.mark.parametrize(
    ("fields", "entry"),
    [
        ("gate: adaptive", "{kind: low_rank_edit, factors: {key: glad}}"),
        ("gate: constant", "{kind: head_direction, directions: {key: glad}, strength: 1}"),
    ],
    ids=["adaptive", "constant"],
)
def test_a_training_without_effect_is_refused(
    write: Callable[..., Path], folder: Path, loaded: Any, fields: str, entry: str
) -> None:
    # A rate at which every step makes the validation loss worse.
    spec = write((FIT % (fields, entry)).replace("learning_rate: 0.03", "learning_rate: 1000"), "fit.yaml")
    with pytest.raises(LocalizedEditError, match="the trained edit is zero and would do nothing: no step"):
        fit(spec, model=loaded[0], tokenizer=loaded[1])


def test_work_is_taken_up(loaded: Any, folder: Path, tmp_path: Path) -> None:
    spec = spec_of(heads={"rule": "probed", "k": 2})
    (first,) = fitted(loaded, folder, spec, work=tmp_path / "work")
    (again,) = fitted(loaded, folder, spec, work=tmp_path / "work")
    assert first.provenance == again.provenance
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in first.tensors.items())
    assert len(list((tmp_path / "work" / "training").iterdir())) == 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": {"rule": "probed", "k": 13}}, r"fit.heads.k: expected at most 12 .* found 13"),
        ({"heads": {"rule": "random", "k": 13}}, r"fit.heads.k: expected at most 12"),
        (
            {"heads": {"rule": "list", "heads": {3: [0]}}},
            "expected a layer from 0 to 2 for this model, found 3",
        ),
        ({"heads": {"rule": "list", "heads": {1: [4]}}}, r"heads\[1\]: expected a head from 0 to 3"),
    ],
)
def test_heads_that_the_model_does_not_have(loaded: Any, folder: Path, fields: Any, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        fitted(loaded, folder, spec_of(**fields))


def test_an_intervention_of_another_kind_is_refused_before_a_model_is_loaded(
    write: Callable[..., Path], folder: Path
) -> None:
    entry = "{kind: low_rank_edit, factors: {key: glad}}"
    with pytest.raises(CompileError, match="gives tensors for head_direction, found low_rank_edit"):
        fit(write(FIT % ("gate: constant", entry), "fit.yaml"))
    with pytest.raises(
        LocalizedEditError, match=r"fit.validation: 0.01 of 20 questions leaves nothing to validate"
    ):
        fit(write(FIT % ("validation: 0.01", entry), "fit.yaml"), name="/nowhere")


def test_the_command(write: Callable[..., Path], folder: Path) -> None:
    def subvene(*args: object) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    entry = "{kind: low_rank_edit, factors: {key: glad}}"
    spec = write(
        (FIT % ("rank: 1", entry)).replace("rule: list, heads: {0: [1], 2: [0, 3]}", "rule: probed, k: 2"),
        "fit.yaml",
    )
    result = subvene("fit", spec, "-o", folder / "art")
    assert result.exit_code == 0, result.stderr
    out = " ".join(result.stdout.split())
    assert "glad from 16 pairs of 20 questions: localized_edit of rank 1 per layer (ipo, tau 0.25)" in out
    assert "2 heads in" in out
    assert "validation loss 4 to" in out
    assert "chance is 50.0%" in out
    assert subvene("generate", folder / "art", "-p", "hello", "--max-new-tokens", 2).exit_code == 0
