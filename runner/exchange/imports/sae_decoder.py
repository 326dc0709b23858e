"""A feature's row of a sparse autoencoder's decoder, as steering: without its encoder nothing is read."""

from __future__ import annotations

from subvene.interventions import Sizes
from subvene.runner.artifacts.saelens import CONFIG, WEIGHTS, SaeError, SaeLensFolder
from subvene.runner.exchange.imports.base import Imported, Importer, identifier
from subvene.runner.exchange.imports.opened import Opened
from subvene.runner.models.anatomy import Anatomy
from subvene.specs import SteeringSpec, TensorRef, tensor_name


class SaeDecoder(Importer):
    """SAELens' `cfg.json` and `sae_weights.safetensors`; `--feature` says which latent's direction is meant.

    The vector is what the SAE adds for one unit of the latent's activation, at the SAE's own site and layer:
    `kind: sae_feature` with `do: add` does the same where the SAE does not normalize.
    """

    name = "sae-decoder"
    says = f"an SAE of SAELens, a folder with {CONFIG} and {WEIGHTS}, or its release/id"
    takes = frozenset({"strength", "positions", "feature"})

    @classmethod
    def recognises(cls, source: Opened) -> bool:
        return source.is_folder and {CONFIG, WEIGHTS} <= set(source.names)

    def read(self) -> None:
        if self.options.feature is None:
            raise self.refuse("holds many directions; say which latent with --feature")
        if not self.source.is_folder:
            raise self.refuse(f"expected a folder with {CONFIG} and {WEIGHTS}")
        try:
            self.sae = SaeLensFolder.read(self.source.path, self.source.overrides)
            self.vector = self.sae.tensors([self.options.feature])["decoder"][0]
        except SaeError as error:
            raise self.refuse(str(error)) from error
        if not self.vector.any():
            raise self.refuse(
                f"latent {self.options.feature} has a decoder of zeros: there is nothing to add"
            )
        self.key = self.options.key or f"feature_{self.options.feature}"

    def check(self, sizes: Sizes) -> None:
        config = self.sae.config
        self.check_layers([config.layer], sizes)
        if config.site == "mlp_neurons":
            return  # how many there are, only the loaded model tells: compilation compares
        if config.site != "attention_heads" and config.width != sizes.width:
            raise self.refuse(
                f"reads {config.width} columns, and the model has {sizes.width}: it was made for another one"
            )

    def onto(self, anatomy: Anatomy) -> Imported:
        config, options = self.sae.config, self.options
        strength = 1.0 if options.strength is None else options.strength
        positions = options.positions or "response"
        edit = SteeringSpec(
            name=identifier(self.key),
            site=config.site,
            layer=config.layer,
            vector=TensorRef(key=self.key),
            coefficient=strength,
            positions=positions,
        )
        told = [
            f"row {options.feature} of the decoder, at {config.site}[{config.layer}], where the SAE reads",
            f"its norm is kept; coefficient {strength:g}, in units of the latent's activation, at positions "
            f"{positions!r}",
        ]
        if config.normalize != "none":
            told.append(f"the SAE normalizes ({config.normalize}): its own units are not the activation's")
        tensors = {tensor_name(self.key, config.site, config.layer): self.vector}
        facts = {"feature": options.feature, "sae_sha256": self.sae.sha256}
        return Imported((edit,), tensors, told, facts)
