from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from subvene.runner import IntervenedModel, NotSteeredError
from subvene.runner.monitor.chat import ChatError, ChatSession

TURNS = ("hello world", "how are you", "tell me about the rain")
TWO = """\
interventions:
- {kind: steering, name: one, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: 3}
- {kind: ablation, layer: 2, direction: {file: t.safetensors, key: w}}
"""


@pytest.fixture
def start(steer: Path, loaded: tuple[Any, Any]) -> Callable[..., ChatSession]:
    """A session on the tiny model, of 8 tokens an answer; all share the model."""

    def start(spec: Path = steer, **options: Any) -> ChatSession:
        model, tokenizer = loaded
        m = IntervenedModel.from_spec(spec, model=model, tokenizer=tokenizer)
        return ChatSession(m, **{"max_new_tokens": 8, **options})

    return start


def untouched(loaded: tuple[Any, Any], turns: tuple[str, ...], system: str | None = None) -> list[list[int]]:
    """The answers of transformers alone, which knows nothing of sessions."""
    model, tokenizer = loaded
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        new = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=8)
        answers.append(new[0, ids.shape[1] :].tolist())
        messages.append(
            {"role": "assistant", "content": tokenizer.decode(answers[-1], skip_special_tokens=True)}
        )
    return answers


@pytest.mark.parametrize("system", [None, "very happy"])
def test_off_and_strength_0_are_the_untouched_model_token_for_token(
    start: Any, loaded: tuple[Any, Any], system: str | None
) -> None:
    expected = untouched(loaded, TURNS, system)
    off, zero, steered = start(system=system), start(system=system), start(system=system)
    off.on = False
    zero.set_strength(0)
    assert [list(off.say(turn).ids) for turn in TURNS] == expected
    assert [list(zero.say(turn).ids) for turn in TURNS] == expected
    assert [list(steered.say(turn).ids) for turn in TURNS] != expected
    assert off.last.receipt is None
    assert zero.last.receipt[0].is_off
    assert steered.last.receipt[0].tokens == 8


def test_off_after_on_does_not_show_the_receipt_of_the_answer_before(start: Any) -> None:
    session = start()
    assert session.say("hello").receipt[0].tokens == 8
    session.on = False
    assert session.say("hello").receipt is None
    session.on = True
    assert session.say("hello").receipt[0].tokens == 8


def test_an_answer_is_what_generate_gives_for_the_whole_conversation(start: Any) -> None:
    session = start()
    session.say("hello world")
    session.set_strength(-2)
    messages = [*session.messages, {"role": "user", "content": "how are you"}]
    options = {"max_new_tokens": 8, "do_sample": False}
    expected = session.model.generate([messages], strengths=-2.0, **options)
    assert session.model.generate([messages], strengths=3.0, **options) != expected
    assert session.model.generate([messages[-1:]], strengths=-2.0, **options) != expected
    assert session.say("how are you").text == expected[0]
    assert session.messages == [*messages, {"role": "assistant", "content": expected[0]}]


@pytest.mark.parametrize("temperature", [0, 3])
def test_compare_keeps_the_answer_that_say_gives(start: Any, temperature: float) -> None:
    said, compared, off = (start(temperature=temperature, seed=5) for _ in range(3))
    off.on = False
    for turn in TURNS:
        plain, edited = compared.compare(turn)
        assert edited.ids == said.say(turn).ids
        assert plain.receipt is None
        assert edited.receipt[0].tokens == 8
    assert compared.messages == said.messages
    assert compared.reset() == 3
    assert compared.compare(TURNS[0])[0].ids == off.say(TURNS[0]).ids
    with pytest.raises(ChatError, match="the edit is off"):
        off.compare("hello")
    assert off.turns == 1


def test_text_is_streamed_in_pieces(start: Any) -> None:
    pieces: list[str] = []
    answer = start(strengths={"glad": 1.0}, max_new_tokens=24).say("hello", on_text=pieces.append)
    assert len(pieces) > 3
    assert "".join(pieces) == answer.text


def test_sampling_depends_on_seed_turn_and_conversation_alone(start: Any) -> None:
    session = start(temperature=5)

    def answers(seed: int) -> list[tuple[int, ...]]:
        session.reset()
        session.set_seed(seed)
        return [session.say("hello").ids for _ in range(2)]

    first = answers(1)
    assert first != answers(2)
    torch.rand(7)
    assert answers(1) == first
    session.set_temperature(0)
    assert answers(1) == answers(2)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ChatError, match="temperature"):
            session.set_temperature(wrong)
    for wrong in (-1, 2**63):
        with pytest.raises(ChatError, match="seed"):
            session.set_seed(wrong)
    assert (session.temperature, session.seed) == (0, 2)


def test_a_full_context_is_said_and_nothing_is_dropped(start: Any) -> None:
    session = start()
    session.model.model.config.max_position_embeddings = 40
    session.say("hello world")
    # The next turn adds 5 tokens of its own, and 3 that begin the answer.
    while len(session.model.tokenizer.apply_chat_template(session.messages)["input_ids"]) + 8 < 40:
        session.say("hello world")
    before = session.messages
    with pytest.raises(
        ChatError, match=r"is \d+ tokens long, and the model takes 40.*nothing was cut away.*reset"
    ):
        session.say("hello world")
    assert session.messages == before
    assert session.reset() == len(before) // 2
    session.max_new_tokens = 100
    answer = session.say("hello world")
    assert answer.ending == "context"
    assert len(answer.ids) == 40 - 8


