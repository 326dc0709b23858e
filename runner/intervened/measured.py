"""Generation that is measured: the model's own probabilities, and nothing of its checkpoint's preferences.

A checkpoint's `generation_config.json` may ask for a repetition penalty, suppressed tokens, a smallest
length, beams. What a person generates obeys it, as with transformers. What is measured, or set beside
something, does not: an edit's effect would be its effect on a penalised distribution, other for every
checkpoint, and unlike that of teacher-forced scores. The token ids that end and fill rows are kept.
"""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

# What leaves each step's distribution alone, or says how long and not how.
_KEPT = frozenset(
    {
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "decoder_start_token_id",
        "max_length",
        "max_new_tokens",
        "max_time",
        "use_cache",
        "cache_implementation",
        "cache_config",
        "prefill_chunk_size",
        "compile_config",
        "disable_compile",
        "return_dict_in_generate",
        "transformers_version",
    }
)
_NEUTRAL = {
    "do_sample": False,
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "diversity_penalty": 0.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "early_stopping": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "token_healing": False,
    "output_scores": False,
    "output_logits": False,
    "output_attentions": False,
    "output_hidden_states": False,
}


def measured_options(model: Any, **options: Any) -> dict[str, Any]:
    """Keywords of `generate` for an answer that is measured.

    Args:
        model: the model, whose own settings these replace.
        **options: what is wanted beyond the likeliest token at each step; they go before.
    """
    own = model.generation_config
    neutral = {name: _NEUTRAL.get(name) for name in vars(GenerationConfig()) if name not in _KEPT}
    undone = {
        name: value
        for name, value in neutral.items()
        if not name.startswith("_") and getattr(own, name, None) not in (None, value)
    }
    # transformers' own default where nobody says otherwise, and only for sampling.
    return {"top_k": 0, "do_sample": False} | undone | options
