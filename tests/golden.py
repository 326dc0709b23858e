"""What small runs of every kind of experiment give, for comparison after a change that must change nothing.

`make golden` runs them on a tiny model and compares tables and results with `tests/golden/`, numbers exactly;
`python tests/golden.py --write` keeps what they give now. The last digits of a sum are the processor's: who
compares on another machine writes first, from the tree that is to be compared with.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import kills
from small_experiments import KINDS

KEPT = Path(__file__).parent / "golden"
VOLATILE = {"environment", "git", "files_relative_to", "identity", "model_sha256", "versions"}
"""Keys of results that say where and when a run was, or are made of such."""


def outputs(experiments: kills.Runs) -> dict[str, str]:
    """What runs wrote, by `KIND/FILE`: tables as they are, results without what is of the place and time."""
    found = {}
    for kind in experiments.kinds:
        output = experiments.output(kind, "whole")
        for path in sorted((output / "tables").glob("*")):
            found[f"{kind}/{path.name}"] = _placeless(path.read_text("utf-8"), experiments)
        results = json.loads((output / "results.json").read_text("utf-8"))
        lines = json.dumps(_lasting(results), indent=1, ensure_ascii=False, sort_keys=True)
        found[f"{kind}/run.json"] = _placeless(lines, experiments) + "\n"
    return found


def _lasting(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lasting(inner) for key, inner in value.items() if key not in VOLATILE}
    return [_lasting(inner) for inner in value] if isinstance(value, list) else value


def _placeless(text: str, experiments: kills.Runs) -> str:
    text = text.replace(str(experiments.folder), "FOLDER")
    text = re.sub(r"http://127\.0\.0\.1:\d+", "URL", text)
    return re.sub(r"\b[0-9a-f]{64}\b", "SHA256", text)


def main(arguments: list[str] | None = None) -> int:
    """Run, then write or compare; 1 if something differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    asked = parser.parse_args(arguments)
    with kills.runs(asked.kinds) as experiments:
        given = outputs(experiments)
    if asked.write:
        for name, text in given.items():
            (KEPT / name).parent.mkdir(parents=True, exist_ok=True)
            (KEPT / name).write_text(text, encoding="utf-8")
        return 0
    kept = {
        f"{kind}/{path.name}": path.read_text("utf-8")
        for kind in asked.kinds
        for path in sorted((KEPT / kind).iterdir())
    }
    differing = sorted(name for name in kept.keys() | given.keys() if kept.get(name) != given.get(name))
    for name in differing:
        print(f"differs: tests/golden/{name}")
    print(f"{len(kept)} files, {len(differing)} differ")
    return int(bool(differing))


if __name__ == "__main__":
    sys.exit(main())
