"""The folder that stock pyvene loads: `config.json` and `intkey_*.bin`, and nothing beside a card.

Stock pyvene tells an intervention nothing about positions. Then the first call is taken as the prompt, every
later one as the response, and every token as real: exact for one prompt, or several of one length, that are
generated from with a cache, and for `positions: all` in any call (padding is edited there, and masked by the
model itself).
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import torch

from subvene.interventions._pyvene import pyvene
from subvene.interventions.positions import names_text, needs_length
from subvene.runner.artifacts.card import hub_id
from subvene.runner.exchange.exports.base import (
    EXACT,
    KEEP,
    Consumer,
    Export,
    ExportError,
    Verdict,
    Written,
    positions_in_words,
)
from subvene.runner.exchange.exports.cards import CARD, HERE, export_card
from subvene.runner.exchange.exports.facts import Facts
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import AnyIntervention

_HOW = "the prompt in one call, then every token of the response in a call of its own, with a cache"


def judge(declared: AnyIntervention, facts: Facts) -> Verdict:
    """Every kind is kept whole; what needs more than pyvene passes on is refused."""
    if not facts.acts_alone:
        return Verdict(
            "refused",
            "it needs its module's input, or its class does not say that the activation is enough for it "
            "(`acts_alone`), and stock pyvene passes nothing else on",
            KEEP,
        )
    if names_text(declared.positions):
        return Verdict(
            "refused",
            f"positions {positions_in_words(declared)} are found in each row's text, which stock pyvene does "
            "not pass on",
            KEEP,
        )
    if needs_length(declared.positions):
        return Verdict(
            "refused",
            f"positions {positions_in_words(declared)} count from the end of the response, which stock "
            "pyvene does not tell",
            KEEP,
        )
    return EXACT


def _write(m: IntervenedModel, folder: Path, _approximate: bool) -> Written:
    name = type(m.model).__name__
    listed = type(m.model) in pyvene.models.intervenable_modelcard.type_to_dimension_mapping
    if not listed or not hasattr(m.model.config, "hidden_size"):
        raise ExportError(
            f"stock pyvene {version('pyvene')} does not know {name}, so it could not load the folder; {KEEP}"
        )
    with _quiet():
        m.intervenable.save(str(folder))
    (folder / CARD).write_text(_card(m), encoding="utf-8")

    @torch.no_grad()
    def logits(ids: torch.Tensor, prompt_length: int) -> torch.Tensor:
        # A copy: stock pyvene freezes the model and removes every hook. Anew for every text, since a prompt
        # of one token continues the text before it.
        with _quiet():
            stock = pyvene.IntervenableModel.load(str(folder), copy.deepcopy(m.model))
        stock.set_device(m.model.device)
        found, cache = [], None
        for part in (ids[:, :prompt_length], *ids[:, prompt_length:].split(1, 1)):
            base = {"input_ids": part, "past_key_values": cache}
            _, output = stock(base, unit_locations=None, use_cache=True)
            found.append(output.logits)
            cache = output.past_key_values
        return torch.cat(found, 1)

    return Written(Consumer("pyvene", version("pyvene"), logits, _HOW))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep off the screen what pyvene prints and what it tells the root logger: nothing to act on."""

    def is_not_pyvenes(record: logging.LogRecord) -> bool:
        return "pyvene" not in record.pathname

    root = logging.getLogger()
    root.addFilter(is_not_pyvenes)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.removeFilter(is_not_pyvenes)


def _card(m: IntervenedModel) -> str:
    revision = f', revision="{m.spec.model.revision}"' if m.spec.model.revision else ""
    if hub_id(m.spec.model.name):
        lines = "import pyvene, transformers\n\nmodel = transformers.AutoModelForCausalLM.from_pretrained("
        lines += f'"{m.spec.model.name}"{revision})\n'
    else:
        lines = "import pyvene, subvene.runner\n\n"
        lines += f'model, tokenizer = subvene.runner.load_model("{m.spec.model.name}")\n'
    return export_card(
        m,
        library="pyvene",
        relation="adapter",
        title="with interventions, for stock pyvene",
        about="The interventions below in pyvene's own format. Loading them needs `subvene` installed, whose "
        "classes `config.json` names; pyvene imports what that file names and unpickles `intkey_*.bin`, so "
        "load folders of people you trust only.\n\nStock pyvene knows no positions: there the first call "
        "counts as the prompt and every later one as the response, and padding is not recognised. Pass "
        "`unit_locations=None` and, in `generate`, `intervene_on_prompt=True`.",
        load=f'{lines}m = pyvene.IntervenableModel.load("{HERE}", model)\n\n'
        "# Any of pyvene's own calls, such as\n"
        "# m.generate(inputs, unit_locations=None, intervene_on_prompt=True, max_new_tokens=64)",
        tags=("pyvene",),
    )


EXPORT = Export("pyvene", judge, _write, judges_unknown=True)
