"""Run the examples of docs/reference/commands.md and keep what they print; record a terminal.

`python docs/examples.py` runs them all, one after the other, in a new directory; with names of
commands it runs only these, in the directory of `--in`. Then it draws docs/terminal.svg from them;
`--terminal` does only that. Figures of time and speed are those of the machine that it ran on.
"""

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
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
    for name in options.names or ([] if options.terminal else EXAMPLES):
        if name in BEFORE:
            subprocess.run(BEFORE[name], cwd=folder, check=True, env=_environment())
        text = run(EXAMPLES[name], folder)
        (OUTPUTS / f"{name}.txt").write_text(f"$ {EXAMPLES[name]}\n{text}", "utf-8")
    (HERE / "terminal.svg").write_text(terminal(), "utf-8")


def run(line: str, folder: Path) -> str:
    """Run a command and return what it prints, without lines of progress."""
    done = subprocess.run(
        line.replace("inheritune", f"{sys.executable} -m inheritune", 1),
        shell=True,
        cwd=folder,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode not in (0, 6):
        raise SystemExit(f"{line} ended with {done.returncode}:\n{done.stdout}")
    lines = [text.rstrip() for text in _PROGRESS.sub("", done.stdout).splitlines()]
    if len(lines) > _MAX_LINES:
        lines = [*lines[:_MAX_LINES], "..."]
    return "\n".join(lines).strip("\n") + "\n"


def _environment() -> dict[str, str]:
    return os.environ | {"COLUMNS": "84", "HF_HUB_OFFLINE": "1"}


def terminal() -> str:
    """Draw three of the kept examples as a terminal, an SVG that loads nothing."""
    from rich.console import Console
    from rich.terminal_theme import MONOKAI
    from rich.text import Text

    console = Console(record=True, width=88, file=io.StringIO(), force_terminal=True)
    for name in TERMINAL:
        command, _, output = (OUTPUTS / f"{name}.txt").read_text("utf-8").partition("\n")
        console.print(Text.assemble(("$ ", "bold green"), (command.removeprefix("$ "), "bold")))
        console.print(Text(output))
    svg = console.export_svg(title="inheritune", theme=MONOKAI, unique_id="terminal")
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)


if __name__ == "__main__":
    main()
