"""Folders that stock pyvene saved, for the classes of our allow-list.

A class path is text that is compared with the allow-list; nothing is imported by it. The `.bin` files are
read as tensors only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict, cast, get_args

import torch
from pydantic import ValidationError

from subvene.interventions import Sizes
from subvene.interventions._pyvene import pyvene
from subvene.interventions.rotation import SIZES
from subvene.runner.exchange.imports.base import Imported, Importer, identifier
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import PyveneSpec, Site, TensorRef, tensor_name
from subvene.specs.interventions import PyveneClass

_CONFIG = "config.json"
_CLASS = re.compile(r"<class 'pyvene\.models\.interventions\.([A-Za-z]+)'>")
_SITES: dict[str, Site] = {
    "block_output": "block_output",
    "mlp_output": "mlp_output",
    "attention_output": "attention_output",
    "attention_value_output": "attention_heads",
}
_SOURCE = "source_representation"
# A class's dimension, where pyvene's config has dropped it: it can be read off this tensor's shape.
_DIMENSIONS = {
    "LowRankRotatedSpaceIntervention": (
        "low_rank_dimension",
        "rotate_layer.parametrizations.weight.original",
        -1,
    ),
    "JumpReLUAutoencoderIntervention": ("low_rank_dimension", "W_enc", -1),
    "AutoencoderIntervention": ("latent_dim", "autoencoder.encoder.0.weight", 0),
}


class _Representation(TypedDict):
    """What pyvene's `RepresentationConfig` says of an intervention, as far as it is read here."""

    layer: int
    component: str
    subspace_partition: object


class _Fields(TypedDict, total=False):
    """Fields of a spec that say where and by what."""

    site: Site
    layer: int
    component: str
    source: TensorRef
    state: TensorRef
    low_rank_dimension: int
    latent_dim: int


@dataclass(frozen=True)
class _Saved:
    """One intervention as pyvene saved it."""

    class_name: str
    component: str
    layer: int
    options: _Representation
    dimension: Any
    source: torch.Tensor | None
    state: Mapping[str, torch.Tensor]


