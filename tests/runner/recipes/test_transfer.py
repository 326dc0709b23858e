"""The recipe `transfer`: one mechanism in the coordinates of two models, and the map computed row by row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import tokenizers
import torch
import transformers
from known_mechanism import HE, SHE, VERBS, direction, known_model, known_tokenizer, write_known_model

from subvene.runner import fit, run_experiment
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.shared_texts import Reader, least_squares, moments
from subvene.specs import SpecError, SubveneError, load_spec

NAMES = [
    f"because {name} {verb} because" for both in zip(HE, SHE, strict=True) for name in both for verb in VERBS
]
PAIRS = [{"positive": he, "negative": she} for he, she in zip(HE[:4], SHE[:4], strict=True)]
SPEC = """\
subvene: 1
model: {name: %(target)s}
fit:
- {recipe: mean_difference, key: he, pairs: {file: pairs.jsonl}, layers: [0, 1]}
- {recipe: transfer, key: carried, like: he, source: {name: %(source)s}, texts: {file: texts.jsonl}%(more)s}
interventions:
- {kind: steering, name: he, layer: 0, vector: {key: carried}, coefficient: 4.0}
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "source": write_known_model(folder / "source", 40, 1),
        "turned": write_known_model(folder / "turned", 32, 2),
        "target": write_known_model(folder / "target"),
    }


@pytest.fixture
def write(tmp_path: Path, models: dict[str, Path]) -> Callable[..., Path]:
    def written(source: str = "source", more: str = "", rest: str = "") -> Path:
        (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
        (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, NAMES)))
        spec = SPEC % {"target": models["target"], "source": models[source], "more": more} + rest
        (tmp_path / "transfer.yaml").write_text(spec)
        return tmp_path / "transfer.yaml"

    return written


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


@pytest.mark.parametrize("source", ["source", "turned"])
def test_a_vector_of_another_width_or_seed_becomes_this_models_own(
    write: Callable[..., Path], source: str
) -> None:
    """The names that the vector is made of are two fifths of the texts'; the direction is found from them."""
    m = fit(write(source, ", ridge: 1.0e-6"))
    carried, native = (m.tensors[f"{key}.block_output[0]"] for key in ("carried", "he"))
    assert cosine(carried, native) > 0.999
    assert cosine(carried, direction()) > 0.8
    assert float(carried.norm()) == pytest.approx(float(native.norm()), rel=1e-5)
    told = m.provenance["fits"][1]
    assert told["explained_by_layer"]["0"] > 0.5  # half of what is held out are names that were never seen
    assert told["cosine_to_native_by_layer"]["0"] == pytest.approx(cosine(carried, native), abs=1e-3)
    # It does here what the native one does: every name is a he.
    (text,) = m.generate([f"{SHE[7]} ran because"], max_new_tokens=1)
    assert text.split() == ["he"]


def by_hand(models: dict[str, Path], layer: int, tokens: str, ridge: float, texts: list[str]) -> np.ndarray:
    """W of rows gathered text by text, by least squares with the penalty as further rows."""
    rows: list[list[Any]] = [[], []]
    for side, name in enumerate(("source", "target")):
        model = transformers.LlamaForCausalLM.from_pretrained(models[name]).eval()
        for text in texts:
            ids = known_tokenizer()(text, return_tensors="pt").input_ids
            with torch.no_grad():
                states = model(ids, output_hidden_states=True).hidden_states[layer + 1][0].double().numpy()
            rows[side] += {
                "aligned": [*states[1:]],
                "mean": [states[1:].mean(0)],
                "last": [states[-1]],
            }[tokens]
    x, y = (np.stack(side) for side in rows)
    x, y = x - x.mean(0), y - y.mean(0)
    penalty = np.sqrt(ridge * (x**2).sum() / x.shape[1]) * np.eye(x.shape[1])
    padded = np.concatenate([y, np.zeros((x.shape[1], y.shape[1]))])
    return np.linalg.lstsq(np.concatenate([x, penalty]), padded, rcond=None)[0].T


