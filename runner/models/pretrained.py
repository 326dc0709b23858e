"""What transformers reads of a checkpoint: no code of the repository's, and every weight from the checkpoint.

`from_pretrained` asks on standard input whether a repository's code may run, starts what a checkpoint lacks
at random, and only warns of it. Here the code is refused, and what transformers tells of the loading decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import safetensors
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import PretrainedConfig
from transformers.utils import GENERATION_CONFIG_NAME

from subvene.runner.models.generation_types import generation_flaw
from subvene.runner.models.stored_types import (
    CacheFolder,
    declares_quantization,
    file_of,
    miscast,
    stored_types,
)
from subvene.specs import SubveneError
from subvene.specs.model_config import SIZES, wrong_size
from subvene.specs.regular_file import read_text

# What transformers raises for a model that is missing, incomplete, or needs a package that is not installed.
# RuntimeError and TypeError: weights and configs that do not go together.
# A config that transformers cannot use ends in whatever its code ran into.
_LOAD_ERRORS = (
    *(OSError, ValueError, ImportError, RuntimeError, TypeError, safetensors.SafetensorError),
    *(LookupError, AttributeError, ArithmeticError, AssertionError, StrictDataclassError),
)

# Of these the text alone says little: that of a KeyError is the key.
_WORDLESS = (LookupError, AttributeError, ArithmeticError, AssertionError, TypeError)
_SHOWN = 5
_ADAPTER = re.compile(
    r"(^|[._])(lora|ia3|loha|lokr|oft|vera|dora|adapter|modules_to_save|base_layer)([._]|$)"
)
# Masks that older checkpoints store with attention and that models now make themselves, and the scales of a
# key-value cache, which is never quantised here.
_NOT_WEIGHTS = re.compile(r"(\.masked_bias|\.attn\.bias|\.attention\.bias|\.inv_freq|\.[kvq]_scale)$")


class PretrainedError(SubveneError):
    """A checkpoint that cannot be loaded as what its config says."""


@contextmanager
def _refusing() -> Iterator[None]:
    """What transformers raises inside, as a PretrainedError; the one place that says what it may be."""
    try:
        yield
    except Exception as error:
        # The library tokenizers raises nothing more particular than Exception itself.
        if not isinstance(error, _LOAD_ERRORS) and type(error) is not Exception:
            raise
        raise PretrainedError(_words(error)) from error


def _check_sizes(config: PretrainedConfig) -> None:
    """Refuse sizes of which torch and transformers make an empty model, or an error that names no field."""
    for part in (config, config.get_text_config(decoder=True)):
        wrong = wrong_size({name: getattr(part, name, None) for name in SIZES})
        if wrong is not None:
            raise PretrainedError(wrong)


def read_pretrained(auto_class: Any, source: str, **options: Any) -> Any:
    """A config or a tokenizer, without code of the repository's.

    Args:
        auto_class: one of transformers' auto classes.
        source: a folder or a hub id.
        **options: for `from_pretrained`.

    Raises:
        PretrainedError: it cannot be loaded; the message does not name the source.
    """
    with _refusing():
        read = auto_class.from_pretrained(source, trust_remote_code=False, **options)
    if isinstance(read, PretrainedConfig):
        _check_sizes(read)
    return read


def from_config(auto_class: Any, config: Any) -> Any:
    """A model as its config declares it, without a checkpoint.

    Raises:
        PretrainedError: no model can be made from it; the message does not name the source.
    """
    with _refusing():
        return auto_class.from_config(config, trust_remote_code=False)


def load_weights(model_class: Any, source: str, *, unused: str | None = None, **options: Any) -> Any:
    """A model all of whose weights are the checkpoint's.

    Args:
        model_class: a class with `from_pretrained`, auto or not.
        source: a folder or a hub id.
        unused: a pattern of the weights that the caller does not use, which may be missing.
        **options: for `from_pretrained`.

    Raises:
        PretrainedError: it cannot be loaded, weights are missing, of another shape, or stored as integers
            or float8 of which nothing says how to read them, or the checkpoint has weights of the model's
            blocks that the model has no place for; the message does not name the source.
    """
    # transformers reads over a file that is no JSON, and trips over values without naming their field.
    place = (source, options.get("revision"), options.get("cache_dir"))
    if not options.get("force_download"):  # whatever is in the cache is not what will be read
        _check_generation(*place)
    with _refusing():
        model, info = model_class.from_pretrained(
            source,
            trust_remote_code=False,
            # Told by `mismatched_keys`, all at once and with both shapes.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **options,
        )
    _check_generation(*place)  # one that has been fetched just now
    _check(model, info, unused)
    if "gguf_file" not in options:  # whose blocks transformers unpacks
        _check_types(model, info, *place)
    return model


def check_folder(source: str) -> None:
    """Refuse a folder with a pipe or a device in it, which reading would wait for, or with an adapter.

    Of an adapter transformers would fetch the base, and mix the weights of both.

    Raises:
        PretrainedError: naming what is there.
    """
    if Path(source).is_dir():
        for path in sorted(Path(source).iterdir()):
            if path.exists() and not path.is_file() and not path.is_dir():
                raise PretrainedError(f"{path} is not a regular file; a model's folder holds files alone")
    path = Path(source) / "adapter_config.json"
    if not path.is_file():
        return
    try:
        base = json.loads(read_text(path)).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    raise PretrainedError(_of_adapter(base))


def _of_adapter(base: object) -> str:
    of = f" of {base}" if isinstance(base, str) else ""
    return (
        f"it is an adapter{of}, not a model; merge it into its base (peft: `merge_and_unload()`, then "
        "`save_pretrained`) and name that folder, or take a LoRA over as an intervention with "
        "`subvene import`"
    )


class _LoadingInfo(TypedDict):
    """What transformers' `from_pretrained` says of a checkpoint."""

    missing_keys: Collection[str]
    unexpected_keys: Collection[str]
    mismatched_keys: Collection[tuple[str, Sequence[int], Sequence[int]]]
    error_msgs: Sequence[str]


