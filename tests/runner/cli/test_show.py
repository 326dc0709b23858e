from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
MANY = """\
interventions:
- {kind: steering, name: s, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3, positions: R}
- {kind: ablation, name: along, layer: 1, direction: {file: t.safetensors, key: v}}
- {kind: ablation, name: across, layer: 1, direction: {file: t.safetensors, key: w}, positions: prompt}
- {kind: steering, name: t, layer: 1, vector: {file: t.safetensors, key: u}, coefficient: 1, positions: L}
- {kind: low_rank_edit, name: edit, layer: 2, write_heads: [1], rank: 1, positions: {indices: [0, 3, -1]}}
""".replace("R}", "response}").replace("L}", "{last: 2}}")


@pytest.fixture
def document(subvene: Run) -> Run:
    def document(*args: object) -> dict[str, Any]:
        result = subvene("show", *args, "--json")
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return document


def test_what_where_when_how_strongly(subvene: Run, steer: Path) -> None:
    result = subvene("show", steer)
    assert result.exit_code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    for said in (
        "1 glad steering",
        "does h ← h + c·v",
        "where block_output[1]",
        "tokens the last prompt token and every generated token",
        "strength 3",
        "tensor v.block_output[1] [32], norm 4",
        "sizes LlamaForCausalLM, 3 layers, width 32, 4 heads of 8",
        "pyvene stock pyvene loads an artifact of it, too",
    ):
        assert any(line.startswith(said) for line in lines), said


def test_what_only_this_kind_has(subvene: Run, document: Run, write: Run) -> None:
    cap = "interventions: [{kind: capping, layer: 1, direction: {file: t.safetensors, key: v}, min: 0.5}]\n"
    spec = write(cap)
    assert document(spec)["interventions"][0]["settings"] == {"min": 0.5}
    assert "min 0.5" in " ".join(subvene("show", spec).stdout.split())
    assert document(write(MANY))["interventions"][4]["settings"] == {"write_heads": [1]}


def test_which_pairs_commute(document: Run, write: Run) -> None:
    order = {(p["first"], p["second"]): p for p in document(write(MANY))["order"]}
    assert {pair: p["commutes"] for pair, p in order.items() if p["shared"]} == {
        ("s", "along"): False,
        ("s", "across"): True,
        ("s", "t"): True,
        ("along", "across"): True,
        ("along", "t"): False,
        ("across", "t"): False,
    }
    elsewhere = [p for p in order.values() if not p["shared"]]
    assert {p["second"] for p in elsewhere} == {"edit"}
    assert {p["reason"] for p in elsewhere} == {"at different places: the model gives their order"}


def test_the_prompt_s_edited_tokens(document: Run, subvene: Run, write: Run) -> None:
    spec = write(MANY)
    tokens = document(spec, "-p", "hello world")["prompt"]["tokens"]
    assert [token["text"] for token in tokens] == [
        "<s>",
        "user",
        ":",
        "hello",
        "world",
        "<s>",
        "assistant",
        ":",
    ]
    assert [token["role"] for token in tokens] == ["prompt"] * 7 + ["cursor"]
    edited = {name: [i for i, t in enumerate(tokens) if t["edited"][name]] for name in tokens[0]["edited"]}
    assert edited == {"s": [7], "along": [*range(8)], "across": [*range(8)], "t": [6, 7], "edit": [0, 3, 7]}
    printed = subvene("show", spec, "-p", "hello world", "--raw").stdout
    assert "s: 1 of 2" in printed
    assert "hello│[world]" in printed


def test_the_tokens_need_no_weights(
    document: Run, steer: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setattr(
        transformers.PreTrainedModel, "from_pretrained", lambda *a, **k: pytest.fail("loaded")
    )
    assert document(steer, "-p", "hello")["prompt"]["tokens"]


def test_a_spec_that_was_not_fitted_says_so(subvene: Run, document: Run, experiment: Path) -> None:
    assert document(experiment)["interventions"][0]["problem"] == "glad is not fitted yet"
    printed = subvene("show", experiment).stdout
    assert "glad is not fitted yet" in printed
    assert f"run: subvene fit {experiment} -o FOLDER" in printed


def test_an_artifact_and_the_output_of_a_run(
    subvene: Run, document: Run, experiment: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run" / "artifact"
    assert subvene("fit", experiment, "-o", folder).exit_code == 0
    shown = document(folder)
    assert shown == document(folder.parent)
    assert shown["what"] == "artifact"
    assert shown["provenance"]["recipe"] == "mean_difference"
    assert shown["stored_tensors"] == 3
    assert shown["made_for"]["n_layers"] == 3
    assert shown["stock_pyvene"] is True
    (tensor,) = shown["interventions"][0]["tensors"].values()
    assert tensor["norm"] == pytest.approx(shown["provenance"]["norm_by_layer"]["1"], abs=1e-3)
    printed = subvene("show", folder).stdout
    assert "recipe mean_difference, key glad, site block_output" in printed
    assert "made for    LlamaForCausalLM, 3 layers" in printed


def test_what_is_not_there(subvene: Run, write: Run, tmp_path: Path, document: Run) -> None:
    assert "neither an artifact nor" in subvene("show", tmp_path).stderr
    missing = write(
        "interventions: [{kind: steering, layer: 1, vector: {file: no.safetensors, key: v}, coefficient: 1}]"
    )
    assert "no.safetensors: no such tensor file" in document(missing)["interventions"][0]["problem"]
    beyond = write(
        "interventions: [{kind: steering, layer: 9, vector: {file: t.safetensors, key: v}, coefficient: 1}]"
    )
    result = subvene("show", beyond)
    assert result.exit_code == 1
    assert "expected a layer from 0 to 2" in result.stderr


def test_a_model_that_cannot_be_reached_leaves_the_rest(
    document: Run, write: Run, model_folder: Path
) -> None:
    spec = write(MANY)
    spec.write_text(spec.read_text().replace(str(model_folder), "./nowhere"))
    shown = document(spec)
    assert "./nowhere" in shown["model_problem"]
    assert shown["interventions"][4]["sites"] == ["attention_heads[2]"]
    assert {p["commutes"] for p in shown["order"]} == {None}


def test_stock_pyvene_is_named_only_where_it_does_what_is_declared(
    subvene: Run, document: Run, write: Run
) -> None:
    def told(lines: str) -> str:
        result = subvene("show", write(lines))
        assert result.exit_code == 0, result.stderr
        return " ".join(result.stdout.split())

    swap = "{kind: pyvene, class: VanillaIntervention, site: block_output, layer: 1, positions: {last: 1}, "
    source = "sources: {other: {prompt: the rain}}\n"
    assert "an artifact of it, too, and needs `sources`" in told(
        f"{source}interventions: [{swap}source: {{from: other}}}}]\n"
    )
    elsewhere = f"{source}interventions: [{swap}source: {{from: other, layer: 0}}}}]\n"
    assert "stock pyvene does not do what is declared: pyvene reads another layer" in told(elsewhere)
    assert document(write(elsewhere))["stock_pyvene"] is False
    facts = "[{prompt: the rain is, subject: the rain, answer: wet}]"
    tracing = (
        f"evaluate: [{{kind: causal_tracing, facts: {{facts: {facts}}}, corruption: {{kind: noise}}}}]\n"
    )
    assert "stock pyvene" not in told(tracing)
    assert document(write(tracing))["stock_pyvene"] is None
