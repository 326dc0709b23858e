"""Which quantised checkpoints can be loaded: transformers' own registry says it, package by package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import JsonValue

from subvene.runner.models.pretrained import PretrainedError


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


def _of_unknown(method: object) -> str:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    known = ", ".join(sorted(AUTO_QUANTIZATION_CONFIG_MAPPING))
    name = getattr(method, "value", method)
    lacking = " without load_in_4bit or load_in_8bit" if name == "bitsandbytes" else ""
    return (
        f"its config says quant_method {name!r}{lacking}, which transformers does not "
        "know and would load as if the weights were not quantised; known are "
        f"{known}, and bitsandbytes with load_in_4bit or load_in_8bit; take a checkpoint in one of these, or "
        "in full or half precision"
    )
