"""The arms that belong in a comparison, added to a file that lacks them, as its data and models allow."""

from __future__ import annotations

from pathlib import Path

from subvene.interventions import Sizes, TensorError
from subvene.runner.data.traits import read_trait
from subvene.runner.models.anatomy import sizes_from_config
from subvene.runner.models.loading import load_config
from subvene.specs import ExperimentSpec, TransferSpec
from subvene.specs.default_arms import arms_are_added, lacks_prompt, with_default_arms
from subvene.specs.kinds import TraitScoresSpec
from subvene.specs.transfer_arms import missing_controls, with_controls


def completed(spec: ExperimentSpec, folder: Path, sizes: Sizes) -> tuple[ExperimentSpec, tuple[str, ...]]:
    """An experiment with the arms that it lacks, and why one that belongs there is not among them.

    Args:
        spec: the experiment.
        folder: where relative files of it are looked for.
        sizes: of its model.
    """
    equally_wide, notes = set(), []
    for transfer in {control.transfer.key: control.transfer for control in missing_controls(spec)}.values():
        widths = _widths(spec, transfer, sizes)
        if widths[0] == widths[1]:
            equally_wide.add(transfer.key)
        else:
            notes.append(
                f"{transfer.key}: not compared with the vector as {transfer.source.name} has it: it is "
                f"{widths[0]} wide there, and {widths[1]} here"
            )
    spec = with_controls(spec, equally_wide)
    return with_default_arms(spec, _asking(spec, folder)), tuple(notes)


def _widths(spec: ExperimentSpec, transfer: TransferSpec, sizes: Sizes) -> tuple[int | str, int | str]:
    """How wide the site of the native vectors is, in the source and here."""
    native = next(one for one in spec.fits if transfer.like in one.keys)
    site = getattr(native, "site", "block_output")
    source = sizes_from_config(load_config(transfer.source))
    try:
        return source.site_width(site), sizes.site_width(site)
    except TensorError:  # a site whose width only the loaded model tells
        return "perhaps otherwise", sizes.width


def _asking(spec: ExperimentSpec, folder: Path) -> dict[str, str]:
    """By trait that conditions are scored for, its first positive system prompt."""
    entries = (one for one in spec.evaluate if isinstance(one, TraitScoresSpec))
    if not (arms_are_added(spec) and lacks_prompt(spec)):
        return {}
    traits = (read_trait(trait, folder) for one in entries for trait in one.traits)
    return {trait.name: trait.system_prompts()[0][0] for trait in traits}
