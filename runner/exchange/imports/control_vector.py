"""GGUF control vectors, as repeng and llama.cpp write them: `direction.N` acts on the output of block N."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from subvene.interventions import Sizes
from subvene.runner.exchange.imports.base import Imported, Importer, identifier
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.models.anatomy import Anatomy, text_config
from subvene.specs import SteeringSpec, TensorRef, tensor_name

_SITE: Final = "block_output"
_DIRECTION = re.compile(r"direction\.(0|[1-9][0-9]{0,4})")
# A vector for each block of the largest models is a few megabytes.
_LIMIT = 256 * 2**20


class ControlVector(Importer):
    """One vector a layer.

    repeng trains `direction.N` on `hidden_states[N + 1]` and adds it to the output of block N, and llama.cpp
    adds it to the same: N is our layer. llama.cpp takes no `direction.0`.
    """

    name = "gguf-control-vector"
    says = "a GGUF control vector"
    takes = frozenset({"layers", "strength", "positions"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        return not source.is_folder and source.head(count=4) == b"GGUF"

    def read(self) -> None:
        self.directions, self.hint = self._directions(self.source.read(limit=_LIMIT))
        wanted = self.options.layers or tuple(sorted(self.directions))
        if missing := sorted(set(wanted) - self.directions.keys()):
            there = ", ".join(map(str, sorted(self.directions)))
            raise self.refuse(f"no direction.{missing[0]}; it has directions for the layers {there}")
        zero = sorted(layer for layer, values in self.directions.items() if not values.any())
        if asked := sorted(set(zero) & set(self.options.layers)):
            raise self.refuse(f"direction.{asked[0]} is zero, so it has no direction; choose another --layer")
        if len(zero) == len(self.directions):
            raise self.refuse("every direction is zero, so there is nothing to add")
        self.zero = zero
        self.layers = tuple(layer for layer in wanted if layer not in zero)

    def _directions(self, data: bytes) -> tuple[dict[int, np.ndarray[Any, Any]], str | None]:
        try:
            import gguf
        except ImportError as error:
            raise self.refuse("reading it needs the package gguf: pip install 'subvene[gguf]'") from error

        class Reader(gguf.GGUFReader):
            """The library's own reads nothing beyond the end, and then counts to whatever a header says."""

            def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
                if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                    raise ValueError("truncated")
                return super()._get(offset, dtype, count, override_order)

        with tempfile.TemporaryDirectory(prefix="subvene-import-") as folder:
            # The library reads from a path only; this copy is nobody else's, so it stays what was hashed.
            copy = Path(folder, "vector.gguf")
            copy.write_bytes(data)
            try:
                reader = Reader(copy)
                architecture = _text(reader, "general.architecture")
                hint = _text(reader, "controlvector.model_hint")
                found = {t.name: (t.tensor_type.name, t.data.astype(np.float32)) for t in reader.tensors}
            except Exception as error:  # a malformed file stops its reader with whatever it trips over
                raise self.refuse(f"not a readable GGUF file ({error})") from error
        if architecture != "controlvector":
            raise self.refuse(f"a GGUF file of architecture {architecture!r}, expected 'controlvector'")
        directions = {}
        for name, (type_name, values) in found.items():
            match = _DIRECTION.fullmatch(name)
            if match is None:
                raise self.refuse(f"tensor {name!r}: expected only direction.N, N the index of a block")
            if type_name not in ("F32", "F16", "F64") or values.ndim != 1:
                raise self.refuse(
                    f"tensor {name!r} is {type_name} {list(values.shape)}, expected F32 [width]"
                )
            directions[int(match[1])] = values
        if not directions:
            raise self.refuse("holds no direction")
        return directions, hint

    def check(self, sizes: Sizes) -> None:
        self.check_layers(sorted(self.directions), sizes)
        for layer, values in self.directions.items():
            if len(values) != sizes.width:
                raise self.refuse(
                    f"direction.{layer} has width {len(values)}, and this model has {sizes.width}"
                )

    def onto(self, anatomy: Anatomy) -> Imported:
        tensors = {
            tensor_name(self.key, _SITE, layer): self.finite(torch.from_numpy(values), f"direction.{layer}")
            for layer, values in self.directions.items()
            if layer not in self.zero
        }
        positions = self.options.positions or "all"
        strength = 1.0 if self.options.strength is None else self.options.strength
        interventions = tuple(
            SteeringSpec(
                name=identifier(f"{self.key}_{layer}"),
                site=_SITE,
                layer=layer,
                vector=TensorRef(key=self.key),
                coefficient=strength,
                positions=positions,
            )
            for layer in self.layers
        )
        span = f"{len(self.layers)} of {len(self.directions)} directions"
        statements = [
            f"direction.N of the file is {_SITE}[N], for repeng and llama.cpp alike; {span} are applied",
            f"scale {strength:g} at positions {positions!r}",
        ]
        if self.zero:
            named = ", ".join(f"direction.{layer}" for layer in self.zero)
            statements.append(
                f"{named} of the file {'are' if len(self.zero) > 1 else 'is'} zero, and left out"
            )
        if 0 in self.layers:
            statements.append("llama.cpp would refuse direction.0; repeng adds it, and so does this artifact")
        model_type = text_config(anatomy.model.config).model_type
        if self.hint is not None and self.hint != model_type:
            statements.append(
                f"the file was made for a model of type {self.hint!r}, and this is {model_type!r}"
            )
        return Imported(interventions, tensors, statements, {"model_hint": self.hint, "left_out": self.zero})


def _text(reader: Any, name: str) -> str | None:
    field = reader.get_field(name)
    value = None if field is None else field.contents()
    return value if isinstance(value, str) else None
