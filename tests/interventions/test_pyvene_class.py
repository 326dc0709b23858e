"""pyvene's own classes, each against the stock class applied to the same rows and source."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from kind_cases import RESIDUAL, Case

from subvene.interventions import PyveneIntervention, Sizes, TensorError
from subvene.interventions._pyvene import pyvene
from subvene.interventions.pyvene_inner import make_inner
from subvene.runner.edits.intervenable import IntervenableModel
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, PyveneSpec
from subvene.specs.interventions import PyveneClass

WIDTH = 24
GENERATOR = torch.Generator().manual_seed(0)
SOURCE = torch.randn(WIDTH, generator=GENERATOR)
PCA = {
    "pca_components": torch.linalg.qr(torch.randn(WIDTH, 5, generator=GENERATOR))[0].T.contiguous(),
    "pca_mean": torch.randn(WIDTH, generator=GENERATOR),
    "pca_std": torch.rand(WIDTH, generator=GENERATOR) + 0.5,
}


def _vanilla(**kwargs: Any) -> PyveneIntervention:
    options = dict.fromkeys(("low_rank_dimension", "latent_dim", "subspaces", "subspace_partition"))
    options |= {"class": "VanillaIntervention", "width": WIDTH}
    return PyveneIntervention(make_inner(options, {}), SOURCE, options=options, **kwargs)


CASES = [Case("pyvene", RESIDUAL, _vanilla, lambda h: SOURCE.double() - h)]


@dataclass(frozen=True)
class Stock:
    """How pyvene's users make a class, without any code of ours."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)
    has_source: bool = True
    #: Number of dimensions that subspaces index; None for classes that know none.
    basis: int | None = WIDTH
    exact: bool = True

    def __repr__(self) -> str:
        return self.name.removesuffix("Intervention")

    def make(self, **kwargs: Any) -> Any:
        kwargs = {"embed_dim": WIDTH} | self.fields | kwargs
        if self.name.startswith("PCA"):
            pca = types.SimpleNamespace(components_=PCA["pca_components"].numpy())
            kwargs |= {"pca": pca, "pca_mean": PCA["pca_mean"].numpy(), "pca_std": PCA["pca_std"].numpy()}
        made = getattr(pyvene, self.name)(**kwargs)
        if self.name == "AutoencoderIntervention":
            made.set_interchange_dim(list(range(7)))
        if self.name.startswith("PCA"):
            made.set_interchange_dim(5)
        if self.name.startswith("JumpReLU"):
            made.set_interchange_dim(6)
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if parameter.is_floating_point() and not name.startswith(
                    ("pca", "rotate_layer", "temperature")
                ):
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        return made


CLASSES = [
    Stock("ZeroIntervention", has_source=False),
    Stock("VanillaIntervention"),
    Stock("AdditionIntervention"),
    Stock("SubtractionIntervention"),
    Stock("CollectIntervention", has_source=False),
    Stock("SkipIntervention", has_source=False),
    Stock("RotatedSpaceIntervention", exact=False),
    Stock("BoundlessRotatedSpaceIntervention", basis=None, exact=False),
    Stock("SigmoidMaskRotatedSpaceIntervention", basis=None, exact=False),
    Stock("SigmoidMaskIntervention", basis=None),
    Stock("LowRankRotatedSpaceIntervention", {"low_rank_dimension": 6}, basis=6, exact=False),
    Stock("PCARotatedSpaceIntervention", basis=5, exact=False),
    Stock("AutoencoderIntervention", {"latent_dim": 7}, basis=None, exact=False),
    Stock("JumpReLUAutoencoderIntervention", {"low_rank_dimension": 6}, basis=6, exact=False),
]
EDITING = [c for c in CLASSES if c.name not in ("CollectIntervention", "SkipIntervention")]
TRAINABLE = [c for c in EDITING if dict(c.make().named_parameters())]


def spec_of(stock: Stock, stored: bool, **fields: Any) -> PyveneSpec:
    default: dict[str, Any] = {"class": stock.name, "site": "block_output", "layer": 1, **stock.fields}
    if stock.has_source:
        default["source"] = {"key": "src"}
    if stored:
        default["state"] = {"key": "own"}
    return PyveneSpec(**default | fields)


