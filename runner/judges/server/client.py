"""An OpenAI-compatible endpoint: what comes first in a reply, and how likely it was.

Requests run concurrently. What fails on the way is retried by the openai client, what comes and is no reply
(`replies`) here; every reply is kept on disk (`store`) by the content of its request, so that a run which is
killed asks only for what is missing. What is asked, and what the tokens mean, is the business of the judges.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import random
import re
import threading
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar
from urllib.parse import urlsplit

from subvene.runner.files.cache import cache_folder
from subvene.runner.files.progress import track
from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.server.prices import Counts
from subvene.runner.judges.server.replies import NoReply, Reply, read_reply, unusable
from subvene.runner.judges.server.store import Store
from subvene.runner.judges.server.urls import OPENAI_URL, is_loopback, shown_url

if TYPE_CHECKING:
    import openai

_CHECK_SECONDS = 20.0
_CHECK_RETRIES = 2
# As the openai client pauses: seconds before the first further try, and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
# So many requests in a row that came to nothing, each with all its tries: the server is broken.
_BROKEN = 20
_SHOWN = 300

_T = TypeVar("_T")
Messages = Sequence[Mapping[str, str]]


class _Body(TypedDict, total=False):
    """A request for one reply, in OpenAI's form."""

    model: str
    max_tokens: int
    temperature: int
    prompt: str
    logprobs: int | bool
    top_logprobs: int
    messages: list[dict[str, str]]


class _Request(NamedTuple):
    chat: bool
    body: _Body


class _Connection(TypedDict):
    """What the openai client is made with."""

    api_key: str
    base_url: str
    max_retries: int
    timeout: float


class _Asking(NamedTuple):
    """What all requests of one call share.

    Attributes:
        store: where replies go.
        top: how many of the likeliest first tokens are asked for.
        retries: further tries; None: as many as the endpoint is declared with.
    """

    store: Store
    top: int
    retries: int | None


