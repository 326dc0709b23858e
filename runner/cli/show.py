"""`subvene show`: what is edited where, at which tokens, how strongly, and in which order it matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from subvene.runner.cli._console import out, quiet_libraries, results
from subvene.runner.cli._options import Json, SourcePath
from subvene.runner.cli._source import Source, open_source
from subvene.runner.cli._words import places_in_words, strength_in_words

if TYPE_CHECKING:
    from rich.console import Console

    from subvene.runner.cli._description import Description


def show(
    source: SourcePath,
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt", help="Show which tokens of this prompt are edited; - reads standard input."
        ),
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system prompt, with -p.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="No chat template, with -p.")] = False,
    as_json: Json = False,
) -> None:
    """Say what a spec or an artifact does: sites, tokens, strengths, tensors, and which edits commute.

    The model's weights are not loaded; its config tells the sizes, and with -p its tokenizer the tokens.
    """
    if prompt == "-":
        prompt = typer.get_text_stream("stdin").read().strip()
    with results(as_json) as emit:
        opened = open_source(source)
        from subvene.runner.cli._description import describe, edited_tokens

        quiet_libraries()
        description = describe(opened)
        if prompt is not None:
            description["prompt"] = edited_tokens(opened.spec, prompt, system=system, raw=raw)
        if as_json:
            emit(description)
            return
    _print(out(), opened, description)


def _print(console: Console, source: Source, description: Description) -> None:
    from rich.text import Text

    from subvene.runner.cli._tables import print_line

    def line(label: str, text: str) -> None:
        if console.is_terminal:
            print_line(console, label, text, width=12)
        else:  # for grep: one line, however long
            console.print(f"{label:<12}{text}", soft_wrap=True)

    line(description["what"], description["path"])
    line("model", description["model"])
    if made_for := description["made_for"]:
        sizes, architecture = None, cast("str | None", made_for.get("architecture"))
        if made_for["n_layers"] is not None:
            heads = f"{made_for['n_heads']} heads of {made_for['head_dim']}"
            sizes = f"{made_for['n_layers']} layers, width {made_for['width']}, {heads}"
        line(
            "made for" if source.artifact else "sizes",
            ", ".join(filter(None, (architecture, sizes))),
        )
    if problem := description["model_problem"]:
        line("sizes", f"not known: {problem}")
    for i, one in enumerate(description["interventions"], start=1):
        console.print()
        console.print(Text.assemble((f"{i}  {one['name']}", "bold"), f"  {one['kind']}"))
        rows = {
            "does": one["operation"],
            "where": places_in_words(one["sites"]),
            "tokens": one["positions_in_words"],
            "strength": strength_in_words(one["strength"]),
            **{name: str(value) for name, value in one["settings"].items()},
        }
        for label, text in rows.items():
            if text:
                line(f"   {label}", text)
        for name, tensor in one["tensors"].items():
            line("   tensor", f"{name} {tensor['shape']}, norm {tensor['norm']:.4g}")
        if one["problem"]:
            line("   tensor", one["problem"])
    console.print()
    _print_order(console, description)
    _print_origin(line, source, description)
    if "prompt" in description:
        console.print()
        _print_tokens(console, description)


_TOLD_FIRST = ("recipe", "key", "site")
_ORDER = {
    True: ("commute", "green"),
    False: ("do not commute, so the file's order matters", "yellow"),
    None: ("", "yellow"),
}


def _print_order(console: Console, description: Description) -> None:
    from rich.text import Text

    from subvene.runner.edits.order import ELSEWHERE

    elsewhere = 0
    for pair in description["order"]:
        if not pair["shared"] and pair["reason"] == ELSEWHERE:
            elsewhere += 1
            continue
        verdict, style = _ORDER[pair["commutes"]]
        where = f" at {places_in_words(pair['shared'])}" if pair["shared"] else ""
        text = Text.assemble(("order       ", "cyan"), f"{pair['first']} and {pair['second']}{where}: ")
        text.append(verdict, style).append(f" ({pair['reason']})" if verdict else pair["reason"])
        console.print(text, soft_wrap=True)
    if elsewhere:
        pairs = "1 pair acts" if elsewhere == 1 else f"{elsewhere} pairs act"
        console.print(Text.assemble(("order       ", "cyan"), f"{pairs} {ELSEWHERE}"), soft_wrap=True)


def _first_told(key: str) -> tuple[int, str]:
    """A sort key: what a reader asks first, then the rest by name."""
    return (_TOLD_FIRST.index(key) if key in _TOLD_FIRST else len(_TOLD_FIRST), key)


def _print_origin(line: Any, source: Source, description: Description) -> None:
    provenance = description["provenance"]
    if provenance:
        keys = sorted(provenance, key=_first_told)
        told = {key: provenance[key] for key in keys if not isinstance(provenance[key], dict | list)}
        told |= {key: str(value)[:12] for key, value in told.items() if key.endswith("sha256")}
        line("origin", ", ".join(f"{key} {value}" for key, value in told.items()))
    if source.artifact:
        line("stored", f"{description['stored_tensors']} tensors")
    elif fit := getattr(source.spec, "fit", None):
        fitted = ", ".join(fit.keys)
        line("origin", f"to be fitted: {fit.recipe}, {fitted}; run: subvene fit {source.path} -o FOLDER")
    if description["stock_pyvene"] is not None:
        line("pyvene", _stock(source, description))


def _stock(source: Source, description: Description) -> str:
    """What stock pyvene can do with this; of a spec file, with what is saved of it."""
    from subvene.runner.artifacts.stock import reads_sources

    artifact = "the artifact" if source.artifact else "an artifact of it"
    if (problem := description["stock_problem"]) is not None:
        return f"stock pyvene does not do what is declared: {problem}"
    if not description["stock_pyvene"]:
        return f"stock pyvene does not list this architecture; only subvene loads {artifact}"
    if reads_sources(source.spec):
        return f"stock pyvene loads {artifact}, too, and needs `sources` and `unit_locations` in every call"
    return f"stock pyvene loads {artifact}, too"


def _print_tokens(console: Console, description: Description) -> None:
    """The prompt once for each intervention, with the tokens that it edits in brackets."""
    from rich.text import Text

    tokens = description["prompt"]["tokens"]
    console.print(Text(f"{len(tokens)} prompt tokens; [in brackets]: edited", style="cyan"))
    for one in description["interventions"]:
        name = one["name"]
        edited = sum(token["edited"][name] for token in tokens)
        console.print(
            Text.assemble((name, "bold"), f": {edited} of {len(tokens)}, {one['positions_in_words']}")
        )
        text = Text("  ")
        for i, token in enumerate(tokens):
            text.append("│" if i else "", "dim")
            shown = token["text"].replace("\n", "⏎") or "∅"
            text.append(
                f"[{shown}]" if token["edited"][name] else shown,
                "bold reverse" if token["edited"][name] else "",
            )
        console.print(text)
