"""CONTRIBUTING's recipe by its letter: a spec, a class, two registrations; everything takes the kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from outside_kind import Outside, Whole, register

from subvene.interventions import REGISTRY
from subvene.runner import IntervenedModel
from subvene.runner.exchange.exports import FORMATS
from subvene.runner.exchange.exports.table import table
from subvene.specs import SpecError, json_schema, load_spec
from subvene.specs.interventions import REGISTRY as SPECS

Run = Callable[..., Any]
LINES = """\
interventions:
- {kind: outside, name: more, site: SITE, layer: 1, direction: {file: k.safetensors, key: k}, strength: 1.5}
"""
PROMPT = ("-p", "hello world", "--max-new-tokens", 4)
IDS = torch.tensor([[5, 6, 7, 8]])
# What a linear map along a direction is to every format, where it is stated, by site.
STATED = {
    "mlp_output": {"checkpoint": "exact", "peft": "exact", "lm-eval": "approximate", "pyvene": "exact"},
    "block_output": {
        "checkpoint": "approximate",
        "gguf-control-vector": "approximate",
        "lm-eval": "approximate",
        "pyvene": "exact",
    },
}


@pytest.fixture(params=STATED)
def site(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def spec(write: Run, tmp_path: Path, site: str) -> Path:
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    safetensors.torch.save_file({f"k.{site}[1]": direction}, tmp_path / "k.safetensors")
    return write(LINES.replace("SITE", site))


@torch.no_grad()
def logits(m: IntervenedModel) -> torch.Tensor:
    return m(IDS, prompt_lengths=[2]).logits


def test_without_the_two_lines_there_is_no_such_kind(spec: Path, subvene: Run) -> None:
    assert "outside" not in {*SPECS, *REGISTRY}
    refused = subvene("validate", spec)
    assert refused.exit_code == 1
    assert "interventions[0].kind: expected one of: ablation" in " ".join(refused.stdout.split())
    with pytest.raises(SpecError):
        load_spec(spec)


def test_a_new_kind_is_validated_shown_generated_with_saved_and_reloaded(
    spec: Path, site: str, subvene: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Whole)
    assert subvene("validate", spec).exit_code == 0
    assert "OutsideSpec" in json_schema()["$defs"]
    assert "| `outside` | approximate | refused | approximate | approximate | exact | refused |" in table()

    shown = json.loads(subvene("show", spec, "--json").stdout)["interventions"][0]
    assert (shown["kind"], shown["sites"], shown["problem"]) == ("outside", [f"{site}[1]"], None)
    assert shown["operation"] == "h ← h + s·⟨h, v̂⟩·v̂, and it says all that there is to say"
    assert shown["strength"] == 1.5

    made = subvene("generate", spec, *PROMPT, "--json")
    assert made.exit_code == 0, made.stderr
    record = json.loads(made.stdout)["records"][0]

    m = IntervenedModel.from_spec(spec)
    folder = m.save_pretrained(tmp_path / "artifact")
    again = IntervenedModel.from_pretrained(folder)
    assert torch.equal(logits(again), logits(m))
    with m.disabled():
        assert (logits(again) - logits(m)).abs().max() > 1e-3
    reloaded = json.loads(subvene("generate", folder, *PROMPT, "--json").stdout)["records"][0]
    assert reloaded["response"] == record["response"]
    assert json.loads(subvene("show", folder, "--json").stdout)["interventions"][0]["kind"] == "outside"


@pytest.mark.parametrize("to", FORMATS)
def test_every_export_is_measured_or_refused(
    to: str, spec: Path, site: str, subvene: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Whole)
    expected, out = STATED[site].get(to, "refused"), tmp_path / "out"
    done = subvene("export", spec, "--to", to, "-o", out)
    assert (done.exit_code == 0) == (expected == "exact"), done.stderr
    if expected != "exact":
        assert "more (outside): " in done.stderr
        done = subvene("export", spec, "--to", to, "-o", out, "--approximate")
    assert (done.exit_code == 0) == (expected != "refused"), done.stderr
    if expected == "refused":
        assert "more (outside): " in done.stderr
        assert not out.exists()
        return
    record = json.loads((out / "equivalence.json").read_text())
    assert record["exactness"] == expected
    if expected == "exact":
        assert record["max_logit_difference"] < 1e-4 < record["max_logit_effect"]
    else:
        assert record["mean_kl"] >= 0


@pytest.mark.parametrize("to", FORMATS)
def test_of_a_kind_that_says_nothing_every_export_says_what_is_missing(
    to: str, spec: Path, subvene: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, Outside)
    done = subvene("export", spec, "--to", to, "-o", tmp_path / "out", "--approximate")
    assert done.exit_code == 1
    missing = "`acts_alone`" if to == "pyvene" else "`affine`, `direction_formula`, `gates`"
    assert missing in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()
