"""`subvene lm-eval`: lm-evaluation-harness's own command, which then knows artifacts as models."""

from __future__ import annotations

import importlib.util
import sys
from typing import Annotated

import typer

from subvene.specs import SubveneError


def lm_eval(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="ARGUMENTS...", help="Of `lm-eval`, which has its own help: `lm-eval run --help`."
        ),
    ],
) -> None:
    """Run lm-evaluation-harness's own command, which then knows artifacts as models.

    `subvene lm-eval run --model subvene --model_args artifact=FOLDER --tasks arc_easy`: every kind of edit
    acts, at its positions; `artifact=FOLDER,strength=0` is the untouched model.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise SubveneError("lm-eval: lm-evaluation-harness is not installed: pip install 'subvene[lm-eval]'")
    from lm_eval.__main__ import cli_evaluate

    import subvene.runner.engines.lm_eval_model  # noqa: F401 (registers the model)

    sys.argv = ["lm-eval", *arguments]
    cli_evaluate()
