"""Steering vectors for llama.cpp: a GGUF control vector, read by `--control-vector`.

The rules are llama.cpp's, as measured with its library (test_gguf_control_vector.py):
`direction.N` is added to the output of the block that is N counted from 0, at every token, in float32; there
is no `direction.0`, and one N past the last block is ignored. Its reader looks at the tensors alone; the
metadata is for people and for other tools.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

import torch

from subvene.runner.exchange.exports.additive import Addition, additions, judge_added
from subvene.runner.exchange.exports.base import KEEP, Consumer, Export, ExportError, Verdict, Written
from subvene.runner.exchange.exports.cards import CARD, export_card
from subvene.runner.exchange.exports.emulation import added_logits
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, text_config
from subvene.specs import AnyIntervention

NAME, FILE = "gguf-control-vector", "control_vector.gguf"
SITE = "block_output"


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """Steering at the output of blocks 1 and later, at every token, is exact."""
    if declared.site != SITE:
        nearest = f"`--to checkpoint`, or fit a vector for `site: {SITE}`"
        if declared.site == "attention_heads":
            nearest = "`--to peft`" if facts.is_linear else "`--to checkpoint` or `--to lm-eval`"
        return _elsewhere(str(declared.site), nearest)
    if getattr(declared, "layer", None) == 0:
        return Verdict(
            "refused",
            "llama.cpp adds to the outputs of blocks 1 and later, and has no place for a vector of block 0",
            "`--to checkpoint`, or fit a vector for a later layer",
        )
    return judge_added(declared, facts, "llama.cpp")


def write(m: IntervenedModel, folder: Path, _approximate: bool) -> Written:
    """Write the control vector and its card.

    Raises:
        ExportError: the package gguf is missing, or a vector is out of float32's range.
    """
    if importlib.util.find_spec("gguf") is None:
        raise ExportError(f"{NAME} needs the package gguf: pip install 'subvene[gguf]'")
    found = additions(m)
    vectors = _by_layer(found, Anatomy.of(m.model).sizes.width)
    path = folder / FILE
    _write_gguf(path, vectors, str(text_config(m.model.config).model_type))
    (folder / CARD).write_text(_card(m, vectors, found), encoding="utf-8")
    return Written(
        consumer=_consumer(m, path),
        record={"layers": sorted(vectors), "file": FILE},
    )


EXPORT = Export(NAME, judge, write)


def read_directions(path: Path) -> dict[int, torch.Tensor]:
    """The vectors of a control vector file by 0-based block, float32."""
    import gguf

    found = {}
    for tensor in gguf.GGUFReader(path).tensors:
        name, _, number = tensor.name.partition(".")
        if name == "direction":
            found[int(number)] = torch.tensor(tensor.data, dtype=torch.float32)
    return found


def _elsewhere(site: str, nearest: str) -> Verdict:
    reason = f"llama.cpp adds vectors to the outputs of whole blocks, and this acts inside one, at {site}"
    return Verdict("refused", reason, f"{nearest}; or {KEEP}")


def _by_layer(found: Collection[Addition], width: int) -> dict[int, torch.Tensor]:
    """One float32 vector a layer, summed in float64; at least one, since llama.cpp refuses an empty file."""
    sums: dict[int, torch.Tensor] = {}
    for addition in found:
        sums[addition.layer] = sums.get(addition.layer, 0) + addition.vector
    if 0 in sums:
        names = ", ".join(addition.name for addition in found if addition.layer == 0)
        raise ExportError(f"{NAME}: {names} acts at block 0, and llama.cpp has no place for a vector there")
    vectors = {layer: vector.float() for layer, vector in sums.items()}
    if too_large := [layer for layer, vector in vectors.items() if not vector.isfinite().all()]:
        places = ", ".join(f"{SITE}[{layer}]" for layer in too_large)
        raise ExportError(f"{NAME}: the vector at {places} is out of float32's range; use a smaller strength")
    return vectors or {1: torch.zeros(width)}


def _write_gguf(path: Path, vectors: dict[int, torch.Tensor], model_type: str) -> None:
    import gguf

    writer = gguf.GGUFWriter(path, arch="controlvector")
    writer.add_string("controlvector.model_hint", model_type)
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for layer, vector in sorted(vectors.items()):
        writer.add_tensor(f"direction.{layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _consumer(m: IntervenedModel, path: Path) -> Consumer:
    anatomy = Anatomy.of(m.model)
    constants = {anatomy.component(SITE, n): vector for n, vector in read_directions(path).items()}
    return Consumer(
        name="emulated llama.cpp",
        version=None,
        logits=added_logits(m.model, constants),
        how="direction.N of the file is added to the output of block N at every token, in the model that is "
        "loaded; llama.cpp does the same, with the weights and the arithmetic of its own GGUF",
    )


def _card(m: IntervenedModel, vectors: dict[int, torch.Tensor], found: list[Addition]) -> str:
    rows = []
    for layer, vector in sorted(vectors.items()):
        names = ", ".join(dict.fromkeys(a.name for a in found if a.layer == layer)) or "none (zeros)"
        rows.append(f"| {layer} | {names} | {float(vector.norm()):.4g} |")
    about = (
        "A control vector for llama.cpp: what the interventions below add to the outputs of blocks, at every "
        "token. Use it with a GGUF of this model and no other, and leave its scale at 1: the strengths are "
        "in the vectors.\n\n"
        "| block, from 0 | interventions | norm |\n|--:|---|--:|\n" + "\n".join(rows)
    )
    return export_card(
        m,
        library="llama.cpp",
        relation="adapter",
        title="steered in llama.cpp",
        about=about,
        load=f"llama-cli -m MODEL.gguf --control-vector {FILE}",
        language="sh",
        tags=["gguf", "control-vector"],
    )
