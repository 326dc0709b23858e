"""One renderer: system roles that are missing, variables of templates, reasoning in replies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import odd_templates as odd
import pytest
import torch
import transformers

from subvene.runner import IntervenedModel, load_model
from subvene.runner.data.preferences import Preference, encode
from subvene.runner.data.reasoning import answer_of, without_reasoning
from subvene.runner.data.text import TextError, prompt_ids, reply_ids
from subvene.runner.data.transcripts import read_transcripts
from subvene.runner.data.truthfulqa.prompts import Prompts
from subvene.runner.data.turns import turns_of
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.models.chat_settings import chat_of, with_chat
from subvene.runner.monitor.chat import ChatError, ChatSession
from subvene.runner.monitor.live_projection import generate_with_projections
from subvene.runner.recipes.fitting import fit
from subvene.specs import ModelSpec, SubveneError, TriplesSpec, parse_spec

WIDTH, LAYERS = 16, 2


def told(tokenizer: Any, **declared: Any) -> Any:
    return with_chat(tokenizer, ModelSpec(name="a", **declared))


def shown(tokenizer: Any, ids: Any) -> str:
    return str(tokenizer.decode(ids))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama of Gemma's template, as it lies on a disk."""
    return saved(tmp_path / "model", odd.NO_SYSTEM)


def saved(folder: Path, template: str) -> Path:
    torch.manual_seed(0)
    tokenizer = odd.tokenizer(template)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        num_key_value_heads=2,
        initializer_range=0.3,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=3,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def spec(model: Path, **fields: Any) -> Any:
    """A fit from system prompts, on the model in a folder."""
    given = {
        "subvene": 1,
        "model": {"name": str(model), **fields},
        "fit": {
            "recipe": "mean_difference",
            "key": "k",
            "pairs": {"systems": [{"positive": "Be glad.", "negative": "Be sad."}], "questions": ["How?"]},
        },
        "interventions": [
            {
                "kind": "steering",
                "name": "s",
                "layer": 1,
                "coefficient": 1.0,
                "vector": {"key": "k"},
                "positions": "response",
            }
        ],
    }
    return parse_spec(json.dumps(given), format="json")


# System prompts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [("NO_SYSTEM", "no system role .System role not supported"), ("SILENT", "leaves system prompts out")],
)
@pytest.mark.parametrize("system", ["be short", "hi"])
def test_a_template_without_a_system_role_says_what_to_do(template: str, said: str, system: str) -> None:
    tokenizer = odd.tokenizer(getattr(odd, template))
    with pytest.raises(TextError, match=rf"{said}.*set `system: fold`"):
        prompt_ids(tokenizer, "hi", system=system)
    folded = told(tokenizer, system="fold")
    assert prompt_ids(folded, "hi", system=system) == prompt_ids(tokenizer, f"{system}\n\nhi")
    messages = [{"role": "system", "content": system}, {"role": "user", "content": "hi"}]
    assert prompt_ids(folded, messages) == prompt_ids(tokenizer, f"{system}\n\nhi")
    assert chat_of(tokenizer).system == "role"  # the tokenizer that was given is as it was


def test_there_must_be_a_turn_to_fold_into() -> None:
    folded = told(odd.tokenizer(odd.NO_SYSTEM), system="fold")
    with pytest.raises(TextError, match="before the user's first turn, and there is none"):
        prompt_ids(folded, [{"role": "system", "content": "a"}])


def test_whatever_a_template_refuses_is_one_error() -> None:
    twice = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(TextError, match="refuses this conversation: Roles must alternate"):
        prompt_ids(odd.tokenizer(odd.NO_SYSTEM), twice)
    # It is not the system prompt that is at fault here.
    with pytest.raises(TextError, match="refuses this conversation: never"):
        prompt_ids(odd.tokenizer("{{ raise_exception('never') }}"), "a", system="b")


def test_a_fit_on_gemmas_template(folder: Path) -> None:
    with pytest.raises(SubveneError, match="set `system: fold`"):
        fit(spec(folder))
    declared = fit(spec(folder, system="fold"))
    by_keyword = fit(spec(folder), system="fold")
    loaded = load_model(str(folder))
    on_loaded = fit(spec(folder), model=loaded[0], tokenizer=loaded[1], system="fold")
    for m in (declared, by_keyword, on_loaded):
        assert m.spec.model.system == "fold"
        assert chat_of(m.tokenizer).system == "fold"
        assert torch.equal(m.tensors["k.block_output[1]"], declared.tensors["k.block_output[1]"])
    assert m.generate(["hi"], system="be glad", max_new_tokens=2)


