"""Loss curves as Vega-Lite descriptions, with captions and texts for those who do not see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.report.curves import Curve, reference_points, thin
from inheritune.report.quantities import amount, loss
from inheritune.report.record import Record, benchmark_of, number, section, target_name

__all__ = ["Chart", "loss_charts"]

_POINTS = 1_200  # of all lines of a chart together: keeps the page small
_MARKERS = 24  # of one line
_HEIGHT = 340
# Middle tones: at least 3.5:1 against the page in light and in dark.
_TARGET = ("#3a7bd5", [1, 0], "circle")
_REFERENCE = ("#7b8088", [2, 3], "diamond")
_OTHERS = [
    ("#c4661a", [7, 4], "square"),
    ("#9760d0", [9, 3, 2, 3], "triangle-up"),
    ("#2c8f6a", [4, 2], "cross"),
    ("#c2497f", [12, 4], "triangle-down"),
    ("#8a7a1f", [3, 5], "triangle-right"),
]


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        name: File name without ending.
        title: What it shows.
        caption: How to read it, and what is not on it.
        alt: The same for those who do not see it, with the figures.
        spec: Vega-Lite description, data included, as wide as its place.
    """

    name: str
    title: str
    caption: str
    alt: str
    spec: dict[str, Any]


@dataclass(frozen=True)
class _Line:
    name: str
    style: tuple[str, list[int], str]
    parts: list[list[tuple[int, float]]]  # one per round, tokens of earlier rounds added

    @property
    def last(self) -> tuple[int, float]:
        return self.parts[-1][-1]


def loss_charts(record: Record, curves: Sequence[Curve]) -> list[Chart]:
    """Draw val_loss against tokens: this run, and this run beside the reference's own training.

    Args:
        record: ``run.json``.
        curves: The run's trainings.

    Returns:
        No chart when nothing was measured, and only the first when neither the reference's curve
        nor its token count is recorded.
    """
    lines = _lines(record, curves)
    if not lines:
        return []
    benchmark = benchmark_of(record)
    bottom, top, hidden = _frame(lines, benchmark)
    growth = [(c.offset, c.layers) for c in curves if c.round and c.points]
    charts = [
        Chart(
            "val-loss",
            "Validation loss against training tokens",
            _caption(growth, hidden),
            _alt("Line chart of validation loss against training tokens.", lines, benchmark),
            _spec(lines, benchmark, growth, (bottom, top), log=False),
        )
    ]
    reference = _reference_line(record, benchmark)
    if reference:
        both = [*lines, reference]
        charts.append(
            Chart(
                "val-loss-log",
                "The same beside the reference's own training",
                "Tokens on a logarithmic axis, so the untrained starts are left out. The "
                "reference's curve is as recorded when it was trained; where its validation text "
                "was another, compare its level with care.",
                _alt("Line chart with a logarithmic token axis.", both, benchmark),
                _spec(both, benchmark, growth, (bottom, top), log=True),
            )
        )
    return charts


def _lines(record: Record, curves: Sequence[Curve]) -> list[_Line]:
    names = list(dict.fromkeys(curve.variant for curve in curves if curve.points))
    target, lines, others = target_name(record), [], 0
    for name in names:
        parts = [
            [(tokens + curve.offset, val_loss) for tokens, val_loss in curve.points]
            for curve in curves
            if curve.variant == name and curve.points
        ]
        if name == target:
            style, label = _TARGET, f"{name[:60]} (target)"
        else:
            style, label = _OTHERS[others % len(_OTHERS)], name[:60]
            others += 1
        lines.append(_Line(label, style, parts))
    return lines


def _reference_line(record: Record, benchmark: float | None) -> _Line | None:
    points = [point for point in reference_points(record) if point[0] > 0]
    trained = number(section(record, "reference"), "trained_tokens")
    if not points and trained and benchmark is not None:
        points = [(int(trained), benchmark)]
    return _Line("the reference's own training", _REFERENCE, [points]) if points else None


def _frame(lines: Sequence[_Line], benchmark: float | None) -> tuple[float, float, float | None]:
    """Bottom and top of the val_loss axis, and the highest loss above it, if any."""
    everything = [point for line in lines for part in line.parts for point in part]
    # Untrained starts are several times the rest: in the frame, they would flatten all curves.
    settled = [
        val_loss
        for line in lines
        for part in line.parts
        for tokens, val_loss in part
        if tokens - part[0][0] >= 0.15 * (part[-1][0] - part[0][0]) > 0
    ] or [val_loss for _, val_loss in everything]
    levels = [*settled, *([] if benchmark is None else [benchmark])]
    bottom, top = min(levels), max(levels)
    margin = max(0.08 * (top - bottom), 0.01)
    highest = max(val_loss for _, val_loss in everything)
    return bottom - margin, top + margin, highest if highest > top + margin else None


def _caption(growth: Sequence[tuple[int, int | None]], hidden: float | None) -> str:
    parts = []
    if len(growth) > 1:
        parts.append(
            "Rounds of the target stand one after another, so its line shows everything it cost; "
            "a dotted line marks where layers were added and training began afresh."
        )
    if hidden is not None:
        parts.append(
            f"The beginnings lie above the frame (up to {loss(hidden)} nats); they are in the "
            "data table."
        )
    return " ".join(parts)


def _alt(kind: str, lines: Sequence[_Line], benchmark: float | None) -> str:
    ends = [
        f"{line.name} ends at {loss(line.last[1])} after {amount(line.last[0])} tokens"
        for line in lines
    ]
    rule = "" if benchmark is None else f" The benchmark line stands at {loss(benchmark)}."
    return f"{kind} {'; '.join(ends[:12])}.{rule} The figures are in the table below the chart."


