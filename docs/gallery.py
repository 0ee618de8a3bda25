"""The gallery: its pages are written by the report's own code from committed records.

`python docs/gallery.py` writes docs/gallery.md and the pages, draws the figures of README and
results.md, and takes a picture of each page with a Chromium that is on the machine. With
`--record RUN NAME` it first takes over the record of a finished run; `about.txt` beside it, a title
and a text, is written by hand.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

from inheritune.reporting.page import RunReport, read_report, write_report
from inheritune.reporting.section import Chart
from inheritune.reporting.size_chart import quality_against_size
from inheritune.reporting.vega import NARROW, png
from inheritune.reporting.verdict import verdict
from inheritune.run_record.measurements import EvaluatedModelRecord

HERE = Path(__file__).parent
RECORDS = HERE / "gallery"  # run.json and metrics.jsonl of each run
PAGES = HERE / "_build" / "pages"  # not committed; Sphinx copies it into the site as it is
PICTURES = HERE / "pictures"
# What the first figure of each is called where a page or the README shows it.
FIGURES = {"demo": "demo", "table4-cpu": "table4-cpu"}
SIZES = "smollm2-sizes"  # what `evaluate --json` said of SmolLM2 at several sizes


def records() -> list[Path]:
    """Directories of the committed runs."""
    return sorted(path.parent for path in RECORDS.glob("*/run.json"))


def keep_record(run: Path, name: str) -> None:
    """Replace the record of the gallery's run ``name`` by that of a run's directory."""
    record = RECORDS / name
    shutil.rmtree(record / "variants", ignore_errors=True)
    for path in [run / "run.json", *run.glob("variants/**/metrics.jsonl")]:
        copy = record / path.relative_to(run)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)


def write_pages() -> None:
    """Write ``_build/pages/runs/NAME/`` for every run."""
    for record in records():
        out = PAGES / "runs" / record.name
        shutil.rmtree(out, ignore_errors=True)
        write_page(record, out)


def write_page(record: Path, out: Path) -> None:
    """Write the report of one run into a directory."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / record.name
        shutil.copytree(record, run)
        write_report(run)
        shutil.copytree(run / "report", out)


def gallery() -> str:
    """Text of docs/gallery.md: what each run found, in the words of its own page."""
    parts = [
        "# Gallery\n\nPages of real runs, as `inheritune report` writes them today from the "
        "records in `docs/gallery`. Each is one file that loads nothing. In a checkout, "
        "`make docs` writes them all to `docs/_build/html/runs`, and this page beside them.\n"
    ]
    for record in records():
        title, text = (record / "about.txt").read_text("utf-8").split("\n", 1)
        page, picture = f"runs/{record.name}/index.html", f"pictures/page-{record.name}"
        parts.append(
            f"#{title}\n\n> {verdict(read_report(record).record)}\n\n"
            f"![First screen of the page]({picture}.png)\n\n"
            f'<a href="{page}">Open the page</a>\n\n{text.strip()}\n'
        )
    return "\n".join(parts)


def loss_chart(record: Path) -> Chart:
    """The chart of validation losses of a run."""
    report: RunReport = read_report(record)
    return next(chart for chart in report.charts if chart.name == "val-loss")


def size_chart() -> Chart:
    """The chart of quality against size."""
    stored = json.loads((RECORDS / f"{SIZES}.json").read_text("utf-8"))["models"]
    chart = quality_against_size([EvaluatedModelRecord.model_validate(row) for row in stored])
    assert chart is not None
    return chart


def draw_figures() -> None:
    """Draw the figures of README and results.md, light and dark."""
    specs = {name: loss_chart(RECORDS / record).spec for record, name in FIGURES.items()}
    for name, spec in (specs | {SIZES: size_chart().spec}).items():
        for theme in ("light", "dark"):
            ending = "" if theme == "light" else "-dark"
            (HERE / f"{name}{ending}.png").write_bytes(png(spec, theme, NARROW))


def take_pictures() -> None:
    """Take a picture of the first screen of each page."""
    from playwright.sync_api import sync_playwright

    PICTURES.mkdir(exist_ok=True)
    program = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        for record in records():
            tab = browser.new_page(viewport={"width": 1200, "height": 900})
            tab.goto((PAGES / "runs" / record.name / "index.html").as_uri(), timeout=120_000)
            tab.screenshot(path=PICTURES / f"page-{record.name}.png")
            tab.close()
        browser.close()


def main() -> None:
    """Write everything, with a new record where the command line names one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", nargs=2, metavar=("RUN", "NAME"))
    record = parser.parse_args().record
    if record:
        keep_record(Path(record[0]), record[1])
    (HERE / "gallery.md").write_text(gallery(), "utf-8")
    write_pages()
    draw_figures()
    take_pictures()


if __name__ == "__main__":
    main()
