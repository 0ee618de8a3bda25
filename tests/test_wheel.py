"""The built wheel works outside the checkout: recipes, templates and a model are inside."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

CHECKOUT = Path(__file__).parents[1]
SMALL = [
    "--set=data.tokens=200K",
    "--set=train.tokens=16K",
    "--set=train.warmup_tokens=4K",
    "--set=data.val_fraction=0.004",
    "--set=inherit.repair_tokens=512",
    "--set=report.sample_tokens=4",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout; its build backend comes from the package index."""
    out = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(CHECKOUT)]
    constraints = {"PIP_CONSTRAINT": str(CHECKOUT / "constraints.txt")}
    subprocess.run([sys.executable, *build], check=True, env=os.environ | constraints)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the wheel; its dependencies are those here."""
    root = tmp_path_factory.mktemp("environment")
    venv.create(root, with_pip=True)
    executable = root / "bin" / "python"
    (site,) = root.glob("lib/python*/site-packages")
    # Without the files that end in .pth there, so that the checkout is not importable.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([executable, *install], check=True)
    return executable


def run(python: Path, directory: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a directory, without the paths of this process."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [python, *args]
    return subprocess.run(
        command, cwd=directory, env=env, capture_output=True, text=True, timeout=600
    )


@pytest.mark.recipes
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    files = subprocess.run(
        ["git", "ls-files", "src/inheritune", "recipes"],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    inside = {name.removeprefix("src/") for name in files if name.startswith("src/")}
    inside |= {f"inheritune/{name}" for name in files if name.startswith("recipes/")}
    assert inside <= set(zipfile.ZipFile(wheel).namelist())


@pytest.mark.recipes
def test_the_recipes_of_an_installed_wheel_name_a_schema_that_is_there(
    python: Path, tmp_path: Path
) -> None:
    first = run(python, tmp_path, "-m", "inheritune", "init").stdout.partition("\n")[0]
    schema = Path(unquote(urlsplit(first.partition("$schema=")[2]).path))
    assert schema.is_relative_to(python.parents[1])
    assert json.loads(schema.read_text())["title"] == "Recipe"


@pytest.mark.recipes
def test_the_demo_of_an_installed_wheel_ends_with_a_result(python: Path, tmp_path: Path) -> None:
    program = "import inheritune; print(inheritune.__file__)"
    assert Path(run(python, tmp_path, "-c", program).stdout).is_relative_to(python.parents[1])
    done = run(python, tmp_path, "-m", "inheritune", "demo", "--json", *SMALL)
    assert done.returncode in (0, 6), done.stderr
    result = json.loads(done.stdout)
    directory = tmp_path / "runs" / "demo"
    assert (directory / "report" / "index.html").is_file()
    assert result == json.loads((directory / "run.json").read_text())["result"]
