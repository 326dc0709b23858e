from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from subvene.specs import ExperimentSpec, json_schema
from subvene.specs._base import SpecModel
from subvene.specs.interventions import REGISTRY


def models(base: type[SpecModel]) -> Iterator[type[SpecModel]]:
    for model in base.__subclasses__():
        if model.__module__.startswith("subvene.specs."):
            yield model
            yield from models(model)


def test_the_schema_is_json_and_says_what_it_is() -> None:
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == "urn:subvene:spec:1"
    assert schema["title"] == "subvene spec"
    assert set(schema["properties"]) == set(ExperimentSpec.model_fields)
    assert set(schema["required"]) == {n for n, f in ExperimentSpec.model_fields.items() if f.is_required()}
    assert schema["additionalProperties"] is False


def test_every_field_of_every_model_is_described() -> None:
    found = list(models(SpecModel))
    assert len(found) > 20
    for model in found:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert not field.description.endswith(" "), f"{model.__name__}.{name}"


def test_every_kind_is_in_the_schema() -> None:
    def constants(node: Any) -> Iterator[str]:
        if isinstance(node, dict):
            for key in ("kind", "recipe"):
                const = (
                    node.get("properties", {}).get(key, {})
                    if isinstance(node.get("properties"), dict)
                    else {}
                )
                if "const" in const:
                    yield const["const"]
            for value in node.values():
                yield from constants(value)
        elif isinstance(node, list):
            for value in node:
                yield from constants(value)

    assert set(constants(json_schema())) == {
        *REGISTRY,
        "iti",
        "truthfulqa",
        "divergence",
        "causal_tracing",
        "noise",
        "swap",
        "patching",
        "interchange",
        "das",
        "experts",
        "pca",
        "logistic",
        "refusal",
        "cast",
        "angular",
        "affine_map",
        "reft",
        "transfer",
        "composition",
        "localization",
        "trained",
        "openai",
        "transformers",
        "reference",
        "mean_difference",
        "samples",
        "trait_scores",
        "multiple_choice",
        "likelihood",
        "refusals",
        "lm_eval",
        "random_direction",
        "contrast",
        "persona",
        "localized_edit",
        "ipo",
        "dpo",
        "sft",
        "trait_sweep",
        "trait_conditions",
        "baseline",
        "prompted",
        "opposed",
        "steered",
        "capped",
        "ablated",
    }


def test_the_file_s_own_names_are_in_the_schema() -> None:
    pyvene = json_schema()["$defs"]["PyveneSpec"]
    assert "class" in pyvene["properties"]
    assert "class_name" not in pyvene["properties"]
    assert "NoiseIntervention" not in pyvene["properties"]["class"]["enum"]


def test_bounds_are_in_the_schema() -> None:
    definitions = json_schema()["$defs"]
    assert definitions["SteeringSpec"]["properties"]["layer"]["minimum"] == 0
    assert definitions["LowRankEditSpec"]["properties"]["rank"]["minimum"] == 1
    assert definitions["SamplesSpec"]["properties"]["prompts"]["minItems"] == 1
