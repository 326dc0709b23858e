"""Models whose weights accelerate keeps elsewhere and brings in call by call, against whole ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import operations
import pytest
import torch
from architectures import BY_NAME
from made_models import made, prompts
from tiny_model import WIDTH, write_tiny_model
from tiny_preferences import examples_of, experiment, train

from subvene.runner import IntervenedModel
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.devices import input_device
from subvene.runner.models.identity import model_sha256
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last
from subvene.specs import InterventionSpec, SubveneError

NEW = 4
OFFLOADS: dict[str, Callable[[Any, Path], Any]] = {
    "cpu": lambda model, _: accelerate.cpu_offload(model, execution_device="cpu"),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, execution_device="cpu"),
}
# What declares each of the places: the embeddings' too, by which a model says where it is.
SPREAD = {
    "model.embed_tokens": "disk",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "disk",
}


def everything(m: IntervenedModel) -> tuple[Any, torch.Tensor, Any]:
    """What is generated greedily, logits of a scored batch, and the receipt of that."""
    answers = m.generate_ids(**prompts(2, 5), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    with torch.no_grad():
        logits = m(**prompts(2, 5), prompt_lengths=[3, 2]).logits
    return answers.tolist(), logits, m.receipt


def assert_alike(m: IntervenedModel, whole: IntervenedModel) -> None:
    found, expected = everything(m), everything(whole)
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])
    assert found[2] == expected[2]
    with whole.disabled(), torch.no_grad():
        assert not torch.allclose(whole.model(**prompts(2, 5)).logits, expected[1], atol=1e-3)


@pytest.mark.parametrize("place", OFFLOADS)
def test_edits_are_those_of_the_whole_model(place: str, tmp_path: Path) -> None:
    kinds = operations.every_kind()
    # The examples of SAEs have one key and other shapes: each is a model of its own.
    alone = [[one] for one in kinds.values() if one.kind == "sae_feature"]
    together = [*operations.steering([0, 2]), *(one for one in kinds.values() if [one] not in alone)]
    whole, away = (made("tiny") for _ in range(2))
    away = OFFLOADS[place](away, tmp_path)
    assert all(parameter.is_meta for parameter in away.parameters())
    for declared in [together, *alone]:
        assert_alike(operations.intervened(away, declared), operations.intervened(whole, declared))
    assert all(parameter.is_meta for parameter in away.parameters())


def test_a_declared_map_over_cpu_and_disk(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model", vocab_size=1024)

    def loaded(**model: Any) -> IntervenedModel:
        spec = InterventionSpec.model_validate(
            {
                "subvene": 1,
                "model": {"name": str(folder), "dtype": "float32", **model},
                "interventions": operations.steering([0, 1]),
            }
        )
        tensors = {f"v.block_output[{i}]": torch.ones(WIDTH) for i in range(2)}
        return IntervenedModel.from_spec(spec, tensors=tensors)

    m, whole = loaded(device_map=SPREAD), loaded(device="cpu")
    where = {name: str(tensor.device) for name, tensor in m.model.named_parameters()}
    assert {where[f"model.layers.{i}.mlp.up_proj.weight"] for i in (0, 2)} == {"cpu"}
    assert where["model.embed_tokens.weight"] == where["model.layers.1.mlp.up_proj.weight"] == "meta"
    assert_alike(m, whole)
    assert m.device == input_device(m.model) == torch.device("cpu")
    assert m.generate(["hello world"], max_new_tokens=3) == whole.generate(["hello world"], max_new_tokens=3)


def test_its_weights_have_the_hash_of_the_whole_model_and_its_activations_are_kept(tmp_path: Path) -> None:
    whole, away = made("tiny"), OFFLOADS["disk"](made("tiny"), tmp_path / "weights")
    assert model_sha256(away) == model_sha256(whole)
    other = made("tiny")
    other.model.layers[3].mlp.up_proj.weight.data[0, 0] += 1
    assert model_sha256(OFFLOADS["cpu"](other, tmp_path)) != model_sha256(whole)
    texts = [Passage(ids, (last(len(ids)),)) for ids in ((5, 6, 7), (8, 9))]
    rows = [
        collect(
            Anatomy.of(model), "attention_heads", [1, 2], texts, tmp_path / name, pad_id=0, batch_size=2
        ).read(2)
        for name, model in (("whole", whole), ("away", away))
    ]
    assert torch.equal(*rows)


def test_an_edit_is_trained_on_it(tmp_path: Path) -> None:
    examples = examples_of(6)
    llama = BY_NAME["llama"]
    trained = [
        train(model, examples, experiment("edit", {0: (1,), 1: (2, 3)}, examples, epochs=1))[0]
        for model in (llama.shared(), OFFLOADS["cpu"](llama.fresh(), tmp_path))
    ]
    one, other = trained
    assert one.losses == pytest.approx(other.losses, rel=1e-4)
    torch.testing.assert_close(other.factors, one.factors, atol=1e-6, rtol=1e-5)


def test_a_model_without_weights_has_no_hash() -> None:
    with pytest.raises(SubveneError, match=r"the weight model.embed_tokens.weight has no value"):
        model_sha256(made("tiny").to("meta"))
