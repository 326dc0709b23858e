"""Engines: what runs the model of an experiment, where transformers in this process does not."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Gt, Le
from pydantic import BeforeValidator, Field, Strict, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import SERVER_URL, Count, EnvironmentVariable
from subvene.specs._flaws import Expect, Flaw, refuse

_VLLM: Literal["vllm"] = "vllm"
_Url = Annotated[
    str,
    SERVER_URL,
    Expect("the URL of a running `subvene serve`, such as `http://127.0.0.1:8000/v1`"),
]
_Share = Annotated[float, Strict(), Gt(0), Le(1), Expect("a number above 0 and at most 1")]


class VllmOptions(SpecModel):
    """vLLM's own options, by vLLM's names: those that change how fast it is and not what is computed.

    What is left out is vLLM's default. The model, its dtype and its artifacts are what the file declares.
    """

    expects: ClassVar[str] = "a mapping with any of vLLM's options that are known here"

    tensor_parallel_size: Count | None = Field(default=None, description="Ranks that share every layer.")
    pipeline_parallel_size: Count | None = Field(default=None, description="Stages of some layers each.")
    max_model_len: Count | None = Field(default=None, description="Longest prompt and response, in tokens.")
    max_num_seqs: Count | None = Field(default=None, description="Most requests of a step.")
    max_num_batched_tokens: Count | None = Field(default=None, description="Most tokens of a step.")
    gpu_memory_utilization: _Share | None = Field(
        default=None, description="Share of the device's memory; this process has the model there too."
    )
    enforce_eager: Annotated[bool, Strict()] | None = Field(
        default=None, description="Neither compile nor capture graphs."
    )
    enable_prefix_caching: Annotated[bool, Strict()] | None = Field(
        default=None, description="Compute what prompts begin with in common once."
    )


class EngineSpec(SpecModel):
    """What generates and scores: vLLM in this process, or a running `subvene serve`."""

    expects: ClassVar[str] = (
        "`vllm`, or a mapping with `vllm` (its options) or `url` (of a running `subvene serve`)"
    )

    url: _Url | None = Field(
        default=None, description="Of a running `subvene serve`, such as `http://127.0.0.1:8000/v1`."
    )
    api_key_env: EnvironmentVariable = Field(
        default="SUBVENE_API_KEY", description="The environment variable that holds the server's key, if any."
    )
    vllm: VllmOptions | None = Field(
        default=None,
        description="vLLM in this process, with its own options. `engine: vllm` is short for `{vllm: {}}`.",
    )

    @property
    def words(self) -> str:
        """What errors call it."""
        return self.url or _VLLM

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if (self.url is None) == (self.vllm is None):
            found = "neither" if self.url is None else "both"
            refuse("EngineSpec", [Flaw((), "either `vllm` or `url`", None, found=found)])
        if self.vllm is not None and "api_key_env" in self.model_fields_set:
            refuse("EngineSpec", [Flaw(("api_key_env",), "nothing beside `vllm`", self.api_key_env)])
        return self


def _whole(value: Any) -> Any:
    return {"vllm": {}} if value == _VLLM else value


Engine = Annotated[EngineSpec, BeforeValidator(_whole, json_schema_input_type=Literal["vllm"] | EngineSpec)]
"""An engine, or `vllm`."""
