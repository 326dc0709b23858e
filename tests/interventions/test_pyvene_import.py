"""What pyvene draws with is imported when something is drawn, and is then what anybody else imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

DRAWING = "{name.partition('.')[0] for name in sys.modules} & {'networkx', 'matplotlib', 'mpl_toolkits'}"


def printed(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("first", ["", "import matplotlib, networkx\n"], ids=["alone", "imported before"])
def test_a_causal_model_is_drawn_with_what_is_imported_then(first: str) -> None:
    code = (
        f"import sys\n{first}from subvene.interventions._pyvene import pyvene\n"
        f"print(len({DRAWING}))\n"
        "from pyvene.data_generators import causal_model\n"
        "graph, figure = causal_model.nx.DiGraph, causal_model.plt.figure\n"
        "import matplotlib.pyplot as plt, networkx as nx\n"
        "print(graph is nx.DiGraph, figure is plt.figure)\n"
    )
    before, *same = printed(code)
    assert (before == "0") == (not first)
    assert same == ["True", "True"]
