"""The two answers of a screen, streamed side by side, with receipts and every token's projections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import torch
from pydantic import JsonValue

from subvene.runner.data.span import Text
from subvene.runner.data.text import prompt_ids
from subvene.runner.engines.admission import Wishes
from subvene.runner.engines.in_process import Answers, InProcess, Sampling
from subvene.runner.engines.playground.screen import BASELINE, STEERED, Screen, Shown, steering
from subvene.runner.engines.playground.vectors import Named, by_key, vectors_of
from subvene.runner.files.printable import on_screen
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.generation import answer_ends
from subvene.runner.monitor.projection import TokenProjections, token_projections
from subvene.specs import SubveneError

Read = Literal["text", "before", "after"]
"""How a token is read: its text by the untouched model, or in the run, before or after the edits there."""


class Piece(TypedDict):
    """Text of an answer as it comes."""

    arm: str
    text: str


class Done(TypedDict):
    """An answer's end.

    Attributes:
        arm: whose.
        finished: `stop` or `length`.
        tokens: the text token by token.
        receipt: what each intervention did.
    """

    arm: str
    finished: str
    tokens: list[str]
    receipt: list[dict[str, JsonValue]]


class Failed(TypedDict):
    """Why an answer, or the projections, could not be had."""

    arm: str
    error: str


class Column(TypedDict):
    """The projections of every token of both answers on one vector; of each way of reading, by arm."""

    artifact: str
    key: str
    layer: int
    text: dict[str, list[float]]
    before: dict[str, list[float]]
    after: dict[str, list[float]]


class Coloured(TypedDict):
    """The projections of both answers."""

    projections: list[Column]


Tell = Callable[[Piece | Done | Failed | Coloured], None]


@dataclass(frozen=True)
class _Arm:
    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    @property
    def text(self) -> Text:
        """What is read of it."""
        whole = self.prompt + self.answer
        return Text(whole, len(self.prompt), len(whole))


def answer(engine: InProcess, screen: Screen, shown: Mapping[str, Shown], tell: Tell) -> None:
    """Answer a screen with and without its artifacts, greedily, both in one batch.

    Args:
        engine: the model.
        screen: what is asked; without artifacts there is the untouched answer alone.
        shown: the artifacts, by name.
        tell: is given everything as it comes, from several threads.

    Raises:
        SubveneError: it cannot be asked; nothing has run.
        ConnectionError: of `tell`.
    """
    if screen.artifacts:
        steering(screen, shown)
    arms = {BASELINE: Wishes(artifacts=())} | ({STEERED: screen.wishes} if screen.artifacts else {})
    with ThreadPoolExecutor(len(arms)) as pool:
        asked = {arm: pool.submit(_one, engine, screen, arm, wishes, tell) for arm, wishes in arms.items()}
    answers = {arm: future.result() for arm, future in asked.items()}
    given = {arm: tuple(found.ids[0]) for arm, found in answers.items() if found is not None}
    if not screen.artifacts or len(given) < len(arms):
        return
    vectors = [one for wish in screen.artifacts for one in vectors_of(wish.artifact, shown[wish.artifact].m)]
    if not vectors:
        return
    prompt = tuple(_prompt(engine, screen))
    try:
        tell({"projections": _projected(engine, screen, shown, prompt, given, vectors)})
    except SubveneError as error:
        tell({"arm": STEERED, "error": f"no projections: {error}"})


def _one(engine: InProcess, screen: Screen, arm: str, wishes: Wishes, tell: Tell) -> Answers | None:
    """An answer; None where it could not be had, which has been told."""
    sampling = Sampling(
        screen.max_new_tokens,
        temperature=0.0,
        top_p=1.0,
        seed=0,
        n=1,
        stop=(),
        stop_token_ids=tuple(sorted(answer_ends(engine.plain.model, engine.tokenizer))),
        measured=True,
    )
    try:
        found = engine.answer(
            _prompt(engine, screen),
            chat=False,
            wishes=wishes,
            sampling=sampling,
            write=lambda text: tell({"arm": arm, "text": on_screen(text)}),
        )
    except SubveneError as error:
        tell({"arm": arm, "error": str(error)})
        return None
    tokens = [on_screen(piece) for piece in pieces(engine.tokenizer, found.ids[0])]
    tell({"arm": arm, "finished": found.finished[0], "tokens": tokens, "receipt": found.receipt})
    return found


def _prompt(engine: InProcess, screen: Screen) -> list[int]:
    """As what is measured makes it: in the chat template, where there is one."""
    return list(prompt_ids(engine.tokenizer, screen.prompt, system=screen.system or None))


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text of each token, so that together they are the decoded text.

    The text of a character that several tokens make is the last one's.
    """
    written, found = "", []
    for i in range(len(ids)):
        text = tokenizer.decode(ids[: i + 1], skip_special_tokens=True)
        whole = text.startswith(written) and (not text.endswith("\ufffd") or i == len(ids) - 1)
        found.append(text[len(written) :] if whole else "")
        written = text if whole else written
    return found


def _projected(
    engine: InProcess,
    screen: Screen,
    shown: Mapping[str, Shown],
    prompt: tuple[int, ...],
    given: Mapping[str, tuple[int, ...]],
    vectors: Sequence[Named],
) -> list[Column]:
    """Both answers read again, teacher-forced, when nothing else runs on the model."""
    texts = {arm: _Arm(prompt, ids).text for arm, ids in given.items()}
    found: list[list[Column] | BaseException] = []

    def work() -> None:
        try:
            m = IntervenedModel.from_spec(
                steering(screen, shown), model=engine.plain.model, tokenizer=engine.tokenizer
            )
            on = by_key(vectors)
            plain = token_projections(m, list(texts.values()), on)
            edited = token_projections(m, [texts[STEERED]], on, edited=True)
            found.append([_column(one, list(texts), plain, edited) for one in vectors])
        except BaseException as error:
            found.append(error)

    engine.batcher.alone(work)
    if isinstance(found[0], BaseException):
        raise found[0]
    return found[0]


def _column(one: Named, arms: Sequence[str], plain: TokenProjections, edited: TokenProjections) -> Column:
    def values(of: Mapping[str, Mapping[int, Sequence[torch.Tensor]]], i: int) -> list[float]:
        return [round(float(value), 4) for value in of[one.label][one.layer][i]]

    text = {arm: values(plain.before, i) for i, arm in enumerate(arms)}
    return {
        "artifact": one.artifact,
        "key": one.key,
        "layer": one.layer,
        "text": text,
        "before": text | {STEERED: values(edited.before, 0)},
        "after": text | {STEERED: values(edited.after or edited.before, 0)},
    }
