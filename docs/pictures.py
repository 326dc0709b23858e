"""Pictures of the results pages, drawn of the raw numbers that lie beside them: `python docs/pictures.py`.

Each is what a page says in its tables; nothing is measured here.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from subvene.runner.reports.figures import layer_heat_map
from subvene.runner.reports.svg import svg

RESULTS = Path(__file__).parent / "results"
TOKENS = {
    "first_subject": "first subject token",
    "middle_subject": "middle subject tokens",
    "last_subject": "last subject token",
    "first_after": "first token after it",
    "further": "further tokens",
    "last": "last token",
}
"""What causal tracing calls a token, and how a reader does."""


def tracing() -> go.Figure:
    """What restoring a state gives back of the answer's probability, by token and layer."""
    effects = pd.read_csv(RESULTS / "causal-tracing-smollm2" / "effects.csv")
    stream = effects[(effects.site == "block_output") & (effects.metric == "probability")]
    grid = stream.pivot_table(index="role", columns="layer", values="effect").loc[list(TOKENS)]
    return layer_heat_map(
        grid.to_numpy().tolist(), list(grid.columns), list(TOKENS.values()), of="effect", around_zero=True
    )


def methods() -> go.Figure:
    """What each method changes in nats of preference, with its interval over pairs."""
    table = pd.read_csv(RESULTS / "compare-methods-smollm2" / "intervals.csv")
    rows = table[(table.metric == "contrast") & table.difference.notna()]
    bars = {
        "type": "data",
        "symmetric": False,
        "array": (rows.difference_high - rows.difference).tolist(),
        "arrayminus": (rows.difference - rows.difference_low).tolist(),
    }
    made = go.Figure(
        go.Scatter(
            x=["random" if label == "chance" else label.replace("_", " ") for label in rows.label],
            y=rows.difference.tolist(),
            error_y=bars,
            mode="markers",
            marker={"size": 9},
        )
    )
    made.update_layout(yaxis={"title": {"text": "nats, against the untouched model"}}, height=300)
    return made


def alignment() -> go.Figure:
    """How often a swap gives the source's answer, by place, arm and layer."""
    cells = pd.read_csv(RESULTS / "das-smollm2" / "cells.csv")
    arms = {"das": "direction", "whole": "whole vector"}
    grids = {arm: cells.pivot_table(index="place", columns="layer", values=arm) for arm in arms}
    rows = [(place, arm) for place in ("name", "verb", "because") for arm in arms]
    made = layer_heat_map(
        [grids[arm].loc[place].tolist() for place, arm in rows],
        list(grids["das"].columns),
        [f"{place}: {arms[arm]}" for place, arm in rows],
        of="IIA",
    )
    made.update_traces(zmin=0, zmax=1)
    return made


PICTURES = {
    "causal-tracing": (tracing, "Causal tracing of SmolLM2-135M-Instruct: the residual stream restored"),
    "das": (alignment, "Interchange in SmolLM2-135M-Instruct: he or she, on names that were held out"),
    "compare-methods": (methods, "Five methods on SmolLM2-135M-Instruct: preference for the trait"),
}

if __name__ == "__main__":
    for name, (draw, about) in PICTURES.items():
        path = RESULTS / f"{name}-smollm2" / "picture.svg"
        path.write_text(svg(draw(), about), "utf-8")
        print(f"wrote {path}")