@pytest.mark.parametrize("tokens", ["aligned", "mean", "last"])
def test_the_map_is_that_of_rows_gathered_one_by_one(
    write: Callable[..., Path], models: dict[str, Path], tokens: str
) -> None:
    # At layer 0 the last token is the same in all texts: nothing is known of it.
    layers = (1,) if tokens == "last" else (0, 1)
    named = ", ".join(f"{layer}: {layer}" for layer in layers)
    more = f", tokens: {tokens}, ridge: 0.1, held_out: 0.25, layers: {{{named}}}"
    path = write(more=more)
    path.write_text(path.read_text().replace("layer: 0,", f"layer: {layers[0]},"))
    m = fit(path)
    kept = NAMES[:24]
    for layer in layers:
        states = []
        for name in ("source", "target"):
            one = transformers.LlamaForCausalLM.from_pretrained(models[name]).eval()
            with torch.no_grad():
                h = [
                    one(
                        known_tokenizer()(pair[side], return_tensors="pt").input_ids,
                        output_hidden_states=True,
                    )
                    .hidden_states[layer + 1][0, -1]
                    .double()
                    for pair in PAIRS
                    for side in ("positive", "negative")
                ]
            states.append((torch.stack(h[::2]).mean(0) - torch.stack(h[1::2]).mean(0)).numpy())
        expected = by_hand(models, layer, tokens, 0.1, kept) @ states[0]
        expected *= np.linalg.norm(states[1]) / np.linalg.norm(expected)
        found = m.tensors[f"carried.block_output[{layer}]"].double().numpy()
        assert np.abs(found - expected).max() < 1e-4
    told = m.provenance["fits"][1]
    assert (told["texts"], told["texts_held_out"]) == (24, 8)
    assert told["rows"] == {"aligned": 72, "mean": 24, "last": 24}[tokens]


def letters() -> Any:
    """A tokenizer of single letters, which says nothing of blanks."""
    vocabulary = {letter: i for i, letter in enumerate("?m0ranbecusf1wlkdh")}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.WhitespaceSplit(),
            tokenizers.pre_tokenizers.Split(tokenizers.Regex("."), "isolated"),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, pad_token="?", unk_token="?")


def test_where_tokenizers_differ_rows_are_tokens_that_end_at_the_same_letter() -> None:
    words, own = known_model(), known_model(40, 1)
    source = Reader(Anatomy.of(own), letters(), "letters")
    target = Reader(Anatomy.of(words), known_tokenizer(), "words")
    texts = ["m0 ran because", "f1 walked because he"]
    found = moments(
        texts,
        source,
        target,
        "block_output",
        {0: 0},
        tokens="aligned",
        max_tokens=128,
        batch_size=1,
        description="",
    )[0]
    # Of m0|ran|because words end at letters 2, 5, 12; the first word is the second tokenizer's first token.
    ends = [[4, 11], [7, 14, 16]]
    assert found.n == 5
    with torch.no_grad():
        x = torch.cat(
            [
                own.model.embed_tokens(letters()(t, return_tensors="pt").input_ids)[0, e]
                for t, e in zip(texts, ends, strict=True)
            ]
        )
        y = torch.cat(
            [
                words.model.embed_tokens(known_tokenizer()(t, return_tensors="pt").input_ids)[0, 1:]
                for t in texts
            ]
        )
    assert torch.allclose(found.x.float(), x.sum(0), atol=1e-5)
    assert torch.allclose(found.xy.float(), x.T @ y, atol=1e-4)
    assert least_squares(found, 0.1).shape == (32, 40)


def test_a_stored_vector_is_carried_and_the_source_is_not_fitted(
    write: Callable[..., Path], models: dict[str, Path], tmp_path: Path
) -> None:
    vector = {"of_theirs.block_output[2]": direction(40, 1)}
    safetensors.torch.save_file(vector, tmp_path / "theirs.safetensors")
    more = ", vector: {file: theirs.safetensors, key: of_theirs}, layers: {0: 2}"
    m = fit(write(more=more))
    told = m.provenance["fits"][1]
    assert (told["vector"], told["layers_of_source"]) == ("of_theirs", {"0": 2})
    assert "carried.block_output[1]" not in m.tensors
    with pytest.raises(SubveneError, match=r"layer 0 takes of_theirs.block_output\[1\] of the source"):
        fit(write(more=more.replace("{0: 2}", "{0: 1}")))


COMPARED = """\
evaluate:
- {kind: divergence, texts: {file: texts.jsonl}, limit: 4}
"""


@pytest.mark.parametrize("source", ["source", "turned"])
def test_a_comparison_has_native_random_and_untransferred_beside_it(
    write: Callable[..., Path], tmp_path: Path, source: str
) -> None:
    results = run_experiment(write(source, rest=COMPARED), output=tmp_path / "run").results
    names = [one.name for one in results.conditions]
    expected = ["baseline", "intervened", "intervened_native", "intervened_random"]
    assert names == expected + ["intervened_untransferred"] * (source == "turned")
    kl = {one.name: one.metrics["kl"].mean for one in results.conditions}
    assert kl["intervened"] == pytest.approx(kl["intervened_native"], rel=0.2)
    if source == "source":
        (note,) = results.notes
        assert "it is 40 wide there, and 32 here" in note
    else:
        assert not results.notes
        assert kl["intervened_untransferred"] < kl["intervened"]


