"""vLLM's model classes with edits: the same names, so that nothing that looks at names is surprised."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import nn

from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.plan import ASKED

ATTRIBUTE = "subvene_worker"


@cache
def wrapped(base: type[nn.Module]) -> type[nn.Module]:
    """The class of a model whose configuration may name artifacts."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "", **kwargs: Any) -> None:
        base.__init__(self, vllm_config=vllm_config, prefix=prefix, **kwargs)
        extra = vllm_config.additional_config
        if isinstance(extra, Mapping) and ASKED in extra:
            _install(self, base.__name__, vllm_config)

    namespace = {"__init__": __init__, "__module__": base.__module__, "__qualname__": base.__qualname__}
    return type(base.__name__, (base,), namespace)


def _install(model: nn.Module, name: str, vllm_config: Any) -> None:
    from vllm.distributed import (
        get_tensor_model_parallel_rank,
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_reduce,
    )

    from subvene.runner.engines.vllm.readers import Readers
    from subvene.runner.engines.vllm.settings import Settings
    from subvene.runner.engines.vllm.sites import install, layout_of
    from subvene.runner.engines.vllm.worker import Worker
    from subvene.runner.models.anatomy import sizes_from_config

    settings = Settings.of(vllm_config)
    if settings is None or settings.digest is None:
        raise EngineError("artifacts are named by an engine's arguments: vllm.LLM(additional_config=…)")
    config = vllm_config.model_config.hf_config
    catalogue = settings.load(config)
    device = vllm_config.device_config.device
    most = (_most_tokens(vllm_config), vllm_config.scheduler_config.max_num_seqs, device)
    skips = vllm_config.model_config.enforce_eager
    readers = Readers(*most, skips=skips) if settings.collect else None
    worker = Worker(catalogue, *most, skips=skips, readers=readers)
    split = (
        get_tensor_model_parallel_rank(),
        get_tensor_model_parallel_world_size(),
        tensor_model_parallel_all_reduce,
    )
    layout = layout_of(name, vllm_config.model_config.architectures)
    sizes = sizes_from_config(config)
    with device:
        if readers is not None:  # before the edits, whose hooks then come after theirs
            readers.install(model, layout, settings.collect, sizes, split)
        sites = install(model, layout, catalogue.rooms, len(catalogue.groups), sizes, worker.step, split)
    worker.hold(sites)
    # Not as a module's attribute: the worker is none, and holds modules that the model holds already.
    object.__setattr__(model, ATTRIBUTE, worker)


def _most_tokens(vllm_config: Any) -> int:
    """The most tokens of a step, those of padded graphs and drafts among them."""
    captured = vllm_config.compilation_config.cudagraph_capture_sizes or [0]
    return max(vllm_config.scheduler_config.max_num_batched_tokens, *captured) + 64
