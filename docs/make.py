"""What code gives to the documentation: the schemas, and the tables between marks. `make docs` writes it.

A table stands between `<!-- NAME: by make docs -->` and `<!-- end -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from subvene.interventions._pyvene import pyvene
from subvene.runner.cli.validate import results_schema_text, schema_text
from subvene.runner.edits.pyvene_calls import INSTEAD
from subvene.runner.engines.table import table as engines_table
from subvene.runner.exchange.exports.table import table as exports_table
from subvene.specs._pyvene_names import LAYERED, instead_of
from subvene.specs.interventions import REGISTRY, BaseIntervention, PyveneClass
from subvene.specs.interventions.pyvene import NEEDS, WITHOUT_SOURCE, WITHOUT_SUBSPACES
from subvene.specs.recipes.das import DASSpec
from subvene.specs.sites import SITES

ROOT = Path(__file__).resolve().parent.parent
WHOLE: dict[str, Callable[[], str]] = {
    "examples/subvene.schema.json": schema_text,
    "docs/results.schema.json": results_schema_text,
}


def kinds_table() -> str:
    """Every kind, what its spec says that it does, and where."""
    lines = ["| `kind:` | what it does | sites |", "|---|---|---|"]
    for kind, spec in REGISTRY.items():
        words = (spec.__doc__ or "").partition("\n")[0].rstrip(".").replace("|", "\\|")
        lines.append(f"| `{kind}` | {words} | {_sites(spec)} |")
    return "\n".join(lines) + "\n"


def _sites(spec: type[BaseIntervention]) -> str:
    if field := spec.model_fields.get("site"):
        options = {
            name for option in (field.annotation, *get_args(field.annotation)) for name in get_args(option)
        }
        sites = [site for site in SITES if site in options]
        words = "all" if len(sites) == len(SITES) else ", ".join(f"`{site}`" for site in sites)
    else:
        example = spec.model_validate(next(iter(spec.examples.values())))
        words = f"`{example.site}`"
    by_path = spec.module_path is not BaseIntervention.module_path
    return words + ", or any module by its path" * by_path


def classes_table() -> str:
    """Every intervention class of pyvene, and how it is declared."""
    lines = ["| class | declared as | source | subspaces | needs |", "|---|---|---|---|---|"]
    rotated = get_args(DASSpec.model_fields["class_name"].annotation)
    others = {
        "NoiseIntervention": "`kind: noise`: seeded, any length (pyvene's holds noise for exactly 4 tokens)",
        "LambdaIntervention": "refused: a function cannot be declared in a file",
    }
    for name in get_args(PyveneClass):
        has_source = "–" if name in WITHOUT_SOURCE else "a run, or a constant"
        subspaces = "–" if name in WITHOUT_SUBSPACES else "yes"
        needs = f"`{NEEDS[name][0]}`" if name in NEEDS else ""
        declared = "`kind: pyvene`" + "; trained by `recipe: das`" * (name in rotated)
        lines.append(f"| `{name}` | {declared} | {has_source} | {subspaces} | {needs} |")
    lines += [f"| `{name}` | {words} | – | – | |" for name, words in others.items()]
    return "\n".join(lines) + "\n"


def components_table() -> str:
    """Every name that pyvene has for a part of a model, and what a file says."""
    mapping = pyvene.models.intervenable_modelcard.type_to_module_mapping
    names = list(dict.fromkeys(name for parts in mapping.values() for name in parts))
    lines = ["| pyvene's component | here |", "|---|---|"]
    for name in sorted({*names, *LAYERED}, key=lambda name: (name not in LAYERED, name)):
        words = "`component:` with `layer:`" + ("; `heads:`" if name.startswith("head_") else "")
        if name not in LAYERED:
            instead = instead_of(name, "N")
            words = "a module path without `layer`" if instead is None else instead
        lines.append(f"| `{name}` | {words} |")
    return "\n".join(lines) + "\n"


def calls_table() -> str:
    """What a call of pyvene's says, and what stands instead."""
    lines = ["| pyvene's argument | here |", "|---|---|", "| `sources` | inputs for the declared sources |"]
    lines += [f"| `{name}` | refused: {words} |" for name, words in INSTEAD.items()]
    return "\n".join(lines) + "\n"


TABLES: dict[tuple[str, str], Callable[[], str]] = {
    ("docs/spec.md", "kinds"): kinds_table,
    ("docs/exports.md", "exports"): exports_table,
    ("docs/serving.md", "engines"): engines_table,
    ("docs/pyvene.md", "classes"): classes_table,
    ("docs/pyvene.md", "calls"): calls_table,
    ("docs/pyvene.md", "components"): components_table,
}


def renewed() -> dict[str, str]:
    """Every file that code gives, whole or in part, as it should be: path in the checkout → text.

    Raises:
        ValueError: a page has lost the marks of its table.
    """
    files = {path: text() for path, text in WHOLE.items()}
    for (path, name), table in TABLES.items():
        page = files.get(path) or (ROOT / path).read_text("utf-8")
        marked = re.compile(rf"(<!-- {name}: by make docs -->\n).*?(\n<!-- end -->)", re.DOTALL)
        if len(marked.findall(page)) != 1:
            raise ValueError(
                f"{path}: expected one table between <!-- {name}: by make docs --> and <!-- end -->"
            )
        body = f"\n{table()}"
        files[path] = marked.sub(lambda found, body=body: found[1] + body + found[2], page)
    return files


if __name__ == "__main__":
    for path, text in renewed().items():
        if (ROOT / path).read_text("utf-8") != text:
            (ROOT / path).write_text(text, "utf-8")
            print(f"wrote {path}")
