"""Where a pass that begins at a layer gives something else than a whole one, passes are whole and say so."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from tiny_model import write_tiny_model
from tracing_by_hand import module_of

from subvene.runner.models.anatomy import Anatomy
from subvene.runner.passes.interchange import Interchanges
from subvene.specs.recipes.das import PlaceSpec


def whole(_base: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    return source


def test_passes_are_whole_where_a_restart_gives_something_else(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    base, source = [[5, 6, 7, 8], [11, 12, 13]], [[21, 22, 23], [24, 25, 26, 27]]

    def runs_of() -> Interchanges:
        places = {"last": PlaceSpec.model_validate({"base": {"last": 1}, "source": {"last": 1}})}
        return Interchanges(
            Anatomy.of(model),
            None,
            base,
            source,
            [{}, {}],
            site="block_output",
            places=places,
            pad_id=0,
            pass_tokens=99,
        )

    def swapped(runs: Interchanges) -> torch.Tensor:
        with torch.no_grad():
            return next(iter(runs.at([1]))).logits([("last", whole)], torch.arange(2))

    plain = runs_of()
    known = swapped(plain)
    assert plain.note is None
    # Block 0 leaves something behind for block 2, which a pass that begins there never sees.
    module_of(model, "mlp_output", 0).register_forward_hook(lambda m, a, o: setattr(model, "seen", True))
    module_of(model, "block_output", 2).register_forward_hook(
        lambda m, a, o: o if model.__dict__.pop("seen", False) else o + 1
    )
    runs = runs_of()
    torch.testing.assert_close(swapped(runs), known)
    assert runs.note is not None
    assert "not from the edited layer on" in runs.note
