"""The collector: rows are those of one text at a time, kept by content, and a kill loses little."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
import transformers
from architectures import ARCHITECTURES, HEADS, VOCAB, WIDTH, Architecture
from forked import Forked
from oracle import blocks, hooks, tiny
from torch import nn

from subvene.runner.data.text import TextError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.models.identity import model_sha256
from subvene.runner.passes.collector import Collected, collect
from subvene.runner.passes.passages import Passage, common_prefix, every_token, last, shared_prefix
from subvene.runner.passes.passes import Fork, Trees, cut, plan, tree_of
from subvene.runner.passes.shards import INDEX, StoreError

BY_NAME = {architecture.name: architecture for architecture in ARCHITECTURES}
# Of every kind of position, window, mixture and attention that the full list has.
SOME = [
    "llama",
    "mistral",
    "gemma3",
    "qwen3_moe",
    "gpt2",
    "gpt_neo",
    "opt",
    "bloom",
    "mpt",
    "gpt_oss",
    "deepseek_v3",
]
SOME += ["falcon_multi_query", "qwen2_vl"]
# Their windows of 4 tokens, or positions that come from the mask, allow no trees.
FORKED = ["mistral", "gemma3", "gpt_neo", "bloom", "mpt", "gpt_oss"]


def passages() -> list[Passage]:
    """15 texts of 5 questions of unlike length, each read at several spans, before and behind the prefix."""
    generator = torch.Generator().manual_seed(0)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 90, (n,), generator=generator).tolist())

    found = []
    for question in range(5):
        prefix = ids(3 + 2 * question)
        rows = [prefix + ids(2 + (3 * i + question) % 7) for i in range(1 + question)]
        shared = shared_prefix(rows)
        for row in rows:
            n = len(row)
            found.append(Passage(row, (last(n), last(n, 4), (1, n - 1), (0, 2)), shared))
    return found


PASSAGES = passages()


@torch.no_grad()
def by_hand(model: nn.Module, path: str, is_input: bool, ids: Sequence[int]) -> torch.Tensor:
    """[tokens, width] of one text, run alone through the whole model and read by a plain hook."""
    seen: list[torch.Tensor] = []

    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        found = args[0] if is_input else output
        seen.append(found[0] if isinstance(found, tuple) else found)

    handle = model.get_submodule(path).register_forward_hook(hook)
    try:
        model(torch.tensor([list(ids)]), use_cache=False)
    finally:
        handle.remove()
    return seen[0].reshape(len(ids), -1).double()


def gather(model: nn.Module, folder: Path, texts: Sequence[Passage] = PASSAGES, **options: Any) -> Collected:
    settings: dict[str, Any] = {
        "site": "attention_heads",
        "layers": [0, 1],
        "pad_id": 0,
        "batch_size": 4,
    } | options
    site, layers = settings.pop("site"), settings.pop("layers")
    return collect(Anatomy.of(model), site, layers, texts, folder, **settings)


def rows_of(found: Collected, texts: Sequence[Passage], layer: int) -> list[torch.Tensor]:
    """Rows in the order of the texts and their spans."""
    order = [found.first_rows[i] + j for i, text in enumerate(texts) for j in range(len(text.spans))]
    return list(found.read(layer, torch.tensor(order)))


def assert_same_rows(one: Collected, other: Collected, layers: Sequence[int] = (0, 1)) -> None:
    for layer in layers:
        assert torch.equal(one.read(layer), other.read(layer))


# What is read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("site", ["attention_heads", "block_output"])
def test_rows_equal_those_of_one_text_at_a_time(name: str, site: str, tmp_path: Path) -> None:
    architecture: Architecture = BY_NAME[name]
    model = architecture.shared()
    small = 4 * architecture.width(site) * 2 * 20  # several shards
    found = gather(model, tmp_path, site=site, shard_bytes=small)
    assert found.way == ("fork" if name in FORKED else "tree")
    assert (found.note is None) == (found.way == "tree")
    if name in ("mistral", "gemma3", "gpt_oss"):
        assert found.note == "no tree: some layers see 4 tokens only"
    assert len(found.store.index.shard_rows) > 3
    for layer in (0, 1):
        expected = []
        for text in PASSAGES:
            tokens = by_hand(model, architecture.path(site, layer), site == "attention_heads", text.ids)
            expected += [tokens[start:end].mean(0) for start, end in text.spans]
        rows = rows_of(found, PASSAGES, layer)
        assert len(rows) == len(expected) == 60
        for row, known in zip(rows, expected, strict=True):
            assert row.dtype == torch.float32
            assert (row - known).abs().max() <= 1e-5 * max(1.0, float(known.abs().max()))


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_batch_size_does_not_matter(batch_size: int, tmp_path: Path) -> None:
    model = tiny("llama")
    one, other = gather(model, tmp_path / "a"), gather(model, tmp_path / "b", batch_size=batch_size)
    for a, b in zip(rows_of(one, PASSAGES, 1), rows_of(other, PASSAGES, 1), strict=True):
        assert (a - b).abs().max() <= 1e-5


def test_every_token(tmp_path: Path) -> None:
    model, ids = tiny("llama"), PASSAGES[-1].ids
    found = gather(model, tmp_path, [Passage(ids, every_token(2, len(ids)))])
    expected = by_hand(model, "model.layers.1.self_attn.o_proj", True, ids)[2:]
    assert (found.read(1) - expected).abs().max() <= 1e-5


def test_spans() -> None:
    assert last(7) == (6, 7)
    assert last(7, 3) == (4, 7)
    assert last(7, 9) == (0, 7)
    assert last(7, 9, start=5) == (5, 7)
    assert every_token(2, 4) == ((2, 3), (3, 4))
    assert common_prefix([(1, 2, 3), (1, 2, 9, 9), (1, 2)]) == 2
    assert shared_prefix([(1, 2, 3), (1, 2, 9, 9)]) == 2
    assert shared_prefix([(1, 2, 3), (1, 2)]) == 1  # a token of each is left to be read behind it
    assert shared_prefix([(1, 2, 3)]) == 0
    assert shared_prefix([(1, 2), (3, 4)]) == 0


def test_low_precision_is_kept_as_float32(tmp_path: Path) -> None:
    model = tiny("llama").bfloat16()
    found = gather(model, tmp_path, batch_size=1)
    assert found.way == "tree"
    text = PASSAGES[0]
    expected = by_hand(model, "model.layers.0.self_attn.o_proj", True, text.ids)
    rows = rows_of(found, PASSAGES, 0)
    assert torch.equal(rows[0], expected[-1].float())
    assert (rows[2] - expected[1:-1].mean(0)).abs().max() <= 1e-6


# How much is computed -------------------------------------------------------------------------------------


def test_what_texts_begin_with_is_passed_once(tmp_path: Path) -> None:
    model, prefix = tiny("llama"), tuple(range(3, 43))
    texts = [Passage((*prefix, 50 + i // 2, 60 + i), (last(42),), 40) for i in range(8)]
    seen: list[int] = []
    model.model.layers[0].register_forward_pre_hook(lambda _m, args: seen.append(args[0].shape[:2].numel()))
    found = gather(model, tmp_path, texts, batch_size=8)
    assert found.way == "tree"
    # The try: the last text, and the one around the longest, alone and in their tree. Then that tree.
    tree = 40 + 4 + 8
    assert sum(seen) == 2 * 42 + tree + tree
    assert found.tokens == sum(seen)
    unshared = [Passage(text.ids, text.spans) for text in texts]
    other = gather(model, tmp_path, unshared)
    assert (other.way, other.note) == ("whole", None)
    assert other.tokens == 8 * 42
    assert (found.read(1) - other.read(1)).abs().max() <= 1e-5


def test_a_prefix_is_forked_where_there_are_no_trees(tmp_path: Path) -> None:
    model, prefix = BY_NAME["bloom"].shared(), tuple(range(3, 43))
    texts = [Passage((*prefix, 50 + i, 60 + i), (last(42),), 40) for i in range(30)]
    found = gather(model, tmp_path, texts, batch_size=30)
    assert found.way == "fork"
    assert found.note is not None
    assert found.note.startswith("no tree: ")
    tried = (2 * 42 + 40 + 12 + 60) + (2 * 42 + 40 + 2 * 2)
    assert found.tokens <= 40 + 30 * 2 + tried < 30 * 42 / 2
    unshared = [Passage(text.ids, text.spans) for text in texts]
    other = gather(model, tmp_path, unshared)
    assert (found.read(1) - other.read(1)).abs().max() <= 1e-5


@pytest.mark.parametrize("shared", [40, 0])
def test_the_pass_ends_at_the_last_layer_needed(shared: int, tmp_path: Path) -> None:
    model, prefix = tiny("llama"), tuple(range(3, 43))
    ran: set[Any] = set()
    for layer, block in enumerate(blocks(model)):
        block.register_forward_pre_hook(lambda *_, layer=layer: ran.add(layer))
    model.lm_head.register_forward_pre_hook(lambda *_: ran.add("head"))
    gather(model, tmp_path, [Passage((*prefix, 50 + i), (last(41),), shared) for i in range(4)], layers=[1])
    assert ran == {0, 1}


def test_little_is_padding(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(3, 99, (n,), generator=generator).tolist())

    texts, needed = [], 0
    for question in range(60):
        prefix = ids(8 + question % 23)
        rows = [prefix + ids(4 + (7 * i + 3 * question) % 31) for i in range(7)]
        shared = shared_prefix(rows)
        needed += shared + sum(len(row) - shared for row in rows)
        texts += [Passage(row, (last(len(row)),), shared) for row in rows]
    found = gather(tiny("llama"), tmp_path, texts, batch_size=64)
    assert found.way == "tree"
    assert found.tokens < 1.1 * needed
    assert needed < 0.6 * sum(len(text.ids) for text in texts)


# Models whose cache is none of keys and values ------------------------------------------------------------


def test_a_state_beside_keys_and_values_means_whole_texts(tmp_path: Path) -> None:
    config = transformers.Lfm2Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        layer_types=["conv", "full_attention"],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    found = gather(model, tmp_path, site="block_output")
    assert found.way == "whole"
    assert found.note is not None
    assert "LinearAttentionLayer" in found.note
    rows = rows_of(found, PASSAGES, 1)
    for i, text in enumerate(PASSAGES):
        expected = by_hand(model, "model.layers.1", False, text.ids)
        assert (rows[4 * i] - expected[-1]).abs().max() <= 1e-5
    again = gather(model, tmp_path, site="block_output")
    assert (again.tokens, again.way, again.note) == (0, "whole", found.note)


@pytest.mark.parametrize("sees_masks", [True, False])
def test_a_model_that_takes_what_it_does_not_use_is_noticed(sees_masks: bool, tmp_path: Path) -> None:
    """Attention of somebody's own that takes a cache, or a mask, and does not look at it."""
    model = tiny("llama")
    for block in blocks(model):
        block.self_attn.forward = _forgetful(block.self_attn.forward, sees_masks)
    found = gather(model, tmp_path)
    if sees_masks:
        assert (found.way, found.note) == ("tree", None)  # which needs no cache
    else:
        assert found.way == "whole"
        assert found.note is not None
        assert "no tree: attention_heads[" in found.note
        assert "no fork: attention_heads[" in found.note
    rows = rows_of(found, PASSAGES, 1)
    for i, text in enumerate(PASSAGES):
        expected = by_hand(model, "model.layers.1.self_attn.o_proj", True, text.ids)
        assert (rows[4 * i] - expected[-1]).abs().max() <= 1e-5


