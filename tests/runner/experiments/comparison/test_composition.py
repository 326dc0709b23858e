"""Compositions: the numbers by hand, and runs in which the order matters and in which it does not."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from subvene.runner import IntervenedModel, Results, run_experiment
from subvene.runner.cli.app import app
from subvene.runner.edits.order import ELSEWHERE, matters
from subvene.runner.experiments.comparison.composition import (
    BOUNDED,
    SECTION,
    UNBOUNDED,
    CompositionSection,
    OrderScores,
    order_scores,
)
from subvene.runner.experiments.rows import METRICS, rows

WIDTH = 32
# `v`, `w` and `u = v + w` are written by `write`; v ⊥ w.
STEER_V = "- {kind: steering, name: steer, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 2}\n"
STEER_W = "- {kind: steering, name: other, layer: 1, vector: {file: t.safetensors, key: w}, coefficient: 3}\n"
ABLATE_U = "- {kind: ablation, name: ablate, layer: 1, direction: {file: t.safetensors, key: u}}\n"
ABLATE_W = "- {kind: ablation, name: ablate, layer: 2, direction: {file: t.safetensors, key: w}}\n"
EDIT = (
    "- {kind: steering, name: steer, site: attention_heads, layer: 1, "
    "vector: {file: e.safetensors, key: p}, coefficient: 2}\n"
    "- {kind: low_rank_edit, name: edit, layer: 1, factors: {file: e.safetensors, key: e}}\n"
)
EVALUATE = """\
evaluate:
- {kind: truthfulqa, data: {file: questions.csv}, preset: qa, primer: primer.txt, measure: [multiple_choice]}
- {kind: divergence, texts: {file: texts.txt}, max_tokens: 8}
- {kind: composition}
"""


@pytest.fixture
def composed(write: Callable[..., Path], comparison: Path) -> Callable[[str], Path]:
    """Writes an experiment that composes these interventions; `comparison` leaves what it reads."""
    return lambda interventions: write("interventions:\n" + interventions + EVALUATE, "composed.yaml")


def run(path: Path, output: Path) -> Results:
    return run_experiment(path, output=output).results


def composition_of(results: Results) -> CompositionSection:
    found = results.section(SECTION, CompositionSection)
    assert found is not None
    return found


# The numbers ----------------------------------------------------------------------------------------------


def test_every_metric_of_the_table_has_a_direction() -> None:
    assert set(BOUNDED) | set(UNBOUNDED) == set(METRICS)
    assert not set(BOUNDED) & set(UNBOUNDED)


def test_two_orders_of_a_metric_from_0_to_1() -> None:
    found = order_scores("mc1", {"a_then_b": 0.25, "b_then_a": 0.75})
    assert found == OrderScores(
        orders={"a_then_b": 0.25, "b_then_a": 0.75},
        best_order="b_then_a",
        best=0.75,
        order_free_error=0.25,
        order_sensitivity=0.5,
    )


def test_six_orders_are_as_far_apart_as_the_best_and_the_worst() -> None:
    values = dict(zip("abcdef", (0.5, 0.625, 0.375, 0.5, 0.875, 0.75), strict=True))
    found = order_scores("true_info", values)
    assert (found.best_order, found.order_free_error, found.order_sensitivity) == ("e", 0.125, 0.5)


def test_of_a_divergence_less_is_better_and_it_has_no_error() -> None:
    found = order_scores("kl", {"a": 2.5, "b": 0.25})
    assert (found.best_order, found.best, found.order_sensitivity) == ("b", 0.25, 2.25)
    assert found.order_free_error is None


def pair(*, commutes: bool | None, reason: str = "x") -> dict[str, Any]:
    return {"first": "a", "second": "b", "shared": ["mlp_output[0]"], "commutes": commutes, "reason": reason}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        ([pair(commutes=True), pair(commutes=None, reason=ELSEWHERE)], False),
        ([pair(commutes=True), pair(commutes=None)], None),
        ([pair(commutes=None), pair(commutes=False), pair(commutes=True)], True),
    ],
)
def test_an_order_matters_if_one_pair_does_not_commute(
    verdicts: list[dict[str, Any]], expected: bool | None
) -> None:
    assert matters(verdicts) is expected


# Runs -----------------------------------------------------------------------------------------------------


def test_an_additive_edit_and_an_ablation_depend_on_their_order(
    composed: Callable[[str], Path], tmp_path: Path
) -> None:
    results = run(composed(STEER_V + ABLATE_U), tmp_path / "run")
    assert [row.label for row in rows(results.conditions)] == [
        "baseline",
        "steer",
        "ablate",
        "steer_then_ablate",
        "ablate_then_steer",
    ]
    found, table = composition_of(results), {row.label: row.metrics for row in rows(results.conditions)}
    assert set(found.metrics) == {"mc1", "mc2", "mc3", "ce", "kl"}
    for metric, composed_metric in found.metrics.items():
        scores = composed_metric.together
        orders = [table[order][metric].mean for order in ("steer_then_ablate", "ablate_then_steer")]
        assert scores.order_sensitivity == pytest.approx(abs(orders[0] - orders[1]))
        if metric in BOUNDED:
            assert scores.order_free_error == pytest.approx(1 - max(orders))
        else:
            assert scores.best == min(orders)
        assert composed_metric.alone == {name: table[name][metric].mean for name in ("steer", "ablate")}
    for metric in ("mc2", "ce", "kl"):
        assert found.metrics[metric].together.order_sensitivity > 1e-3
    (pair,) = found.pairs
    assert (pair.commutes, pair.shared) == (False, ("block_output[1]",))
    assert found.order_can_matter is True


def test_an_additive_and_a_low_rank_edit_depend_on_their_order(
    composed: Callable[[str], Path], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, WIDTH) / 4
    a[:, 3] = 1.0  # reads what the steering adds
    tensors = {"a": a, "b": b}
    tensors = {f"e.attention_heads[1].{name}": tensor.clone() for name, tensor in tensors.items()}
    tensors["p.attention_heads[1]"] = torch.eye(WIDTH)[3]
    safetensors.torch.save_file(tensors, tmp_path / "e.safetensors")
    found = composition_of(run(composed(EDIT), tmp_path / "run"))
    assert found.order_can_matter is True
    assert found.metrics["kl"].together.order_sensitivity > 1e-3


def test_two_additive_edits_are_the_same_in_both_orders(
    composed: Callable[[str], Path], tmp_path: Path
) -> None:
    found = composition_of(run(composed(STEER_V + STEER_W), tmp_path / "run"))
    # The vectors share no coordinate, so that not even rounding can differ.
    assert {scores.together.order_sensitivity for scores in found.metrics.values()} == {0.0}
    assert found.order_can_matter is False
    together, alone = found.metrics["kl"].together.best, found.metrics["kl"].alone
    assert together not in alone.values()


def test_at_different_places_the_model_gives_the_order(
    composed: Callable[[str], Path], tmp_path: Path
) -> None:
    found = composition_of(run(composed(STEER_V + ABLATE_W), tmp_path / "run"))
    assert {scores.together.order_sensitivity for scores in found.metrics.values()} == {0.0}
    assert found.order_can_matter is False


def test_the_artifact_of_an_order_acts_in_it(composed: Callable[[str], Path], tmp_path: Path) -> None:
    """Ablated last, nothing of the direction is left; ablated first, the part that was added is."""
    run(composed(STEER_V + ABLATE_U), tmp_path / "run")
    direction = torch.zeros(WIDTH)
    direction[3], direction[5] = 4.0, 2.0
    direction /= direction.norm()
    along = {}
    for order in ("steer_then_ablate", "ablate_then_steer"):
        m = IntervenedModel.from_pretrained(tmp_path / "run" / "artifacts" / f"{order}-seed0-fold0")
        assert [entry.name for entry in m.intervenable.entries] == order.split("_then_")
        seen: list[torch.Tensor] = []

        def keep(module: Any, args: Any, seen: list[torch.Tensor] = seen) -> None:
            seen.append(args[0].detach())

        handle = m.model.model.layers[2].register_forward_pre_hook(keep)
        m(torch.tensor([[5, 9, 12, 7]]))
        handle.remove()
        along[order] = seen[0] @ direction
    assert along["steer_then_ablate"].abs().max() < 1e-5
    # 2·v with v = 4·e3: 8·⟨e3, û⟩.
    torch.testing.assert_close(along["ablate_then_steer"], torch.full((1, 4), float(8 * direction[3])))


def test_what_is_written_and_printed(composed: Callable[[str], Path], tmp_path: Path) -> None:
    output, path = tmp_path / "run", composed(STEER_V + ABLATE_U)
    result = CliRunner().invoke(app, ["run", str(path), "-o", str(output)])
    assert result.exit_code == 0, result.output
    for words in (
        "order-free error",
        "order sensitivity",
        "best order",
        "steer and ablate do not commute at block_output[1]",
        "so the order can matter",
    ):
        assert words in result.stdout
    with (output / "tables" / "composition.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["metric"] for line in lines] == [m for m in ("mc1", "mc2", "mc3", "ce", "kl") for _ in "12"]
    assert {line["seed"] for line in lines} == {"", "0"}
    for line in lines:
        orders = [float(line[name]) for name in ("steer_then_ablate", "ablate_then_steer")]
        assert float(line["order_sensitivity"]) == pytest.approx(max(orders) - min(orders))
    page = (output / "report.html").read_text()
    assert "Order sensitivity ↓" in page
    assert "do not commute" in page
    again = CliRunner().invoke(app, ["run", str(path), "-o", str(output)])
    assert again.stderr.count("(done before)") == 10
    assert again.stdout == result.stdout


def test_seeds_and_folds_are_scored_each_and_together(
    write: Callable[..., Path], comparison: Path, tmp_path: Path
) -> None:
    text = (
        "fit: {recipe: iti, key: t, data: {file: questions.csv}, select: {rule: top_k, k: 3},"
        " ranking_folds: 2, validation: 0.34}\n"
        "interventions:\n"
        "- {kind: head_direction, name: iti, directions: {key: t}, strength: 3}\n"
        "- {kind: ablation, layer: 1, direction: {file: t.safetensors, key: u}}\n"
        "seeds: [1, 2]\nfolds: 2\n"
    )
    results = run(write(text + EVALUATE, "seeds.yaml"), tmp_path / "run")
    found = composition_of(results)
    assert found.interventions == ("iti", "ablation_1")
    scores = found.metrics["mc2"]
    assert [(c.seed, c.fold) for c in scores.cells] == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for cell in scores.cells:
        measured = {
            c.name: c.value("mc2") for c in results.conditions if (c.seed, c.fold) == (cell.seed, cell.fold)
        }
        assert cell.orders == {order: measured[order] for order in found.orders}
    alone = next(c for c in results.conditions if c.name == "ablation_1")
    parts: Any = alone.receipts["divergence"]
    assert [part["name"] for part in parts] == ["ablation_1"]
