"""A run whose record or metrics are damaged still gets its page, or is refused in a sentence."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
from fuzzing import JSON, changed, damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import InherituneError
from inheritune.publishing.card import card_text
from inheritune.reporting.embed import presentable
from inheritune.reporting.live_text import status_of
from inheritune.reporting.metrics_file import read_metrics
from inheritune.reporting.page import page_content, read_report
from inheritune.run_record.record import RunRecord, read_run_json

METRICS = "variants/inherit/6-layers/metrics.jsonl"


@pytest.fixture(scope="module")
def run(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = synthetic.build_run(tmp_path_factory.mktemp("runs"))
    (root / METRICS).write_text(synthetic.metrics(1000, 4.0, 3.0, steps=12, evals=3))
    assert "Kept" in str(page_content(read_report(root), {}))
    return root


@pytest.fixture(scope="module")
def sound(run: Path) -> dict[str, object]:
    return read_run_json(run)


@pytest.fixture(scope="module")
def rows(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / METRICS).read_text().splitlines()]


@pytest.fixture
def intact(run: Path) -> Iterator[Path]:
    """The run, which is as before when the test ends."""
    files = [run / "run.json", run / METRICS]
    contents = [file.read_bytes() for file in files]
    yield run
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)


@contextmanager
def only_our_errors() -> Iterator[None]:
    try:
        yield
    except InherituneError as error:
        assert error.exit_code == 3 and 1 <= len(str(error).splitlines()) <= 3


def make_page(root: Path) -> None:
    """Everything of a page but the drawings of its charts."""
    report = read_report(root)
    str(page_content(report, {})).encode()
    for table in report.table_files:
        (table.csv() + table.latex() + table.markdown()).encode()
    for chart in report.charts:
        json.dumps(chart.spec, allow_nan=False)


@fuzz(5)
@given(data=st.data())
def test_any_record_has_a_page_or_is_refused(intact, sound, data):
    content = json.dumps(data.draw(changed(sound))).encode()
    (intact / "run.json").write_bytes(data.draw(st.just(content) | damaged(content)))
    with only_our_errors():
        make_page(intact)


@fuzz(60)
@given(data=st.data())
def test_any_record_has_a_status_and_a_card(intact, sound, data):
    (intact / "run.json").write_text(json.dumps(data.draw(changed(sound))))
    with only_our_errors():
        assert all(line.isprintable() for line in status_of(intact).lines)
    with only_our_errors():
        record = RunRecord.model_validate(presentable(read_run_json(intact)))
        card_text(record, data.draw(st.dictionaries(st.text(max_size=9), JSON)), []).encode()


@fuzz(100)
@given(data=st.data())
def test_any_metrics_are_read(intact, rows, data):
    lines = [json.dumps(data.draw(changed(row))).encode() for row in rows[:4]]
    content = b"\n".join(lines)
    (intact / "metrics.jsonl").write_bytes(data.draw(st.just(content) | damaged(content)))
    metrics = read_metrics(intact / "metrics.jsonl")
    assert all(tokens == tokens for tokens, _ in metrics.points)


@fuzz(5)
@given(data=st.data())
def test_any_metrics_leave_a_page(intact, rows, data):
    number = data.draw(st.integers(0, len(rows) - 1))
    lines = [*rows[:number], data.draw(changed(rows[number])), *rows[number + 1 :]]
    content = "\n".join(map(json.dumps, lines)).encode()
    (intact / METRICS).write_bytes(data.draw(st.just(content) | damaged(content)))
    make_page(intact)