def _forgetful(forward: Any, sees_masks: bool) -> Any:
    def forgetful(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        batch, length = hidden_states.shape[:2]
        if cache is not None:
            cache.update(*[torch.zeros(batch, 1, length, 1)] * 2, 0)
        # Without a mask attention is causal.
        kept = mask[..., -length:] if mask is not None and sees_masks else None
        return forward(hidden_states, *args, **kwargs | {"past_key_values": None, "attention_mask": kept})

    return forgetful


def test_a_window_that_only_large_trees_leave_is_noticed(tmp_path: Path) -> None:
    """A window over the slots of a row: two texts are read right in one tree, and a dozen are not."""
    config = transformers.GPTNeoConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_layers=2,
        num_heads=HEADS,
        attention_types=[[["global", "local"], 1]],
        window_size=20,
        max_position_embeddings=64,
        initializer_range=0.15,
        pad_token_id=0,
        attn_implementation="eager",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    rows = [(*range(3, 11), 20 + i, 40 + i, 60 + i) for i in range(12)]
    few = [Passage(row, every_token(0, 11), 8) for row in rows[:2]]
    assert gather(model, tmp_path, few).way == "tree"
    found = gather(model, tmp_path, [Passage(row, every_token(0, 11), 8) for row in rows], batch_size=64)
    assert found.way == "fork"
    for i, row in enumerate(rows):
        expected = by_hand(model, "transformer.h.1.attn.attention.out_proj", True, row)
        read = found.read(1, torch.arange(11) + found.first_rows[i])
        assert (read - expected).abs().max() <= 1e-5


# What is kept ---------------------------------------------------------------------------------------------


def test_what_is_there_is_not_computed_again(tmp_path: Path) -> None:
    model = tiny("llama")
    first = gather(model, tmp_path)
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    model.model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    second = gather(model, tmp_path)
    assert (second.tokens, second.content, second.first_rows) == (0, first.content, first.first_rows)
    assert_same_rows(first, second)


def test_everything_that_numbers_depend_on_names_them(tmp_path: Path) -> None:
    model = tiny("llama")
    contents = [gather(model, tmp_path).content]
    contents.append(gather(model, tmp_path, site="block_output").content)
    contents.append(gather(model, tmp_path, layers=[0]).content)
    contents.append(gather(model, tmp_path, batch_size=5).content)
    contents.append(gather(model, tmp_path, PASSAGES[:-1]).content)
    spans = [Passage(text.ids, text.spans[:1], text.shared) for text in PASSAGES]
    contents.append(gather(model, tmp_path, spans).content)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[3, 5] += 1e-3
    contents.append(gather(model, tmp_path).content)
    assert len(set(contents)) == len(contents)


def test_identity_is_that_of_content() -> None:
    model = tiny("llama")
    known = model_sha256(model)
    assert model_sha256(tiny("llama")) == known
    model.config._name_or_path = "/elsewhere"
    assert model_sha256(model) == known
    assert model_sha256(tiny("llama").bfloat16()) != known
    model.config.rms_norm_eps = 1e-3
    assert model_sha256(model) != known
    assert model_sha256(tiny("gpt2")) != known


def test_rows_depend_on_no_other_texts_than_those_of_the_call(tmp_path: Path) -> None:
    """Nor on their order, nor on what another call has left in the folder."""
    model, chosen = tiny("llama"), PASSAGES[3:12]
    alone = gather(model, tmp_path / "alone", chosen)
    gather(model, tmp_path / "shared")
    beside = gather(model, tmp_path / "shared", chosen)
    assert_same_rows(alone, beside)
    back = chosen[::-1]
    turned = gather(model, tmp_path / "turned", back)
    assert turned.content == alone.content
    for a, b in zip(rows_of(alone, chosen, 1), _by_text(turned, back, chosen), strict=True):
        assert torch.equal(a, b)


def _by_text(found: Collected, given: Sequence[Passage], wanted: Sequence[Passage]) -> list[torch.Tensor]:
    rows = rows_of(found, given, 1)
    return [rows[4 * given.index(text) + j] for text in wanted for j in range(4)]


def test_subsets_are_read_alone(tmp_path: Path) -> None:
    model = tiny("llama")
    found = gather(model, tmp_path, shard_bytes=4 * WIDTH * 2 * 7)
    whole = found.read(1)
    assert whole.shape == (60, 32)
    rows = torch.tensor([51, 3, 3, 0, 59, 20])
    assert torch.equal(found.read(1, rows), whole[rows])
    head = slice(8, 16)
    assert torch.equal(found.read(1, rows, head), whole[rows, head])
    assert torch.equal(found.read(0, columns=head), found.read(0)[:, head])
    assert found.read(0, torch.tensor([], dtype=torch.long)).shape == (0, 32)
    with pytest.raises(StoreError, match="layer 2 was not collected, only 0, 1"):
        found.read(2)
    for row in (60, -1):
        with pytest.raises(StoreError, match="expected rows from 0 to 59"):
            found.read(1, torch.tensor([row]))


def test_shards_have_about_the_size_asked_for(tmp_path: Path) -> None:
    row = 4 * 32 * 2
    found = gather(tiny("llama"), tmp_path, shard_bytes=12 * row)
    assert sum(found.store.index.shard_rows) == 60
    assert max(found.store.index.shard_rows) <= 12
    # One group that is larger than a shard is cut.
    prefix = (5, 6, 7)
    texts = [Passage((*prefix, 10 + i), ((3, 4),), 3) for i in range(40)]
    found = gather(tiny("llama"), tmp_path, texts, shard_bytes=12 * row)
    assert found.way == "tree"
    assert max(found.store.index.shard_rows) <= 12


# Interruptions --------------------------------------------------------------------------------------------

SMALL = 4 * 32 * 2 * 7


def test_a_killed_collection_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def slowly() -> None:
        model = tiny("llama")
        model.model.layers[0].register_forward_pre_hook(lambda *_: time.sleep(0.15))
        gather(model, tmp_path / "killed", shard_bytes=SMALL)

    process = Forked(slowly)
    deadline = time.monotonic() + 120
    done: list[Path] = []
    while len(done) < 3:
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
        done = sorted((tmp_path / "killed").glob("*/shard-*.safetensors"))
    process.kill()
    process.communicate()
    done = sorted((tmp_path / "killed").glob("*/shard-*.safetensors"))
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done}
    model = tiny("llama")
    fresh = gather(model, tmp_path / "fresh", shard_bytes=SMALL)
    assert 3 <= len(done) < len(fresh.store.index.shard_rows)
    resumed = gather(model, tmp_path / "killed", shard_bytes=SMALL)
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in done} == before
    assert 0 < resumed.tokens < fresh.tokens
    assert resumed.content == fresh.content
    assert_same_rows(resumed, fresh)


