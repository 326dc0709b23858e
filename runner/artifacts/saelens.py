"""SAEs in SAELens' format: `cfg.json` and `sae_weights.safetensors`. No pickle is read, and nothing executed.

What SAELens' arithmetic depends on is read strictly, in the layout of version 6 and of those before it
(`handle_pre_6_0_config` in sae_lens/loading/pretrained_sae_loaders.py); what it does not look at, such as how
the SAE was trained, is not looked at here. Weights are taken in float32, as `SAE.from_pretrained` takes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from subvene.interventions import TensorError
from subvene.interventions.tensors import UNREADABLE, why_unusable
from subvene.runner.files.json_value import Json
from subvene.specs import Site
from subvene.specs.regular_file import read_bytes, read_text
from subvene.specs.saes import Architecture, Normalization, StoredSae

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_LATEST = 6

_HOOKS: Mapping[str, Site] = {
    "hook_resid_pre": "block_input",
    "hook_resid_post": "block_output",
    "hook_attn_out": "attention_output",
    "hook_mlp_out": "mlp_output",
    "mlp.hook_post": "mlp_neurons",
    "attn.hook_z": "attention_heads",
}
"""Sites by what TransformerLens calls the same tensor."""

_ARCHITECTURES: Mapping[str, Architecture] = {
    "standard": "standard",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "gated": "gated",
}
_OWN: Mapping[Architecture, tuple[str, ...]] = {
    "standard": ("b_enc",),
    "jumprelu": ("b_enc", "threshold"),
    "topk": ("b_enc",),
    "gated": ("b_gate", "b_mag", "r_mag"),
}
_NORMALIZED: Mapping[str, Normalization] = {
    "none": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm_rescale",
}
_TYPES = ("float32", "float64", "float16", "bfloat16")


class SaeError(TensorError):
    """An SAE is not in SAELens' format, or computes something that is not known here."""


@dataclass(frozen=True)
class SaeConfig:
    """What of `cfg.json` numbers depend on.

    Attributes:
        architecture: what makes a latent active.
        site: where the SAE reads and writes.
        layer: 0-based block.
        width: of what it reads.
        latents: how many it has.
        normalize: what is done to the activation first.
        subtracts_bias: whether the decoder's bias is taken from the activation before it is encoded.
        k: of `topk`.
        rescales: of `topk`, whether latents compete by their activation times their decoder row's norm.
    """

    architecture: Architecture
    site: Site
    layer: int
    width: int
    latents: int
    normalize: Normalization
    subtracts_bias: bool
    k: int | None
    rescales: bool


@dataclass(frozen=True)
class SaeLensFolder:
    """An SAE in a folder: its config, and its weights by SAELens' names, float32.

    Attributes:
        path: the folder.
        config: what numbers depend on.
        weights: `W_enc` [width, latents], `W_dec` [latents, width], `b_dec` [width] and what the
            architecture has beside, [latents] each.
        sha256: of both files.
    """

    path: Path
    config: SaeConfig
    weights: Mapping[str, torch.Tensor]
    sha256: str

    @classmethod
    def read(cls, path: Path, overrides: Mapping[str, Json] | None = None) -> SaeLensFolder:
        """Read a folder, some fields of its config replaced.

        Raises:
            SaeError: naming the file and the field that is not what it should be.
        """
        config = read_config(path / CONFIG, overrides or {})
        weights, sha256 = _read_weights(path / WEIGHTS, config)
        return cls(path, config, weights, sha256)

    def tensors(self, features: Sequence[int]) -> dict[str, torch.Tensor]:
        """What an artifact keeps for some features, by the parts of the kind `sae_feature`.

        Raises:
            SaeError: the SAE has no such latent.
        """
        config, w = self.config, self.weights
        # A negative number would be counted from the end: another latent than the one that was named.
        if beyond := [one for one in features if not 0 <= one < config.latents]:
            raise SaeError(f"{self.path}: expected latents from 0 to {config.latents - 1}, found {beyond[0]}")
        index = torch.tensor(list(features))
        rows = torch.arange(config.latents) if config.architecture == "topk" else index
        # Of rescaled latents the activations are those times the norms of the decoder's rows.
        norms = w["W_dec"].norm(dim=-1) if config.rescales else torch.ones(config.latents)
        bias = w["b_mag" if config.architecture == "gated" else "b_enc"]
        parts = {
            "decoder": w["W_dec"][index] / norms[index, None],
            "encoder": (w["W_enc"] * norms).T[rows],
            "bias": (bias * norms)[rows],
            "shift": w["b_dec"] if config.subtracts_bias else torch.zeros_like(w["b_dec"]),
        }
        for own, part in (("threshold", "threshold"), ("b_gate", "gate_bias"), ("r_mag", "r_mag")):
            if own in w:
                parts[part] = w[own][rows]
        return {part: tensor.contiguous() for part, tensor in parts.items()}

    def stored(self, key: str, origin: str) -> StoredSae:
        """How the tensors that are kept of it are read."""
        topk = self.config.architecture == "topk"
        return StoredSae(
            key=key,
            architecture=self.config.architecture,
            normalize=self.config.normalize,
            latents=self.config.latents if topk else None,
            k=self.config.k,
            origin=f"{origin}, sha256 {self.sha256}",
        )


