"""What is read of a checkpoint: no code of its repository's, and every weight from the checkpoint."""

from __future__ import annotations

import ast
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import safetensors.torch
import torch
import transformers
from artifact_to_spoil import rehash, steered
from checkout import ROOT
from typer.testing import CliRunner

from subvene.runner import IntervenedModel
from subvene.runner.cli.app import app
from subvene.runner.judges import TRUTH, Answer, make_judge
from subvene.runner.judges.encoder import SentenceEncoder
from subvene.runner.models.loading import ModelError, load_config, load_model, load_tokenizer
from subvene.specs import ModelSpec, SubveneError
from subvene.specs.judges import TransformersJudgeSpec

IDS = torch.tensor([[1, 5, 9, 13]])


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model, to be spoilt."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def change(folder: Path, remove: tuple[str, ...] = (), **more: torch.Tensor) -> None:
    """Take tensors away from the checkpoint, and put others into it."""
    kept = {name: tensor for name, tensor in weights(folder).items() if name not in remove}
    safetensors.torch.save_file(kept | more, folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), device="cpu")
    assert str(folder) in str(caught.value)
    return str(caught.value)


# --- missing, mismatched, ignored


def test_missing_weights_are_named(folder: Path) -> None:
    change(folder, ("model.layers.1.mlp.up_proj.weight", "model.norm.weight"))
    message = refused(folder)
    assert "lacks model.layers.1.mlp.up_proj.weight, model.norm.weight, which would be random" in message
    with pytest.raises(ModelError, match=r"model\.norm\.weight"):
        load_model(str(folder), device_map="cpu", dtype="bfloat16")


def test_many_missing_weights_are_counted(folder: Path) -> None:
    change(folder, tuple(name for name in weights(folder) if ".mlp." in name))
    assert "and 4 more" in refused(folder)


def test_mismatched_weights_are_named_with_both_shapes(folder: Path) -> None:
    change(folder, **{"model.layers.0.mlp.up_proj.weight": torch.zeros(7, 32)})
    assert "model.layers.0.mlp.up_proj.weight is [7, 32] and its config needs [48, 32]" in refused(folder)


@pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_weights_are_not_missing(folder: Path, kept: str) -> None:
    gone = {"lm_head.weight": "model.embed_tokens.weight", "model.embed_tokens.weight": "lm_head.weight"}[
        kept
    ]
    change(folder, (gone,))
    configure(folder, tie_word_embeddings=True)
    loaded, _ = load_model(str(folder), device="cpu")
    assert torch.equal(loaded.lm_head.weight, weights(folder)[kept])
    assert torch.equal(loaded.model.embed_tokens.weight, weights(folder)[kept])
    configure(folder, tie_word_embeddings=False)
    assert f"lacks {gone}" in refused(folder)


def test_a_body_without_a_head_is_told_what_it_lacks(folder: Path) -> None:
    loaded, _ = load_model(str(folder), device="cpu")
    loaded.model.save_pretrained(folder)
    message = refused(folder)
    assert "lacks lm_head.weight" in message
    assert "saved as LlamaModel: an encoder or a bare body writes none" in message


@pytest.mark.parametrize(
    "name",
    [
        "score.weight",  # a classifier's head
        "vision_tower.blocks.0.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attn.masked_bias",
    ],
)
def test_what_is_beside_the_model_is_harmless(folder: Path, name: str) -> None:
    before, _ = load_model(str(folder), device="cpu")
    change(folder, **{name: torch.ones(2, 32)})
    after, _ = load_model(str(folder), device="cpu")
    with torch.no_grad():
        assert torch.equal(after(IDS).logits, before(IDS).logits)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.1.self_attn.q_proj.lora_A.default.weight",
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight",
        "model.layers.1.self_attn.q_proj.bias",  # its config says that there are no biases
        "model.layers.1.self_attn.q_norm.weight",
        "model.layers.3.mlp.up_proj.weight",  # a fourth block of three
        "lm_head.bias",
    ],
)
def test_what_the_model_would_have_used_is_not(folder: Path, name: str) -> None:
    change(folder, **{name: torch.ones(32)})
    message = refused(folder)
    assert name in message
    assert ("merge" in message) == ("lora" in name)


def test_blocks_that_draft_tokens_are_harmless(folder: Path) -> None:
    configure(folder, num_nextn_predict_layers=1)
    change(folder, **{"model.layers.3.mlp.up_proj.weight": torch.ones(48, 32)})
    load_model(str(folder), device="cpu")
    change(folder, **{"model.layers.4.mlp.up_proj.weight": torch.ones(48, 32)})
    assert "model.layers.4.mlp.up_proj.weight" in refused(folder)


