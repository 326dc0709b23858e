"""One intervention of every kind with a float64 reference beside it, and a tiny model to put them on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers

from subvene.interventions import (
    AblationIntervention,
    ActivationIntervention,
    CappingIntervention,
    HeadDirectionIntervention,
    LowRankEditIntervention,
    PyveneIntervention,
    Sizes,
    SteeringIntervention,
    TensorTable,
)
from subvene.interventions.pyvene_class import make_inner

# 4 heads of 8 on a width of 24: `hidden_size // num_attention_heads` would be wrong.
SIZES = Sizes(n_layers=3, width=24, n_heads=4, head_dim=8)
HEADS_WIDTH = SIZES.n_heads * SIZES.head_dim

Delta = Callable[[torch.Tensor], torch.Tensor]


def tiny_llama(dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=SIZES.width,
        intermediate_size=32,
        num_hidden_layers=SIZES.n_layers,
        num_attention_heads=SIZES.n_heads,
        num_key_value_heads=2,
        head_dim=SIZES.head_dim,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=None,
    )
    return transformers.LlamaForCausalLM(config).eval().to(dtype)


@dataclass(frozen=True)
class Case:
    """A kind, where it acts on the tiny model, and its Δ in float64 written out by hand."""

    name: str
    component: str
    make: Callable[..., ActivationIntervention]
    delta: Delta

    def __repr__(self) -> str:
        return self.name


def _cases() -> list[Case]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    vector, direction, heads, sigma = draw(24), 3 * draw(24), draw(4, 8), draw(4).abs()
    w, bias = draw(4, 8), draw(4)
    a, b, source = draw(2, HEADS_WIDTH), draw(2, HEADS_WIDTH), draw(24)
    v_hat = direction.double() / direction.double().square().sum().sqrt()

    def project(h: torch.Tensor) -> torch.Tensor:
        return (h * v_hat).sum(-1, keepdim=True)

    def vanilla(**kwargs: Any) -> PyveneIntervention:
        options = dict.fromkeys(("low_rank_dimension", "latent_dim", "subspaces", "subspace_partition"))
        options |= {"class": "VanillaIntervention", "width": 24}
        return PyveneIntervention(make_inner(options, {}), source, options=options, **kwargs)

    residual, o_proj = "model.layers[1].output", "model.layers[1].self_attn.o_proj.input"
    return [
        Case(
            "steering", residual, lambda **kw: SteeringIntervention(vector, **kw), lambda h: vector.double()
        ),
        Case(
            "head_direction",
            o_proj,
            lambda **kw: HeadDirectionIntervention(heads, sigma, **kw),
            lambda h: torch.cat([sigma[i].double() * heads[i].double() for i in range(4)]),
        ),
        Case(
            "head_direction",  # self-monitored
            o_proj,
            lambda **kw: HeadDirectionIntervention(heads, sigma, w, bias, **kw),
            lambda h: torch.cat(
                [
                    sigma[i].double()
                    * heads[i].double()
                    / (1 + (h[..., 8 * i : 8 * i + 8] @ w[i].double() + bias[i].double()).exp().unsqueeze(-1))
                    for i in range(4)
                ],
                -1,
            ),
        ),
        Case(
            "low_rank_edit",
            o_proj,
            lambda **kw: LowRankEditIntervention(a, b, **kw),
            lambda h: sum((h * a[r].double()).sum(-1, keepdim=True) * b[r].double() for r in range(2)),
        ),
        Case(
            "capping",
            residual,
            lambda **kw: CappingIntervention(direction, ceiling=0.01, floor=-0.02, **kw),
            lambda h: -(project(h) - 0.01).clamp_min(0) * v_hat + (-0.02 - project(h)).clamp_min(0) * v_hat,
        ),
        Case(
            "ablation",
            residual,
            lambda **kw: AblationIntervention(direction, **kw),
            lambda h: -project(h) * v_hat,
        ),
        Case("pyvene", residual, vanilla, lambda h: source.double() - h),
    ]


CASES = _cases()


@pytest.fixture(params=CASES, ids=repr)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture
def llama() -> Callable[..., Any]:
    return tiny_llama


@pytest.fixture
def sizes() -> Sizes:
    return SIZES


@pytest.fixture
def table() -> Callable[..., TensorTable]:
    return lambda **tensors: TensorTable(tensors, "t.safetensors")


@pytest.fixture
def cases() -> list[Case]:
    return CASES