def _check(model: Any, info: _LoadingInfo, unused: str | None) -> None:
    if getattr(model, "_hf_peft_config_loaded", False):
        raise PretrainedError(_of_adapter(None))
    missing = sorted(key for key in info["missing_keys"] if unused is None or not re.search(unused, key))
    wrong = sorted((key, tuple(there), tuple(here)) for key, there, here in info["mismatched_keys"])
    stray = sorted(filter(_stray(model), info["unexpected_keys"]))
    problems = []
    if missing:
        problems.append(
            f"the checkpoint lacks {_listed(missing)}, which would be random{_why_missing(model, missing)}"
        )
    if wrong:
        shapes = [f"{key} is {list(there)} and its config needs {list(here)}" for key, there, here in wrong]
        problems.append(
            f"weights of another shape: {_listed(shapes)}; its config belongs to another checkpoint"
        )
    if stray:
        adapters = any(_ADAPTER.search(key) for key in stray)
        advice = (
            "an adapter's: merge it (peft: `merge_and_unload()`) and save the model again"
            if adapters
            else "its config belongs to another checkpoint, or this transformers does not know all of it"
        )
        problems.append(f"the checkpoint has {_listed(stray)}, which the model would ignore; {advice}")
    if info["error_msgs"]:
        problems.append("; ".join(map(str, info["error_msgs"])))
    if problems:
        raise PretrainedError("\n".join(problems))


def _check_types(
    model: nn.Module, info: _LoadingInfo, source: str, revision: str | None, cache: CacheFolder
) -> None:
    """Refuse what was cast from numbers that mean nothing without their scales."""
    with _refusing():
        if declares_quantization(source, revision, cache):
            return

    def left_out(key: str) -> bool:
        return key in info["unexpected_keys"] or bool(_NOT_WEIGHTS.search(key))

    with _refusing():
        wrong = miscast(model, stored_types(source, revision, cache), left_out)
    if wrong:
        named = _listed([f"{tensor.key} in {tensor.file} as {tensor.type}" for tensor in wrong])
        raise PretrainedError(
            f"the checkpoint stores {named}, where the model computes in floating point, and its config has "
            "no quantization_config that says how to read them; take a checkpoint that has one, or one in "
            "full or half precision"
        )


def _check_generation(source: str, revision: str | None, cache: CacheFolder) -> None:
    path = file_of(source, GENERATION_CONFIG_NAME, revision, cache)
    if path is None:
        return
    try:
        settings = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise PretrainedError(
            f"its {path.name} cannot be read as JSON ({error}); mend or remove it: without it nothing of how "
            "answers end is taken from it"
        ) from error
    flaw = generation_flaw(settings) if isinstance(settings, dict) else "expected a JSON object"
    if flaw is not None:
        raise PretrainedError(f"its {path.name} cannot be used: {flaw}; mend the file")


def _why_missing(model: Any, missing: Iterable[str]) -> str:
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        return ""
    names = {name for name, module in model.named_modules() if module is head}
    made_as = ", ".join(getattr(model.config, "architectures", None) or ()) or "what has no such head"
    if any(key.rpartition(".")[0] in names for key in missing):
        return (
            f" ({', '.join(sorted(names))} is the head that writes tokens; the checkpoint was saved as "
            f"{made_as}: an encoder or a bare body writes none, name the model that generates)"
        )
    return ""


def _stray(model: nn.Module) -> Callable[[str], bool]:
    """Whether a weight that the model has no place for would have changed what it computes.

    A head beside the model (a classifier's, a second modality's) would not have. An adapter's weights would,
    and so would those of a block: a bias that the config denies, a norm, a block more.
    """
    modules = dict(model.named_modules())
    blocks = [name for name, module in modules.items() if isinstance(module, nn.ModuleList) and len(module)]
    config = model.config.get_text_config(decoder=True)  # type: ignore[union-attr, operator]
    # Blocks that draft further tokens stand behind the others, and no forward pass of a model uses them.
    drafting = int(getattr(config, "num_nextn_predict_layers", None) or 0)

    def stray(key: str) -> bool:
        if _ADAPTER.search(key):
            return True
        if _NOT_WEIGHTS.search(key):
            return False
        for name in blocks:
            index, dot, _ = key.removeprefix(f"{name}.").partition(".")
            if key.startswith(f"{name}.") and dot and index.isdigit():
                count = len(modules[name])  # type: ignore[arg-type]
                return not count <= int(index) < count + drafting
        parent = key.rpartition(".")[0]
        # Another parameter of a module that is there, such as a head's bias.
        return parent in modules and any(True for _ in modules[parent].parameters(recurse=False))

    return stray


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    if "trust_remote_code" in text:
        return (
            "it needs code of its own, which would run on this machine, and subvene never runs a "
            "repository's code; take a model that transformers knows by itself, or load it yourself and "
            "pass `model=`"
        )
    if isinstance(error, _WORDLESS) or type(error) is Exception:
        return f"transformers cannot use what its files say ({type(error).__name__}: {text})"
    return text
