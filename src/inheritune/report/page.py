"""The report: one page that opens from disk, with its tables and figures beside it."""

import base64
import hashlib
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from inheritune.errors import DataError
from inheritune.report.charts import Chart, loss_charts
from inheritune.report.curves import Curve, read_curves, reference_points, thin
from inheritune.report.embed import as_data_script, presentable, shortened
from inheritune.report.provenance import facts_of_data, overlap, provenance, recipe, settings
from inheritune.report.record import Record, read_record, rows, text
from inheritune.report.summary import facts, missing, scale
from inheritune.report.tables import (
    Table,
    curves_table,
    health_table,
    ledger_table,
    rounds_table,
    seeds_table,
    variants_table,
)
from inheritune.report.vega import javascript, png, svg, theme
from inheritune.report.verdict import headline, outcome, remarks, verdict
from inheritune.run import TRAIN

__all__ = ["write_report"]

_LARGEST_PAGE = 1_500_000  # bytes
_TABLE_ROWS = 300  # of a chart's data table, all trainings together
_LONGEST_SAMPLE = 3_000  # characters


def write_report(run_root: Path) -> Path:
    """Write ``report/index.html``, ``report/tables/`` and ``report/figures/`` of a run.

    Args:
        run_root: The run's directory. It may be unfinished or broken: the page then says what is
            missing. Read are ``run.json`` and the ``metrics.jsonl`` of every training.

    Returns:
        The page's path.

    Raises:
        DataError: There is no readable ``run.json``, or it is that of a training without a recipe.
    """
    record = presentable(read_record(run_root))
    if record.get("command") == TRAIN:
        raise DataError(
            f"{run_root} holds a training without a recipe, which has no report.",
            f"Its result is in {run_root / 'run.json'}, its losses in metrics.jsonl.",
        )
    curves = read_curves(run_root, record)
    charts = loss_charts(record, curves)
    drawn = {chart.name: svg(chart.spec) for chart in charts}
    report = run_root / "report"
    for table in _tables(record, curves):
        _publish(report / "tables" / f"{table.name}.md", table.markdown().encode())
        _publish(report / "tables" / f"{table.name}.csv", table.csv().encode())
    for chart in charts:
        _publish(report / "figures" / f"{chart.name}.svg", drawn[chart.name].encode())
        _publish(report / "figures" / f"{chart.name}.png", png(chart.spec))
    page = _render(record, curves, charts, drawn)
    if len(page) > _LARGEST_PAGE:  # rather without the fallback for print than too large to send
        page = _render(record, curves, charts, {})
    _publish(report / "index.html", page)
    return report / "index.html"


def _tables(record: Record, curves: Sequence[Curve]) -> list[Table]:
    by_seed = seeds_table(record)
    return [
        rounds_table(record),
        variants_table(record),
        *([by_seed] if by_seed.values else []),
        ledger_table(record),
        health_table(curves),
        curves_table(curves),
    ]


def _render(
    record: Record, curves: Sequence[Curve], charts: Sequence[Chart], drawn: dict[str, str]
) -> bytes:
    library, script = (javascript() if charts else "", _packaged("page.js") if charts else "")
    context = {
        "policy": _policy([source for source in (library, script) if source]),
        "style": Markup(_packaged("page.css")),
        "library": Markup(library),
        "script": Markup(script),
        "chart_data": Markup(_chart_data(charts)),
        "run_json": Markup(as_data_script(shortened(record))),
        "record": record,
        "name": text(record, "name")[:200] or "unnamed run",
        "outcome": outcome(record),
        "headline": headline(record),
        "finding": _finding(record),
        "facts": facts(record),
        "scale": scale(record),
        "remarks": remarks(record),
        "missing": missing(record, curves),
        "charts": [
            (chart, _as_image(drawn.get(chart.name, "")), *_chart_table(chart, record, curves))
            for chart in charts
        ],
        "rounds": rounds_table(record),
        "variants": variants_table(record),
        "seeds": seeds_table(record),
        "ledger": ledger_table(record),
        "health": health_table(curves),
        "samples": _samples(record),
        "notes": [str(note)[:1000] for note in _listed(record.get("notes"))[:50]],
        "facts_of_data": facts_of_data(record),
        "overlap": overlap(record),
        "provenance": provenance(record),
        "settings": settings(record),
        "recipe": recipe(record),
    }
    return _template().render(context).encode()


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inheritune", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2")


def _packaged(name: str) -> str:
    return (files("inheritune.report") / name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    """Content security policy: these scripts and nothing else, from nowhere."""
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
        for script in scripts
    ]
    return (
        f"default-src 'none'; script-src {' '.join(hashes) or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


def _chart_data(charts: Sequence[Chart]) -> str:
    specs = {chart.name: chart.spec for chart in charts}
    return as_data_script({"specs": specs, "light": theme(False), "dark": theme(True)})


def _as_image(drawing: str) -> str:
    if not drawing:
        return ""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}"


def _chart_table(chart: Chart, record: Record, curves: Sequence[Curve]) -> tuple[Table, str]:
    """The values of a chart, few enough to read, and a sentence on what is left out."""
    shown = list(curves)
    if chart.name == "val-loss-log":
        points = reference_points(record)
        shown.append(Curve("reference", "the reference's own training", None, 0, 0, points))
    limit = max(6, _TABLE_ROWS // max(1, len(shown)))
    total = sum(len(curve.points) for curve in shown)
    table = curves_table([replace(curve, points=thin(curve.points, limit)) for curve in shown])
    if len(table.values) == total:
        return table, ""
    return table, f"{len(table.values)} of {total} values; all are in tables/curves.csv."


def _finding(record: Record) -> str:
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


def _publish(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, staging = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(content)
        umask = os.umask(0)
        os.umask(umask)
        Path(staging).chmod(0o666 & ~umask)
        Path(staging).replace(path)
    except BaseException:
        Path(staging).unlink(missing_ok=True)
        raise
