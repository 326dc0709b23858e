"""Beside the field's own tools: every benchmark that has a rival, one after another, and one table of them.

`make bench-peers` makes the rivals' environments and runs it; it ends with an error where a benchmark did not
run. Ratio: their time / subvene's, the median of the rounds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from edit_training import machine
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
# Script → what is done, and by arm of it: the rival. A ratio of a script is rival / subvene.
RIVALS = {
    "directions.py": "directions from 500 pairs, all layers",
    "activations.py": "head activations at the last token of 500 answers",
    "truthfulqa_lm_eval.py": "multiple choice, the published prompt, 24 questions",
    "persona_sweep.py": "answers of a sweep, 3 layers × 6 coefficients × 10 questions",
    "causal_tracing.py": "causal tracing of a fact, 30 layers × 10 tokens",
    "edit_training.py": "training of localized edits",
}


def results_of(script: str, options: list[str]) -> dict[str, dict[str, float]]:
    """Benchmark → arm → ratio, of one script; what it prints is shown."""
    run = subprocess.Popen(
        [sys.executable, str(HERE / script), *options], stdout=subprocess.PIPE, text=True, cwd=HERE.parent
    )
    found = {}
    for line in run.stdout or ():
        print(line, end="", flush=True)
        if line.startswith('{"benchmark"'):
            one = json.loads(line)
            found[one["benchmark"]] = one["ratios"]
    if run.wait() != 0 or not found:
        raise SystemExit(f"{script} gave no result (exit {run.returncode}); its messages are above")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a check that it runs, not a measurement")
    parser.add_argument("--rounds", type=int, help="timed rounds of each; left out: as many as each has")
    parser.add_argument("--keep", type=Path, help="write what was found into this JSON, script by script")
    parser.add_argument("--only", nargs="+", choices=list(RIVALS), help="these scripts")
    options = parser.parse_args()
    passed = ["--quick"] * options.quick + (["--rounds", str(options.rounds)] if options.rounds else [])
    ratios = {}
    for script in options.only or RIVALS:
        ratios[script] = results_of(script, passed)
        if options.keep:
            kept = json.loads(options.keep.read_text()) if options.keep.is_file() else {}
            options.keep.write_text(
                json.dumps(kept | {script: about() | {"ratios": ratios[script]}}, indent=1)
            )
    table = Table(title="their time / subvene's")
    for column in ("work", "beside", "ratio"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for script, found in ratios.items():
        for benchmark, arms in found.items():
            for arm, ratio in arms.items():
                table.add_row(RIVALS[script], f"{benchmark}: {arm}", f"{ratio:.2f}")
    console = Console(width=110)
    console.print(table)
    console.print(*about().values())


def about() -> dict[str, Any]:
    """Where and with what this runs."""
    packages = {name: version(name) for name in ("torch", "transformers", "pyvene")}
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "date": str(date.today()),
        "packages": packages,
    }


if __name__ == "__main__":
    main()
