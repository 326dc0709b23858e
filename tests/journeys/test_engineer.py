"""An engineer was handed an artifact: look at it, change it, put it into a checkpoint, serve it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import openai
import pytest
import torch
import transformers
from tiny_model import WIDTH

from subvene import IntervenedModel
from subvene.runner.engines.http import server
from subvene.runner.engines.in_process import InProcess


@pytest.fixture
def handed(desk: Path) -> Path:
    """An artifact, as a colleague sends it."""
    spec = {
        "subvene": 1,
        "model": {"name": "model", "dtype": "float32"},
        "interventions": [
            {"kind": "steering", "name": "glad", "layer": 1, "vector": {"key": "v"}, "coefficient": 2.0,
             "positions": "all"},
        ],
    }  # fmt: skip
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    m = IntervenedModel.from_spec(spec, tensors={"v.block_output[1]": vector})
    return m.save_pretrained("handed")


def test_look_change_and_bake(handed: Path, typed: Callable[..., str]) -> None:
    assert "block_output[1]" in typed("subvene show handed").replace("\n", "")
    typed("subvene set handed strength=3 -o stronger")
    typed("subvene export stronger --to checkpoint -o baked")
    m = IntervenedModel.from_pretrained("stronger")
    # The checkpoint is an ordinary one: transformers alone says the same.
    baked = transformers.AutoModelForCausalLM.from_pretrained("baked")
    ids = torch.tensor([[8, 9, 10, 11]])
    with torch.no_grad():
        torch.testing.assert_close(baked(ids).logits, m(ids).logits, rtol=0, atol=1e-4)


def test_an_export_that_would_not_be_exact_is_refused_with_what_is(
    handed: Path, typed: Callable[..., str]
) -> None:
    typed("subvene set handed positions=response -o later")
    said = typed("subvene export later --to checkpoint -o baked", code=1).replace("\n", " ")
    assert "positions" in said
    assert not Path("baked").exists()


def test_a_file_that_was_altered_is_named(handed: Path, typed: Callable[..., str]) -> None:
    path = handed / "intervention.yaml"
    path.write_text(path.read_text("utf-8").replace("coefficient: 2.0", "coefficient: 9.0"), "utf-8")
    said = typed("subvene show handed", code=1).replace("\n", " ")
    assert "intervention.yaml" in said


def test_served_to_the_openai_client(handed: Path) -> None:
    m = IntervenedModel.from_pretrained(handed)
    listening = server(InProcess({"glad": m}), "127.0.0.1", 0, None)
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    try:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{listening.server_address[1]}/v1", api_key="none")
        messages = [{"role": "user", "content": "how are you ?"}]
        answer = client.chat.completions.create(
            model="glad=3", messages=messages, max_tokens=4, temperature=0
        )
        direct = m.generate("how are you ?", strengths=[3.0], max_new_tokens=4, do_sample=False)
        assert answer.choices[0].message.content == direct[0]
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
