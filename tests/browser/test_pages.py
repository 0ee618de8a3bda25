"""Pages of a tiny real run in a real browser: drawn, silent, at home, readable on a phone."""

import html
import json
import re
import shutil
import threading
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from inheritune.reporting.comparison import write_comparison
from inheritune.reporting.live_server import Latest, live_page, open_server
from inheritune.reporting.page import write_report
from inheritune.run_directory import Run

pytestmark = [pytest.mark.drawn, pytest.mark.slow]

WAIT_MS = 120_000  # nothing is measured; a busy machine only takes longer
GALLERY = Path(__file__).parents[2] / "docs" / "gallery"
CHARTS = ("val-loss", "training-loss", "speed")


class Seen:
    """What a page said and asked for while it was open."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []

    def elsewhere(self, home: str = "") -> list[str]:
        """Addresses asked for that are neither in the page nor of its own server."""
        own = {"data", "blob", "file"}
        return [
            a
            for a in self.asked
            if urlsplit(a).scheme not in own and not (home and a.startswith(home))
        ]


@contextmanager
def opened(
    browser: Any, url: str, width: int = 1280, height: int = 900, scheme: str = "light"
) -> Iterator[tuple[Any, Seen]]:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page, seen = context.new_page(), Seen()
    page.set_default_timeout(WAIT_MS)
    page.on("console", lambda message: seen.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: seen.said.append(f"error: {error}"))
    page.on("request", lambda request: seen.asked.append(request.url))
    page.goto(url, timeout=WAIT_MS)
    page.wait_for_selector("html[data-charts=done]")
    # A chart in a fold is drawn when the fold is opened.
    page.evaluate("document.querySelectorAll('.fold > details').forEach((one) => one.open = true)")
    page.wait_for_function(
        "[...document.querySelectorAll('.chart')].every((one) => one.querySelector('svg'))"
    )
    try:
        yield page, seen
    finally:
        context.close()


def shoot(page: Any, shots: Path, name: str) -> None:
    """Pictures of the first screen, of each loss chart and of the cost."""
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=shots / f"{name}-top.png")
    page.locator("figure:has(#val-loss), figure:has(#compared)").first.screenshot(
        path=shots / f"{name}-losses.png"
    )
    cost = page.locator("section[aria-labelledby=cost]")
    if cost.count():
        cost.screenshot(path=shots / f"{name}-cost.png")


def lines_of(page: Any, chart: str) -> int:
    return int(page.locator(f"#{chart} svg .mark-line path[d]").count())


@pytest.fixture(scope="module")
def report(run: Path) -> str:
    return (run / "report" / "index.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_is_drawn_silent_and_at_home(
    browser: Any, report: str, shots: Path, width: int, scheme: str
) -> None:
    with opened(browser, report, width, 844, scheme) as (page, seen):
        for chart in CHARTS:
            assert page.locator(f"#{chart} svg").count() == 1
            assert lines_of(page, chart) >= 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        bright = sum(int(part) for part in paper[4:-1].split(",")[:3]) > 384
        assert bright == (scheme == "light")
        smallest = page.evaluate(
            "Math.min(...[...document.querySelectorAll('main p, main td, main dd, main li')]"
            ".map((one) => parseFloat(getComputedStyle(one).fontSize)))"
        )
        assert smallest >= 12
        shoot(page, shots, f"report-{width}-{scheme}")
        assert seen.said == []
        assert seen.elsewhere() == []


def test_the_first_screen_says_whether_it_matched_and_what_it_cost(
    browser: Any, report: str
) -> None:
    with opened(browser, report) as (page, _):
        for words in ("h1", ".verdict", ".facts", ".checks", ".use"):
            box = page.locator(words).first.bounding_box()
            assert box and box["y"] + box["height"] <= 900
        assert "atched" in page.inner_text("h1")
        assert "Cost" in page.inner_text(".facts")


def test_axes_lines_and_raw_values_can_be_chosen(browser: Any, report: str) -> None:
    with opened(browser, report) as (page, seen):
        figure = page.locator("figure:has(#training-loss)")
        assert "training tokens" in figure.locator("svg.marks").text_content()
        labels = figure.locator(".axis label").all_inner_texts()
        assert labels[:3] == ["tokens", "steps", "FLOPs"]
        titles = ("optimizer steps", "training FLOPs", f"training time ({labels[3]})")
        for label, title in zip(labels[1:], titles, strict=True):
            figure.locator(".axis label", has_text=label).click()
            figure.locator("svg.marks", has_text=title).wait_for()
        everything = lines_of(page, "training-loss")
        figure.get_by_role("checkbox", name="single steps").uncheck()
        page.wait_for_function(
            "n => document.querySelectorAll('#training-loss svg .mark-line path[d]').length < n",
            arg=everything,
        )
        smooth = lines_of(page, "training-loss")
        figure.get_by_role("checkbox", name="scratch").uncheck()
        page.wait_for_function(
            "n => document.querySelectorAll('#training-loss svg .mark-line path[d]').length < n",
            arg=smooth,
        )
        figure.get_by_role("checkbox", name="scratch").focus()
        page.keyboard.press("Space")  # without a mouse, too
        page.wait_for_function(
            "n => document.querySelectorAll('#training-loss svg .mark-line path[d]').length == n",
            arg=smooth,
        )
        assert seen.said == []


def test_the_values_of_all_lines_stand_at_the_pointer(browser: Any, report: str) -> None:
    with opened(browser, report) as (page, seen):
        chart = page.locator("#val-loss")
        chart.scroll_into_view_if_needed()
        box = page.locator("#val-loss svg .background").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        tip = chart.locator(".tip")
        tip.wait_for(state="visible")
        told = tip.inner_text()
        assert "inherit (target)" in told and "scratch" in told and "tokens" in told
        assert re.search(r"\d\.\d{3} at \d", told)  # as the page writes a loss
        right = tip.bounding_box()
        assert right["x"] + right["width"] <= 1280
        page.mouse.move(0, 0)
        tip.wait_for(state="hidden")
        assert seen.said == []


def test_an_axis_fits_the_lines_that_are_shown(browser: Any, report: str) -> None:
    with opened(browser, report) as (page, _):
        figure = page.locator("figure:has(#val-loss)")
        ticks = figure.locator(".mark-text.role-axis-label")
        before = ticks.all_inner_texts()
        figure.get_by_role("checkbox", name="scratch").uncheck()
        page.wait_for_function(
            "before => [...document.querySelectorAll('#val-loss .mark-text.role-axis-label')]"
            ".map((one) => one.textContent).join() !== before.join()",
            arg=before,
        )
        names = figure.locator("svg.marks").text_content()
        assert "scratch" not in names and "inherit (target)" in names


def test_the_report_prints_with_still_images_and_open_folds(
    browser: Any, report: str, shots: Path
) -> None:
    with opened(browser, report) as (page, _):
        page.evaluate("document.querySelectorAll('details').forEach((one) => one.open = false)")
        page.emulate_media(media="print")
        stills = page.locator("img.still")
        assert stills.count() >= 4
        assert all(still.is_visible() for still in stills.all())
        assert not page.locator("#val-loss").is_visible()
        assert not page.locator(".controls").first.is_visible()
        assert page.get_by_text("The resolved recipe").count() == 1
        assert page.locator("#recipe table").is_visible()
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 within its margins
        broken = (
            "[...document.querySelectorAll('.scroll td.n, .scroll td.short')].flatMap((cell) =>"
            " [...cell.innerText.matchAll(/[^\\s-]+/g)].filter((word) => {"
            " const range = document.createRange(); range.setStart(cell.firstChild, word.index);"
            " range.setEnd(cell.firstChild, word.index + word[0].length);"
            " return new Set([...range.getClientRects()].map(({ top }) => top)).size > 1; })"
            ".map(([word]) => word))"
        )
        assert page.evaluate(broken) == []  # no figure goes on in the next line
        page.pdf(path=shots / "report.pdf")


def test_no_name_in_an_exported_figure_is_cut_by_its_edge(browser: Any, tmp_path: Path) -> None:
    """A reader's fonts are not those it was drawn with."""
    for name in ("demo", "table4-cpu"):
        shutil.copytree(GALLERY / name, tmp_path / name)
        write_report(tmp_path / name)
    page = browser.new_page()
    for figure in sorted(tmp_path.glob("*/report/figures/*.svg")):
        page.goto(figure.as_uri(), timeout=WAIT_MS)
        cut = page.evaluate(
            "[...document.querySelectorAll('text')].filter((one) => one.textContent"
            " && (one.getBoundingClientRect().left < 0 || one.getBoundingClientRect().right"
            " > document.documentElement.width.baseVal.value)).map((one) => one.textContent)"
        )
        assert cut == [], figure.name
    page.close()


