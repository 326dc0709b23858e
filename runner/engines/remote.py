"""A running server as the engine of an experiment: it generates, and is known to hold what is declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai

from subvene.runner.data.reasoning import answer_of
from subvene.runner.edits.not_finite import NotFiniteError
from subvene.runner.edits.receipt import InterventionReceipt, NotSteeredError, Receipt, merged
from subvene.runner.engines.batching import why_not_batched
from subvene.runner.engines.errors import EngineError
from subvene.runner.engines.fingerprints import does
from subvene.runner.engines.holdings import Held, client_of, holdings
from subvene.runner.files.json_value import Json
from subvene.runner.files.progress import track
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.rollouts import Rollout, Row
from subvene.runner.models.generation import answer_ends
from subvene.specs import EngineSpec

_AT_A_TIME = 32
_ERRORS = {error.__name__: error for error in (NotSteeredError, NotFiniteError)}


class Remote:
    """A server that holds the model of an experiment, found out when this is made.

    Args:
        spec: where it is.
        plain: the untouched model, as this process has it.
        hashes: of the model, as units hold them (`model`, `text`).
        folder: where tensor files that specs name are looked for.

    Raises:
        EngineError: it does not answer, does not say what it holds, or holds another model.
    """

    def __init__(
        self, spec: EngineSpec, plain: IntervenedModel, hashes: Mapping[str, Json], folder: Path
    ) -> None:
        self._folder, self.url = folder, spec.url
        self._client = client_of(spec)
        if (reason := why_not_batched(plain, [])) is not None:
            raise EngineError(
                f"engine: {self.url}: its answers would not be those of an experiment: {reason}; "
                "leave `engine` out"
            )
        self.held = holdings(spec)
        about = self.held.about
        if differ := [name for name in ("model", "text") if about.get(name) != hashes[name]]:
            raise EngineError(
                f"engine: {self.url} holds another model than `model:` declares (of other "
                f"{' and '.join(differ)}: weights, dtype, tokenizer or chat template); serve this one"
            )

    @property
    def identity(self) -> dict[str, Json]:
        """What units depend on: which engine it is, of which versions, wherever it runs."""
        return {"engine": {"server": self.held.about["engine"], "versions": self.held.about["versions"]}}

    def check(self, m: IntervenedModel) -> None:
        """Find out whether the server holds what a model's interventions do.

        Raises:
            EngineError: it does not.
        """
        if not m.is_disabled:
            self._held(m)

    def _held(self, m: IntervenedModel) -> Held:
        if any(isinstance(one.strength, tuple) for one in m.spec.interventions):
            raise EngineError(f"engine: {self.url}: one strength a row is declared; a request has one")
        what = does(m, self._folder)
        if (held := self.held.artifacts.get(what["sha256"])) is None:
            names = ", ".join(one.name for one in self.held.artifacts.values()) or "none"
            raise EngineError(
                f"engine: {self.url} holds no artifact that does what {', '.join(what['interventions'])} "
                f"here does (all but names and strengths has to be alike); "
                f"it holds: {names}. Save it as an artifact and serve that"
            )
        return held

    def rollouts(
        self, m: IntervenedModel, rows: Sequence[Row], *, batch_size: int = 64, description: str = "responses"
    ) -> tuple[list[Rollout], list[Receipt]]:
        """As `runner.intervened.rollouts.rollouts`, by the server; sampled tokens are other ones.

        Raises:
            EngineError: the server cannot do it, or is gone.
            NotSteeredError: a request was not steered as declared.
            NotFiniteError: of a request activations were not finite; `rows` says of which.
        """
        held = None if m.is_disabled else self._held(m)
        with ThreadPoolExecutor(min(_AT_A_TIME, batch_size)) as pool:
            asked = [pool.submit(self._ask, m, held, i, row) for i, row in enumerate(rows)]
            try:
                found = [one.result() for one in track(asked, description)]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        told = [receipt for _, receipt in found if receipt is not None]
        return [rollout for rollout, _ in found], _together(told)

    def _ask(self, m: IntervenedModel, held: Held | None, i: int, row: Row) -> tuple[Rollout, Receipt | None]:
        wishes = None if held is None else [{"artifact": held.name, "strengths": _strengths(m, held, row)}]
        try:
            answer = self._client.completions.create(
                model=self.held.base,
                prompt=list(row.prompt),
                max_tokens=row.max_new_tokens,
                temperature=row.temperature,
                top_p=row.top_p,
                seed=row.seed,
                extra_body={
                    "return_token_ids": True,
                    "stop_token_ids": sorted(answer_ends(m.model, m.tokenizer)),
                    "subvene": wishes,
                },
            )
        except openai.APIStatusError as error:
            raise self._meant(error, i) from error
        except openai.OpenAIError as error:
            raise EngineError(f"engine: {self.url}: {error}") from error
        choice = answer.choices[0]
        tokens = (choice.model_extra or {})["token_ids"]
        start, text = answer_of(m.tokenizer, row.prompt, tokens)
        rollout = Rollout(tuple(tokens), choice.finish_reason == "stop", start, text)
        return rollout, None if held is None else _receipt(
            m, (answer.model_extra or {})["subvene"]["receipt"]
        )

    def _meant(self, error: openai.APIStatusError, i: int) -> Exception:
        """The error that a request would have been in this process."""
        body = error.body if isinstance(error.body, dict) else {}
        kind, said = _ERRORS.get(str(body.get("type"))), str(body.get("message", error))
        if kind is NotFiniteError:
            return NotFiniteError(said, {i: said})
        return EngineError(f"engine: {self.url}: {said}") if kind is None else kind(said)


def _strengths(m: IntervenedModel, held: Held, row: Row) -> dict[str, float]:
    """By the server's names, what each intervention's strength is in a row."""
    found = {}
    for entry, theirs in zip(m.intervenable.entries, held.interventions, strict=True):
        own = float(m.intervenable.interventions[entry.keys[0]].strength)
        found[theirs] = own if row.strengths is None else float(row.strengths.get(entry.name, 0.0))
    return found


def _receipt(m: IntervenedModel, told: Sequence[Mapping[str, Any]]) -> Receipt:
    """A request's receipt, under this file's names."""
    return Receipt(
        tuple(
            InterventionReceipt(
                **{**one, "name": entry.name, "positions": declared.positions, "sites": tuple(one["sites"])}
            )
            for entry, declared, one in zip(m.intervenable.entries, m.spec.interventions, told, strict=True)
        )
    )


def _together(receipts: Sequence[Receipt]) -> list[Receipt]:
    """Receipts of requests as that of one batch, its strengths one a row unless they are all alike."""
    whole = []
    for receipt in merged(receipts, same_rows=False):
        for i, one in enumerate(receipt):
            strengths = [s for told in receipts for s in told[i].strengths]
            alike = strengths[:1] if len(set(strengths)) == 1 else strengths
            whole.append(replace(one, strengths=tuple(alike)))
    return [Receipt(tuple(whole))] if receipts else []
