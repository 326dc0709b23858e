"""The fit of a grid, a unit of work a layer: a run that is stopped loses the layer that it was training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from subvene.runner.data.counterfactuals import Counterfactual
from subvene.runner.experiments.comparison.arms import Arms
from subvene.runner.files.json_value import Json
from subvene.runner.passes.swaps import LayerSwaps
from subvene.runner.recipes import Fitted
from subvene.runner.recipes.das import Prepared, fit_layer, together
from subvene.specs import DASSpec


class GridFits:
    """The fits of a recipe's layers.

    Args:
        recipe: the recipe.
        data: its rows.
        arms: where fits are recorded.
        model: the model's name.
        seed: the experiment's.
    """

    def __init__(
        self, recipe: DASSpec, data: Sequence[Counterfactual], arms: Arms, model: str, seed: int
    ) -> None:
        self.recipe, self.data, self.arms, self.seed = recipe, data, arms, seed
        self._model = model

    def kept(self, layer: int) -> tuple[Fitted, str] | None:
        """The fit of a layer's cells, and the digest of its tensors; None where it is not done."""
        return self.arms.kept_fit(self._identity((layer,)))

    def fitted(self, made: Prepared, swaps: LayerSwaps) -> tuple[Fitted, str]:
        """The same, done now where it was not done before."""
        if self.kept(swaps.layer) is None:
            found = fit_layer(self.recipe, self.data, made, swaps, self.seed)
            self._keep(self._identity((swaps.layer,)), found)
        kept = self.kept(swaps.layer)
        if kept is None:
            raise RuntimeError(f"the fit of layer {swaps.layer} has not been kept")
        return kept

    def join(self, layers: Sequence[int]) -> None:
        """Record the whole recipe's fit, as what reads fits looks for it."""
        identity = self.arms.fit_identity(self.recipe, self.seed, self.data)
        kept = [one for layer in layers if (one := self.kept(layer)) is not None]
        if not self.arms.is_fitted(identity) and len(kept) == len(layers):
            self._keep(identity, together([fitted for fitted, _ in kept]))

    def _identity(self, layers: tuple[int, ...]) -> dict[str, Json]:
        recipe = self.recipe.model_copy(update={"layers": layers})
        return self.arms.fit_identity(recipe, self.seed, self.data) | {"part": "layer"}

    def _keep(self, identity: Mapping[str, Json], fitted: Fitted) -> None:
        self.arms.keep_fit(identity, Fitted(fitted.tensors, {"model": self._model, **fitted.provenance}))
