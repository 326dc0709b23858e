"""A kind from outside the tree: what it does not say of itself, no export writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS
from outside_kind import Amplifying, Outside, register
from tiny_exports import intervened

from subvene.interventions import REGISTRY, ActivationIntervention, DirectionFormula
from subvene.interventions.ablation import AblationIntervention
from subvene.runner.exchange.exports import FORMATS
from subvene.runner.exchange.exports.base import ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.intervened.model import IntervenedModel

LLAMA = BY_NAME["llama"]


class Borrowing(Outside, AblationIntervention):
    """The same, with what another kind says of itself."""

    kind = "outside"


class Described(Outside):
    """It says that it depends on the activation, and no more."""

    @property
    def depends_on_activation(self) -> bool:
        return True


def made(
    monkeypatch: pytest.MonkeyPatch,
    cls: type[ActivationIntervention],
    dtype: Any = torch.float32,
    **fields: Any,
) -> IntervenedModel:
    register(monkeypatch, cls)
    declared = {"kind": "outside", "layer": LAYERS - 1, **fields}
    return intervened(LLAMA, declared, model=LLAMA.fresh().to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("cls", [Outside, Borrowing])
def test_what_a_kind_does_not_say_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, cls: Any
) -> None:
    m = made(monkeypatch, cls, dtype)
    for approximate in (False, True):
        with pytest.raises(ExportError, match=r"outside_0 \(outside\): ") as caught:
            export(m, name, tmp_path / "out", approximate=approximate)
        assert ("baked" if name == "checkpoint" else f"exported as {name}") in str(caught.value)
        assert ("contradicts itself" in str(caught.value)) == (cls is Borrowing)
        assert "With --approximate" not in str(caught.value)
    assert not list(tmp_path.iterdir())


EXPECTED = {
    "block_output": {
        "lm-eval": "approximate",
        "gguf-control-vector": "approximate",
        "checkpoint": "approximate",
    },
    "mlp_output": {"lm-eval": "approximate", "checkpoint": "exact", "peft": "exact"},
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("site", EXPECTED)
def test_what_it_says_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, site: str) -> None:
    m = made(monkeypatch, Amplifying, site=site)
    expected = EXPECTED[site].get(name, "refused")
    if expected != "exact":
        with pytest.raises(ExportError, match=r"outside_0 \(outside\)"):
            export(m, name, tmp_path / "out")
    if expected == "refused":
        with pytest.raises(ExportError, match=r"outside_0 \(outside\)"):
            export(m, name, tmp_path / "out", approximate=True)
        return
    folder = export(m, name, tmp_path / "out", approximate=True)
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == expected
    if expected == "exact":
        assert record["max_logit_difference"] < 1e-5 < 1e-3 < record["max_logit_effect"]


@pytest.mark.parametrize("name", ["checkpoint", "vector"])
def test_a_kind_that_depends_on_the_activation_has_a_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    m = made(monkeypatch, Described)
    with pytest.raises(ExportError, match="With --approximate"):
        export(m, name, tmp_path / "out")
    record = json.loads(
        (export(m, name, tmp_path / "out", approximate=True) / "equivalence.json").read_text()
    )
    assert 0 < record["mean_kl"] < record["mean_kl_untouched"]


class Removing(Outside):
    """Ablation that states its formula, and no map."""

    def direction_formula(self) -> DirectionFormula:
        return DirectionFormula("remove", self.direction)


class Adding(Outside):
    """A constant that states its formula, and no map."""

    def direction_formula(self) -> DirectionFormula:
        return DirectionFormula("add", self.direction)


@pytest.mark.parametrize(
    ("cls", "depends"),
    [(Outside, None), (Described, True), (Amplifying, True), (Removing, True), (Adding, False)],
)
def test_whether_a_kind_depends_on_the_activation_follows_from_what_it_states(
    cls: type[ActivationIntervention], depends: bool | None
) -> None:
    edit = cls(torch.ones(4))
    assert edit.depends_on_activation is depends
    assert edit.acts_alone is None


@pytest.mark.parametrize("kind", REGISTRY)
def test_every_kind_of_the_tree_says_what_it_does_or_is_pyvenes(kind: str) -> None:
    said = REGISTRY[kind].linear_in_strength
    assert (said is None) == (kind == "pyvene")
