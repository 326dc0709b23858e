"""Persona results of the first format, as runs wrote them until 0.1: read into today's type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from subvene.runner.data.traits import question_key
from subvene.runner.files.json_value import Json

Document = Mapping[str, Any]


def upgraded_persona(document: Document) -> dict[str, Json]:
    """Such a document as one of format 2.

    Raises:
        KeyError, TypeError, AttributeError: it is none.
    """
    judge = dict(document.get("judge") or {})
    usage = judge.pop("usage", {})
    traits, geometry = document["traits"], document.get("geometry")
    responses = [one for trait in traits.values() for one in (*trait["responses"], *trait["sweep_responses"])]
    if geometry and geometry.get("layers") is None:
        n_layers = max((len(norms) for norms in geometry["norms"].values()), default=0)
        geometry = {**geometry, "layers": list(range(n_layers))}
    manifest = {name: document.get(name) for name in ("environment", "git")}
    if document.get("experiment"):
        manifest["spec"] = yaml.safe_dump(document["experiment"], sort_keys=False, allow_unicode=True)
    return {
        "kind": "persona",
        "manifest": manifest,
        "conditions": [
            _trait_condition(name, condition, trait["responses"])
            for name, trait in traits.items()
            for condition in trait["conditions"]
        ],
        "choices": [_trait_choice(name, trait) for name, trait in traits.items() if trait.get("chosen")],
        "judges": [{"about": judge, "usage": usage}] if judge else [],
        "questions": {question_key(one["question"]): {"question": one["question"]} for one in responses},
        "notes": _trait_notes(document),
        "sections": {
            "persona": {
                "traits": {name: _trait(trait) for name, trait in traits.items()},
                "geometry": geometry,
                "model_sha256": document.get("model_sha256"),
            }
        },
    }


def _trait(trait: Document) -> dict[str, Json]:
    steered, sweep = trait.get("layer") is not None, None
    if trait["sweep"]:
        sweep = {
            "points": [_swept_point(point, trait["sweep_responses"]) for point in trait["sweep"]],
            "contrast_from": trait.get("contrast_from"),
            "coherence_at_least": (trait.get("chosen") or {}).get("coherence_at_least"),
        }
    return {
        **{name: trait[name] for name in ("extraction", "vectors", "correlation")},
        "steering": {name: trait[name] for name in ("layer", "unit", "positions")} if steered else None,
        "sweep": sweep,
    }


def _swept_point(point: Document, responses: list[Document]) -> dict[str, Json]:
    place = {name: point[name] for name in ("layer", "coefficient")}
    spreads = {name: _spread(point, name) for name in ("score", "coherence")}
    return {
        **place,
        **{name: point[name] for name in ("n", "refused")},
        "missing": point.get("missing", 0),
        **spreads,
        "contrast": point.get("contrast"),
        "items": [_response(one) for one in responses if all(one[name] == place[name] for name in place)],
        "not_finite": point.get("not_finite"),
    }


def _trait_condition(trait: str, condition: Document, responses: list[Document]) -> dict[str, Json]:
    cost, coefficient = condition.get("cost") or {}, condition["coefficient"]
    metrics = {name: _spread(condition, name) for name in ("score", "coherence", "projection")}
    for name, of in (("ce", "texts"), ("kl", "texts"), ("accuracy", "choices")):
        metrics[name] = None if cost.get(name) is None else {"mean": cost[name], "n": cost[of]}
    counts = {name: condition[name] for name in ("refused", "missing") if name in condition}
    details = ("kind", "layers", "threshold", "changed_share", "expected_share", "warning")
    return {
        **{name: condition[name] for name in ("name", "label")},
        "group": trait,
        "point": {} if coefficient is None else {"coefficient": coefficient},
        "metrics": {name: metric for name, metric in metrics.items() if metric is not None},
        "counts": {"responses": condition["n"], **counts},
        "receipts": {"responses": condition["receipt"]} if condition.get("receipt") else {},
        "items": [_response(one) for one in responses if one["condition"] == condition["label"]],
        "not_finite": condition.get("not_finite"),
        "details": {name: condition[name] for name in details if condition.get(name) is not None},
    }


def _spread(one: Document, name: str) -> dict[str, Json] | None:
    if one[name] is None:
        return None
    n = one.get("scored", one["n"]) if name == "score" else one["n"]
    return {"mean": one[name], "sd": one[f"{name}_sd"], "n": n}


def _response(one: Document) -> dict[str, Json]:
    return {
        "key": question_key(one["question"]),
        **{name: one.get(name) for name in ("text", "seed", "tokens")},
        "scores": {name: one[name] for name in ("score", "coherence", "projection") if name in one},
    }


def _trait_choice(name: str, trait: Document) -> dict[str, Json]:
    chosen, places = trait["chosen"], ("layer", "coefficient")
    return {
        "condition": name,
        "metric": chosen["by"],
        "tried": [
            {
                "point": {place: point[place] for place in places},
                "value": point[chosen["by"]],
                "n": point["n"],
                "not_finite": point.get("not_finite"),
            }
            for point in trait["sweep"]
        ],
        "chosen": {place: chosen[place] for place in places},
    }


def _trait_notes(document: Document) -> list[str]:
    """Everything that the run warned of, each thing once."""
    said = [str(warning) for warning in document.get("warnings") or ()]
    for name, trait in document["traits"].items():
        inner = [("", trait["extraction"].get("warning"))]
        inner += [(f"{c['label']}: ", c.get("warning")) for c in trait["conditions"]]
        for where, warning in inner:
            # The run's own list may hold it already, with more said around it.
            if warning and not any(name in other and warning in other for other in said):
                about = "" if where and warning.startswith(where) else where
                said.append(warning if warning.startswith(f"{name}: ") else f"{name}: {about}{warning}")
    return list(dict.fromkeys(said))
