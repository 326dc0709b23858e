"""A fuzz target over everything that reads what somebody else made.

In the suite it runs for SUBVENE_FUZZ_SECONDS (12). For longer, and with a seed: `make fuzz`, or

    python tests/fuzz/test_loaders.py --seconds 600 --seed 3

Whatever the bytes are, a loader gives its result or raises a SubveneError; it takes no long time, writes
nothing and runs nothing. Bytes that break this are kept, with the way to read them again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors.torch
import torch
import typer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from artifact_to_spoil import LAYERS, WIDTH, rehash, steered, tiny_llama

from subvene.interventions._pyvene import pyvene
from subvene.runner.artifacts import artifact
from subvene.runner.cli._options import read_prompts
from subvene.runner.data.preferences import read_data
from subvene.runner.data.transcripts import read_transcripts
from subvene.runner.exchange.imports import Options, import_foreign
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.judges.training.labels import read_labels
from subvene.specs import SubveneError, TriplesSpec, load_pairs, load_spec

SECONDS = float(os.environ.get("SUBVENE_FUZZ_SECONDS", "12"))
# Of this process, for one input; on a quiet core the slowest takes a tenth of one.
TOO_LONG = 20.0

_TEXT = rb"""
-1 0 1e999 999999999999999999999 null true [] {} "" &a *a <<:*a ../ /etc/passwd __metadata__ "shape":[ : -
!!python/object/apply:os.system F32 BF16 I64 file key kind
"""
_WORDS = [
    *_TEXT.split(),
    *(b"\x00", b"\xff", b"\xff" * 4, b"\x00" * 8, b"\xff" * 8, b"\x7f" + b"\xff" * 7, b"\n", b"\t", b" "),
    *(b"PK\x05\x06", b"PK\x03\x04", b"\xc3\x28", b"\xed\xa0\x80", b"cos\nsystem\n"),
]


@dataclass(frozen=True)
class Target:
    """One way in: a folder (or file) that reads, the files of it that are spoilt, and what reads them."""

    source: Path
    files: tuple[str, ...]
    read: Callable[[Path], Any]
    rehashed: bool = False


def targets(folder: Path) -> dict[str, Target]:
    """Everything that reads, each with something valid to begin from."""
    model = tiny_llama()

    def imports(source: Path, **given: Any) -> Any:
        return import_foreign(source, "user/tiny", options=Options(**given), loaded=(model, None))

    made = steered(model=model).save_pretrained(folder / "artifact")
    (folder / "spec.yaml").write_text(
        (made / "intervention.yaml").read_text() + "seed: 1\nevaluate:\n- kind: samples\n  prompts: [a, b]\n"
        "  coefficients: [0, 1.5]\nfit:\n  recipe: mean_difference\n  key: w\n  pairs: {file: pairs.yaml}\n"
    )
    (folder / "spec.json").write_text(
        '{"subvene": 1, "model": {"name": "a/b"}, "interventions": [{"kind": "low_rank_edit", "layer": 1, '
        '"write_heads": [0, 3], "rank": 2, "seed": 4, "strength": [1.0, -2.5e3]}]}'
    )
    torch.save(torch.randn(LAYERS + 1, WIDTH), folder / "vector.pt")
    torch.save(torch.randn(LAYERS + 1, WIDTH), folder / "old.pt", _use_new_zipfile_serialization=False)
    writer = gguf.GGUFWriter(folder / "control.gguf", "controlvector")
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_array("controlvector.layers", [0, 1])
    for layer in range(LAYERS):
        writer.add_tensor(f"direction.{layer}", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    heads = {"top_heads": np.array([[0, 1], [1, 0]]), "directions": np.ones((LAYERS * 2, WIDTH // 2))}
    np.savez(folder / "iti.npz", **heads)
    np.savez_compressed(folder / "packed.npz", **heads)
    (folder / "iti").mkdir()
    for name, array in heads.items():
        np.save(folder / "iti" / f"{name}.npy", array)
    (folder / "lora").mkdir()
    (folder / "lora" / "adapter_config.json").write_text(
        '{"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["o_proj"], "bias": "none", '
        '"use_rslora": false, "init_lora_weights": true, "rank_pattern": {}, "modules_to_save": null}'
    )
    prefix = "base_model.model.model.layers.1.self_attn.o_proj.lora_"
    factors = {f"{prefix}A.weight": torch.ones(1, WIDTH), f"{prefix}B.weight": torch.ones(WIDTH, 1)}
    safetensors.torch.save_file(factors, folder / "lora" / "adapter_model.safetensors")
    inner = pyvene.AdditionIntervention(embed_dim=WIDTH, source_representation=torch.ones(WIDTH))
    place = pyvene.RepresentationConfig(layer=1, component="block_output", intervention=inner)
    pyvene.IntervenableModel(pyvene.IntervenableConfig([place]), model).save(str(folder / "pyvene"))
    (binary,) = (p.name for p in (folder / "pyvene").glob("*.bin"))

    def reloads(path: Path) -> Any:
        return IntervenedModel.from_pretrained(path, model=model)

    turns = '{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}'
    (folder / "turns.jsonl").write_text(f'{{"messages": [{turns}]}}\n{{"prompt": "Hi", "response": "No"}}\n')
    rows = f'[{{"conversations": [{turns}]}}, {{"instruction": "a", "output": "b"}}]'
    (folder / "turns.json").write_text(rows)
    (folder / "turns.csv").write_text('prompt,response,score\n"Hi, you","Yes\nor no",1.5\nb,c,2\n')
    (folder / "preferences.jsonl").write_text('{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}\n' * 3)
    (folder / "pairs.jsonl").write_text('{"prompt": "Hi", "positive": "Yes", "negative": "No"}\n' * 3)
    (folder / "prompts.jsonl").write_text('{"prompt": "Hi"}\n{"question": "Why?"}\n')
    (folder / "labels.jsonl").write_text('{"prompt": "Q: a?\\nA: b\\nTrue:", "completion": " yes"}\n' * 3)

    def preferences(path: Path) -> Any:
        return read_data(TriplesSpec.model_validate({"file": path.name}), path.parent)

    def prompts(path: Path) -> Any:
        try:
            return read_prompts([], path, {})
        except typer.BadParameter as error:  # the command line's own refusal, of a file without a prompt
            raise SubveneError(str(error)) from error

    return {
        "turns": Target(folder / "turns.jsonl", ("",), read_transcripts),
        "turns in a list": Target(folder / "turns.json", ("",), read_transcripts),
        "turns in a table": Target(folder / "turns.csv", ("",), read_transcripts),
        "preferences": Target(folder / "preferences.jsonl", ("",), preferences),
        "pairs": Target(folder / "pairs.jsonl", ("",), load_pairs),
        "labels": Target(folder / "labels.jsonl", ("",), read_labels),
        "prompts": Target(folder / "prompts.jsonl", ("",), prompts),
        "spec": Target(folder / "spec.yaml", ("",), load_spec),
        "json spec": Target(folder / "spec.json", ("",), load_spec),
        "artifact": Target(made, ("intervention.yaml", "tensors.safetensors"), reloads, rehashed=True),
        "fingerprint": Target(made, ("fingerprint.json",), artifact.read),
        "persona vector": Target(folder / "vector.pt", ("",), lambda p: imports(p, layers=(1,))),
        "old persona vector": Target(folder / "old.pt", ("",), lambda p: imports(p, layers=(1,))),
        "control vector": Target(folder / "control.gguf", ("",), imports),
        "iti archive": Target(folder / "iti.npz", ("",), imports),
        "packed iti archive": Target(folder / "packed.npz", ("",), imports),
        "iti folder": Target(folder / "iti", ("top_heads.npy", "directions.npy"), imports),
        "lora": Target(folder / "lora", ("adapter_config.json", "adapter_model.safetensors"), imports),
        "pyvene": Target(folder / "pyvene", ("config.json", binary), imports),
    }


def spoilt(data: bytes, draw: random.Random) -> bytes:
    """`data` with a few changes: most of them small, since what is wholly wrong is refused at once."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((0, 1, 1, 2, 4, 8, 40)))
        what = draw.randrange(6)
        if what == 0 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]
        elif what == 1:
            data = data[:at] + draw.choice(_WORDS) + data[end:]
        elif what == 2:
            data = data[:at] + draw.randbytes(end - at) + data[end:]
        elif what == 3:
            data = data[:at] + data[end:]
        elif what == 4:
            data = data[:end] + data[at:end] * draw.choice((1, 2, 50)) + data[end:]
        else:
            data = data[: max(1, at)] if draw.random() < 0.2 else data[:at] + draw.choice(_WORDS) + data[at:]
    return data


