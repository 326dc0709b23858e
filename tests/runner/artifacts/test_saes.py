"""SAEs in SAELens' format: read from a folder or the Hub, strictly, and used as an edit and as a gate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from architectures import ARCHITECTURES as MODELS
from architectures import BY_NAME, WIDTH
from hub_server import Hub, connect, serve_hub
from sae_by_hand import ARCHITECTURES, activations_by_hand, changed_by_hand, config, drawn, write

from subvene.runner.artifacts.saelens import SaeError, SaeLensFolder
from subvene.runner.edits.compile import CompileError
from subvene.runner.intervened.model import IntervenedModel
from subvene.specs import InterventionSpec, load_spec
from subvene.specs.gates import AllGate, SaeFeatureGate
from subvene.specs.local import absent
from subvene.specs.saes import StoredSae

IDS = torch.tensor([[11, 12, 13, 14, 15, 16]])
POST = "blocks.1.hook_resid_post"
CLAMP = {"kind": "sae_feature", "features": [3, 5], "do": "clamp", "value": [4.0, 0.5]}


def saved(folder: Path, architecture: str = "standard", hook: str = POST, **fields: Any) -> Path:
    weights = drawn(architecture, WIDTH)
    return write(folder, config(architecture, weights, hook, **fields), weights)


def intervened(*declared: dict[str, Any], model: str = "llama", **options: Any) -> IntervenedModel:
    spec = InterventionSpec.model_validate(
        {"subvene": 1, "model": {"name": "tiny/llama"}, "interventions": declared}
    )
    return IntervenedModel.from_spec(spec, model=BY_NAME[model].fresh(), **options)


@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_folder_is_read_as_saelens_means_it(tmp_path: Path, architecture: str, apply_b_dec: bool) -> None:
    more = {"rescale_acts_by_decoder_norm": True} if architecture == "topk" else {}
    weights = drawn(architecture, WIDTH)
    said = config(architecture, weights, POST, apply_b_dec_to_input=apply_b_dec, **more)
    write(tmp_path / "sae", said, weights)
    m = intervened(CLAMP | {"sae": {"folder": "sae"}}, folder=tmp_path)
    (edit,) = m.intervenable.interventions.values()
    h = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    expected = changed_by_hand(said, weights, h, [3, 5], "clamp", [4.0, 0.5])
    torch.testing.assert_close(edit(h), expected, rtol=1e-5, atol=1e-6)
    assert m.spec.interventions[0].layer == 1


def test_an_older_config_is_read_as_saelens_reads_it(tmp_path: Path) -> None:
    weights = drawn("topk", WIDTH)
    old = {
        "d_in": WIDTH,
        "d_sae": 12,
        "dtype": "torch.float32",
        "hook_point": "blocks.0.attn.hook_z",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 3},
        "normalize_activations": False,
        "l1_coefficient": 0.001,
    }
    found = SaeLensFolder.read(write(tmp_path, old, weights | {"scaling_factor": torch.ones(12)})).config
    assert (found.architecture, found.k, found.site, found.layer) == ("topk", 3, "attention_heads", 0)
    assert found.subtracts_bias
    assert found.normalize == "none"


STRANGE: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "temporal"}, "architecture: expected one of standard"),
    (
        {"normalize_activations": "expected_average_only_in"},
        "normalize_activations: expected a normalization",
    ),
    ({"normalize_activations": "unit"}, "normalize_activations: expected one of"),
    ({"reshape_activations": "hook_z"}, "reshape_activations: expected `hook_z` at attn.hook_z"),
    ({"apply_b_dec_to_input": 1}, "apply_b_dec_to_input: expected true or false, found 1"),
    ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor: expected false"),
    ({"dtype": "int8"}, "dtype: expected one of"),
    ({"activation_fn": "tanh-relu"}, "activation_fn: expected relu or topk"),
    ({"rescale_acts_by_decoder_norm": True}, "rescale_acts_by_decoder_norm: expected false"),
    ({"d_sae": 13}, r"W_enc has shape \[32, 12\], expected \[32, 13\]"),
    ({"d_in": "32"}, "d_in: expected an integer >= 1"),
    ({"metadata": {"sae_lens_version": "7.0.0", "hook_name": POST}}, "a version up to 6"),
    ({"metadata": {"sae_lens_version": "6.1.0", "hook_name": "blocks.1.hook_resid_mid"}}, "hook_name"),
    ({"metadata": {"sae_lens_version": "6.1.0", "hook_name": POST, "hook_head_index": 2}}, "one head"),
    (
        {
            "metadata": {
                "sae_lens_version": "6.1.0",
                "hook_name": POST,
                "model_from_pretrained_kwargs": {"center_writing_weights": True},
            }
        },
        "trained on the activations of another model",
    ),
]


@pytest.mark.parametrize(("fields", "words"), STRANGE)
def test_a_config_that_is_not_known_is_refused(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    saved(tmp_path, **fields)
    with pytest.raises(SaeError, match=words):
        SaeLensFolder.read(tmp_path)


def test_weights_that_are_not_the_architectures_are_refused(tmp_path: Path) -> None:
    weights = drawn("standard", WIDTH)
    said = config("jumprelu", weights, POST)
    with pytest.raises(SaeError, match="threshold is missing"):
        SaeLensFolder.read(write(tmp_path / "a", said, weights))
    with pytest.raises(SaeError, match="factor is another"):
        SaeLensFolder.read(
            write(tmp_path / "b", config("standard", weights, POST), weights | {"factor": torch.ones(1)})
        )
    broken = weights | {"b_enc": weights["b_enc"] * torch.nan}
    with pytest.raises(SaeError, match="b_enc holds NaN"):
        SaeLensFolder.read(write(tmp_path / "c", config("standard", weights, POST), broken))
    (tmp_path / "c" / "sae_weights.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(SaeError, match="not a readable safetensors file"):
        SaeLensFolder.read(tmp_path / "c")
    with pytest.raises(SaeError, match=r"cfg.json: expected SAELens' cfg.json"):
        SaeLensFolder.read(tmp_path / "none")


def test_another_place_or_latent_or_folder_than_there_is_is_told(tmp_path: Path) -> None:
    saved(tmp_path / "sae")
    edit = CLAMP | {"sae": {"folder": "sae"}}
    with pytest.raises(
        SaeError, match=r"trained on block_output\[1\], and the spec puts it at block_output\[0\]"
    ):
        intervened(edit | {"layer": 0}, folder=tmp_path)
    with pytest.raises(SaeError, match=r"the spec puts it at block_input\[1\]"):
        intervened(edit | {"site": "block_input"}, folder=tmp_path)
    with pytest.raises(SaeError, match="expected latents from 0 to 11, found 12"):
        intervened(edit | {"features": [3, 12]}, folder=tmp_path)
    saved(tmp_path / "far", hook="blocks.7.hook_resid_post")
    with pytest.raises(CompileError, match="expected a layer from 0 to"):
        intervened(edit | {"sae": {"folder": "far"}}, folder=tmp_path, model="llama")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "subvene: 1\nmodel: {name: a/b}\ninterventions:\n"
        "- {kind: sae_feature, sae: {folder: gone}, features: [1], do: ablate}\n"
    )
    (gone,) = absent(load_spec(spec), tmp_path)
    assert gone.name == "gone"


def test_behind_a_norm_that_the_site_is_before_is_refused(tmp_path: Path) -> None:
    saved(tmp_path / "sae", hook="blocks.1.hook_mlp_out")
    edit = CLAMP | {"sae": {"folder": "sae"}}
    intervened(edit, folder=tmp_path)
    with pytest.raises(SaeError, match="reads what post_feedforward_layernorm gives"):
        intervened(edit, folder=tmp_path, model="gemma2")


@pytest.mark.parametrize("arch", MODELS, ids=repr)
@torch.no_grad()
def test_scoring_is_generation_and_the_artifact_keeps_it(tmp_path: Path, arch: Any) -> None:
    """Against the whole autoencoder, put in by a hook; the folder is gone when the artifact is read."""
    architecture = ARCHITECTURES[MODELS.index(arch) % len(ARCHITECTURES)]
    weights = drawn(architecture, WIDTH)
    said = config(architecture, weights, POST)
    write(tmp_path / "sae", said, weights)
    edit = CLAMP | {"sae": {"folder": "sae"}, "positions": "response"}
    m = intervened(edit, model=arch.name, folder=tmp_path)
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "pad_token_id": 0}
    mask = torch.ones_like(IDS)
    written = m.generate_ids(IDS, mask, return_dict_in_generate=True, **options)
    scored = m(written.sequences, prompt_lengths=[6]).logits
    torch.testing.assert_close(scored[:, -4:-1], torch.stack(written.logits, 1), rtol=1e-4, atol=1e-4)

    def by_hand(_module: Any, _args: Any, output: Any) -> Any:
        h = output if torch.is_tensor(output) else output[0]
        changed = changed_by_hand(said, weights, h, [3, 5], "clamp", [4.0, 0.5]).to(h)
        changed = torch.cat([h[:, :5], changed[:, 5:]], 1)
        return changed if torch.is_tensor(output) else (changed, *output[1:])

    plain = arch.fresh()
    plain.get_submodule(arch.path("block_output", 1)).register_forward_hook(by_hand)
    torch.testing.assert_close(scored, plain(written.sequences).logits, rtol=1e-4, atol=1e-4)
    m.save_pretrained(tmp_path / "a")
    (tmp_path / "sae" / "cfg.json").unlink()
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=arch.fresh())
    assert torch.equal(again(written.sequences, prompt_lengths=[6]).logits, scored)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve_hub(tmp_path / "server") as server:
        connect(monkeypatch, server, tmp_path / "home")
        yield server


def test_a_release_is_read_from_the_hub_and_its_commit_is_kept(tmp_path: Path, hub: Hub) -> None:
    folder = saved(tmp_path / "sae", "jumprelu")
    files = {f"layer_1/width_12/{path.name}": path.read_bytes() for path in folder.iterdir()}
    commit = hub.put("ann/saes", files | {"layer_1/width_12/sparsity.bin": b"pickle"})
    sae = {"release": "ann/saes", "id": "layer_1/width_12"}
    m = intervened(CLAMP | {"sae": sae})
    stored = InterventionSpec.model_validate(m.spec).interventions[0].model_dump()["sae"]
    assert f"ann/saes@{commit}" in stored["origin"]
    local = intervened(CLAMP | {"sae": {"folder": "sae"}}, folder=tmp_path)
    assert torch.equal(m(IDS).logits, local(IDS).logits)
    assert not list((tmp_path / "home").rglob("sparsity.bin"))
    with pytest.raises(SaeError, match=r"ann/saes: no cfg.json in layer_9/"):
        intervened(CLAMP | {"sae": sae | {"id": "layer_9"}})


def test_a_name_of_saelens_directory_is_looked_up_where_it_is_installed(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = {"release": "tiny-res", "id": "blocks.1.hook_resid_post"}
    with pytest.raises(SaeError, match="where sae-lens is installed beside subvene"):
        intervened(CLAMP | {"sae": sae})
    package = tmp_path / "site" / "sae_lens"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('executed')")
    (package / "pretrained_saes.yaml").write_text(
        "tiny-res:\n  repo_id: ann/saes\n  saes: [{id: blocks.1.hook_resid_post, path: one}]\n"
        "other:\n  repo_id: ann/other\n  conversion_func: gemma_2\n  saes: []\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    hub.put("ann/saes", {f"one/{path.name}": path.read_bytes() for path in saved(tmp_path / "s").iterdir()})
    assert intervened(CLAMP | {"sae": sae}).spec.interventions[0].layer == 1
    with pytest.raises(SaeError, match="expected one of tiny-res: blocks"):
        intervened(CLAMP | {"sae": sae | {"id": "nine"}})
    with pytest.raises(SaeError, match="SAELens converts it with gemma_2"):
        intervened(CLAMP | {"sae": {"release": "other", "id": "a"}})
    with pytest.raises(SaeError, match="directory does not have it"):
        intervened(CLAMP | {"sae": {"release": "third", "id": "a"}})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_a_gate_reads_a_feature(tmp_path: Path, architecture: str) -> None:
    weights = drawn(architecture, WIDTH)
    said = config(architecture, weights, "blocks.1.hook_resid_pre")
    write(tmp_path / "sae", said, weights)
    plain = BY_NAME["llama"].fresh()
    read = plain(IDS, output_hidden_states=True).hidden_states[1][0]
    values = torch.stack([activations_by_hand(said, weights, row) for row in read])
    # A feature that is active at some tokens and not at others.
    feature = next(f for f in range(12) if 0 < (values[:, f] > 0).sum() < len(read))
    gate = {"measure": "sae_feature", "sae": {"folder": "sae"}, "feature": feature, "above": 0.0}
    steer = {"kind": "steering", "layer": 1, "vector": {"key": "v"}, "coefficient": 2.0}
    vector = {"v.block_output[1]": torch.ones(WIDTH)}
    when = {"all": [gate | {"decide": "token"}]}
    m = intervened(steer | {"when": when}, folder=tmp_path, tensors=vector)
    m(IDS, prompt_lengths=[6])
    (receipt,) = m.receipt.values() if hasattr(m.receipt, "values") else m.receipt
    assert receipt.gate.tokens_opened == int((values[:, feature] > 0).sum())
    m.save_pretrained(tmp_path / "a")
    again = IntervenedModel.from_pretrained(tmp_path / "a", model=BY_NAME["llama"].fresh())
    assert torch.equal(again(IDS, prompt_lengths=[6]).logits, m(IDS, prompt_lengths=[6]).logits)
    kept = again.spec.interventions[0].when
    assert isinstance(kept, AllGate)
    assert isinstance(kept.all_of[0], SaeFeatureGate)
    assert isinstance(kept.all_of[0].sae, StoredSae)
    (tensors,) = (tmp_path / "a").glob("tensors.safetensors")
    names = safetensors.torch.load_file(tensors)
    assert "sae.steering_0.gate0.block_input[1].encoder" in names


def test_a_gate_of_a_feature_needs_a_threshold() -> None:
    gate = {"measure": "sae_feature", "sae": {"folder": "sae"}, "feature": 1}
    edit = {"kind": "ablation", "layer": 1, "direction": {"key": "v"}, "when": gate}
    with pytest.raises(ValueError, match="`above` or `below`"):
        intervened(edit)
