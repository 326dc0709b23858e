"""The data plane in vLLM's models: hooks at the edited sites, made of operations on buffers that stay put.

They are installed while the model is built, before anything of it is compiled, so that compilation sees them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from subvene.interventions import Sizes
from subvene.runner.engines.catalogue import Room
from subvene.runner.engines.dense import DenseSite, Reduce
from subvene.runner.engines.errors import EngineError

NAME = "subvene_site"
MEASURES = 3
"""Of each request at each site: tokens with an edit, tokens changed by it, Σ ‖Δ‖/‖h‖."""


@dataclass(frozen=True)
class Layout:
    """Where a model class of vLLM keeps its parts, and what its blocks return.

    Attributes:
        pair: whether a block returns (hidden, residual), whose sum is the residual stream.
        attention: the attention module within a block; the input of its `o_proj` are the heads.
        mlp: the module within a block whose output is what the feed-forward part adds.
        core: the module within the attention module whose output the heads are; None: the input of `o_proj`.
        blocks: the list of blocks.
    """

    pair: bool = True
    attention: str = "self_attn"
    mlp: str = "mlp"
    core: str | None = "attn"
    blocks: str = "model.layers"


_USUAL = Layout()
_TRANSFORMERS = Layout(pair=False, core=None)

# Each was run against the same weights under transformers (tests/vllm). What a block returns cannot be told
# from its modules: Cohere's returns a pair whose first part alone is the stream.
LAYOUTS: dict[str, Layout] = {
    "LlamaForCausalLM": _USUAL,
    "MistralForCausalLM": _USUAL,
    "Qwen2ForCausalLM": _USUAL,
    "Qwen3ForCausalLM": _USUAL,
    "Qwen3MoeForCausalLM": _USUAL,
    "GemmaForCausalLM": _USUAL,
    "Gemma2ForCausalLM": _USUAL,
    "Gemma3ForCausalLM": _USUAL,
    "Phi3ForCausalLM": _USUAL,
    "MixtralForCausalLM": Layout(mlp="block_sparse_moe"),
    "GptOssForCausalLM": Layout(attention="attn"),
}
# Of vLLM's own wrapper around transformers' models: by the architecture in the config.
TRANSFORMERS_LAYOUTS: dict[str, Layout] = {"Olmo2ForCausalLM": _TRANSFORMERS}


def layout_of(model_class: str, architectures: Collection[str]) -> Layout:
    """Where a model keeps its parts.

    Raises:
        EngineError: it is not known; nothing is guessed.
    """
    if model_class.startswith("Transformers"):
        for architecture in architectures:
            if architecture in TRANSFORMERS_LAYOUTS:
                return TRANSFORMERS_LAYOUTS[architecture]
    elif model_class in LAYOUTS:
        return LAYOUTS[model_class]
    known = ", ".join([*LAYOUTS, *TRANSFORMERS_LAYOUTS])
    raise EngineError(
        f"vLLM runs {', '.join(architectures)} as {model_class}, and what its blocks return has not been "
        f"checked; there are: {known}"
    )


@dataclass
class Step:
    """What all sites of a worker share: buffers that each step fills.

    Attributes:
        scale: S [tokens, cells].
        slot: the request's slot of each token, [tokens]; the last slot is nobody's.
        slots: how many there are beside nobody's.
        active: the sites that anything of this step is edited at.
        stages: how many stages anything of this step is edited in.
        skips: whether another site or stage is left out; compiled code leaves none out.
    """

    scale: torch.Tensor
    slot: torch.Tensor
    slots: int
    active: frozenset[str]
    skips: bool
    stages: int = 1


class SiteEdit(nn.Module):
    """What is done at one site of this rank, and what it measures.

    Args:
        name: `site[layer]`.
        dense: what is done.
        step: the buffers.
    """

    scale: torch.Tensor
    slot: torch.Tensor
    seen: torch.Tensor
    step: Step

    def __init__(self, name: str, dense: DenseSite, step: Step) -> None:
        super().__init__()
        self.name, self.dense = name, dense
        self.register_buffer("scale", step.scale, persistent=False)
        self.register_buffer("slot", step.slot, persistent=False)
        seen = torch.zeros(step.slots + 1, MEASURES, dtype=torch.float32, device=step.scale.device)
        self.register_buffer("seen", seen, persistent=False)
        self.__dict__["step"], self.skips = step, step.skips

    def is_idle(self) -> bool:
        """Whether nothing of this step is edited here."""
        return self.skips and self.name not in self.step.active

    def forward(self, h: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Edit `h` [..., width], or the sum of `h` and `residual` by a change to `h`."""
        flat = h.reshape(-1, h.shape[-1])
        stream = flat if residual is None else flat + residual.reshape(flat.shape)
        stages = self.step.stages if self.skips else None
        delta, acts = self.dense.delta(stream, self.scale[: len(flat)], stages)
        # The smaller of the two summands, where half precision loses least.
        edited = torch.where(acts, (flat.float() + delta).to(flat.dtype), flat)
        # Not `(edited != flat).any`, which takes three times as long on a CPU; what is NaN has changed.
        changed = (edited - flat).abs().amax(-1, keepdim=True) != 0
        self._measure(stream, delta, acts, changed)
        return edited.view_as(h)

    def _measure(
        self, stream: torch.Tensor, delta: torch.Tensor, acts: torch.Tensor, changed: torch.Tensor
    ) -> None:
        if self.dense.reduce is None:
            sizes = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
            # As the runner under transformers measures it.
            ratio = sizes / torch.linalg.vector_norm(
                stream, dim=-1, keepdim=True, dtype=torch.float32
            ).clamp_min_(1e-12)
        else:
            ratio, changed = self._over_ranks(stream, delta, changed, self.dense.reduce)
        told = torch.cat([acts, changed, ratio], dim=-1)
        self.seen.index_add_(0, self.slot[: len(stream)], torch.where(acts, told, 0.0))

    @staticmethod
    def _over_ranks(
        stream: torch.Tensor, delta: torch.Tensor, changed: torch.Tensor, reduce: Reduce
    ) -> tuple[torch.Tensor, torch.Tensor]:
        squares = [part.float().square().sum(-1, keepdim=True) for part in (delta, stream)]
        sums = reduce(torch.cat([*squares, changed.float()], dim=-1))
        return (sums[:, :1] / sums[:, 1:2].clamp_min(1e-24)).sqrt(), sums[:, 2:] > 0