def read_config(path: Path, overrides: Mapping[str, Json]) -> SaeConfig:
    """Read `cfg.json`, some of its fields replaced.

    Raises:
        SaeError: naming the field that is not what it should be, or whose value is not known here.
    """
    try:
        data: Json = json.loads(read_text(path))
    except (OSError, ValueError) as error:
        raise SaeError(f"{path}: expected SAELens' {CONFIG}, a JSON object ({error})") from error
    if not isinstance(data, dict):
        raise SaeError(f"{path}: expected SAELens' {CONFIG}, a JSON object")
    return _Reader(path, {**data, **overrides}).config()


class _Reader:
    """The fields of a `cfg.json` of any version."""

    def __init__(self, path: Path, data: Mapping[str, Json]) -> None:
        self.path = path
        metadata = data.get("metadata")
        self.metadata = metadata if isinstance(metadata, dict) else {}
        version = data.get("sae_lens_version") or self.metadata.get("sae_lens_version")
        self.is_old = not version or self._major(version) < _LATEST
        renamed = {"hook_point": "hook_name", "hook_point_head_index": "hook_head_index"}
        renamed["activation_fn_str"] = "activation_fn"
        self.data = {renamed.get(name, name): value for name, value in data.items()} if self.is_old else data
        self.about = self.data if self.is_old else self.metadata

    def config(self) -> SaeConfig:
        self._refuse_what_is_not_known()
        architecture = self._architecture()
        site, layer = self._place()
        latents = self._count("d_sae")
        k = self._k(latents) if architecture == "topk" else None
        rescales = self._flag("rescale_acts_by_decoder_norm", False)
        if rescales and architecture != "topk":
            raise self._flaw("rescale_acts_by_decoder_norm", "false, unless the architecture is topk", True)
        return SaeConfig(
            architecture=architecture,
            site=site,
            layer=layer,
            width=self._count("d_in"),
            latents=latents,
            normalize=self._normalization(),
            subtracts_bias=self._flag("apply_b_dec_to_input", True),
            k=k,
            rescales=rescales,
        )

    def _flaw(self, field: str, expected: str, found: Json) -> SaeError:
        return SaeError(f"{self.path}: {field}: expected {expected}, found {json.dumps(found)}")

    def _major(self, version: Json) -> int:
        match = re.match(r"(\d+)\.", version) if isinstance(version, str) else None
        if match is None or int(match[1]) > _LATEST:
            raise self._flaw("sae_lens_version", f"a version up to {_LATEST}", version)
        return int(match[1])

    def _refuse_what_is_not_known(self) -> None:
        if (dtype := str(self.data.get("dtype", "float32")).removeprefix("torch.")) not in _TYPES:
            raise self._flaw("dtype", f"one of {', '.join(_TYPES)}", dtype)
        if self._flag("finetuning_scaling_factor", False):
            raise self._flaw(
                "finetuning_scaling_factor", "false (its factors are unknown to SAELens 6)", True
            )
        if (head := self.about.get("hook_head_index")) is not None:
            raise self._flaw("hook_head_index", "null: an SAE of one head has no site here", head)
        name = "model_from_pretrained_kwargs"
        kwargs = self.data.get(name) or self.about.get(name) or {}
        # These make TransformerLens' model another one: its stream is not the one that is computed here.
        changed = {name: on for name, on in kwargs.items() if on} if isinstance(kwargs, dict) else kwargs
        if changed:
            raise self._flaw(
                name,
                "nothing that changes the weights: the SAE was trained on the activations of another model "
                "than the one that transformers loads",
                changed,
            )

    def _architecture(self) -> Architecture:
        told = self.data.get("architecture", "standard" if self.is_old else None)
        function = self.data.get("activation_fn", "relu")
        if function not in ("relu", "topk"):
            raise self._flaw("activation_fn", "relu or topk", function)
        if function == "topk":
            told = "topk"
        if not isinstance(told, str) or told not in _ARCHITECTURES:
            raise self._flaw("architecture", f"one of {', '.join(_ARCHITECTURES)}", told)
        return _ARCHITECTURES[told]

    def _k(self, latents: int) -> int:
        kwargs = self.data.get("activation_fn_kwargs")
        old = kwargs.get("k") if isinstance(kwargs, dict) else None
        k = self.data.get("k") if old is None or not self.is_old else old
        if type(k) is not int or not 1 <= k <= latents:
            raise self._flaw("k", f"an integer from 1 to d_sae, {latents}", k)
        return k

    def _normalization(self) -> Normalization:
        told = self.data.get("normalize_activations", "none")
        if told is None or told is False:
            told = "none"
        if told is True or told in ("expected_average_only_in", "covariance_whitening"):
            raise self._flaw(
                "normalize_activations",
                "a normalization that the activation alone tells, or one that is folded into the weights "
                "(SAELens: `fold_activation_norm_scaling_factor`, `fold_activation_whitening`)",
                told,
            )
        if not isinstance(told, str) or told not in _NORMALIZED:
            raise self._flaw("normalize_activations", f"one of {', '.join(_NORMALIZED)}", told)
        return _NORMALIZED[told]

    def _place(self) -> tuple[Site, int]:
        name = self.about.get("hook_name")
        match = re.fullmatch(r"blocks\.(\d+)\.([\w.]+)", name) if isinstance(name, str) else None
        if match is None or match[2] not in _HOOKS:
            known = ", ".join(f"blocks.L.{hook}" for hook in _HOOKS)
            raise self._flaw("hook_name", f"one of {known}", name)
        is_z = match[2] == "attn.hook_z"
        default = "hook_z" if is_z and self.is_old else "none"
        if (reshape := self.data.get("reshape_activations", default)) != ("hook_z" if is_z else "none"):
            raise self._flaw("reshape_activations", "`hook_z` at attn.hook_z and none elsewhere", reshape)
        return _HOOKS[match[2]], int(match[1])

    def _flag(self, field: str, default: bool) -> bool:
        value = self.data.get(field, default)
        if not isinstance(value, bool):
            raise self._flaw(field, "true or false", value)
        return value

    def _count(self, field: str) -> int:
        value = self.data.get(field)
        if type(value) is not int or value < 1:
            raise self._flaw(field, "an integer >= 1", value)
        return value


