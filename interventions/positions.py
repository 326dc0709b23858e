"""Which tokens of a forward call are edited.

One definition for every code path (generation, chunked prefill, assisted decoding, scoring): a token is
judged by its absolute position in its own sequence, never by how many tokens the call carries. Where those
positions come from is the runner's business.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from pydantic import TypeAdapter

from subvene.specs import FirstTokens, LastTokens, Positions, TokenIndices
from subvene.specs import positions as specs_positions
from subvene.specs.positions import TEXT_POSITIONS

_T = TypeVar("_T")
_ADAPTER: TypeAdapter[Positions] = TypeAdapter(Positions)


def parse_positions(declared: object) -> Positions:
    """Validate a declared position rule (`"response"`, `{"first": 4, "of": "prompt"}`, …)."""
    return _ADAPTER.validate_python(declared)


@dataclass(frozen=True)
class Paired:
    """The tokens of a rule that have a partner in a source's run; of one edit in one run.

    Attributes:
        key: of the edit.
        rule: the declared one.
    """

    key: str
    rule: Positions


@dataclass(frozen=True)
class Gated:
    """The tokens of a rule at which a gate is open; of one intervention in one run.

    Attributes:
        name: of the intervention.
        rule: what selects the tokens that the gate is asked for.
    """

    name: str
    rule: Rule


Rule = Positions | Paired | Gated
"""What selects tokens: a declared rule, or what a run has made of one."""


def plain_positions(rule: Positions) -> str | dict[str, Any]:
    """A rule as JSON values, which `parse_positions` reads back."""
    return rule if isinstance(rule, str) else rule.model_dump(mode="json")


def names_text(rule: Positions) -> bool:
    """Whether the rule names tokens by their text, so that only a row's text says which they are."""
    return isinstance(rule, TEXT_POSITIONS)


def is_within_prompt(rule: Rule) -> bool:
    """Whether the rule can never select a token after the prompt."""
    while isinstance(rule, Paired | Gated):
        rule = rule.rule
    return specs_positions.is_within_prompt(rule)


def needs_prompt_length(rule: Positions) -> bool:
    """Whether the rule cannot be decided without knowing where the prompt ends."""
    return rule != "all"


def needs_length(rule: Positions) -> bool:
    """Whether the rule counts from the end of the response, which generation cannot know in advance."""
    if isinstance(rule, LastTokens):
        return rule.of == "response"
    return isinstance(rule, TokenIndices) and rule.of == "response" and min(rule.indices) < 0


class Tokens:
    """Where the tokens of one forward call stand in their sequences.

    `index` and `real` may be given as functions, which are called when somebody asks: a decoding step of
    which everything is known on the host computes neither.

    Args:
        index: Long[batch, tokens], the 0-based position of each token in its own sequence, padding excluded.
        real: Bool[batch, tokens], false on padding (and on what follows a finished row in generation).
        prompt_length: Long[batch], tokens in each row's prompt; None where nobody said.
        length: Long[batch], tokens in each whole sequence; None while it is still being generated.
        after_prompt: True if it is known on the host that every token here comes after the prompt, and right
            after the one before it.
        start: slot of the first token of this call in the padded rows (the cache's length before the call).
        tables: of rules that only a row's text or its source decides, Bool[batch, positions].
        shape: rows and tokens of the call; needed where `index` is a function.
        all_real: True if it is known on the host that no token here is padding or follows a finished row.
        run: what the calls of one run share (see `shared_by_run`); None where each call stands alone.
    """

    def __init__(
        self,
        index: torch.Tensor | Callable[[], torch.Tensor],
        real: torch.Tensor | Callable[[], torch.Tensor],
        prompt_length: torch.Tensor | None,
        length: torch.Tensor | None = None,
        after_prompt: bool = False,
        start: int = 0,
        tables: Mapping[Rule, torch.Tensor] | None = None,
        *,
        shape: tuple[int, int] | None = None,
        all_real: bool = False,
        run: dict[Hashable, Any] | None = None,
    ) -> None:
        self._index, self._real = index, real
        self.prompt_length, self.length = prompt_length, length
        self.after_prompt, self.start, self.all_real = after_prompt, start, all_real
        self.tables = {} if tables is None else tables
        if shape is None:
            rows, count = self.index.shape
            shape = rows, count
        self.shape = shape
        self._run = run
        self._shared: dict[Hashable, Any] = {}

    @property
    def index(self) -> torch.Tensor:
        """Long[batch, tokens], the position of each token in its own sequence."""
        if not isinstance(self._index, torch.Tensor):
            self._index = self._index()
        return self._index

    @property
    def real(self) -> torch.Tensor:
        """Bool[batch, tokens], false on padding."""
        if not isinstance(self._real, torch.Tensor):
            self._real = self._real()
        return self._real

    @property
    def device(self) -> torch.device:
        """Where its tensors are."""
        if self.prompt_length is not None and not isinstance(self._real, torch.Tensor):
            return self.prompt_length.device
        return self.real.device

    def selects_all(self, rule: Rule) -> bool:
        """Whether `rule` is known on the host to select every token here, without a look at a mask."""
        return self.all_real and self.after_prompt and rule in ("all", "response")

    def mask(self, rule: Rule, device: torch.device | None = None) -> torch.Tensor:
        """Bool[batch, tokens]: the tokens that `rule` selects, padding never among them."""
        device = device or self.real.device

        def selected() -> torch.Tensor:
            if self.after_prompt and rule in ("all", "response"):
                return self.real
            return _select(rule, self) & self.real

        return self.shared((rule, device), lambda: selected().to(device))

    def shared(self, key: Hashable, compute: Callable[[], _T]) -> _T:
        """What `compute` gives, once for all the interventions that ask for `key` in this forward call."""
        if key not in self._shared:
            self._shared[key] = compute()
        return cast(_T, self._shared[key])

    def shared_by_run(self, key: Hashable, compute: Callable[[], _T]) -> _T | None:
        """What `compute` gives, once for all the calls of this run; None where each call stands alone."""
        if self._run is None:
            return None
        if key not in self._run:
            self._run[key] = compute()
        return cast(_T, self._run[key])


