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
from subvene.specs import SubveneError

_FILE = "probes.safetensors"
# Below so many numbers to fit on, processes take longer to start than one takes to do all the work.
_WORTH_PROCESSES = 2e9


@dataclass(frozen=True)
class Probes:
    """What the probes of all heads found.

    Attributes:
        accuracy: float64 [n_layers, n_heads], on the validation rows.
        weight: float32 [n_layers, n_heads, head_dim] of linear probes, on raw activations, positive is true;
            empty for others, as `bias` is.
        bias: float32 [n_layers, n_heads].
    """

    accuracy: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


def fit_probes(
    activations: Collected,
    rows: Sequence[int],
    labels: Sequence[bool],
    is_validation: Sequence[bool],
    n_heads: int,
    *,
    kind: Literal["linear", "mlp"],
    seed: int,
    folder: Path,
) -> Probes:
    """Fit a probe for every head on the rows that are not for validation, and measure it on those that are.

    Args:
        activations: at `attention_heads`.
        rows: the rows of `activations` that are probed.
        labels: of each row: whether the answer is true.
        is_validation: of each row.
        n_heads: query heads in a layer.
        kind: logistic regression, or a perceptron with one hidden layer as wide as a head.
        seed: of the perceptron's first weights and batches; a logistic regression needs none.
        folder: where probes are kept by content, and found again.
    """
    about = [
        activations.content,
        list(rows),
        [int(label) for label in labels],
        [int(v) for v in is_validation],
        n_heads,
        kind,
        seed if kind == "mlp" else None,
        version("scikit-learn"),
    ]
    target = folder / hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        if not (target / _FILE).is_file():
            with atomic_folder(target) as temporary:
                found = _fit_all(activations, rows, labels, is_validation, n_heads, kind, seed)
                safetensors.torch.save_file(found, temporary / _FILE)
        stored = safetensors.torch.load_file(target / _FILE)
    return Probes(stored["accuracy"], stored["weight"], stored["bias"])


def _fit_all(
    activations: Collected,
    rows: Sequence[int],
    labels: Sequence[bool],
    is_validation: Sequence[bool],
    n_heads: int,
    kind: str,
    seed: int,
) -> dict[str, torch.Tensor]:
    y, held_out = np.array(labels, dtype=np.int64), np.array(is_validation, dtype=bool)
    layers, chosen = activations.store.index.layers, torch.tensor(list(rows), dtype=torch.long)
    width = activations.store.index.width
    work = len(rows) * width * len(layers) * (100 if kind == "mlp" else 1)
    # One task a layer: a process reads its layer from the mapped shards, so that nothing large is sent to it.
    tasks = (
        joblib.delayed(_fit_layer)(activations, layer, chosen, y, held_out, n_heads, kind, seed)
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
    held_out: NDArray[np.bool_],
    n_heads: int,
    kind: str,
    seed: int,
) -> dict[str, NDArray[Any]]:
    """Of one layer's probes: accuracy [n_heads] and, of linear ones, weight [n_heads, head_dim] and bias."""
    # Imported here: scikit-learn takes a second to import, and whatever else a recipe does needs none of it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    x = activations.read(layer, rows).double().numpy().reshape(len(rows), n_heads, -1)
    if not np.isfinite(x).all():
        raise SubveneError(
            f"{activations.store.index.site}[{layer}]: the activations are not finite; try dtype: float32"
        )
    head_dim = x.shape[2]
    accuracy, weight, bias = [], [], []
    # One thread: the matrices are small, and the sums in them must not depend on how many there are.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # as published: whatever it has come to by then
        for head in range(n_heads):
            own = np.ascontiguousarray(x[:, head])
            probe: Any
            if kind == "linear":
                probe = LogisticRegression(max_iter=1000).fit(own[~held_out], y[~held_out])
                weight.append(probe.coef_[0])
                bias.append(probe.intercept_[0])
            else:
                perceptron = MLPClassifier((head_dim,), random_state=seed % 2**32)
                probe = make_pipeline(StandardScaler(), perceptron).fit(own[~held_out], y[~held_out])
            accuracy.append(probe.score(own[held_out], y[held_out]))
    return {
        "accuracy": np.array(accuracy),
        "weight": np.array(weight, dtype=np.float32),
        "bias": np.array(bias, dtype=np.float32),
    }
