"""The harness's side of `truthfulqa_lm_eval.py`, which runs it in its environment; it does nothing alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from worker import serve


def ready(job: dict[str, Any]) -> tuple[dict[str, Any], Callable[[int], dict[str, Any]]]:
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = HFLM(pretrained=job["model"], dtype="float32", device="cpu", batch_size=job["batch_size"])
    about = {"version": f"lm-eval {version('lm_eval')}"}

    def score(_number: int) -> dict[str, Any]:
        requests = [
            Instance("loglikelihood", {}, (context, answer), index)
            for index, (context, answer) in enumerate(job["rows"])
        ]
        return {"scores": [total for total, _ in model.loglikelihood(requests, disable_tqdm=True)]}

    return about, score


if __name__ == "__main__" and "--serve" in sys.argv:
    serve(ready)