def from_table(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """The entries of `table` [batch, positions] at `index` [batch, tokens]; 0 beyond what it holds."""
    table = torch.nn.functional.pad(table.to(index.device), (0, 1))
    return table.gather(1, index.clamp(0, table.shape[1] - 1))


def _select(rule: Rule, tokens: Tokens) -> torch.Tensor:
    index = tokens.index
    while isinstance(rule, Gated):
        if index.numel():
            raise ValueError(f"{rule.name}: where its gate is open is known only of what has been read")
        return _select(rule.rule, tokens)
    if (table := tokens.tables.get(rule)) is not None:
        return from_table(table, index)
    if isinstance(rule, (Paired, *TEXT_POSITIONS)):
        raise ValueError(f"positions {rule!r} need the rows' texts, and none were given")
    if rule == "all":
        return torch.ones_like(tokens.real)
    if tokens.prompt_length is None:
        raise ValueError(
            f"positions {rule!r} need the prompts' lengths, and none were given: pass "
            "prompt_lengths=[tokens of each row's prompt]"
        )
    prompt = tokens.prompt_length.unsqueeze(1)
    if isinstance(rule, str):
        match rule:
            case "prompt":
                return index < prompt
            case "response":
                return index >= prompt - 1
            case "last_prompt_token":
                return index == prompt - 1
    length = None if tokens.length is None else tokens.length.unsqueeze(1)
    if length is None and needs_length(rule):
        raise ValueError(
            f"positions {rule!r} count from the end of the response, which is not known while it is "
            "generated; use them in a teacher-forced pass only"
        )
    within = index < prompt if rule.of == "prompt" else index >= prompt
    first = torch.zeros_like(prompt) if rule.of == "prompt" else prompt
    # Without a length the rule counts from the beginning only, and the end is not looked at.
    end = prompt if rule.of == "prompt" or length is None else length
    if isinstance(rule, FirstTokens):
        return within & (index < first + rule.first)
    if isinstance(rule, LastTokens):
        return within & (index >= end - rule.last)
    selected = torch.zeros_like(tokens.real)
    for position in rule.indices:
        selected |= index == (first + position if position >= 0 else end + position)
    return within & selected


class FirstCallIsPrompt:
    """The documented fallback for stock pyvene, which tells an intervention nothing about positions.

    The first call is taken as the prompt (no padding, every token real); later calls of one token continue
    it; a later call of several tokens starts a new prompt. Chunked prefill, padding and one-token prompts
    after the first are therefore wrong here, and right under subvene's own runner.
    """

    def __init__(self) -> None:
        self.prompt_length = 0
        self.seen = 0

    def next(self, base: torch.Tensor) -> Tokens:
        """Positions of the next call, whose activation is `base` [batch, tokens, width]."""
        batch, count = base.shape[:2]
        if count > 1 or self.seen == 0:
            self.prompt_length, self.seen = count, 0
        index = torch.arange(self.seen, self.seen + count, device=base.device).expand(batch, count)
        self.seen += count
        return Tokens(
            index=index,
            real=torch.ones_like(index, dtype=torch.bool),
            prompt_length=torch.full((batch,), self.prompt_length, device=base.device),
            length=torch.full((batch,), self.seen, device=base.device),
            after_prompt=self.seen > self.prompt_length,
        )