def test_an_end_token_ends_the_answer(start: Any) -> None:
    session = start()
    session.model.model.generation_config.eos_token_id = session.say("hello").ids[0]
    session.reset()
    answer = session.say("hello")
    assert answer.ending == "finished"
    assert len(answer.ids) == 1


def test_a_stopped_answer_is_kept_with_its_receipt(start: Any) -> None:
    session, whole = start(), start()
    seen: list[str] = []
    answer = session.say("hello world", stop=lambda: bool(seen.append("asked")) or len(seen) > 2)
    assert answer.ending == "stopped"
    assert len(answer.ids) == 3
    assert answer.ids == whole.say("hello world").ids[:3]
    assert answer.receipt[0].tokens == 3
    assert session.messages[-1] == {"role": "assistant", "content": answer.text}
    assert session.say("how are you", stop=lambda: False).ending == "max_new_tokens"
    with pytest.raises(ChatError, match="stopped before the edited answer"):
        session.compare("hello", stop=lambda: True)
    assert session.turns == 2


def test_an_interruption_leaves_no_hook_and_no_turn(start: Any) -> None:
    session = start()

    def interrupt(_text: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.say("hello world", on_text=interrupt)
    assert session.messages == []
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in session.model.model.modules())
    assert session.say("hello world").ids == start().say("hello world").ids


def test_an_answer_that_was_not_steered_is_an_error_and_not_kept(start: Any, steer: Path) -> None:
    file = steer.with_name("t.safetensors")
    tensors = safetensors.torch.load_file(file)
    safetensors.torch.save_file({name: 1e-30 * torch.ones_like(t) for name, t in tensors.items()}, file)
    session = start()
    with pytest.raises(NotSteeredError, match="glad"):
        session.say("hello")
    assert session.messages == []
    session.on = False
    session.say("hello")
    assert session.turns == 1


def test_strengths_by_name(start: Any, write: Any) -> None:
    session = start(write(TWO), strengths={"one": -1.0})
    assert session.strengths == {"one": -1.0, "ablation_1": 1.0}
    assert session.set_strength(2, "ablation_1") == "ablation_1"
    receipt = session.say("hello").receipt
    assert [one.strengths for one in receipt] == [(-1.0,), (2.0,)]
    with pytest.raises(ChatError, match="several interventions; name one of: one, ablation_1"):
        session.set_strength(2)
    with pytest.raises(ChatError, match="'ablation1'; did you mean 'ablation_1'"):
        session.set_strength(2, "ablation1")
    with pytest.raises(ChatError, match="there are: one, ablation_1"):
        start(write(TWO), strengths={"qqq": 1.0})
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ChatError, match="finite"):
            session.set_strength(wrong, "one")
    assert session.strengths == {"one": -1.0, "ablation_1": 2.0}


def test_strengths_by_row_are_none_of_a_conversation(start: Any, write: Any) -> None:
    spec = write(
        "interventions:\n"
        "- {kind: steering, name: s, layer: 1, vector: {file: t.safetensors, key: v}, coefficient: [1, 2]}\n"
    )
    with pytest.raises(ChatError, match="s declares 2 strengths"):
        start(spec)
    assert start(spec, strengths={"s": 2.0}).strengths == {"s": 2.0}


def test_turns_and_system_prompts_that_cannot_be(start: Any, loaded: tuple[Any, Any]) -> None:
    session, tokenizer = start(system="very happy"), loaded[1]
    for wrong, said in {"  ": "empty", "a \udcff": "UTF-8"}.items():
        with pytest.raises(ChatError, match=said):
            session.say(wrong)
    with pytest.raises(ChatError, match="UTF-8"):
        session.set_system("\udcff")
    template = tokenizer.chat_template
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ChatError, match="no system role"):
        session.set_system("sad")
    with pytest.raises(ChatError, match="no system role"):
        session.say("hello")
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(ChatError, match="leaves system prompts out"):
        session.set_system("sad")
    assert session.messages == [{"role": "system", "content": "very happy"}]
    tokenizer.chat_template = template
    session.set_system(None)
    session.say("hello")
    assert [message["role"] for message in session.messages] == ["user", "assistant"]
    tokenizer.chat_template = None
    with pytest.raises(ChatError, match="no chat template"):
        start()


def test_saving_is_atomic_and_replaces_nothing_of_others(
    start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    session, file = start(system="very happy"), folder / "talk.jsonl"
    with pytest.raises(ChatError, match="no conversation"):
        session.save(file)
    session.say("hello")
    assert session.save(file) == file
    session.say("how are you")
    session.save(file)
    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"messages": session.messages}
    assert [message["role"] for message in session.messages] == ["system"] + ["user", "assistant"] * 2
    # A write that fails leaves what was there.
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        session.say("hello")
        with pytest.raises(ChatError, match="No space left"):
            session.save(file)
    assert file.read_text(encoding="utf-8").splitlines() == [line]
    with pytest.raises(ChatError, match="cannot be written"):
        session.save(folder / "nowhere" / "talk.jsonl")
    # The next conversation does not replace the one that was forgotten, nor any other file.
    session.reset()
    session.say("hello")
    with pytest.raises(ChatError, match="not of this session"):
        session.save(file)
    assert [path.name for path in folder.iterdir()] == ["talk.jsonl"]


def test_too_little_memory_leaves_the_conversation(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = start()
    session.say("hello")

    def full(*_args: Any, **_kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(session.model.model, "forward", full)
        with pytest.raises(ChatError, match="too little memory"):
            session.say("how are you")
    assert session.turns == 1
    session.say("how are you")
