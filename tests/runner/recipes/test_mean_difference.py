"""Mean difference: the vectors are those of one text at a time, subtracted by hand; and `fit`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

from subvene.runner import IntervenedModel, fit
from subvene.runner.artifacts import artifact
from subvene.runner.data.limits import TooLongError
from subvene.runner.data.text import TextError
from subvene.runner.edits.compile import CompileError
from subvene.runner.models.anatomy import Anatomy
from subvene.runner.recipes.mean_difference import fit_mean_difference
from subvene.specs import (
    ContrastSystems,
    ContrastTexts,
    ExperimentSpec,
    MeanDifferenceSpec,
    SpecError,
    SubveneError,
    load_spec,
)

ANSWERS = [
    {"prompt": "how are you", "positive": "i am very happy", "negative": "gloomy"},
    {"prompt": "tell me about the day", "positive": "good", "negative": "the rain is very bad"},
    {"prompt": "hello", "positive": "glad and happy", "negative": "sad and gloomy"},
]
RAW = [
    {"positive": "the sun is good and i am happy", "negative": "rain"},
    {"positive": "hello glad world", "negative": "a sad gloomy bad day"},
]
SYSTEMS = {
    "systems": [{"positive": "you are happy", "negative": "you are very very sad"}],
    "questions": ["how are you", "tell me about the rain day"],
}
FORMS = {"answers": {"texts": ANSWERS}, "raw": {"texts": RAW}, "systems": SYSTEMS}
every_form = pytest.mark.parametrize("form", FORMS)


def pairs_of(form: str) -> ContrastTexts | ContrastSystems:
    return (ContrastSystems if form == "systems" else ContrastTexts).model_validate(FORMS[form])


def vectors(loaded: Any, form: str = "answers", **fields: Any) -> dict[str, torch.Tensor]:
    model, tokenizer = loaded
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": FORMS[form], **fields})
    return fit_mean_difference(spec, pairs_of(form), Anatomy.of(model), tokenizer).tensors


def sides(form: str) -> list[tuple[str, str]]:
    """(what comes before, contrasted text) of every side, positive and negative in turn, written out."""
    if form == "systems":
        return [
            ("", f"<s> system : {system} <s> user : {question} <s> assistant :")
            for question in SYSTEMS["questions"]
            for system in ("you are happy", "you are very very sad")
        ]
    found = []
    for pair in FORMS[form]["texts"]:
        before = f"<s> user : {pair['prompt']} <s> assistant :" if "prompt" in pair else ""
        found += [(before, pair["positive"]), (before, pair["negative"])]
    return found


@torch.no_grad()
def by_hand(loaded: Any, form: str, layer: int, tokens: str = "mean", cut: int | None = None) -> torch.Tensor:
    """Mean of block outputs, positive minus negative, each text alone in a plain forward."""
    model, tokenizer = loaded
    seen: list[torch.Tensor] = []
    handle = model.model.layers[layer].register_forward_hook(
        lambda _module, _args, output: seen.append(output)
    )
    spans = []
    for before, text in sides(form):
        prompt, whole = before.split(), [*before.split(), *text.split()][:cut]
        model(torch.tensor([tokenizer.convert_tokens_to_ids(whole)]))
        # The first token of a sequence is an attention sink, and left out where there are others.
        start = len(prompt) or min(1, len(whole) - 1)
        h = seen.pop()[0, start:].double()
        spans.append(h[-1] if tokens == "last" else h.mean(0))
    handle.remove()
    return torch.stack(spans[0::2]).mean(0) - torch.stack(spans[1::2]).mean(0)


# The recipe -----------------------------------------------------------------------------------------------


@every_form
@pytest.mark.parametrize("tokens", ["mean", "last"])
def test_it_is_the_difference_of_means(loaded: Any, form: str, tokens: str) -> None:
    found = vectors(loaded, form, tokens=tokens)
    assert list(found) == [f"glad.block_output[{layer}]" for layer in range(3)]
    for layer in range(3):
        expected = by_hand(loaded, form, layer, tokens)
        assert (found[f"glad.block_output[{layer}]"] - expected).abs().max() <= 1e-5
        # The last token of every `systems` chat is the same; deeper blocks tell what stood before.
        assert expected.norm() > 0.05 or (form, tokens, layer) == ("systems", "last", 0)


@pytest.mark.parametrize("site", ["attention_heads", "attention_output", "mlp_output"])
def test_at_another_site(loaded: Any, site: str) -> None:
    """The block's output is what its parts add; at one block, the differences add up too."""
    found = vectors(loaded, site=site, layers=[1])
    (name,) = found
    assert name == f"glad.{site}[1]"
    if site != "attention_heads":
        parts = [vectors(loaded, site=part, layers=[1]) for part in ("attention_output", "mlp_output")]
        sums = sum(part.popitem()[1] for part in parts)
        block = vectors(loaded)
        expected = block["glad.block_output[1]"] - block["glad.block_output[0]"]
        assert (sums - expected).abs().max() <= 1e-5