def test_an_artifact_remembers_how_its_prompts_were_made(folder: Path, tmp_path: Path) -> None:
    m = fit(spec(folder, system="fold", reasoning="keep"))
    path = m.save_pretrained(tmp_path / "artifact")
    reloaded = IntervenedModel.from_pretrained(path)
    assert chat_of(reloaded.tokenizer) == chat_of(m.tokenizer)
    assert chat_of(reloaded.tokenizer).to_dict() == {"system": "fold", "reasoning": "keep"}
    changed = IntervenedModel.from_pretrained(path, reasoning="drop")
    assert changed.spec.model.reasoning == "drop"


def test_a_conversation_takes_a_folded_system_prompt(folder: Path) -> None:
    m = fit(spec(folder, system="fold"))
    chat = ChatSession(m, system="be glad", max_new_tokens=2)
    assert chat.say("hi").ids
    m.tokenizer = with_chat(m.tokenizer, ModelSpec(name="a", system="role"))
    with pytest.raises(ChatError, match="system: fold"):
        ChatSession(m, system="be glad")


# Variables of the template --------------------------------------------------------------------------------


def test_variables_reach_the_template_and_are_recorded(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model", odd.QWEN3)
    m = fit(spec(folder, chat_template_kwargs={"enable_thinking": False}))
    off = prompt_ids(m.tokenizer, "hi")
    assert shown(m.tokenizer, off).endswith("assistant\n<think>\n\n</think>\n\n")
    path = m.save_pretrained(tmp_path / "artifact")
    assert "enable_thinking: false" in (path / "intervention.yaml").read_text()
    again = IntervenedModel.from_pretrained(path)
    assert prompt_ids(again.tokenizer, "hi") == off
    on = IntervenedModel.from_pretrained(path, chat_template_kwargs={"enable_thinking": True})
    assert shown(on.tokenizer, prompt_ids(on.tokenizer, "hi")).endswith("assistant\n")
    as_keyword = on.generate(["hi"], max_new_tokens=3, chat_template_kwargs={"enable_thinking": False})
    assert as_keyword == m.generate(["hi"], max_new_tokens=3)


@pytest.mark.parametrize(
    ("name", "said"), [("enable_thinkin", "did you mean 'enable_thinking'"), ("zz", "no var")]
)
def test_a_variable_that_the_template_does_not_use_is_refused(name: str, said: str) -> None:
    with pytest.raises(TextError, match=said):
        prompt_ids(odd.tokenizer(odd.QWEN3), "hi", chat_template_kwargs={name: False})


@pytest.mark.parametrize("value", ["{tokenize: false}", "{'a b': 1}", "[a]", "{messages: []}"])
def test_variables_that_are_none(value: str) -> None:
    text = f"subvene: 1\nmodel: {{name: a, chat_template_kwargs: {value}}}\ninterventions: []"
    with pytest.raises(SubveneError, match=r"model.chat_template_kwargs.*a mapping from variables"):
        parse_spec(text)


# Reasoning ------------------------------------------------------------------------------------------------

THOUGHT = "<think>\nhm\n</think>\n\nFine."
REPLIES = {
    ("CHATML", "drop"): ["Fine.", "Fine.", None],
    ("CHATML", "keep"): ["Fine.", THOUGHT, None],
    ("OPENED", "drop"): ["\n</think>\n\nFine."] * 2 + [None],
    ("OPENED", "keep"): ["\n</think>\n\nFine.", THOUGHT.removeprefix("<think>\n"), None],
}


@pytest.mark.parametrize(("template", "rule"), REPLIES)
def test_a_reply_is_read_by_one_rule(template: str, rule: str, tmp_path: Path) -> None:
    """At the doors for replies: what of them is read, and what stands between the template and it."""
    tokenizer = told(odd.tokenizer(getattr(odd, template)), reasoning=rule)
    prompt = shown(tokenizer, prompt_ids(tokenizer, "hi"))
    for reply, expected in zip(("Fine.", THOUGHT, "<think>\nhm"), REPLIES[template, rule], strict=True):
        path = tmp_path / "a.jsonl"
        path.write_text(json.dumps({"prompt": "hi", "response": reply}))
        transcripts = read_transcripts(path)
        preferences = [Preference("hi", reply, reply + " No.")]
        if expected is None:
            for read in (
                lambda: reply_ids(tokenizer, prompt_ids(tokenizer, "hi"), reply),  # noqa: B023
                lambda: turns_of(tokenizer, transcripts),  # noqa: B023
                lambda: encode(TriplesSpec(file="a.jsonl"), preferences, tokenizer),  # noqa: B023
            ):
                with pytest.raises(SubveneError, match="a block of reasoning without an answer"):
                    read()
            continue
        before, ids = reply_ids(tokenizer, prompt_ids(tokenizer, "hi"), reply)
        assert shown(tokenizer, [*before, *ids]) == prompt + expected
        # What is read is the answer, or with `keep` the block too; never the template's own marks.
        whole = rule == "keep" and reply == THOUGHT
        assert shown(tokenizer, ids) == (expected if whole else "Fine.")
        read = turns_of(tokenizer, transcripts)[0].read
        assert (list(read.ids), read.start) == ([*before, *ids], len(before))
        (example,) = encode(TriplesSpec(file="a.jsonl", end=False), preferences, tokenizer)
        assert (list(example.prompt), list(example.chosen)) == (before, ids)


def test_preferences_of_one_prompt_only() -> None:
    kept = told(odd.tokenizer(odd.OPENED), reasoning="keep")
    with pytest.raises(TextError, match="one begins with a block of reasoning and one does not"):
        encode(TriplesSpec(file="a.jsonl"), [Preference("hi", THOUGHT, "No.")], kept)


def test_truthfulqa_scores_answers_behind_an_empty_block() -> None:
    tokenizer, prompts = odd.tokenizer(odd.OPENED), Prompts("chat", (), None)
    asked = prompts.encode(tokenizer, ["Is it?"]).prompts[0]
    scored = prompts.encode(tokenizer, ["Is it?"], answered=True).prompts[0]
    assert shown(tokenizer, asked).endswith("<think>\n")
    assert shown(tokenizer, scored) == shown(tokenizer, asked) + "\n</think>\n\n"


def test_earlier_turns_are_read_as_what_they_answered() -> None:
    tokenizer = odd.tokenizer()
    talk = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": THOUGHT},
        {"role": "user", "content": "b"},
    ]
    assert "hm" not in shown(tokenizer, prompt_ids(tokenizer, talk))
    assert "hm" in shown(tokenizer, prompt_ids(told(tokenizer, reasoning="keep"), talk))


