"""A judge's server on loopback that fails in ten ways, and otherwise says what a prompt's hash says."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import loopback

NAN, DEEP = float("nan"), b"[" * 100_000
#: Log-probabilities that are none, each instead of those of a good reply.
NO_LOG_PROBS: tuple[Any, ...] = (
    None,
    [],
    "x",
    {"top_logprobs": []},
    {"top_logprobs": None},
    {"top_logprobs": [{}]},
    {"top_logprobs": ["yes"]},
    {"top_logprobs": [{" yes": "-0.1"}]},
    {"top_logprobs": [{" yes": True}]},
    {"top_logprobs": [{" yes": None, " no": -0.2}]},
    {"top_logprobs": [{" yes": NAN, " no": -0.2}]},
    {"top_logprobs": [{" yes": 3.0}]},
    {"top_logprobs": [{" yes": -0.1, " no": -0.1}]},
    {"top_logprobs": [{" yes": -math.inf}]},
    {"content": []},
    {"content": [{"top_logprobs": [{"token": " yes"}]}]},
    {"content": [{"top_logprobs": [{"token": 3, "logprob": -0.1}]}]},
    {"content": [None]},
)
FAULTS = ("drop", "cut", "busy", "broken", "html", "half", "error", "no choices", "no log-probs", "deep")


def probability(prompt: str) -> float:
    """The judge's probability of yes; of 997 values, so that a mix-up would show."""
    return int(hashlib.sha256(prompt.encode()).hexdigest(), 16) % 997 / 997 * 0.98 + 0.01


def good(prompt: str) -> dict[str, Any]:
    """A completion as a server that works gives it."""
    p = probability(prompt)
    top = {" yes": math.log(p), " no": math.log(1 - p)}
    choice = {"index": 0, "text": " yes" if p >= 0.5 else " no", "finish_reason": "length"}
    choice["logprobs"] = {"tokens": [" yes"], "top_logprobs": [top]}
    usage = {"prompt_tokens": 3, "completion_tokens": 1}
    return {"id": "x", "object": "text_completion", "choices": [choice], "usage": usage}


@dataclass
class Faulty:
    """What the server does, and what it has seen; set the fields between runs.

    Attributes:
        url: its own.
        choose: the fault of a prompt's n-th try (1 is the first); None: a good reply.
        failed: faults by kind.
        tries: by prompt, how often it was asked.
    """

    url: str = ""
    choose: Callable[[str, int], str | None] = lambda prompt, n: None
    failed: Counter[str] = field(default_factory=Counter)
    tries: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self) -> None:
        """Begin to count anew."""
        self.failed.clear()
        self.tries.clear()

    def fault(self, prompt: str) -> tuple[str | None, int]:
        """What this try meets, and which it is."""
        with self.lock:
            self.tries[prompt] += 1
            n = self.tries[prompt]
            chosen = self.choose(prompt, n)
            if chosen:
                self.failed[chosen] += 1
        return chosen, n


def bodies(prompt: str, n: int) -> dict[str, bytes]:
    """What comes with status 200 and is no answer, by fault."""
    document = good(prompt)
    draw = random.Random(f"{prompt} {n}")
    document["choices"][0]["logprobs"] = draw.choice(NO_LOG_PROBS)
    whole = json.dumps(good(prompt)).encode()
    return {
        "html": b"<html>502 Bad gateway</html>",
        "half": whole[:-20],
        "error": b'{"error": {"message": "overloaded", "code": 503}}',
        "no choices": b'{"choices": []}',
        "no log-probs": json.dumps(document).encode(),
        "deep": DEEP,
    }


@contextlib.contextmanager
def faulty_judge() -> Iterator[Faulty]:
    """The server while the block runs."""
    state = Faulty()

    class Handler(loopback.Quiet):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._send(200, b'{"object": "list", "data": []}')

        def do_POST(self) -> None:
            prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
            fault, n = state.fault(prompt)
            whole = json.dumps(good(prompt)).encode()
            if fault is None:
                self._send(200, whole)
            elif fault == "busy":
                self._send(429, b'{"error": {"message": "slow down"}}')
            elif fault == "broken":
                self._send(500, b"oops")
            elif fault == "cut":
                self._send(200, whole[: len(whole) // 2], length=len(whole))
                self.hang_up()
            elif fault == "drop":
                self.hang_up()
            else:
                self._send(200, bodies(prompt, n)[fault])

        def _send(self, status: int, data: bytes, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After-Ms", "1")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    with loopback.serve(Handler) as url:
        state.url = url
        yield state
