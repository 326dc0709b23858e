"""What the settings of generation may be: transformers takes over whatever a checkpoint's file says.

Which of two right values is better is nobody's business here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import JsonValue


class _Kind(NamedTuple):
    words: str
    fits: Callable[[Any], bool]


def _is_integer(value: Any) -> bool:
    return type(value) is int


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _all(value: Any, fits: Callable[[Any], bool]) -> bool:
    return isinstance(value, list | tuple) and all(map(fits, value))


_ID = _Kind("a token id", _is_integer)
_IDS = _Kind("a token id or a list of them", lambda value: _is_integer(value) or _all(value, _is_integer))
_LIST = _Kind("a list of token ids", lambda value: _all(value, _is_integer))
_COUNT = _Kind("an integer", _is_integer)
_NUMBER = _Kind("a number", _is_number)
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_TEXTS = _Kind(
    "text or a list of texts",
    lambda value: isinstance(value, str) or _all(value, lambda item: isinstance(item, str)),
)
_FIELDS: dict[_Kind, str] = {
    _ID: "bos_token_id pad_token_id forced_bos_token_id",
    _IDS: "eos_token_id decoder_start_token_id forced_eos_token_id",
    _LIST: "suppress_tokens begin_suppress_tokens",
    _COUNT: "max_length max_new_tokens min_length min_new_tokens num_beams num_beam_groups "
    "num_return_sequences top_k no_repeat_ngram_size encoder_no_repeat_ngram_size num_assistant_tokens "
    "prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit prefill_chunk_size",
    _NUMBER: "temperature top_p min_p top_h typical_p epsilon_cutoff eta_cutoff repetition_penalty "
    "encoder_repetition_penalty length_penalty diversity_penalty penalty_alpha guidance_scale max_time",
    _SWITCH: "do_sample use_cache renormalize_logits remove_invalid_values token_healing output_scores "
    "output_logits output_attentions output_hidden_states return_dict_in_generate disable_compile",
    _TEXTS: "stop_strings",
}
_KINDS = {name: kind for kind, names in _FIELDS.items() for name in names.split()}


def generation_flaw(settings: Mapping[str, JsonValue]) -> str | None:
    """The first setting that is no such value, in words; what is None or left out is not set.

    Args:
        settings: of a `generation_config.json`, or the attributes of a `GenerationConfig`.
    """
    for name, kind in _KINDS.items():
        value = settings.get(name)
        if value is not None and not kind.fits(value):
            return f"{name}: expected {kind.words}, found {value!r}"
    return None
