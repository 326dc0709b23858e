"""Hooks: what they attach to, that they go away, and that other people's stay."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import oracle
import pytest
import torch
import torch._dynamo
from oracle import (
    LENGTHS,
    MIDDLE,
    NEW,
    PROMPTS,
    Watch,
    batch,
    both_models,
    by_hand,
    intervened,
    responses,
    steering,
    tiny,
)
from torch import nn

from subvene.runner import ConcurrentRunError, NotSteeredError, PositionError
from subvene.runner.edits.refusals import CompiledModelError


def block(model: nn.Module) -> nn.Module:
    return oracle.blocks(model)[MIDDLE]


# 8. compiled models ---------------------------------------------------------------------------------------


def _compile_model(model: nn.Module) -> nn.Module:
    model.compile()
    return model


def _compile_wrapper(model: nn.Module) -> nn.Module:
    return torch.compile(model)


def _compile_block(model: nn.Module) -> nn.Module:
    block(model).compile()
    return model


def _replace_block(model: nn.Module) -> nn.Module:
    oracle.blocks(model)[2] = torch.compile(oracle.blocks(model)[2])
    return model


def _compile_forward(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward)
    return model


COMPILED = [_compile_model, _compile_wrapper, _compile_block, _replace_block, _compile_forward]


@pytest.mark.parametrize("compiled", COMPILED)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_model_that_was_compiled_is_refused(compiled: Any, when: str) -> None:
    """Compiled before or after `from_spec`: hooks are attached later than both, when something runs."""
    model = tiny("llama")
    if when == "before":
        m = intervened(compiled(model), steering("all"))
    else:
        m = intervened(model, steering("all"))
        if compiled is _compile_wrapper:
            pytest.skip("leaves the model that we hold uncompiled")
        compiled(model)
    ids, mask = batch(PROMPTS, "left")
    with pytest.raises(CompiledModelError, match=r"torch\.compile"):
        m.generate_ids(ids, mask, max_new_tokens=2)
    with pytest.raises(CompiledModelError, match=r"torch\.compile"):
        m(ids, mask)
    with (
        pytest.raises(CompiledModelError, match=r"torch\.compile"),
        m.intervenable.attached(oracle.tracker(mask)),
    ):
        pass
    assert oracle.hooks(model) == []


def _wrapper(model: nn.Module) -> Any:
    return torch.compile(model, backend="eager")


def _function(model: nn.Module) -> Any:
    return torch.compile(lambda ids, **kwargs: model(ids, **kwargs), backend="eager")


@pytest.mark.parametrize("make", [_wrapper, _function])
def test_what_was_traced_before_is_edited_while_attached(make: Any) -> None:
    """And unedited again afterwards, with its compiled code; whoever leaves last sets that free."""
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids = torch.tensor([PROMPTS[0]])
    compiled = make(model)
    torch._dynamo.reset()
    with torch.no_grad():
        plain = compiled(ids, use_cache=False).logits
        traced = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert traced
        expected = m(ids, use_cache=False).logits
        tokens = m.receipt[0].tokens
        for _ in range(2):
            with m.attached() as inside:
                assert torch.equal(compiled(ids, use_cache=False).logits, expected)
                assert torch.equal(inside(ids, use_cache=False).logits, expected)
                with m.disabled():
                    torch.testing.assert_close(compiled(ids, use_cache=False).logits, plain)
            assert m.receipt[0].tokens == 2 * tokens
            with m.intervenable.attached(oracle.tracker(torch.ones_like(ids), generating=False)):
                assert torch.equal(compiled(ids, use_cache=False).logits, expected)
        assert torch.equal(compiled(ids, use_cache=False).logits, plain)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == traced + (make is _wrapper)
    torch._dynamo.reset()


def test_the_last_to_leave_lets_compiled_code_run_again() -> None:
    models = [tiny("llama"), tiny("llama")]
    first, second = (intervened(model, steering("all", coefficient=0.0)).attached() for model in models)
    stance = torch._dynamo.eval_frame._stance.stance
    with contextlib.ExitStack() as late:
        with first:
            late.enter_context(second)
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    assert torch._dynamo.eval_frame._stance.stance == stance == "default"


# 9. blocks that return a tuple ----------------------------------------------------------------------------


class _Tuple(nn.Module):
    """A decoder block as older transformers had it: (hidden_states, what else there is)."""

    def __init__(self, inner: nn.Module, container: type = tuple) -> None:
        super().__init__()
        self.inner, self.container = inner, container

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.container((self.inner(*args, **kwargs), "attention weights"))


class _First(nn.Module):
    """Takes what the block above returned apart, as an older model did."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
        h, rest = hidden_states
        assert rest == "attention weights", "the rest of the tuple was lost"
        return self.inner(h, *args, **kwargs)


