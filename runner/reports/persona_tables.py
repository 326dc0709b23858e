"""Tables of a persona run as files: CSV for other tools, Markdown to read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from subvene.runner.files.csv_file import csv_text
from subvene.runner.files.markdown import in_cell

Results = Mapping[str, Any]
Line = dict[str, Any]

_COST = ("ce", "kl", "accuracy", "choices", "texts")
_CONDITION = ("name", "label", "kind", "coefficient", "layers")
_MEASURES: tuple[str, ...] = ("n", "missing", "score", "score_sd", "coherence", "coherence_sd", "refused")
_MEASURES += ("projection", "projection_sd")
_CAP = ("threshold", "changed_share", "expected_share", "warning")
_SWEEP: tuple[str, ...] = ("layer", "coefficient", "n", "missing", "score", "score_sd", "scored", "refused")
_SWEEP += ("coherence", "coherence_sd", "contrast")
_RESPONSE: tuple[str, ...] = ("condition", "layer", "coefficient", "seed", "question", "text")
_RESPONSE += ("score", "coherence", "projection", "tokens")
DROPPED = ("positive_low", "negative_high", "incoherent", "refused", "empty", "no_score", "missing")
"""Why a pair of responses is left out of a vector, in the results' words."""


def persona_files(results: Results) -> dict[str, str]:
    """The tables by file name: five CSV files, and the table of conditions in Markdown.

    Args:
        results: of a persona run, as in its `results.json`.
    """
    return {
        "conditions.csv": csv_text(
            list(_condition_lines(results)),
            ["trait", "layer", "unit", *_CONDITION, *_MEASURES, *_COST, *_CAP],
        ),
        "sweep.csv": csv_text(list(_sweep_lines(results)), ["trait", "unit", *_SWEEP, "chosen"]),
        "responses.csv": csv_text(list(_response_lines(results)), ["trait", "of", *_RESPONSE]),
        "geometry.csv": csv_text(
            list(_geometry_lines(results)), ["measure", "trait", "other", "layer", "other_layer", "value"]
        ),
        "extraction.csv": csv_text(
            list(_extraction_lines(results)),
            [
                "trait",
                "pairs",
                "kept",
                *(f"dropped_{reason}" for reason in DROPPED),
                "mean_score_positive",
                "mean_score_negative",
                "warning",
            ],
        ),
        "conditions.md": conditions_markdown(results),
    }


def conditions_markdown(results: Results) -> str:
    """The table of conditions, and the warnings below it."""
    heads = ["trait", "condition", "coefficient", "score", "coherence", "projection", "CE", "KL"]
    heads += ["accuracy", "refused", "n"]
    missing = any(c.get("missing") for found in results["traits"].values() for c in found["conditions"])
    heads += ["missing"] if missing else []
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, found in results["traits"].items():
        for condition in found["conditions"]:
            cells = [name, condition["label"], *condition_cells(condition)]
            cells += [str(condition.get("missing", 0))] if missing else []
            lines.append("| " + " | ".join(in_cell(cell) for cell in cells) + " |")
    lines += ["", "- mean ± standard deviation over responses; CE and KL in nats per token on neutral texts"]
    lines += [f"- WARNING: {in_cell(warning)}" for warning in warnings(results)]
    return "\n".join(lines) + "\n"


def condition_cells(condition: Mapping[str, Any]) -> list[str]:
    """A condition's numbers in words, from its coefficient to its number of responses."""
    cost = condition.get("cost") or {}
    return [
        number(condition["coefficient"], "g"),
        spread(condition["score"], condition["score_sd"], ".1f"),
        spread(condition["coherence"], condition["coherence_sd"], ".1f"),
        spread(condition["projection"], condition["projection_sd"], ".2f"),
        *(number(cost.get(name), ".3f") for name in ("ce", "kl", "accuracy")),
        number(condition["refused"], "d"),
        number(condition["n"], "d"),
    ]