def test_every_word_of_every_figure_is_on_paper(browser: Any, tmp_path: Path) -> None:
    """Printed pages hold the charts of the page, whole, and nothing beside the sheet."""
    pypdf = pytest.importorskip("pypdf", reason="pypdf is not installed: pip install -e '.[dev]'")
    for name in ("demo", "table4-cpu"):
        shutil.copytree(GALLERY / name, tmp_path / name)
        page = browser.new_page()
        page.goto(write_report(tmp_path / name).as_uri(), timeout=WAIT_MS)
        page.wait_for_selector("html[data-charts=done]", timeout=WAIT_MS)
        page.pdf(path=tmp_path / f"{name}.pdf")
        page.close()
        words, beside = words_on_paper(pypdf.PdfReader(tmp_path / f"{name}.pdf"))
        assert beside == []
        for figure in sorted((tmp_path / name / "report" / "figures").glob("*.svg")):
            texts = re.findall(r"<text[^>]*>([^<]+)</text>", figure.read_text())
            assert len(texts) > 8, figure.name
            assert {w for text in texts for w in html.unescape(text).split()} <= words, figure.name


def words_on_paper(document: Any) -> tuple[set[str], list[str]]:
    """All words of a PDF, and the texts that begin beside the sheet."""
    words: set[str] = set()
    beside: list[str] = []
    for sheet in document.pages:

        def look(text: str, cm: list[float], tm: list[float], *_: Any, sheet: Any = sheet) -> None:
            x = cm[0] * tm[4] + cm[2] * tm[5] + cm[4]
            y = cm[1] * tm[4] + cm[3] * tm[5] + cm[5]
            if text.strip() and not (
                0 <= x <= sheet.mediabox.width and 0 <= y <= sheet.mediabox.height
            ):
                beside.append(text)

        text = sheet.extract_text(visitor_text=look)
        words.update(unicodedata.normalize("NFKC", text).split())  # without ligatures
    return words, beside


