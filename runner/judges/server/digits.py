"""Numbers that a server's model splits into digits, followed one by one.

Whether the model has whole numbers as tokens shows in the reply. If all numbers among the likeliest tokens
have one digit, in this reply and in the one to a request for 57, the digits are followed by further
requests, with the digits so far appended to the prompt (`form: completions`) or as the beginning of the
assistant's reply (`form: chat`; llama.cpp goes on with a reply that was begun, others may start another
one, which is found out by a question whose continuation is unmistakable). Beginnings below 1 % are not
followed, and numbers of two digits other than 10 are taken to be complete.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from subvene.runner.judges.base import JudgeError
from subvene.runner.judges.scales.numbers import Top, digit_by_digit, says_refusal, splits_numbers
from subvene.runner.judges.scales.zero_to_hundred import Score, as_completion
from subvene.runner.judges.server.client import Endpoint, Messages
from subvene.runner.judges.server.replies import NoReply, Reply

NO_DIGITS = (
    "splits numbers into digits, and the server does not go on with a reply that was begun, so that the "
    "digits cannot be followed; use `form: completions`, or a model with whole numbers as tokens"
)
_CHECKING = "checking the judge"
# A request more for every beginning that is at least so likely.
_FLOOR = 0.01
# Asked where a reply leaves it open whether 57 could be one token.
_NUMBER = "Write the number 57 and nothing else."
# Whoever goes on with this says a comma; nobody begins a reply with one.
_BEGUN = (
    {"role": "user", "content": "Count from 1 to 20 on one line, with commas."},
    {"role": "assistant", "content": "1, 2, 3, 4, 5, 6, 7, 8"},
)


class Digits:
    """What is known of how a server's models write numbers.

    Args:
        endpoint: the server.
        form: `completions` or `chat`.
        top: how many of the likeliest first tokens are asked for.
        length: how much of a reply's text is asked for.
    """

    def __init__(self, endpoint: Endpoint, form: str, top: int, length: int) -> None:
        self._endpoint, self._form, self._top, self._length = endpoint, form, top, length
        self._whole: dict[str, bool] = {}
        self._goes_on: dict[str, bool] = {}

    def input(self, prompt: str, begun: str) -> str | Messages:
        """A prompt that asks for a number, of which so much is written already."""
        if self._form == "completions":
            return as_completion(prompt) + begun
        messages = [{"role": "user", "content": prompt}]
        return [*messages, {"role": "assistant", "content": begun}] if begun else messages

    def split(self, model: str, reply: Reply) -> bool:
        """Whether the numbers in a reply are the first digits of longer ones."""
        if not splits_numbers(token for token, _ in reply.top):
            return False
        if model not in self._whole:
            (number,) = self._endpoint.first_tokens(
                model,
                [self.input(_NUMBER, "")],
                top=self._top,
                max_tokens=self._length,
                description=_CHECKING,
            )
            tokens = [token for token, _ in self._found_out(model, number).top]
            self._whole[model] = bool(tokens) and not splits_numbers(tokens)
        return not self._whole[model]

    def continues(self, model: str) -> bool:
        """Whether the server goes on with a reply that was begun."""
        if self._form == "completions":
            return True
        if model not in self._goes_on:
            (reply,) = self._endpoint.first_tokens(
                model, [_BEGUN], top=self._top, max_tokens=1, description=_CHECKING
            )
            # Some servers give back what was begun, too. One may also refuse a chat that ends so.
            refused = isinstance(reply, NoReply) and reply.refused
            said = "" if refused else self._found_out(model, reply).text.removeprefix(_BEGUN[1]["content"])
            self._goes_on[model] = said.lstrip().startswith(",")
        return self._goes_on[model]

    def follow(self, model: str, split: Sequence[tuple[str, Reply]], description: str) -> list[Score]:
        """The scores of prompts with their first replies; 11 to 99, and 100, are taken to be complete."""
        failed: dict[int, str] = {}

        def following(asked: list[tuple[int, tuple[str, ...]]]) -> list[Top]:
            if not asked[0][1]:
                return [probabilities(split[i][1]) for i, _ in asked]
            inputs = [self.input(split[i][0], "".join(path).strip()) for i, path in asked]
            replies = self._endpoint.first_tokens(
                model, inputs, top=self._top, max_tokens=1, description=description
            )
            tops: list[Top] = []
            for (i, _), reply in zip(asked, replies, strict=True):
                if isinstance(reply, NoReply):
                    failed[i] = reply.reason
                tops.append(probabilities(reply) if isinstance(reply, Reply) else ())
            return tops

        found = digit_by_digit(len(split), following, floor=_FLOOR, ends=False)
        return [
            Score(None, False, failed[j], missing=True)
            if j in failed
            else one.score(refused=says_refusal(split[j][1].text))
            for j, one in enumerate(found)
        ]

    def _found_out(self, model: str, reply: Reply | NoReply) -> Reply:
        """The reply to a question about the server itself: all scores depend on it, so that it must come."""
        if isinstance(reply, NoReply):
            raise JudgeError(
                f"{self._endpoint.base_url}: {model}: how it writes numbers could not be found out: "
                f"{reply.reason}; run the same command again, replies that had come are kept"
            )
        return reply


def probabilities(reply: Reply) -> Top:
    """A server may round a log-probability to above 0, or give none for what it did not compute."""
    return [(token, math.exp(min(value, 0.0))) for token, value in reply.top if not math.isnan(value)]
