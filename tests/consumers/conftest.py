"""Consumers of exports that live in environments of their own, which `make test-lm-eval` and such make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The distribution's Chromium, driven by playwright; without either the test is skipped."""
    driver = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed; `make test-ui` has an environment with it"
    )
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("there is no Chromium here (apt install chromium)")
    with driver.sync_playwright() as playwright:
        # As root Chromium has no sandbox.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@pytest.fixture
def consumer() -> Callable[[str], Path]:
    """The Python of a consumer's environment; without one the test is skipped."""

    def consumer(name: str) -> Path:
        python = os.environ.get(f"SUBVENE_{name.upper().replace('-', '_')}_PYTHON")
        if not python:
            pytest.skip(f"needs {name} in an environment of its own: make test-{name}")
        return Path(python)

    return consumer


@pytest.fixture
def ask(consumer: Callable[[str], Path], tmp_path: Path) -> Callable[..., Any]:
    """Runs a script of this folder in a consumer's environment: JSON in, JSON out."""

    def ask(name: str, script: str, question: Any) -> Any:
        python = consumer(name)
        asked, answered = tmp_path / "question.json", tmp_path / "answer.json"
        asked.write_text(json.dumps(question))
        answered.unlink(missing_ok=True)
        # Nothing of this environment may leak into the other one.
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            [python, HERE / script, asked, answered],
            capture_output=True,
            text=True,
            timeout=1200,
            env=kept | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return json.loads(answered.read_text())

    return ask
