"""The page opened by a real browser: charts drawn, no console error, nothing requested."""

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from inheritune.reporting.page import write_report

_BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = [
    pytest.mark.drawn,
    pytest.mark.skipif(
        _BROWSER is None, reason="no Chromium on PATH: the page is not opened in a browser"
    ),
]

_HOSTILE = "<script>document.title='PWNED'</script><img src=x onerror=\"document.title='PWNED'\">"


class Opened:
    """What a browser made of a page: its document, its log, the addresses it asked for."""

    def __init__(self, page: Path, work: Path) -> None:
        network = work / "network.json"
        done = subprocess.run(
            [
                str(_BROWSER),
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                "--host-resolver-rules=MAP * ~NOTFOUND",
                "--window-size=1280,900",
                f"--user-data-dir={work / 'profile'}",
                f"--log-net-log={network}",
                "--enable-logging=stderr",
                "--virtual-time-budget=20000",
                "--dump-dom",
                page.as_uri(),
            ],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        self.document = done.stdout
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        log = network.read_text(errors="replace") if network.exists() else "{}"
        # The browser asks for things of its own; what a page asks for has an origin.
        self.requested = re.findall(
            r'"initiator":"(?!not an origin)[^"]*".*?"url":"((?:https?|wss?):[^"]*)"', log
        )

    def chart(self, name: str) -> str:
        start = self.document.index(f'id="{name}"')
        return self.document[start : self.document.index("</figure>", start)]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, synthetic: ModuleType) -> Opened:
    work = tmp_path_factory.mktemp("browser")
    content = synthetic.record(name=_HOSTILE, notes=[_HOSTILE])
    content["samples"][0]["text"] = _HOSTILE
    content["variants"][2]["name"] = _HOSTILE
    return Opened(write_report(synthetic.build_run(work, content)), work)


def test_a_chart_is_drawn_unless_it_is_folded_away(opened: Opened) -> None:
    drawn = opened.chart("val-loss")
    assert "<svg" in drawn and "inherit (target)" in drawn
    assert "<svg" not in opened.chart("val-loss-log")  # drawn when its fold is opened
    assert 'data-charts="done"' in opened.document


def test_charts_can_be_saved_and_nothing_else(opened: Opened) -> None:
    assert opened.document.count("Save as SVG") >= 1
    assert "Open in Vega Editor" not in _markup(opened.document)


def test_console_stays_silent(opened: Opened) -> None:
    assert opened.console == []


def test_no_address_is_requested(opened: Opened) -> None:
    assert opened.requested == []


def test_a_page_that_asks_for_something_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png">')
    assert Opened(page, tmp_path).requested == ["http://127.0.0.1:9/x.png"]


def test_hostile_texts_do_nothing(opened: Opened) -> None:
    title = re.search(r"<title>(.*?)</title>", opened.document, re.S)
    assert title and title[1].startswith("Matched")  # and not what a script made of it
    assert opened.document.count("<title>") == 1
    assert "<img src=x" not in _markup(opened.document)


def _markup(document: str) -> str:
    """The document without its scripts, whose text holds every word of the library."""
    return re.sub(r"<script.*?</script>", "", document, flags=re.S)