def test_half_a_shard_is_never_read(tmp_path: Path) -> None:
    model = tiny("llama")
    expected = gather(model, tmp_path / "whole", shard_bytes=SMALL)
    found = gather(model, tmp_path / "other", shard_bytes=SMALL)
    first, second, third, fourth, *_ = sorted(found.store.folder.glob("shard-*"))
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(b"")
    third.write_bytes(fourth.read_bytes())  # another shard, whether of another number of rows or not
    left = found.store.folder / ".shard-00009.safetensors-abc.new"
    left.write_bytes(b"half")
    again = gather(model, tmp_path / "other", shard_bytes=SMALL)
    assert again.tokens > 0
    assert not left.exists()
    assert_same_rows(again, expected)


@pytest.mark.parametrize("index", ["", "{}", "[]", '{"format": 1, "content": "x"}', None])
def test_an_index_that_is_none_is_replaced(index: str | None, tmp_path: Path) -> None:
    model = tiny("llama")
    found = gather(model, tmp_path)
    if index is None:
        (found.store.folder / INDEX).unlink()
    else:
        (found.store.folder / INDEX).write_text(index)
    again = gather(model, tmp_path)
    assert again.tokens == found.tokens
    assert_same_rows(found, again)
    assert json.loads((found.store.folder / INDEX).read_text())["content"] == found.content