@both_models
@pytest.mark.parametrize("container", [tuple, list])
@pytest.mark.parametrize("rule", ["all", "prompt", "response"])
def test_a_block_that_returns_a_tuple_is_edited_like_one_that_returns_a_tensor(
    name: str, container: type, rule: str
) -> None:
    plain, wrapped = tiny(name), tiny(name)
    oracle.blocks(wrapped)[MIDDLE] = _Tuple(block(wrapped), container)
    oracle.blocks(wrapped)[MIDDLE + 1] = _First(oracle.blocks(wrapped)[MIDDLE + 1])
    expected = by_hand(plain, rule)
    assert responses(intervened(plain, steering(rule))) == expected
    m = intervened(wrapped, steering(rule))
    assert responses(m) == expected
    assert m.receipt[0].changed == m.receipt[0].tokens > 0


# 10. nothing is left behind -------------------------------------------------------------------------------


@contextlib.contextmanager
def foreign_hooks(model: nn.Module) -> Iterator[list[str]]:
    """Hooks of somebody else on the same modules, which must survive and keep being called."""
    calls: list[str] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: calls.append("model")),
        block(model).register_forward_hook(lambda *_: calls.append("output")),
        block(model).register_forward_pre_hook(lambda *_: calls.append("input")),
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def test_every_way_to_run_leaves_the_hooks_as_they_were() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"), steering("response", layer=0))
    ids, mask = batch(PROMPTS, "left")
    with foreign_hooks(model) as calls:
        before = oracle.hooks(model)
        responses(m)
        assert oracle.hooks(model) == before
        m(ids, mask, prompt_lengths=LENGTHS)
        assert oracle.hooks(model) == before
        with m.intervenable.attached(oracle.tracker(mask)):
            model(ids, attention_mask=mask)
            assert len(oracle.hooks(model)) == len(before) + 4  # two edits, and two that follow the calls
        assert oracle.hooks(model) == before
        with m.disabled():
            responses(m)
        assert oracle.hooks(model) == before
        calls.clear()
        model(ids, attention_mask=mask)
        assert calls == ["model", "input", "output"]
    assert oracle.hooks(model) == []


