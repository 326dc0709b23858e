"""Configurations of vLLM under which artifacts would not be run, or have not been shown to be run rightly."""

from __future__ import annotations

from typing import Any

from subvene.runner.engines.errors import EngineError

DRAFTS = ("ngram",)
"""Ways of speculative decoding that have no model of their own."""


def check_config(config: Any) -> None:
    """Refuse a vLLM configuration under which artifacts cannot be run.

    Raises:
        EngineError: everything that stands in the way.
    """
    parallel, model, drafts = config.parallel_config, config.model_config, config.speculative_config
    reasons = {
        "Model Runner V2: set VLLM_USE_V2_MODEL_RUNNER=0": config.use_v2_model_runner,
        "data parallelism within one engine: start one server a replica": parallel.data_parallel_size > 1,
        "microbatches (enable_dbo, ubatch_size)": parallel.use_ubatching,
        "context parallelism": max(
            parallel.prefill_context_parallel_size, parallel.decode_context_parallel_size
        )
        > 1,
        "sequence parallelism": bool(getattr(config.compilation_config.pass_config, "enable_sp", False))
        or bool(getattr(parallel, "use_sequence_parallel_moe", False)),
        f"speculative decoding other than {', '.join(DRAFTS)}": drafts is not None
        and drafts.method not in DRAFTS,
        "a KV connector, which names cached tokens in its own way": config.kv_transfer_config is not None,
        "prompts of several modalities": model.is_multimodal_model or model.uses_mrope,
        f"the runner {model.runner_type}": model.runner_type != "generate",
        "encoder-decoder models": model.is_encoder_decoder,
    }
    if found := [reason for reason, applies in reasons.items() if applies]:
        raise EngineError("artifacts do not run in vLLM with " + "; nor with ".join(found))
