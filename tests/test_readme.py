"""The README's commands and its Python are run, in order, in a directory with recipes/, examples/.

Commands stand in ```console blocks, on lines that start with ``$ ``. A line ends in ``# exits N``
where its exit code is not 0. ``<!-- not run: REASON -->`` on the line before a block, or before a
command within it, leaves the block or the command out. Commands that install (make, pip, git) are
read, not run: what they name must exist.
"""

import re
import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inheritune.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")

_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
_EXITS = re.compile(r"\s+# exits (\d+)$")


@dataclass(frozen=True)
class Command:
    """One command of the README."""

    text: str
    line: int
    exit_code: int = 0
    not_run: str = ""


def commands(page: str) -> list[Command]:
    found = []
    inside = False
    reason = block_reason = ""
    for number, line in enumerate(page.splitlines(), 1):
        comment = _NOT_RUN.fullmatch(line.strip())
        if comment:
            reason = comment[1]
        elif line.startswith("```"):
            inside = line.strip() == "```console"
            block_reason, reason = (reason if inside else ""), ""
        elif inside and line.startswith("$ "):
            exits = _EXITS.search(line)
            text = _EXITS.sub("", line)[2:].strip()
            code = int(exits[1]) if exits else 0
            found.append(Command(text, number, code, reason or block_reason))
            reason = ""
        elif line.strip():
            reason = ""
    return found


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    for name in ("recipes", "examples"):  # what a reader sees in the checkout
        (folder / name).symlink_to(ROOT / name, target_is_directory=True)
    return folder


@pytest.mark.parametrize("command", commands(README), ids=lambda c: f"line {c.line}: {c.text}")
def test_readme_command(command, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    if command.not_run:
        pytest.skip(f"line {command.line}, {command.text!r}: {command.not_run}")
    program, *arguments = shlex.split(command.text, comments=True)
    if program == "inheritune":
        run(command, workplace)
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    else:
        assert program in {"git", "cd"}, f"how is {command.text!r} to be checked?"


def test_readme_python(workplace, monkeypatch):
    """The Python blocks run after the commands, in the same directory."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert blocks
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    exec("\n".join(blocks), {"__name__": "__main__"})


def run(command: Command, workplace: Path) -> None:
    """Run a command of ours in this process: a new one takes seconds to import what it needs."""
    arguments, to_file, target = command.text.partition(" > ")
    done = CliRunner().invoke(app, shlex.split(arguments)[1:], catch_exceptions=False)
    assert done.exit_code == command.exit_code, done.output
    if to_file:
        (workplace / target).write_text(done.stdout, "utf-8")


def check_make(arguments: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in [a for a in arguments if "=" not in a]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"no target {target}"


def check_pip(arguments: list[str]) -> None:
    assert arguments[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
        "optional-dependencies"
    ]
    for argument in arguments[1:]:
        named = re.fullmatch(r"[^[]*\[([\w,-]+)\].*", argument)
        assert not named or set(named[1].split(",")) <= extras.keys(), f"no extra of {argument}"
    if "-c" in arguments:
        assert (ROOT / arguments[arguments.index("-c") + 1]).is_file()


def test_readme_shows_commands():
    assert commands(README)


def test_only_commands_in_console_blocks_count():
    page = (
        "$ inheritune a\n```console\n$ inheritune b\noutput\n```\n```python\n$ inheritune c\n```\n"
    )
    assert commands(page) == [Command("inheritune b", 3)]


def test_an_exit_code_can_be_stated():
    page = "```console\n$ inheritune run r.yaml  # exits 6\n$ inheritune doctor  # versions\n```"
    assert commands(page) == [
        Command("inheritune run r.yaml", 2, exit_code=6),
        Command("inheritune doctor  # versions", 3),
    ]


def test_a_reason_leaves_out_one_command_or_one_block():
    page = (
        "```console\n<!-- not run: slow -->\n$ inheritune a\n$ inheritune b\n```\n"
        "<!-- not run: needs a GPU -->\n```console\n$ inheritune c\n$ inheritune d\n```\n"
        "<!-- not run: astray -->\nProse.\n```console\n$ inheritune e\n```\n"
    )
    assert [(c.text[-1], c.not_run) for c in commands(page)] == [
        ("a", "slow"),
        ("b", ""),
        ("c", "needs a GPU"),
        ("d", "needs a GPU"),
        ("e", ""),
    ]
