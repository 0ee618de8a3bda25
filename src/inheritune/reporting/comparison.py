"""Compare several runs on one page: verdicts side by side, loss curves of all, one table."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

from inheritune.errors import RecipeError
from inheritune.reporting.document import document, filled
from inheritune.reporting.embed import presentable, shortened
from inheritune.reporting.fidelity_columns import NOTE, fidelity_fields
from inheritune.reporting.loss_charts import GREY, val_loss_chart
from inheritune.reporting.page import (
    RunReport,
    data_address,
    finding,
    read_report,
    write_file,
    write_table,
)
from inheritune.reporting.quantities import amount, duration, exact, flops, loss, signed
from inheritune.reporting.section import Chart
from inheritune.reporting.series import Line, val_lines
from inheritune.reporting.styles import OTHERS, TARGET, Style
from inheritune.reporting.table import Column, Table
from inheritune.reporting.vega import png, svg
from inheritune.reporting.verdict import headline, tone, verdict
from inheritune.run_record.record import RunRecord
from inheritune.system.rows import Rows

_MAX_RUNS = 12
_MAX_LINES = 6  # drawn of one run
_MAX_LEVELS = 3  # reference losses drawn
_MAX_ROWS = 40  # rows of one line in the chart's table
_CONTROL_DASHES = [[7, 4], [2, 3], [12, 4], [9, 3, 2, 3], [4, 2]]


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison."""

    run: str  # its directory, as it was named
    name: str  # unique among the runs
    outcome: str  # as in the record, or `unfinished` or `failed`
    verdict: str


@dataclass(frozen=True)
class Comparison(Rows):
    """The result of comparing several runs."""

    page: Path
    runs: tuple[ComparedRun, ...]  # in the order they were named

    def rows(self) -> list[dict[str, Any]]:
        """A row for each run."""
        return [asdict(run) for run in self.runs]


@dataclass(frozen=True)
class _Run:
    name: str
    report: RunReport
    record: RunRecord
    style: Style  # of its lines, and the mark beside its name
    link: str  # address of its own page from this one; empty where it has none


def write_comparison(roots: Sequence[Path], out: Path) -> Comparison:
    """Write one page about several runs, its figure and table beside it.

    Args:
        roots: Directories of runs; an unfinished or broken one is shown as such.
        out: File of the page; ``figures/`` and ``tables/`` go into its directory.

    Raises:
        RecipeError: There are more runs than a page can show, or one is named twice.
        DataError: One of them is not a run.
    """
    if len(roots) > _MAX_RUNS:
        raise RecipeError(
            f"{len(roots)} runs are too many for one page.", f"Name up to {_MAX_RUNS}."
        )
    if len({root.resolve() for root in roots}) < len(roots):
        raise RecipeError("a run is named twice.", "Name each run once.")
    if out.is_dir():
        raise RecipeError(
            f"--out is {out}, a directory.", f"Name a file, such as {out}/index.html."
        )
    reports = [read_report(root) for root in roots]
    names = _unique_names(reports, roots)
    runs = [
        _Run(name, report, report.record, style, _link(root, out))
        for name, report, style, root in zip(
            names, reports, _styles(len(roots)), roots, strict=True
        )
    ]
    chart, table = _chart(runs), _table(runs)
    write_table(out.parent, table)
    drawing = ""
    if chart is not None:
        drawing = svg(chart.spec)
        figures = out.parent / "figures"
        write_file(figures / f"{chart.name}.svg", drawing.encode())
        write_file(figures / f"{chart.name}.png", png(chart.spec))
    write_file(out, _page(runs, chart, drawing, table))
    compared = [
        ComparedRun(str(root), run.name, run.record.outcome, verdict(run.record))
        for root, run in zip(roots, runs, strict=True)
    ]
    return Comparison(out, tuple(compared))


def _unique_names(reports: Sequence[RunReport], roots: Sequence[Path]) -> list[str]:
    """Name each run; a number follows where several have the same name."""
    names = [
        (report.record.name or str(presentable(root.name)) or "unnamed run")[:60]
        for report, root in zip(reports, roots, strict=True)
    ]
    return [
        name if names.count(name) == 1 else f"{name} ({number})"
        for number, name in enumerate(names, 1)
    ]


