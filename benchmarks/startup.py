"""CPU time (user, system) of commands until they have done something.

`subvene --help` and `subvene validate` of every example, beside a bare `import pydantic`; `subvene generate`
of one token by the embedded model, beside transformers alone, which loads the same weights and generates it.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness import EMBEDDED, arguments, interleaved, report
from safetensors.torch import save_file
from torch import randn

from subvene.runner.models.loading import resolve
from subvene.specs import ModelSpec

ROOT = Path(__file__).parent.parent
BARE = "import pydantic"
PLAIN = "transformers"
FIRST_TOKEN = """\
import sys
import transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "Hello"}]
options = {"add_generation_prompt": True, "return_tensors": "pt", "return_dict": True}
prompt = tokenizer.apply_chat_template(chat, **options)
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=1, do_sample=False)[0]))
"""
STEERED = f"""\
subvene: 1
model: {{name: {EMBEDDED}, dtype: float32}}
interventions: [{{kind: steering, layer: 14, vector: {{file: t.safetensors, key: v}}, coefficient: 1}}]
"""


def of_children() -> float:
    """CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def process(*arguments: str) -> Callable[[], object]:
    """One run of this Python in a process of its own."""
    return lambda: subprocess.run(
        [sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def command(*arguments: str) -> Callable[[], object]:
    """One run of `subvene` as its script does it."""
    return process("-c", "from subvene.runner.cli.app import main; main()", *arguments)


def specs() -> list[Path]:
    """The examples that are specs, not data."""
    return sorted(p for p in (ROOT / "examples").rglob("*.yaml") if p.parent.name != "data")


def first_token(folder: Path) -> dict[str, Callable[[], object]]:
    """One token of the embedded model, steered and plain; the spec is written into the folder."""
    save_file({"v.block_output[14]": randn(576)}, folder / "t.safetensors")
    spec = folder / "steered.yaml"
    spec.write_text(STEERED)
    one = ("--prompt", "Hello", "--max-new-tokens", "1")
    return {
        PLAIN: process("-c", FIRST_TOKEN, resolve(ModelSpec(name=EMBEDDED))),
        "subvene generate": command("generate", str(spec), *one),
    }


def main() -> None:
    options = arguments(__doc__ or "")
    arms = {BARE: process("-c", "from pydantic import BaseModel"), "--help": command("--help")}
    for example in specs():
        arms[f"validate {example.relative_to(ROOT / 'examples')}"] = command("validate", str(example))
    rounds = options.rounds or (2 if options.quick else 10)
    seconds = interleaved(arms, BARE, rounds, clock=of_children)
    report(
        "startup", seconds, BARE, notes="CPU seconds; the budget: 0.35 for --help, 0.5 for validate, alone."
    )
    with tempfile.TemporaryDirectory() as folder:
        arms = first_token(Path(folder))
        seconds = interleaved(arms, PLAIN, 1 if options.quick else max(3, rounds // 3), clock=of_children)
    report("first token", seconds, PLAIN, notes="CPU seconds; the budget: 4, alone.")


if __name__ == "__main__":
    main()