def warnings(results: Results) -> list[str]:
    """Everything that the run warns of, each thing once."""
    said = [str(warning) for warning in results.get("warnings") or ()]
    for name, found in results["traits"].items():
        inner = [("", found["extraction"].get("warning"))]
        inner += [(f"{c['label']}: ", c.get("warning")) for c in found["conditions"]]
        for where, warning in inner:
            # The run's own list may hold it already, with more said around it.
            if warning and not any(name in other and warning in other for other in said):
                about = "" if where and warning.startswith(where) else where
                said.append(warning if warning.startswith(f"{name}: ") else f"{name}: {about}{warning}")
    return list(dict.fromkeys(said))


def number(value: float | None, form: str) -> str:
    """A number in words; – if there is none."""
    return "–" if value is None else format(value, form).replace("-", "−")


def spread(mean: float | None, sd: float | None, form: str) -> str:
    """Mean ± standard deviation, as far as they are known."""
    return number(mean, form) + ("" if mean is None or sd is None else f" ± {number(sd, form)}")


def layers_of(results: Results) -> list[int]:
    """The layers that the geometry's lists are of."""
    found = results["geometry"]
    if found.get("layers") is not None:
        return list(found["layers"])
    return list(range(max((len(norms) for norms in found["norms"].values()), default=0)))


def _condition_lines(results: Results) -> Iterator[Line]:
    for name, found in results["traits"].items():
        for condition in found["conditions"]:
            line = {"trait": name, "layer": found.get("layer"), "unit": found.get("unit")}
            line |= {field: condition.get(field) for field in (*_CONDITION, *_MEASURES, *_CAP)}
            for field in ("layers", "threshold"):
                if line[field] is not None:
                    line[field] = json.dumps(line[field])
            yield line | {field: (condition.get("cost") or {}).get(field) for field in _COST}


def _sweep_lines(results: Results) -> Iterator[Line]:
    for name, found in results["traits"].items():
        chosen = found.get("chosen") or {}
        at = (chosen.get("layer"), chosen.get("coefficient"))
        for point in found["sweep"]:
            line = {"trait": name, "unit": found.get("unit")} | {field: point.get(field) for field in _SWEEP}
            yield line | {"chosen": int((point["layer"], point["coefficient"]) == at)}


def _response_lines(results: Results) -> Iterator[Line]:
    for name, found in results["traits"].items():
        for of, responses in (("conditions", found["responses"]), ("sweep", found["sweep_responses"])):
            for response in responses:
                yield {"trait": name, "of": of} | {field: response.get(field) for field in _RESPONSE}


def _geometry_lines(results: Results) -> Iterator[Line]:
    found = results.get("geometry")
    if found:
        layers, names = layers_of(results), found["traits"]
        for a, row in zip(names, found["cosine_at_layer"], strict=True):
            for b, value in zip(names, row, strict=True):
                yield _geometry("cosine_at_layer", a, value, other=b, layer=found["layer"])
        for pair, values in found["cosine_by_layer"].items():
            a, _, b = pair.partition("|")
            for layer, value in zip(layers, values, strict=True):
                yield _geometry("cosine_by_layer", a, value, other=b, layer=layer)
        for name, matrix in found["across_layers"].items():
            for layer, row in zip(layers, matrix, strict=True):
                for other_layer, value in zip(layers, row, strict=True):
                    yield _geometry("across_layers", name, value, layer=layer, other_layer=other_layer)
        for measure, key in (("norm", "norms"), ("explained_variance", "explained_variance")):
            for name, values in found[key].items():
                for layer, value in zip(layers, values, strict=True):
                    yield _geometry(measure, name, value, layer=layer)
    for name, trait in results["traits"].items():
        for vector in trait["vectors"]:
            yield _geometry("residual_norm", name, vector["residual_norm"], layer=vector["layer"])


def _geometry(measure: str, trait: str, value: float | None, **where: Any) -> Line:
    return {"measure": measure, "trait": trait, "value": value} | where


def _extraction_lines(results: Results) -> Iterable[Line]:
    for name, trait in results["traits"].items():
        found = trait["extraction"]
        yield {
            "trait": name,
            "pairs": found["pairs"],
            "kept": found["kept"],
            **{f"dropped_{reason}": found["dropped"].get(reason, 0) for reason in DROPPED},
            "mean_score_positive": found["mean_score"]["positive"],
            "mean_score_negative": found["mean_score"]["negative"],
            "warning": found.get("warning"),
        }
