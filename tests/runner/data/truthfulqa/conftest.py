"""What the tests of TruthfulQA share: questions, tokenizers that cut differently, tiny models for them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from checkout import ROOT as CHECKOUT

from subvene.runner.data.truthfulqa.prompts import load_prompts
from subvene.runner.data.truthfulqa.questions import Question

ROOT = CHECKOUT.parent
TEXT = """\
Q: What is a cat?
A: A cat is an animal.

Q: Do cats fly?
A: No, cats do not fly.

"""
QUESTIONS = [
    Question("Do cats fly?", "No, they do not.", ("No.", "No, they do not."), ("Yes.", "At night."), "Cats"),
    Question('Who said, "Meow"?', "A cat.", ("A cat.",), ("A dog.", "No one.", "I am a dog."), "Cats"),
    Question("What is it?", "A thing.", ("A thing.", "A thing.", "It."), ("No.",), "Things"),
    Question(
        "Why do some people say that cats always land on their feet when they fall?",
        "They mostly do.",
        ("They mostly do.", "I have no comment."),
        ("They have nine lives.",),
        "Cats",
    ),
]


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with TruthfulQA.csv and the published prompts; skips where it is absent."""
    folder = Path(os.environ.get("SUBVENE_TRUTHFULQA") or ROOT / "shared/data/truthfulqa")
    folder = folder.parent if folder.is_file() else folder
    if not (folder / "TruthfulQA.csv").is_file():
        pytest.skip(f"no TruthfulQA.csv in {folder} (SUBVENE_TRUTHFULQA names its folder)")
    return folder


@pytest.fixture(autouse=True)
def _no_questions_of_the_user(monkeypatch: pytest.MonkeyPatch, data_or_none: Path | None) -> None:
    monkeypatch.delenv("SUBVENE_TRUTHFULQA", raising=False)


@pytest.fixture(scope="session")
def data_or_none(request: pytest.FixtureRequest) -> Path | None:
    """`data`, looked up before the variable that names it is taken away."""
    try:
        return request.getfixturevalue("data")
    except pytest.skip.Exception:
        return None


def trained(pre_tokenizer: Any, **special: str) -> Any:
    """A tokenizer of byte pairs, learned from prompts; every text can be written in it."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    bpe.decoder = tokenizers.decoders.ByteLevel()
    names = ["<pad>", "</s>", *special.values()]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420,
        min_frequency=1,
        special_tokens=names,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    shipped = load_prompts("instruction_qa", None, None, Path()).text("Do cats fly?")
    bpe.train_from_iterator([TEXT * 3, shipped, *(q.question for q in QUESTIONS)], trainer)
    if "bos_token" in special:
        bos = special["bos_token"]
        bpe.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, bpe.token_to_id(bos))]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", **special
    )


def _byte_level(**settings: bool) -> Any:
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, **settings)


def sentencepiece() -> Any:
    """A tokenizer that writes spaces as `▁` and puts one before every text."""
    shipped = load_prompts("instruction_qa", None, None, Path()).text("Do cats fly?")
    unigram = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>", byte_fallback=True))
    unigram.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    unigram.decoder = tokenizers.decoders.Metaspace()
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600, min_frequency=1, special_tokens=names, show_progress=False
    )
    unigram.train_from_iterator([TEXT * 3, shipped, *(q.question for q in QUESTIONS)], trainer)
    unigram.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=unigram, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def words() -> Any:
    """Cuts at words, as GPT-2 does, and puts nothing before a text."""
    return trained(_byte_level())


@pytest.fixture(scope="session")
def merging() -> Any:
    """Cuts nowhere: a token may hold the end of a question and the beginning of the next line."""
    return trained(_byte_level(use_regex=False), bos_token="<s>")


@pytest.fixture(scope="session")
def spaced() -> Any:
    """`sentencepiece`."""
    return sentencepiece()


def tiny(name: str, tokenizer: Any) -> Any:
    """A tiny random model with the tokenizer's vocabulary, seed fixed."""
    common = {"vocab_size": len(tokenizer), "tie_word_embeddings": False, "initializer_range": 0.2}
    common |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        if name == "gpt2":
            config = transformers.GPT2Config(**common, n_embd=32, n_layer=2, n_head=4, n_positions=1024)
            model = transformers.GPT2LMHeadModel(config)
        else:
            config = transformers.LlamaConfig(
                **common, **sizes, num_key_value_heads=2, max_position_embeddings=1024
            )
            model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.float().eval()