def _styles(number: int) -> list[Style]:
    """Make a style for each run; the marks differ where the colours come again."""
    styles = [TARGET, *OTHERS]
    marks = [styles[(n + n // len(styles)) % len(styles)].shape for n in range(number)]
    return [replace(style, shape=shape) for style, shape in zip(cycle(styles), marks, strict=False)]


def _link(root: Path, out: Path) -> str:
    """Return the relative address of a run's page, if it is there."""
    page = root / "report" / "index.html"
    try:
        path = os.path.relpath(page.resolve(), out.parent.resolve())
    except ValueError:  # on another drive
        return ""
    return quote(Path(path).as_posix()) if page.is_file() else ""


def _page(runs: Sequence[_Run], chart: Chart | None, drawing: str, table: Table) -> bytes:
    summaries = [
        {
            "name": run.name,
            "outcome": tone(run.record),
            "headline": headline(run.record),
            "finding": finding(run.record),
            "link": run.link,
            "style": run.style,
            "problems": run.report.problems,
        }
        for run in runs
    ]
    context = {
        "runs": summaries,
        "chart": chart,
        "still": data_address(drawing),
        "table": table,
        "marks": {run.name: run.style for run in runs},
        "links": {run.name: run.link for run in runs},
        "remarks": _remarks(runs),
    }
    return document(
        f"{len(runs)} runs compared · inheritune",
        filled("comparison.html.j2", context),
        [chart] if chart else [],
        {run.name: shortened(run.report.content) for run in runs},
    )


def _remarks(runs: Sequence[_Run]) -> list[str]:
    """List reasons why these runs cannot simply be compared."""
    remarks = []
    if len({run.record.tokens.fingerprint for run in runs} - {None, ""}) > 1:
        remarks.append(
            "The runs prepared their text differently (the fingerprints differ), so their losses "
            "are not on the same validation windows: compare each with its own reference loss."
        )
    if scaled := [run.name for run in runs if run.record.scaled]:
        are = (
            "runs was scaled down, and is no result"
            if len(scaled) == 1
            else "runs were scaled down, and are no results"
        )
        remarks.append(f"{len(scaled)} of the {are} of the method: {', '.join(scaled)}.")
    if len({run.record.reference.digest for run in runs} - {None, ""}) > 1:
        remarks.append("The runs inherit from different references.")
    return remarks


def _chart(runs: Sequence[_Run]) -> Chart | None:
    lines = [line for run in runs for line in _lines(run)]
    if not lines:
        return None
    levels = _levels(runs)
    table = Table(
        "compared-curves",
        [
            Column("run and variant"),
            Column("tokens with earlier rounds", show=exact),
            Column("val_loss", "nats", loss),
        ],
        [
            [line.name, row["tokens"], row["value"]]
            for line in lines
            for row in line.rows[:_MAX_ROWS]
        ],
    )
    left_out = f"At most {_MAX_ROWS} values per line and {_MAX_LINES} lines per run are listed."
    if (more := len(levels) - _MAX_LEVELS) > 0:
        left_out += f" The table of the runs has {more} more reference losses."
    chart = val_loss_chart(lines, levels[:_MAX_LEVELS])
    return replace(
        chart,
        name="compared",
        title="Validation loss of all runs",
        caption=f"Colour and mark tell the runs apart; each target is named, controls are grey. "
        f"{chart.caption.removeprefix(GREY)}",
        table=table,
        left_out=left_out,
    )


def _levels(runs: Sequence[_Run]) -> list[tuple[str, float]]:
    """List label and value of the runs' reference losses; no two that read alike.

    The label of a loss of one run begins as those of its lines do: the filter hides them together.
    """
    by_text: dict[str, list[tuple[str, float]]] = {}
    for run in runs:
        level = run.record.reference_loss
        if level is not None:
            by_text.setdefault(loss(level), []).append((f"{run.name}: ", level))
    levels = []
    for text, held in by_text.items():
        beginning, level = held[0]
        is_of_one = len(held) == 1 and len(runs) > 1
        levels.append((f"{beginning if is_of_one else ''}reference loss {text}", level))
    return levels


def _lines(run: _Run) -> list[Line]:
    lines = []
    for index, line in enumerate(val_lines(run.record, run.report.curves)[:_MAX_LINES]):
        dash = [1, 0] if line.style is TARGET else _CONTROL_DASHES[index % len(_CONTROL_DASHES)]
        lines.append(
            replace(
                line,
                name=f"{run.name}: {line.name}",
                style=replace(run.style, dash=dash, muted=line.style is not TARGET),
            )
        )
    return lines


def _table(runs: Sequence[_Run]) -> Table:
    fidelity = fidelity_fields([run.record.target for run in runs])
    notes = ["Tokens, FLOPs and time are those of all rounds of the target, without controls."]
    return Table.of(
        "runs",
        runs,
        [
            (Column("run"), "name"),
            (Column("val_loss", "nats", loss), "record.target_loss"),
            (Column("outcome"), lambda run: headline(run.record).lower()),
            (Column("layers", show=exact), "record.target.layers"),
            (Column("of", show=exact), "record.reference.layers"),
            (Column("SE", show=loss), "record.target.val_loss_se"),
            (Column("minus reference loss", "nats", signed), _minus_reference),
            (Column("reference loss", "nats", loss), "record.reference_loss"),
            *[(column, _of_target(value)) for column, value in fidelity],
            (Column("same-size scratch", "nats", loss), "record.scratch.val_loss"),
            (Column("rounds", show=exact), lambda run: len(run.record.rounds)),
            (Column("tokens", show=amount), "record.target_cost.tokens"),
            (Column("FLOPs", show=flops), "record.target_cost.flops"),
            (Column("time", "s", duration, True), "record.target_cost.seconds"),
        ],
        [*notes, NOTE] if fidelity else notes,
    )


def _of_target(value: Any) -> Callable[[_Run], Any]:
    return lambda run: value(run.record.target)


def _minus_reference(run: _Run) -> float | None:
    reached, level = run.record.target_loss, run.record.reference_loss
    return None if reached is None or level is None else reached - level
