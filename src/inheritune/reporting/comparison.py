"""Several runs on one page: verdicts side by side, loss curves of all, one table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.errors import RecipeError
from inheritune.reporting.document import document, filled, png, svg
from inheritune.reporting.embed import as_data_script, presentable, shortened
from inheritune.reporting.line_charts import Chart
from inheritune.reporting.loss_charts import val_loss_chart
from inheritune.reporting.page import Report, finding, publish, read_report, still
from inheritune.reporting.quantities import amount, duration, exact, flops, loss, signed
from inheritune.reporting.record import (
    benchmark_of,
    number,
    rows,
    scratch_of,
    section,
    target_cost,
    target_of,
    text,
)
from inheritune.reporting.series import OTHERS, TARGET, Line, Style, val_lines
from inheritune.reporting.table import Column, Table
from inheritune.reporting.verdict import headline, outcome, verdict

__all__ = ["Compared", "write_comparison"]

_MOST_RUNS = 12
_MOST_LINES = 6  # of a run
_MOST_LEVELS = 3  # benchmarks drawn
_STYLES = [TARGET, *OTHERS]
_OTHER_DASHES = [[7, 4], [2, 3], [12, 4], [9, 3, 2, 3], [4, 2]]


@dataclass(frozen=True)
class Compared:
    """What a run came to, as the comparison has it.

    Attributes:
        name: Told apart from the others.
        outcome: As the record has it, or ``unfinished`` or ``failed``.
        verdict: In a sentence.
    """

    name: str
    outcome: str
    verdict: str


def write_comparison(roots: Sequence[Path], out: Path) -> list[Compared]:
    """Write one page about several runs, its figure and table beside it.

    Args:
        roots: Directories of runs; an unfinished or broken one is shown as that.
        out: The page; ``figures/`` and ``tables/`` go into its folder.

    Returns:
        What stands side by side, one per run.

    Raises:
        RecipeError: There are more runs than a page can show, or one is named twice.
        DataError: One of them is not a run.
    """
    if len(roots) > _MOST_RUNS:
        raise RecipeError(
            f"{len(roots)} runs are too many for one page.", f"Name up to {_MOST_RUNS}."
        )
    if len({root.resolve() for root in roots}) < len(roots):
        raise RecipeError("a run is named twice.", "Name each run once.")
    if out.is_dir():
        raise RecipeError(
            f"--out is {out}, a directory.", f"Name a file, such as {out}/index.html."
        )
    reports = [read_report(root) for root in roots]
    names = _names(reports, roots)
    chart, table = _chart(reports, names), _table(reports, names)
    drawn = svg(chart.spec) if chart else ""
    publish(out.parent / "tables" / f"{table.name}.md", table.markdown().encode())
    publish(out.parent / "tables" / f"{table.name}.csv", table.csv().encode())
    if chart:
        publish(out.parent / "figures" / f"{chart.name}.svg", drawn.encode())
        publish(out.parent / "figures" / f"{chart.name}.png", png(chart.spec))
    publish(out, _page(reports, names, chart, drawn, table))
    return [
        Compared(name, outcome(report.record), verdict(report.record))
        for name, report in zip(names, reports, strict=True)
    ]


def _names(reports: Sequence[Report], roots: Sequence[Path]) -> list[str]:
    """Name of each run; with its directory, or a number, where another has the same."""
    plain = [
        (text(report.record, "name") or str(presentable(root.name)) or "unnamed run")[:60]
        for report, root in zip(reports, roots, strict=True)
    ]
    return [
        name if plain.count(name) == 1 else f"{name} ({index})"
        for index, name in enumerate(plain, 1)
    ]


def _page(
    reports: Sequence[Report], names: Sequence[str], chart: Chart | None, drawn: str, table: Table
) -> bytes:
    shown = [
        {
            "name": name,
            "outcome": outcome(report.record),
            "headline": headline(report.record),
            "finding": finding(report.record),
            "problems": report.problems,
        }
        for name, report in zip(names, reports, strict=True)
    ]
    context = {
        "runs": shown,
        "chart": chart,
        "still": still(drawn),
        "table": table,
        "remarks": _remarks(reports, names),
    }
    records = {name: shortened(report.record) for name, report in zip(names, reports, strict=True)}
    return document(
        f"{len(reports)} runs compared · inheritune",
        filled("comparison.html.j2", context),
        {chart.name: chart.spec} if chart else {},
        as_data_script(records),
    )


def _remarks(reports: Sequence[Report], names: Sequence[str]) -> list[str]:
    """What keeps these runs from being compared."""
    found = []
    prints = {text(section(r.record, "tokens"), "fingerprint") for r in reports} - {""}
    if len(prints) > 1:
        found.append(
            "The runs have prepared their text differently (fingerprints differ), so their "
            "losses are not on the same validation windows: compare each with its own benchmark."
        )
    if scaled := [n for r, n in zip(reports, names, strict=True) if text(r.record, "scaled")]:
        said = (
            "runs was scaled down, and is no result"
            if len(scaled) == 1
            else ("runs were scaled down, and are no results")
        )
        found.append(f"{len(scaled)} of the {said} of the method: {', '.join(scaled)}.")
    models = {text(section(r.record, "reference"), "digest") for r in reports} - {""}
    if len(models) > 1:
        found.append("The runs inherit from different references.")
    return found


def _chart(reports: Sequence[Report], names: Sequence[str]) -> Chart | None:
    lines = [
        line
        for index, (report, name) in enumerate(zip(reports, names, strict=True))
        for line in _lines(report, name, _STYLES[index % len(_STYLES)])
    ]
    if not lines:
        return None
    levels: dict[str, float] = {}
    for report, name in zip(reports, names, strict=True):
        benchmark = benchmark_of(report.record)
        if benchmark is not None and loss(benchmark) not in {loss(v) for v in levels.values()}:
            levels[f"benchmark of {name}: {loss(benchmark)}"] = benchmark
    if len(levels) == 1:
        levels = {f"benchmark {loss(value)}": value for value in levels.values()}
    table = Table(
        "compared-curves",
        [
            Column("run and variant"),
            Column("tokens with earlier rounds", show=exact),
            Column("val_loss", "nats", loss),
        ],
        [[line.name, row["tokens"], row["value"]] for line in lines for row in line.rows[:40]],
    )
    drawn, more = dict(list(levels.items())[:_MOST_LEVELS]), len(levels) - _MOST_LEVELS
    left_out = f"At most 40 values of a line, and {_MOST_LINES} lines of a run."
    if more > 0:
        left_out += f" The benchmarks of {more} more stand in the table of the runs."
    chart = val_loss_chart(lines, list(drawn.items()))
    return replace(
        chart,
        name="compared",
        title="Validation loss of all runs",
        caption=f"Colour and marker: the run. Unbroken: its target. {chart.caption}",
        table=table,
        left_out=left_out,
    )


def _lines(report: Report, name: str, style: Style) -> list[Line]:
    found = []
    for index, line in enumerate(val_lines(report.record, report.curves)[:_MOST_LINES]):
        dash = [1, 0] if line.style is TARGET else _OTHER_DASHES[index % len(_OTHER_DASHES)]
        found.append(replace(line, name=f"{name}: {line.name}", style=replace(style, dash=dash)))
    return found


def _table(reports: Sequence[Report], names: Sequence[str]) -> Table:
    columns = [
        Column("run"),
        Column("outcome"),
        Column("layers", show=exact),
        Column("of", show=exact),
        Column("val_loss", "nats", loss),
        Column("SE", show=loss),
        Column("minus benchmark", "nats", signed),
        Column("benchmark", "nats", loss),
        Column("same-size scratch", "nats", loss),
        Column("rounds", show=exact),
        Column("tokens", show=amount),
        Column("FLOPs", show=flops),
        Column("time", "s", duration, True),
    ]
    values = [
        [name, headline(report.record).lower(), *_figures(report)]
        for name, report in zip(names, reports, strict=True)
    ]
    notes = ["Tokens, FLOPs and time are those of all rounds of the target, without controls."]
    return Table("runs", columns, values, notes)


def _figures(report: Report) -> list[Any]:
    record = report.record
    last, spent, benchmark = target_of(record), target_cost(record), benchmark_of(record)
    reached = number(section(record, "result"), "val_loss")
    reached = number(last, "val_loss") if reached is None else reached
    apart = None if reached is None or benchmark is None else reached - benchmark
    return [
        number(last, "layers"),
        number(section(record, "reference"), "layers"),
        reached,
        number(last, "val_loss_se"),
        apart,
        benchmark,
        number(scratch_of(record), "val_loss"),
        len(rows(record, "rounds")),
        spent.tokens,
        spent.flops,
        spent.seconds,
    ]