def test_a_folder_with_an_adapter_in_it(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "user/base"}')
    for load in (load_model, load_config, load_tokenizer):
        with pytest.raises(ModelError, match=r"an adapter of user/base.*merge_and_unload.*subvene import"):
            load(str(folder))


@pytest.mark.parametrize("where", ["config", "text_config"])
def test_unknown_quantisation(folder: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = {"quant_method": "brand_new", "bits": 3}
    if where == "config":
        configure(folder, quantization_config=declared)
    else:
        inner = transformers.LlamaConfig(quantization_config=declared)
        monkeypatch.setattr(transformers.LlamaConfig, "get_text_config", lambda *_, **__: inner)
    message = refused(folder)
    assert "quant_method 'brand_new', which transformers does not know" in message
    assert "gptq" in message


@pytest.mark.parametrize("bits", ["4bit", "8bit"])
@pytest.mark.parametrize("named", [{}, {"quant_method": "bitsandbytes"}])
def test_a_quantiser_that_is_not_installed_is_named(folder: Path, bits: str, named: dict[str, str]) -> None:
    configure(folder, quantization_config={f"load_in_{bits}": True} | named)
    message = refused(folder)
    assert "requires bitsandbytes: `pip install" in message
    assert "does not know" not in message


@pytest.mark.parametrize("method", ["bitsandbytes", ["a"], 5, None])
def test_a_quantisation_that_names_no_method(folder: Path, method: object) -> None:
    configure(folder, quantization_config={"quant_method": method, "bits": 4})
    message = refused(folder)
    assert f"quant_method {method!r}" in message
    assert "does not know" in message


# --- number types

UP = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (torch.int8, "I8"),
        (torch.uint8, "U8"),
        (torch.int64, "I64"),
        (torch.bool, "BOOL"),
        (torch.float8_e4m3fn, "F8_E4M3"),
    ],
)
def test_weights_that_are_no_plain_numbers_are_named(folder: Path, stored: torch.dtype, said: str) -> None:
    change(folder, **{UP: weights(folder)[UP].to(stored)})
    for dtype in ("auto", "float32"):
        with pytest.raises(ModelError, match=rf"{UP} in model.safetensors as {said}, .*quantization_config"):
            load_model(str(folder), device="cpu", dtype=dtype)


def test_plain_numbers_of_several_types_are_cast(folder: Path) -> None:
    types = (torch.float64, torch.float16, torch.bfloat16)
    names = [UP.replace("layers.0", f"layers.{i}") for i in range(3)]
    change(folder, **{name: weights(folder)[name].to(t) for name, t in zip(names, types, strict=True)})
    loaded, _ = load_model(str(folder), device="cpu", dtype="float32")
    assert all(
        torch.equal(loaded.state_dict()[name], weights(folder)[name].to(torch.float32)) for name in names
    )


def test_a_shard_of_integers_is_named(folder: Path) -> None:
    path = folder / shards(folder)[1]
    tensors = safetensors.torch.load_file(path)
    name = next(key for key in sorted(tensors) if key.endswith("proj.weight"))
    safetensors.torch.save_file(tensors | {name: tensors[name].to(torch.int8)}, path, {"format": "pt"})
    assert f"{name} in {path.name} as I8" in refused(folder)


@pytest.mark.parametrize("stored", [torch.int8, torch.float32])
def test_torchs_own_files_are_looked_into(folder: Path, stored: torch.dtype) -> None:
    tensors = weights(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors | {UP: tensors[UP].to(stored)}, folder / "pytorch_model.bin")
    if stored is torch.float32:
        load_model(str(folder), device="cpu")
    else:
        assert f"{UP} in pytorch_model.bin as int8" in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.0.attn.masked_bias",
        "vision_tower.blocks.0.weight",
    ],
)
def test_integers_that_the_model_leaves_out_are_harmless(folder: Path, name: str) -> None:
    change(folder, **{name: torch.ones(2, 32, dtype=torch.int8)})
    load_model(str(folder), device="cpu")


def test_buffers_of_integers_are_what_they_are(tmp_path: Path, model_folder: Path) -> None:
    folder = encoder(tmp_path / "bert", model_folder)
    change(folder, **{"embeddings.position_ids": torch.arange(512)[None]})
    SentenceEncoder(str(folder)).encode(["hello world"])
    config = transformers.BloomConfig(
        vocab_size=len(load_tokenizer(str(model_folder))), hidden_size=16, n_layer=1, n_head=2
    )
    bloom = tmp_path / "bloom"
    transformers.BloomForCausalLM(config).save_pretrained(bloom)
    load_tokenizer(str(model_folder)).save_pretrained(bloom)
    # A model's own state of integers: masks and lookup tables.
    old = {"h.0.self_attention.attn.bias": torch.ones(4, 4, dtype=torch.uint8)}
    change(bloom, **old)
    load_model(str(bloom), device="cpu")