class Endpoint:
    """A server, with a bound on the requests under way, and the replies that are known already.

    Args:
        base_url: `http://…/v1`; None: $OPENAI_BASE_URL, else OpenAI's own.
        api_key_env: the environment variable that holds the key. The key itself is kept in the client only.
        concurrency: requests under way at a time.
        max_retries: further tries after 429, 5xx, timeouts, dropped connections and what is no reply, with
            growing pauses.
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
        self._usage = Counts(0, 0, 0, 0, 0, 0)
        self._in_vain = 0

    @property
    def client(self) -> openai.OpenAI:
        """An openai client for whatever else the server offers.

        Raises:
            JudgeError: there is no key, and the server is not on this machine.
        """
        import openai

        return openai.OpenAI(**self._connection())

    def _connection(self) -> _Connection:
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

        try:
            names = self._names()
        except openai.APIStatusError as error:
            if error.status_code in (404, 405, 501):
                return
            raise self.failure(error) from None
        except openai.OpenAIError as error:
            raise self.failure(error) from None
        for model in models:
            if names and model not in names:
                some = ", ".join(sorted(names)[:10]) + (", …" if len(names) > 10 else "")
                raise JudgeError(f"{self.base_url} has no model {model!r}; it has: {some}")

    def _names(self) -> set[str]:
        """The models that the server lists."""
        client = self.client.with_options(
            timeout=min(self._timeout, _CHECK_SECONDS), max_retries=_CHECK_RETRIES
        )
        for _ in range(1 + _CHECK_RETRIES):
            try:
                listed = client.models.list()
                names = {model.id for model in listed.data}
                # llama.cpp: the file's path is the name, and what it was started under is an alias.
                return names | {
                    alias for model in listed.data for alias in getattr(model, "aliases", None) or ()
                }
            except (AttributeError, TypeError, ValueError, RecursionError):
                continue  # it answers with what is no list
        raise JudgeError(
            f"{self.base_url}/models answers, but not as an OpenAI-compatible server does; "
            f"is the path right? It usually ends in /v1"
        )

    def first_tokens(
        self,
        model: str,
        inputs: Sequence[str | Messages],
        *,
        top: int,
        max_tokens: int = 1,
        description: str = "asking",
        checking: bool = False,
    ) -> list[Reply | NoReply]:
        """The replies' first tokens, at temperature 0, in the order of `inputs`.

        Args:
            model: the model's name.
            inputs: prompts to be completed (text), or chats (messages).
            top: how many of the likeliest first tokens to ask for; 0 (chats only): none.
            max_tokens: how much of the reply's text to ask for.
            description: what the progress bar says.
            checking: whether this only finds out what the server can do; it is not asked so often then.

        Returns:
            What came; `NoReply` where the server refused a request, or gave no reply however often asked.

        Raises:
            JudgeError: the server is gone, refuses the key or the model, is still too busy after every
                retry, or gives no replies any more. Those that had come are kept, and are not asked for
                again.
            StorageError: the disk does not take a reply.
        """
        requests = [_request(model, one, top, max_tokens) for one in inputs]
        keys = [self._digest(request) for request in requests]
        store = Store(self._cache / self._file(model))
        # What an earlier version kept although it is of no use is asked for again.
        known = {key: reply for key, reply in store.read().items() if unusable(reply, top) is None}
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
        with self._lock:
            self._usage.from_cache += sum(key in known for key in keys)
        results: dict[str, Reply | NoReply] = {key: known[key] for key in set(keys) & known.keys()}
        if missing:
            connection = self._connection()
            with store:
                asking = _Asking(store, top, min(self._max_retries, _CHECK_RETRIES) if checking else None)
                results |= _run(self._ask_all(connection, missing, asking, description))
        return [results[key] for key in keys]

    def usage(self) -> Counts:
        """Requests that were answered, further tries, replies from disk, and the tokens that requests cost.

        `uncounted` are replies of which the server did not say how many tokens they took.
        """
        with self._lock:
            return replace(self._usage)

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
        self, connection: _Connection, missing: Mapping[str, _Request], asking: _Asking, description: str
    ) -> dict[str, Reply | NoReply]:
        import openai

        results: dict[str, Reply | NoReply] = {}
        remaining = iter(track(list(missing.items()), description))

        async def work() -> None:
            for key, request in remaining:  # shared: every request is taken by one worker
                reply = results[key] = await self._ask(client, request, asking)
                if isinstance(reply, Reply):
                    asking.store.add(key, reply)

        async with openai.AsyncOpenAI(**connection) as client:
            # The first failure ends them all: `asyncio.run` cancels what is still under way.
            await asyncio.gather(*(work() for _ in range(min(self._concurrency, len(missing)))))
        return results

    async def _ask(self, client: openai.AsyncOpenAI, request: _Request, asking: _Asking) -> Reply | NoReply:
        """One reply, asked for again as long as what comes is none and tries are left."""
        import openai

        left = self._max_retries if asking.retries is None else asking.retries
        for tries in itertools.count():
            client = client if client.max_retries == left else client.with_options(max_retries=left)
            api = client.chat.completions if request.chat else client.completions
            create: Any = api.with_raw_response.create
            try:
                raw = await create(**request.body)
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                return NoReply(f"the server refused the request: {self._said(error)}", refused=True)
            except openai.OpenAIError as error:
                raise self.failure(error) from None
            read = read_reply(raw.text, asking.top)
            left -= raw.retries_taken
            self._count(raw, read)
            if isinstance(read, Reply):
                self._in_vain = 0
                return read
            if left <= 0:
                return self._came_to_nothing(read)
            left -= 1
            with self._lock:
                self._usage.retries += 1
            await asyncio.sleep(_pause(raw.headers, tries))
        raise RuntimeError("tries are counted down")

    def _came_to_nothing(self, reply: NoReply) -> NoReply:
        """What is said of a request without a reply, unless nothing else comes any more."""
        reply = NoReply(self._shown(reply.reason), reply.no_log_probs)
        self._in_vain += 1
        if self._in_vain >= _BROKEN:
            raise JudgeError(
                f"{self.base_url}: {self._in_vain} requests in a row came to nothing, however often asked: "
                f"{reply.reason}; replies that had come are kept, so run the same command when it works again"
            )
        return reply

    def _count(self, raw: Any, reply: Reply | NoReply) -> None:
        """Counts a try; what was no reply may have cost tokens, too."""
        try:
            counts = json.loads(raw.text)["usage"]
            asked, answered = counts["prompt_tokens"], counts.get("completion_tokens") or 0
            known = isinstance(asked, int) and isinstance(answered, int)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            known = False
        with self._lock:
            self._usage.retries += raw.retries_taken
            if isinstance(reply, Reply):
                self._usage.requests += 1
                self._usage.uncounted += not known
            if known:
                self._usage.prompt_tokens += asked
                self._usage.completion_tokens += answered

    def _said(self, error: openai.OpenAIError) -> str:
        """What the server said, or why nothing came; a server may repeat the key that it refuses."""
        body = getattr(error, "body", None)
        said = body.get("message") if isinstance(body, dict) else None
        cause = error.__cause__
        text = " ".join(str(said or (cause if cause is not None and str(cause) else error)).split())
        status = getattr(error, "status_code", None)
        return self._shown(f"{status} {text}" if status and not text.startswith(str(status)) else text)

    def _shown(self, text: str) -> str:
        """Without the key and the URL's password, and not too long."""
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


def _run(work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a coroutine, also where an event loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


def _pause(headers: Mapping[str, str], tries: int) -> float:
    """Seconds before the next try: what the server asks for, else growing, and not all at the same time."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            asked = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if 0 <= asked <= 60:
            return asked
    return min(_FIRST_PAUSE * 2.0**tries, _LONGEST_PAUSE) * (1 - random.random() / 4)


def _request(model: str, one: str | Messages, top: int, max_tokens: int) -> _Request:
    body: _Body = {"model": model, "max_tokens": max_tokens, "temperature": 0}
    if isinstance(one, str):
        return _Request(False, {**body, "prompt": one, "logprobs": top})
    if top:
        body = {**body, "logprobs": True, "top_logprobs": top}
    return _Request(True, {**body, "messages": [dict(message) for message in one]})
