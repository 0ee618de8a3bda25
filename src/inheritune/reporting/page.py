"""Write a run's report: one page that opens from disk, with its tables and figures beside it."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from inheritune.errors import DataError
from inheritune.reporting.attention_charts import attention_section
from inheritune.reporting.course_charts import speed_chart, training_chart
from inheritune.reporting.curves import Curve, read_curves
from inheritune.reporting.document import document, filled
from inheritune.reporting.dot_plot import dot_plot
from inheritune.reporting.embed import presentable, shortened
from inheritune.reporting.family_charts import family_section
from inheritune.reporting.gains_table import gains_section
from inheritune.reporting.loss_charts import loss_charts, near_loss_chart
from inheritune.reporting.progress import stage_states, trainings_in_progress
from inheritune.reporting.provenance import facts_of_data, overlap, provenance, recipe, settings
from inheritune.reporting.remarks import remarks
from inheritune.reporting.run_tables import (
    leading_rows,
    ledger_table,
    rounds_table,
    seeds_table,
    variants_table,
)
from inheritune.reporting.section import Chart, PageSection
from inheritune.reporting.selection_tables import selection_section
from inheritune.reporting.styles import styles_of
from inheritune.reporting.summary import facts, missing
from inheritune.reporting.table import Table
from inheritune.reporting.task_tables import task_section
from inheritune.reporting.training_tables import (
    curves_table,
    health_table,
    reach_table,
    speed_table,
)
from inheritune.reporting.trust import checks
from inheritune.reporting.usage import usage
from inheritune.reporting.vega import NARROW, png, svg
from inheritune.reporting.verdict import headline, tone, verdict
from inheritune.run_directory import Run
from inheritune.run_record.record import TRAIN, RunRecord, read_run_json
from inheritune.system.files import make_directory, write_bytes

_MAX_PAGE_BYTES = 2_500_000  # of which the drawing of charts takes 0.9
_MAX_SAMPLES, _MAX_SAMPLE = 60, 3_000  # samples; characters of one
_MAX_UNFOLDED = 3  # samples of one prompt; the others are folded
_MAX_NOTES, _MAX_NOTE = 50, 1_000
_MAX_COSTS = 14  # rows of the ledger that are shown unfolded

# Sections in their order; those that are not folded stand between the results and the cost.
_SECTIONS: Sequence[Callable[[RunRecord], PageSection | None]] = (
    gains_section,
    family_section,
    task_section,
    selection_section,
    attention_section,
)


@dataclass(frozen=True)
class RunReport:
    """A run as its page shows it."""

    content: Mapping[str, Any]  # run.json as the page embeds it: nothing private, nothing that runs
    record: RunRecord
    curves: Sequence[Curve] = ()
    problems: Sequence[str] = ()  # sentences on what could not be read

    @cached_property
    def result_charts(self) -> list[Chart]:
        """The dot plot of the variants, where there are enough, and the charts of their losses."""
        dots, near = dot_plot(self.record), near_loss_chart(self.record, self.curves)
        found = [dots, *self._loss_charts[:1], near]
        return [chart for chart in found if chart is not None]

    @cached_property
    def training_charts(self) -> list[Chart]:
        """Losses beside the reference's own training, and training losses."""
        training = training_chart(self.record, self.curves)
        return [*self._loss_charts[1:], *([training] if training else [])]

    @cached_property
    def _loss_charts(self) -> list[Chart]:
        return loss_charts(self.record, self.curves)

    @cached_property
    def sections(self) -> list[PageSection]:
        """Sections that the record has something for."""
        return [section for make in _SECTIONS if (section := make(self.record)) is not None]

    @cached_property
    def speed_charts(self) -> list[Chart]:
        """The chart of tokens per second, where it is known."""
        chart = speed_chart(self.record, self.curves)
        return [chart] if chart else []

    @cached_property
    def charts(self) -> list[Chart]:
        """All charts, in the order of the page."""
        in_sections = [chart for section in self.sections for chart in section.charts]
        return [
            *self.result_charts,
            *in_sections,
            *self.training_charts,
            *self.speed_charts,
        ]

    @cached_property
    def own_tables(self) -> dict[str, Table]:
        """The tables that every page has, by the name that its template uses."""
        return {
            "rounds": rounds_table(self.record),
            "variants": variants_table(self.record),
            "seeds": seeds_table(self.record),
            "ledger": ledger_table(self.record),
            "reach": reach_table(self.record, self.curves),
            "speed": speed_table(self.curves),
            "health": health_table(self.curves),
        }

    @cached_property
    def figures(self) -> dict[str, bytes]:
        """PNG of every chart, by the name of its file."""
        return {f"{chart.name}.png": png(chart.spec) for chart in self.charts}

    @cached_property
    def card_figures(self) -> dict[str, bytes]:
        """PNG of the charts of results for a model card, which is read on phones, too."""
        return {f"{c.name}.png": png(c.spec, width=NARROW) for c in self.result_charts}

    @property
    def results(self) -> tuple[Table, Table]:
        """The table of variants: the rows to show, and those to fold away."""
        table = self.own_tables["variants"]
        return table.parted(leading_rows(self.record, table))

    @property
    def costs(self) -> tuple[Table, Table]:
        """The ledger; of a long one, the sums to show, and the items to fold away."""
        table = self.own_tables["ledger"]
        sums = [n for n, row in enumerate(table.values) if str(row[0]).startswith("sum ")]
        is_long = len(table.values) > _MAX_COSTS
        return table.parted(sums if is_long else range(len(table.values)))

    @property
    def table_files(self) -> list[Table]:
        """All tables that are written beside the page."""
        always = [t for name, t in self.own_tables.items() if name != "seeds" or t.values]
        in_sections = [t for section in self.sections for t in [*section.tables, *section.files]]
        return [*always, curves_table(self.curves), *in_sections]


