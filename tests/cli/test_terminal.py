"""Nothing that a stranger wrote reaches the terminal as a command."""

import io
import json
import sys

import pytest
from rich.console import ConsoleDimensions
from rich.table import Table
from rich.text import Text

from inheritune.cli import console
from inheritune.system.progress import Progress
from inheritune.system.progress_bar import progress_bar
from inheritune.system.terminal import Terminal

# Escape, the one-byte form of its bracket, bell, carriage return, delete, and turned writing.
HOSTILE = "a\x1b]0;x\x07b\x9b31mc\rd\x7fe\u202ef"
SHOWN = r"a\x1b]0;x\x07b\x9b31mc\rd\x7fe\u202ef"


def fail(text):
    with pytest.raises(console.typer.Exit), console.reported(as_json=False, debug=False):
        raise console.InherituneError(text)


@pytest.mark.parametrize(
    "show",
    [
        console.say,
        console.print_text,
        fail,
        lambda text: Terminal().print(text),
        lambda text: Terminal().print(Text(text)),
        lambda text: listening_once(Progress(text, message=text)),
    ],
    ids=["say", "data", "error", "console", "text", "progress"],
)
def test_control_characters_are_shown_and_not_obeyed(show, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    show(HOSTILE)
    out = "".join(capfd.readouterr())
    shown = out.replace(r"\x07", "").replace(r"\r", "")  # rich leaves these two out
    assert SHOWN.replace(r"\x07", "").replace(r"\r", "") in shown
    assert not set(out) & set("\x1b\x07\x9b\r\x7f\u202e")


def listening_once(event):
    with progress_bar() as listener:
        listener(event)


@pytest.mark.parametrize("width", [80, 140])
def test_the_bar_of_a_training_shows_all_its_figures(width, capfd, monkeypatch):
    monkeypatch.setattr(Terminal, "is_terminal", True)
    monkeypatch.setattr(Terminal, "size", property(lambda self: ConsoleDimensions(width, 40)))
    monkeypatch.delenv("CI", raising=False)
    facts = {"round": "1 of 2", "val": "3.31 (reference 2.44, +0.87)", "done in": "about 3 min"}
    with progress_bar() as listener:
        listener(Progress("tokens", 100, 100, "tokens"))
        listener(Progress("samples"))  # its bar is not that of the tokens at 100 %
        rows = [(task.description, task.percentage) for task in listener._bars.tasks]
        assert rows == [("samples", 0)]
        listener(Progress("inherit, 4 layers", 34, 100, "tokens", facts))
        listener._bars.refresh()
    shown = capfd.readouterr().err
    figures = "round 1 of 2 · val 3.31 (reference 2.44, +0.87) · done in about 3 min"
    assert figures in shown
    assert ("34 % · round" if width == 80 else "34% round") in shown


def test_tables_too(capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    grid = Table()
    grid.add_column(Text(HOSTILE), no_wrap=True)
    grid.add_row(Text(HOSTILE))
    Terminal().print(grid)
    out = capfd.readouterr().out
    assert out.count(r"\x1b") == 2
    assert not set(out) & set("\x1b\x07\x9b\r\x7f\u202e")


def test_json_keeps_the_value_and_holds_no_command(capfd):
    console.print_json({"name": HOSTILE, "ü": "ü"})
    out = capfd.readouterr().out
    assert json.loads(out) == {"name": HOSTILE, "ü": "ü"}
    assert "ü" in out
    assert not set(out) & set("\x1b\x07\x9b\r\x7f\u202e")


def test_text_of_all_writing_systems_stays(capfd):
    text = "Zürich, Привет, 你好, 👩\u200d🚀\n\tx"
    console.say(text)
    assert capfd.readouterr().err == f"{text}\n"


def test_nothing_prints_to_a_console_of_its_own():
    """`Terminal` is the one place that escapes."""
    directory = console.Path(console.__file__).parent
    users = [p.name for p in directory.rglob("*.py") if " Console(" in p.read_text("utf-8")]
    assert users == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_stream_without_a_character_spells_it_and_json_escapes_it(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    console.replace_unknown_characters()
    console.print_text("10⁶ ± 1 字")
    Terminal().print("3 × 10⁻¹²")
    console.print_json({"loss": "± 0.1, 10⁶"})
    sys.stdout.flush()
    raised = "¹²"  # which both of the others have
    text, table, *rest = raw.getvalue().decode(encoding).splitlines()
    assert text == ("10^6 +- 1 ?" if encoding == "ascii" else "10^6 ± 1 ?")
    assert table == ("3 x 10^-12" if encoding == "ascii" else f"3 × 10^-{raised}")
    assert json.loads("\n".join(rest)) == {"loss": "± 0.1, 10⁶"}
