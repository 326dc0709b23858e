"""The OpenAI judge: any server that speaks that protocol."""

from typing import Annotated, Any, Literal, Self, cast

from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan, Field, Strict, model_validator

from subvene.specs._fields import SERVER_URL, Count, EnvironmentVariable, Index, Text
from subvene.specs._flaws import Expect, Flaw, refuse
from subvene.specs.judges.base import TwoModelJudge

_Seconds = Annotated[float, Strict(), Gt(0), AllowInfNan(False), Expect("a number of seconds above 0")]
_Price = Annotated[float, Strict(), Ge(0), AllowInfNan(False), Expect("a price >= 0 per million tokens")]
_Url = Annotated[
    str,
    SERVER_URL,
    Expect("the URL of an endpoint, such as `http://127.0.0.1:8080/v1`"),
]
_Top = Annotated[int, Strict(), Ge(0), Le(1000), Expect("an integer from 0 to 1000")]


class OpenAIJudgeSpec(TwoModelJudge):
    """GPT-judge (Lin et al., 2022): fine-tuned completion models, or a chat model that is asked."""

    kind: Literal["openai"] = Field(default="openai", description="An OpenAI-compatible endpoint.")
    base_url: _Url | None = Field(
        default=None,
        description="The endpoint, `http://…/v1`; left out: $OPENAI_BASE_URL, else OpenAI's own.",
    )
    api_key_env: EnvironmentVariable = Field(
        default="OPENAI_API_KEY",
        description="The environment variable that holds the key; a server on this machine needs none.",
    )
    form: Literal["completions", "chat"] = Field(
        default="completions",
        description="`completions` reads the probability of ` yes` after `Q: …\\nA: …\\nTrue:` (the format "
        "in which GPT-judge was fine-tuned); `chat` asks a chat model the same question in words.",
    )
    model: Text | None = Field(default=None, description="One model for everything that is judged.")
    truth_model: Text = Field(
        default=cast(Any, None),  # `_models` fills it in
        description="The model that judges truth (of persona vectors: the trait); left out: `model`.",
    )
    info_model: Text = Field(
        default=cast(Any, None),  # `_models` fills it in
        description="The model that judges informativeness (of persona vectors: coherence); left out: "
        "`model`.",
    )
    references: bool = Field(
        default=True,
        description="Show a chat model the question's true and false reference answers; false for a model "
        "that `subvene judge finetune` made, which was not shown any.",
    )
    top_logprobs: _Top | None = Field(
        default=None,
        description="Likeliest first tokens to ask for; left out: 5 for completions, 20 for chat. 0 (chat "
        "only) asks for none and reads the reply's text, for servers that give no log-probabilities.",
    )
    concurrency: Count = Field(default=8, description="Requests under way at a time.")
    max_retries: Index = Field(
        default=6,
        description="Further tries after 429, 5xx, timeouts, dropped connections, and replies with status "
        "200 that are no answer.",
    )
    timeout: _Seconds = Field(default=60.0, description="Seconds until a request counts as lost.")
    input_price: _Price | None = Field(
        default=None,
        description="Price per million prompt tokens; with `output_price`, the cost is reported.",
    )
    output_price: _Price | None = Field(default=None, description="Price per million reply tokens.")

    @model_validator(mode="after")
    def _readable(self) -> Self:
        if self.form == "completions" and self.top_logprobs == 0:
            expected = "an integer >= 1, since completions are read by their log-probabilities"
            refuse("OpenAIJudgeSpec", [Flaw(("top_logprobs",), expected, 0)])
        if (self.input_price is None) != (self.output_price is None):
            given = "input_price" if self.output_price is None else "output_price"
            expected = "`input_price` and `output_price` together"
            refuse("OpenAIJudgeSpec", [Flaw((given,), expected, None, found=f"{given} alone")])
        return self
