"""From a spec back to a file that reads as if a person had written it."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from subvene.specs._base import SpecModel
from subvene.specs._yaml_reader import FLOAT, INTEGER
from subvene.specs.document import Format
from subvene.specs.experiment import ExperimentSpec, InterventionSpec
from subvene.specs.tensors import TensorRef

_TAGS = ("kind", "recipe", "measure", "rule")


def dump_spec(spec: InterventionSpec, format: Format = "yaml") -> str:
    """Writes a spec as text that reads back to an equal spec.

    Only what was set or differs from its default is written, the telling fields first.

    Args:
        spec: An InterventionSpec or ExperimentSpec.
        format: ``yaml`` or ``json``.
    """
    data = _mapping(spec)
    if isinstance(spec, ExperimentSpec) and data.keys() <= InterventionSpec.model_fields.keys():
        # Without any field of its own it would be read back as an InterventionSpec.
        data["seed"] = spec.seed
    if format == "json":
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if format != "yaml":
        raise ValueError(f"format is yaml or json, not {format!r}")
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


class _Flow(dict[Any, Any]):
    """A mapping written on one line."""


class _FlowList(list[Any]):
    """A list written on one line."""


def _mapping(model: SpecModel) -> dict[str, Any]:
    data: dict[str, Any] = _Flow() if isinstance(model, TensorRef) else {}
    for name in type(model).field_order():
        field = type(model).model_fields[name]
        value = getattr(model, name)
        unset = (name not in model.model_fields_set or value is None) and name not in _TAGS
        if (
            unset
            and not field.is_required()
            and value == field.get_default(call_default_factory=True)
            and name not in ("kind", "recipe", "measure", "rule")
        ):
            continue
        data[field.serialization_alias or name] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if isinstance(value, SpecModel):
        return _mapping(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_plain(item) for item in value]
        return _FlowList(items) if all(isinstance(item, int | float) for item in items) else items
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes whatever either version of YAML would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


# PyYAML asks a resolver whether a text begins like a number, hence the closing anchor.
for _tag, _pattern in (("int", INTEGER), ("float", FLOAT)):
    _Dumper.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern.pattern})\Z"), list("-+.0123456789")
    )


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes breaks such as U+0085 bare, and they read back as a newline; double quotes escape them.
    style = None if text.replace("\n", "").isprintable() else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_representer(
    _Flow, lambda dumper, data: dumper.represent_mapping("tag:yaml.org,2002:map", data, flow_style=True)
)
_Dumper.add_representer(
    _FlowList, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)
)
