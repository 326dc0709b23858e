"""Weights that are quantised, in a checkpoint or while it is loaded: what transformers knows of it decides.

transformers passes over what it does not know of a `quantization_config` with a warning, or with none.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import JsonValue

from subvene.runner.models.linear import is_linear
from subvene.runner.models.pretrained import PretrainedError
from subvene.specs._flaws import nearest

_FIELD = "quantization_config"
_FULL = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_PLAIN = (torch.Tensor, torch.nn.Parameter)


def check_quantization(config: Any) -> None:
    """Refuse what transformers would skip with a warning: quantised weights that it has no method for.

    Raises:
        PretrainedError: the config's `quantization_config` names no known `quant_method`.
    """
    for part in (config, config.get_text_config(decoder=True)):
        declared = getattr(part, "quantization_config", None)
        if declared is None:
            continue
        fields = declared if isinstance(declared, Mapping) else declared.to_dict()
        if not _is_known(fields):
            raise PretrainedError(_of_unknown(fields.get("quant_method")))


def _is_known(fields: Mapping[str, JsonValue]) -> bool:
    """Whether transformers has a quantiser for what a config declares; it knows its own special cases."""
    from transformers.quantizers.auto import AutoHfQuantizer

    try:
        return bool(AutoHfQuantizer.supports_quant_method(fields))
    except (ValueError, TypeError):  # no method at all, or one that is no name
        return False


def _of_unknown(method: object, *, whose: str = "its config") -> str:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
    name = getattr(method, "value", method)
    lacking = " without load_in_4bit or load_in_8bit" if name == "bitsandbytes" else ""
    return (
        f"{whose} says quant_method {name!r}{lacking}, which transformers does not "
        "know and would load as if the weights were not quantised; known are "
        f"{known}, and bitsandbytes with load_in_4bit or load_in_8bit; take a checkpoint in one of these, or "
        "in full or half precision"
    )


def plain_fields(config: object) -> object:
    """A `quantization_config` as a spec has it: of an object of transformers', its fields as JSON values."""
    to_dict = getattr(config, "to_dict", None)
    return config if to_dict is None else json.loads(json.dumps(to_dict(), default=_word))


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")


def quantization_of(declared: Mapping[str, JsonValue], config: Any) -> Any:
    """What transformers makes of a spec's `quantization_config`.

    Args:
        declared: the spec's `quantization_config`.
        config: of the model that is to be loaded.

    Raises:
        PretrainedError: transformers knows no such method or field, a package is missing, or the checkpoint
            is quantised already.
    """
    from transformers.quantizers.auto import AutoQuantizationConfig

    for part in (config, config.get_text_config(decoder=True)):
        if getattr(part, _FIELD, None) is not None:
            raise PretrainedError(
                f"{_FIELD}: the checkpoint is quantised already, as its own config says; leave it out"
            )
    if not _is_known(declared):
        raise PretrainedError(_of_unknown(declared.get("quant_method"), whose=_FIELD))
    try:
        made = AutoQuantizationConfig.from_dict(dict(declared))
    except (ValueError, TypeError, KeyError, AssertionError, ImportError, AttributeError) as error:
        words = str(error) or type(error).__name__
        method = declared["quant_method"]
        advice = f"; install {error.name or method}" if isinstance(error, ImportError) else ""
        raise PretrainedError(f"{_FIELD}: {method}: {words}{advice}") from error
    _check_fields(declared, made)
    return made


def _check_fields(declared: Mapping[str, JsonValue], made: Any) -> None:
    """Refuse fields that transformers passes over."""
    known = {*inspect.signature(type(made).__init__).parameters, *vars(made), "quant_method"}
    known -= {"self", "kwargs"}
    for name in declared:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"expected one of: {', '.join(sorted(known))}"
            raise PretrainedError(f"{_FIELD}: {type(made).__name__} has no field {name!r}; {hint}")


def check_quantized(model: torch.nn.Module) -> None:
    """Check that something of a model was quantised: methods leave alone what they do not know.

    Raises:
        PretrainedError: nothing was.
    """
    if all(map(_is_full, filter(is_linear, model.modules()))):
        raise PretrainedError(
            f"{_FIELD}: nothing of a {type(model).__name__} was quantised: the method knows none of its "
            "linear maps, or `modules_to_not_convert` names all of them"
        )


def _is_full(module: torch.nn.Module) -> bool:
    """Whether a linear map computes with plain numbers of full or half precision."""
    weight = getattr(module, "weight", None)
    is_plain = type(weight) in _PLAIN and type(getattr(weight, "data", None)) is torch.Tensor
    return is_plain and weight.dtype in _FULL and type(module).__name__ in ("Linear", "Conv1D")
