"""An OpenAI-compatible endpoint: what comes first in a reply, and how likely it was.

Requests run concurrently, are retried by the openai client, and every reply is kept on disk by the content of
its request, so that a run which is killed asks only for what is missing. What is asked, and what the tokens
mean, is the business of the judges.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import os
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

from subvene.runner.cache import cache_folder
from subvene.runner.judges.base import JudgeError
from subvene.runner.progress import track
from subvene.specs.regular_file import read_bytes

if TYPE_CHECKING:
    import openai

OPENAI_URL = "https://api.openai.com/v1"
_CHECK_SECONDS = 20.0
_SHOWN = 300

_T = TypeVar("_T")
Messages = Sequence[Mapping[str, str]]


@dataclass(frozen=True)
class Reply:
    """The beginning of a reply.

    Attributes:
        text: the reply, as far as it was asked for.
        top: the likeliest first tokens with their log-probabilities; empty if the server gave none.
    """

    text: str
    top: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class NoReply:
    """The server refused this request, or answered with what is no reply; `reason` says which."""

    reason: str


class Priced(Protocol):
    """What a spec says of prices, per million tokens; None: nobody said."""

    @property
    def input_price(self) -> float | None: ...  # noqa: D102

    @property
    def output_price(self) -> float | None: ...  # noqa: D102


def with_cost(counts: Mapping[str, Any], prices: Priced) -> dict[str, Any]:
    """An endpoint's counts and `cost`: None without prices, or where a reply came without its counts."""
    cost = None
    if prices.input_price is not None and prices.output_price is not None and not counts["uncounted"]:
        spent = counts["prompt_tokens"] * prices.input_price
        cost = (spent + counts["completion_tokens"] * prices.output_price) / 1e6
    return {**counts, "cost": cost}


class _Request(NamedTuple):
    chat: bool
    body: dict[str, Any]


