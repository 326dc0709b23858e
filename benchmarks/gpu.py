"""What there is to measure on a GPU, on any machine that has one: random weights, made on the spot.

Each kind in float32 and bfloat16 against a plain hook with its formula (which tests hold to ones written by
hand); decoding, uncompiled and with CUDA graphs; strengths in one batch against a loop; activations
of all heads; the memory of a training step; serving, where vLLM is installed. `--sizes 1B 8B` chooses models
(`made_models.SIZES`). Without a GPU it runs on the CPU with a tiny model, to see that it runs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from compiled import compiled_by
from made_models import SIZES, made, prompts
from operations import every_kind, intervened, steering
from rich.console import Console
from rich.table import Table
from transformers import CompileConfig

from subvene.runner.data.examples import Example
from subvene.runner.models.anatomy import Anatomy, component_module
from subvene.runner.models.identity import environment
from subvene.runner.passes.collector import collect
from subvene.runner.passes.passages import Passage, last
from subvene.runner.training.experiments import Experiment
from subvene.runner.training.multiplex import EditShape
from subvene.runner.training.trainer import train_edits
from subvene.specs.recipes.localized_edit import LocalizedEditSpec

# Largest difference of logits from the hook's, as a part of the largest logit.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7}
STRENGTHS = [-2.0, -1.0, 0.0, 1.0, 2.0, 4.0]

Numbers = dict[str, float | None]


@contextmanager
def hooked(m: Any, first: int) -> Iterator[None]:
    """The model with plain hooks: in float32, rounded once, from token `first` on."""
    handles = []
    for key in m.intervenable.sorted_keys:
        edit = m.intervenable.interventions[key]
        module, is_input = component_module(m.model, str(m.intervenable.representations[key].component))

        def edited(h: torch.Tensor, edit: Any = edit) -> torch.Tensor:
            edit.to(h.device)
            scale = edit.strength.expand(h.shape[0]).view(-1, 1, 1)
            return torch.cat([h[:, :first], edit.edit(h[:, first:].float(), scale).to(h.dtype)], 1)

        if is_input:
            handles.append(module.register_forward_pre_hook(lambda _m, a, f=edited: (f(a[0]), *a[1:])))
        else:
            handles.append(
                module.register_forward_hook(
                    lambda _m, _a, out, f=edited: (f(out[0]), *out[1:]) if isinstance(out, tuple) else f(out)
                )
            )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def correctness(model: Any, device: str) -> Numbers:
    """Kind → largest difference from plain hooks, as a part of the largest logit; None: no formula alone."""
    inputs, found = prompts(2, 12, device), {}
    for name, declared in every_kind().items():
        m = intervened(model, [declared])
        edits = m.intervenable.interventions.values()
        if any(one.kind == "pyvene" or one.needs_tokens or one.needs_module_input for one in edits):
            found[f"differs: {name}"] = None
            continue
        logits = m(**inputs, prompt_lengths=[8, 8]).logits
        with hooked(m, 7):
            by_hand = model(**inputs).logits
        found[f"differs: {name}"] = float((logits - by_hand).abs().max() / by_hand.abs().max())
    return found


def seconds_of(run: Callable[[], object], device: str, rounds: int) -> float:
    """The least of some rounds, after one to warm up."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def decoding(model: Any, device: str, tokens: int, rounds: int) -> Numbers:
    """Seconds of plain decoding and steered at one block and at all, beside it, uncompiled and compiled."""
    inputs = prompts(1, 16, device)
    greedy = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    blocks = range(model.config.num_hidden_layers)
    graphs = compiled_by("eager")
    if device != "cpu":
        config = CompileConfig(mode="reduce-overhead", fullgraph=True)
        graphs = {"cache_implementation": "static", "compile_config": config}
    found: Numbers = {}
    for words, more in (("eager", {"disable_compile": True}), ("CUDA graphs", graphs)):
        arms = {"plain": model.generate} | {
            name: intervened(model, steering(chosen, coefficient=0.05)).generate_ids
            for name, chosen in (("one block", [len(blocks) // 2]), ("all blocks", blocks))
        }
        times = {
            name: seconds_of(lambda run=run, more=more: run(**inputs, **greedy, **more), device, rounds)
            for name, run in arms.items()
        }
        found[f"decode, {words}: tokens/s plain"] = tokens / times["plain"]
        for name in ("one block", "all blocks"):
            found[f"decode, {words}: plain / steered at {name}"] = times["plain"] / times[name]
    return found


def sweep(model: Any, device: str, tokens: int, rounds: int) -> Numbers:
    """How many times as fast as a loop one batch of all strengths is."""
    m, inputs = intervened(model, steering([1])), prompts(1, 16, device)
    greedy = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    rows = {name: value.repeat(len(STRENGTHS), 1) for name, value in inputs.items()}
    batch = seconds_of(
        lambda: m.generate_ids(**rows, **greedy, strengths=STRENGTHS, disable_compile=True), device, rounds
    )
    loop = seconds_of(
        lambda: [m.generate_ids(**inputs, **greedy, strengths=s, disable_compile=True) for s in STRENGTHS],
        device,
        rounds,
    )
    return {"sweep: loop / one batch": loop / batch}


def collection(model: Any, count: int) -> Numbers:
    """Tokens a second whose heads are read in every layer, hash and files included."""
    generator = torch.Generator().manual_seed(0)
    texts = [tuple(torch.randint(2, 1000, (40,), generator=generator).tolist()) for _ in range(count)]
    layers = range(model.config.num_hidden_layers)
    passages = [Passage(ids, (last(len(ids)),)) for ids in texts]
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        collect(
            Anatomy.of(model),
            "attention_heads",
            layers,
            passages,
            Path(folder),
            pad_id=0,
            batch_size=32,
            identity="made",
        )
        return {"collection: tokens/s": 40 * count / (time.perf_counter() - start)}


def training(model: Any, device: str) -> Numbers:
    """GB that a step of IPO takes at its most beside the weights, and its seconds."""
    examples = [Example(f"q{i}", (5, 6 + i, 7), tuple(range(8, 40)), tuple(range(40, 72))) for i in range(4)]
    spec = LocalizedEditSpec.model_validate(
        {
            "key": "edit",
            "data": {"file": "made.jsonl"},
            "learning_rate": 1e-4,
            "epochs": 1,
            "batch_size": 4,
            "validation": None,
        }
    )
    middle = model.config.num_hidden_layers // 2
    experiment = Experiment("edit", spec, EditShape({middle: (0,)}, seed=0), 0, tuple(range(4)), ())
    before = torch.cuda.memory_allocated() if device != "cpu" else 0
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    train_edits(Anatomy.of(model), examples, [experiment], pad_id=0)
    found: Numbers = {"training: seconds of a step of 4 pairs": time.perf_counter() - start}
    most = (torch.cuda.max_memory_allocated() - before) / 2**30 if device != "cpu" else None
    return found | {"training: GB beside the weights": most}


def serving() -> Numbers:
    """What `benchmarks/serving.py` says; None without vLLM."""
    if importlib.util.find_spec("vllm") is None:
        return {"serving": None}
    script = Path(__file__).with_name("serving.py")
    done = subprocess.run([sys.executable, script, "--quick"], capture_output=True, text=True, check=True)
    ratios = json.loads(done.stdout.splitlines()[-1])["ratios"]
    return {f"serving: {name}": ratio for name, ratio in ratios.items()}


def measured(size: str, dtype: torch.dtype, device: str, *, quick: bool) -> Numbers:
    """All numbers of one model; correctness alone in float32."""
    model = made(size, dtype=dtype, device=device)
    found = correctness(model, device)
    if dtype == torch.bfloat16:
        tokens, rounds = (4, 1) if quick else (128, 5)
        found |= decoding(model, device, tokens, rounds) | sweep(model, device, tokens, rounds)
        found |= collection(model, 8 if quick else 512) | training(model, device)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few tokens and rounds: a check that it runs")
    parser.add_argument("--sizes", nargs="+", choices=sorted(SIZES), help="models, by size")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    quick = options.quick or device == "cpu"
    sizes = options.sizes or (["1B", "8B"] if device == "cuda" else ["tiny"])
    columns = {
        f"{size} {str(dtype).removeprefix('torch.')}": measured(size, dtype, device, quick=quick)
        for size in sizes
        for dtype in TOLERANCE
    }
    columns["machine"] = {} if quick else serving()
    report(columns)


def report(columns: dict[str, Numbers]) -> None:
    """Print one table and, as the last line, one JSON object."""
    table = Table(title="gpu")
    table.add_column("measure")
    for name in columns:
        table.add_column(name, justify="right")
    for measure in dict.fromkeys(name for numbers in columns.values() for name in numbers):
        cells = [numbers.get(measure) for numbers in columns.values()]
        table.add_row(measure, *("" if cell is None else f"{cell:.3g}" for cell in cells))
    Console(width=120).print(table)
    print(json.dumps({"benchmark": "gpu", "environment": environment(), "numbers": columns}))


if __name__ == "__main__":
    main()