def run(seconds: float, seed: int, kept: Path) -> dict[str, list[int]]:
    """Fuzzes every target in turn.

    Returns:
        How often each target gave a result, and how often it refused.

    Raises:
        AssertionError: one of them did something else; its bytes are in `kept`.
    """
    draw = random.Random(seed)
    counts: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="subvene-fuzz-") as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ways = targets(Path(scratch))
        for name, way in ways.items():
            way.read(way.source)  # what is not spoilt is read
            counts[name] = [0, 0]
        work, elsewhere = Path(scratch, "work"), Path(scratch, "cwd")
        elsewhere.mkdir()
        before, end = os.getcwd(), time.monotonic() + seconds
        os.chdir(elsewhere)
        try:
            while time.monotonic() < end:
                for name, way in ways.items():
                    path = _copied(way, work, draw)
                    problem = _problem(way, path, counts[name])
                    if problem is None and (written := [*elsewhere.iterdir(), *_strangers(work, way)]):
                        problem = f"it wrote {written}"
                    if problem is not None:
                        _keep(work, kept)
                        raise AssertionError(f"{name} (seed {seed}; kept in {kept}): {problem}")
        finally:
            os.chdir(before)
    return counts


def _copied(way: Target, work: Path, draw: random.Random) -> Path:
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    path = work / way.source.name
    (shutil.copytree if way.source.is_dir() else shutil.copy)(way.source, path)
    file = path / draw.choice(way.files) if way.source.is_dir() else path
    file.write_bytes(spoilt(file.read_bytes(), draw))
    if way.rehashed:
        rehash(path)
    return path