@every_form
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_does_not_matter(loaded: Any, form: str, batch_size: int) -> None:
    expected = vectors(loaded, form)
    for name, vector in vectors(loaded, form, batch_size=batch_size).items():
        assert (vector - expected[name]).abs().max() <= 1e-5


def test_some_layers_are_those_of_all_layers(loaded: Any) -> None:
    every, some = vectors(loaded), vectors(loaded, layers=[2, 0])
    assert list(some) == ["glad.block_output[0]", "glad.block_output[2]"]
    assert all(torch.equal(vector, every[name]) for name, vector in some.items())


@pytest.mark.parametrize(("form", "cut"), [("answers", 12), ("raw", 3), ("systems", 6)])
def test_max_tokens_cuts_the_end_and_counts(loaded: Any, form: str, cut: int) -> None:
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": FORMS[form], "max_tokens": cut})
    fitted = fit_mean_difference(spec, pairs_of(form), Anatomy.of(loaded[0]), loaded[1])
    found = fitted.tensors["glad.block_output[1]"]
    assert (found - by_hand(loaded, form, 1, "mean", cut)).abs().max() <= 1e-5
    assert (found - by_hand(loaded, form, 1, "mean")).abs().max() > 1e-2
    longer = [text for before, text in sides(form) if len([*before.split(), *text.split()]) > cut]
    assert (fitted.provenance["texts_cut"], fitted.provenance["max_tokens"]) == (len(longer), cut)
    assert longer


@pytest.mark.parametrize(("form", "cut"), [("answers", 12), ("raw", 3), ("systems", 6)])
def test_the_last_token_of_a_text_that_is_cut_is_refused(loaded: Any, form: str, cut: int) -> None:
    with pytest.raises(SubveneError, match=rf"which is cut away: it has \d+ tokens and max_tokens is {cut}"):
        vectors(loaded, form, max_tokens=cut, tokens="last")
    assert vectors(loaded, form, max_tokens=500, tokens="last")


@pytest.mark.parametrize("options", [{}, {"max_tokens": 500}], ids=str)
def test_a_text_beyond_the_limit_of_the_model_is_refused(loaded: Any, options: Any) -> None:
    loaded[0].config.max_position_embeddings = 12
    with pytest.raises(TooLongError, match=r"has 13 tokens, and this model reads at most 12"):
        vectors(loaded, **options)
    # What a declared limit leaves of it is within the model's.
    expected = by_hand(loaded, "answers", 1, cut=12)
    assert (vectors(loaded, max_tokens=12)["glad.block_output[1]"] - expected).abs().max() <= 1e-5


# Degenerate fits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ([{"prompt": "hello", "positive": "glad", "negative": "glad"}], {}, "pair 0 reads the same tokens"),
        ([*ANSWERS, {"positive": "sad", "negative": " sad "}], {}, "pair 3 reads the same tokens"),
        (
            [{"positive": "i am glad", "negative": "i am sad"}],
            {"max_tokens": 2},
            r"pair 0 reads the same tokens on both sides \(within max_tokens: 2\)",
        ),
        (
            [{"positive": "glad", "negative": "sad"}, {"positive": "sad", "negative": "glad"}],
            {},
            "are the same, in another order",
        ),
    ],
    ids=["identical", "identical to the tokenizer", "after a cut", "they add up to nothing"],
)
def test_pairs_that_contrast_nothing_are_refused(loaded: Any, texts: Any, options: Any, message: str) -> None:
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": {"texts": texts}, **options})
    with pytest.raises(SubveneError, match=message):
        fit_mean_difference(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])


def _spoil(model: Any, layer: int) -> None:
    """From this block on nothing is finite."""
    model.model.layers[layer].mlp.down_proj.weight.data[:] = torch.nan


