"""Training of localized edits, SmolLM2-135M-Instruct, examples/data/preferences.jsonl.

1. 24 edits of one random head each, trained together, against the same 24 one after another. The results
   must be the same: the benchmark prints the largest difference of a factor and of a loss, and fails above
   1e-4. Ratio: one after another / together.
2. One edit, rank 1, at all heads of four layers, against peft and TRL's `DPOTrainer` (`ipo`): a LoRA of rank
   1 on the output projections of the same layers, which has as many parameters. The same pairs, tokens,
   batch size, learning rate, schedule and epochs; the reference computed once; no gradient checkpointing. It
   runs in an environment of its own (`make bench-edit-training`), and is left out where there is none.
   Ratio: TRL / subvene.
"""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
from harness import EMBEDDED, arguments, interleaved, report, timed
from worker import worker

from subvene.runner import load_model
from subvene.runner.data.examples import Answers, Example
from subvene.runner.data.preferences import encode, read_data
from subvene.runner.data.text import pad_id_of
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.localized_heads import choose_heads
from subvene.runner.training.experiments import Experiment, Trained
from subvene.runner.training.multiplex import EditShape
from subvene.runner.training.passes import Passes, frozen
from subvene.runner.training.trainer import train_edits
from subvene.specs import ModelSpec
from subvene.specs.recipes.localized_edit import LocalizedEditSpec

ROOT = Path(__file__).parent.parent
TRL = ROOT / ".venv-trl/bin/python"
SAME = 1e-4
LAYERS = (14, 16, 18, 20)
TOGETHER, APART = "together", "one after another"


def spec_of(**fields: Any) -> LocalizedEditSpec:
    data = {"file": "preferences.jsonl"}
    return LocalizedEditSpec.model_validate({"key": "edit", "data": data, "learning_rate": 0.002} | fields)


class Setting:
    """The model and the pairs, as all parts use them."""

    def __init__(self, pairs: int) -> None:
        self.model, self.tokenizer = load_model(ModelSpec(name=EMBEDDED, dtype="float32"))
        self.anatomy = Anatomy.of(self.model)
        spec = spec_of()
        self.triples = read_data(spec.data, ROOT / "examples/data")[:pairs]
        self.examples = encode(spec.data, self.triples, self.tokenizer)

    def train(self, experiments: list[Experiment], examples: list[Example] | None = None) -> list[Trained]:
        own = self.examples if examples is None else examples
        return train_edits(self.anatomy, own, experiments, pad_id=pad_id_of(self.tokenizer))