# --- shards


def shards(folder: Path) -> list[str]:
    loaded = transformers.LlamaForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    loaded.save_pretrained(folder, max_shard_size="20KB")
    return sorted(path.name for path in folder.glob("model-*.safetensors"))


def test_a_missing_shard_is_named(folder: Path) -> None:
    names = shards(folder)
    assert len(names) > 2
    load_model(str(folder), device="cpu")
    (folder / names[1]).unlink()
    assert names[1] in refused(folder)


def test_a_shard_that_lacks_what_the_index_lists(folder: Path) -> None:
    path = folder / shards(folder)[1]
    tensors = safetensors.torch.load_file(path)
    gone = sorted(tensors)[0]
    del tensors[gone]
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    assert f"lacks {gone}" in refused(folder)


# --- encoders


def encoder(folder: Path, model_folder: Path) -> Path:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16
    )
    transformers.BertModel(config).save_pretrained(folder)
    load_tokenizer(str(model_folder)).save_pretrained(folder)
    return folder


def test_a_sentence_encoder_may_lack_its_pooler_and_nothing_else(tmp_path: Path, model_folder: Path) -> None:
    folder = encoder(tmp_path / "bert", model_folder)
    vector = SentenceEncoder(str(folder)).encode(["hello world"])
    change(folder, tuple(name for name in weights(folder) if name.startswith("pooler.")))
    assert (SentenceEncoder(str(folder)).encode(["hello world"]) == vector).all()
    change(folder, ("encoder.layer.1.output.dense.bias",))
    with pytest.raises(
        SubveneError, match=r"bert cannot be loaded: .*lacks encoder.layer.1.output.dense.bias"
    ):
        SentenceEncoder(str(folder))


# --- a GGUF file


def write_gguf(path: Path, leave_out: str = "") -> None:
    """A Llama of one block, with a tokenizer of a few bytes."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    tokens = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz", "▁", "ab", "cd"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([float(-i) for i in range(len(tokens))])
    writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "output": (len(tokens), 32)}
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (32, 32) for part in ("gate", "up", "down")}
    shapes |= {f"blk.0.{part}_norm": (32,) for part in ("attn", "ffn")}
    for name, shape in shapes.items():
        if name != leave_out:
            writer.add_tensor(f"{name}.weight", torch.rand(shape).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_that_lacks_a_tensor_is_not_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "shipping_ggufs"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    write_gguf(package / "whole.gguf")
    write_gguf(package / "torn.gguf", leave_out="blk.0.ffn_up")
    assert load_model("package:shipping_ggufs/whole.gguf", device="cpu")[0].config.num_hidden_layers == 1
    with pytest.raises(ModelError, match=r"torn.gguf cannot be converted: .*lacks .*mlp.up_proj.weight"):
        load_model("package:shipping_ggufs/torn.gguf", device="cpu")
    kept = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert [path.name.partition("-")[0] for path in kept] == ["whole"]
    # What was lost from the cache since is missing too, and how it comes back is said.
    (kept[0] / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=f"remove {kept[0]}, and it is converted anew"):
        load_model("package:shipping_ggufs/whole.gguf", device="cpu")


# --- code of others


# Those that load a folder which this process has just written, through a class and not an auto class.
ELSEWHERE = {"IntervenedModel", "peft.PeftModel"}
READERS = {"from_pretrained", "from_config", "load_dataset"}


def test_every_call_says_that_no_code_of_a_repository_runs() -> None:
    lacking, seen = [], 0
    for path in sorted([*ROOT.glob("runner/**/*.py"), *ROOT.glob("interventions/**/*.py")]):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            owner = ast.unparse(call.func.value)
            if call.func.attr not in READERS or owner in ELSEWHERE:
                continue
            seen += 1
            trust = [ast.unparse(word.value) for word in call.keywords if word.arg == "trust_remote_code"]
            if trust != ["False"]:
                lacking.append(f"{path.relative_to(ROOT)}:{call.lineno}: {ast.unparse(call.func)}")
    assert not lacking, "pass trust_remote_code=False, or read through runner/models/pretrained.py"
    assert seen >= 5


@pytest.fixture
def repository(model_folder: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """A model's folder whose code says so when it runs, and the file in which it does."""

    def repository(which: str) -> tuple[Path, Path]:
        folder, flag = tmp_path / f"of-{which}", tmp_path / f"{which}-ran"
        shutil.copytree(model_folder, folder)
        code = f"open({str(flag)!r}, 'w').write('ran')\nfrom transformers import LlamaConfig\n"
        code += "class C(LlamaConfig): pass\nclass M: pass\nclass T: pass\ndef generate(model, **k): pass\n"
        (folder / "m.py").write_text(code)
        if which == "config":
            auto = {"AutoConfig": "m.C", "AutoModelForCausalLM": "m.M", "AutoModel": "m.M"}
            configure(folder, model_type="evil", auto_map=auto)
        elif which == "tokenizer":
            path = folder / "tokenizer_config.json"
            auto = {"auto_map": {"AutoTokenizer": ["m.T", None]}, "tokenizer_class": "T"}
            path.write_text(json.dumps(json.loads(path.read_text()) | auto))
            configure(folder, model_type="evil", auto_map={"AutoConfig": "m.C"})
        else:
            (folder / "custom_generate").mkdir()
            shutil.copy(folder / "m.py", folder / "custom_generate" / "generate.py")
        return folder, flag

    return repository