def test_layers_that_are_not_finite_are_left_out_and_named(loaded: Any) -> None:
    _spoil(loaded[0], 2)
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": {"texts": ANSWERS}})
    fitted = fit_mean_difference(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])
    assert list(fitted.tensors) == ["glad.block_output[0]", "glad.block_output[1]"]
    assert fitted.provenance["left_out"] == {"2": "its activations are not finite"}
    json.dumps(fitted.provenance, allow_nan=False)


def test_layers_without_a_difference_are_left_out_and_named(loaded: Any) -> None:
    # Without attention and MLP in the first block, the last tokens are alike there: they are one token.
    model, tokenizer = loaded
    for module in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
        module.weight.data[:] = 0
    texts = {"texts": [{"positive": "i am glad .", "negative": "it is sad and bad ."}]}
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": texts, "tokens": "last"})
    fitted = fit_mean_difference(spec, spec.pairs, Anatomy.of(model), tokenizer)
    assert list(fitted.tensors) == ["glad.block_output[1]", "glad.block_output[2]"]
    assert "zero, up to rounding" in fitted.provenance["left_out"]["0"]


def test_a_model_without_any_finite_layer_is_refused(loaded: Any) -> None:
    _spoil(loaded[0], 0)
    with pytest.raises(SubveneError, match=r"no direction at any of 3 layers.*not finite"):
        vectors(loaded)


def test_an_edit_at_a_layer_that_was_left_out_is_refused(loaded: Any) -> None:
    _spoil(loaded[0], 2)
    edit = {"kind": "steering", "layer": 2, "vector": {"key": "glad"}, "coefficient": 1.0, "positions": "all"}
    declared = {
        "subvene": 1,
        "model": {"name": "tiny"},
        "fit": {"recipe": "mean_difference", "key": "glad", "pairs": {"texts": ANSWERS}},
        "interventions": [edit],
    }
    with pytest.raises(
        SubveneError, match=r"interventions\[0\].vector: .* no direction at block_output\[2\]"
    ):
        fit(ExperimentSpec.model_validate(declared), model=loaded[0], tokenizer=loaded[1])
    declared["interventions"] = [edit | {"layer": 1}]
    m = fit(ExperimentSpec.model_validate(declared), model=loaded[0], tokenizer=loaded[1])
    assert m.provenance["left_out"] == {"2": "its activations are not finite"}


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (ANSWERS, {"max_tokens": 7}, "'i am very happy' is left to read within 7 tokens"),
        ([{"positive": "   ", "negative": "sad"}], {}, "'   ' is left to read"),
        ([{"prompt": "hello", "positive": "glad", "negative": " "}], {}, "' ' is left to read"),
    ],
    ids=["cut away", "raw", "answer"],
)
def test_a_text_without_a_token_is_an_error(loaded: Any, texts: Any, options: Any, message: str) -> None:
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": {"texts": texts}, **options})
    with pytest.raises(SubveneError, match=message):
        fit_mean_difference(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])


def test_systems_need_a_template(loaded: Any) -> None:
    loaded[1].chat_template = None
    with pytest.raises(TextError, match="no chat template"):
        vectors(loaded, "systems")


@pytest.mark.parametrize(
    ("form", "pairs", "tokens"), [("answers", 3, 17), ("raw", 2, 14), ("systems", 2, 66)]
)
def test_provenance(loaded: Any, form: str, pairs: int, tokens: int) -> None:
    spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": FORMS[form]})
    fitted = fit_mean_difference(spec, pairs_of(form), Anatomy.of(loaded[0]), loaded[1])
    provenance = json.loads(json.dumps(fitted.provenance))
    norms = provenance.pop("norm_by_layer")
    # Of what the pairs said before there were system prompts beside them.
    given = {"texts": {"__all__": {"system"}}} if isinstance(pairs_of(form), ContrastTexts) else None
    digest = hashlib.sha256(pairs_of(form).model_dump_json(exclude=given).encode()).hexdigest()
    assert provenance == {
        "recipe": "mean_difference",
        "key": "glad",
        "site": "block_output",
        "tokens": "mean",
        "form": "systems" if form == "systems" else "texts",
        "pairs": pairs,
        "pairs_sha256": digest,
        "tokens_read": tokens,
        "max_tokens": None,
        "texts_cut": 0,
        "left_out": {},
    }
    for layer in range(3):
        assert norms[str(layer)] == pytest.approx(
            float(fitted.tensors[f"glad.block_output[{layer}]"].norm()), abs=1e-4
        )


