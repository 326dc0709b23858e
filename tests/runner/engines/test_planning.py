"""Planning for engines: positions as intervals, requests admitted or refused, keys of cached tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_artifacts import EVERY_KIND, STEERING, TENSORS, WIDTH, llama, ref, spec_of

from subvene.interventions import Sizes, Tokens
from subvene.interventions.positions import parse_positions
from subvene.runner.artifacts import artifact
from subvene.runner.engines.admission import admit, parse
from subvene.runner.engines.catalogue import Catalogue, Reserve
from subvene.runner.engines.errors import EngineError, RequestError
from subvene.runner.engines.intervals import FOREVER, count, intervals
from subvene.runner.engines.plan import Plan, block_keys
from subvene.runner.engines.served import ServedArtifact, serve
from subvene.runner.engines.stages import stages
from subvene.runner.intervened.model import IntervenedModel

CAP = {"kind": "capping", "layer": 1, "direction": ref("v"), "max": 0.1, "min": -0.1}
ABLATION = {"kind": "ablation", "layer": 1, "direction": ref("v")}
PLANE = {f"plane.block_output[1].{part}": torch.eye(WIDTH)[i] for i, part in enumerate(("first", "second"))}


def served(folder: Path, name: str, *interventions: dict[str, Any]) -> ServedArtifact:
    own = [
        {k: {"key": v["key"]} if isinstance(v, dict) and "file" in v else v for k, v in i.items()}
        for i in interventions
    ]
    m = IntervenedModel.from_spec(spec_of(*own), model=llama(), tensors=TENSORS | PLANE)
    read = artifact.read(m.save_pretrained(folder / name))
    sizes = read.sizes
    assert isinstance(sizes, Sizes)
    return serve(name, read, sizes)


counts = st.integers(1, 6)
parts = st.sampled_from(["prompt", "response"])
rules = st.one_of(
    st.sampled_from(["all", "prompt", "response", "last_prompt_token"]),
    st.builds(lambda n, of: {"first": n, "of": of}, counts, parts),
    st.builds(lambda n, of: {"last": n, "of": of}, counts, parts),
    st.builds(
        lambda i, of: {"indices": i, "of": of},
        st.lists(st.integers(-6, 6), min_size=1, max_size=4, unique=True),
        parts,
    ),
)


@given(rule=rules, prompt=st.integers(1, 8), response=st.integers(0, 8), known=st.booleans())
def test_intervals_are_the_masks_of_the_runner(rule: Any, prompt: int, response: int, known: bool) -> None:
    parsed, length = parse_positions(rule), prompt + response
    index = torch.arange(length).unsqueeze(0)
    tokens = Tokens(
        index,
        torch.ones_like(index, dtype=torch.bool),
        torch.tensor([prompt]),
        torch.tensor([length]) if known else None,
    )
    try:
        expected = tokens.mask(parsed)[0]
    except ValueError:
        with pytest.raises(RequestError, match="from the end of the response"):
            intervals(parsed, prompt, length if known else None)
        return
    found = intervals(parsed, prompt, length if known else None)
    assert [any(a <= i < b for a, b in found) for i in range(length)] == expected.tolist()
    assert count(found, 0, length) == int(expected.sum())


def test_an_edit_that_reads_comes_after_what_was_written(tmp_path: Path) -> None:
    both = served(
        tmp_path, "both", {**STEERING, "name": "s"}, {**CAP, "name": "c"}, {**STEERING, "name": "t"}
    )
    assert stages(both.interventions) == [0, 1, 1]


def test_what_is_no_column_is_refused_with_the_reason(tmp_path: Path) -> None:
    rows = [i for i in EVERY_KIND if i["kind"] == "pyvene"]
    with pytest.raises(EngineError) as refused:
        served(tmp_path, "no", *rows)
    assert "interventions[0] (pyvene)" in str(refused.value)
    assert "does not say what it adds as columns" in str(refused.value)
    assert "an engine knows the sites" in str(refused.value)


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ({"kind": "rotation", "layer": 1, "plane": ref("plane"), "angle": 90}, "columns"),
        ({**STEERING, "preserve_norm": True}, "columns"),
        ({"kind": "scaling", "layer": 1, "neurons": [0], "gain": 0.5}, "mlp_neurons"),
    ],
)
def test_what_turns_or_rescales_is_refused_by_its_kind(
    tmp_path: Path, declared: dict[str, Any], words: str
) -> None:
    with pytest.raises(EngineError, match=rf"interventions\[0\] \({declared['kind']}\): .*{words}"):
        served(tmp_path, "no", declared)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("artifacts")
    cheerful = served(folder, "cheerful", {**STEERING, "positions": "response"})
    two = served(folder, "two", {**CAP, "name": "cap"}, {**ABLATION, "name": "off", "positions": {"last": 1}})
    later = served(folder, "later", {**STEERING, "positions": {"last": 1, "of": "response"}})
    return Catalogue([cheerful, two, later], Reserve(stages=3))


@pytest.mark.parametrize(
    ("asked", "strength"),
    [
        ("cheerful", 3.0),
        ("cheerful=1.5", 1.5),
        ({"artifact": "cheerful", "strength": -2}, -2.0),
        ('[{"artifact": "cheerful", "strengths": {"steering_0": 4}}]', 4.0),
        ({"artifacts": ["cheerful=0.5"]}, 0.5),
    ],
)
def test_the_ways_to_ask(catalogue: Catalogue, asked: Any, strength: float) -> None:
    plan, wanted = admit(parse(asked), catalogue, prompt=5)
    assert [edit.strength for edit in plan.edits] == [strength]
    assert plan.edits[0].positions == ((4, FOREVER),)
    assert [one.artifact for one in wanted] == ["cheerful"]
    assert Plan.from_wire(plan.to_wire()) == plan


def test_a_strength_of_zero_is_nothing_to_do(catalogue: Catalogue) -> None:
    plan, wanted = admit(parse("cheerful=0"), catalogue, prompt=5)
    assert plan.edits == ()
    assert len(wanted) == 1
    assert block_keys(plan.to_wire(), 0, 16) == ()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("gloomy", "no artifact is called 'gloomy'; there are: cheerful, two, later"),
        ("cheerful=much", "expected NAME=NUMBER"),
        ("cheerful=nan", "finite"),
        ({"artifact": "cheerful", "strenght": 1}, "strenght"),
        ("two=2", "several interventions: give `strengths` by name: cap, off"),
        ({"artifact": "two", "strengths": {"cop": 1}}, "no intervention is called 'cop'"),
        ({"artifact": "cheerful", "positions": "answer"}, "positions"),
        ("later", "from the end of the response"),
        ("later=0", "from the end of the response"),
        (["two", "two"], "stages: 4"),
        ({"artifacts": ["cheerful"], "prompt_tokens": 9}, "at most 5, all tokens given"),
        ("[1", "expected JSON"),
        (7, "found 7"),
    ],
)
def test_what_cannot_be_done_is_refused_at_admission(catalogue: Catalogue, asked: Any, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        admit(parse(asked), catalogue, prompt=5)
    assert words in str(refused.value)


def test_scoring_knows_where_the_response_ends(catalogue: Catalogue) -> None:
    asked = parse({"artifacts": ["later"], "prompt_tokens": 3})
    plan, _ = admit(asked, catalogue, prompt=8, scores=True)
    assert (plan.prompt, plan.edits[0].positions) == (3, ((7, 8),))


def test_keys_name_what_was_done_to_a_block_and_nothing_more(catalogue: Catalogue) -> None:
    def keys(asked: Any, block: int, prompt: int = 40) -> Any:
        return block_keys(admit(parse(asked), catalogue, prompt)[0].to_wire(), 16 * block, 16 * block + 16)

    # The prompt before the cursor (39) is shared by every strength and with plain requests.
    assert keys("cheerful=1", 0) == keys("cheerful=2", 1) == block_keys(None, 0, 16) == ()
    assert keys("cheerful=1", 2) != keys("cheerful=2", 2) != ()
    assert keys("cheerful=1", 2) != keys("cheerful=1", 2, prompt=41)
    everywhere = {"artifact": "cheerful", "strength": 1, "positions": "all"}
    assert keys(everywhere, 0) != ()
    # A later block that is edited whole is the same block under any rule that edits it whole.
    assert keys(everywhere, 3) == keys("cheerful=1", 3)
    assert keys(["cheerful=1", "two"], 2) != keys(["two", "cheerful=1"], 2)


def test_artifacts_come_and_go_while_there_is_room(tmp_path: Path) -> None:
    first = served(tmp_path, "first", STEERING)
    held = Catalogue([first], Reserve(columns=1, interventions=1))
    second, third = served(tmp_path, "second", CAP), served(tmp_path, "third", ABLATION)
    placed = held.add(second)
    with pytest.raises(EngineError, match="0 free columns, and it needs 1"):
        held.add(third)
    with pytest.raises(EngineError, match="held already"):
        held.add(second)
    held.remove("first")
    assert held.add(third).columns == {"block_output[1]": (0,)}
    assert placed.columns == {"block_output[1]": (1,)}
    with pytest.raises(EngineError, match="not built to edit block_output\\[0\\]"):
        held.add(served(tmp_path, "fourth", {**ABLATION, "layer": 0, "direction": ref("refusal")}))


def test_room_is_stated_in_whole_numbers_of_known_things() -> None:
    assert Reserve.of({"columns": 2, "sites": ["block_output[1]"]}) == Reserve(("block_output[1]",), 2)
    with pytest.raises(EngineError, match="found stage"):
        Reserve.of({"stage": 2})
    with pytest.raises(EngineError, match="columns: expected a whole number"):
        Reserve.of({"columns": -1})