def build(stock: Stock, inner: Any, table: Any, sizes: Sizes, **fields: Any) -> PyveneIntervention:
    tensors = {f"own.{name}": tensor.detach() for name, tensor in inner.state_dict().items()}
    has_state = any(not name.endswith(("embed_dim", "interchange_dim")) for name in tensors)
    if stock.has_source:
        tensors["src.block_output[1]"] = SOURCE
    spec = spec_of(stock, has_state, **fields)
    ((_, _, edit),) = PyveneIntervention.build(spec, table(**tensors), sizes)
    return edit


def rows(seed: int = 1, count: int = 10) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def close(a: torch.Tensor, b: torch.Tensor, exact: bool) -> None:
    torch.testing.assert_close(a, b, rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6)


def test_every_allowed_class_is_tested() -> None:
    assert {stock.name for stock in CLASSES} == set(get_args(PyveneClass))


@pytest.mark.parametrize("stock", EDITING, ids=repr)
def test_edit_is_that_of_the_stock_class(stock: Stock, table: Callable[..., Any], sizes: Sizes) -> None:
    inner, h = stock.make(), rows()
    edit = build(stock, inner, table, sizes)
    expected = inner(h.clone(), SOURCE.expand(10, WIDTH) if stock.has_source else None)
    close(edit(h.view(2, 5, WIDTH)).view(10, WIDTH), expected, stock.exact)
    assert (expected - h).abs().max() > 1e-3
    half = edit(h.view(2, 5, WIDTH), strength=torch.tensor(0.5)).view(10, WIDTH)
    torch.testing.assert_close(half, h + 0.5 * (expected - h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("stock", EDITING, ids=repr)
def test_other_precisions(stock: Stock, dtype: torch.dtype, table: Callable[..., Any], sizes: Sizes) -> None:
    inner, h = stock.make(), rows().to(dtype)
    edited = build(stock, inner, table, sizes)(h.view(2, 5, WIDTH)).view(10, WIDTH)
    source = SOURCE.expand(10, WIDTH) if stock.has_source else None
    expected = inner(h.float(), source)
    assert edited.dtype == dtype
    eps = max(torch.finfo(dtype).eps, 1e-6)
    torch.testing.assert_close(edited.float(), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize("stock", [c for c in EDITING if c.basis], ids=repr)
def test_subspaces(stock: Stock, table: Callable[..., Any], sizes: Sizes) -> None:
    inner, h = stock.make(), rows()
    edit = build(stock, inner, table, sizes, subspaces=(0, 3))
    source = SOURCE.expand(10, WIDTH) if stock.has_source else None
    expected = inner(h.clone(), source, [[0, 3]] * 10)
    close(edit(h.view(2, 5, WIDTH)).view(10, WIDTH), expected, stock.exact)
    if stock.name != "JumpReLUAutoencoderIntervention":  # which reconstructs the whole activation
        assert not torch.allclose(expected, inner(h.clone(), source))


def test_a_subspace_of_two_dimensions_is_these_two(table: Callable[..., Any], sizes: Sizes) -> None:
    (stock,) = (c for c in EDITING if c.name == "AdditionIntervention")
    h = rows().view(2, 5, WIDTH)
    edit = build(stock, stock.make(), table, sizes, subspaces=(0,), subspace_partition=((0, 3), (1, 2)))
    changed = (edit(h) != h).flatten(0, -2).any(0)
    assert changed.nonzero().flatten().tolist() == [0, 3]


@pytest.mark.parametrize("stock", [c for c in EDITING if c.basis], ids=repr)
def test_subspace_partition(stock: Stock, table: Callable[..., Any], sizes: Sizes) -> None:
    partition = ((0, 2), (1, 3, 4))
    inner, h = stock.make(subspace_partition=[list(part) for part in partition]), rows()
    edit = build(stock, inner, table, sizes, subspaces=(1,), subspace_partition=partition)
    source = SOURCE.expand(10, WIDTH) if stock.has_source else None
    close(edit(h.view(2, 5, WIDTH)).view(10, WIDTH), inner(h.clone(), source, [[1]] * 10), stock.exact)


@pytest.mark.parametrize("stock", CLASSES, ids=repr)
def test_state_dict_alone_rebuilds_the_class(stock: Stock, table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(stock, stock.make(), table, sizes, positions="prompt")
    fresh = PyveneIntervention()
    fresh.load_state_dict(edit.state_dict())
    assert type(fresh.inner).__name__ == stock.name
    assert fresh.positions == "prompt"
    if stock in EDITING:
        h = rows().view(2, 5, WIDTH)
        assert torch.equal(fresh(h), edit(h))


@pytest.mark.parametrize("stock", EDITING, ids=repr)
def test_stock_pyvene_saves_and_loads(
    stock: Stock, table: Callable[..., Any], llama: Callable[..., Any], sizes: Sizes, tmp_path: Path
) -> None:
    edit = build(stock, stock.make(), table, sizes)
    ids = torch.tensor([[1, 2, 3]])
    before = pyvene.IntervenableModel(
        [{"component": "model.layers[1].output", "intervention": edit}], llama()
    )
    before.save(str(tmp_path))
    after = pyvene.IntervenableModel.load(str(tmp_path), llama())
    with torch.no_grad():
        logits = [m({"input_ids": ids}, unit_locations=None)[1].logits for m in (before, after)]
        assert torch.equal(*logits)
        assert not torch.equal(logits[0], llama()(ids).logits)


@pytest.mark.parametrize("stock", TRAINABLE, ids=repr)
def test_missing_and_renamed_parameters_are_refused(
    stock: Stock, table: Callable[..., Any], sizes: Sizes
) -> None:
    state = {f"own.{n}": t.detach() for n, t in stock.make().state_dict().items()}
    own = [name for name in state if not name.endswith(("embed_dim", "interchange_dim"))]
    for name in own:
        for changed in (
            {n: t for n, t in state.items() if n != name},
            {(n + "_" if n == name else n): t for n, t in state.items()},
        ):
            with pytest.raises(TensorError, match=name.removeprefix("own.").split(".")[-1]):
                PyveneIntervention.build(
                    spec_of(stock, True), table(**changed, **{"src.block_output[1]": SOURCE}), sizes
                )


@pytest.mark.parametrize("stock", [c for c in TRAINABLE if not c.name.startswith("PCA")], ids=repr)
def test_fresh_parameters_are_seeded(stock: Stock, table: Callable[..., Any], sizes: Sizes) -> None:
    tensors = table(**{"src.block_output[1]": SOURCE})
    state = torch.random.get_rng_state()

    def parameters(seed: int) -> list[torch.Tensor]:
        ((_, _, edit),) = PyveneIntervention.build(spec_of(stock, False, seed=seed), tensors, sizes)
        return list(edit.inner.state_dict().values())

    assert all(torch.equal(a, b) for a, b in zip(parameters(3), parameters(3), strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)
    if "Rotated" in stock.name or stock.name == "AutoencoderIntervention":
        assert not all(torch.equal(a, b) for a, b in zip(parameters(3), parameters(4), strict=True))


def test_parameters_are_trained(table: Callable[..., Any], sizes: Sizes) -> None:
    stock = next(c for c in CLASSES if c.name.startswith("LowRank"))
    edit = build(stock, stock.make(), table, sizes)
    edit(rows().view(2, 5, WIDTH)).square().sum().backward()
    gradients = [p.grad for p in edit.inner.parameters()]
    assert gradients
    assert all(g is not None and g.any() for g in gradients)


def _gradients(parameters: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in parameters if p.grad is not None}


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("stock", TRAINABLE, ids=repr)
def test_gradients_are_those_of_the_stock_class(
    stock: Stock, table: Callable[..., Any], sizes: Sizes
) -> None:
    inner, h = stock.make(), rows()
    edit = build(stock, inner, table, sizes)
    weights = rows(seed=9)
    edited = edit(h.view(2, 5, WIDTH)).view(10, WIDTH)
    if edited.requires_grad:
        (edited * weights).sum().backward()
    found = _gradients(edit.inner.named_parameters())
    if stock.name == "AutoencoderIntervention":
        # Stock cannot be trained (see `interventions/autoencoder.py`); every latent is swapped in.
        expected = inner.autoencoder.decode(inner.autoencoder.encode(SOURCE.expand(10, WIDTH)))
    else:
        expected = inner(h.clone(), SOURCE.expand(10, WIDTH))
    if stock.name.startswith("PCA"):  # whose parameters are frozen
        assert not expected.requires_grad
        return
    (expected * weights).sum().backward()
    by_stock = _gradients(inner.named_parameters())
    assert found.keys() == by_stock.keys()
    assert any(gradient.any() for gradient in found.values())
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, by_stock[name], rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor")
@pytest.mark.parametrize("stock", CLASSES, ids=repr)
def test_every_class_lets_gradients_through_at_its_place_in_a_model(
    stock: Stock, table: Callable[..., Any], llama: Callable[..., Any], sizes: Sizes
) -> None:
    model = llama()
    # At half strength, since a swap of everything leaves nothing of what is below it.
    edit = build(stock, stock.make(), table, sizes, strength=0.5)
    m = IntervenableModel([{"component": "model.layers[1].output", "intervention": edit}], model)
    _, output = m({"input_ids": torch.tensor([[1, 2, 3]])})
    output.logits.square().sum().backward()
    assert model.model.layers[0].mlp.down_proj.weight.grad.any()
    if stock in TRAINABLE and not stock.name.startswith("PCA"):
        assert any(p.grad is not None and p.grad.any() for p in m.get_trainable_parameters())


def test_another_source_is_put_in_its_place(
    table: Callable[..., Any], sizes: Sizes, cases: list[Any]
) -> None:
    by_name = {stock.name: stock for stock in CLASSES}
    stock, zero = by_name["VanillaIntervention"], by_name["ZeroIntervention"]
    other, h = rows(seed=8)[0], rows().view(2, 5, WIDTH)
    edit = build(stock, stock.make(), table, sizes)
    edit.set_source_representation(other)
    assert torch.equal(edit(h), other.expand_as(h))
    for wrong in (other[:7], other[None], other * torch.nan):
        with pytest.raises(ValueError, match="expected \\[24\\] finite numbers"):
            edit.set_source_representation(wrong)
    with pytest.raises(TypeError, match="ZeroIntervention takes no source"):
        build(zero, zero.make(), table, sizes).set_source_representation(other)
    for case in cases:
        if case.name != "pyvene":
            with pytest.raises(TypeError, match="has no source"):
                case.make().set_source_representation(other)


@pytest.mark.parametrize("width", [1, WIDTH - 1])
def test_a_source_of_another_width_is_not_spread(width: int, table: Callable[..., Any], sizes: Sizes) -> None:
    spec = PyveneSpec(class_name="AdditionIntervention", component="a.output", source={"key": "src"})
    ((_, _, edit),) = PyveneIntervention.build(spec, table(src=torch.ones(width)), sizes)
    with pytest.raises(TensorError, match=rf"the source has shape \[{width}\].* is {WIDTH} wide"):
        edit(rows().view(2, 5, WIDTH))


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        ({}, {}, r"no tensor 'src.block_output\[1\]'"),
        ({"src.block_output[1]": torch.ones(7)}, {}, r"shape \[7\], expected \[24\]"),
        ({"src.block_output[2]": SOURCE}, {}, r"no tensor 'src.block_output\[1\]'"),
        ({"src.block_output[1]": SOURCE * torch.nan}, {}, "NaN"),
        ({"src.block_output[1]": SOURCE.long()}, {}, "floating point"),
        ({"src": torch.ones(2, 24)}, {"component": "lm_head.input"}, r"shape \[2, 24\], expected \[width\]"),
        ({"src": torch.tensor(1.0)}, {"component": "lm_head.input"}, r"shape \[\], expected \[width\]"),
    ],
)
def test_sources_that_do_not_fit(
    table: Callable[..., Any], sizes: Sizes, tensors: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    place = {"site": None, "layer": None} if fields else {}
    spec = spec_of(CLASSES[1], False, **place, **fields)
    with pytest.raises(TensorError, match=message):
        PyveneIntervention.build(spec, table(**tensors), sizes)


def test_state_that_does_not_fit(table: Callable[..., Any], sizes: Sizes) -> None:
    stock = next(c for c in CLASSES if c.name == "SigmoidMaskIntervention")
    source = {"src.block_output[1]": SOURCE}
    good = {"own.mask": torch.zeros(24), "own.temperature": torch.tensor(0.01)}
    PyveneIntervention.build(spec_of(stock, True), table(**good, **source), sizes)
    for changed, message in (
        ({"own.mask": torch.zeros(23)}, "'own' does not fit SigmoidMask"),
        ({"own.mask": torch.full((24,), torch.nan)}, "'own.mask' holds NaN"),
        ({"own.stray": torch.zeros(1)}, "stray"),
    ):
        with pytest.raises(TensorError, match=message):
            PyveneIntervention.build(spec_of(stock, True), table(**good | changed, **source), sizes)
    with pytest.raises(TensorError, match=r"no parameters stored as own\.<parameter>"):
        PyveneIntervention.build(spec_of(stock, True), table(**source), sizes)


def test_components_of_pca(table: Callable[..., Any], sizes: Sizes) -> None:
    stock = next(c for c in CLASSES if c.name.startswith("PCA"))
    tensors = {f"own.{n}": t for n, t in PCA.items()} | {"src.block_output[1]": SOURCE}
    for name, wrong in (("pca_mean", torch.zeros(23)), ("pca_components", torch.zeros(5, 25))):
        with pytest.raises(TensorError, match="need rows of the site's width 24"):
            PyveneIntervention.build(spec_of(stock, True), table(**tensors | {f"own.{name}": wrong}), sizes)


def test_source_and_state_may_share_a_key(table: Callable[..., Any], sizes: Sizes) -> None:
    stock = next(c for c in CLASSES if c.name == "SigmoidMaskIntervention")
    tensors = {"k.mask": torch.zeros(24), "k.temperature": torch.tensor(0.01), "k.block_output[1]": SOURCE}
    spec = spec_of(stock, False, source={"key": "k"}, state={"key": "k"})
    ((_, _, edit),) = PyveneIntervention.build(spec, table(**tensors), sizes)
    assert torch.equal(edit.source, SOURCE)


def test_only_allowed_classes_are_made() -> None:
    options = dict.fromkeys(("width", "low_rank_dimension", "latent_dim", "subspaces", "subspace_partition"))
    for name in ("NoiseIntervention", "IntervenableModel", "os.system"):
        with pytest.raises(ValueError, match="not one of pyvene's intervention classes"):
            make_inner(options | {"class": name}, {})


# --- the two classes that need subvene's runner


def intervened(model: Any, **fields: Any) -> IntervenedModel:
    spec = InterventionSpec(
        subvene=1, model={"name": "tiny"}, interventions=[{"kind": "pyvene", "name": "it", **fields}]
    )
    return IntervenedModel.from_spec(spec, model=model)


IDS = torch.tensor([[1, 2, 3, 4], [0, 5, 6, 7]])
ATTENTION = (IDS != 0).long()


@pytest.mark.parametrize("subspaces", [None, (3, 1)])
def test_collect_collects_and_does_not_edit(llama: Callable[..., Any], subspaces: Any) -> None:
    model = llama()
    m = intervened(
        model,
        **{"class": "CollectIntervention"},
        site="block_output",
        layer=1,
        positions="prompt",
        subspaces=subspaces,
    )
    seen: list[torch.Tensor] = []
    handle = model.model.layers[1].register_forward_hook(lambda _m, _a, output: seen.append(output))
    with torch.no_grad():
        logits = m(IDS, ATTENTION, prompt_lengths=[2, 2]).logits
        handle.remove()
        ((first, second),) = m.intervenable.collected.values()
        receipt = m.receipt
        with m.disabled():
            assert torch.equal(logits, m(IDS, ATTENTION).logits)
    keep = slice(None) if subspaces is None else list(subspaces)
    assert torch.equal(first, seen[0][0, :2, keep])
    assert torch.equal(second, seen[0][1, 1:3, keep])
    assert receipt["it"].changed == 0


def test_skip_skips_a_block(llama: Callable[..., Any]) -> None:
    model = llama()
    m = intervened(model, **{"class": "SkipIntervention"}, site="block_output", layer=1)
    with torch.no_grad():
        plain, skipped = model(IDS[:1]).logits, m(IDS[:1]).logits
        kept = [model.model.layers[0], model.model.layers[2]]
        model.model.layers = torch.nn.ModuleList(kept)
        without = model(IDS[:1], use_cache=False).logits
    assert not torch.allclose(plain, skipped)
    assert torch.equal(skipped, without)


def test_skip_alone_says_what_it_lacks(table: Callable[..., Any], sizes: Sizes) -> None:
    edit = build(CLASSES[5], CLASSES[5].make(), table, sizes)
    with pytest.raises(ValueError, match="SkipIntervention needs the module's input"):
        edit(rows().view(2, 5, WIDTH))


def test_component_by_module_path(llama: Callable[..., Any]) -> None:
    model = llama()
    m = intervened(model, **{"class": "ZeroIntervention"}, component="model.layers[1].mlp.act_fn.output")
    with torch.no_grad():
        edited = m(IDS[:1]).logits
        model.model.layers[1].mlp.down_proj.weight.zero_()
        assert torch.equal(edited, model(IDS[:1]).logits)