def test_several_runs_stand_side_by_side(
    browser: Any, run: Path, tmp_path: Path, shots: Path
) -> None:
    second = tmp_path / "broken"
    shutil.copytree(
        run / "variants", second / "variants", ignore=lambda *_: ["model", "checkpoints"]
    )
    (second / "run.json").write_text("{")
    missed = tmp_path / "tiny"
    shutil.copytree(run, missed, ignore=lambda *_: ["model", "checkpoints"])
    record = json.loads((run / "run.json").read_text())
    record["result"]["outcome"] = "not_matched"
    (missed / "run.json").write_text(json.dumps(record))
    write_comparison([missed, second], tmp_path / "index.html")
    for width in (1280, 390):
        with opened(browser, (tmp_path / "index.html").as_uri(), width) as (page, seen):
            assert page.locator(".runs article").count() == 2
            assert "is not JSON" in page.inner_text(".runs")
            assert lines_of(page, "compared") >= 4
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shoot(page, shots, f"comparison-{width}")
            filtered = page.locator("#filter")
            filtered.fill("tiny")
            page.locator(".runs article:visible").nth(1).wait_for(state="detached")
            assert page.locator("tbody tr[data-run]:visible").count() == 1
            assert page.locator("#compared svg", has_text="broken: ").count() == 0
            assert page.locator(".lines label:visible", has_text="broken: ").count() == 0
            assert not page.locator("#nothing").is_visible()
            filtered.fill("matched")  # the one run that ended is "not matched"
            page.locator("#nothing").wait_for()
            filtered.fill("not m")
            page.locator("#nothing").wait_for(state="hidden")
            assert page.locator(".runs article:visible").count() == 1
            filtered.fill("no such run")
            page.locator("#nothing").wait_for()
            assert not page.locator("figure:has(#compared)").is_visible()
            filtered.fill("")
            page.locator(".lines label:visible", has_text="broken: ").first.wait_for()
            assert seen.said == [] and seen.elsewhere() == []


def test_watch_follows_the_run_without_a_reload(
    browser: Any, run: Path, tmp_path: Path, shots: Path
) -> None:
    going_on = tmp_path / "tiny"
    shutil.copytree(run, going_on, ignore=lambda *_: ["model", "checkpoints", "report", "target"])
    metrics = sorted(going_on.glob("variants/inherit/*/metrics.jsonl"))[0]
    rows = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(rows[:8]))
    record = '{"format": 1, "name": "tiny", "status": "running"}'
    (going_on / "run.json").write_text(record)
    # Locked, as by the process that works on it: else the page says that nobody does.
    with (
        Run(going_on).lock(),
        open_server(0, Latest(going_on, live_page).current) as server,
    ):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        with opened(browser, server.url) as (page, seen):
            page.evaluate("window.notReloaded = true")
            page.locator("figure:has(#training-loss) .axis label", has_text="steps").click()
            page.locator("#training-loss-data > summary").click()
            with metrics.open("a") as file:
                file.writelines(rows[8:15])
            step = rows[14].split('"step": ')[1].split(",")[0]
            page.locator(".progress", has_text=f"step {step},").first.wait_for()
            page.locator("#training-loss svg.marks", has_text="optimizer steps").wait_for()
            assert page.evaluate("window.notReloaded")
            assert page.locator("#training-loss-data").get_attribute("open") is not None
            page.screenshot(path=shots / "watch-top.png")
            page.reload()  # all state is on disk
            page.locator(".progress", has_text=f"step {step},").first.wait_for()
            assert seen.said == []
            assert seen.elsewhere(server.url) == []
            server.shutdown()
            server.server_close()
            page.locator("#live.lost").wait_for()
