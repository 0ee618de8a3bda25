"""Chart what it costs to leave out a block of layers, by its first layer and its length."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from inheritune.reporting.section import Chart, finished_spec
from inheritune.run_record.measurements import BlockScoreRecord, SelectionRecord

_ROW_HEIGHT = 18  # pixels
_MOST_TICKS = 24
_SPREAD = 20.0  # values that are further apart than this have colours on a logarithmic scale


def block_charts(selection: SelectionRecord) -> list[Chart]:
    """Make heat maps of start x length: of the KL divergence where it was measured, of the angle.

    A length of which few blocks were measured is left out of the first.
    """
    blocks = [row for row in selection.blocks if row.start is not None and row.length]
    lengths = sorted({row.length for row in blocks if row.length is not None})
    wide = {n for n in lengths if _share(blocks, n) >= 0.5}
    charts = []
    if wide:
        charts.append(
            _heat_map(
                [row for row in blocks if row.length in wide and row.kl is not None],
                "kl",
                "KL divergence without each block of layers",
                "KL(reference || without the block), nats per token, on the training text. Row 1: "
                "each layer alone; longer blocks stand there where they were measured to choose.",
            )
        )
    angles = [row for row in blocks if row.angle is not None]
    if len({row.length for row in angles}) > 1:
        charts.append(
            _heat_map(
                angles,
                "angle",
                "Angle across each block of layers",
                "Angle between input and output of the block, as a share of a half turn: near 0, "
                "the block hardly turns its input.",
            )
        )
    return charts


def _share(blocks: Sequence[BlockScoreRecord], length: float) -> float:
    """Share of the blocks of a length that were scored; the outermost two often are not."""
    of_length = [row for row in blocks if row.length == length]
    return sum(row.kl is not None for row in of_length) / len(of_length)


def _heat_map(rows: Sequence[BlockScoreRecord], key: str, title: str, caption: str) -> Chart:
    import altair as alt

    value: Callable[[BlockScoreRecord], float] = attrgetter(key)
    data: list[dict[str, Any]] = [
        {
            "start": int(row.start or 0),
            "length": int(row.length or 0),
            "layers": _layers(row),
            "value": float(f"{value(row):.4g}"),
        }
        for row in rows
    ]
    # --- axes: a cell for each first layer and length ---
    starts = range(max(row["start"] for row in data) + 1)
    lengths = sorted({row["length"] for row in data})
    every = max(1, -(-len(starts) // _MOST_TICKS))
    x = alt.X(
        "start:O",
        scale=alt.Scale(domain=list(starts)),
        axis=alt.Axis(title="first layer of the block", labelAngle=0, values=list(starts[::every])),
    )
    rows_axis = alt.Axis(title="number of layers")
    y = alt.Y("length:O", scale=alt.Scale(domain=lengths), axis=rows_axis)

    # --- colours: from the cheapest to the dearest ---
    values = [row["value"] for row in data]
    positive = [number for number in values if number > 0]
    is_wide = bool(positive) and max(positive) > _SPREAD * min(positive)
    scale: dict[str, Any] = {"scheme": "viridis", "reverse": False}
    if is_wide:
        scale |= {"type": "log", "domain": [min(positive), max(positive)], "clamp": True}
    legend = alt.Legend(title=key.upper() if key == "kl" else key, orient="right")
    color = alt.Color("value:Q", scale=alt.Scale(**scale), legend=legend)
    tooltip = [
        alt.Tooltip("layers:N", title="left out"),
        alt.Tooltip("value:Q", title=key, format=".4f"),
    ]
    cells = alt.Chart(alt.Data(values=data)).mark_rect().encode(x=x, y=y, color=color)
    best = min(data, key=lambda row: float(row["value"]))
    return Chart(
        name=f"blocks-{key}",
        title=title,
        caption=caption,
        alt=f"Heat map of {len(data)} blocks by first layer and length, from {min(values):.4g} "
        f"({best['layers']}) to {max(values):.4g}. All figures are in selection.json.",
        spec=finished_spec(
            alt.layer(cells.encode(tooltip=tooltip)), height=max(60, _ROW_HEIGHT * len(lengths))
        ),
    )


def _layers(row: BlockScoreRecord) -> str:
    first, length = int(row.start or 0), int(row.length or 0)
    return f"layer {first}" if length == 1 else f"layers {first}-{first + length - 1}"
