"""What tests of the ways to call a model share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import NEW, responses

from subvene.runner import IntervenedModel

rules = pytest.mark.parametrize("rule", ["all", "prompt", "response"])
GREEDY: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False}


def new_tokens(sequences: Any) -> list[list[int]]:
    return [row[len(sequences[0]) - NEW :] for row in torch.as_tensor(sequences).tolist()]


def in_a_thread(m: IntervenedModel) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(responses(m)))
    thread.start()
    thread.join()
    return found[0]


def in_words(rows: list[list[int]]) -> list[str]:
    return [" ".join(f"<{token}>" for token in row) for row in rows]


def in_threads(*jobs: Callable[[], None]) -> None:
    """Run jobs at the same time, and raise what one of them raises."""
    errors: list[BaseException] = []
    ready = threading.Barrier(len(jobs))

    def run(job: Callable[[], None]) -> None:
        try:
            ready.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