def test_a_shard_that_vanishes_says_so(tmp_path: Path) -> None:
    found = gather(tiny("llama"), tmp_path)
    shard = next(found.store.folder.glob("shard-*"))
    shard.unlink()
    with pytest.raises(StoreError, match=r"shard-00000\.safetensors: cannot be read"):
        found.read(0)


def test_an_interrupted_pass_leaves_nothing_behind(tmp_path: Path) -> None:
    model = tiny("llama").train()
    before = hooks(model)
    calls: list[int] = []

    def stop(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt

    handle = model.model.layers[1].register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        gather(model, tmp_path)
    handle.remove()
    assert hooks(model) == before
    assert all(module.training for module in model.modules())
    assert not list(tmp_path.glob("**/.*.new"))
    again = gather(model, tmp_path)
    assert_same_rows(again, gather(model, tmp_path / "fresh"))


def test_shards_are_ordinary_safetensors(tmp_path: Path) -> None:
    found = gather(tiny("llama"), tmp_path)
    path = found.store.folder / "shard-00000.safetensors"
    with safetensors.safe_open(path, "pt") as file:
        assert sorted(file.keys()) == ["activations.attention_heads[0]", "activations.attention_heads[1]"]
        assert file.metadata() == {"activations": f"{found.content}/0"}
    assert os.stat(path).st_size < 60 * 32 * 2 * 4 + 1000


# Bad inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("passage", "message"),
    [
        (Passage((), ()), "passage 1 holds no token"),
        (Passage((4,) * 65, ((0, 1),)), "passage 1 has 65 tokens, and this model reads at most 64"),
        (Passage((4, 5), ((1, 3),)), "expected spans within its 2 tokens, found 1 to 3"),
        (Passage((4, 5), ((1, 1),)), "found 1 to 1"),
        (Passage((4, 5), ((-1, 1),)), "found -1 to 1"),
        (Passage((4, 5), ((0, 1),), 2), r"expected 0 to 1 shared tokens \(one must be left\), found 2"),
    ],
)
def test_bad_passages(passage: Passage, message: str, tmp_path: Path) -> None:
    with pytest.raises(TextError, match=message):
        gather(BY_NAME["llama"].shared(), tmp_path, [PASSAGES[0], passage])
    assert not list(tmp_path.iterdir())


