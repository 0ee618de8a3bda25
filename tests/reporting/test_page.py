"""The page: right numbers, nothing that runs or loads, and an answer for every broken run."""

import base64
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import vl_convert

from inheritune.errors import DataError
from inheritune.reporting.comparison import write_comparison
from inheritune.reporting.embed import as_data_script, presentable, shortened
from inheritune.reporting.page import page_content, page_title, read_report, write_report
from inheritune.reporting.quantities import exact
from inheritune.reporting.section import PageSection
from inheritune.reporting.styles import OTHERS, TARGET
from inheritune.reporting.table import Column, Table
from inheritune.run_record.record import RunRecord

_HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</style><style>*{display:none}",
    "{{ 7*7 }}{% raw %}${7*7}",
    "javascript:alert(1)",
    "\u2028\u2029\x00\ud800",
]
_FOLDED = [
    "Compute beside published runs",
    "Training curves",
    "Speed of training",
    "Health",
    "Provenance",
]
_SCRIPT = re.compile(r"<script([^>]*)>(.*?)</script>", re.S)


@pytest.fixture(autouse=True, scope="module")
def _no_pngs() -> Iterator[None]:
    """Pages hold the charts as SVG; the files beside them take three times as long to draw."""
    with pytest.MonkeyPatch.context() as patched:
        if not os.environ.get("DRAW_ALL"):
            patched.setattr(vl_convert, "vegalite_to_png", lambda **drawing: b"")
        yield