def _problem(way: Target, path: Path, counts: list[int]) -> str | None:
    began = time.process_time()
    try:
        way.read(path)
        counts[0] += 1
    except SubveneError as error:
        counts[1] += 1
        if not str(error):
            return "an error without a message"
    except Exception:  # what this looks for
        return traceback.format_exc()
    took = time.process_time() - began
    return f"it took {took:.0f} s" if took > TOO_LONG else None


def _strangers(work: Path, way: Target) -> list[Path]:
    there = {p.relative_to(way.source.parent) for p in [way.source, *way.source.rglob("*")]}
    return [p for p in work.rglob("*") if p.relative_to(work) not in there]


def _keep(work: Path, kept: Path) -> None:
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(work, kept)


def test_no_bytes_do_anything_but_load_or_be_refused(tmp_path: Path) -> None:
    seed = int(os.environ.get("SUBVENE_FUZZ_SEED") or random.SystemRandom().randrange(2**32))
    print(f"SUBVENE_FUZZ_SEED={seed}")  # shown by pytest when it fails
    torch.set_num_threads(1)
    counts = run(SECONDS, seed, tmp_path / "kept")
    # Spoilt a little, most inputs are refused, and not all.
    assert all(sum(both) for both in counts.values())
    assert sum(refused for _, refused in counts.values()) > 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failure"), help="where failing bytes go")
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.seconds:g} s", flush=True)
    torch.set_num_threads(1)
    for name, (read, refused) in run(given.seconds, given.seed, given.keep.absolute()).items():
        print(f"{name:20} {read:7} read {refused:7} refused")
