"""What every export goes through: the verdicts, the folder, the measurement, the table in the docs."""

from __future__ import annotations

import copy
import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import BY_NAME, LAYERS
from checkout import ROOT
from tiny_exports import EDIT, HEAD, intervened, steer

from subvene.runner.exchange.exports import FORMATS, checkpoint, driver, load_format, vector
from subvene.runner.exchange.exports.approximation import mean_shifts
from subvene.runner.exchange.exports.base import BakeError, ExportError
from subvene.runner.exchange.exports.driver import export
from subvene.runner.exchange.exports.table import table
from subvene.runner.exchange.exports.texts import CALIBRATION, MEASURED, encoded
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, SubveneError

LLAMA = BY_NAME["llama"]
CAP = {"kind": "capping", "layer": LAYERS - 1, "direction": {"key": "v"}, "max": -1.0}


def record_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "equivalence.json").read_text())


def test_the_record_and_the_card_say_what_was_measured(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, tokenizer = loaded
    spec = {"subvene": 1, "model": {"name": "user/tiny"}, "interventions": [HEAD]}
    m = IntervenedModel.from_spec(
        InterventionSpec.model_validate(spec),
        model=model,
        tokenizer=tokenizer,
        tensors={"iti.attention_heads[1]": torch.randn(4, 8, generator=torch.Generator().manual_seed(0))},
    )
    folder = export(m, "checkpoint", tmp_path / "a")
    record = record_of(folder)
    assert {"format", "exactness", "prompts", "tokens", "max_logit_difference", "max_logit_effect"} | {
        "consumer",
        "dtype",
        "versions",
        "files",
    } == record.keys()
    assert set(record["files"]) == {path.name for path in folder.iterdir()}
    assert (record["format"], record["exactness"], record["dtype"]) == ("checkpoint", "exact", "float32")
    assert record["prompts"] == [dataclasses.asdict(text) for text in MEASURED]
    assert record["tokens"] == sum(len(f"{t.prompt} {t.response}".split()) for t in MEASURED)
    assert record["max_logit_difference"] < 1e-5 < 0.01 < record["max_logit_effect"]
    assert record["consumer"]["name"] == "transformers"
    assert set(record["versions"]) == {"subvene", "torch", "transformers", "pyvene"}
    card = (folder / "README.md").read_text()
    assert "## Equivalence" in card
    assert f"{record['max_logit_difference']:.2g}" in card
    assert "approximation" not in card
    # Other texts, and the old export gives way to the new one.
    export(m, "checkpoint", folder, prompts=["hello world", ("how are you", "i am glad")])
    assert record_of(folder)["prompts"] == [
        {"prompt": "hello world", "response": ""},
        {"prompt": "how are you", "response": "i am glad"},
    ]
    assert record_of(folder)["tokens"] == 8
    for bad in ([], [""], [("", "x")]):
        with pytest.raises(ExportError, match="prompts: expected at least one, and none of them empty"):
            export(m, "checkpoint", folder, prompts=bad)


def test_an_approximation_says_so_and_how_far_it_is_off(tmp_path: Path) -> None:
    m = intervened(LLAMA, HEAD | {"positions": "response", "name": "late"}, EDIT)
    with pytest.raises(BakeError, match="With --approximate") as caught:
        checkpoint.bake(m)
    assert "late (head_direction)" in str(caught.value)
    assert "low_rank" not in str(caught.value)
    folder = export(m, "checkpoint", tmp_path / "a", approximate=True)
    record = record_of(folder)
    assert record["exactness"] == "approximate"
    (why,) = record["approximations"]
    assert 'late (head_direction): positions "response"' in why
    card = (folder / "README.md").read_text()
    assert "**This is an approximation.**" in card
    assert f"{record['mean_kl']:.3g} nats" in card
    assert 'positions "response"' in card
    # By hand: KL(intervened ‖ baked) over the tokens of the same texts.
    baked = checkpoint.bake(m, approximate=True)
    kls = []
    for text in record["prompts"]:
        ids = torch.tensor([text["token_ids"]])
        with torch.no_grad():
            p = m(ids, prompt_lengths=[text["prompt_tokens"]]).logits.double().log_softmax(-1)
            q = baked(ids).logits.double().log_softmax(-1)
        kls.append((p.exp() * (p - q)).sum(-1).flatten())
    assert record["mean_kl"] == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    # Where it was asked for and nothing needed it, an export is exact.
    assert record_of(export(intervened(LLAMA, EDIT), "checkpoint", tmp_path / "b", approximate=True))[
        "exactness"
    ] == ("exact")


@pytest.mark.parametrize("positions", ["all", "prompt"])
def test_a_mean_shift_is_the_mean_over_edited_tokens(positions: str) -> None:
    """By hand, for a cap: −max(⟨h, v̂⟩ − τ, 0)·v̂, over the activations of the untouched model."""
    m = intervened(LLAMA, CAP | {"positions": positions})
    ((key, edit),) = m.intervenable.interventions.items()
    (found,) = mean_shifts(m).values()
    assert list(mean_shifts(m)) == [key]
    seen: list[torch.Tensor] = []
    handle = m.model.model.layers[-1].register_forward_hook(lambda _m, _a, out: seen.append(out[0]))
    with torch.no_grad(), m.disabled():
        for ids, length in encoded(m, CALIBRATION):
            m(ids)
            seen[-1] = seen[-1][: length if positions == "prompt" else None].double()
    handle.remove()
    h, v = torch.cat(seen), edit.direction.double()
    by_hand = -(((h @ v) - CAP["max"]).clamp_min(0).unsqueeze(-1) * v).mean(0)
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-6)
    nowhere = intervened(LLAMA, CAP | {"positions": {"indices": [50]}})
    with pytest.raises(ExportError, match="edits no token of the 6 texts"):
        mean_shifts(nowhere)
    assert not any(edit._forward_hooks for edit in m.intervenable.interventions.values())
    assert not {t.prompt for t in CALIBRATION} & {t.prompt for t in MEASURED}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_export_that_is_not_what_was_declared_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    m = intervened(LLAMA, HEAD, model=LLAMA.fresh().to(dtype))
    bake = checkpoint._baked

    def wrong(m: Any, **options: Any) -> Any:
        model = bake(m, **options)
        projection = model.model.layers[0].self_attn.o_proj  # what is unchanged is the model's own
        projection.bias = torch.nn.Parameter(projection.bias * 1.05)
        return model

    monkeypatch.setattr(checkpoint, "_baked", wrong)
    with pytest.raises(ExportError, match=r"differ by up to .* should be exact; nothing was written"):
        export(m, "checkpoint", tmp_path / "a")

    def broken(m: Any, **options: Any) -> Any:
        model = bake(m, **options)
        model.model.layers[0].self_attn.o_proj.bias.data[0] = torch.nan
        return model

    monkeypatch.setattr(checkpoint, "_baked", broken)
    with pytest.raises(ExportError, match="finite numbers; nothing was written"):
        export(m, "checkpoint", tmp_path / "a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("factor", [-1.0, 0.0, 1.1])
def test_a_wrong_vector_is_caught_in_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    m = intervened(LLAMA, steer(), model=LLAMA.fresh().to(torch.bfloat16))
    right = vector._vector

    def wrong(edit: Any) -> Any:
        found, told = right(edit)
        return factor * found, told

    monkeypatch.setattr(vector, "_vector", wrong)
    with pytest.raises(ExportError, match="should be exact; nothing was written"):
        export(m, "vector", tmp_path / "a")
    # Where the weights cannot be widened, what is clearly another edit is caught by the effect.
    monkeypatch.setattr(driver, "float32_copy", lambda m: None)
    if factor < 1:
        with pytest.raises(ExportError, match="in bfloat16 it cannot be told whether"):
            export(m, "vector", tmp_path / "a")
    monkeypatch.setattr(vector, "_vector", right)
    export(m, "vector", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", FORMATS)
def test_half_precision_is_judged_in_float32(name: str, tmp_path: Path) -> None:
    model = LLAMA.fresh().to(torch.bfloat16)
    m = intervened(LLAMA, EDIT if name == "peft" else steer(), model=model)
    record = record_of(export(m, name, tmp_path / "a"))
    assert (record["exactness"], record["dtype"]) == ("exact", "bfloat16")
    proof = record["in_float32"]
    assert proof["max_logit_difference"] < 1e-5 < 1e-3 < proof["max_logit_effect"]
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not [path for path in (tmp_path / "a").iterdir() if path.is_dir()]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    m = intervened(LLAMA, steer())
    (tmp_path / "file").write_text("x")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    for taken in ("file", "mine"):
        with pytest.raises(ExportError, match=f"{taken} exists and holds no export"):
            export(m, "vector", tmp_path / taken)
    folder = export(m, "vector", tmp_path / "empty")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    # A refusal leaves the old export as it was, and nothing beside it.
    with pytest.raises(ExportError, match="two factors"):
        export(intervened(LLAMA, EDIT), "vector", folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "mine"]
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"


def test_every_intervention_that_is_refused_is_named_with_what_to_do(tmp_path: Path) -> None:
    m = intervened(LLAMA, steer(name="early"), EDIT, CAP | {"name": "cap"})
    with pytest.raises(ExportError) as caught:
        export(m, "peft", tmp_path / "a")
    told = str(caught.value)
    assert told.startswith("this cannot be exported as peft exactly:\n")
    assert (
        "early (steering): it adds a constant, and a LoRA has no bias; instead, the format checkpoint" in told
    )
    assert "cap (capping): what it does depends on the activation" in told
    assert "low_rank_edit_1" not in told
    with pytest.raises(ExportError, match="format 'gguf': expected one of: checkpoint, peft"):
        export(m, "gguf", tmp_path / "a")
    assert issubclass(BakeError, ExportError)
    assert issubclass(ExportError, SubveneError)


@pytest.mark.parametrize("name", FORMATS)
def test_the_model_stays_as_it_was(name: str, tmp_path: Path) -> None:
    model = LLAMA.fresh()
    before = copy.deepcopy(model.state_dict())
    config = model.config.to_dict()
    m = intervened(LLAMA, EDIT if name == "peft" else steer(), model=model)
    export(m, name, tmp_path / "a")
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert model.config.to_dict() == config
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_formats_are_named_without_loading_any() -> None:
    code = "import sys; from subvene.runner.exchange.exports import FORMATS; print(*FORMATS)"
    code += "; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == list(FORMATS)
    for name in FORMATS:
        assert load_format(name).name == name


def test_the_docs_hold_the_table_that_the_code_gives() -> None:
    page = (ROOT / "docs" / "exports.md").read_text(encoding="utf-8")
    assert table() in page
    assert all(f"`{name}`" in page for name in FORMATS)


def test_kinds_are_judged_without_a_model() -> None:
    lines = [[c.strip() for c in line.split("|")[1:-1]] for line in table().splitlines()]
    head, _, *rows = lines
    assert head == ["declared", *FORMATS]
    found = {row[0]: dict(zip(FORMATS, row[1:], strict=True)) for row in rows}
    assert {cell for row in found.values() for cell in row.values()} == {"exact", "approximate", "refused"}
    assert found["`low_rank_edit`"]["peft"] == found["`low_rank_edit`"]["checkpoint"] == "exact"
    assert found["`head_direction`"]["peft"] == "refused"
    assert found["`steering` at `block_output`"]["gguf-control-vector"] == "exact"
    assert found["`capping`"]["checkpoint"] == "approximate"
    assert set(found["any kind, one strength per row"].values()) == {"refused"}
