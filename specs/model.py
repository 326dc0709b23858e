"""Which model is meant, and how it is to be loaded."""

import re
from typing import Annotated, ClassVar, Literal, NamedTuple, Self

from annotated_types import MinLen
from pydantic import AfterValidator, Field, JsonValue, Strict, model_validator
from pydantic_core import PydanticCustomError

from subvene.specs._base import SpecModel
from subvene.specs._fields import Text, full_match
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse

_PACKAGE = re.compile(
    r"package:(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)/(?P<file>[\w][\w.\-]*(?:/[\w][\w.\-]*)*\.gguf)",
    re.ASCII,
)


class PackageFile(NamedTuple):
    """A model file that an installed Python package ships."""

    module: str
    file: str


def _known_form(name: str) -> str:
    package = name.startswith("package:")
    if (package and not _PACKAGE.fullmatch(name)) or not name.strip() or not name.isprintable():
        raise PydanticCustomError("name", "name")
    return name


def _device_map_shape(value: object) -> int | None:
    if isinstance(value, dict):
        return 1
    return 0 if isinstance(value, str) else None


def _device_shape(value: object) -> int:
    return 0 if isinstance(value, int) else 1


_DEVICE = "a device such as cpu, cuda, cuda:0 or mps"
_NAME = "a hub id, a local folder, or package:<module>/<file>.gguf"
_MAP = "a strategy such as auto, or a mapping from module names to devices"
_PLACE = Annotated[
    Annotated[int, Strict(), Expect("a device: its number or its name")] | Text,
    Shaped(_device_shape, "a device: its number or its name"),
]


# What `apply_chat_template` is given by the runner itself, or what would change what it gives back.
_OWN_ARGUMENTS = frozenset(
    {
        "conversation",
        "messages",
        "add_generation_prompt",
        "continue_final_message",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "processor_kwargs",
    }
)
_VARIABLES = "a mapping from variables of the chat template, such as enable_thinking, to values"


def _template_variables(variables: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if any(not name.isidentifier() or name in _OWN_ARGUMENTS for name in variables):
        raise PydanticCustomError("template_variables", "template_variables")
    return variables


_QUANTIZATION = "a mapping with `quant_method`, as transformers' `quantization_config`"


def _quantization(fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not isinstance(fields.get("quant_method"), str):
        raise PydanticCustomError("quantization", "quantization")
    return fields


class ModelSpec(SpecModel):
    """The model whose activations are edited."""

    expects: ClassVar[str] = "a mapping with `name`"
    also_called: ClassVar[dict[str, str]] = {"torch_dtype": "dtype"}

    name: Annotated[str, AfterValidator(_known_form), Expect(_NAME)] = Field(
        description="A Hugging Face Hub id, a local folder, or `package:<module>/<file>.gguf` for a GGUF "
        "file that an installed Python package ships."
    )
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of a Hub id; left out: the repository's main branch."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Floating-point type of the weights; `auto` takes the one they are stored in.",
    )
    device: Annotated[str, full_match(r"[a-z]+(:[0-9]+)?"), Expect(_DEVICE)] | None = Field(
        default=None,
        description="The one device for the whole model, such as `cpu` or `cuda:0`; left out: the best one "
        "present. Not together with `device_map`.",
    )
    device_map: (
        Annotated[
            Text | Annotated[dict[str, _PLACE], MinLen(1), Expect(_MAP)], Shaped(_device_map_shape, _MAP)
        ]
        | None
    ) = Field(
        default=None,
        description="How to spread the model over devices, as transformers takes it: `auto`, or module names "
        "with their devices. Not together with `device`.",
    )
    attn_implementation: Text | None = Field(
        default=None, description="transformers' attention implementation, such as `eager` or `sdpa`."
    )
    quantization_config: (
        Annotated[dict[str, JsonValue], AfterValidator(_quantization), Expect(_QUANTIZATION)] | None
    ) = Field(
        default=None,
        description="How weights are quantised while they are loaded, as transformers has it: "
        "`{quant_method: bitsandbytes, load_in_4bit: true}`, `{quant_method: quanto, weights: int8}`. "
        "Nothing can be baked into such weights.",
    )
    chat_template_kwargs: (
        Annotated[dict[str, JsonValue], AfterValidator(_template_variables), Expect(_VARIABLES)] | None
    ) = Field(
        default=None,
        description="Variables that the chat template is given wherever a prompt is made: "
        "`{enable_thinking: false}`, a date, `tools`. A variable that the template does not use is refused.",
    )
    system: Literal["role", "fold"] | None = Field(
        default=None,
        description="Where a system prompt goes: `role`, a message of the role system; `fold`, before the "
        "first user's turn, with a blank line between, for templates without that role (Gemma). Left out: "
        "role.",
    )
    reasoning: Literal["drop", "keep"] | None = Field(
        default=None,
        description="Whether a block of reasoning (`<think>…</think>`) counts as part of a reply wherever a "
        "reply after a prompt is read: fitted on, scored, projected or judged. Left out: drop.",
    )

    @model_validator(mode="after")
    def _one_placement(self) -> Self:
        if self.device is not None and self.device_map is not None:
            refuse(
                "ModelSpec", [Flaw(("device_map",), "either `device` or `device_map`", None, found="both")]
            )
        return self

    @property
    def package_file(self) -> PackageFile | None:
        """The module and file of a ``package:`` name, None for any other."""
        match = _PACKAGE.fullmatch(self.name)
        return PackageFile(match["module"], match["file"]) if match else None
