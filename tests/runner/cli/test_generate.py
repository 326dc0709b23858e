from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from subvene.runner import IntervenedModel

Run = Callable[..., Any]
NEW = ("--max-new-tokens", 6)
TWO = """\
interventions:
- {kind: steering, name: one, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
- {kind: ablation, layer: 2, direction: {file: t.safetensors, key: w}}
"""


@pytest.fixture
def document(subvene: Run) -> Run:
    """The JSON document of `generate`."""

    def document(*args: object, **options: object) -> dict[str, Any]:
        result = subvene("generate", *args, *NEW, "--json", **options)
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)

    return document


def responses(document: dict[str, Any]) -> list[str]:
    return [record["response"] for record in document["records"]]


def test_one_prompt_is_streamed_and_the_receipt_stands_apart(subvene: Run, steer: Path) -> None:
    result = subvene("generate", steer, "-p", "hello world", *NEW)
    expected = IntervenedModel.from_spec(steer).generate("hello world", max_new_tokens=6, do_sample=False)
    assert result.stdout.split() == expected[0].split()
    assert expected[0].strip()
    assert "edited 6 tokens (0 prompt, 1 cursor, 5 response; positions 7 to 12)" in " ".join(
        result.stderr.split()
    )


def test_the_text_comes_while_it_is_written(
    steer: Path, subvene: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces: list[str] = []
    said = importlib.import_module("subvene.runner.cli.generate")
    monkeypatch.setattr(said, "say", lambda text, end="\n": pieces.append(text))
    subvene("generate", steer, "-p", "hello", "--strength", 1, "--max-new-tokens", 24)
    assert len([piece for piece in pieces if piece]) > 2


def test_strength_0_is_the_baseline_and_compare_shows_both(document: Run, steer: Path) -> None:
    prompts = ("-p", "hello world", "-p", "tell me about the rain")
    steered, off = document(steer, *prompts), document(steer, *prompts, "--strength", 0)
    both = document(steer, *prompts, "--compare")
    assert responses(steered) != responses(off)
    assert responses(both) == responses(steered)
    assert [record["baseline"] for record in both["records"]] == responses(off)
    # One batch: a row at 0 and a row at the strength for each prompt.
    assert both["strengths"] == {"glad": [0.0, 3.0, 0.0, 3.0]}
    assert both["receipt"][0]["rows"] == 4
    assert both["receipt"][0]["rows_edited"] == 2


def test_compare_prints_columns_and_the_receipt(subvene: Run, steer: Path) -> None:
    result = subvene("generate", steer, "-p", "hello world", "--compare", *NEW, env={"COLUMNS": "80"})
    assert result.stdout.startswith("› hello world\n")
    header = next(line for line in result.stdout.splitlines() if "baseline" in line)
    assert header.index("baseline") < 5 < 35 < header.index("intervened")
    assert "edited 6 tokens in 1 of 2 rows" in " ".join(result.stdout.split())
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "\x1b" not in result.stdout


def test_strengths_by_name(document: Run, subvene: Run, write: Run) -> None:
    spec = write(TWO)
    both = document(spec, "-p", "hello", "--strength", "one=-2", "--strength", "ablation_1=0.5")
    assert both["strengths"] == {"one": -2.0, "ablation_1": 0.5}
    assert [one["strengths"] for one in both["receipt"]] == [[-2.0], [0.5]]
    for given, said in {
        "2": "several interventions",
        "on=2": "no intervention is called 'on'",
        "one=x": "no number",
    }.items():
        result = subvene("generate", spec, "-p", "hello", "--strength", given)
        assert result.exit_code == 2
        assert said in " ".join(result.stderr.replace("│", " ").split())


def test_prompts_from_files_and_standard_input(document: Run, steer: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("hello world\n\n  how are you \n")
    listed = document(steer, "--prompts-file", file)
    assert [record["prompt"] for record in listed["records"]] == ["hello world", "how are you"]
    assert document(steer, "-p", "-", input="hello\nworld\n")["records"][0]["prompt"] == "hello\nworld"
    lines = document(steer, "--prompts-file", "-", input="hello\nworld\n")["records"]
    assert [record["prompt"] for record in lines] == ["hello", "world"]


def test_no_or_empty_prompt_is_wrong_usage(subvene: Run, steer: Path) -> None:
    assert subvene("generate", steer).exit_code == 2
    assert subvene("generate", steer, "-p", "").exit_code == 2
    assert subvene("generate", steer, "--prompts-file", "-", input="\n").exit_code == 2


def test_several_prompts_are_told_apart(subvene: Run, steer: Path) -> None:
    result = subvene("generate", steer, "-p", "hello", "-p", "world", *NEW)
    assert [line for line in result.stdout.splitlines() if line.startswith("› ")] == ["› hello", "› world"]
    assert "receipt" in result.stderr


def test_system_and_raw_change_what_the_model_reads(document: Run, subvene: Run, steer: Path) -> None:
    def prompt_tokens(*options: str) -> int:
        return document(steer, "-p", "hello world", *options)["receipt"][0]["first"]

    assert prompt_tokens() == 7  # <s> user : hello world <s> assistant :
    assert prompt_tokens("--raw") == 1
    assert prompt_tokens("--system", "very happy") == 12
    assert subvene("generate", steer, "-p", "hello", "--raw", "--system", "x").exit_code == 2


def test_sampling_follows_the_seed(document: Run, steer: Path) -> None:
    def sample(*options: object) -> list[str]:
        return responses(document(steer, "-p", "hello world", *options))

    hot = ("--temperature", 5, "--top-p", 1)
    assert sample(*hot, "--seed", 1) == sample(*hot, "--seed", 1)
    assert len({tuple(sample(*hot, "--seed", seed)) for seed in range(4)}) > 1
    assert sample("--temperature", 0, "--seed", 7) == sample()


def test_model_options_reach_the_model(subvene: Run, document: Run, steer: Path, model_folder: Path) -> None:
    options = (
        "--dtype",
        "bfloat16",
        "--device",
        "cpu",
        "--attn-implementation",
        "eager",
        "--model",
        model_folder,
    )
    assert document(steer, "-p", "hello", *options)["receipt"][0]["changed"] > 0
    for wrong in (["--dtype", "int8"], ["--device", "C P U"], ["--device", "cpu", "--device-map", "auto"]):
        assert subvene("generate", steer, "-p", "hello", *wrong).exit_code == 2
    missing = subvene("generate", steer, "-p", "hello", "--model", "./nowhere")
    assert missing.exit_code == 1
    assert "./nowhere" in missing.stderr


def test_dtype_is_the_model_s(steer: Path, subvene: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        IntervenedModel,
        "generate",
        lambda m, prompts, **_: seen.append(str(m.model.dtype)) or ["" for _ in prompts],
    )
    subvene("generate", steer, "-p", "hello", "--dtype", "bfloat16", "--json")
    subvene("generate", steer, "-p", "hello", "--json")
    assert seen == ["torch.bfloat16", "torch.float32"]


def test_a_spec_that_was_not_fitted_says_what_to_do(subvene: Run, experiment: Path) -> None:
    result = subvene("generate", experiment, "-p", "hello")
    assert result.exit_code == 1
    assert f"subvene fit {experiment} -o FOLDER" in result.stderr


def test_strengths_by_row_must_match_the_prompts(document: Run, subvene: Run, write: Run) -> None:
    spec = write(
        "interventions:\n"
        "- {kind: steering, name: s, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: [1, 2]}\n"
    )
    compared = document(spec, "-p", "hello", "-p", "world", "--compare")
    assert compared["strengths"] == {"s": [0.0, 1.0, 0.0, 2.0]}
    assert subvene("generate", spec, "-p", "hello").exit_code == 2


def test_a_chat_that_the_template_refuses_is_an_error(
    subvene: Run, steer: Path, model_folder: Path, tmp_path: Path
) -> None:
    import shutil

    def with_template(name: str, template: str | None) -> Path:
        folder = tmp_path / name
        shutil.copytree(model_folder, folder)
        (folder / "chat_template.jinja").unlink()
        if template is not None:
            (folder / "chat_template.jinja").write_text(template)
        return folder

    strict = with_template("strict", "{{ raise_exception('no system role here') }}")
    for command in (["generate", steer, "--model", strict], ["show", _on(steer, model_folder, strict)]):
        result = subvene(*command, "-p", "hello", "--system", "x")
        assert result.exit_code == 1
        assert "no system role here" in result.stderr
    none = with_template("none", None)
    result = subvene("generate", steer, "--model", none, "-p", "hello", "--system", "x")
    assert result.exit_code == 1
    assert "no chat template" in result.stderr


def _on(spec: Path, old: Path, new: Path) -> Path:
    other = spec.with_name("other.yaml")
    other.write_text(spec.read_text().replace(str(old), str(new)))
    return other


SWAP = """\
sources: {other: {column: answer}}
interventions:
- {kind: pyvene, class: VanillaIntervention, name: swap, site: block_output, layer: 1,
   source: {from: other, positions: {last: 1}}, positions: {last_of: {field: subject}}}
"""
ROWS = [
    {"prompt": "tell me about the rain", "subject": "rain", "answer": "hello world"},
    {"prompt": "hello world", "subject": "hello", "answer": "the rain", "note": "x"},
]


def test_columns_of_the_data_come_from_the_file_of_prompts(
    document: Run, subvene: Run, write: Run, tmp_path: Path
) -> None:
    spec, data = write(SWAP), tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    m = IntervenedModel.from_spec(spec)
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False, "chat": False}
    expected = m.generate([row["prompt"] for row in ROWS], rows=ROWS, **options)
    found = document(spec, "--prompts-file", data, "--raw")
    assert responses(found) == expected
    assert found["receipt"][0]["source"]["rows"] == 2
    both = document(spec, "--prompts-file", data, "--raw", "--compare")
    assert responses(both) == expected
    with m.disabled():
        plain = m.generate([row["prompt"] for row in ROWS], **options)
    assert [record["baseline"] for record in both["records"]] == plain
    table = tmp_path / "rows.csv"
    table.write_text("question,subject,answer\ntell me about the rain,rain,hello world\n")
    assert responses(document(spec, "--prompts-file", table, "--raw")) == expected[:1]
    assert "not read: note" in " ".join(
        subvene("generate", spec, "--prompts-file", data, "--raw", *NEW).stderr.split()
    )


def test_a_column_that_is_not_there_is_named(subvene: Run, write: Run, tmp_path: Path) -> None:
    spec, data = write(SWAP), tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "hello world", "subject": "hello"}\n')

    def said(*args: object) -> str:
        result = subvene("generate", spec, *args, *NEW)
        assert result.exit_code != 0
        return " ".join(result.stderr.replace("│", " ").split())

    assert (
        f"{data}:1: expected a column 'answer', which source 'other' names; there are: prompt, subject"
        in (said("--prompts-file", data))
    )
    lines = tmp_path / "lines.txt"
    lines.write_text("hello world\n")
    for given in (["-p", "hello"], ["--prompts-file", lines], ["-p", "hello", "--prompts-file", data]):
        assert "'answer' (source 'other'), 'subject' (positions of swap)" in said(*given)
