"""What can go wrong on the way to the Hub, each as one line that names the repository and what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from subvene.specs import SubveneError


class HubError(SubveneError):
    """The Hub, or the way to it, refused; the message names the repository and what to do."""


def check_repo_id(repo_id: str) -> None:
    """Check that this is `user/name` as the Hub allows it.

    Raises:
        HubError: it is not.
    """
    if not is_repo_id(repo_id):
        raise HubError(
            f"{repo_id!r} is no repository of the Hub: expected user/name (letters, digits, '-', '_' and '.')"
        )


def is_repo_id(name: str) -> bool:
    """Whether this is `user/name` as the Hub allows it."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"


@contextlib.contextmanager
def explained(repo_id: str, done: str, revision: str | None) -> Iterator[None]:
    """Everything that the library raises as one line: the repository, what happened, what to do."""
    try:
        yield
    except SubveneError:
        raise
    # RuntimeError and ValueError: the library's uploads end in either, around what really happened.
    except _RAISED as error:
        raise HubError(_reason(_root(error), repo_id, done, revision)) from error


def _network_errors() -> tuple[type[Exception], ...]:
    """The base of the errors of the library's HTTP client, another package from version to version."""
    return tuple(base for base in HfHubHTTPError.__bases__ if base.__module__.startswith("httpx"))


def _root(error: BaseException) -> BaseException:
    """What really happened, below the library's "error while uploading" and "not found locally"."""
    while isinstance(error, RuntimeError | LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _reason(error: BaseException, repo_id: str, done: str, revision: str | None) -> str:
    pushing = done == "pushed"
    if isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        if pushing:
            return f"{repo_id} cannot be pushed offline; unset HF_HUB_OFFLINE"
        return (
            f"{repo_id}{_at(revision)} is not in the Hub's cache ({constants.HF_HUB_CACHE}), or not all of "
            "it, and HF_HUB_OFFLINE forbids to download it; do so once without it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no branch, tag or commit {revision!r}"
    if isinstance(error, GatedRepoError):
        return f"{repo_id} is gated: ask for access at {constants.ENDPOINT}/{repo_id}, and {_LOG_IN}"
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
    if isinstance(error, RepositoryNotFoundError) and not pushing:
        return (
            f"there is no repository {repo_id}, or it is private and you may not read it; check the name, or "
            f"{_LOG_IN} of an account that may"
        )
    if status in (401, 403) or isinstance(error, RepositoryNotFoundError):
        may = "write to" if pushing else "read"
        return f"the Hub does not let you {may} {repo_id} ({_said(error)}); {_LOG_IN} with that permission"
    if status == 412:
        return f"{repo_id} was changed by somebody else during the push, which was given up; push again"
    again = "push again: what arrived is not sent twice" if pushing else "try again"
    if status is not None:
        advice = again if status >= 500 or status == 429 else "see the Hub's own words"
        return f"{repo_id} cannot be {done}: the Hub answers {status} ({_said(error)}); {advice}"
    if type(error).__name__ in ("ConnectError", "ConnectTimeout"):
        return f"{repo_id} cannot be {done}: no connection to {constants.ENDPOINT} ({_said(error)}); {again}"
    if isinstance(error, _network_errors()):
        return f"{repo_id}: the connection broke before all was {done} ({_said(error)}); {again}"
    return f"{repo_id} cannot be {done}: {_said(error)}"


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _said(error: BaseException) -> str:
    """The error's own words on one line, the Hub's alone where it sent any."""
    text = getattr(error, "server_message", None) or str(error) or type(error).__name__
    return " ".join(text.split())


_RAISED: tuple[type[Exception], ...] = (OSError, RuntimeError, ValueError, *_network_errors())
