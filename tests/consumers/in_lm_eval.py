"""Runs in an environment with lm-evaluation-harness: a task of its own, through the harness's own command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

TASK = """\
task: subvene_choices
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
target_delimiter: ""
metric_list:
- metric: acc
"""


def main(asked: Path, answered: Path) -> None:
    question = json.loads(asked.read_text())
    folder = answered.parent / "lm_eval"
    folder.mkdir()
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in question["rows"]))
    (folder / "subvene_choices.yaml").write_text(TASK.format(data=data))
    found = {}
    for run in question["runs"]:
        output = folder / run["name"]
        command = [
            sys.executable,
            "-m",
            "lm_eval",
            "--model",
            run["model"],
            "--model_args",
            run["model_args"],
        ]
        command += ["--tasks", "subvene_choices", "--include_path", str(folder), "--log_samples"]
        command += ["--output_path", str(output), "--device", "cpu", "--batch_size", "4"]
        subprocess.run(command, check=True)
        (samples,) = output.rglob("samples_*.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        found[run["name"]] = [[float(resp[0][0]) for resp in row["resps"]] for row in rows]
    answered.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
