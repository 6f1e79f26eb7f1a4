"""Every command the documents show exists, with every flag they give it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from orchestrator.cli import app
from trainer import flags
from trainer.__main__ import KINDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ORCH: Any = typer.main.get_command(app)
SWITCHES = {"--help", "--print-config", "--dry-run"}

_FENCE = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_ORCH = re.compile(r"(?:^|[\s/$])orch (?P<rest>.+)$")
_TRAINER = re.compile(r"python3? -m trainer (?P<rest>.+)$")
_FLAG = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


def _lines(text: str) -> Iterator[str]:
    """Lines of the fenced blocks of shell, continued ones joined, comments cut."""
    for block in _FENCE.finditer(text):
        if block["kind"].strip() not in ("sh", "bash", "shell", "console"):
            continue
        for line in block["text"].replace("\\\n", " ").splitlines():
            yield line.split(" #")[0].rstrip()


def _blocks(pattern: re.Pattern[str]) -> list[Any]:
    found = [
        pytest.param(match["rest"], id=f"{path.name}: {match['rest']}"[:80])
        for path in DOCUMENTS
        for line in _lines(path.read_text(encoding="utf-8"))
        if (match := pattern.search(line))
    ]
    return list({param.id: param for param in found}.values())


def _inline() -> list[Any]:
    found = [
        pytest.param(code, id=f"{path.name}: {code}"[:80])
        for path in DOCUMENTS
        for code in _INLINE.findall(_FENCE.sub("", path.read_text(encoding="utf-8")))
        if code.startswith(("orch ", "python -m trainer "))
    ]
    return list({param.id: param for param in found}.values())


def _orch_options(words: list[str]) -> tuple[Any, list[str]]:
    """(the command, its words) of a command line without `orch`; options of orch itself are taken off."""
    context = ORCH.make_context("orch", words)
    (name, *rest) = [*context._protected_args, *context.args]
    assert name in ORCH.commands, f"orch has no command {name}"
    return ORCH.commands[name], rest


@pytest.mark.parametrize("line", _blocks(_ORCH))
def test_an_orch_command_in_a_code_block_is_accepted(line: str) -> None:
    command, rest = _orch_options(shlex.split(line))
    command.make_context(command.name, rest)  # raises for an unknown flag, a bad value or a missing argument


@pytest.mark.parametrize("line", _blocks(_TRAINER))
def test_a_trainer_command_in_a_code_block_is_accepted(line: str) -> None:
    command, *rest = shlex.split(line)
    flags.parse([word for word in rest if word not in SWITCHES], *KINDS[command])


@pytest.mark.parametrize("code", _inline())
def test_a_command_named_in_the_text_exists_with_its_flags(code: str) -> None:
    program, rest = code.split(" ", 1) if code.startswith("orch") else code.split(" trainer ", 1)
    names = re.match(r"[a-z]+( ?\| ?[a-z]+)*", rest)
    assert names, f"{code}: names no command"
    for name in re.split(r" ?\| ?", names[0]):
        if program == "orch":
            assert name in ORCH.commands
            known = {
                option for param in ORCH.commands[name].params for option in param.opts + param.secondary_opts
            }
            known |= {option for param in ORCH.params for option in param.opts} | {"--help"}
            assert set(_FLAG.findall(rest)) <= known
        else:
            assert name in KINDS
            fields = {field for kind in KINDS[name] for field in kind.model_fields}
            given = {
                flag.lstrip("-").replace("-", "_") for flag in _FLAG.findall(rest) if flag not in SWITCHES
            }
            assert {name.removeprefix("no_") for name in given} <= fields


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("submit sweeps/quickstart.yaml --locale", "No such option"),
        ("plan", "Missing"),
        ("results night -o xml", "is not one of"),
    ],
    ids=["an unknown flag", "no file", "an unknown form"],
)
def test_a_wrong_command_line_would_be_noticed(line: str, message: str) -> None:
    command, rest = _orch_options(shlex.split(line))
    with pytest.raises(Exception, match=message):
        command.make_context(command.name, rest)


def test_the_readme_shows_commands() -> None:
    assert len(_blocks(_ORCH)) >= 3


def test_no_placeholder_is_left_in_the_docs() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        assert "@@" not in page.read_text(encoding="utf-8"), page