def test_no_passages(tmp_path: Path) -> None:
    found = gather(tiny("llama"), tmp_path, [])
    assert found.read(0).shape == (0, 32)


@pytest.mark.parametrize("way", ["tree", "fork", "whole"])
def test_the_plan_covers_every_passage_once(way: Any) -> None:
    read = []
    for groups in cut(PASSAGES, 8, way):
        for step in plan(PASSAGES, groups, way, 3, 24):
            if isinstance(step, Trees):
                assert way == "tree"
                batch = [i for group in step.groups for i in group]
                assert len(batch) <= 3
                read += batch
                continue
            assert isinstance(step, Fork)
            of_batches = [i for batch in step.batches for i in batch]
            assert sorted(i for group in step.groups for i in group) == sorted(of_batches)
            assert all(len(batch) <= 3 for batch in step.batches)
            assert len(step.groups) <= 3
            assert step.prefix <= min(PASSAGES[group[0]].shared for group in step.groups)
            assert way == "fork" or not step.prefix
            read += of_batches
    assert sorted(read) == list(range(len(PASSAGES)))


def test_a_tree() -> None:
    tree = tree_of([(5, 6, 7), (5, 6, 8, 7), (5, 9), (5, 6)])
    assert tree.ids == (5, 6, 7, 8, 7, 9)
    assert tree.depths == (0, 1, 2, 2, 3, 1)
    assert tree.parents == (-1, 0, 1, 1, 3, 0)
    assert tree.paths == ((0, 1, 2), (0, 1, 3, 4), (0, 5), (0, 1))


def test_long_texts_make_several_trees() -> None:
    texts = [Passage((*range(100), *[i] * 200), ((0, 1),), 100) for i in range(9)]
    (shard,) = cut(texts, 100, "tree")
    groups = [group for step in plan(texts, shard, "tree", 64, 24) for group in step.groups]
    assert sorted(i for group in groups for i in group) == list(range(9))
    sizes = [len(tree_of([texts[i].ids for i in group]).ids) for group in groups]
    assert max(sizes) == 500
    assert len(groups) == 5
