"""Calls in which rows cannot be told apart are refused, rather than edited at the wrong request."""

from __future__ import annotations

import copy

import oracle
import pytest
import torch
from oracle import LENGTHS, PROMPTS, batch, both_models, intervened, steering, tiny
from transformers import ContinuousBatchingConfig

from subvene.runner import PositionError

# 7. packed rows -------------------------------------------------------------------------------------------


@both_models
def test_position_ids_that_start_again_are_refused(name: str) -> None:
    m = intervened(tiny(name), steering("all"))
    ids = torch.tensor([[11, 12, 13, 21, 22]])
    with pytest.raises(PositionError, match="packs several requests"):
        m(ids, prompt_lengths=[2], position_ids=torch.tensor([[0, 1, 2, 0, 1]]))
    m(ids, prompt_lengths=[2], position_ids=torch.tensor([[0, 1, 2, 3, 4]]))


@pytest.mark.parametrize(
    "keyword", ["cu_seq_lens_q", "cu_seq_lens_k", "block_table", "read_index", "seq_idx"]
)
def test_keywords_of_packed_attention_are_refused(keyword: str) -> None:
    m = intervened(tiny("llama"), steering("all"))
    with pytest.raises(PositionError, match=keyword):
        m(torch.tensor([[11, 12, 13]]), **{keyword: torch.tensor([0, 2, 3])})
    assert oracle.hooks(m.model) == []


def test_rows_that_the_run_does_not_know_are_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, mask = batch(PROMPTS, "left")
    with pytest.raises(PositionError, match="3 rows"), m.intervenable.attached(oracle.tracker(mask)) as model:
        model(ids[:2], attention_mask=mask[:2])


def test_slots_that_the_run_does_not_know_are_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    ids, mask = batch(PROMPTS, "right")
    scoring = oracle.tracker(mask[:, :5], LENGTHS, generating=False)
    with pytest.raises(PositionError, match="slot 7"), m.intervenable.attached(scoring) as model:
        model(ids, attention_mask=mask)


def test_continuous_batching_is_refused() -> None:
    pytest.importorskip("psutil")
    m = intervened(tiny("llama"), steering("response"))
    settings = copy.deepcopy(m.model.generation_config)
    settings.max_new_tokens, settings.do_sample, settings.eos_token_id = 4, False, -1
    # The defaults size the cache for the whole machine.
    small = ContinuousBatchingConfig(num_blocks=8, max_batch_tokens=16)
    rows, mask = [[11, 12, 13], [21, 22, 23]], torch.ones(2, 3, dtype=torch.long)
    with (
        pytest.raises(PositionError, match="packs several requests"),
        m.intervenable.attached(oracle.tracker(mask)),
    ):
        m.model.generate_batch(
            rows, generation_config=settings, continuous_batching_config=small, warmup=False
        )
    assert oracle.hooks(m.model) == []


def test_guidance_is_refused() -> None:
    m = intervened(tiny("llama"), steering("all"))
    for settings in (
        {"guidance_scale": 2.0},
        {"generation_config": copy.deepcopy(m.model.generation_config)},
    ):
        if "generation_config" in settings:
            settings["generation_config"].guidance_scale = 2.0
        with pytest.raises(PositionError, match="guidance_scale"):
            m.generate_ids(*batch(PROMPTS, "left"), max_new_tokens=2, **settings)
    m.model.generation_config.guidance_scale = 2.0
    with pytest.raises(PositionError, match="guidance_scale"):
        m.generate_ids(*batch(PROMPTS, "left"), max_new_tokens=2)
