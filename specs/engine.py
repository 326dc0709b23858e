"""Engines: what generates the responses of an experiment, where this process does not."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from subvene.specs._base import SpecModel
from subvene.specs._fields import full_match
from subvene.specs._flaws import Expect

_Url = Annotated[
    str,
    full_match(r"https?://[^\s/?#@]+(/[^\s?#]*)?"),
    Expect("the URL of a running `subvene serve`, such as `http://127.0.0.1:8000/v1`"),
]
_Variable = Annotated[
    str, full_match(r"[A-Za-z_][A-Za-z0-9_]*"), Expect("the name of an environment variable, not a key")
]


class EngineSpec(SpecModel):
    """A running `subvene serve` that generates the responses."""

    expects: ClassVar[str] = "a mapping with `url`, that of a running `subvene serve`"

    url: _Url = Field(description="Of the server, such as `http://127.0.0.1:8000/v1`.")
    api_key_env: _Variable = Field(
        default="SUBVENE_API_KEY", description="The environment variable that holds the server's key, if any."
    )
