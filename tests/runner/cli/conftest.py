"""The command line with everything but the size: specs of the runner's conftest, run in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from subvene.runner.cli.app import app


@pytest.fixture
def subvene() -> Callable[..., Any]:
    """Runs the command line in this process, with standard output and standard error apart."""

    def subvene(*args: object, **options: object) -> Any:
        result = CliRunner().invoke(app, [str(arg) for arg in args], **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return subvene