def _read_weights(path: Path, config: SaeConfig) -> tuple[dict[str, torch.Tensor], str]:
    try:
        content = read_bytes(path)
        found = safetensors.torch.load(content)
    except UNREADABLE as error:
        raise SaeError(f"{path}: not a readable safetensors file ({error})") from error
    shapes = {
        "W_enc": (config.width, config.latents),
        "W_dec": (config.latents, config.width),
        "b_dec": (config.width,),
    } | dict.fromkeys(_OWN[config.architecture], (config.latents,))
    scaling = found.pop("scaling_factor", None)
    if scaling is not None and not torch.equal(scaling.float(), torch.ones_like(scaling.float())):
        raise SaeError(f"{path}: scaling_factor: expected ones, as SAELens 6 knows no others")
    if strange := sorted(found.keys() ^ shapes.keys()):
        raise SaeError(
            f"{path}: expected {', '.join(shapes)} of the architecture {config.architecture}; "
            f"{', '.join(f'{name} is ' + ('missing' if name in shapes else 'another') for name in strange)}"
        )
    for name, shape in shapes.items():
        if tuple(found[name].shape) != shape:
            raise SaeError(
                f"{path}: {name} has shape {list(found[name].shape)}, expected {list(shape)} by {CONFIG}"
            )
        if why := why_unusable(found[name]):
            raise SaeError(f"{path}: {name} {why}")
        if not found[name].is_floating_point():
            raise SaeError(f"{path}: {name} is {found[name].dtype}, expected floating point")
    read_config_bytes = read_bytes(path.parent / CONFIG)
    sha256 = hashlib.sha256(read_config_bytes + content).hexdigest()
    return {name: tensor.float() for name, tensor in found.items()}, sha256
