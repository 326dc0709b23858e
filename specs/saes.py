"""How a spec names a sparse autoencoder (SAE): by SAELens' release and id, a folder, or stored tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from subvene.specs._base import SpecModel
from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Expect, Flaw, Shaped, refuse
from subvene.specs.tensors import TensorRef

Architecture = Literal["standard", "jumprelu", "topk", "gated"]
"""How latents are made active, by SAELens' names."""

Normalization = Literal["none", "layer_norm", "constant_norm_rescale"]
"""What is done to the activation before it is encoded, and undone after it is decoded; SAELens' names."""


class StoredSae(TensorRef):
    """What of an SAE is used, as an artifact keeps it: tensors under a key, and how they are read."""

    expects: ClassVar[str] = "a mapping with `key`, `architecture` and, unless it is an artifact's, `file`"

    architecture: Architecture = Field(
        description="Which latents are active: `standard` those above 0, `jumprelu` those above their "
        "threshold, `topk` the `k` highest of all, `gated` those whose gate is above 0."
    )
    normalize: Normalization = Field(
        default="none",
        description="What is done to the activation before it is encoded: nothing, `layer_norm` (its mean "
        "taken away, divided by its standard deviation), `constant_norm_rescale` (its norm made √width).",
    )
    latents: Count | None = Field(default=None, description="Of `topk`: how many latents there are.")
    k: Count | None = Field(default=None, description="Of `topk`: how many latents are active at most.")
    origin: Text | None = Field(
        default=None, description="Where it was taken from, for readers; nothing depends on it."
    )

    @model_validator(mode="after")
    def _highest_of_all(self) -> Self:
        if flaws := list(self._flaws()):
            refuse("StoredSae", flaws)
        return self

    def _flaws(self) -> Iterator[Flaw]:
        is_topk = self.architecture == "topk"
        for name, value in (("latents", self.latents), ("k", self.k)):
            if is_topk and value is None:
                yield Flaw((name,), "an integer >= 1, as the architecture is topk", None, "missing_field")
            if not is_topk and value is not None:
                yield Flaw((name,), f"none: the architecture is {self.architecture}, not topk", value)
        if self.latents is not None and self.k is not None and self.k > self.latents:
            yield Flaw(("k",), f"at most `latents`, {self.latents}", self.k)

    def feature_flaws(self, field: str, highest: int) -> Iterator[Flaw]:
        """Yields what is wrong with a field that names latents up to a number, as far as this tells."""
        if self.latents is not None and highest >= self.latents:
            yield Flaw((field,), f"latents from 0 to {self.latents - 1}", highest)


class SaeRelease(SpecModel):
    """An SAE on the Hub, in SAELens' format."""

    expects: ClassVar[str] = "a mapping with `release` and `id`"

    release: Text = Field(
        description="As SAELens' `from_pretrained` takes it: a repository of the Hub, `user/name`; or a name "
        "of SAELens' own directory, where sae-lens is installed beside subvene."
    )
    id: Text = Field(description="SAELens' `sae_id`: of a repository, the folder with `cfg.json` in it.")
    revision: Text | None = Field(
        default=None, description="Branch, tag or commit of the repository. Left out: its default branch."
    )


class SaeFolder(SpecModel):
    """An SAE on this machine, in SAELens' format."""

    expects: ClassVar[str] = "a mapping with `folder`"

    folder: Text = Field(
        description="A folder with `cfg.json` and `sae_weights.safetensors`, as SAELens' `save_model` writes "
        "it, relative to the folder of this spec."
    )


def _shape(value: object) -> int | None:
    for i, (cls, field) in enumerate(((SaeRelease, "release"), (SaeFolder, "folder"), (StoredSae, "key"))):
        if isinstance(value, cls) or (isinstance(value, Mapping) and field in value):
            return i
    return None


_ANY = "a mapping with `release` and `id`, with `folder`, or with `key` and `architecture`"
AnySae = Annotated[SaeRelease | SaeFolder | StoredSae, Shaped(_shape, _ANY), Expect(_ANY)]
"""An SAE as a file names one."""