@pytest.fixture(scope="module")
def page(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(synthetic.build_run(tmp_path_factory.mktemp("page")))


def _markup(page: Path) -> str:
    return _SCRIPT.sub("", page.read_text(encoding="utf-8"))


def _data(page: Path, name: str) -> Any:
    found = re.search(rf'id="{name}">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found
    return json.loads(found[1])


@pytest.mark.drawn
def test_first_screen_answers_match_gain_trust_use_and_cost(page: Path) -> None:
    header = unescape(re.sub(r"<[^>]+>", " ", _markup(page).split("</header>")[0]))
    said = " ".join(header.split())
    for words in (
        "✓ Matched The target with 6 of 8 layers reaches a validation loss of 2.093",
        "Gained 26% smaller",
        "✕ Seeds one seed",
        "✕ Reference not trained on the target's tokens, which may explain a gain",
        "✕ Held-out text 200 validation windows: the difference lies within its noise",
        'path = "runs/demo/target" tokenizer = AutoTokenizer.from_pretrained(path)',
        "inheritune push runs/demo --repo-id OWNER/NAME",
        "Cost 2M tokens all 2 rounds, 2 min 25 s",
        "6.7% of the reference's tokens 4.2% of the reference's FLOPs",
    ):
        assert words in said


def test_a_scaled_run_says_on_the_first_screen_that_it_is_no_result(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run = synthetic.build_run(tmp_path, synthetic.record(scaled="Scaled by 1e-8: no result."))
    shutil.rmtree(run / "variants")  # without charts: quick
    header = _markup(write_report(run)).split("</header>")[0]
    assert '<p class="caution">Scaled by 1e-8: no result.</p>' in header


@pytest.mark.drawn
def test_run_json_is_embedded_as_it_was(page: Path, synthetic: ModuleType) -> None:
    assert _data(page, "run-json") == synthetic.record()


@pytest.mark.drawn
def test_chart_data_is_what_was_measured(page: Path) -> None:
    specs = _data(page, "chart-data")["specs"]
    written = json.dumps(specs["val-loss"])
    for value in (2.0931, 2.2131, 2.9148, 2.6214, 2.1004):
        assert str(value) in written
    assert list(specs) == ["val-loss", "val-loss-log", "training-loss", "speed"]


@pytest.mark.drawn
def test_tables_and_figures_stand_beside_the_page(page: Path) -> None:
    written = sorted(p.relative_to(page.parent).as_posix() for p in page.parent.rglob("*.*"))
    charts = ("speed", "training-loss", "val-loss-log", "val-loss")
    names = ("curves", "health", "ledger", "rounds", "speed-and-memory", "table1_compute")
    names += ("tokens-to-reach", "variants")
    figures = [f"figures/{name}.{end}" for name in charts for end in ("png", "svg")]
    tables = [f"tables/{name}.{end}" for name in names for end in ("csv", "md", "tex")]
    assert written == sorted([*figures, "index.html", *tables])


@pytest.mark.drawn
def test_the_sections_stand_in_the_order_of_the_questions(page: Path) -> None:
    titles = re.findall(r"<h2[^>]*>([^<]+)</h2>", _markup(page))
    assert titles[:2] == ["Can it be trusted?", "Use it"]
    assert titles[2:] == ["Results", "Cost", "Text", "Samples", *_FOLDED]
    folded = re.findall(r"<details[^>]*><summary><h2[^>]*>([^<]+)</h2></summary>", _markup(page))
    assert folded == _FOLDED


@pytest.mark.drawn
def test_the_list_of_sections_names_each_of_them(page: Path) -> None:
    nav = _markup(page).split("<nav")[1].split("</nav>")[0]
    linked = re.findall(r'href="#([^"]+)"', nav)
    assert linked == re.findall(r'<h2 id="([^"]+)"', _markup(page))


def test_a_part_of_the_run_may_supply_a_section(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("lazy-layers", [Column("layer"), Column("rank", show=exact)], [["<b>", 3]])

    def supply(record: RunRecord) -> PageSection | None:
        return PageSection("lazy", "Attention", ["Two layers are lazy."], [], [table])

    monkeypatch.setattr("inheritune.reporting.page._SECTIONS", (supply, lambda record: None))
    run = synthetic.build_run(tmp_path)
    shutil.rmtree(run / "variants")  # without charts: quick
    written = _markup(write_report(run))
    assert re.search(r'<h2 id="lazy">Attention</h2>\n<p>Two layers are lazy\.</p>', written)
    assert "&lt;b&gt;" in written
    assert (run / "report/tables/lazy-layers.csv").read_text() == "layer,rank\n<b>,3\n"


@pytest.mark.drawn
def test_policy_allows_exactly_the_scripts_that_stand_in_the_page(page: Path) -> None:
    written = page.read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', written)
    assert policy
    rules = unescape(policy[1])
    assert rules.startswith("default-src 'none'; script-src 'sha256-")
    hashes = {
        "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
        for kind, text in _SCRIPT.findall(written)
        if "json" not in kind
    }
    assert set(re.findall(r"'sha256-[^']+'", rules)) == hashes
    assert "unsafe-eval" not in rules
    assert "script-src" in rules and "'unsafe-inline'" not in rules.split(";")[1]


@pytest.mark.drawn
def test_page_loads_nothing(page: Path) -> None:
    loads = re.findall(r"""(?:src|href|action|srcset)\s*=\s*["']?([^"'\s>]+)""", _markup(page))
    assert all(address.startswith(("data:", "#")) for address in loads)
    assert "url(" not in _markup(page)
    assert "@import" not in _markup(page)


@pytest.mark.drawn
def test_page_stays_below_its_size(page: Path) -> None:
    assert page.stat().st_size < 1_500_000


@pytest.mark.drawn
@pytest.mark.parametrize("name", ["demo", "table4-cpu"])
def test_a_page_of_the_gallery_prints_every_chart(tmp_path: Path, name: str) -> None:
    """A chart is printed as the still picture beside it."""
    record = Path(__file__).parents[2] / "docs" / "gallery" / name
    shutil.copytree(record, tmp_path / name)
    markup = _markup(write_report(tmp_path / name))
    charts = re.findall(r'<div class="chart" id="([^"]+)"', markup)
    assert len(charts) > 5
    assert markup.count('<img class="still"') == len(charts)


@pytest.mark.drawn
def test_each_chart_has_a_role_an_alternative_text_and_a_table(page: Path) -> None:
    for figure in re.findall(r"<figure>\n<figcaption>.*?</figure>", _markup(page), re.S):
        assert re.search(r'role="img" aria-label="[^"]{80,}"', figure)
        assert re.search(r'<img class="still"[^>]* alt="[^"]{80,}"', figure)
        assert "<details id=" in figure and "<table>" in figure


@pytest.mark.drawn
def test_page_is_light_dark_and_printable(page: Path) -> None:
    assert "@media (prefers-color-scheme: dark)" in _markup(page)
    assert "@media print" in _markup(page)
    assert 'content="width=device-width' in _markup(page)


@pytest.mark.parametrize("text", _HOSTILE)
def test_hostile_texts_stay_texts(synthetic: ModuleType, tmp_path: Path, text: str) -> None:
    record = _everywhere(synthetic.record(), text)
    run = synthetic.build_run(tmp_path, record)
    shutil.rmtree(run / "variants")  # without charts: quick
    page = write_report(run)
    kinds = [kind for kind, _ in _SCRIPT.findall(page.read_text(encoding="utf-8"))]
    assert kinds == [' type="application/json" id="run-json"']
    # What escaping yields is inert; its plain form would be an element.
    assert not re.search(r"<(img src=x|script>alert|style>\*)", _markup(page))
    assert "49" not in re.findall(r"<title>(.*?)</title>", _markup(page))[0]
    assert _data(page, "run-json")["recipe"]


@pytest.mark.drawn
def test_hostile_texts_stay_texts_in_charts(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record()
    record["variants"][2]["name"] = "".join(_HOSTILE[:6])
    written = write_report(synthetic.build_run(tmp_path, record)).read_text(encoding="utf-8")
    assert len(_SCRIPT.findall(written)) == 4  # two of data, two that run


def test_no_path_of_this_machine_and_no_token_is_shown(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    record = synthetic.record(
        status="failed", error=f"cannot read {tmp_path}/a/b.json: hf_abcdefgh"
    )
    record["reference"]["model"] = str(tmp_path / "model")
    record["result"]["target"] = str(tmp_path / "demo" / "target")
    page = write_report(synthetic.build_run(tmp_path, record))
    assert str(tmp_path) not in page.read_text(encoding="utf-8")
    assert "hf_abcdefgh" not in page.read_text(encoding="utf-8")
    assert _data(page, "run-json")["reference"]["model"] == "…/model"


def test_generated_text_is_shown_as_it_is(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record()
    record["samples"][0]["text"] = "def #!/usr/bin/env python\n    <b>x</b>"
    run = synthetic.build_run(tmp_path, record)
    shutil.rmtree(run / "variants")  # without charts: quick
    page = write_report(run)
    assert "<mark>def </mark>#!/usr/bin/env python\n    &lt;b&gt;x&lt;/b&gt;" in _markup(page)


@pytest.mark.parametrize("content", [None, b"", b'{"name": "de', b"[]", b"\xff", b"[" * 100_000])
def test_a_run_without_a_readable_record_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(DataError, match=r"run\.json") as refused:
        write_report(tmp_path)
    assert refused.value.exit_code == 3
    assert not (tmp_path / "report").exists()


def test_an_empty_record_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    written = _markup(write_report(tmp_path))
    assert "<h1>" in written and "Unfinished" in written
    for sentence in ("The reference loss was not measured.", "No round of the target has ended."):
        assert f"<li>{sentence}</li>" in written
    (tmp_path / "run.json").write_text('{"status": "running"}')
    assert "Not in this run" not in _markup(write_report(tmp_path))  # it is still to come
    assert "script-src 'none'" in unescape(written)


@pytest.mark.parametrize("strange", [None, "x", 3, float("nan"), [], [None, 1, "x"], {}, {"a": {}}])
def test_fields_of_any_kind_give_a_page(
    synthetic: ModuleType, tmp_path: Path, strange: object
) -> None:
    for number, key in enumerate(synthetic.record()):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "run.json").write_text(json.dumps(synthetic.record(**{key: strange})))
        assert "</html>" in write_report(run).read_text(encoding="utf-8")


def test_missing_and_torn_metrics_are_named(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    (run / "variants/scratch/6-layers/metrics.jsonl").unlink()
    (run / "variants/inherit/4-layers/metrics.jsonl").write_text('{"step": 0, "tok')
    written = _markup(write_report(run))
    assert "scratch, 6 layers: metrics.jsonl cannot be read" in written
    assert "inherit, round 1, 4 layers: 1 unreadable lines of metrics.jsonl are ignored" in written


@pytest.mark.drawn
def test_a_huge_run_stays_a_small_page(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record(notes=["x" * 1_000_000] * 20)
    record["samples"][0]["text"] = "y" * 1_000_000
    record["reference"]["curve"] *= 2_000
    extra = [record["variants"][2] | {"name": f"arm-{i}"} for i in range(20)]
    record["variants"] += [arm | {"path": f"variants/{arm['name']}/6-layers"} for arm in extra]
    run = synthetic.build_run(tmp_path, record)
    long = synthetic.metrics(1_000_000, 7.6, 2.2, steps=1000, evals=1000)
    for arm in extra:
        folder = run / "variants" / arm["name"] / "6-layers"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(long)
    assert write_report(run).stat().st_size < 2_500_000


def test_of_a_long_ledger_the_sums_are_shown_and_the_items_folded(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    record = synthetic.record()
    record["ledger"] += [record["ledger"][4] | {"item": f"arm-{n}"} for n in range(20)]
    run = synthetic.build_run(tmp_path, record)
    shutil.rmtree(run / "variants")  # without charts: quick
    cost = _markup(write_report(run)).split('<h2 id="cost">')[1].split("</section>")[0]
    shown, folded = cost.split("<details", 1)
    assert "sum of what was spent here" in shown and "arm-3" not in shown
    assert "each of the 26 items" in folded and "arm-3" in folded


def test_data_scripts_cannot_be_ended_from_inside() -> None:
    written = as_data_script({"x": "</script><!--\u2028"})
    assert "<" not in written and "\u2028" not in written
    assert json.loads(written) == {"x": "</script><!--\u2028"}


def test_only_absolute_paths_are_cut() -> None:
    kept = ["org/model", "https://example.org/a/b", "runs/demo/target", "and/or", "1/2", "*.py"]
    assert presentable(kept) == kept
    cut = {
        "/home/me/x.json": "…/x.json",
        "in /a/b/c, so": "in …/c, so",
        r"C:\Users\me\x": "…/x",
        "file:///home/me/x": "…/x",
        "(/srv/data/*.txt)": "(…/*.txt)",
    }
    assert {text: presentable(text) for text in cut} == cut


def test_shortening_marks_what_it_cuts() -> None:
    assert shortened({"x": list(range(500))})["x"][-1] == "… 500 in all"
    assert shortened("x" * 5000).endswith("… (5000 characters)")
    assert presentable({"x": float("inf")}) == {"x": None}


def _everywhere(value: Any, text: str) -> Any:
    """Put a text into every text of the record, but where it says how to read the rest."""
    if isinstance(value, dict):
        fixed = ("outcome", "start", "status", "path")
        return {k: v if k in fixed else _everywhere(v, text) for k, v in value.items()} | (
            {text: text} if "name" in value else {}
        )
    if isinstance(value, list):
        return [_everywhere(item, text) for item in value]
    return f"{value}{text}" if isinstance(value, str) else value


def test_a_long_text_in_a_cell_may_wrap_and_a_short_one_may_not(
    synthetic: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table("t", [Column("a"), Column("b"), Column("c")], [["x", "y" * 31, "long " * 40]])
    part = PageSection("lazy", "Attention", [], [], [table])
    monkeypatch.setattr("inheritune.reporting.page._SECTIONS", (lambda record: part,))
    run = synthetic.build_run(tmp_path)
    shutil.rmtree(run / "variants")  # without charts: quick
    written = _markup(write_report(run))
    assert f'<td class="line">{"y" * 31}</td>' in written
    assert '<td class="long">long long' in written


def test_of_many_samples_the_first_are_those_of_reference_target_and_scratch(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    names = ("grown", "full", "scratch", "inherit", "reference")
    samples = [{"model": name, "prompt": "Once", "text": f"Once {name}"} for name in names]
    run = synthetic.build_run(tmp_path, synthetic.record(samples=samples))
    shutil.rmtree(run / "variants")  # without charts: quick
    page = _markup(write_report(run))
    shown, _, folded = page[page.index('id="samples"') :].partition("<summary>and 2 more</summary>")
    first = [re.findall("<figcaption>(.*?)</figcaption>", text) for text in (shown, folded)]
    assert first[0] == ["scratch", "inherit", "reference"] and first[1][:2] == ["grown", "full"]


def test_a_comparison_says_which_runs_are_no_results(synthetic: ModuleType, tmp_path: Path) -> None:
    runs = [
        synthetic.build_run(tmp_path / "a"),
        synthetic.build_run(tmp_path / "b", synthetic.record(scaled="Scaled by 1e-8.")),
    ]
    write_comparison(runs, tmp_path / "index.html")
    written = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "1 of the runs was scaled down, and is no result of the method: demo (2)." in written


def test_what_is_back_heads_the_page_in_place_of_a_miss(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    content = synthetic.record()
    content["recipe"]["grow"] = {"add": 0}
    content["result"]["outcome"] = "not_matched"
    content["rounds"][1] |= {"start_val_loss": 4.1004, "val_loss": 2.4004}
    content["result"]["val_loss"] = 2.4004
    report = read_report(synthetic.build_run(tmp_path, content))
    assert page_title(report) == "85% back · demo · inheritune"
    written = str(page_content(report, {}))
    assert '<header class="recovered">' in written
    assert re.search("<h1>.*</span>85% back</h1>", unescape(written), re.S)
    assert "Not matched" not in written


def test_a_comparison_shows_how_close_each_target_is_to_its_reference(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    close = {"kl": 0.125, "top1": 0.75, "overlap": 0.625}
    rounds = [row | {"fidelity": close} for row in synthetic.RECORD["rounds"]]
    made = synthetic.record(name="compared", rounds=rounds)
    runs = [synthetic.build_run(tmp_path / "a", made), synthetic.build_run(tmp_path / "b")]
    write_comparison(runs, tmp_path / "index.html")
    table = (tmp_path / "tables" / "runs.csv").read_text(encoding="utf-8").splitlines()
    header, first, second = (line.split(",") for line in table)
    place = header.index("KL to the reference (nats)")
    assert first[place : place + 3] == ["0.125", "0.75", "0.625"]
    assert second[place : place + 3] == [""] * 3


def test_a_comparison_links_its_runs_and_gives_each_one_mark(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    runs = [synthetic.build_run(tmp_path / "a b"), synthetic.build_run(tmp_path / "c")]
    (runs[0] / "report").mkdir()
    (runs[0] / "report/index.html").write_text("")
    out = tmp_path / "compared/index.html"
    write_comparison(runs, out)
    written = out.read_text(encoding="utf-8")
    links = re.findall(r'href="([^"#:]+)"', _SCRIPT.sub("", written))
    assert links == ["../a%20b/demo/report/index.html"] * 2  # on the card and in the table
    marks = re.findall(r'class="mark" style="color:(#[0-9a-f]+)"', written)
    assert marks == [TARGET.color, OTHERS[0].color] * 2
    lines = _data(out, "chart-data")["specs"]["compared"]["usermeta"]["lines"]
    named = {line["name"]: line["color"] for line in lines if not line["muted"]}
    assert named == {
        "demo (1): inherit (target)": TARGET.color,
        "demo (2): inherit (target)": OTHERS[0].color,
    }
    assert 'id="filter"' in written and written.count('data-run="demo (2)"') == 2


def test_a_comparison_says_whose_benchmarks_are_not_drawn(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    runs = []
    for number in range(5):
        result = synthetic.RECORD["result"] | {"benchmark": 2.0 + number / 10}
        benchmark = synthetic.RECORD["benchmark"] | {"val_loss": 2.0 + number / 10}
        made = synthetic.record(name=f"r{number}", benchmark=benchmark, result=result)
        runs.append(synthetic.build_run(tmp_path / str(number), made))
    write_comparison(runs, tmp_path / "index.html")
    written = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "The table of the runs has 2 more reference losses." in written
    assert "r2: reference loss 2.200" in written and "r3: reference loss" not in written


def test_a_reference_loss_of_several_runs_names_none_of_them(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    runs = []
    for number, level in enumerate((2.0, 2.0, 2.5)):
        benchmark = synthetic.RECORD["benchmark"] | {"val_loss": level}
        result = synthetic.RECORD["result"] | {"benchmark": level}
        made = synthetic.record(name=f"r{number}", benchmark=benchmark, result=result)
        runs.append(synthetic.build_run(tmp_path / str(number), made))
    write_comparison(runs, tmp_path / "index.html")
    chart = _data(tmp_path / "index.html", "chart-data")["specs"]["compared"]
    labels = [level["label"] for level in chart["usermeta"]["levels"]]
    assert labels == ["reference loss 2.000", "r2: reference loss 2.500"]


def test_a_page_with_charts_holds_the_notice_of_their_code() -> None:
    from inheritune.reporting.vega import javascript

    notice, end, code = javascript().partition("*/")
    assert notice.startswith("/*!") and end and "vega" in code
    for words in ("University of Washington", "Redistributions in binary form", '"AS IS"'):
        assert words in notice
    # What the script holds of others, by a word of each, and who made it.
    for word, holder in {
        "mollweide": "d3-geo-projection: Copyright",
        "circumcenters": "d3-delaunay: Copyright",
        "viridis": "Cynthia Brewer",
        "topojson": "topojson-client: Copyright",
        "SEMVER": "semver: Copyright",
        "fast-json-patch": "Joachim Wester",
    }.items():
        assert word in code and holder in notice