def machine() -> str:
    """The processor and the day."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores; {date.today()}"


def together_or_apart(setting: Setting, count: int, rounds: int) -> None:
    """Part 1."""
    experiments = []
    validation = tuple(range(0, len(setting.examples), 4))
    training = tuple(i for i in range(len(setting.examples)) if i not in validation)
    for seed in range(count):
        spec = spec_of(heads={"rule": "random", "k": 1}, epochs=1, warmup=0.0)
        heads = choose_heads(spec, setting.anatomy.sizes, seed)
        shape = EditShape(heads, seed=seed)
        experiments.append(Experiment(f"single-{seed}", spec, shape, seed, training, validation))
    found: dict[str, list[Trained]] = {}

    def apart() -> None:
        found[APART] = [setting.train([one])[0] for one in experiments]

    arms = {
        TOGETHER: lambda: found.update({TOGETHER: setting.train(experiments)}),
        APART: apart,
    }
    seconds = interleaved(arms, TOGETHER, rounds, warm_up=False)
    # What the rival could share without training together: the original model's passes.
    passes = Passes(setting.anatomy, Answers.of(setting.examples), pad_id_of(setting.tokenizer), 2048, 256)
    with frozen(setting.model):
        reference = timed(lambda: passes.prepare(range(len(passes.answers.rows)), []))
    off_factor = off_loss = 0.0
    for one, other in zip(found[TOGETHER], found[APART], strict=True):
        if one.best_step != other.best_step:
            raise SystemExit(f"{one.name}: best step {one.best_step} together and {other.best_step} alone")
        for name, tensor in one.factors.items():
            off_factor = max(off_factor, float((tensor - other.factors[name]).abs().max()))
        pairs = [*zip(one.losses, other.losses, strict=True)]
        pairs += [(a["loss"], b["loss"]) for a, b in zip(one.evaluations, other.evaluations, strict=True)]
        off_loss = max(off_loss, *(abs(a - b) / max(1.0, abs(b)) for a, b in pairs))
    notes = (
        f"{count} edits of one head, {len(training)} pairs and {len(validation)} to validate; largest "
        f"difference of a factor {off_factor:.1e}, of a loss {off_loss:.1e} (relative)\n"
        f"of the {count} trainings one after another, about {count * reference:.0f} s are the original "
        f"model's passes ({reference:.1f} s each), which training together makes once\n{machine()}"
    )
    report("edit_training: together", seconds, TOGETHER, notes=notes)
    if max(off_factor, off_loss) > SAME:
        raise SystemExit(f"trained together they are other edits than alone (more than {SAME})")


def trl_job(setting: Setting, spec: LocalizedEditSpec) -> dict[str, Any]:
    """The same training, for TRL."""
    decode = setting.tokenizer.decode
    return {
        "model": setting.model.config.name_or_path,
        "rows": [
            {
                "prompt": decode(one.prompt),
                # TRL closes answers with the end token itself.
                "chosen": decode(one.chosen[:-1]),
                "rejected": decode(one.rejected[:-1]),
                "ids": [one.prompt, one.chosen, one.rejected],
            }
            for one in setting.examples
        ],
        "layers": list(LAYERS),
        "rank": spec.rank,
        "tau": spec.objective.tau if spec.objective.kind == "ipo" else None,
        "learning_rate": spec.learning_rate,
        "warmup": spec.warmup,
        "epochs": spec.epochs,
        "batch_size": spec.batch_size,
        "max_grad_norm": spec.max_grad_norm,
    }


def against_trl(setting: Setting, rounds: int) -> None:
    """Part 2."""
    objective = {"kind": "ipo", "tau": 0.1, "reduction": "mean"}
    spec = spec_of(objective=objective, epochs=2, validation=None)
    sizes = setting.anatomy.sizes
    shape = EditShape({layer: tuple(range(sizes.n_heads)) for layer in LAYERS}, rank=spec.rank)
    experiment = Experiment("edit", spec, shape, 0, tuple(range(len(setting.examples))))
    found: dict[str, Any] = {}

    def own() -> None:
        examples = encode(spec.data, setting.triples, setting.tokenizer)
        found["subvene"] = setting.train([experiment], examples)[0]

    with worker(TRL, "trl_worker.py", trl_job(setting, spec)) as train:
        arms = {"subvene": own, "TRL": lambda: found.update(TRL=train())}
        seconds = interleaved(arms, "subvene", rounds, warm_up=False)
    trl, edit = found["TRL"], found["subvene"]
    parameters = sum(tensor.numel() for tensor in edit.factors.values())
    if trl["parameters"] != parameters:
        raise SystemExit(f"TRL trained {trl['parameters']} parameters and subvene {parameters}")
    first, last = (f"{edit.losses[i]:.2f} and {trl['losses'][i]:.2f}" for i in (0, -1))
    versions = ", ".join(
        f"{name} {trl['versions'][name]}" for name in ("trl", "peft", "torch", "transformers")
    )
    notes = (
        f"{len(setting.examples)} pairs, {spec.epochs} epochs, batches of {spec.batch_size}, {parameters} "
        f"parameters; loss of the first step {first}, of the last {last} (subvene and TRL)\n"
        f"TRL's environment: {versions}\n{machine()}"
    )
    report("edit_training: TRL", seconds, "subvene", notes=notes)


def main() -> None:
    options = arguments(__doc__)
    torch.manual_seed(0)
    setting = Setting(8)
    together_or_apart(setting, 4 if options.quick else 24, options.rounds or 1)
    if TRL.is_file():
        against_trl(Setting(8 if options.quick else 16), options.rounds or 1)
    else:
        print(f"no {TRL.relative_to(ROOT)}: the comparison with TRL is left out (make bench-edit-training)")


if __name__ == "__main__":
    main()