def test_arms_that_a_file_has_are_not_added(write: Callable[..., Path]) -> None:
    from subvene.specs.transfer_arms import missing_controls, with_controls

    own = """\
conditions:
- {name: carried, sweep: {he.coefficient: [1, 2]}}
- {name: own, interventions: [own]}
"""
    path = write(rest=own + COMPARED)
    text = path.read_text().replace(
        "coefficient: 4.0}\n",
        "coefficient: 4.0}\n- {kind: steering, name: own, layer: 0, vector: {key: he}, coefficient: 4.0}\n",
    )
    path.write_text(text.replace("name: carried, ", "name: carried, interventions: [he], "))
    spec: Any = load_spec(path)
    assert [one.what for one in missing_controls(spec)] == ["random", "untransferred"]
    full = with_controls(spec, {"carried"})
    assert [one.name for one in full.conditions] == [
        "carried",
        "own",
        "carried_random",
        "carried_untransferred",
    ]
    assert full.conditions[2].sweep == {"he_random.coefficient": (1, 2)}
    assert not missing_controls(full)
    path.write_text(path.read_text() + "default_arms: false\n")
    assert not missing_controls(load_spec(path))  # type: ignore[arg-type]


WRONG = {
    "rows that are all the same": (", tokens: last", SubveneError, "is zero or not finite"),
    "no file": (", vector: {key: x}", SpecError, "vector.file: .*the file that holds the source's vectors"),
    "layer of the source": (", layers: {0: 9}", SubveneError, "layers of .* from 0 to 2, found 9"),
    "layer without a native vector": (", layers: {2: 2}", SubveneError, "'he' gives layers 0, 1, found 2"),
    "other widths": (", by: none", SubveneError, "40 columns and this model 32"),
    "one text": (", limit: 1", SubveneError, "texts: expected two different texts or more, .* found 1"),
    "nothing to fit on": (", limit: 2, held_out: 0.9", SubveneError, "held_out: 0.9 of 2 texts leaves none"),
    "a stored vector of this model's width": (
        ", by: none, vector: {file: narrow.safetensors, key: v}",
        SubveneError,
        r"narrow.safetensors: v.block_output\[0\]: expected a vector of 40 columns, .* shape \[32\]",
    ),
    "a stored vector of no width": (
        ", vector: {file: narrow.safetensors, key: v}",
        SubveneError,
        r"narrow.safetensors: v.block_output\[0\]: expected a vector of 40 columns, .* shape \[32\]",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(write: Callable[..., Path], tmp_path: Path, case: str) -> None:
    more, error, said = WRONG[case]
    narrow = {f"v.block_output[{layer}]": torch.ones(32) for layer in (0, 1)}
    safetensors.torch.save_file(narrow, tmp_path / "narrow.safetensors")
    with pytest.raises(error, match=said):
        fit(write(more=more))


def test_what_the_map_takes_to_rounding_is_no_direction(write: Callable[..., Path], tmp_path: Path) -> None:
    """No text has a name: brought to the native length, its rounding would steer somewhere by chance."""
    path = write()
    words = ["ran", "walked", "because"]
    texts = [f"because {a} {b}" for a in words for b in words]
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, texts)))
    with pytest.raises(SubveneError, match=r"direction at block_output\[0\]: .*to nothing but rounding"):
        fit(path)


def test_a_text_that_comes_again_is_not_held_out(write: Callable[..., Path], tmp_path: Path) -> None:
    once = fit(write()).provenance["fits"][1]
    path = write()
    (tmp_path / "texts.jsonl").write_text("\n".join(map(json.dumps, NAMES + NAMES)))
    twice = fit(path).provenance["fits"][1]
    assert twice["explained_by_layer"] == once["explained_by_layer"]
    assert twice["texts_held_out"] == once["texts_held_out"] == round(0.2 * len(set(NAMES)))


def test_a_name_that_an_added_arm_has_is_refused(write: Callable[..., Path]) -> None:
    rest = "conditions:\n- {name: a}\n- {name: a_random, interventions: []}\n" + COMPARED
    with pytest.raises(SpecError, match=r"conditions\[1\].name: .*an arm that is added has this one"):
        load_spec(write(rest=rest))