def artifact_for(model: Path, folder: Path) -> Path:
    """An artifact that names this model, with hashes that are right."""
    steered().save_pretrained(folder)
    spec = folder / "intervention.yaml"
    spec.write_text(spec.read_text().replace("user/tiny", str(model)))
    rehash(folder)
    return folder


def _of_spec(model: Path, work: Path) -> Path:
    path = work / "spec.yaml"
    path.write_text(
        f"subvene: 1\nmodel: {{name: {model}}}\ninterventions:\n- {{kind: steering, layer: 1, vector: "
        "{file: v.safetensors, key: v}, coefficient: 2, positions: all}\n"
    )
    safetensors.torch.save_file({"v.block_output[1]": torch.ones(32)}, work / "v.safetensors")
    return path


def _experiment(model: Path, work: Path) -> Path:
    path = _of_spec(model, work)
    path.write_text(
        f"{path.read_text()}evaluate: [{{kind: samples, coefficients: [0, 1], prompts: [hello]}}]\n"
    )
    return path


def _judge(model: Path, _work: Path) -> None:
    judge = make_judge(TransformersJudgeSpec(model=ModelSpec(name=str(model))), Path())
    judge.judge([Answer("Why?", "So.", (), ())], TRUTH)


def _cli(*words: Any) -> Callable[[Path, Path], Any]:
    def run(model: Path, work: Path) -> None:
        places = {
            "ARTIFACT": lambda: artifact_for(model, work / "a"),
            "SPEC": lambda: _of_spec(model, work),
            "EXPERIMENT": lambda: _experiment(model, work),
            "OUT": lambda: work / "out",
        }
        args = [str(places[word]()) if word in places else word for word in words]
        done = CliRunner().invoke(app, args, input="y\n" * 99)
        assert done.exit_code in (0, 1), done.output
        if done.exit_code:
            raise SubveneError(done.output)

    return run


DOORS: dict[str, Callable[[Path, Path], Any]] = {
    "load_config": lambda model, _: load_config(str(model)),
    "load_model": lambda model, _: load_model(str(model)),
    "load_tokenizer": lambda model, _: load_tokenizer(str(model)),
    "from_spec": lambda model, work: IntervenedModel.from_spec(_of_spec(model, work)),
    "from_pretrained": lambda model, work: IntervenedModel.from_pretrained(artifact_for(model, work / "a")),
    "judge": _judge,
    "encoder": lambda model, _: SentenceEncoder(str(model)),
    "generate": _cli("generate", "ARTIFACT", "-p", "hello"),
    "show": _cli("show", "SPEC", "-p", "hello"),
    "run": _cli("run", "EXPERIMENT"),
    "export": _cli("export", "ARTIFACT", "--to", "vector", "-o", "OUT"),
}


@pytest.mark.parametrize("which", ["config", "tokenizer"])
@pytest.mark.parametrize("door", DOORS)
def test_code_of_a_repository_never_runs(
    door: str,
    which: str,
    repository: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, flag = repository(which)
    # transformers asks on standard input, where any piped text may say y.
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    monkeypatch.chdir(tmp_path)
    said = ""
    try:
        DOORS[door](model, tmp_path)
    except SubveneError as error:
        said = str(error)
    assert not flag.exists(), "the code of the repository ran"
    # A tokenizer may be read without the config's class.
    assert "code of its own" in said or (which == "config" and door in ("load_tokenizer", "show"))


def test_a_repositorys_own_generate_is_not_taken(
    repository: Callable[[str], tuple[Path, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, flag = repository("generate")
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    loaded, _ = load_model(str(model), device="cpu")
    loaded.generate(IDS, max_new_tokens=2)
    assert not flag.exists()