def install(
    model: nn.Module,
    layout: Layout,
    rooms: dict[str, Room],
    groups: int,
    sizes: Sizes,
    step: Step,
    split: tuple[int, int, Reduce],
) -> dict[str, SiteEdit]:
    """Put the edits of a catalogue's rooms into this rank's part of a model.

    Args:
        model: as vLLM has built it, without weights.
        layout: where its parts are.
        rooms: by site.
        groups: interventions there may be.
        sizes: of the whole model.
        step: shared buffers.
        split: rank, number of ranks and how they add up, of tensor parallelism.

    Returns:
        The sites that are here; other pipeline stages have the others.
    """
    made: dict[str, SiteEdit] = {}
    for name, room in sorted(rooms.items()):
        site, _, layer = name[:-1].partition("[")
        if (block := block_of(model, layout, int(layer))) is None:
            continue
        width, part, reduce = part_of(block, layout, site, name, sizes, split)
        dense = DenseSite(
            width, len(room.columns), room.depth, groups, reads=room.reads, part=part, reduce=reduce
        )
        made[name] = SiteEdit(name, dense, step)
        _attach(block, layout, site, made[name])
    return made


def block_of(model: nn.Module, layout: Layout, layer: int) -> nn.Module | None:
    """A block of a model; None where another stage of a pipeline has it."""
    block = cast(nn.ModuleList, model.get_submodule(layout.blocks))[layer]
    return None if type(block).__name__ == "PPMissingLayer" else block


def part_of(
    block: nn.Module, layout: Layout, site: str, name: str, sizes: Sizes, split: tuple[int, int, Reduce]
) -> tuple[int, slice, Reduce | None]:
    """How wide a site is on this rank, which part of it that is, and what adds up over ranks.

    Raises:
        EngineError: the rank has another part of the heads.
    """
    width = sizes.site_width(site)
    if site != "attention_heads":
        return width, slice(None), None
    rank, ranks, reduce = split
    width //= ranks
    _check_heads(block, layout, width, name)
    return width, slice(rank * width, (rank + 1) * width), reduce if ranks > 1 else None


def _check_heads(block: nn.Module, layout: Layout, width: int, name: str) -> None:
    projection: Any = block.get_submodule(f"{layout.attention}.o_proj")
    found = getattr(projection, "input_size_per_partition", None) or projection.input_size
    if found != width:
        raise EngineError(f"{name}: expected {width} features of heads on this rank, found {found}")


def _attach(block: nn.Module, layout: Layout, site: str, edit: SiteEdit) -> None:
    where, hook = place_of(block, layout, site)
    # A submodule, so that dynamo finds its buffers where it looks for them. No module has two sites.
    where.add_module(NAME, edit)
    if hook is before:
        where.register_forward_pre_hook(before)
    else:
        where.register_forward_hook(hook)


def place_of(block: nn.Module, layout: Layout, site: str) -> tuple[nn.Module, Callable[..., Any]]:
    """The module of a site, and the hook that edits there: `before` it, `after` it, or `after_pair`.

    Raises:
        EngineError: it is none that this engine knows.
    """
    match site:
        case "block_output":
            return block, after_pair if layout.pair else after
        case "attention_output":
            return block.get_submodule(layout.attention), after
        case "mlp_output":
            return block.get_submodule(layout.mlp), after
        case "attention_heads" if layout.core is None:
            return block.get_submodule(f"{layout.attention}.o_proj"), before
        case "attention_heads":
            # Not the projection itself: LoRA puts another module into its place.
            return block.get_submodule(f"{layout.attention}.{layout.core}"), after
    raise EngineError(f"{site}: this engine does not know this site")


def before(module: Any, args: Any) -> Any:
    """Edits what goes into a module."""
    edit = module.subvene_site
    return None if edit.is_idle() else (edit(args[0]), *args[1:])


def after(module: Any, _: Any, output: Any) -> Any:
    """Edits what comes out."""
    edit = module.subvene_site
    if edit.is_idle():
        return None
    return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)


def after_pair(module: Any, _: Any, output: Any) -> Any:
    """Edits the sum of the two tensors that come out."""
    edit = module.subvene_site
    return None if edit.is_idle() else (edit(output[0], output[1]), *output[1:])