def write_report(
    run_root: Path, report: RunReport | None = None, check: Callable[[], object] = lambda: None
) -> Path:
    """Write ``report/index.html``, ``report/tables/`` and ``report/figures/`` of a run.

    The run may be unfinished or broken: the page then says what is missing. It is made from
    ``run.json`` and the ``metrics.jsonl`` of every training.

    Args:
        report: From `read_report` of the run; None: it is read.
        check: Called before each drawing; may raise to end it.

    Returns:
        Path of the page.

    Raises:
        DataError: There is no readable ``run.json`` and nothing else of a run, it is that of a
            training without a recipe, or something in the directory leads out of it.
    """
    report = report or read_report(run_root)
    folder = run_root / "report"
    for table in report.table_files:
        write_table(folder, table)
        write_file(folder / "tables" / f"{table.name}.tex", table.latex().encode())
    drawings = {}
    for chart in report.charts:
        check()
        drawings[chart.name] = drawing = svg(chart.spec)
        write_file(folder / "figures" / f"{chart.name}.svg", drawing.encode())
    check()
    for name, picture in report.figures.items():
        write_file(folder / "figures" / name, picture)
    page = _page(report, drawings)
    if len(page) > _MAX_PAGE_BYTES:  # better without drawings for print than too large to send
        page = _page(report, {})
    write_file(folder / "index.html", page)
    return folder / "index.html"


def read_report(run_root: Path) -> RunReport:
    """Read a run for its page; raises as `write_report`."""
    problems: list[str] = []
    run = Run.open(run_root)
    try:
        content = presentable(read_run_json(run_root))
    except DataError as error:
        if not run.has_traces():
            raise
        content = {}
        problems.append(f"The record of the run: {presentable(error.message)}")
    record = RunRecord.model_validate(content)
    if record.status == "running" and run.is_abandoned():
        record = record.model_copy(update={"status": "interrupted"})
    if record.command == TRAIN:
        raise DataError(
            f"{run_root} holds a training without a recipe, which has no report.",
            f"Its result is in {run_root / 'run.json'}, its losses in metrics.jsonl.",
        )
    return RunReport(content, record, read_curves(run_root, record), problems)


