"""A fuzz target over spec → compile → run: what is declared is what a row edited by hand gives.

In the suite it runs for SUBVENE_FUZZ_SECONDS (12). For longer, and with a seed: `make fuzz`, or

    python tests/fuzz/test_runs.py --seconds 600 --seed 3

The oracle shares no code with subvene: each row alone, without padding and cache, edited by plain hooks that
are told which tokens.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
import oracle
from architectures import BY_NAME, HEADS, LAYERS, VOCAB, Architecture

from subvene.runner.edits.receipt import NotSteeredError
from subvene.runner.intervened.model import IntervenedModel

SECONDS = float(os.environ.get("SUBVENE_FUZZ_SECONDS", "12"))
MODELS = ("llama", "gpt2", "gemma3", "qwen3", "mistral", "gpt_neox", "opt", "olmo2", "falcon_new")
Hand = Callable[[torch.Tensor], torch.Tensor]


class Case:
    """One drawn spec, its tensors, and what each intervention does to an activation [tokens, width]."""

    def __init__(self, draw: random.Random, arch: Architecture) -> None:
        self.arch = arch
        self.generator = torch.Generator().manual_seed(draw.randrange(2**31))
        self.tensors: dict[str, torch.Tensor] = {}
        self.entries: list[dict[str, Any]] = []
        self.by_hand: list[tuple[str, dict[int, Hand], Any]] = []
        for i in range(draw.choice((1, 1, 2, 3))):
            draw.choice((self.steering, self.directions, self.low_rank, self.capping, self.ablation))(draw, i)

    def vector(self, name: str, *shape: int) -> torch.Tensor:
        self.tensors[name] = torch.randn(shape, generator=self.generator)
        return self.tensors[name]

    def add(
        self, draw: random.Random, i: int, entry: dict[str, Any], site: str, hands: dict[int, Hand]
    ) -> None:
        rule = positions(draw)
        self.entries.append({"name": f"edit{i}", "positions": rule, **entry})
        self.by_hand.append((site, hands, rule))

    def place(
        self, draw: random.Random, i: int, *sites: str
    ) -> tuple[str, int, torch.Tensor, dict[str, Any]]:
        site, layer = draw.choice(sites), draw.randrange(LAYERS)
        v = self.vector(f"k{i}.{site}[{layer}]", self.arch.width(site))
        return site, layer, v, {"site": site, "layer": layer}

    def steering(self, draw: random.Random, i: int) -> None:
        site, layer, v, where = self.place(draw, i, "block_output", "attention_output", "mlp_output")
        c = draw.uniform(-2, 2)
        entry = {"kind": "steering", "vector": {"key": f"k{i}"}, "coefficient": c, **where}
        self.add(draw, i, entry, site, {layer: lambda h: h + c * v})

    def directions(self, draw: random.Random, i: int) -> None:
        c, hands = draw.uniform(-2, 2), {}
        for layer in draw.sample(range(LAYERS), draw.randint(1, LAYERS)):
            d = self.vector(f"k{i}.attention_heads[{layer}]", HEADS, self.arch.head_dim)
            sigma = self.vector(f"k{i}.attention_heads[{layer}].sigma", HEADS).abs_()
            shift = c * (sigma[:, None] * d).flatten()
            hands[layer] = lambda h, shift=shift: h + shift
        entry = {"kind": "head_direction", "directions": {"key": f"k{i}"}, "strength": c}
        self.add(draw, i, entry, "attention_heads", hands)

    def low_rank(self, draw: random.Random, i: int) -> None:
        layer, c, rank = draw.randrange(LAYERS), draw.uniform(-0.3, 0.3), draw.choice((1, 2))
        width, dim = self.arch.width("attention_heads"), self.arch.head_dim
        heads = sorted(draw.sample(range(HEADS), draw.randint(1, HEADS)))
        a = self.vector(f"k{i}.attention_heads[{layer}].a", rank, width)
        b = self.vector(f"k{i}.attention_heads[{layer}].b", rank, width)
        for head in set(range(HEADS)) - set(heads):
            b[:, head * dim : (head + 1) * dim] = 0
        entry = {"kind": "low_rank_edit", "layer": layer, "write_heads": heads, "rank": rank, "strength": c}
        entry["factors"] = {"key": f"k{i}"}
        self.add(draw, i, entry, "attention_heads", {layer: lambda h: h + c * (h @ a.T) @ b})

    def capping(self, draw: random.Random, i: int) -> None:
        site, layer, v, where = self.place(draw, i, "block_output", "mlp_output")
        side, bound = draw.choice(("min", "max")), draw.uniform(-1, 1)
        unit = v / v.norm()

        def hand(h: torch.Tensor) -> torch.Tensor:
            p = (h @ unit).unsqueeze(-1)
            return h + ((bound - p).clamp_min(0) if side == "min" else -(p - bound).clamp_min(0)) * unit

        entry = {"kind": "capping", "direction": {"key": f"k{i}"}, side: bound, **where}
        self.add(draw, i, entry, site, {layer: hand})

    def ablation(self, draw: random.Random, i: int) -> None:
        site, layer, v, where = self.place(draw, i, "block_output", "attention_output")
        unit = v / v.norm()
        entry = {"kind": "ablation", "direction": {"key": f"k{i}"}, **where}
        self.add(draw, i, entry, site, {layer: lambda h: h - (h @ unit).unsqueeze(-1) * unit})

    @contextlib.contextmanager
    def edited(self, model: Any, prompt: int, total: int) -> Iterator[None]:
        """The model with every edit at the tokens of a row of `total` tokens, `prompt` of them prompt."""
        handles = []
        for site, hands, rule in self.by_hand:
            tokens = sorted(oracle.selected(rule, prompt, total))
            for layer, hand in hands.items():
                module = model.get_submodule(self.arch.path(site, layer))
                handles.append(_hooked(module, site == "attention_heads", tokens, hand))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _hooked(module: Any, is_input: bool, tokens: list[int], hand: Hand) -> Any:
    def changed(found: torch.Tensor) -> torch.Tensor:
        rows = found.clone().view(-1, found.shape[-1])  # OPT's and MPT's modules see all tokens as rows
        rows[tokens] = hand(rows[tokens])
        return rows.view(found.shape)

    if is_input:
        return module.register_forward_pre_hook(lambda _m, args: (changed(args[0]), *args[1:]))

    def after(_m: Any, _a: Any, output: Any) -> Any:
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    return module.register_forward_hook(after)


def positions(draw: random.Random) -> Any:
    """A position rule that generation can decide, too."""
    simple = ("all", "prompt", "response", "last_prompt_token")
    part = draw.choice(("prompt", "response"))
    chosen = [*simple, {"first": draw.randint(1, 4), "of": part}]
    chosen.append({"last": draw.randint(1, 4), "of": "prompt"})
    chosen.append({"indices": sorted(draw.sample(range(5), draw.randint(1, 2))), "of": part})
    return draw.choice(chosen)


def _settings(draw: random.Random, rows: int) -> dict[str, Any]:
    ways = [{}, {"use_cache": False}, {"cache_implementation": "static"}, {"prefill_chunk_size": 2}]
    if rows == 1:
        ways.append({"prompt_lookup_num_tokens": 2})
    return draw.choice(ways)


def one(draw: random.Random) -> str:
    """Draw a model, a spec and a way to run it, and hold the run against the oracle.

    Returns:
        `equal`, or `not steered` where the drawn rule selects no token.
    """
    arch = BY_NAME[draw.choice(MODELS)]
    model, case = arch.shared(), Case(draw, arch)
    fields = {"subvene": 1, "model": {"name": "tiny"}, "interventions": case.entries}
    m = IntervenedModel.from_spec(fields, model=model, tensors=case.tensors)
    prompts = [
        [draw.randrange(5, VOCAB - 6) for _ in range(draw.randint(1, 7))] for _ in range(draw.randint(1, 3))
    ]
    new = draw.randint(1, 5)
    ids, mask = oracle.batch(prompts, "left")
    settings = _settings(draw, len(prompts))
    called = draw.choice(("generate_ids", "attached"))
    options = {"max_new_tokens": new, "do_sample": False, "output_logits": True, **settings}
    options["return_dict_in_generate"] = True
    try:
        if called == "generate_ids":
            output = m.generate_ids(ids, mask, **options)
        else:
            with m.attached() as inside:
                output = inside.generate(input_ids=ids, attention_mask=mask, **options)
    except NotSteeredError:
        # Right only where some edit has nothing to act on, or nothing to do, in every row.
        for _, _, rule in case.by_hand:
            if not any(oracle.selected(rule, len(row), len(row) + new - 1) for row in prompts):
                return "not steered"
        raise
    logits = torch.stack(output.logits, 1)
    whole = []
    for i, prompt in enumerate(prompts):
        row = [*prompt, *output.sequences[i, ids.shape[1] :].tolist()]
        # The row as it was generated: its last token has not been passed.
        with case.edited(model, len(prompt), len(row) - 1), torch.no_grad():
            expected = model(torch.tensor([row[:-1]]), use_cache=False).logits[0]
        torch.testing.assert_close(logits[i], expected[len(prompt) - 1 :], atol=2e-4, rtol=2e-4)
        assert row[len(prompt)] == int(expected[len(prompt) - 1].argmax())
        whole.append(row[:-1])
    scored, mask = oracle.batch(whole, draw.choice(("left", "right")))
    with torch.no_grad():
        found = m(scored, mask, prompt_lengths=[len(prompt) for prompt in prompts]).logits
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(
            found[i][mask[i].bool()][len(prompt) - 1 :], logits[i], atol=2e-4, rtol=2e-4
        )
    for receipt, (_, _, rule) in zip(m.receipt, case.by_hand, strict=True):
        expected = sum(
            len(oracle.selected(rule, len(p), len(row))) for p, row in zip(prompts, whole, strict=True)
        )
        assert receipt.tokens == expected, (receipt.name, rule)
    return "equal"


def run(seconds: float, seed: int) -> dict[str, int]:
    """Draw cases for so long; how many were equal, and how many had nothing to edit.

    Raises:
        AssertionError: a case differs; its seed is in the message.
    """
    counts = {"equal": 0, "not steered": 0}
    end, case = time.monotonic() + seconds, seed
    while time.monotonic() < end:
        try:
            counts[one(random.Random(case))] += 1
        except Exception as error:
            raise AssertionError(f"case {case}: python tests/fuzz/test_runs.py --case {case}") from error
        case += 1
    return counts


def test_whatever_is_declared_is_what_happens() -> None:
    seed = int(os.environ.get("SUBVENE_FUZZ_SEED") or random.SystemRandom().randrange(2**31))
    print(f"SUBVENE_FUZZ_SEED={seed}")  # shown by pytest when it fails
    torch.set_num_threads(1)
    assert run(SECONDS, seed)["equal"] > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--case", type=int, help="one case alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.case is not None:
        print(one(random.Random(given.case)))
    else:
        print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
        print(run(given.seconds, given.seed))
