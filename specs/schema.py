"""The JSON Schema of spec files, for editors."""

from __future__ import annotations

from typing import Any

from subvene.specs.experiment import ExperimentSpec

SCHEMA_ID = "urn:subvene:spec:1"


def json_schema() -> dict[str, Any]:
    """Returns one JSON Schema (draft 2020-12) for both kinds of file.

    An experiment is an intervention file with further fields, none of them required, so that the schema of
    the one serves for both.
    """
    schema = ExperimentSpec.model_json_schema(by_alias=True)
    schema["title"] = "subvene spec"
    schema["description"] = "Declared interventions on a language model, and experiments with them."
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": SCHEMA_ID, **schema}
