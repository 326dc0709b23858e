from __future__ import annotations

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from subvene.specs import (
    AblationSpec,
    CappingSpec,
    ContrastSpec,
    ContrastSystems,
    ContrastTexts,
    ExperimentSpec,
    FirstTokens,
    HeadDirectionSpec,
    InterventionSpec,
    LastTokens,
    LowRankEditSpec,
    MeanDifferenceSpec,
    ModelSpec,
    PairsFile,
    PyveneSpec,
    SamplesSpec,
    SteeringSpec,
    SystemPair,
    TensorRef,
    TextPair,
    TokenIndices,
    dump_spec,
    parse_spec,
)
from subvene.specs.sites import SITES

# Words that one YAML version or the other takes for something else than text.
_words = st.sampled_from(
    [
        "on",
        "yes",
        "1e-4",
        "0o17",
        "1_0",
        "12:30",
        "null",
        "~",
        "<<",
        "*a",
        "&a",
        "- x",
        "a: b",
        "#",
        "why?",
        "?x",
        "a ?, b",
        "x\x85y",
        "\u2028",
        "=",
        "017",
        "1e5",
        ":y",
    ]
)
_text = st.text(min_size=1, max_size=12) | _words
_finite = st.floats(allow_nan=False, allow_infinity=False)
_index, _count, _seed = st.integers(0, 200), st.integers(1, 50), st.integers(0, 2**63 - 1)
_site = st.sampled_from(SITES)
_key = st.text(alphabet="ab9_-.[]", min_size=1, max_size=6)
_ref = st.builds(TensorRef, file=st.sampled_from(["t.safetensors", "a b/ü.safetensors"]), key=_key)
_indices = st.lists(_index, min_size=1, max_size=4, unique=True).map(tuple)
_all_or = st.just("all") | _indices
_strength = _finite | st.lists(_finite, min_size=1, max_size=3).map(tuple)
_part = st.sampled_from(["prompt", "response"])
_positions = st.one_of(
    st.sampled_from(["all", "prompt", "response", "last_prompt_token"]),
    st.builds(FirstTokens, first=_count, of=_part),
    st.builds(LastTokens, last=_count),
    st.builds(
        TokenIndices, indices=st.lists(st.integers(-9, 9), min_size=1, unique=True).map(tuple), of=_part
    ),
)
_common = {"positions": _positions}
_interventions = st.one_of(
    st.builds(
        HeadDirectionSpec,
        directions=_ref,
        strength=_strength,
        heads=st.none() | st.dictionaries(_index, _indices, min_size=1, max_size=3),
        **_common,
    ),
    st.builds(
        SteeringSpec,
        site=_site,
        layer=_index,
        vector=_ref,
        coefficient=_strength,
        normalize=st.sampled_from(["none", "unit"]),
        **_common,
    ),
    st.builds(
        LowRankEditSpec,
        layer=_index,
        write_heads=_all_or,
        read_heads=_all_or,
        rank=_count,
        factors=st.none() | _ref,
        seed=_seed,
        **_common,
    ),
    st.builds(
        CappingSpec, layer=_index, direction=_ref, max=st.floats(0, 1e9), min=st.none() | st.floats(-9, 0)
    ),
    st.builds(AblationSpec, site=_site, layer=_index, direction=_ref, strength=_strength, **_common),
    st.builds(
        PyveneSpec,
        class_name=st.just("RotatedSpaceIntervention"),
        component=st.just("model.layers[3].mlp.act_fn.output"),
        source=_ref,
        **_common,
    ),
    st.builds(
        PyveneSpec,
        class_name=st.just("LowRankRotatedSpaceIntervention"),
        component=st.just("model.layers[3].mlp.act_fn.output"),
        source=_ref,
        state=st.none() | _ref,
        low_rank_dimension=_count,
        subspaces=st.none() | _indices,
        subspace_partition=st.none() | st.just(((0, 1), (2,))),
        **_common,
    ),
    st.builds(PyveneSpec, class_name=st.just("ZeroIntervention"), site=_site, layer=_index),
)
_model = st.builds(
    ModelSpec,
    name=_text.filter(lambda name: name.isprintable() and name.strip() and not name.startswith("package:")),
    revision=st.none() | _text,
    dtype=st.sampled_from(["auto", "float32"]),
    device_map=st.none()
    | st.just("auto")
    | st.dictionaries(_text, _text | st.integers(0, 7), min_size=1, max_size=2),
)
_texts = st.builds(
    ContrastTexts,
    texts=st.lists(
        st.builds(TextPair, prompt=st.none() | _text, positive=_text, negative=_text), min_size=1, max_size=3
    ).map(tuple),
)
_systems = st.builds(
    ContrastSystems,
    systems=st.tuples(st.builds(SystemPair, positive=_text, negative=_text)),
    questions=st.lists(_text, min_size=1, max_size=3).map(tuple),
)
_file = st.builds(PairsFile, file=st.sampled_from(["p.yaml", "p.json"]))
_coefficients = st.lists(_finite, min_size=1, max_size=4, unique=True).map(tuple)
_evaluations = st.builds(SamplesSpec, prompts=st.tuples(_text), coefficients=_coefficients) | st.builds(
    ContrastSpec, pairs=_file | _texts, coefficients=_coefficients
)
_body = {
    "subvene": st.just(1),
    "model": _model,
    "interventions": st.lists(_interventions, min_size=1, max_size=3).map(tuple),
}
_specs = st.builds(InterventionSpec, **_body) | st.builds(
    ExperimentSpec,
    **_body,
    fit=st.none()
    | st.builds(
        MeanDifferenceSpec, key=st.just("k"), site=_site, layers=_all_or, pairs=_file | _texts | _systems
    ),
    evaluate=st.lists(_evaluations, max_size=2).map(tuple),
    seed=_seed,
    output=st.none() | _text,
)