def test_the_hash_is_of_the_pairs(loaded: Any) -> None:
    def digest(texts: Any, **fields: Any) -> str:
        spec = MeanDifferenceSpec.model_validate({"key": "glad", "pairs": {"texts": texts}, **fields})
        fitted = fit_mean_difference(spec, spec.pairs, Anatomy.of(loaded[0]), loaded[1])
        return fitted.provenance["pairs_sha256"]

    assert digest(ANSWERS) == digest(ANSWERS, batch_size=1, tokens="last")
    assert len({digest(ANSWERS), digest(ANSWERS[::-1]), digest(ANSWERS[:2]), digest(RAW)}) == 4


@pytest.mark.slow
def test_texts_of_unlike_length_are_not_told_apart_by_the_attention_sink(smollm2: Any) -> None:
    """SmolLM2's first token is 24,000 long at block 14 and others are 170: a mean with it is that token."""
    model, tokenizer = smollm2
    texts = [{"positive": "What a wonderful sunny day this is, I love it!", "negative": "How dreadful."}]
    spec = MeanDifferenceSpec.model_validate({"key": "v", "pairs": {"texts": texts}, "layers": [14]})
    fitted = fit_mean_difference(spec, spec.pairs, Anatomy.of(model), tokenizer)
    assert fitted.tensors["v.block_output[14]"].norm() < 300


# fit ------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "subvene.runner.recipes.fitting.load_model", lambda *a, **k: pytest.fail("it was loaded")
    )


def spec_file(write: Callable[..., Path], pairs: Any = None, *, layer: int = 1, **fields: Any) -> Path:
    recipe = {"recipe": "mean_difference", "key": "glad", "pairs": pairs or {"texts": ANSWERS}, **fields}
    entry = {"kind": "steering", "layer": layer, "vector": {"key": "glad"}, "positions": "response"}
    document = {"fit": recipe, "interventions": [entry | {"coefficient": 2}]}
    return write(yaml.safe_dump(document), "fit.yaml")