class PyveneFolder(Importer):
    """`config.json` and `intkey_*.bin`, as `IntervenableModel.save` writes them."""

    name = "pyvene"
    says = "a folder that pyvene saved"
    takes = frozenset({"strength", "positions"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        if not source.is_folder or _CONFIG not in source.names:
            return False
        return any(
            name.startswith("intkey_") for name in source.names
        ) or "intervention_types" in source.json(_CONFIG)

    def read(self) -> None:
        if "intervention.yaml" in self.source.names:
            raise self.refuse("an artifact of subvene, which needs no import: use the folder as it is")
        config = self.source.json(_CONFIG)
        if config.get("mode", "parallel") != "parallel":
            raise self.refuse(
                f"mode {config['mode']!r}: expected 'parallel', interventions of one pass", _CONFIG
            )
        names = ("representations", "intervention_types", "sorted_keys")
        lists = [value for name in names if isinstance(value := config.get(name), list) and value]
        if len(lists) != len(names) or len({len(value) for value in lists}) != 1:
            raise self.refuse(f"expected lists of one length as {', '.join(names)}", _CONFIG)
        dimensions = config.get("intervention_dimensions") or [None] * len(lists[0])
        if not isinstance(dimensions, list) or len(dimensions) != len(lists[0]):
            raise self.refuse("intervention_dimensions: expected one an intervention", _CONFIG)
        self.saved = [self._one(*one) for one in zip(*lists, dimensions, strict=True)]

    def _one(self, representation: Any, type_text: Any, key: Any, dimension: Any) -> _Saved:
        class_name = self._class_name(type_text)
        options = self._representation(representation)
        component, layer = options["component"], options["layer"]
        # The key is made from these; another one would belong to another intervention.
        says = component.replace(".", "_") if "." in component else f"layer_{layer}_comp_{component}_"
        if not isinstance(key, str) or says not in key:
            raise self.refuse(
                f"sorted_keys: {key!r} is not the key of {component!r} at layer {layer}", _CONFIG
            )
        file, state = f"intkey_{key}.bin", {}
        if file in self.source.names:
            state = self.source.torch(file)
            if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
                raise self.refuse("expected a state dict, names and tensors", file)
        state = {str(name): tensor.detach() for name, tensor in state.items() if name not in SIZES}
        source = state.pop(_SOURCE, None)
        if source is not None:
            source = self.finite(source, _SOURCE, file).flatten()
        return _Saved(class_name, component, layer, options, dimension, source, state)

    def _class_name(self, text: Any) -> str:
        match = _CLASS.fullmatch(text) if isinstance(text, str) else None
        if match is None or match[1] not in get_args(PyveneClass):
            allowed = ", ".join(get_args(PyveneClass))
            raise self.refuse(
                f"intervention_types: {text!r} is not one of the classes that are allowed, and nothing is "
                f"imported by a name in a file; allowed, of pyvene's own: {allowed}",
                _CONFIG,
            )
        return match[1]

    def _representation(self, given: Any) -> _Representation:
        fields = pyvene.RepresentationConfig._fields
        defaults = pyvene.RepresentationConfig()._asdict()
        if isinstance(given, list) and len(given) <= len(fields):
            given = dict(zip(fields, given, strict=False))
        if not isinstance(given, dict) or not given.keys() <= set(fields):
            raise self.refuse(f"representations: {str(given)[:80]} is none that pyvene writes", _CONFIG)
        found = defaults | given
        layer, component = found["layer"], found["component"]
        if not isinstance(component, str) or isinstance(layer, bool) or not isinstance(layer, int):
            raise self.refuse(f"representations: layer {layer!r} and component {component!r}", _CONFIG)
        if component.startswith("head_") or found["unit"] != "pos" or found["max_number_of_units"] != 1:
            raise self.refuse(
                f"representations: component {component!r} with unit {found['unit']!r} and "
                f"{found['max_number_of_units']} units edits parts of a token; only whole ones are read here",
                _CONFIG,
            )
        if found["moe_key"] is not None:
            raise self.refuse("representations: moe_key has no counterpart here", _CONFIG)
        return cast(_Representation, found)

    def check(self, sizes: Sizes) -> None:
        self.check_layers([one.layer for one in self.saved if "." not in one.component and one.layer], sizes)

    def onto(self, anatomy: Anatomy) -> Imported:
        interventions, tensors, statements = [], {}, []
        positions = self.options.positions or "all"
        for i, one in enumerate(self.saved):
            key = self.key if len(self.saved) == 1 else f"{self.key}_{i}"
            fields, where = self._place(one, anatomy)
            if one.source is not None:
                name = tensor_name(key, fields["site"], fields["layer"]) if "site" in fields else key
                tensors[name] = one.source
                fields["source"] = TensorRef(key=key)
            if one.state:
                tensors |= {f"{key}.state.{name}": t.detach().contiguous() for name, t in one.state.items()}
                fields["state"] = TensorRef(key=f"{key}.state")
            self._check_dimension(one, fields, anatomy)
            fields |= self._dimension(one)
            strength = 1.0 if self.options.strength is None else self.options.strength
            try:
                edit = PyveneSpec(
                    name=identifier(key),
                    class_name=cast(PyveneClass, one.class_name),
                    positions=positions,
                    strength=strength,
                    **fields,
                )
            except ValidationError as error:
                flaw = error.errors()[0]
                expected = flaw.get("ctx", {}).get("expected", flaw["msg"])
                if flaw["type"] != "missing_field":
                    raise self.refuse(f"{one.class_name} at {where}: expected {expected}", _CONFIG) from error
                raise self.refuse(
                    f"{one.class_name} at {where}: the folder lacks {expected}; pyvene takes a source from "
                    "another prompt where none is stored, and a spec has none",
                    _CONFIG,
                ) from error
            interventions.append(edit)
            statements.append(f"{one.component} of layer {one.layer} is {where} ({one.class_name})")
            if one.options["subspace_partition"] is not None:
                statements.append(f"{where}: the folder chooses none of the subspaces, so all are edited")
        statements.append(f"pyvene keeps no positions in a folder: strength {strength:g} at {positions!r}")
        return Imported(tuple(interventions), tensors, statements)

    def _place(self, one: _Saved, anatomy: Anatomy) -> tuple[_Fields, str]:
        """Where an intervention acts, as fields of the spec and in words."""
        if one.component in _SITES:
            site = _SITES[one.component]
            return {"site": site, "layer": one.layer}, f"{site}[{one.layer}]"
        component = one.component
        if "." not in component:
            known = pyvene.models.intervenable_modelcard.type_to_module_mapping.get(type(anatomy.model), {})
            if component not in known:
                raise self.refuse(
                    f"component {component!r}: pyvene names no such part of this model", _CONFIG
                )
            path, hook = known[component][:2]
            component = f"{path % one.layer}.{'input' if 'pre' in hook else 'output'}"
        return {"component": component}, component

    def _check_dimension(self, one: _Saved, fields: _Fields, anatomy: Anatomy) -> None:
        """Refuse an intervention on the first dimensions only, which the spec does not express."""
        if one.class_name in _DIMENSIONS or one.dimension is None:
            return
        site = fields.get("site")
        width = None if site is None else anatomy.sizes.site_width(site)
        width = len(one.source) if width is None and one.source is not None else width
        if width is not None and one.dimension != width:
            raise self.refuse(
                f"intervention_dimensions: {one.component!r} is edited in {one.dimension} of its {width} "
                "dimensions only, which no spec expresses",
                _CONFIG,
            )

    def _dimension(self, one: _Saved) -> _Fields:
        if one.class_name not in _DIMENSIONS:
            return {}
        field, name, axis = _DIMENSIONS[one.class_name]
        if name not in one.state:
            raise self.refuse(f"{one.class_name} of {one.component!r}: its state has no {name!r}")
        shape = one.state[name].shape
        if len(shape) != 2:
            raise self.refuse(f"{one.class_name} of {one.component!r}: {name!r} has shape {list(shape)}")
        return cast(_Fields, {field: shape[axis]})
