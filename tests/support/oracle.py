"""What the tests of positions know by themselves: tiny models, which tokens a rule names, edits by hand.

Nothing here asks subvene where a token stands. A row is run alone, unpadded and uncached, and a plain forward
hook edits the tokens that `selected` names one by one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from subvene.runner.edits.positions import TokenTracker
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec

LAYERS, WIDTH, HEADS, VOCAB, PAD = 3, 32, 4, 100, 0
MIDDLE = 1  # the block that is edited; the block after it still mixes tokens

# One prompt of a single token, and lengths that differ: every row of a batch has its own padding.
PROMPTS = ([11, 12, 13, 14, 15, 16, 17], [21, 22, 23, 24], [31])

LENGTHS = [len(prompt) for prompt in PROMPTS]
NEW = 6  # tokens of a response

RULES: dict[str, Any] = {
    "all": "all",
    "prompt": "prompt",
    "response": "response",
    "last_prompt_token": "last_prompt_token",
    "first_of_prompt": {"first": 3, "of": "prompt"},
    "last_of_prompt": {"last": 2, "of": "prompt"},
    "indices_of_prompt": {"indices": [0, -1], "of": "prompt"},
    "first_of_response": {"first": 2, "of": "response"},
    "indices_of_response": {"indices": [0, 3], "of": "response"},
}
FROM_THE_END: dict[str, Any] = {
    "last_of_response": {"last": 2, "of": "response"},
    "indices_from_the_end": {"indices": [1, -1], "of": "response"},
}

both_models = pytest.mark.parametrize("name", ["llama", "gpt2"])
every_model = pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
main_rules = pytest.mark.parametrize(
    "rule", ["all", "prompt", "response", RULES["first_of_response"]], ids=str
)


def selected(rule: Any, prompt: int, total: int) -> set[int]:
    """The tokens of one sequence that `rule` names: `prompt` tokens, then a response, `total` in all."""
    if isinstance(rule, str):
        every = list(range(total))
        return set(
            {
                "all": every,
                "prompt": every[:prompt],
                "response": every[prompt - 1 :],
                "last_prompt_token": [prompt - 1],
            }[rule]
        )
    part = list(range(total))[:prompt] if rule["of"] == "prompt" else list(range(total))[prompt:]
    if "first" in rule:
        return set(part[: rule["first"]])
    if "last" in rule:
        return set(part[-rule["last"] :])
    return {part[i] for i in rule["indices"] if -len(part) <= i < len(part)}


# Models ---------------------------------------------------------------------------------------------------


def _llama() -> nn.Module:
    sizes = {"num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 64}
    config = transformers.LlamaConfig(**_COMMON, **_SIZES, **sizes)
    return transformers.LlamaForCausalLM(config)


def _gpt2() -> nn.Module:
    config = transformers.GPT2Config(**_COMMON, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def _gemma3() -> nn.Module:
    config = transformers.Gemma3TextConfig(
        **_COMMON,
        **_SIZES,
        num_key_value_heads=2,
        head_dim=16,
        intermediate_size=48,
        query_pre_attn_scalar=16,
        max_position_embeddings=64,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    )
    return transformers.Gemma3ForCausalLM(config)


_COMMON = {
    "vocab_size": VOCAB,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,  # a tied random model repeats one token
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": None,
}
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
_BUILD = {"llama": _llama, "gpt2": _gpt2, "gemma3": _gemma3}


@cache
def _built(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = _BUILD[name]().float().eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = PAD
    return model


def tiny(name: str) -> nn.Module:
    """A fresh copy of a tiny random model: `llama`, `gpt2` or `gemma3` (sliding window of 4)."""
    return copy.deepcopy(_built(name))


def blocks(model: nn.Module) -> nn.ModuleList:
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def vector(width: int = WIDTH, seed: int = 5) -> torch.Tensor:
    """A direction long enough that an edit at any token moves the output visibly."""
    return 1.5 * torch.randn(width, generator=torch.Generator().manual_seed(seed))


# Interventions --------------------------------------------------------------------------------------------


def steering(positions: Any, *, coefficient: Any = 1.0, layer: int = MIDDLE, **fields: Any) -> dict[str, Any]:
    """One steering entry of a spec."""
    common = {"kind": "steering", "site": "block_output", "layer": layer, "vector": {"key": "v"}}
    return common | {"coefficient": coefficient, "positions": positions} | fields


def intervened(
    model: nn.Module, *entries: dict[str, Any], tensors: dict[str, torch.Tensor] | None = None
) -> IntervenedModel:
    """`model` with these entries; the vector of `steering` stands at every block."""
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny"}, "interventions": entries}
    )
    width = model.get_input_embeddings().weight.shape[1]
    vectors = {f"v.block_output[{layer}]": vector(width) for layer in range(len(blocks(model)))}
    return IntervenedModel.from_spec(spec, model=model, tensors=vectors | (tensors or {}))


def batch(rows: Sequence[Sequence[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask) of rows padded on one side."""
    ids = torch.full((len(rows), max(map(len, rows))), PAD)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        where = slice(0, len(row)) if side == "right" else slice(ids.shape[1] - len(row), None)
        ids[i, where] = torch.tensor(row)
        mask[i, where] = 1
    return ids, mask