class Endpoint:
    """A server, with a bound on the requests under way, and the replies that are known already.

    Args:
        base_url: `http://…/v1`; None: $OPENAI_BASE_URL, else OpenAI's own.
        api_key_env: the environment variable that holds the key. The key itself is kept in the client only.
        concurrency: requests under way at a time.
        max_retries: further tries after 429, 5xx, timeouts and dropped connections, with growing pauses.
        timeout: seconds until a request counts as lost.
        cache: the folder of known replies; None: `judgements` in subvene's cache folder.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 8,
        max_retries: int = 6,
        timeout: float = 60.0,
        cache: Path | None = None,
    ) -> None:
        self._url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL
        self.base_url = shown_url(self._url)
        self.api_key_env = api_key_env
        self._concurrency = concurrency
        self._max_retries = max_retries
        self._timeout = timeout
        self._cache = cache_folder() / "judgements" if cache is None else cache
        self._key: str | None = None
        self._lock = threading.Lock()
        self._usage = dict.fromkeys(
            ("requests", "retries", "from_cache", "prompt_tokens", "completion_tokens", "uncounted"), 0
        )

    @property
    def client(self) -> openai.OpenAI:
        """An openai client for whatever else the server offers.

        Raises:
            JudgeError: there is no key, and the server is not on this machine.
        """
        import openai

        return openai.OpenAI(**self._connection())

    def _connection(self) -> dict[str, Any]:
        """What the openai client is made with. The key is found here, before anything is asked."""
        self._key = self._find_key()
        return {
            "api_key": self._key or "none",
            "base_url": self._url,
            "max_retries": self._max_retries,
            "timeout": self._timeout,
        }

    def _find_key(self) -> str | None:
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            if is_loopback(self._url):
                return None
            raise JudgeError(
                f"{self.base_url} needs a key and ${self.api_key_env} is not set: put the key there, or name "
                f"the variable that holds it in `api_key_env`"
            )
        if not (key.isascii() and key.isprintable()):
            raise JudgeError(f"${self.api_key_env} holds no key: expected printable ASCII characters")
        return key

    def check(self, models: Sequence[str]) -> None:
        """Find out whether the server answers, takes the key, and has these models.

        Raises:
            JudgeError: it does not; a server that lists no models is only asked whether it is there.
        """
        import openai

        client = self.client.with_options(timeout=min(self._timeout, _CHECK_SECONDS), max_retries=2)
        try:
            listed = client.models.list()
            names = {model.id for model in listed.data}
            # llama.cpp: the file's path is the name, and what it was started under is an alias.
            names |= {alias for model in listed.data for alias in getattr(model, "aliases", None) or ()}
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):
                return
            raise self.failure(error) from None
        except openai.OpenAIError as error:
            raise self.failure(error) from None
        except (AttributeError, TypeError):
            raise JudgeError(
                f"{self.base_url}/models answers, but not as an OpenAI-compatible server does; "
                f"is the path right? It usually ends in /v1"
            ) from None
        for model in models:
            if names and model not in names:
                some = ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
                raise JudgeError(f"{self.base_url} has no model {model!r}; it has: {some}")

    def first_tokens(
        self,
        model: str,
        inputs: Sequence[str | Messages],
        *,
        top: int,
        max_tokens: int = 1,
        description: str = "asking",
    ) -> list[Reply | NoReply]:
        """The replies' first tokens, at temperature 0, in the order of `inputs`.

        Args:
            model: the model's name.
            inputs: prompts to be completed (text), or chats (messages).
            top: how many of the likeliest first tokens to ask for; 0 (chats only): none.
            max_tokens: how much of the reply's text to ask for.
            description: what the progress bar says.

        Raises:
            JudgeError: the server is gone, refuses the key or the model, or is still too busy after every
                retry. Replies that had come are kept, and are not asked for again.
        """
        requests = [_request(model, one, top, max_tokens) for one in inputs]
        keys = [self._digest(request) for request in requests]
        store = _Store(self._cache / self._file(model))
        known = store.read()
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        with self._lock:
            self._usage["from_cache"] += sum(key in known for key in keys)
        results: dict[str, Reply | NoReply] = {key: known[key] for key in set(keys) & known.keys()}
        if missing:
            connection = self._connection()
            with store:
                results |= _run(self._ask_all(connection, missing, store, description))
        return [results[key] for key in keys]

    def usage(self) -> dict[str, Any]:
        """Requests that were answered, further tries, replies from disk, and the tokens that requests cost.

        `uncounted` are replies of which the server did not say how many tokens they took.
        """
        with self._lock:
            return dict(self._usage)

    def failure(self, error: openai.OpenAIError) -> JudgeError:
        """What a failed request means for the user; the key stands in no message."""
        import openai

        said = self._said(error)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            key = (
                f"the key in ${self.api_key_env}" if self._key else f"no key (${self.api_key_env} is not set)"
            )
            return JudgeError(f"{self.base_url} refuses {key}: {said}")
        if isinstance(error, openai.APITimeoutError):
            return JudgeError(
                f"{self.base_url} gave no reply within {self._timeout:g} s, however often asked"
            )
        if isinstance(error, openai.APIConnectionError):
            return JudgeError(f"{self.base_url} cannot be reached ({said}); is `base_url` right?")
        return JudgeError(f"{self.base_url}: {said}")

    async def _ask_all(
        self, connection: dict[str, Any], missing: Mapping[str, _Request], store: _Store, description: str
    ) -> dict[str, Reply | NoReply]:
        import openai

        results: dict[str, Reply | NoReply] = {}
        remaining = iter(track(list(missing.items()), description))

        async def work() -> None:
            for key, request in remaining:  # shared: every request is taken by one worker
                results[key] = await self._ask(client, key, request, store)

        async with openai.AsyncOpenAI(**connection) as client:
            # The first failure ends them all: `asyncio.run` cancels what is still under way.
            await asyncio.gather(*(work() for _ in range(min(self._concurrency, len(missing)))))
        return results

    async def _ask(
        self, client: openai.AsyncOpenAI, key: str, request: _Request, store: _Store
    ) -> Reply | NoReply:
        import openai

        create: Any = (
            client.chat.completions if request.chat else client.completions
        ).with_raw_response.create
        try:
            raw = await create(**request.body)
            document = json.loads(raw.text)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return NoReply(f"the server refused the request: {self._said(error)}")
        except openai.OpenAIError as error:
            raise self.failure(error) from None
        except ValueError:
            return NoReply("the server's reply is no JSON")
        reply = _read(document)
        counts = document.get("usage") if isinstance(document, dict) else None
        with self._lock:
            self._usage["requests"] += 1
            self._usage["retries"] += raw.retries_taken
            if isinstance(counts, dict) and isinstance(counts.get("prompt_tokens"), int):
                self._usage["prompt_tokens"] += counts["prompt_tokens"]
                self._usage["completion_tokens"] += counts.get("completion_tokens") or 0
            else:
                self._usage["uncounted"] += 1
        if isinstance(reply, Reply):
            store.add(key, reply)
        return reply

    def _said(self, error: openai.OpenAIError) -> str:
        """What the server said, or why nothing came; a server may repeat the key that it refuses."""
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        cause = error.__cause__
        text = " ".join(str(said or (cause if cause is not None and str(cause) else error)).split())
        status = getattr(error, "status_code", None)
        text = f"{status} {text}" if status and not text.startswith(str(status)) else text
        for secret in (self._key, urlsplit(self._url).password):
            if secret:
                text = text.replace(secret, "…")
        return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"

    def _digest(self, request: _Request) -> str:
        exact = json.dumps([self.base_url, request.chat, request.body], sort_keys=True)
        return hashlib.sha256(exact.encode()).hexdigest()

    def _file(self, model: str) -> str:
        """One file for each endpoint and model, so that only what may be needed is read."""
        name = re.sub(r"[^A-Za-z0-9.]+", "-", model.rsplit("/", 1)[-1])[:60].strip("-.")
        digest = hashlib.sha256(f"{self.base_url}\n{model}".encode()).hexdigest()
        return f"{name or 'model'}-{digest[:12]}.jsonl"


class _Store:
    """Replies by the digest of their request: one JSON document a line, lines are only ever added.

    Each line goes out in one write to a file opened for appending, so processes that share it do not mix
    their lines, and a kill leaves at most a torn last line, which is skipped when read and ended by the next
    writer.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def __exit__(self, *_: object) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def read(self) -> dict[str, Reply]:
        known: dict[str, Reply] = {}
        try:
            lines = read_bytes(self._path).split(b"\n")
        except FileNotFoundError:
            return known
        for line in lines:
            try:
                record = json.loads(line)
                top = tuple((str(token), float(log_prob)) for token, log_prob in record["top"])
                known[record["key"]] = Reply(str(record["text"]), top)
            except (ValueError, KeyError, TypeError):
                continue  # an empty line, or one that a kill tore: its request is simply made again
        return known

    def add(self, key: str, reply: Reply) -> None:
        record = json.dumps({"key": key, "text": reply.text, "top": reply.top})
        if self._descriptor is None:
            raise RuntimeError("the store is not open")
        # A line break on both sides: the first ends a line that a killed process left torn.
        os.write(self._descriptor, f"\n{record}\n".encode())


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """A URL without name and password, and without a slash at its end."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])).rstrip("/")


def _request(model: str, one: str | Messages, top: int, max_tokens: int) -> _Request:
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": 0}
    if isinstance(one, str):
        return _Request(False, body | {"prompt": one, "logprobs": top})
    if top:
        body |= {"logprobs": True, "top_logprobs": top}
    return _Request(True, body | {"messages": [dict(message) for message in one]})


def _read(document: Any) -> Reply | NoReply:
    """The reply in a server's document; llama.cpp gives completions their log-probabilities as chats."""
    try:
        choice = document["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        return Reply(text or "", _top(choice.get("logprobs")))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return NoReply("the server's reply has not the form of a completion")


def _top(logprobs: Any) -> tuple[tuple[str, float], ...]:
    if not logprobs:
        return ()
    if "content" in logprobs:
        first = logprobs["content"][0] if logprobs["content"] else {"top_logprobs": ()}
        return tuple((str(one["token"]), float(one["logprob"])) for one in first["top_logprobs"])
    likeliest = logprobs.get("top_logprobs")
    return tuple((str(token), float(value)) for token, value in likeliest[0].items()) if likeliest else ()