@settings(max_examples=150, deadline=None)
@given(_specs)
def test_every_spec_reads_back_equal(spec: InterventionSpec) -> None:
    as_yaml, as_json = dump_spec(spec), dump_spec(spec, "json")
    texts = [(as_yaml, "yaml"), (as_json, "json")]
    if as_json.replace("\n", "").isprintable():  # JSON is YAML but for characters that YAML wants escaped
        texts.append((as_json, "yaml"))
    for text, format in texts:
        found = parse_spec(text, format=format)  # type: ignore[arg-type]
        assert found == spec
        assert type(found) is type(spec)
    assert dump_spec(parse_spec(as_yaml)) == as_yaml


def test_a_file_reads_as_if_written_by_hand() -> None:
    ref = TensorRef(key="syco", file="t.safetensors")
    spec = ExperimentSpec(
        subvene=1,
        model=ModelSpec(name="a/b", revision="main"),
        interventions=(
            SteeringSpec(positions="response", coefficient=2, vector=ref, layer=19, name="on"),
            HeadDirectionSpec(
                directions=ref, strength=15, heads={12: (3, 7)}, positions=FirstTokens(first=2)
            ),
            PyveneSpec(class_name="ZeroIntervention", site="mlp_output", layer=1),
        ),
        seed=3,
    )
    assert (
        dump_spec(spec)
        == """\
subvene: 1
model:
  name: a/b
  revision: main
interventions:
- kind: steering
  name: 'on'
  layer: 19
  vector: {file: t.safetensors, key: syco}
  coefficient: 2.0
  positions: response
- kind: head_direction
  directions: {file: t.safetensors, key: syco}
  strength: 15.0
  heads:
    12: [3, 7]
  positions:
    first: 2
- kind: pyvene
  class: ZeroIntervention
  site: mlp_output
  layer: 1
seed: 3
"""
    )
    assert list(json.loads(dump_spec(spec, "json"))) == ["subvene", "model", "interventions", "seed"]


@pytest.mark.parametrize(
    "text", ["a\x85b", "\u2028", "\u2029x", "\ufeff", "a\r\nb", "\ta ", "a\n\n b\n", "\x7f", "😀", " a"]
)
def test_odd_characters_read_back(text: str) -> None:
    edit = LowRankEditSpec(layer=1, write_heads="all")
    samples = SamplesSpec(prompts=(text,), coefficients=(1e-5, -0.0))
    spec = ExperimentSpec(subvene=1, model=ModelSpec(name="a"), interventions=(edit,), evaluate=(samples,))
    assert parse_spec(dump_spec(spec)) == spec
    assert parse_spec(dump_spec(spec, "json"), format="json") == spec


@pytest.mark.parametrize(
    "text",
    [
        "1e-4",
        "1E5",
        "0o17",
        "0x1F",
        "+1",
        ".5",
        "-1.",
        ".inf",
        "true",
        "on",
        "No",
        "~",
        "1_0",
        "12:30",
        "2001-01-01",
    ],
)
def test_text_that_looks_like_something_else_stays_text(text: str) -> None:
    model = ModelSpec(name="a", revision=text)
    edit = LowRankEditSpec(layer=1, write_heads="all")
    written = dump_spec(InterventionSpec(subvene=1, model=model, interventions=(edit,)))
    assert parse_spec(written).model.revision == text
    assert yaml.safe_load(written)["model"]["revision"] == text


def test_text_that_only_begins_like_a_number_is_not_quoted() -> None:
    model = ModelSpec(name="a", revision="7b-v1")
    edit = LowRankEditSpec(layer=1, write_heads="all")
    assert "revision: 7b-v1\n" in dump_spec(InterventionSpec(subvene=1, model=model, interventions=(edit,)))


def test_an_experiment_stays_one() -> None:
    edit = LowRankEditSpec(layer=1, write_heads="all")
    bare = ExperimentSpec(subvene=1, model=ModelSpec(name="a"), interventions=(edit,))
    assert type(parse_spec(dump_spec(bare))) is ExperimentSpec


def test_one_value_used_twice_is_written_twice() -> None:
    ref = TensorRef(key="k", file="t.safetensors")
    edit = AblationSpec(layer=1, direction=ref)
    text = dump_spec(InterventionSpec(subvene=1, model=ModelSpec(name="a"), interventions=(edit, edit)))
    assert "&" not in text
    assert "*" not in text
    assert len(yaml.safe_load(text)["interventions"]) == 2


def test_an_unknown_format_is_a_programming_error() -> None:
    edit = LowRankEditSpec(layer=1, write_heads="all")
    spec = InterventionSpec(subvene=1, model=ModelSpec(name="a"), interventions=(edit,))
    with pytest.raises(ValueError, match="yaml or json"):
        dump_spec(spec, "toml")  # type: ignore[arg-type]