@pytest.mark.parametrize(
    ("template", "text", "answer"),
    [
        ("CHATML", THOUGHT, "Fine."),
        ("CHATML", "Fine.", "Fine."),
        ("CHATML", "<think>\nhm", ""),
        ("OPENED", "hm\n</think>\nFine.", "Fine."),
        ("OPENED", "hm", ""),
    ],
)
def test_what_was_generated_is_read_by_the_same_rule(template: str, text: str, answer: str) -> None:
    tokenizer = odd.tokenizer(getattr(odd, template))
    prompt, tokens = prompt_ids(tokenizer, "hi"), tokenizer(text)["input_ids"]
    start, said = answer_of(tokenizer, prompt, tokens)
    assert said == answer
    assert shown(tokenizer, tokens[start:]).strip() == answer
    assert answer_of(told(tokenizer, reasoning="keep"), prompt, tokens) == (0, text.strip())


@pytest.mark.parametrize(
    "text",
    ["[THINK]hm[/THINK]Fine.", "<|channel|>analysis<|message|>hm<|end|><|channel|>final<|message|>Fine."],
)
def test_the_marks_of_other_models(text: str) -> None:
    assert without_reasoning(text) == "Fine."


def test_rollouts_and_live_projections_leave_reasoning_out(tmp_path: Path) -> None:
    """A template that opens a block, and a model that never closes it: there is no answer to measure."""
    m = fit(spec(saved(tmp_path / "model", odd.OPENED)))
    with m.disabled():
        (cut,), _ = rollouts(m, [Row(tuple(prompt_ids(m.tokenizer, "hi")), temperature=0, max_new_tokens=6)])
        assert (cut.text, cut.start, len(cut.tokens)) == ("", 6, 6)
        vectors = {"k": {1: torch.ones(WIDTH)}}
        _, dropped = generate_with_projections(m, ["hi"], vectors, max_new_tokens=6, do_sample=False)
        m.tokenizer = told(m.tokenizer, reasoning="keep")
        _, kept = generate_with_projections(m, ["hi"], vectors, max_new_tokens=6, do_sample=False)
        (whole,), _ = rollouts(m, [Row(cut_prompt(m), temperature=0, max_new_tokens=6)])
    assert (dropped["rows"][0][0]["tokens"], kept["rows"][0][0]["tokens"]) == (0, 5)
    assert (whole.tokens, whole.start) == (cut.tokens, 0)
    assert whole.text == m.tokenizer.decode(whole.tokens, skip_special_tokens=True).strip()


