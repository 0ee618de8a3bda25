"""Run the examples of docs/reference/commands.md and keep what they print; record a terminal.

`python docs/examples.py` runs them all, one after the other, in a new directory; with names of
commands it runs only these, in the directory of `--in`. Where all commands of the terminal are
among them, it records them as docs/terminal.cast, which `asciinema play` plays, and draws
docs/terminal.svg from that; `--terminal` does only this. Figures of time and speed are those of the
machine that it ran on.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
OUTPUTS = HERE / "reference" / "examples"
_MAX_LINES = 32
_SMALL = (
    "--set name=small-run --set train.tokens=20K --set data.val_fraction=0.005 "
    "--set grow.max_rounds=1 --set analyze.sequences=10"
)
_PICKLED = (
    "import torch, json; from safetensors.torch import load_file; from pathlib import Path; "
    "import shutil; shutil.copytree('half', 'old-checkpoint'); "
    "p = Path('old-checkpoint/model.safetensors'); "
    "torch.save(load_file(p), 'old-checkpoint/pytorch_model.bin'); p.unlink()"
)
# In an order in which each finds what it needs; a later part of a line is run without being shown.
EXAMPLES = {
    "doctor": "inheritune doctor",
    "init": "inheritune init --list",
    "plan": "inheritune plan meta-llama/Llama-3.1-8B 16 --tokens 1B --device h100 --devices 8 "
    "--rate 2.50",
    "inherit": "inheritune inherit embedded:demo 4 half",
    "verify": "inheritune verify half --reference embedded:demo",
    "convert": "inheritune convert old-checkpoint new-model",
    "select": "inheritune select embedded:demo --layers 6 --text stdlib",
    "prepare": f"inheritune prepare recipe.yaml {_SMALL}",
    "inspect": "inheritune inspect runs/small-run/tokens",
    "train": f"inheritune train recipe.yaml --variant scratch {_SMALL}",
    "run": f"inheritune run recipe.yaml {_SMALL}",
    "generate": "inheritune generate runs/small-run 'def read_lines(path):' --max-tokens 24",
    "evaluate": "inheritune evaluate embedded:demo runs/small-run/target --speed",
    "analyze": "inheritune analyze embedded:demo --against half --sequences 10",
    "patch": "inheritune patch runs/small-run/target embedded:demo 6 larger",
    "report": "inheritune report runs/small-run",
    "watch": "inheritune watch runs/small-run --text",
    "runs": "inheritune runs",
    "push": "inheritune push runs/small-run --repo-id me/small --dry-run",
    "clean": "inheritune clean runs/small-run",
    "demo": "inheritune demo --set train.tokens=20K --set data.val_fraction=0.005",
}
BEFORE = {
    "convert": [sys.executable, "-c", _PICKLED],
    "prepare": ["sh", "-c", f"{sys.executable} -m inheritune init --preset demo > recipe.yaml"],
}
TERMINAL = ["inherit", "verify", "plan"]
_IDLE_S, _TYPING_S, _HOLD_S = 1.5, 1.0, 8.0  # longest pause; after a command; at the end
_WIDTH = 88  # characters
_PROGRESS = re.compile(r"^\d\d:\d\d:\d\d .*\n?", re.MULTILINE)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--in", dest="folder", default="")
    parser.add_argument("--terminal", action="store_true")
    options = parser.parse_args()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="examples-"))
    folder.mkdir(parents=True, exist_ok=True)
    OUTPUTS.mkdir(exist_ok=True)
    recorded: dict[str, list[tuple[float, str]]] = {}
    for name in options.names or (TERMINAL if options.terminal else EXAMPLES):
        if name in BEFORE:
            subprocess.run(BEFORE[name], cwd=folder, check=True, env=_environment())
        recorded[name] = run(EXAMPLES[name], folder)
        text = "".join(f"{line}\n" for _, line in recorded[name])
        (OUTPUTS / f"{name}.txt").write_text(f"$ {EXAMPLES[name]}\n{text}", "utf-8")
    if set(TERMINAL) <= recorded.keys():
        (HERE / "terminal.cast").write_text(cast(recorded), "utf-8")
    (HERE / "terminal.svg").write_text(terminal(), "utf-8")


def run(line: str, folder: Path) -> list[tuple[float, str]]:
    """Run a command; return its lines without those of progress, each with its time in seconds."""
    began = time.monotonic()
    process = subprocess.Popen(
        line.replace("inheritune", f"{sys.executable} -m inheritune", 1),
        shell=True,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = [(round(time.monotonic() - began, 2), text.rstrip()) for text in process.stdout]
    if process.wait() not in (0, 6):
        raise SystemExit(f"{line} ended with {process.returncode}:\n{lines}")
    lines = [(at, text) for at, text in lines if not _PROGRESS.match(text)]
    while lines and not lines[0][1]:
        del lines[0]
    while lines and not lines[-1][1]:
        del lines[-1]
    return [*lines[:_MAX_LINES], (lines[_MAX_LINES][0], "...")] if lines[_MAX_LINES:] else lines


def _environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "84", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def cast(recorded: dict[str, list[tuple[float, str]]]) -> str:
    """Write what was recorded as a recording of asciinema, version 2."""
    height = sum(len(recorded[name]) + 1 for name in TERMINAL)
    rows: list[object] = [{"version": 2, "width": _WIDTH, "height": height, "title": "inheritune"}]
    now = 0.0
    for name in TERMINAL:
        rows.append([round(now, 2), "o", f"$ {EXAMPLES[name]}\r\n"])
        rows += [[round(now + at, 2), "o", f"{line}\r\n"] for at, line in recorded[name]]
        now += recorded[name][-1][0] + _TYPING_S
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def terminal() -> str:
    """Draw the recording as an SVG that loads nothing; its lines appear as they were printed."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    recording = (HERE / "terminal.cast").read_text("utf-8").splitlines()
    console = Console(record=True, width=_WIDTH, file=io.StringIO(), force_terminal=True)
    times, now, before = [], 0.0, 0.0
    for at, _, line in map(json.loads, recording[1:]):
        now, before = now + min(at - before, _IDLE_S), at
        text = Text(line.rstrip())
        if line.startswith("$ "):
            text.stylize("bold")
            text.stylize("green", 0, 1)
        rows = text.wrap(console, _WIDTH)
        console.print(text)
        times += [now] * len(rows)
    svg = console.export_svg(title="inheritune", theme=MONOKAI, unique_id="terminal")
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("</style>", f"{_animation(times)}    </style>", 1)


def _animation(times: list[float]) -> str:
    """Write rules by which each line appears at its time; three times, then all of them stay."""
    length = times[-1] + _HOLD_S
    rules = ["    @media (prefers-reduced-motion: no-preference) {"]
    for row, at in enumerate(times):
        share = 100 * at / length
        rules.append(
            f"    @keyframes line-{row} {{ 0%, {share:.2f}% {{ opacity: 0 }} "
            f"{share + 0.01:.2f}%, 100% {{ opacity: 1 }} }}\n"
            f'    text[clip-path="url(#terminal-line-{row})"] '
            f"{{ animation: line-{row} {length:.1f}s 3 both }}"
        )
    return "\n".join([*rules, "    }\n"])


if __name__ == "__main__":
    main()