def _spec(
    lines: Sequence[_Line],
    benchmark: float | None,
    growth: Sequence[tuple[int, int | None]],
    domain: tuple[float, float],
    log: bool,
) -> dict[str, Any]:
    import altair as alt

    data, markers = _data(lines, domain[1], log)
    reach, ticks = _token_axis([row["tokens"] for row in data], log)
    x_scale = alt.Scale(type="log" if log else "linear", domain=reach, nice=False)
    title = "training tokens" + (" (logarithmic)" if log else "")
    # Short steps such as 200K read better than 200,000; "s" would write G for billions.
    labels = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
    x_axis = alt.Axis(title=title, labelExpr=labels, tickCount=6, labelOverlap=True, **ticks)
    x = alt.X("tokens:Q", scale=x_scale, axis=x_axis)
    y_scale = alt.Scale(domain=list(domain), zero=False, nice=False)
    y = alt.Y(
        "val_loss:Q", scale=y_scale, axis=alt.Axis(title="val_loss (nats per token)", tickCount=6)
    )
    names = [line.name for line in lines]
    legend = alt.Legend(title=None, orient="bottom", symbolSize=110, symbolStrokeWidth=2)
    color = alt.Color(
        "variant:N", scale=_scale(alt, names, [line.style[0] for line in lines]), legend=legend
    )
    shape = alt.Shape(
        "variant:N", scale=_scale(alt, names, [line.style[2] for line in lines]), legend=legend
    )
    tooltip = [
        alt.Tooltip("variant:N", title="variant"),
        alt.Tooltip("tokens:Q", title="tokens", format=",.0f"),
        alt.Tooltip("val_loss:Q", title="val_loss", format=".4f"),
    ]
    layers = [
        # One layer per line: a scale of dashes would put dashed outlines into the legend.
        *(
            alt.Chart(alt.Data(values=[row for row in data if row["variant"] == line.name]))
            .mark_line(clip=True, strokeWidth=2, strokeDash=line.style[1])
            .encode(x=x, y=y, color=color, detail="part:N")
            for line in lines
        ),
        alt.Chart(alt.Data(values=markers))
        .mark_point(size=54, filled=True, opacity=1)
        .encode(x=x, y=y, color=color, shape=shape, tooltip=tooltip),
        *_growth_layers(alt, growth, domain[1], log),
        *_benchmark_layers(alt, benchmark, data),
    ]
    chart = alt.layer(*layers).properties(width="container", height=_HEIGHT)
    spec: dict[str, Any] = chart.to_dict()
    spec["autosize"] = {"type": "fit-x", "contains": "padding"}
    spec.pop("config", None)  # the page chooses light or dark
    return spec


def _scale(alt: Any, names: list[str], values: list[Any]) -> Any:
    return alt.Scale(domain=names, range=values)


def _token_axis(tokens: Sequence[int], log: bool) -> tuple[list[float], dict[str, Any]]:
    """Where the axis begins and ends, and its ticks where Vega would set too many."""
    first, last = min(tokens, default=0), max(tokens, default=0)
    if not log:
        return [0, 1.02 * last or 1], {}
    ticks = [
        digit * 10**power
        for power in range(len(str(last)) + 1)
        for digit in (1, 3)
        if 0.85 * first <= digit * 10**power <= 1.15 * last
    ]
    return [0.85 * first, 1.15 * last], {"values": ticks}


def _data(
    lines: Sequence[_Line], top: float, log: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    data: list[dict[str, Any]] = []
    markers: list[dict[str, Any]] = []
    limit = max(8, _POINTS // sum(len(line.parts) for line in lines))
    for line in lines:
        for index, part in enumerate(line.parts):
            shown = [point for point in part if point[0] > 0 or not log]
            rows: list[dict[str, Any]] = [
                {"variant": line.name, "part": index, "tokens": tokens, "val_loss": val_loss}
                for tokens, val_loss in thin(shown, limit)
            ]
            data.extend(rows)
            every = max(1, -(-len(rows) // _MARKERS))
            # Counted from the end: the last value is the one that is compared.
            markers.extend(row for row in rows[::-1][::every] if row["val_loss"] <= top)
    return data, markers


def _growth_layers(
    alt: Any, growth: Sequence[tuple[int, int | None]], top: float, log: bool
) -> list[Any]:
    marks = [
        {"tokens": tokens, "val_loss": top, "label": f"{layers} layers"}
        for tokens, layers in growth
        if layers is not None
    ]
    rules = [mark for mark in marks if mark["tokens"]]
    if not rules:
        return []
    drawn = [
        alt.Chart(alt.Data(values=rules))
        .mark_rule(strokeDash=[1, 4], strokeWidth=1.5)
        .encode(x="tokens:Q")
    ]
    if not log and len(marks) <= 6:
        drawn.append(
            alt.Chart(alt.Data(values=marks))
            .mark_text(align="left", baseline="bottom", dx=0, dy=-6)
            .encode(x="tokens:Q", y="val_loss:Q", text="label:N")
        )
    return drawn


def _benchmark_layers(alt: Any, benchmark: float | None, data: list[dict[str, Any]]) -> list[Any]:
    if benchmark is None:
        return []
    start = min(row["tokens"] for row in data) if data else 0
    value = [{"tokens": start, "val_loss": benchmark, "label": f"benchmark {loss(benchmark)}"}]
    base = alt.Chart(alt.Data(values=value))
    return [
        base.mark_rule(strokeDash=[6, 3], strokeWidth=1.5).encode(y="val_loss:Q"),
        base.mark_text(align="left", baseline="top", dx=6, dy=5).encode(
            x="tokens:Q", y="val_loss:Q", text="label:N"
        ),
    ]
