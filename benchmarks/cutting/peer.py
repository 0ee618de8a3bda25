"""mergekit in an environment of its own: its pins are not ours."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

MERGEKIT = "0.1.5"


def install(venv: Path) -> str | None:
    """Make the environment unless it is there.

    The torch and transformers of this environment where mergekit accepts them, else its own choice.

    Returns:
        None, or why there is no mergekit.
    """
    if not (venv / "bin" / "python").exists():
        made = subprocess.run(
            [sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False
        )
        if made.returncode:
            return _last_line(made.stdout + made.stderr)
    if _mergekit(venv):
        return None
    same = [f"{name}=={version(name)}" for name in ("torch", "transformers")]
    for others in (same, []):
        wanted = [f"mergekit=={MERGEKIT}", *others]
        command = [str(venv / "bin" / "python"), "-m", "pip", "install", "-q", *wanted]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0 and _mergekit(venv):
            return None
    return _last_line(done.stderr) or "pip installed something else"


def versions(venv: Path) -> str:
    """What stands in the environment, for the table."""
    code = (
        "import json\nfrom importlib.metadata import version\n"
        "print(json.dumps({n: version(n) for n in ('mergekit', 'torch', 'transformers')}))"
    )
    found = json.loads(subprocess.check_output([venv / "bin" / "python", "-c", code]))
    return ", ".join(f"{name} {number}" for name, number in found.items())


def program(venv: Path) -> Path:
    return venv / "bin" / "mergekit-yaml"


def passthrough(
    venv: Path, reference: Path, layers: int, out: Path, dtype: str
) -> list[str | Path]:
    """The command that keeps the first layers; its recipe is written beside ``out``."""
    recipe = out.with_suffix(".yaml")
    recipe.write_text(
        "merge_method: passthrough\n"
        f"dtype: {dtype}\n"
        "slices:\n"
        "  - sources:\n"
        f"      - model: {json.dumps(str(reference))}\n"
        f"        layer_range: [0, {layers}]\n",
        "utf-8",
    )
    # The generated references have no tokenizer.
    return [program(venv), recipe, out, "--no-copy-tokenizer"]


def _mergekit(venv: Path) -> bool:
    return any(venv.glob(f"lib/python*/site-packages/mergekit-{MERGEKIT}.dist-info"))


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip()[:200] if lines else ""
