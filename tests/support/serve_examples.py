"""The programs of examples/serve, run against a server that listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "examples/serve"


def check_examples(url: str, key: str, artifact: str) -> None:
    """Ask by `ask.sh` and `sweep.py`, and hold what they print.

    Args:
        url: of the server, without `/v1`.
        key: its key.
        artifact: one intervention that can be at 0.
    """
    environment = os.environ | {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": key}
    answer = json.loads(_printed(["sh", str(FOLDER / "ask.sh"), artifact, f"{url}/v1"], environment))
    (receipt,) = answer["subvene"]["receipt"]
    assert tuple(receipt["strengths"]) == (1.5,)
    assert receipt["edited"]["prompt"] == 0
    assert receipt["edited"]["response"] == answer["usage"]["completion_tokens"] - 1
    lines = _printed([sys.executable, str(FOLDER / "sweep.py"), artifact], environment).splitlines()
    strengths = [line.partition(":")[0] for line in lines if not line.startswith(" ")]
    assert [one for one in strengths if one in ("-2", "+0", "+2")] == ["-2", "+0", "+2"]
    receipts = [line for line in lines if line.startswith("    edited {'prompt'")]
    assert len(receipts) == 3
    assert [line.endswith("0.000") for line in receipts] == [False, True, False]


def check_demo(artifact: str) -> None:
    """`demo.py` serves an artifact, `NAME=FOLDER`, asks it, and ends the server; a broken one is told."""
    demo = [sys.executable, str(FOLDER / "demo.py")]
    lines = _printed([*demo, artifact], dict(os.environ)).splitlines()
    assert lines[0] == f"› subvene serve {artifact} --port 0"
    assert len([line for line in lines if line.startswith("    edited {'prompt'")]) == 3
    broken = subprocess.run([*demo, f"{artifact}-gone"], capture_output=True, text=True, timeout=120)
    assert broken.returncode != 0
    assert "the server ended with 1: " in broken.stderr
    assert "no such file or folder" in broken.stderr


def _printed(command: Sequence[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout
