from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from pydantic import ValidationError

import subvene.specs
from subvene.specs import (
    AblationSpec,
    CappingSpec,
    HeadDirectionSpec,
    LowRankEditSpec,
    Problem,
    PyveneSpec,
    Site,
    SpecError,
    SteeringSpec,
    TensorRef,
    json_schema,
    parse_spec,
)
from subvene.specs._registry import by_name
from subvene.specs.interventions import REGISTRY, BaseIntervention

Problems = Callable[..., tuple[Problem, ...]]
AT = "site: mlp_output, layer: 1"
REF = TensorRef(file="t.safetensors", key="k")
T = "{file: t.safetensors, key: k}"


def read(line: str) -> object:
    return parse_spec(f"subvene: 1\nmodel: {{name: a}}\ninterventions:\n- {line}\n").interventions[0]


@pytest.mark.parametrize(
    ("line", "spec"),
    [
        (
            f"{{kind: head_direction, directions: {T}, strength: 15, heads: {{12: [3, 7], 0: [0]}}}}",
            HeadDirectionSpec(directions=REF, strength=15.0, heads={12: (3, 7), 0: (0,)}),
        ),
        (
            f"{{kind: head_direction, directions: {T}, strength: -1, adaptive: one_minus_p}}",
            HeadDirectionSpec(directions=REF, strength=-1.0, adaptive="one_minus_p"),
        ),
        (
            f"{{kind: steering, layer: 0, vector: {T}, coefficient: [1, -2.5], positions: prompt, name: a}}",
            SteeringSpec(layer=0, vector=REF, coefficient=(1.0, -2.5), positions="prompt", name="a"),
        ),
        (
            "{kind: low_rank_edit, layer: 12, write_heads: [3, 7]}",
            LowRankEditSpec(layer=12, write_heads=(3, 7), read_heads="all", rank=1, strength=1.0),
        ),
        (
            f"{{kind: capping, site: mlp_output, layer: 1, direction: {T}, max: 2, min: -2}}",
            CappingSpec(site="mlp_output", layer=1, direction=REF, max=2.0, min=-2.0),
        ),
        (f"{{kind: ablation, layer: 1, direction: {T}}}", AblationSpec(layer=1, direction=REF, strength=1.0)),
        (
            "{kind: pyvene, class: ZeroIntervention, component: 'model.layers[3].mlp.act_fn.output'}",
            PyveneSpec(class_name="ZeroIntervention", component="model.layers[3].mlp.act_fn.output"),
        ),
        (
            f"{{kind: pyvene, class: AutoencoderIntervention, {AT}, source: {T}, latent_dim: 8}}",
            PyveneSpec(
                class_name="AutoencoderIntervention", site="mlp_output", layer=1, source=REF, latent_dim=8
            ),
        ),
    ],
)
def test_every_kind_reads(line: str, spec: BaseIntervention) -> None:
    assert read(line) == spec


def test_defaults() -> None:
    spec = SteeringSpec(layer=1, vector=REF, coefficient=2)
    assert (spec.kind, spec.site, spec.positions, spec.name, spec.normalize) == (
        "steering",
        "block_output",
        "all",
        None,
        "none",
    )
    assert spec.strength == spec.coefficient == 2.0
    assert HeadDirectionSpec(directions=REF, strength=1).site == "attention_heads"
    assert LowRankEditSpec(layer=1, write_heads="all").site == "attention_heads"


def test_specs_are_frozen() -> None:
    spec = AblationSpec(layer=1, direction=REF)
    with pytest.raises(ValidationError, match="frozen"):
        spec.layer = 2  # type: ignore[misc]


H, S, L, C, A = (
    f"kind: head_direction, directions: {T}",
    f"kind: steering, vector: {T}",
    "kind: low_rank_edit, layer: 1",
    f"kind: capping, layer: 1, direction: {T}",
    f"kind: capping, direction: {T}, max: 1.0",
)
STRENGTH = "a finite number, or a non-empty list of finite numbers (one per row of the batch)"
HEADS = "a non-empty list of different integers >= 0"
INDEX, COUNT = "an integer >= 0", "an integer >= 1"