def page_title(report: RunReport) -> str:
    """Write the title of the page. It begins with the outcome, which a browser tab shows."""
    return f"{headline(report.record)} · {_name(report.record)} · inheritune"


def page_content(report: RunReport, drawings: Mapping[str, str]) -> Markup:
    """Fill the page's main element; ``drawings`` are SVGs by name of chart, and may be missing."""
    record, curves = report.record, report.curves
    results, more_results = report.results
    costs, more_costs = report.costs
    return filled(
        "run.html.j2",
        {
            "name": _name(record),
            "outcome": tone(record),
            "headline": headline(record),
            "finding": finding(record),
            "scaled": (record.scaled or "")[:_MAX_NOTE],
            "facts": facts(record),
            "in_progress": trainings_in_progress(record, curves),
            "stages": stage_states(record),
            "checks": checks(record),
            "usage": usage(record),
            "remarks": remarks(record),
            "missing": [*report.problems, *missing(record, curves)],
            "results": results,
            "more_results": more_results,
            "costs": costs,
            "more_costs": more_costs,
            "marks": styles_of(record, [str(row[0]) for row in results.values]),
            "result_charts": report.result_charts,
            "training_charts": report.training_charts,
            "speed_charts": report.speed_charts,
            "stills": {name: data_address(drawing) for name, drawing in drawings.items()},
            "sections": report.sections,
            **report.own_tables,
            "samples": _samples(record),
            "first_samples": _MAX_UNFOLDED,
            "notes": [note[:_MAX_NOTE] for note in record.notes[:_MAX_NOTES]],
            "facts_of_data": facts_of_data(record),
            "overlap": overlap(record),
            "provenance": provenance(record),
            "settings": settings(record),
            "recipe": recipe(record),
        },
    )


def finding(record: RunRecord) -> str:
    """Return the verdict without the headline above it."""
    sentence = verdict(record).removeprefix(f"{headline(record)}: ")
    return sentence[:1].upper() + sentence[1:]


def data_address(drawing: str) -> str:
    """Encode an SVG as the address of an image; empty for an empty drawing."""
    if not drawing:
        return ""
    return f"data:image/svg+xml;base64,{base64.b64encode(drawing.encode()).decode()}"


def write_table(folder: Path, table: Table) -> None:
    """Write a table as Markdown and CSV into ``tables/`` of a folder."""
    write_file(folder / "tables" / f"{table.name}.md", table.markdown().encode())
    write_file(folder / "tables" / f"{table.name}.csv", table.csv().encode())


def write_file(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, and make its folders."""
    make_directory(path.parent)
    write_bytes(path, content)


def _page(report: RunReport, drawings: Mapping[str, str]) -> bytes:
    return document(
        page_title(report),
        page_content(report, drawings),
        report.charts,
        shortened(report.content),
    )


def _name(record: RunRecord) -> str:
    return (record.name or "")[:200] or "unnamed run"


def _samples(record: RunRecord) -> list[tuple[str, list[dict[str, str]]]]:
    """Group generated text by prompt; each has its model, and does not repeat the prompt."""
    prompts: dict[str, list[dict[str, str]]] = {}
    for sample in record.samples[:_MAX_SAMPLES]:
        prompt = (sample.prompt or "")[:500]
        continuation = (sample.text or "")[:_MAX_SAMPLE].removeprefix(prompt)
        model = (sample.model or "")[:100]
        prompts.setdefault(prompt, []).append({"model": model, "continuation": continuation})
    leading = ["reference", record.target_name, record.fresh_control.name]
    for samples in prompts.values():
        samples.sort(key=lambda one: one["model"] not in leading)
    return list(prompts.items())