def tracker(
    mask: torch.Tensor, prompts: Sequence[int] | None = None, *, generating: bool = True
) -> TokenTracker:
    """The tracker of a run that the test drives by itself."""
    return TokenTracker(
        mask, mask.sum(1) if prompts is None else torch.tensor(prompts), generating=generating
    )


# By hand --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def edited_by_hand(
    model: nn.Module, tokens: set[int], v: torch.Tensor, layer: int = MIDDLE
) -> Iterator[None]:
    """Adds `v` to a block's output at these tokens of the only row."""

    def hook(_module: nn.Module, _args: Any, output: Any) -> Any:
        h = (output[0] if isinstance(output, tuple) else output).clone()
        for token in tokens:
            h[0, token] += v
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = blocks(model)[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def logits_by_hand(
    model: nn.Module, row: Sequence[int], prompt: int, rule: Any, v: torch.Tensor | None = None
) -> torch.Tensor:
    """[tokens, vocab] of one row, run alone, edited as `rule` says; `v` defaults to `vector()`."""
    v = vector(model.get_input_embeddings().weight.shape[1]) if v is None else v
    with edited_by_hand(model, selected(rule, prompt, len(row)), v):
        return model(torch.tensor([row]), use_cache=False).logits[0]


def greedy_by_hand(
    model: nn.Module, prompt: Sequence[int], rule: Any, new: int, v: torch.Tensor | None = None
) -> tuple[list[int], torch.Tensor]:
    """The response and the logits [new, vocab] it was chosen by; the row is run anew for each token."""
    row, logits = list(prompt), []
    for _ in range(new):
        logits.append(logits_by_hand(model, row, len(prompt), rule, v)[-1])
        row.append(int(logits[-1].argmax()))
    return row[len(prompt) :], torch.stack(logits)


def by_hand(
    model: nn.Module, rule: Any, rows: Sequence[Sequence[int]] = PROMPTS, new: int = NEW
) -> list[list[int]]:
    """Greedy responses to rows, each generated by hand."""
    return [greedy_by_hand(model, row, rule, new)[0] for row in rows]


def responses(
    m: IntervenedModel, rows: Sequence[Sequence[int]] = PROMPTS, **settings: Any
) -> list[list[int]]:
    """Greedy responses to rows in one left-padded batch."""
    ids, mask = batch(rows, "left")
    settings = {"max_new_tokens": NEW, "do_sample": False} | settings
    return m.generate_ids(ids, mask, **settings)[:, ids.shape[1] :].tolist()


class Watch:
    """Sees which tokens a run edits: what the block gave, against what the next block got.

    Its hook on the block is older than any of the run, so it sees the output before the edit.
    """

    def __init__(self, model: nn.Module, layer: int = MIDDLE) -> None:
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._model, self._layer = model, layer
        self._before: torch.Tensor | None = None

    def __enter__(self) -> Watch:
        edited, following = blocks(self._model)[self._layer], blocks(self._model)[self._layer + 1]
        self._handles = [
            edited.register_forward_hook(self._given),
            following.register_forward_pre_hook(self._got, with_kwargs=True),
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _given(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self._before = (output[0] if isinstance(output, tuple) else output).detach().clone()

    def _got(self, _module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        after = args[0] if args else kwargs["hidden_states"]
        self.calls.append((self._before, after.detach().clone()))

    @property
    def counts(self) -> list[int]:
        """How many tokens each call carried."""
        return [before.shape[1] for before, _ in self.calls]

    def changed(self, call: int | None = None) -> torch.Tensor:
        """Bool[batch, tokens] of the tokens that were edited, of one call or of all calls side by side."""
        calls = self.calls if call is None else [self.calls[call]]
        return torch.cat([(before != after).any(-1) for before, after in calls], 1)

    def relative(self) -> torch.Tensor:
        """‖Δ‖/‖h‖ [batch, tokens] of all calls side by side."""
        return torch.cat(
            [(after - before).norm(dim=-1) / before.norm(dim=-1) for before, after in self.calls], 1
        )


def slots(mask: torch.Tensor, rule: Any, prompts: Sequence[int], total: int) -> torch.Tensor:
    """Bool[batch, total slots]: `rule` row by row, where rows are padded as in `mask` and then go on."""
    expected = torch.zeros(mask.shape[0], total, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        real = [s for s in range(total) if s >= mask.shape[1] or mask[i, s]]
        for token in selected(rule, prompt, len(real)):
            expected[i, real[token]] = True
    return expected


def hooks(model: nn.Module) -> list[Callable[..., Any]]:
    """Every forward hook and pre-hook of every module, in order."""
    found = []
    for module in model.modules():
        found += [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
    return found
