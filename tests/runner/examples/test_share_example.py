"""The example that shares an artifact does what it says: fresh processes, a Hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import environment, serve_hub
from short_examples import short_examples


@pytest.mark.long
@pytest.mark.slow
def test_share(tmp_path: Path) -> None:
    script = short_examples(tmp_path / "examples", 6) / "share" / "share.py"
    with serve_hub(tmp_path / "server") as server:
        env = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, script, "ann/cheerful"],
            env=env | environment(server, tmp_path / "home"),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        repository = server.repositories["ann/cheerful"]
        assert repository.private
        assert [commit.message for commit in repository.history()] == ["A cheerful manner", "initial commit"]
        lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if line)
        oid = repository.branches["main"]
        assert lines["pushed"] == f"{server.url}/ann/cheerful/commit/{oid}"
        assert lines["pulled"].endswith(f"from ann/cheerful at {oid[:12]}")
        assert len(lines["answer"]) > 20
        assert int(lines["edited"].split()[0]) >= 10
        assert server.leaked == []
