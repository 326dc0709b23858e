"""Probes: classifiers that tell true from false answers by one head's activation, fitted for every head."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import joblib
import numpy as np
import safetensors.torch
import torch
from filelock import FileLock
from numpy.typing import NDArray

from subvene.runner.files.progress import status
from subvene.runner.files.storage import atomic_folder
from subvene.runner.passes.collector import Collected
from subvene.runner.recipes.nl_iti import nl_iti_right
from subvene.specs import SubveneError

_FILE = "probes.safetensors"
# Below so many numbers to fit on, processes take longer to start than one takes to do all the work.
_WORTH_PROCESSES = 2e9


@dataclass(frozen=True)
class Probes:
    """What the probes of all heads found.

    Attributes:
        accuracy: float64 [n_layers, n_heads], on rows that the probe which is asked has not learnt from.
        weight: float32 [n_layers, n_heads, head_dim] of linear probes, on raw activations, positive is true;
            empty for others, as `bias` is.
        bias: float32 [n_layers, n_heads].
    """

    accuracy: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


Kind = Literal["linear", "mlp", "nl_iti"]


def fit_probes(
    activations: Collected,
    rows: Sequence[int],
    labels: Sequence[bool],
    folds: Sequence[int],
    n_heads: int,
    *,
    kind: Kind,
    seed: int,
    folder: Path,
) -> Probes:
    """Fit probes for every head, and measure them on rows that they have not learnt from.

    Of each fold one is fitted on all rows that are not of it, and asked about those that are. The probe that
    is kept is fitted on all rows that are to be learnt from: with one fold (a split) those outside of it,
    with several (cross-validation) all.

    Args:
        activations: at `attention_heads`.
        rows: the rows of `activations` that are probed.
        labels: of each row: whether the answer is true.
        folds: of each row, from 0; -1 for rows that are only learnt from.
        n_heads: query heads in a layer.
        kind: logistic regression; a perceptron with one hidden layer as wide as a head; or NL-ITI's.
        seed: of a perceptron's first weights and batches; a logistic regression needs none.
        folder: where probes are kept by content, and found again.
    """
    about = [
        activations.content,
        list(rows),
        [int(label) for label in labels],
        list(folds),
        n_heads,
        kind,
        None if kind == "linear" else seed,
        version("scikit-learn"),
    ]
    target = folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (target / _FILE).is_file():
            with atomic_folder(target) as temporary:
                found = _fit_all(activations, rows, labels, folds, n_heads, kind, seed)
                safetensors.torch.save_file(found, temporary / _FILE)
        stored = safetensors.torch.load_file(target / _FILE)
    return Probes(stored["accuracy"], stored["weight"], stored["bias"])


def _fit_all(
    activations: Collected,
    rows: Sequence[int],
    labels: Sequence[bool],
    folds: Sequence[int],
    n_heads: int,
    kind: Kind,
    seed: int,
) -> dict[str, torch.Tensor]:
    y, of_fold = np.array(labels, dtype=np.int64), np.array(folds, dtype=np.int64)
    layers, chosen = activations.store.index.layers, torch.tensor(list(rows), dtype=torch.long)
    width = activations.store.index.width
    work = len(rows) * width * len(layers) * (100 if kind == "mlp" else 1) * (max(folds) + 1)
    # One task a layer: a process reads its layer from the mapped shards, so that nothing large is sent to it.
    tasks = (
        joblib.delayed(_fit_layer)(activations, layer, chosen, y, of_fold, n_heads, kind, seed)
        for layer in layers
    )
    with status(f"fitting {len(layers) * n_heads} probes"):
        by_layer = joblib.Parallel(n_jobs=-1 if work > _WORTH_PROCESSES else 1)(tasks)
    return {name: torch.stack([torch.from_numpy(found[name]) for found in by_layer]) for name in by_layer[0]}


def _fit_layer(
    activations: Collected,
    layer: int,
    rows: torch.Tensor,
    y: NDArray[np.int64],
    folds: NDArray[np.int64],
    n_heads: int,
    kind: Kind,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Of one layer's probes: accuracy [n_heads] and, of linear ones, weight [n_heads, head_dim] and bias."""
    # Imported here: scikit-learn takes a second to import, and whatever else a recipe does needs none of it.
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    x = activations.read(layer, rows).double().numpy().reshape(len(rows), n_heads, -1)
    if not np.isfinite(x).all():
        raise SubveneError(
            f"{activations.store.index.site}[{layer}]: the activations are not finite; try dtype: float32"
        )
    right = np.zeros(n_heads)
    weight, bias = np.zeros((0, x.shape[2]), np.float32), np.zeros(0, np.float32)
    # One thread: the matrices are small, and the sums in them must not depend on how many there are.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as published: whatever it has come to by then
        n_folds = int(folds.max()) + 1
        for fold in range(n_folds):
            held_out = folds == fold
            if kind == "nl_iti":
                right += nl_iti_right(x[~held_out], y[~held_out], x[held_out], y[held_out], seed)
                continue
            probes = [_fitted(x[~held_out, head], y[~held_out], kind, seed) for head in range(n_heads)]
            right += [
                (probe.predict(np.ascontiguousarray(x[held_out, head])) == y[held_out]).sum()
                for head, probe in enumerate(probes)
            ]
        if kind == "linear":
            if n_folds > 1:
                probes = [_fitted(x[:, head], y, kind, seed) for head in range(n_heads)]
            weight = np.array([probe.coef_[0] for probe in probes], dtype=np.float32)
            bias = np.array([probe.intercept_[0] for probe in probes], dtype=np.float32)
    return {"accuracy": right / (folds >= 0).sum(), "weight": weight, "bias": bias}


def _fitted(x: NDArray[np.float64], y: NDArray[np.int64], kind: Kind, seed: int) -> Any:
    """A probe of one head, from its activations [texts, head_dim]."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    own = np.ascontiguousarray(x)
    if kind == "linear":
        return LogisticRegression(max_iter=1000).fit(own, y)
    perceptron = MLPClassifier((own.shape[1],), random_state=seed % 2**32)
    return make_pipeline(StandardScaler(), perceptron).fit(own, y)
