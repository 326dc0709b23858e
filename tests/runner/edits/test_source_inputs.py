"""Sources of every input, heads and shared parameters: what is generated, and what scoring says of it.

The oracle is plain torch hooks, row by row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from source_specs import make, output_of, swap, written
from tiny_model import write_tiny_model

HEAD_DIM = 16  # four heads of it are twice as wide as the model
MESSAGES = [{"role": "system", "content": "i am sad"}, {"role": "user", "content": "how are you"}]
ROWS = [
    {"source": "hello world , i am not happy", "subject": "the train", "what": "world ,"},
    {"source": "i am sad", "subject": "you", "what": "am"},
]
PROMPTS = ["tell me about the train .", "how are you"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = write_tiny_model(tmp_path_factory.mktemp("model"), head_dim=HEAD_DIM)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return model, transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def test_a_source_of_messages_is_the_rendered_conversation(loaded: tuple[Any, Any]) -> None:
    model, tokenizer = loaded
    m = make(model, tokenizer, {"other": {"messages": MESSAGES}}, swap())
    ids = tokenizer("how are you", return_tensors="pt")["input_ids"]
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    block = model.model.layers[1]
    value = output_of(model, block, tokenizer(text, add_special_tokens=False)["input_ids"])[-1]
    with written(block, {ids.shape[1] - 1: value}):
        expected = model.generate(ids, max_new_tokens=4, do_sample=False)
        logits = model(ids).logits
    torch.testing.assert_close(m(ids, prompt_lengths=[ids.shape[1]]).logits, logits, rtol=1e-4, atol=1e-5)
    assert torch.equal(m.generate_ids(ids, max_new_tokens=4, do_sample=False), expected)


@torch.no_grad()
def test_heads_at_the_tokens_of_a_text_by_shared_parameters(loaded: tuple[Any, Any]) -> None:
    """Rotations of two layers share one matrix; each row has its own tokens, and its own source."""
    model, tokenizer = loaded
    edits = [
        swap(
            layer,
            f"heads_{layer}",
            **{"class": "LowRankRotatedSpaceIntervention"},
            low_rank_dimension=3,
            site="attention_heads",
            heads=[3, 1],
            share="rotation",
            positions={"last_of": {"field": "subject"}},
            source={"from": "other", "heads": [0, 2], "positions": {"last_of": {"field": "what"}}},
        )
        for layer in (0, 2)
    ]
    m = make(model, tokenizer, {"other": {"column": "source", "chat": False}}, *edits)
    inner = next(iter(m.intervenable.interventions.values())).inner
    rotation = inner.rotate_layer.weight.detach()
    assert rotation.shape == (HEAD_DIM, 3)
    answers = m.generate(PROMPTS, chat=False, max_new_tokens=4, do_sample=False, rows=ROWS)
    for i, (at, read) in enumerate([(4, 2), (2, 1)]):
        ids = tokenizer(PROMPTS[i], return_tensors="pt")["input_ids"]
        source = tokenizer(ROWS[i]["source"], return_tensors="pt")["input_ids"]
        with _heads_swapped(model, source, (0, 2), {3: 0, 1: 2}, at, read, rotation):
            expected = model.generate(ids, max_new_tokens=4, do_sample=False)
            logits = model(expected).logits
        assert tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True) == answers[i]
        scored = m(expected, prompt_lengths=[ids.shape[1]], rows=[ROWS[i]]).logits
        torch.testing.assert_close(scored, logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(scored, model(expected).logits, atol=1e-3)


@contextlib.contextmanager
def _heads_swapped(
    model: Any,
    source: torch.Tensor,
    layers: tuple[int, ...],
    goes: dict[int, int],
    at: int,
    read: int,
    rotation: torch.Tensor,
) -> Iterator[None]:
    """Put heads of the source's token `read` into those of the base's token `at`, in a subspace."""
    projections = [model.model.layers[layer].self_attn.o_proj for layer in layers]
    kept: dict[Any, torch.Tensor] = {}

    def keep(module: Any, args: Any) -> None:
        kept[module] = args[0][0, read].view(-1, HEAD_DIM)

    def put(module: Any, args: Any) -> Any:
        if args[0].shape[1] == 1:
            return None
        heads = args[0].clone().unflatten(-1, (-1, HEAD_DIM))
        for into, of in goes.items():
            own = heads[0, at, into].clone()
            heads[0, at, into] = own + rotation @ (rotation.T @ (kept[module][of] - own))
        return (heads.flatten(-2),)

    handles = [module.register_forward_pre_hook(keep) for module in projections]
    model(source)
    for handle in handles:
        handle.remove()
    handles = [module.register_forward_pre_hook(put) for module in projections]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