def test_pairs_of_a_file_are_looked_for_beside_the_spec(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pairs.yaml").write_text(yaml.safe_dump({"texts": ANSWERS}))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    path = spec_file(write, {"file": "data/pairs.yaml"})
    inline = fit(spec_file(write)).tensors
    path = spec_file(write, {"file": "data/pairs.yaml"})
    for m in (fit(path), fit(load_spec(path), folder=tmp_path), fit(path, folder=tmp_path)):
        assert all(torch.equal(m.tensors[name], vector) for name, vector in inline.items())
    with pytest.raises(SubveneError, match=r"pairs\.yaml"):
        fit(load_spec(path))  # nobody said where the file is


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"pairs": {"file": "missing.yaml"}}, SubveneError, r"missing\.yaml"),
        ({"pairs": {"file": "bad.yaml"}}, SpecError, r"bad\.yaml.*negative"),
        ({"layers": [0, 3]}, CompileError, "fit.layers: expected layers from 0 to 2 for this model, found 3"),
        ({"layer": 3}, CompileError, r"interventions\[0\]\.layer"),
        ({"layers": [0, 2]}, CompileError, r"interventions\[0\]\.layer: .* gives layers 0, 2, found 1"),
        (
            {"site": "mlp_output"},
            CompileError,
            r"interventions\[0\]\.site: .* mlp_output, found block_output",
        ),
        ({"layers": [-1]}, SpecError, "layers"),
        ({"pairs": {"texts": []}}, SpecError, "texts"),
    ],
    ids=["no file", "file", "fit.layers", "layer", "not fitted", "another site", "negative", "no pairs"],
)
def test_errors_come_before_the_model(
    write: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    (tmp_path / "bad.yaml").write_text("texts:\n- {positive: happy}\n")
    path = spec_file(write, **changes)
    with pytest.raises(error, match=f"(?s){message}"):
        fit(path)


@pytest.mark.usefixtures("no_model")
def test_a_spec_without_fit(steer: Path) -> None:
    with pytest.raises(SubveneError, match="no `fit:` block"):
        fit(steer)
    spec = load_spec(steer)
    with pytest.raises(SubveneError, match="no `fit:` block"):
        fit(ExperimentSpec(**{name: getattr(spec, name) for name in type(spec).model_fields}))


@pytest.mark.usefixtures("no_model")
def test_on_a_loaded_model(write: Callable[..., Path], loaded: Any) -> None:
    model, tokenizer = loaded
    path = spec_file(write)
    m = fit(path, model=model, tokenizer=tokenizer)
    assert m.model is model
    assert (m.tensors["glad.block_output[1]"] - by_hand(loaded, "answers", 1)).abs().max() <= 1e-5
    with pytest.raises(SubveneError, match="tokenizer"):
        fit(path, model=model)
    model.register_forward_pre_hook(lambda *_: pytest.fail("it was fitted"))
    with pytest.raises(CompileError, match=r"fit\.layers"):
        fit(spec_file(write, layers=[7]), model=model, tokenizer=tokenizer)
    with pytest.raises(CompileError, match=r"interventions\[0\]\.layer"):
        fit(spec_file(write, layer=7), model=model, tokenizer=tokenizer)


def test_the_model_is_steered_by_what_was_fitted(write: Callable[..., Path], loaded: Any) -> None:
    m = fit(spec_file(write))
    vector = 2 * by_hand(loaded, "answers", 1).float()
    ids = torch.tensor([[1, 7, 8, 9]])
    loaded[0].model.layers[1].register_forward_hook(
        lambda _module, _args, output: output + vector * torch.tensor([0.0, 1, 1, 1]).view(1, -1, 1)
    )
    with torch.no_grad():
        assert (m(ids, prompt_lengths=[2]).logits - loaded[0](ids).logits).abs().max() <= 1e-4
        with m.disabled():
            assert (m(ids).logits - loaded[0](ids).logits).abs().max() > 0.1


def test_an_artifact_holds_every_layer_and_any_of_them_can_be_used(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    m = fit(spec_file(write))
    folder = m.save_pretrained(tmp_path / "art")
    stored = safetensors.torch.load_file(folder / artifact.TENSORS)
    assert stored.keys() == m.tensors.keys() == {f"glad.block_output[{layer}]" for layer in range(3)}
    assert all(torch.equal(stored[name], vector) for name, vector in m.tensors.items())
    reloaded = IntervenedModel.from_pretrained(folder)
    assert reloaded.provenance == m.provenance
    assert reloaded.provenance["pairs"] == 3
    # By hand: another layer in the spec, and the hash that goes with it.
    text = (folder / artifact.SPEC).read_text()
    assert text.count("layer: 1") == 1
    (folder / artifact.SPEC).write_text(text.replace("layer: 1", "layer: 2"))
    fingerprint = json.loads((folder / artifact.FINGERPRINT).read_text())
    fingerprint["sha256"][artifact.SPEC] = hashlib.sha256((folder / artifact.SPEC).read_bytes()).hexdigest()
    (folder / artifact.FINGERPRINT).write_text(json.dumps(fingerprint))
    moved, expected = IntervenedModel.from_pretrained(folder), fit(spec_file(write, layer=2))
    ids = torch.tensor([[1, 7, 8, 9]])
    with torch.no_grad():
        logits = moved(ids, prompt_lengths=[2]).logits
        assert torch.equal(logits, expected(ids, prompt_lengths=[2]).logits)
        assert not torch.equal(logits, m(ids, prompt_lengths=[2]).logits)


def test_overrides_are_what_is_saved(
    write: Callable[..., Path], model_folder: Path, loaded: Any, tmp_path: Path
) -> None:
    other = tmp_path / "other-model"
    with torch.no_grad():
        loaded[0].model.layers[0].mlp.down_proj.weight *= 2
    loaded[0].save_pretrained(other)
    loaded[1].save_pretrained(other)
    m = fit(spec_file(write), name=str(other), dtype="bfloat16")
    assert m.model.dtype == torch.bfloat16
    assert (m.spec.model.name, m.spec.model.dtype) == (str(other), "bfloat16")
    assert m.provenance["model"] == str(other)
    saved = load_spec(m.save_pretrained(tmp_path / "art") / artifact.SPEC)
    assert (saved.model.name, saved.model.dtype) == (str(other), "bfloat16")
    reloaded = IntervenedModel.from_pretrained(tmp_path / "art")
    weight = reloaded.model.model.layers[0].mlp.down_proj.weight
    assert torch.equal(weight, loaded[0].model.layers[0].mlp.down_proj.weight.bfloat16())
    assert fit(spec_file(write)).spec.model.name == str(model_folder)
