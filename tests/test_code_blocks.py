"""What stands in a code block of the README and the docs is what subvene takes."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml
from checkout import ROOT
from doc_blocks import Block, blocks, commands
from pydantic import TypeAdapter

from subvene.runner.cli.app import COMMANDS, _loaded
from subvene.specs import ExperimentSpec, spec_of
from subvene.specs.evaluations import TruthfulQASpec

YAML = blocks("yaml")
CONSOLE = [block for block in blocks("sh", "bash", "") if any(commands(block)) or "make " in block.code]


def test_there_are_blocks() -> None:
    assert len(YAML) > 20
    assert len(CONSOLE) > 20


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.id)
def test_yaml_is_a_file_or_a_part_of_one(block: Block) -> None:
    content = yaml.safe_load(block.code)
    if isinstance(content, dict) and "kind" in content:
        content = {"judge": content}
    if isinstance(content, dict) and content.keys() == {"judge"}:
        TypeAdapter(TruthfulQASpec.model_fields["judge"].annotation).validate_python(content["judge"])
        return
    parts: dict[str, Any] = {"evaluate": content} if isinstance(content, list) else content
    for name, value in parts.items():
        TypeAdapter(ExperimentSpec.model_fields[name].annotation).validate_python(value)
    if "interventions" in parts or "subvene" in parts:
        spec_of({"subvene": 1, "model": {"name": "user/model"}} | parts, block.id)


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block.id)
def test_commands_are_ones_that_the_command_line_takes(block: Block) -> None:
    for line in commands(block):
        parsed(shlex.split(line)[1:])
        for path in re.findall(r"(?:examples|docs)/[\w/.-]+\.yaml", line):
            assert (ROOT / path).is_file(), path
    targets = re.findall(r"^make ([\w-]+)", block.code, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert all(f"\n{target}:" in makefile for target in targets), targets


def parsed(words: list[str]) -> None:
    """Parses the words of a command as the command line does, and does nothing."""
    name, *rest = words
    assert name in COMMANDS
    command = _loaded(name)
    while hasattr(command, "commands"):
        context = command.make_context(name, list(rest))
        name, command, rest = command.resolve_command(context, rest)
    command.make_context(name, list(rest))


def test_an_option_that_is_not_there_is_seen() -> None:
    with pytest.raises(Exception, match="No such option: --notthere"):
        parsed(["run", "a.yaml", "--notthere"])