@pytest.mark.parametrize(
    ("line", "path", "expected"),
    [
        (f"{H}, strength: 1, adaptive: true", "adaptive", "one of: none, one_minus_p"),
        (f"{H}, strength: true", "strength", STRENGTH),
        (f"{H}, strength: '1'", "strength", STRENGTH),
        (f"{H}, strength: .nan", "strength", STRENGTH),
        (f"{H}, strength: 1e999", "strength", STRENGTH),
        (f"{H}, strength: {'9' * 400}", "strength", STRENGTH),
        (f"{H}, strength: []", "strength", STRENGTH),
        (f"{H}, strength: {{a: 1}}", "strength", STRENGTH),
        (f"{H}, strength: [1, -.inf]", "strength[1]", "a finite number"),
        (f"{H}, strength: 1, heads: {{}}", "heads", "a non-empty mapping from layers to lists of heads"),
        (f"{H}, strength: 1, heads: [1]", "heads", "a non-empty mapping from layers to lists of heads"),
        (f"{H}, strength: 1, heads: {{1: []}}", "heads.1", HEADS),
        (f"{H}, strength: 1, heads: {{1: [2, 2]}}", "heads.1", HEADS),
        (f"{H}, strength: 1, heads: {{1: [2, -1]}}", "heads.1[1]", INDEX),
        (f"{H}, strength: 1, heads: {{-1: [2]}}", "heads.-1", "a layer, an integer >= 0"),
        (f"{H}, strength: 1, heads: {{x: [2]}}", "heads.x", "a layer, an integer >= 0"),
        (
            f"{H}, strength: 1, name: 1a",
            "name",
            "a name of letters, digits and underscores that does not begin with a digit",
        ),
        (f"{S}, coefficient: 1, layer: 1.0", "layer", INDEX),
        (f"{S}, coefficient: 1, layer: true", "layer", INDEX),
        (f"{S}, coefficient: 1, layer: {'9' * 30}", "layer", INDEX),
        (f"{S}, coefficient: 1, layer: null", "layer", INDEX),
        (f"{S}, coefficient: 1, layer: 1, normalize: yes", "normalize", "one of: none, unit"),
        (
            f"{S}, coefficient: 1, layer: 1, site: 3",
            "site",
            "one of: block_output, attention_heads, attention_output, mlp_output, block_input, mlp_input, "
            "mlp_neurons, query, key, value",
        ),
        (f"{L}, write_heads: some", "write_heads", f"`all`, or {HEADS}"),
        (f"{L}, write_heads: 3", "write_heads", f"`all`, or {HEADS}"),
        (f"{L}, write_heads: [1, 1]", "write_heads", HEADS),
        (f"{L}, write_heads: all, read_heads: [x]", "read_heads[0]", INDEX),
        (f"{L}, write_heads: all, rank: 0", "rank", COUNT),
        (f"{L}, write_heads: all, seed: -1", "seed", "an integer >= 0 and < 2**63"),
        (C, "max", "`max`, `min` or both"),
        (f"{C}, max: 1, min: 2", "min", "a number <= max, which is 1.0"),
        (f"{C}, max: .inf", "max", "a finite number"),
        (A, "layer", INDEX),
        (
            "kind: ablation, layer: 1, direction: t.safetensors",
            "direction",
            "a mapping with `key` and, unless this file fits the tensors itself, `file`",
        ),
        (
            "kind: ablation, layer: 1, direction: {key: k, file: t.bin}",
            "direction.file",
            "a path that ends in .safetensors",
        ),
        (
            "kind: ablation, layer: 1, direction: {key: k, file: .safetensors}",
            "direction.file",
            "a path that ends in .safetensors",
        ),
        (
            "kind: ablation, layer: 1, direction: {key: 'k k', file: t.safetensors}",
            "direction.key",
            "a key of letters, digits and any of _ - . [ ]",
        ),
        (
            'kind: ablation, layer: 1, direction: {key: "k\\n", file: t.safetensors}',
            "direction.key",
            "a key of letters, digits and any of _ - . [ ]",
        ),
    ],
)
def test_one_mistake_is_one_problem(spoilt: Problems, line: str, path: str, expected: str) -> None:
    (problem,) = spoilt(f"- {{{line}}}")
    assert (problem.path, problem.expected) == (f"interventions[0].{path}", expected)
    assert problem.line == 4


