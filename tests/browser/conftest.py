"""A browser, where there is one; and what it is shown."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_AT_HOME = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
RECIPE = """
name: tiny
reference: {{model: "{reference}"}}
data: {{source: "{text}", val_fraction: 0.2}}
train:
  tokens: 2560
  seq_len: 16
  batch_tokens: 128
  micro_batch: 8
  learning_rate: 1.0e-3
  min_learning_rate: 1.0e-4
  eval_every: 512
grow: {{add: 1, max_rounds: 2}}
report: {{prompts: ["the small"], sample_tokens: 4}}
"""


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright; nothing is downloaded."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on PATH: pages are not opened in a browser")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: pip install -e '.[dev]'"
    )
    with playwright.sync_playwright() as driver:
        flags = ["--no-sandbox", "--disable-gpu", _AT_HOME]
        opened = driver.chromium.launch(executable_path=program, args=flags)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def shots() -> Path:
    """Where pictures of the pages are kept, for people to look at; git ignores it."""
    folder = Path(os.environ.get("INHERITUNE_SHOTS") or ROOT / "build" / "browser")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def run(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny real run, done."""
    from inheritune.recipe.load import read_recipe
    from inheritune.run.execute import execute

    work = tmp_path_factory.mktemp("browser")
    recipe = work / "recipe.yaml"
    recipe.write_text(RECIPE.format(reference=tiny_reference, text=tiny_text))
    execute(read_recipe(recipe, []), work / "runs" / "tiny")
    return work / "runs" / "tiny"
