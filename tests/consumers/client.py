"""What a program that uses subvene is to a type checker; `make test-wheel` has pyright read it, strictly.

It is not run: what each call gives is the business of other tests.
"""

from __future__ import annotations

from pathlib import Path

import torch

import subvene
from subvene import (
    ExperimentSpec,
    IntervenedModel,
    InterventionSpec,
    NotSteeredError,
    Receipt,
    Results,
    SpecError,
    export,
    fit,
    json_schema,
    load_spec,
    run_experiment,
)

print(subvene.__version__)
pairs = [("What a wonderful day!", "What an awful day."), ("I love this.", "I am sick of this.")]
m: IntervenedModel = fit(
    "mean_difference",
    "Qwen/Qwen2.5-0.5B-Instruct",
    pairs=pairs,
    layer=12,
    coefficient=2.0,
    positions="response",
    seed=3,
)
answers: list[str] = m.generate("How was your weekend?", max_new_tokens=40)
receipt: Receipt | None = m.receipt
if receipt is not None:
    edited: dict[str, int] = receipt["mean_difference"].edited
    names: list[str] = [one.name for one in receipt]
    columns: list[str] = list(receipt.to_pandas().columns)
chat = m.generate([{"role": "user", "content": "Hello"}], strengths=1.0, seed=1)
several = m.generate(["Hello", "Good evening"], strengths={"mean_difference": [0.0, 2.0]})
with m.disabled():
    untouched: list[str] = m.generate("Hello")
with m.attached(), torch.no_grad():
    logits: torch.Tensor = m.model(torch.tensor([[1, 2, 3]])).logits

device: torch.device = m.to("cpu").eval().device
hidden: int = m.config.hidden_size

swept = m.sweep(
    ["How are you?"],
    layers=[10, 12],
    coefficients=[0, 1.5],
    contrasts=[("How are you?", "Very well.", "Awful.")],
)
best = swept.choose()
chosen: IntervenedModel = swept.at(best.layer, best.coefficient)
frame = swept.to_pandas()
print(swept[12, 1.5].answers[0], frame.shape)

folder: Path = chosen.save_pretrained("cheerful")
again = IntervenedModel.from_pretrained(folder, dtype="float32", device="cpu")
made = IntervenedModel.from_spec(
    {"subvene": 1, "model": {"name": "Qwen/Qwen2.5-0.5B-Instruct"}, "interventions": []},
    local_files_only=True,
)
export(again, "peft", "adapter")

try:
    spec = load_spec("steer.yaml")
except SpecError as error:
    print(error)
else:
    if isinstance(spec, ExperimentSpec):
        done = run_experiment(spec, output="runs/steer")
        print(done.output / "report.html", done.results.kind)
    else:
        named: InterventionSpec = spec
        print(named.model.name)
try:
    m.generate("Hello")
except NotSteeredError as error:
    print(error)
schema = json_schema()

results = Results.load("runs/steer")
for condition in results.conditions:
    means: dict[str, float] = {name: metric.mean for name, metric in condition.metrics.items()}
    print(condition.label, means, [item.scores for item in condition.items])
table = results.to_pandas()
print(table.head())