P = "kind: pyvene, class"


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        (f"{P}: ZeroIntervention", ["site"]),
        (f"{P}: ZeroIntervention, site: mlp_output", ["layer"]),
        (f"{P}: ZeroIntervention, layer: 1", ["site"]),
        (f"{P}: ZeroIntervention, {AT}, component: a.output", ["component"]),
        (f"{P}: VanillaIntervention, {AT}", ["source"]),
        (f"{P}: LowRankRotatedSpaceIntervention, {AT}", ["source", "low_rank_dimension"]),
        (f"{P}: JumpReLUAutoencoderIntervention, {AT}, source: {T}", ["low_rank_dimension"]),
        (f"{P}: AutoencoderIntervention, {AT}, source: {T}", ["latent_dim"]),
        (f"{P}: PCARotatedSpaceIntervention, {AT}, source: {T}", ["state"]),
        (f"{P}: ZeroIntervention, component: a.b", ["component"]),
        (f"{P}: ZeroIntervention, component: 'a..output'", ["component"]),
        (f"{P}: ZeroIntervention, component: 'a[x].output'", ["component"]),
        (f"{P}: ZeroIntervention, component: '__import__(1).output'", ["component"]),
        (f"{P}: os.system, {AT}", ["class"]),
        (f"{P}: ZeroIntervention, {AT}, subspaces: [0, 0]", ["subspaces"]),
        (f"{P}: ZeroIntervention, {AT}, subspace_partition: [[0, 1], [1]]", ["subspace_partition"]),
        (f"kind: pyvene, class_nam: ZeroIntervention, {AT}", ["class_nam"]),
        (f"kind: pyvene, {AT}", ["class"]),
    ],
)
def test_what_a_pyvene_class_needs(spoilt: Problems, line: str, paths: list[str]) -> None:
    assert sorted(p.path for p in spoilt(f"- {{{line}}}")) == sorted(
        f"interventions[0].{path}" for path in paths
    )


def test_noise_is_refused_with_the_reason(spoilt: Problems) -> None:
    (problem,) = spoilt("- {kind: pyvene, class: NoiseIntervention, site: mlp_output, layer: 1}")
    assert (problem.line, problem.column, problem.path) == (4, 25, "interventions[0].class")
    assert "4 tokens" in problem.expected


def test_names_are_unique_within_a_file(spoilt: Problems) -> None:
    line = f"- {{kind: ablation, layer: 1, direction: {T}, name: x}}"
    second, third = spoilt(line, line.replace("x}", "y}"), line, line)
    column = line.index("x}") + 1
    assert (second.line, second.column, second.path) == (6, column, "interventions[2].name")
    assert (third.line, third.path) == (7, "interventions[3].name")


class Other(BaseIntervention):
    kind: Literal["steering"] = "steering"
    site: Site = "mlp_output"
    strength: float = 1.0


def test_the_registry_refuses_one_kind_twice() -> None:
    with pytest.raises(TypeError, match="two classes are registered under the kind 'steering'"):
        by_name("kind", BaseIntervention, [SteeringSpec, Other])


def test_a_kind_that_lacks_what_every_kind_has_is_refused_when_it_is_defined() -> None:
    with pytest.raises(TypeError, match="Partial has no site and no strength"):

        class Partial(BaseIntervention):
            kind: Literal["partial"] = "partial"


def test_every_kind_is_registered_and_exported() -> None:
    # Other tests declare kinds from outside in the same process.
    own = [sub for sub in BaseIntervention.__subclasses__() if sub.__module__.startswith("subvene.")]
    assert set(REGISTRY.values()) == set(own)
    for kind, cls in REGISTRY.items():
        assert {"kind", "name", "positions"} <= set(cls.model_fields)
        assert cls.model_fields["kind"].default == kind
        assert cls.model_fields["kind"].description
        assert getattr(subvene.specs, cls.__name__) is cls
        assert cls.__name__ in subvene.specs.__all__


def test_a_kind_that_is_registered_later_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    late = "{kind: late, strength: 2}"
    with pytest.raises(SpecError, match="found 'late'"):
        read(late)

    class Late(Other):
        kind: Literal["late"] = "late"

    monkeypatch.setitem(REGISTRY, "late", Late)
    declared = read(late)
    assert declared == Late(strength=2.0)
    assert declared.model_dump(exclude_unset=True) == {"kind": "late", "strength": 2.0}
    assert "Late" in json_schema()["$defs"]
    with pytest.raises(SpecError, match=r"interventions\[0\].strength: expected .* found 'x'"):
        read("{kind: late, strength: x}")
