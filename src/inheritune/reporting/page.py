"""The report: one page that opens from disk, with its tables and figures beside it."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from inheritune.errors import DataError
from inheritune.reporting.attention_charts import attention_part
from inheritune.reporting.course_charts import speed_chart, training_chart
from inheritune.reporting.curves import Curve, read_curves
from inheritune.reporting.document import document, filled, png, svg
from inheritune.reporting.embed import as_data_script, presentable, shortened
from inheritune.reporting.line_charts import Chart
from inheritune.reporting.loss_charts import loss_charts
from inheritune.reporting.provenance import facts_of_data, overlap, provenance, recipe, settings
from inheritune.reporting.record import Record, read_record, rows, text
from inheritune.reporting.section import Section
from inheritune.reporting.summary import facts, missing, scale, standing
from inheritune.reporting.table import Table
from inheritune.reporting.tables import (
    curves_table,
    health_table,
    ledger_table,
    rounds_table,
    seeds_table,
    variants_table,
)
from inheritune.reporting.task_table import task_part
from inheritune.reporting.tokens_to_reach import reach_table, speed_table
from inheritune.reporting.verdict import headline, outcome, remarks, verdict
from inheritune.run_directory import TRAIN
from inheritune.system.files import write_bytes

__all__ = [
    "Report",
    "finding",
    "publish",
    "read_report",
    "rendered",
    "still",
    "title_of",
    "write_report",
]

_LARGEST_PAGE = 1_500_000  # bytes
_LONGEST_SAMPLE = 3_000  # characters
# What shows that a directory without a readable record is a run all the same.
_SIGNS = ("recipe.yaml", "variants", "tokens", "benchmark.json", "reference.json")

# Sections between the loss curves and the rounds: each is made from the record, or is not there.
_PARTS: Sequence[Callable[[Record], Section | None]] = (
    attention_part,
    task_part,
)


@dataclass(frozen=True)
class Report:
    """What a page is made from.

    Attributes:
        record: ``run.json``, without what is private.
        curves: The run's trainings.
        curve_charts: Losses.
        parts: Sections that parts of the run supply.
        speed_charts: Tokens per second.
        problems: Sentences on what could not be read.
    """

    record: Record
    curves: Sequence[Curve]
    curve_charts: Sequence[Chart]
    parts: Sequence[Section]
    speed_charts: Sequence[Chart]
    problems: Sequence[str]

    @property
    def charts(self) -> list[Chart]:
        """All charts of the page, in its order."""
        own = [chart for part in self.parts for chart in part.charts]
        return [*self.curve_charts, *own, *self.speed_charts]

    @property
    def tables(self) -> list[Table]:
        """All tables that are written beside the page."""
        by_seed = seeds_table(self.record)
        return [
            rounds_table(self.record),
            variants_table(self.record),
            *([by_seed] if by_seed.values else []),
            ledger_table(self.record),
            reach_table(self.record, self.curves),
            speed_table(self.curves),
            health_table(self.curves),
            curves_table(self.curves),
            *(table for part in self.parts for table in [*part.tables, *part.files]),
        ]


def write_report(run_root: Path) -> Path:
    """Write ``report/index.html``, ``report/tables/`` and ``report/figures/`` of a run.

    Args:
        run_root: The run's directory. It may be unfinished or broken: the page then says what is
            missing. Read are ``run.json`` and the ``metrics.jsonl`` of every training.

    Returns:
        The page's path.

    Raises:
        DataError: There is no readable ``run.json`` and nothing else of a run, or it is that of a
            training without a recipe.
    """
    report = read_report(run_root)
    drawn = {chart.name: svg(chart.spec) for chart in report.charts}
    folder = run_root / "report"
    for table in report.tables:
        publish(folder / "tables" / f"{table.name}.md", table.markdown().encode())
        publish(folder / "tables" / f"{table.name}.csv", table.csv().encode())
        publish(folder / "tables" / f"{table.name}.tex", table.latex().encode())
    for chart in report.charts:
        publish(folder / "figures" / f"{chart.name}.svg", drawn[chart.name].encode())
        publish(folder / "figures" / f"{chart.name}.png", png(chart.spec))
    page = _page(report, drawn)
    if len(page) > _LARGEST_PAGE:  # rather without the fallback for print than too large to send
        page = _page(report, {})
    publish(folder / "index.html", page)
    return folder / "index.html"


def read_report(run_root: Path) -> Report:
    """Read a run, and describe its charts.

    Raises:
        DataError: As `write_report`.
    """
    problems: list[str] = []
    try:
        record = presentable(read_record(run_root))
    except DataError as error:
        if not any((run_root / sign).exists() for sign in _SIGNS):
            raise
        record = {}
        problems.append(f"The record of the run: {presentable(error.message)}")
    if record.get("command") == TRAIN:
        raise DataError(
            f"{run_root} holds a training without a recipe, which has no report.",
            f"Its result is in {run_root / 'run.json'}, its losses in metrics.jsonl.",
        )
    curves = read_curves(run_root, record)
    course, speed = training_chart(record, curves), speed_chart(record, curves)
    return Report(
        record,
        curves,
        [*loss_charts(record, curves), *([course] if course else [])],
        [part for make in _PARTS if (part := make(record)) is not None],
        [speed] if speed else [],
        problems,
    )


def title_of(report: Report) -> str:
    """Of the page: the outcome first, since it is what a tab shows."""
    return f"{headline(report.record)} · {_name(report.record)} · inheritune"


def rendered(report: Report, drawn: Mapping[str, str]) -> Markup:
    """What stands between the page's beginning and its scripts.

    Args:
        report: What it shows.
        drawn: SVG by name of chart, for print and for readers without scripts; may lack some.
    """
    record, curves = report.record, report.curves
    context = {
        "name": _name(record),
        "outcome": outcome(record),
        "headline": headline(record),
        "finding": finding(record),
        "facts": facts(record),
        "standing": standing(record, curves),
        "scale": scale(record),
        "remarks": remarks(record),
        "missing": [*report.problems, *missing(record, curves)],
        "curve_charts": report.curve_charts,
        "speed_charts": report.speed_charts,
        "stills": {name: still(drawing) for name, drawing in drawn.items()},
        "parts": report.parts,
        "reach": reach_table(record, curves),
        "rounds": rounds_table(record),
        "variants": variants_table(record),
        "seeds": seeds_table(record),
        "ledger": ledger_table(record),
        "speed": speed_table(curves),
        "health": health_table(curves),
        "samples": _samples(record),
        "notes": [str(note)[:1000] for note in _listed(record.get("notes"))[:50]],
        "facts_of_data": facts_of_data(record),
        "overlap": overlap(record),
        "provenance": provenance(record),
        "settings": settings(record),
        "recipe": recipe(record),
    }
    return filled("run.html.j2", context)


def _page(report: Report, drawn: Mapping[str, str]) -> bytes:
    return document(
        title_of(report),
        rendered(report, drawn),
        {chart.name: chart.spec for chart in report.charts},
        as_data_script(shortened(report.record)),
    )


def _name(record: Record) -> str:
    return text(record, "name")[:200] or "unnamed run"


def still(drawing: str) -> str:
    """An SVG as the address of an image; nothing for nothing."""
    if not drawing:
        return ""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}"


def finding(record: Record) -> str:
    """The verdict, for its place below the headline, which it does not repeat."""
    sentence = verdict(record).removeprefix(f"{headline(record)}: ")
    return sentence[:1].upper() + sentence[1:]


def _samples(record: Record) -> list[tuple[str, list[dict[str, str]]]]:
    """Generated text by prompt, prompt and continuation apart."""
    prompts: dict[str, list[dict[str, str]]] = {}
    for row in rows(record, "samples")[:60]:
        prompt, written = text(row, "prompt")[:500], text(row, "text")[:_LONGEST_SAMPLE]
        continuation = written.removeprefix(prompt)
        model = text(row, "model")[:100]
        prompts.setdefault(prompt, []).append({"model": model, "continuation": continuation})
    return list(prompts.items())


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def publish(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, and the folders that it lies in where they are missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content)
