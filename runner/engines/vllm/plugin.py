"""Where subvene holds on to vLLM: what its entry point `vllm.general_plugins` calls, in every process.

Every place is wrapped, none replaced, and does what it did for whoever names no artifacts.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.engines.plan import ASKED, PLAN, TAG, Told, WirePlan, block_keys
from subvene.runner.engines.vllm import versions

# The rest is imported where artifacts are named: a vLLM without any need not wait for it.
if TYPE_CHECKING:
    from subvene.runner.engines.vllm.front import Front, Steering

_RPC = "subvene_rpc"


def register() -> None:
    """Called by vLLM, perhaps more than once."""
    from vllm.engine.arg_utils import EngineArgs

    if hasattr(EngineArgs.create_engine_config, "__subvene__"):
        return
    words = versions.problem()
    _wrap(EngineArgs, "create_engine_config", _configured if words is None else _refusing(words))
    if words is None:
        _wrap_all()


def is_active() -> bool:
    """Whether vLLM in this process runs artifacts; a plugin that fails to load is only logged by vLLM."""
    from vllm.engine.arg_utils import EngineArgs
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return hasattr(EngineArgs.create_engine_config, "__subvene__") and versions.problem() is None


def _wrap_all() -> None:
    from vllm.entrypoints.llm import LLM
    from vllm.model_executor.models.registry import _ModelRegistry
    from vllm.v1.core import block_pool, kv_cache_utils
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.llm_engine import LLMEngine
    from vllm.v1.engine.output_processor import RequestState
    from vllm.v1.simple_kv_offload import manager
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner
    from vllm.v1.worker.worker_base import WorkerBase

    _wrap(_ModelRegistry, "resolve_model_cls", _resolved)
    _wrap(GPUModelRunner, "_model_forward", _forward, "input_ids", "positions")
    _wrap(GPUModelRunner, "_update_states", _updated, "scheduler_output")
    for module in (kv_cache_utils, block_pool, manager):
        _wrap(module, "generate_block_hash_extra_keys", _keys, "request", "start_token_idx", "end_token_idx")
    _wrap(InputProcessor, "__init__", _made, "vllm_config")
    _wrap(InputProcessor, "process_inputs", _admitted, "request_id", "params")
    _wrap(RequestState, "from_new_request", _begun, "request", "parent_req")
    _wrap(RequestState, "_new_completion_output", _counted)
    _wrap(RequestState, "_new_request_output", _told, "finished")
    _wrap(LLMEngine, "step", _stepped)
    _wrap(LLM, "_run_engine", _run)
    _wrap(AsyncLLM, "generate", _generated, "request_id")
    setattr(WorkerBase, _RPC, _rpc)


def _wrap(owner: Any, name: str, by: Callable[..., Any], *expected: str) -> None:
    """Put `by(original, …)` into the place of `owner.name`.

    Raises:
        EngineError: it is not there, or takes other arguments than this version of vLLM is known for.
    """
    where = f"{getattr(owner, '__qualname__', owner.__name__)}.{name}"
    if (original := getattr(owner, name, None)) is None:
        raise EngineError(f"vLLM {versions.installed()} has no {where}; expected vLLM {versions.SUPPORTED}")
    parameters = inspect.signature(original).parameters
    if missing := [one for one in expected if one not in parameters]:
        raise EngineError(
            f"{where} of vLLM {versions.installed()} takes no {', '.join(missing)}; expected vLLM "
            f"{versions.SUPPORTED}"
        )
    is_class = isinstance(inspect.getattr_static(owner, name), classmethod)
    inner = original.__func__ if is_class else original

    @functools.wraps(inner)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return by(inner, *args, **kwargs)

    wrapper.__subvene__ = True  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(wrapper) if is_class else wrapper)


# -- configuration


def _refusing(words: str) -> Callable[..., Any]:
    def refuse(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
        if _names_artifacts(self):
            raise EngineError(words)
        return original(self, *args, **kwargs)

    return refuse


def _names_artifacts(config: Any) -> bool:
    """Whether a vLLM configuration, or the arguments for one, name artifacts."""
    return isinstance(config.additional_config, Mapping) and ASKED in config.additional_config


def _configured(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """`EngineArgs.create_engine_config`: what is held becomes a part of the configuration and of its hash."""
    if not _names_artifacts(self):
        return original(self, *args, **kwargs)
    from subvene.runner.engines.vllm.refusals import check_config
    from subvene.runner.engines.vllm.settings import Settings, digest

    settings = Settings.of(self.additional_config)
    config = original(self, *args, **kwargs)
    if settings is not None:
        check_config(config)
        held = settings.load(config.model_config.hf_config)
        named = replace(settings, digest=digest(held)).to_config()
        config.additional_config = {**config.additional_config, "subvene": named}
    return config


# -- workers


def _resolved(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`_ModelRegistry.resolve_model_cls`."""
    from subvene.runner.engines.vllm.model import wrapped

    model_class, architecture = original(*args, **kwargs)
    return wrapped(model_class), architecture


