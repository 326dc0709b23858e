"""What trackers are told of results: a run for each condition and each point that was tried."""

from __future__ import annotations

from subvene.runner.experiments.persona.section import SECTION, PersonaSection, Sweep, SweepPoint, TraitRecord
from subvene.runner.experiments.reported import _cells
from subvene.runner.experiments.results import Choice, Condition, Metric, Results, Tried


def metric(mean: float) -> Metric:
    return Metric(mean=mean, n=3)


def test_a_comparison_is_its_conditions_and_the_points_that_were_tried() -> None:
    swept = Condition(
        name="iti",
        label="iti iti.strength=5",
        point={"iti.strength": 5},
        seed=1,
        fold=0,
        metrics={"mc1": metric(0.25), "mc2": metric(0.5)},
    )
    tried = (
        Tried(point={"iti.strength": 5}, value=0.5, n=3),
        Tried(point={"iti.strength": 9}, not_finite="overflow"),
    )
    choice = Choice(condition="best", metric="mc2", tried=tried, chosen={"iti.strength": 5}, seed=1)
    told = list(_cells(Results(kind="comparison", conditions=(swept,), choices=(choice,))))
    assert [one.run for one in told] == [
        "iti iti.strength=5 seed=1 fold=0",
        "best iti.strength=5 on validation seed=1",
    ]
    assert told[0].settings == {
        "group": None,
        "condition": "iti",
        "iti.strength": 5,
        "seed": 1,
        "fold": 0,
    }
    assert told[0].measures == {"mc1": 0.25, "mc2": 0.5}
    assert told[1].measures == {"mc2": 0.5}


def test_a_persona_run_is_its_conditions_and_every_point_of_its_sweeps() -> None:
    points = (
        SweepPoint(layer=3, coefficient=-1.0, n=2, refused=0, score=metric(40.0), contrast=0.5),
        SweepPoint(layer=3, coefficient=2.0, n=0, refused=0, not_finite="overflow"),
    )
    record = {
        "extraction": {
            "pairs": 1,
            "kept": 1,
            "dropped": {},
            "mean_score": {"positive": None, "negative": None},
        },
        "vectors": [],
        "sweep": Sweep(points=points),
    }
    section = PersonaSection(traits={"early": TraitRecord.model_validate(record)})
    choice = Choice(
        condition="early", metric="score", tried=(Tried(point={"layer": 3}, value=40.0),), chosen={}
    )
    sections = {SECTION: section.model_dump(mode="json")}
    told = list(_cells(Results(kind="persona", choices=(choice,), sections=sections)))
    assert [(one.run, one.measures) for one in told] == [
        ("early layer=3 coefficient=-1", {"score": 40.0, "contrast": 0.5}),
        ("early layer=3 coefficient=2", {}),
    ]
    assert told[0].settings == {"trait": "early", "layer": 3, "coefficient": -1.0}
