"""What an intervened model does: text in and text out, passes, and calls by others.

How it is made, saved and shared is the business of `model`.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import torch
from pydantic import JsonValue

from subvene.interventions import ActivationIntervention
from subvene.runner.data.limits import refuse_batch_beyond_context, refuse_generation_beyond_context
from subvene.runner.data.prompts import as_prompts
from subvene.runner.data.text import Messages, TextError, pad, pad_id_of, prompt_ids, turn_cursors
from subvene.runner.edits.cache_record import refuse_edited
from subvene.runner.edits.copying import NotPickled
from subvene.runner.edits.forward_call import ForwardCall
from subvene.runner.edits.generation_inputs import with_mask
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.edits.positions import prompt_lengths_of
from subvene.runner.edits.pyvene_calls import refuse_unknown_inputs
from subvene.runner.edits.receipt import Receipt
from subvene.runner.edits.refusals import refuse_no_generation
from subvene.runner.edits.scopes import is_exempt
from subvene.runner.edits.source_runs import Rendering
from subvene.runner.edits.sources import SourceGiven
from subvene.runner.edits.strengths import Strength
from subvene.runner.edits.text_positions import DataRow
from subvene.runner.edits.whole_tensor import WholeTensorModel
from subvene.runner.intervened.attached import PromptLengths, attached
from subvene.runner.models.devices import input_device
from subvene.runner.models.generation import Settings
from subvene.runner.models.vocabulary import refuse_without_row


class Calls(NotPickled):
    """The ways to run a model with declared interventions.

    Attributes:
        model: the plain transformers model.
        tokenizer: its tokenizer, or None.
        intervenable: what edits it while it runs.
    """

    model: Any
    tokenizer: Any
    intervenable: IntervenableModel
    _is_plain: bool

    @property
    def receipt(self) -> Receipt | None:
        """What each intervention did in the last run; None before the first, and after a disabled one.

        A thread sees its own last run, or a later one of a thread that has ended since.
        """
        return self.intervenable.receipt

    @property
    def is_disabled(self) -> bool:
        """Whether this thread or task is inside `disabled()`."""
        return self._is_plain or is_exempt(self.intervenable)

    def generate(
        self,
        prompts: str | Messages | Sequence[str | Messages],
        *,
        system: str | None = None,
        chat: bool | None = None,
        strengths: Mapping[str, Strength] | Strength | None = None,
        prompt_lengths: Sequence[int] | torch.Tensor | None = None,
        seed: int | None = None,
        chat_template_kwargs: Mapping[str, JsonValue] | None = None,
        rows: Sequence[DataRow] | None = None,
        sources: Mapping[str, SourceGiven] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Answer prompts in one batch.

        Args:
            prompts: a user's turn (put into the chat template if the tokenizer has one), a conversation (a
                list of messages), or a list of these.
            system: a system prompt for every string prompt.
            chat: False for raw text, True to insist on the template.
            strengths: replaces the spec's strengths for this call: by intervention name, or one value if
                there is one intervention; each a number, or one per prompt (0: that row is unedited).
            chat_template_kwargs: variables of the chat template for this call (`{"enable_thinking": False}`),
                beside those that the spec's `model:` declares.
            prompt_lengths: as for `generate_ids`.
            seed: of the sampling; the global random state is left as it was.
            rows: the columns of the data of each prompt, by name: the texts of `{field: …}` positions, and
                of sources that are columns.
            sources: what takes the place of declared sources, by name: a text, one for each prompt, or token
                ids (`{"input_ids": …, "attention_mask": …}`).
            **kwargs: any keyword of transformers' `generate` (`max_new_tokens`, `do_sample`, `streamer`,
                `stop_strings`, …).

        Returns:
            The responses, without special tokens, one per prompt (times `num_return_sequences`).

        Raises:
            TextError: a prompt is none.
            TooLongError: a prompt and what is to follow are longer than the model's context.
            TokenError: a prompt spells a special token that the model has no row for.
            NotSteeredError: an intervention that should have acted did not.
            NotFiniteError: activations or logits are not finite. `rows` says in which rows; of a batch of
                several strengths the others can be generated again without them.
        """
        if not isinstance(self.intervenable, WholeTensorModel):
            refuse_no_generation(self.model)
        if self.tokenizer is None:
            raise ValueError(
                "generate needs a tokenizer for text: pass one to from_spec, or use generate_ids"
            )
        for name in ("input_ids", "inputs", "inputs_embeds", "attention_mask"):
            if name in kwargs:
                raise TextError(f"generate takes texts, not {name}: generate_ids(input_ids, mask) takes ids")
        options: Rendering = {"system": system, "chat": chat, "chat_template_kwargs": chat_template_kwargs}
        given = as_prompts(prompts)
        texts = [prompt_ids(self.tokenizer, prompt, **options) for prompt in given]
        if not texts:
            return []
        if any(edit.gating is not None and edit.gating.is_by_turn for edit in self._edits):
            kwargs["turns"] = [
                turn_cursors(self.tokenizer, *one, **options) for one in zip(given, texts, strict=True)
            ]
        kwargs.setdefault("pad_token_id", pad_id_of(self.tokenizer))
        batch = pad(texts, [len(text) for text in texts], pad_id_of(self.tokenizer), "left")
        output = self.generate_ids(
            batch.input_ids,
            batch.attention_mask,
            strengths=strengths,
            prompt_lengths=prompt_lengths,
            seed=seed,
            rows=rows,
            sources=sources,
            rendering=options,
            **kwargs,
        )
        sequences = output if isinstance(output, torch.Tensor) else output.sequences
        return self.tokenizer.batch_decode(sequences[:, batch.input_ids.shape[1] :], skip_special_tokens=True)

    def generate_ids(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        strengths: Mapping[str, Strength] | Strength | None = None,
        prompt_lengths: Sequence[int] | torch.Tensor | None = None,
        seed: int | None = None,
        rows: Sequence[DataRow] | None = None,
        sources: Mapping[str, SourceGiven] | None = None,
        rendering: Rendering | None = None,
        turns: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `generate`, for token ids [batch, tokens] padded on the left; returns what the model's does.

        Args:
            input_ids: the prompts, perhaps with the beginning of their responses.
            attention_mask: 1 on real tokens; all real if None, and then no row of a batch may hold padding.
            strengths: as for `generate`.
            prompt_lengths: [batch], real tokens of each row that are prompt. What follows them is response
                already and is edited as such, so that going on is the same as one long generation. None: all.
            seed: as for `generate`.
            rows: as for `generate`.
            sources: as for `generate`.
            rendering: how the prompts were made, for sources that are texts (`system`, `chat`,
                `chat_template_kwargs`).
            turns: of each row the 0-based positions of the cursors of the assistant's turns, the last token
                before each, for gates that are decided at every turn (`decide: turn`).
            **kwargs: any keyword of transformers' `generate`.

        Raises:
            PositionError: it cannot be told where a token stands.
            CacheError: a cache among `kwargs` was filled otherwise than this run would have filled it.
            TooLongError: a row and what is to follow are longer than the model's context.
            TokenError: the model has no row for one of the tokens.
            NotSteeredError: an intervention that should have acted did not.
            NotFiniteError: as for `generate`.
        """
        if isinstance(self.intervenable, WholeTensorModel) and not self.is_disabled:
            self.intervenable.generate()
        refuse_no_generation(self.model)
        device = input_device(self.model)
        input_ids = torch.as_tensor(input_ids)
        refuse_without_row(self.model, input_ids, self.tokenizer)
        given = {"input_ids": input_ids}
        if attention_mask is not None:
            given["attention_mask"] = attention_mask
        settings = Settings(self.model, **kwargs)
        base = {name: value.to(device) for name, value in with_mask(given, settings).items()}
        refuse_generation_beyond_context(base, settings)
        if kwargs.get("stop_strings") is not None:
            kwargs.setdefault("tokenizer", self.tokenizer)
        lengths = self._prompt_lengths(prompt_lengths, ForwardCall.of(**base))
        with _seeded(seed):
            if self.is_disabled:
                return self._untouched(self.model.generate, **base, **kwargs)
            kwargs |= {"rows": rows, "sources": sources, "rendering": rendering, "turns": turns}
            return self.intervenable.generate(
                base, strengths=self._named(strengths), prompt_lengths=lengths, **kwargs
            )[1]

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        prompt_lengths: Sequence[int] | torch.Tensor | None = None,
        strengths: Mapping[str, Strength] | Strength | None = None,
        must_act: bool = True,
        rows: Sequence[DataRow] | None = None,
        sources: Mapping[str, SourceGiven] | None = None,
        rendering: Rendering | None = None,
        turns: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """A teacher-forced pass: the model's own output, edited at the tokens that generation would edit.

        Args:
            input_ids: [batch, tokens], prompt followed by response, padded on either side.
            attention_mask: [batch, tokens], 1 on real tokens; all real if None.
            prompt_lengths: [batch], real tokens of each row that are prompt; needed by every position rule
                except `all`.
            strengths: as for `generate`.
            must_act: False for a caller who checks the receipts of several calls together.
            rows: as for `generate`.
            sources: as for `generate`.
            rendering: as for `generate_ids`.
            turns: as for `generate_ids`.
            **kwargs: further arguments of the model's forward (`labels`, `logits_to_keep`, …); on
                a model that is no decoder language model all of them, the first being its main input.

        Raises:
            PositionError: a position rule cannot be decided.
            CacheError: `past_key_values` was filled otherwise than this run would have filled it.
            TooLongError: a row has more tokens than the model reads.
            TokenError: the model has no row for one of the tokens.
            NotSteeredError: an intervention that should have acted did not.
            NotFiniteError: activations or logits of real tokens are not finite.
        """
        if isinstance(self.intervenable, WholeTensorModel):
            inputs = {"attention_mask": attention_mask, **kwargs}
            if self.is_disabled:
                return self.intervenable.call_plain(input_ids, inputs)
            options = {"strengths": self._named(strengths), "must_act": must_act, "sources": sources}
            return self.intervenable.call(input_ids, inputs, prompt_lengths=prompt_lengths, **options)
        if not isinstance(input_ids, torch.Tensor):
            raise TextError(
                f"a call takes token ids [batch, tokens] as a tensor, found {input_ids!r:.60}; for text use "
                "generate, or the tokenizer with return_tensors='pt'"
            )
        refuse_unknown_inputs(self.model, kwargs)
        refuse_without_row(self.model, input_ids, self.tokenizer)
        device = input_device(self.model)
        before = ForwardCall.of(**kwargs).held
        refuse_batch_beyond_context(self.model, input_ids, attention_mask, before=before)
        base = kwargs | {"input_ids": input_ids.to(device)}
        if attention_mask is not None:
            base["attention_mask"] = attention_mask.to(device)
            ids = self.position_ids(base["attention_mask"], input_ids.shape[1])
            if ids is not None:
                base.setdefault("position_ids", ids)
        lengths = self._prompt_lengths(prompt_lengths, ForwardCall.of(**base))
        if self.is_disabled:
            return self._untouched(self.model, **base)
        return self.intervenable(
            base,
            prompt_lengths=lengths,
            strengths=self._named(strengths),
            must_act=must_act,
            rows=rows,
            sources=sources,
            rendering=rendering,
            turns=turns,
        )[1]

    @contextlib.contextmanager
    def attached(
        self,
        *,
        prompt_lengths: PromptLengths | None = None,
        strengths: Mapping[str, Strength] | Strength | None = None,
    ) -> Iterator[Any]:
        """The plain model, edited for whoever calls it: a pipeline, an evaluation harness, a training loop.

            with m.attached() as model:
                pipeline("text-generation", model=model, tokenizer=m.tokenizer)(prompts)
            m.receipt

        `model.generate` knows where its prompts end. A forward call without a cache is a sequence of its own,
        and one that goes on with the cache of an earlier one continues that. Calls by other threads are
        refused (`m.generate` there is a run of its own). The receipt is of all calls together.

        Args:
            prompt_lengths: where prompts end in forward calls that are no part of `model.generate`, and in
                `generate` too where it is given: [batch], or a function of (input_ids, attention_mask). With
                None every position rule except `all` refuses such calls.
            strengths: as for `generate`, for every call.

        Raises:
            PositionError: it cannot be told where a token of a call stands; at that call, and on leaving.
            NotSteeredError: on leaving, if an intervention that should have acted did not.
            ConcurrentRunError: another IntervenedModel is attached to this base model here.
        """
        if isinstance(self.intervenable, WholeTensorModel):
            self.intervenable.attached()
        if self.is_disabled:
            with self.intervenable.suspended():
                self.intervenable.leave()
                yield self.model
            return
        with attached(self.intervenable, prompt_lengths, self._named(strengths)) as model:
            yield model

    @contextlib.contextmanager
    def disabled(self) -> Iterator[Self]:
        """The same methods without any edit, for a baseline; may be nested.

        For this thread or task alone, and what it calls: a run in another thread goes on as it was. A thread
        that is started inside begins outside; let it enter `disabled()` itself.
        """
        # Also where a run is under way (`attached`): its hooks leave these calls alone.
        with self.intervenable.suspended():
            yield self

    @property
    def _edits(self) -> list[ActivationIntervention]:
        return [] if self.is_disabled else list(self.intervenable.interventions.values())

    def _untouched(self, run: Callable[..., Any], **base: Any) -> Any:
        """A disabled run, which leaves no receipt, rather than that of the run before."""
        refuse_edited(base.get("past_key_values"))
        self.intervenable.leave()
        with self.intervenable.suspended():
            return run(**base)

    def _prompt_lengths(self, lengths: Any, call: ForwardCall) -> torch.Tensor | None:
        if lengths is None:
            return None
        return prompt_lengths_of(lengths, call)

    def _named(self, strengths: Any) -> Mapping[str, Strength] | None:
        if strengths is None or isinstance(strengths, Mapping):
            return strengths
        entries = self.intervenable.entries
        if len(entries) != 1:
            names = ", ".join(entry.name for entry in entries)
            raise ValueError(f"there are several interventions, so strengths must be by name: {{{names}}}")
        return {entries[0].name: strengths}

    def position_ids(self, mask: torch.Tensor, count: int) -> torch.Tensor | None:
        """Position ids that skip padding, as `generate` makes them, for models that take them."""
        if mask.ndim != 2 or "position_ids" not in inspect.signature(self.model.forward).parameters:
            return None
        return (mask.long().cumsum(1) - 1).clamp_min(0)[:, -count:]


@contextlib.contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