def _worker(runner: Any) -> Any:
    return getattr(runner.get_model(), "subvene_worker", None)


def _forward(
    original: Callable[..., Any],
    self: Any,
    input_ids: Any = None,
    positions: Any = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`GPUModelRunner._model_forward`: before a model runs, or the replay of its graph."""
    if (worker := _worker(self)) is not None:
        batch = self.input_batch
        worker.before(
            batch.req_ids[: batch.num_reqs],
            lambda request: _extra(self.requests[request]),
            self.query_start_loc.np[: batch.num_reqs + 1],
            positions,
            batch.num_computed_tokens_cpu[: batch.num_reqs],
        )
    return original(self, input_ids, positions, *args, **kwargs)


def _updated(
    original: Callable[..., Any], self: Any, scheduler_output: Any, *args: Any, **kwargs: Any
) -> Any:
    """`GPUModelRunner._update_states`."""
    if (worker := _worker(self)) is not None:
        worker.finished(scheduler_output.finished_req_ids)
    return original(self, scheduler_output, *args, **kwargs)


def _rpc(self: Any, what: str, *args: Any) -> Any:
    """What a front end asks of every worker."""
    from subvene.runner.engines.vllm.settings import digest, read

    worker = _worker(self.model_runner)
    if worker is None:
        return {"digest": None, "sites": [], "read": []}
    match what:
        case "state":
            reads = [] if worker.readers is None else sorted(worker.readers.sites)
            return {"digest": digest(worker.catalogue), "sites": sorted(worker.sites), "read": reads}
        case "drain":
            return worker.drain(*args)
        case "add":
            name, folder = args
            worker.add(read(name, folder, self.model_config.hf_config))
        case "remove":
            worker.remove(*args)
    return None


# -- scheduler


def _keys(
    original: Callable[..., Any],
    request: Any,
    start_token_idx: int,
    end_token_idx: int,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`generate_block_hash_extra_keys`: cached tokens are told apart by what was done to them."""
    keys, following = original(request, start_token_idx, end_token_idx, *args, **kwargs)
    ours = block_keys((_extra(request) or {}).get(PLAN), start_token_idx, end_token_idx)
    return ((*(keys or ()), *ours) or None), following


def _extra(request: Any) -> Any:
    params = request.sampling_params
    return params.extra_args if params else None


# -- front end


def _made(original: Callable[..., Any], self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
    """`InputProcessor.__init__`."""
    original(self, vllm_config, *args, **kwargs)
    self.subvene = None
    if _names_artifacts(vllm_config):
        from subvene.runner.engines.vllm.front import Front
        from subvene.runner.engines.vllm.settings import Settings

        if (settings := Settings.of(vllm_config)) is not None:
            self.subvene = Front(settings, vllm_config.model_config.hf_config)
            _FRONTS.add(self.subvene)


def _admitted(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """`InputProcessor.process_inputs`: what is asked for is checked, and refused as vLLM refuses."""
    made = original(self, *args, **kwargs)
    params = made.sampling_params
    extra = (params.extra_args if params else getattr(made.pooling_params, "extra_kwargs", None)) or {}
    if ASKED not in extra and PLAN not in extra:
        return made
    from vllm.exceptions import VLLMValidationError

    try:
        plan = _plan(self.subvene, made, extra)
    except RequestError as error:
        raise VLLMValidationError(str(error), parameter=ASKED) from error
    kept = {name: value for name, value in extra.items() if name not in (ASKED, TAG)}
    params.extra_args = kept | {PLAN: plan}
    return made


def _plan(front: Front | None, made: Any, extra: Mapping[str, Any]) -> WirePlan:
    params = made.sampling_params
    if front is None:
        raise RequestError("this engine was started without artifacts (additional_config: subvene)")
    if params is None or PLAN in extra:
        raise RequestError(f"only generation can be steered, and `{PLAN}` is not for requests to say")
    if made.prompt_token_ids is None or made.resumable:
        raise RequestError("prompts as embeddings, and prompts that arrive in pieces, are not steered")
    ends = params.max_tokens == 1 and params.n == 1
    scores = params.prompt_logprobs is not None and params.max_tokens == 1
    plan = front.admit(extra[ASKED], len(made.prompt_token_ids), scores=scores, ends=ends, tag=extra.get(TAG))
    if "collect" in plan:  # of tokens from the cache there are no activations
        params.skip_reading_prefix_cache = True
    return plan


_FRONTS: weakref.WeakSet[Front] = weakref.WeakSet()


def _begun(original: Callable[..., Any], cls: Any, *args: Any, **kwargs: Any) -> Any:
    """`RequestState.from_new_request`; the answers of one request share what is told of them."""
    state = original(cls, *args, **kwargs)
    bound = inspect.signature(original).bind(cls, *args, **kwargs).arguments
    request, parent = bound["request"], bound["parent_req"]
    state.subvene = getattr(parent, ASKED, None)
    if state.subvene is None and (plan := (_extra(request) or {}).get(PLAN)) is not None:
        state.subvene = _pending(plan["key"])
        if parent is not None:
            parent.subvene = state.subvene
    return state


def _pending(key: str) -> Steering:
    for front in _FRONTS:
        if (steering := front.pending.pop(key, None)) is not None:
            return steering
    raise EngineError("a request has a plan that this process has not made")


def _counted(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """`RequestState._new_completion_output`."""
    if self.subvene is not None:
        self.subvene.tokens[self.request_index] = self.detokenizer.num_output_tokens()
        self.subvene.cached[self.request_index] = max(self.num_cached_tokens, 0)
    return original(self, *args, **kwargs)


def _told(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """`RequestState._new_request_output`."""
    output = original(self, *args, **kwargs)
    output.subvene = self.subvene
    return output


def _concluded(outputs: Iterable[Any]) -> dict[str, Steering]:
    found = (getattr(output, ASKED, None) for output in outputs if output.finished)
    return {steering.key: steering for steering in found if steering is not None}


def _conclude(waiting: dict[str, Steering], ranks: Sequence[Mapping[str, Told]]) -> None:
    from subvene.runner.engines.vllm.metrics import count

    for key, steering in waiting.items():
        steering.conclude([rank[key] for rank in ranks])
        count(steering)


def _stepped(original: Callable[..., Any], self: Any) -> Any:
    """`LLMEngine.step`: what has finished gets its receipts."""
    outputs = original(self)
    if waiting := _concluded(outputs):
        _conclude(waiting, self.collective_rpc(_RPC, args=("drain", list(waiting))))
    return outputs


def _run(original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any) -> Any:
    """`LLM._run_engine`: requests that were not steered are an error, which has the others' outputs."""
    outputs = original(self, *args, **kwargs)
    errors = [s.error for s in _concluded(outputs).values() if s.error is not None]
    for error in errors:
        error.outputs = outputs  # type: ignore[union-attr]
        raise error
    return outputs


async def _generated(
    original: Callable[..., Any], self: Any, *args: Any, **kwargs: Any
) -> AsyncGenerator[Any, None]:
    """`AsyncLLM.generate`: the last piece comes with its receipts, or is the error."""
    # Closed with this one: a client that leaves ends its request.
    async with contextlib.aclosing(original(self, *args, **kwargs)) as outputs:
        async for output in outputs:
            if waiting := _concluded([output]):
                _conclude(waiting, await self.collective_rpc(_RPC, args=("drain", list(waiting))))
                for steering in waiting.values():
                    if steering.error is not None:
                        raise steering.error
            yield output
