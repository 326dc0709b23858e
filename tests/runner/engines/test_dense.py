"""The data plane on a model: many requests in one batch, each as the runner under transformers edits it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from kind_cases import cases_in
from tiny_artifacts import EVERY_KIND, TENSORS, WIDTH, llama, spec_of

from subvene.interventions.columns import added
from subvene.runner.artifacts import artifact
from subvene.runner.engines.admission import MOST_INTERVALS, admit, parse
from subvene.runner.engines.catalogue import Catalogue
from subvene.runner.engines.dense import DenseSite, StrengthTables, cells
from subvene.runner.engines.served import columns_of, serve
from subvene.runner.intervened.model import IntervenedModel
from subvene.runner.models.anatomy import Anatomy, component_module

CASES = [c for c in cases_in(Path(__file__).parents[2] / "interventions") if c.make().columns() is not None]
PROMPT, LENGTH = 4, 9
IDS = torch.randint(1, 64, (1, LENGTH), generator=torch.Generator().manual_seed(3))
RULES: list[Any] = [
    "all",
    "prompt",
    "response",
    "last_prompt_token",
    {"first": 2},
    {"last": 3},
    {"indices": [0, -1]},
    {"first": 2, "of": "response"},
    {"indices": [1, 3], "of": "response"},
]


def test_every_kind_but_pyvenes_own_states_its_columns() -> None:
    assert {case.name for case in CASES} >= {
        "steering", "head_direction", "low_rank_edit", "ablation", "capping",
    }  # fmt: skip
    assert sum(case.name == "head_direction" for case in CASES) == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_columns_are_what_the_class_adds(case: Any) -> None:
    width = 32 if "o_proj" in case.component else WIDTH
    h = torch.randn(7, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(added(columns_of(case.make()), h), case.delta(h).expand_as(h))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_dense_site_is_the_class_and_leaves_the_rest_bit_for_bit(case: Any, dtype: torch.dtype) -> None:
    edit, columns = case.make(strength=1.5), columns_of(case.make())
    width = columns[0].b.shape[1]
    count = sum(len(one.b) for one in columns)
    site = DenseSite(width, count + 2, depth=2, groups=3, reads=case.make().columns()[0].reads)
    site.fill(list(range(1, count + 1)), 2, columns)
    h = torch.randn(6, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    h[5] = torch.finfo(dtype).max
    scale = torch.zeros(6, cells(2, 3))
    scale[:3, 1 + 2] = 1.5
    found = site(h, scale)
    torch.testing.assert_close(found[:3], edit(h[:3].unsqueeze(0))[0], rtol=2e-6, atol=2e-6)
    assert torch.equal(found[3:], h[3:])
    site.clear(list(range(1, count + 1)))
    assert torch.equal(site(h[:5], scale[:5]), h[:5])


def artifacts(folder: Path) -> dict[str, IntervenedModel]:
    """One of every kind, one of many kinds at once, one for each rule."""

    def own(declared: dict[str, Any], **more: Any) -> dict[str, Any]:
        fields = {
            k: {"key": v["key"]} if isinstance(v, dict) and "file" in v else v for k, v in declared.items()
        }
        if isinstance(fields.get("coefficient"), list):
            fields["coefficient"] = 2.0
        return {**fields, **more}

    rows = [own(i) for i in EVERY_KIND if i["kind"] != "pyvene" and i.get("factors", i.get("seed")) != 7]
    specs = {f"kind-{i}": [row] for i, row in enumerate(rows)}
    specs["many"] = [{**row, "name": f"e{i}"} for i, row in enumerate(rows)]
    steering = next(row for row in rows if row["kind"] == "steering")
    specs |= {f"rule-{i}": [{**steering, "positions": rule}] for i, rule in enumerate(RULES)}
    made = {}
    for name, interventions in specs.items():
        m = IntervenedModel.from_spec(spec_of(*interventions), model=llama(), tensors=TENSORS)
        m.save_pretrained(folder / name)
        made[name] = m
    return made


@torch.no_grad()
def test_a_mixed_batch_is_row_by_row_the_intervened_model(tmp_path: Path) -> None:
    made = artifacts(tmp_path)
    model = llama()
    anatomy = Anatomy.of(model)
    read = {name: artifact.read(tmp_path / name) for name in made}
    catalogue = Catalogue([serve(name, one, anatomy.sizes) for name, one in read.items()])
    requests: list[Any] = [None, *made, "kind-1=0", "kind-0=-1.5", ["rule-0", "rule-2=0.5"]]
    tables = StrengthTables(len(requests), MOST_INTERVALS, len(catalogue.groups), catalogue.depth)
    for slot, asked in enumerate(requests):
        if asked is not None:
            plan, _ = admit(parse(asked), catalogue, PROMPT)
            tables.put(slot, [(e.group, e.stage, e.strength, e.positions) for e in plan.edits])
    slots = torch.arange(len(requests)).repeat_interleave(LENGTH)
    scale = tables.scale(slots, torch.arange(LENGTH).repeat(len(requests)))
    for handle_site, room in catalogue.rooms.items():
        site, _, layer = handle_site[:-1].partition("[")
        dense = DenseSite(
            anatomy.sizes.site_width(site),
            len(room.columns),
            room.depth,
            len(catalogue.groups),
            reads=room.reads,
        )
        for held in catalogue.held.values():
            place = iter(held.columns.get(handle_site, ()))
            for group, intervention in zip(held.groups, held.artifact.interventions, strict=True):
                for edit in intervention.edits:
                    if edit.site == handle_site:
                        dense.fill([next(place) for _ in range(edit.width)], group, edit.columns)
        hook(model, anatomy.component(site, int(layer)), dense, scale)
    found = model(IDS.expand(len(requests), -1)).logits
    plain = llama()(IDS).logits[0]
    torch.testing.assert_close(found[0], plain, rtol=1e-5, atol=1e-5)
    for row, asked in enumerate(requests):
        if isinstance(asked, str):
            name, _, strength = asked.partition("=")
            s = float(strength) if strength else None
            expected = made[name](IDS, prompt_lengths=[PROMPT], strengths=s, must_act=False).logits[0]
            torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-4)
            assert s == 0 or not torch.allclose(expected, plain, atol=1e-3), asked


def hook(model: Any, component: str, dense: DenseSite, scale: torch.Tensor) -> None:
    """Edit a component as an engine does that has the tokens of all requests in one row."""
    module, is_input = component_module(model, component)

    def edit(h: torch.Tensor) -> torch.Tensor:
        return dense(h.flatten(0, 1), scale).view_as(h)

    if is_input:
        module.register_forward_pre_hook(lambda _m, args: (edit(args[0]), *args[1:]))
    else:
        module.register_forward_hook(
            lambda _m, _a, out: (edit(out[0]), *out[1:]) if isinstance(out, tuple) else edit(out)
        )
