"""Generated answers: greedy, up to the next `Q:`, on top of a prefix that is encoded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from subvene.interventions.positions import needs_length, plain_positions
from subvene.runner.data.reasoning import answer_of
from subvene.runner.data.text import by_length, pad, pad_id_of
from subvene.runner.data.truthfulqa.prompts import Prompts
from subvene.runner.data.truthfulqa.questions import Question
from subvene.runner.edits.positions import PositionError
from subvene.runner.edits.receipt import Receipt, check_together, merged
from subvene.runner.files.progress import track
from subvene.runner.intervened.decoding import Decoding, decode
from subvene.runner.intervened.generate import Generate
from subvene.runner.intervened.measured import measured_options
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.intervened.prefix import SharedPrefix, Strengths, why_not_shared
from subvene.runner.intervened.rollouts import Row
from subvene.runner.models.generation import answer_ends

log = logging.getLogger(__name__)

_NEXT = "Q:"


@torch.no_grad()
def answer_questions(
    m: IntervenedModel,
    prompts: Prompts,
    questions: Sequence[Question],
    *,
    max_new_tokens: int = 50,
    batch_size: int = 32,
    strengths: Strengths = None,
    generate: Generate | None = None,
) -> tuple[list[str], list[Receipt]]:
    """The model's greedy answers, as it is (edited, or disabled).

    An answer is what stands before the next `Q:`, or before the end of the turn, without the spaces around
    it; it may be empty. Greedy means the likeliest token at each step: what the model's generation config
    asks for beyond that (a repetition penalty, say) is left out, for every condition alike.

    Args:
        m: the model.
        prompts: what stands before a question.
        questions: the questions.
        max_new_tokens: longest answer, in tokens.
        batch_size: questions at a time.
        strengths: by intervention name, one number in place of the spec's.
        generate: an engine's, at the spec's strengths; None: this process.

    Returns:
        The answers in the order of the questions, and one receipt of all passes together (none for a
        disabled model). It counts what was edited: of an answer every token that the model was given, those
        of a `Q:` that ended it among them.

    Raises:
        PositionError: a rule counts from the end of the response, which is not known yet.
        NotSteeredError: an intervention acted on no question.
    """
    if not questions:
        return [], []
    _refuse_unknown_end(m)
    encoded = prompts.encode(m.tokenizer, [question.question for question in questions])
    rows = [list(prompt) for prompt in encoded.prompts]
    if generate is not None:
        return _by(generate, m, prompts, rows, max_new_tokens, batch_size)
    # A cache that is continued token by token is laid out as for scoring.
    reason = why_not_shared(m, encoded.shared, rows)
    prefix = None
    receipts: list[Receipt] = []
    if reason is None:
        prefix = SharedPrefix(m, encoded.shared, min(map(len, rows)), strengths)
        receipts += [] if prefix.receipt is None else [prefix.receipt]
    else:
        log.warning("answers are generated with the whole prompt in every batch: %s", reason)
    writer = _Writer(m, prompts, max_new_tokens, strengths)
    answers = [""] * len(questions)
    for chosen in track(by_length([len(row) for row in rows], batch_size), "answers"):
        batch = [rows[i] for i in chosen]
        written, receipt = writer.plainly(batch) if prefix is None else writer.after(prefix, batch)
        receipts += receipt
        for i, tokens in zip(chosen, written, strict=True):
            answers[i] = writer.text(rows[i], tokens)
    check_together(receipts)
    return answers, merged(receipts, same_rows=False)


def _by(
    generate: Generate,
    m: IntervenedModel,
    prompts: Prompts,
    rows: Sequence[Sequence[int]],
    max_new_tokens: int,
    batch_size: int,
) -> tuple[list[str], list[Receipt]]:
    """The answers that an engine generates."""
    writer = _Writer(m, prompts, max_new_tokens, None)
    asked = [
        Row(tuple(row), temperature=0.0, max_new_tokens=max_new_tokens, stop=writer.stop) for row in rows
    ]
    written, receipts = generate(m, asked, batch_size=batch_size, description="answers")
    return [writer.text(row, one.tokens) for row, one in zip(rows, written, strict=True)], receipts


class _Writer:
    """Writes the answers of one batch after the other."""

    def __init__(
        self, m: IntervenedModel, prompts: Prompts, max_new_tokens: int, strengths: Strengths
    ) -> None:
        self.m = m
        self.stop = None if prompts.is_chat else _NEXT
        self.max_new_tokens = max_new_tokens
        self.strengths = strengths
        self.pad_id = pad_id_of(m.tokenizer)
        self.ends = answer_ends(m.model, m.tokenizer)

    def text(self, prompt: Sequence[int], tokens: Sequence[int]) -> str:
        """What a row answers before the next `Q:`, without the spaces around it."""
        _, text = answer_of(self.m.tokenizer, prompt, tokens)
        return text if self.stop is None else text.split(self.stop)[0].strip()

    def after(self, prefix: SharedPrefix, rows: Sequence[list[int]]) -> tuple[list[list[int]], list[Receipt]]:
        """The tokens of each row's answer, and the receipt of the batch."""
        lengths = torch.tensor([len(row) for row in rows])
        batch = pad(rows, lengths.tolist(), self.pad_id, "left")
        decoding = Decoding(
            cache=prefix.fork((batch.attention_mask.shape[1] - lengths).tolist(), room=self.max_new_tokens),
            input_ids=batch.input_ids[:, prefix.length :],
            attention_mask=batch.attention_mask,
            prompt_lengths=lengths,
            pad_id=self.pad_id,
        )
        return decode(
            self.m,
            decoding,
            strengths=self.strengths,
            max_new_tokens=[self.max_new_tokens] * len(rows),
            choose=lambda logits, rows, step: logits.argmax(-1),
            has_ended=lambda row, tokens: self._has_ended(tokens),
        )

    def plainly(self, rows: Sequence[list[int]]) -> tuple[list[list[int]], list[Receipt]]:
        """As `after`, for a model whose cache cannot be forked, by its own `generate`."""
        batch = pad(rows, [len(row) for row in rows], self.pad_id, "left")
        stop = {} if self.stop is None else {"stop_strings": [self.stop], "tokenizer": self.m.tokenizer}
        sequences = self.m.generate_ids(
            batch.input_ids,
            batch.attention_mask,
            strengths=self.strengths,
            max_new_tokens=self.max_new_tokens,
            eos_token_id=sorted(self.ends) or None,
            pad_token_id=self.pad_id,
            **measured_options(self.m.model, **stop),
        )
        written = sequences[:, batch.input_ids.shape[1] :].tolist()
        receipt = None if self.m.is_disabled else self.m.receipt
        return written, [] if receipt is None else [receipt]

    def _has_ended(self, tokens: list[int]) -> bool:
        if tokens[-1] in self.ends:
            tokens.pop()
            return True
        return self.stop is not None and self.stop in self.m.tokenizer.decode(tokens)


def _refuse_unknown_end(m: IntervenedModel) -> None:
    if m.is_disabled:
        return
    for entry in m.intervenable.entries:
        rule = m.intervenable.interventions[entry.keys[0]].positions
        if needs_length(rule):
            raise PositionError(
                f"{entry.name}: positions {plain_positions(rule)} count from the end of the response, which "
                "generation does not know; they work in multiple choice only"
            )