class _Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, _Interrupted])
def test_an_exception_inside_leaves_no_hook_and_no_receipt(error: type[BaseException]) -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    responses(m)
    assert m.receipt is not None
    calls = 0

    def fail(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise error("stop")

    handle = oracle.blocks(model)[2].register_forward_hook(fail)
    before = oracle.hooks(model)
    with pytest.raises(error, match="stop"):
        responses(m)
    assert oracle.hooks(model) == before
    assert m.receipt is None, "the receipt of an earlier run would speak for one that failed"
    calls = 2
    with pytest.raises(error, match="stop"):
        m(ids, mask)
    calls = 2
    with pytest.raises(error, match="stop"), m.intervenable.attached(oracle.tracker(mask)):
        model(ids, attention_mask=mask)
    assert oracle.hooks(model) == before
    handle.remove()
    assert responses(m) == by_hand(model, "all")


def test_an_error_in_our_own_hook_leaves_no_hook() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    mask = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(PositionError, match="call the model"), m.intervenable.attached(oracle.tracker(mask)):
        model.model(torch.tensor([[5, 6, 7, 8]]))  # the part below the head, so that nobody saw the ids
    assert oracle.hooks(model) == []


def test_a_run_cannot_be_entered_twice_and_the_first_goes_on() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with Watch(model) as watch, m.intervenable.attached(oracle.tracker(mask)):
        during = oracle.hooks(model)
        with pytest.raises(RuntimeError, match="cannot be entered twice"):
            responses(m)
        with pytest.raises(RuntimeError, match="cannot be entered twice"):
            m(ids, mask)
        with (
            pytest.raises(RuntimeError, match="cannot be entered twice"),
            m.intervenable.attached(oracle.tracker(mask)),
        ):
            pass
        assert oracle.hooks(model) == during
        model(ids, attention_mask=mask)
    assert torch.equal(watch.changed(), mask.bool())
    assert oracle.hooks(model) == []


def test_two_attached_to_one_model_cannot_be_told_apart() -> None:
    """Whose the calls are could not be said; the first goes on as it was."""
    model = tiny("llama")
    one, two = intervened(model, steering("all")), intervened(model, steering("response", layer=0))
    ids, mask = batch(PROMPTS, "left")
    first = one.intervenable.attached(oracle.tracker(mask))
    with Watch(model, 0) as at_0, Watch(model, MIDDLE) as at_1, first:
        during = oracle.hooks(model)
        for enter in (lambda: two.intervenable.attached(oracle.tracker(mask)), two.attached):
            with pytest.raises(ConcurrentRunError, match="in one spec"), enter():
                pass
        assert oracle.hooks(model) == during
        model(ids, attention_mask=mask)
    assert not at_0.changed().any()
    assert torch.equal(at_1.changed(), mask.bool())
    assert two.receipt is None
    assert oracle.hooks(model) == []


def test_a_run_of_one_inside_an_attached_other_is_its_own() -> None:
    model = tiny("llama")
    one, two = intervened(model, steering("all", coefficient=0.75)), intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with torch.no_grad(), one.intervenable.attached(oracle.tracker(mask)):
        first = model(ids, attention_mask=mask).logits
        inside = responses(two)
        with two.disabled():
            plain = responses(two)
        assert torch.equal(model(ids, attention_mask=mask).logits, first)
    assert inside == by_hand(model, "all")
    assert plain == [oracle.greedy_by_hand(model, row, "all", NEW, 0 * oracle.vector())[0] for row in PROMPTS]
    assert one.receipt[0].calls == 2
    assert oracle.hooks(model) == []


def test_disabled_nests_and_comes_back_after_an_exception() -> None:
    m = intervened(tiny("llama"), steering("all"))
    steered = responses(m)
    with m.disabled():
        baseline = responses(m)
        with m.disabled():
            assert m.is_disabled
            assert responses(m) == baseline
        assert responses(m) == baseline
        with pytest.raises(RuntimeError, match="stop"), m.disabled():
            raise RuntimeError("stop")
        assert m.is_disabled
    assert not m.is_disabled
    assert steered != baseline
    assert responses(m) == steered


def test_disabled_inside_a_run_is_the_baseline_and_is_not_in_the_receipt() -> None:
    model = tiny("llama")
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with m.disabled():
        baseline = responses(m)
    with torch.no_grad(), m.intervenable.attached(oracle.tracker(mask)):
        steered = model(ids, attention_mask=mask).logits
        with m.disabled():
            assert responses(m) == baseline
            plain = m(ids, mask).logits
        again = model(ids, attention_mask=mask).logits
    assert torch.equal(steered, again)
    assert not torch.equal(steered, plain)
    assert m.receipt[0].calls == 2
    assert m.receipt[0].tokens == sum(LENGTHS)


def test_a_run_that_only_ran_disabled_was_not_steered() -> None:
    m = intervened(tiny("llama"), steering("all"))
    _, mask = batch(PROMPTS, "left")
    with pytest.raises(NotSteeredError), m.intervenable.attached(oracle.tracker(mask)), m.disabled():
        responses(m)


def test_making_and_running_leave_the_model_as_it_was() -> None:
    model = tiny("llama").train()
    oracle.blocks(model)[0].eval()
    block(model).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    trained = [parameter.requires_grad for parameter in model.parameters()]
    weights = [parameter.clone() for parameter in model.parameters()]
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    m(ids, mask).logits.sum().backward()
    responses(m)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trained
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert model.get_input_embeddings().weight.grad is not None


# 11. reading back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_hidden_states_of_the_model_are_the_same_after_our_runs(name: str) -> None:
    """pyvene's own clean-up removes the hooks by which transformers captures hidden states."""
    model = tiny(name)
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "output_hidden_states": True,
        "output_attentions": True,
    }

    def capture() -> list[torch.Tensor]:
        with torch.no_grad():
            output = model(**inputs)
        assert len(output.hidden_states) == oracle.LAYERS + 1
        return [*output.hidden_states, output.logits]

    before = capture()
    responses(m)
    m(ids, mask)
    with m.intervenable.attached(oracle.tracker(mask)):
        model(**inputs)
    with m.disabled():
        responses(m)
    with pytest.raises(PositionError):
        m(ids, position_ids=torch.zeros_like(ids))
    assert all(torch.equal(a, b) for a, b in zip(capture(), before, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_hidden_states_can_be_asked_for_in_a_run(name: str) -> None:
    """All of them come, and show the edit from the edited block on."""
    model = tiny(name)
    m = intervened(model, steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with torch.no_grad():
        states = m(ids, mask, output_hidden_states=True).hidden_states
        with m.disabled():
            plain = m(ids, mask, output_hidden_states=True).hidden_states
    assert len(states) == len(plain) == oracle.LAYERS + 1
    assert torch.equal(states[MIDDLE], plain[MIDDLE])
    assert not torch.equal(states[MIDDLE + 1], plain[MIDDLE + 1])
    assert not torch.equal(states[MIDDLE + 2], plain[MIDDLE + 2])


HISTORIES: dict[str, list[str]] = {
    "nothing": [],
    "plain": ["plain"],
    "hidden states": ["hidden states"],
    "edited": ["edited"],
    "edited, hidden states": ["edited", "hidden states"],
    "hidden states, edited": ["hidden states", "edited"],
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3"])
def test_hidden_states_show_the_edit_whatever_was_called_before(name: str, history: list[str]) -> None:
    """What the next block gets is the hidden state behind the edited block, after two edits as after one."""
    model = tiny(name)
    ids, mask = batch(PROMPTS, "left")
    edits = [steering("all"), steering("response", name="second", coefficient=-2.0)]
    m = intervened(model, *edits)
    calls = {
        "plain": lambda: model(ids),
        "hidden states": lambda: model(ids, output_hidden_states=True),
        "edited": lambda: responses(m),
    }
    with torch.no_grad():
        for call in history:
            calls[call]()
        with Watch(model) as watch:
            states = m(ids, mask, prompt_lengths=LENGTHS, output_hidden_states=True).hidden_states
            with m.attached(prompt_lengths=LENGTHS) as inside:
                attached = inside(ids, attention_mask=mask, output_hidden_states=[MIDDLE + 1]).hidden_states
    after = watch.calls[0][1]
    assert watch.changed(0)[mask.bool()].all()
    assert torch.equal(states[MIDDLE + 1], after)
    assert torch.equal(attached[MIDDLE + 1], watch.calls[1][1])
    with torch.no_grad():
        generated = m.generate_ids(
            ids,
            mask,
            max_new_tokens=2,
            do_sample=False,
            output_hidden_states=True,
            return_dict_in_generate=True,
        )
    first = generated.hidden_states[0]
    assert not torch.equal(first[MIDDLE + 1][mask.bool()], states[MIDDLE][mask.bool()])
    torch.testing.assert_close(first[MIDDLE + 1][mask.bool()], after[mask.bool()])


@pytest.mark.slow
def test_smollm2_is_as_it_was_after_a_run(smollm2: Any) -> None:
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer("The sea is")["input_ids"]])
    with torch.no_grad():
        before = model(ids, output_hidden_states=True).hidden_states
    m = intervened(model, steering("response", layer=14, coefficient=0.5))
    with m.disabled():
        baseline = m.generate_ids(ids, max_new_tokens=8, do_sample=False)
    assert not torch.equal(m.generate_ids(ids, max_new_tokens=8, do_sample=False), baseline)
    assert torch.equal(m.generate_ids(ids, max_new_tokens=8, do_sample=False, strengths=0.0), baseline)
    with torch.no_grad():
        after = model(ids, output_hidden_states=True).hidden_states
    assert len(after) == 31
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