def cut_prompt(m: Any) -> tuple[int, ...]:
    return tuple(prompt_ids(m.tokenizer, "hi"))


# Templates that are in trouble ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{{ 1 // 0 }}", "fails on this conversation .ZeroDivisionError: "),
        ("{{ messages + 1 }}", "fails on this conversation .TypeError: "),
        ("{{ messages[0].content.index('zzz') }}", "fails on this conversation .ValueError: "),
        ("{{ {}.pop('a') }}", "fails on this conversation .KeyError: |refuses"),
        ("{{ messages[0].content.encode('ascii').decode('utf-16') }}", "fails on this conversation .Unicode"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails on this conversation .RecursionError: "),
        ("{{ messages[0].nothing.more }}", "refuses this conversation"),
        ("{% if %}", "refuses this conversation"),
    ],
)
def test_what_a_templates_code_raises_is_its_own(template: str, said: str) -> None:
    with pytest.raises(TextError, match=said):
        prompt_ids(odd.tokenizer(template), "hello")


DROPS = {
    "the user": odd.CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role != 'user' %}"),
    "all but the last": odd.CHATML.replace("in messages %}", "in messages[-1:] %}"),
    "answers": odd.CHATML.replace("{% for m in messages %}", "{% for m in messages if m.role == 'user' %}"),
    "the end of a long turn": odd.CHATML.replace("m.content", "m.content[:4]"),
    "everything": "{% for m in messages %}hello{% endfor %}",
}
CONVERSATION = [
    {"role": "user", "content": "first words"},
    {"role": "assistant", "content": "an answer"},
    {"role": "user", "content": "last words"},
]


@pytest.mark.parametrize("which", [*DROPS])
def test_a_template_that_leaves_words_out_is_refused(which: str) -> None:
    with pytest.raises(TextError, match=r"leaves out what was said: message \d \((user|assistant)\), '"):
        prompt_ids(odd.tokenizer(DROPS[which]), CONVERSATION)


@pytest.mark.parametrize(
    "content",
    [
        "m.content | trim",
        "m.content | upper",
        "m.content | e",
        "m.content | tojson",
        "m.content.split() | join(' ')",
        "m.content | replace('\n', ' ')",
    ],
)
def test_a_template_may_strip_fold_and_escape(content: str) -> None:
    words = '  Is 1 < 2 & "so"\n\n on? \\n it\'s\t'
    tokenizer = odd.tokenizer(odd.CHATML.replace("m.content", f"({content})"))
    assert prompt_ids(tokenizer, [*CONVERSATION[:2], {"role": "user", "content": words}])


def test_reasoning_may_be_left_out_and_parts_are_read() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nan answer"}
    kept = told(odd.tokenizer(odd.QWEN3), reasoning="keep")
    assert prompt_ids(kept, [CONVERSATION[0], thought, CONVERSATION[2]])
    parts = odd.CHATML.replace("m.content", "m.content[0].text")
    asked = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    assert prompt_ids(odd.tokenizer(parts), asked)
    with pytest.raises(TextError, match="leaves out what was said"):
        prompt_ids(odd.tokenizer(parts.replace("[0].text", "[0].type")), asked)


@pytest.mark.parametrize("text", ["a \ud800 b", b"caf\xe9 and".decode("utf-8", "surrogateescape")])
def test_a_text_that_is_none_is_to_blame_and_not_the_template(text: str) -> None:
    tokenizer = odd.tokenizer()
    for call in (
        lambda: prompt_ids(tokenizer, text),
        lambda: prompt_ids(tokenizer, "hi", system=text),
        lambda: prompt_ids(tokenizer, [*CONVERSATION[:2], {"role": "user", "content": text}]),
        lambda: prompt_ids(tokenizer, text, chat=False),
        lambda: reply_ids(tokenizer, [1], text),
    ):
        with pytest.raises(TextError, match=r"is no text: '.ud.*' at position \d.*read it anew") as caught:
            call()
        assert "template" not in str(caught.value)
