"""Patching in a run: both directions, estimates with their ranking, and units of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_experiments import FACTS, write_experiments

from subvene.runner import run_experiment
from subvene.runner.experiments.tracing.patching import ranking_of
from subvene.runner.experiments.tracing.section import tracing_of
from subvene.runner.measures.patching import SampledCell
from subvene.specs import SubveneError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("patching")
    path = write_experiments(made, "http://127.0.0.1:1", ["tracing"])["tracing"]
    head, _, entries = path.read_text().partition("evaluate:\n")
    path.write_text(head + "evaluate:\n" + entries[entries.index("- {kind: patching") :])
    return made


def test_sites_directions_and_estimates(folder: Path) -> None:
    results = run_experiment(folder / "tracing.yaml", output=folder / "run").results
    whole, estimated = tracing_of(results).patchings
    assert [(s.site, s.direction) for s in whole.sites] == [
        ("block_output", "denoising"),
        ("block_output", "noising"),
        ("attention_heads", "denoising"),
        ("attention_heads", "noising"),
    ]
    assert all(site.ranking is None for site in whole.sites)
    heads = whole.sites[2]
    assert heads.heads == (0, 1, 2, 3)
    assert len(heads.effects) == 3 * 4
    # The last layer's state at the last token is all that the answer is read from.
    for site in whole.sites[:2]:
        last = next(e for e in site.effects if (e.layer, e.role) == (2, "last"))
        assert last.value.mean == pytest.approx(whole.total.mean, abs=1e-5)
    assert estimated.estimated
    for site in estimated.sites:
        assert site.ranking is not None
        assert site.ranking.cells == 6 * len(FACTS)
        assert {len(one.patched.sample) for one in site.maps} == {6}
    assert [condition.label for condition in results.conditions] == [
        "patching: clean",
        "patching: other",
        "patching_2: clean",
        "patching_2: other",
    ]
    page = (folder / "run" / "report.html").read_text()
    assert "Activation patching" in page
    assert (folder / "run" / "tables" / "attribution.csv").read_text().count("\n") == 1 + 2 * 6 * len(FACTS)
    before = (folder / "run" / "units.jsonl").read_text()
    assert run_experiment(folder / "tracing.yaml", output=folder / "run").results == results
    assert (folder / "run" / "units.jsonl").read_text() == before


def test_heads_that_the_model_has_not_are_refused(folder: Path) -> None:
    path = folder / "wrong.yaml"
    path.write_text((folder / "tracing.yaml").read_text().replace("heads: [0, 3]", "heads: [0, 4]"))
    with pytest.raises(SubveneError, match="heads: 4 is out of range: this model has heads 0 to 3"):
        run_experiment(path, output=folder / "wrong")


def cells(pairs: list[tuple[float, float]]) -> list[SampledCell]:
    return [SampledCell(layer=0, head=0, token=i, estimate=e, effect=t) for i, (e, t) in enumerate(pairs)]


def test_what_a_ranking_says() -> None:
    right = ranking_of([cells([(float(i), i**3.0) for i in range(10)])])
    assert right.spearman == pytest.approx(1)
    assert right.pearson is not None
    assert right.pearson < 1
    assert (right.top, right.wrong_sign, right.cells, right.facts) == (1, 0, 10, 1)
    wrong = ranking_of([cells([(-float(i), float(i)) for i in range(10)])])
    assert wrong.spearman == pytest.approx(-1)
    assert (wrong.top, wrong.wrong_sign) == (0, 1)
    nothing = ranking_of([cells([(1.0, 0.0)] * 5)])
    assert nothing.spearman is None
    assert nothing.wrong_sign == 0
