"""The OpenAI judge: any server that speaks that protocol."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Gt
from pydantic import AllowInfNan, Field, Strict

from subvene.specs._fields import Count, Text
from subvene.specs._flaws import Expect
from subvene.specs.judges.base import BaseJudge

_Seconds = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number of seconds above 0")]


class OpenAIJudgeSpec(BaseJudge):
    """GPT-judge (Lin et al., 2022): fine-tuned completion models, or a chat model that is asked."""

    kind: Literal["openai"] = Field(default="openai", description="An OpenAI-compatible endpoint.")
    base_url: Text | None = Field(
        default=None,
        description="The endpoint, `http://…/v1`; left out: $OPENAI_BASE_URL, else OpenAI's own.",
    )
    api_key_env: Text = Field(
        default="OPENAI_API_KEY", description="The environment variable that holds the key."
    )
    form: Literal["completions", "chat"] = Field(
        default="completions",
        description="`completions` reads the probability of ` yes` after `Q: …\\nA: …\\nTrue:` (the format "
        "in which GPT-judge was fine-tuned); `chat` asks a chat model the same question in words.",
    )
    truth_model: Text = Field(description="The model that judges truth.")
    info_model: Text = Field(description="The model that judges informativeness; it may be the same one.")
    concurrency: Count = Field(default=8, description="Requests under way at a time.")
    max_retries: Count = Field(default=6, description="Further tries after 429, 5xx and timeouts.")
    timeout: _Seconds = Field(default=60.0, description="Seconds until a request counts as lost.")
