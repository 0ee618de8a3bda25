"""Environments of their own for programs whose pins are not ours."""

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path


def install(venv: Path, name: str, number: str, same: Sequence[str]) -> str | None:
    """Make an environment with one version of a program, unless it is there.

    Args:
        venv: Its directory.
        name: The program's on the package index.
        number: Its version.
        same: Packages to take in the versions of this environment, where the program accepts
            them; else it gets its own choice.

    Returns:
        None, or why the program is not there.
    """
    if not (venv / "bin" / "python").exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False
        )
        if made.returncode:
            return _last_line(made.stdout + made.stderr)
    if _is_there(venv, name, number):
        return None
    ours = [f"{other}=={version(other)}" for other in same]
    for others in (ours, []):
        wanted = [f"{name}=={number}", *others]
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and _is_there(venv, name, number):
            return None
    return _last_line(done.stderr) or "pip installed something else"


def versions(venv: Path, names: Sequence[str]) -> str:
    """What stands in an environment, for the table."""
    code = (
        "import json, sys\nfrom importlib.metadata import version\n"
        "print(json.dumps({n: version(n) for n in sys.argv[1:]}))"
    )
    found = json.loads(subprocess.check_output([venv / "bin" / "python", "-c", code, *names]))
    return ", ".join(f"{name} {number}" for name, number in found.items())


def _is_there(venv: Path, name: str, number: str) -> bool:
    return any(venv.glob(f"lib/python*/site-packages/{name}-{number}.dist-info"))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""
