"""Vega: one chart description becomes the interactive chart, the SVG and the PNG."""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

__all__ = ["javascript", "png", "svg", "theme"]

_WIDTH = 760  # of the figures; on the page a chart is as wide as its place


def theme(dark: bool) -> dict[str, Any]:
    """Vega-Lite configuration for a light or a dark page."""
    ink, soft, rule = (
        ("#e6e7e9", "#a9adb4", "#3a3e45") if dark else ("#1d1f22", "#565b63", "#dcdfe3")
    )
    font = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
    return {
        "background": "transparent",
        "font": font,
        "view": {"stroke": None},
        "axis": {
            "labelColor": soft,
            "titleColor": ink,
            "gridColor": rule,
            "domainColor": soft,
            "tickColor": soft,
            "labelFontSize": 12,
            "titleFontSize": 12,
            "titleFontWeight": "normal",
            "titlePadding": 10,
        },
        "axisX": {"grid": False},
        "legend": {
            "labelColor": ink,
            "titleColor": ink,
            "labelFontSize": 13,
            "labelLimit": 300,
            "columnPadding": 24,
        },
        "text": {"color": soft, "fontSize": 12},
        "rule": {"color": soft},
    }


def svg(spec: Mapping[str, Any]) -> str:
    """The chart as SVG, in light colours; nothing is fetched to draw it."""
    import vl_convert

    drawing = str(
        vl_convert.vegalite_to_svg(
            _fixed_width(spec), vl_version=_vega_lite(), config=theme(False), allowed_base_urls=[]
        )
    )
    # Vega counts its clip paths through the whole process; the same chart is the same file.
    names = {name: f"clip{index}" for index, name in enumerate(_clip_paths(drawing))}
    return re.sub(r"\bclip\d+\b", lambda found: names.get(found[0], found[0]), drawing)


def png(spec: Mapping[str, Any]) -> bytes:
    """The chart as PNG at twice its size, on white; nothing is fetched to draw it."""
    import vl_convert

    return bytes(
        vl_convert.vegalite_to_png(
            _fixed_width(spec),
            vl_version=_vega_lite(),
            scale=2,
            config=theme(False) | {"background": "white"},
            allowed_base_urls=[],
        )
    )


@cache
def javascript() -> str:
    """Vega, Vega-Lite, Vega-Embed and the expression interpreter as one script."""
    import vl_convert

    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _vega_lite()))


def _clip_paths(drawing: str) -> list[str]:
    return list(dict.fromkeys(re.findall(r'<clipPath id="(clip\d+)"', drawing)))


def _vega_lite() -> str:
    import altair

    return ".".join(altair.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


def _fixed_width(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {**spec, "width": _WIDTH, "padding": 12}
