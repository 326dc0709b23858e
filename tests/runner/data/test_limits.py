"""Texts that are longer than a model's context are refused with the numbers, wherever they come in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from oracle import LENGTHS, PROMPTS, batch, intervened, steering, tiny
from tiny_preferences import experiment, train

from subvene.runner.data.examples import Example
from subvene.runner.data.limits import TooLongError, context_length, refuse_beyond_context
from subvene.runner.data.span import Text
from subvene.runner.intervened.rollouts import Row, rollouts
from subvene.runner.intervened.scoring import log_probs
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.monitor.projection import project
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage

LONG = list(range(1, 66))  # the tiny models read 64 tokens


class _Padding:
    """All that is asked of a tokenizer where texts come as token ids."""

    pad_token_id, eos_token_id = 0, None


@pytest.fixture(params=["llama", "gpt2"])
def m(request: pytest.FixtureRequest) -> Any:
    made = intervened(tiny(request.param), steering("response"))
    made.tokenizer = _Padding()
    return made


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (transformers.LlamaConfig(max_position_embeddings=77), 77),
        (transformers.GPT2Config(n_positions=33), 33),
        (transformers.BloomConfig(), None),
        (
            transformers.Qwen2Config(
                max_position_embeddings=100,
                rope_parameters={
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 100,
                    "rope_theta": 10000.0,
                },
            ),
            400,
        ),
        (transformers.Gemma3TextConfig(max_position_embeddings=55), 55),
    ],
    ids=["llama", "gpt2", "without a limit", "stretched", "by layer"],
)
def test_what_a_config_says(config: Any, expected: int | None) -> None:
    model = type("Model", (), {"config": config})
    assert context_length(model) == expected


def test_the_words() -> None:
    model = tiny("llama")
    refuse_beyond_context(model, [64], "text")
    with pytest.raises(TooLongError, match="text 1 has 65 tokens, and this model reads at most 64"):
        refuse_beyond_context(model, [3, 65], "text")
    with pytest.raises(TooLongError, match=r"prompt 0 has 60 tokens and 5 .* at most 64; .*max_new"):
        refuse_beyond_context(model, [60], "prompt", new=5)


def test_a_call(m: Any) -> None:
    with pytest.raises(TooLongError, match="row 0 has 65 tokens"):
        m(torch.tensor([LONG]), prompt_lengths=[3])
    with m.disabled(), pytest.raises(TooLongError, match="row 0 has 65 tokens"):
        m(torch.tensor([LONG]))
    with torch.no_grad():
        m(torch.tensor([LONG[:64]]), prompt_lengths=[3])


def test_padding_is_no_token() -> None:
    m = intervened(tiny("llama"), steering("response"))
    ids, mask = batch(PROMPTS, "right")
    wide = torch.nn.functional.pad(ids, (60, 0)), torch.nn.functional.pad(mask, (60, 0))
    with torch.no_grad():
        m(*wide, prompt_lengths=LENGTHS)


def test_a_cache_counts(m: Any) -> None:
    cache = transformers.DynamicCache()
    with torch.no_grad():
        m(torch.tensor([LONG[:60]]), prompt_lengths=[3], past_key_values=cache, use_cache=True)
    with pytest.raises(TooLongError, match="row 0 has 65 tokens"):
        m(torch.tensor([LONG[60:]]), prompt_lengths=[3], past_key_values=cache)


def test_a_generation_that_would_not_fit(m: Any) -> None:
    ids = torch.tensor([LONG[:60]])
    assert m.generate_ids(ids, max_new_tokens=4, do_sample=False).shape[1] == 64
    with pytest.raises(TooLongError, match="row 0 has 60 tokens and 5 are to follow"):
        m.generate_ids(ids, max_new_tokens=5)
    with pytest.raises(TooLongError, match="a prompt, row 0 has 60 tokens and 5 are to follow"):
        rollouts(m, [Row(tuple(LONG[:60]), max_new_tokens=5)])


def test_scores_projections_and_activations(m: Any) -> None:
    with pytest.raises(TooLongError, match="has 65 tokens"):
        log_probs(m, [(LONG[:5], LONG[5:])])
    vectors = {"v": {1: torch.ones(32)}}
    for edited in (False, True):
        with pytest.raises(TooLongError, match="has 65 tokens"):
            project(m, [Text(tuple(LONG), 3, 65)], vectors, edited=edited)


def test_collected_and_trained(m: Any, tmp_path: Any) -> None:
    anatomy = Anatomy.of(m.model)
    with pytest.raises(TooLongError, match="passage 0 has 65 tokens"):
        collect(
            anatomy,
            "block_output",
            [0],
            [Passage(tuple(LONG), ((0, 1),))],
            tmp_path,
            pad_id=0,
            batch_size=1,
        )
    long = Example("q", tuple(LONG[:60]), tuple(LONG[:6]), (1, 2))
    with pytest.raises(TooLongError, match=r"fit.data: answer 0 has 66 tokens"):
        train(m.model, [long], experiment("edit", {0: (1,)}, [long], validation=None))
