"""Define what a section of the page consists of: text, charts and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inheritune.reporting.table import Table

CHART_HEIGHT = 340  # pixels
_FITTED = {"type": "fit-x", "contains": "padding"}


@dataclass(frozen=True)
class Chart:
    """One chart."""

    name: str  # file name without its ending
    title: str
    caption: str  # how to read it, and what it does not show
    alt: str  # the same for people who do not see it, with the figures
    # Vega-Lite description, data included. With `axes` under its `usermeta`, the page lets its
    # reader choose the axis and hide lines.
    spec: dict[str, Any]
    table: Table | None = None
    left_out: str = ""  # a sentence on values that are not in the table


@dataclass(frozen=True)
class PageSection:
    """One section of the page."""

    name: str  # anchor of the section in links: letters and hyphens
    title: str
    text: Sequence[str] = ()  # sentences below the heading
    charts: Sequence[Chart] = ()  # each becomes a figure on the page, an SVG and a PNG
    # Each becomes a table on the page, and a file of each format beside it.
    tables: Sequence[Table] = ()
    files: Sequence[Table] = ()  # tables too long for the page, written as files only
    folded: bool = False  # stands below the results, and is opened by its reader


def layer(
    name: str | None,
    rows: Sequence[Mapping[str, Any]],
    mark: Mapping[str, Any],
    **channels: Any,
) -> dict[str, Any]:
    """Describe a layer of a Vega-Lite chart: how the rows look, and which field goes where."""
    found = {"data": {"values": rows}, "mark": mark, "encoding": channels}
    return found | ({"name": name} if name else {})


def number(field: str, **more: Any) -> dict[str, Any]:
    """Describe a channel that shows a number."""
    return {"field": field, "type": "quantitative", **more}


def category(field: str, **more: Any) -> dict[str, Any]:
    """Describe a channel that shows a name."""
    return {"field": field, "type": "nominal", **more}


def layered_spec(layers: Sequence[dict[str, Any]], height: int = CHART_HEIGHT) -> dict[str, Any]:
    """Describe a chart of layers, from back to front, that is as wide as its place."""
    import altair

    place = {"height": height, "width": "container", "$schema": altair.SCHEMA_URL}
    return {"layer": list(layers), **place, "autosize": dict(_FITTED)}


def finished_spec(chart: Any, height: int = CHART_HEIGHT) -> dict[str, Any]:
    """Turn an Altair chart into a Vega-Lite description that is as wide as its place."""
    # Checking every row of the data against the schema takes longer than all the rest.
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict(
        validate=False
    )
    spec["autosize"] = dict(_FITTED)
    spec.pop("config", None)  # the page chooses light or dark
    return spec
