"""Chart descriptions: the numbers in them, and what the pictures are drawn with."""

import itertools
import re
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from inheritune.reporting.chart_events import _apart
from inheritune.reporting.curves import read_curves
from inheritune.reporting.dot_plot import dot_plot
from inheritune.reporting.line_charts import spread
from inheritune.reporting.loss_charts import loss_charts, near_loss_chart
from inheritune.reporting.section import Chart
from inheritune.reporting.series import val_lines
from inheritune.reporting.styles import MUTED, styles_of
from inheritune.reporting.vega import png, svg
from inheritune.run_record.record import RunRecord

pytestmark = pytest.mark.drawn

typed = RunRecord.model_validate


@pytest.fixture(scope="module")
def charts(synthetic: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Chart]:
    run = synthetic.build_run(tmp_path_factory.mktemp("charts"))
    return loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )


def _values(spec: dict[str, Any], mark: str) -> list[dict[str, Any]]:
    return [
        row
        for layer in spec["layer"]
        if layer["mark"]["type"] == mark
        for row in spec.get("datasets", {}).get(
            layer["data"].get("name"), layer["data"].get("values", [])
        )
    ]


def test_first_chart_holds_every_validation_of_every_training(charts: list[Chart]) -> None:
    lines = _values(charts[0].spec, "line")
    assert len(lines) == 44
    ends = {row["variant"]: row for row in sorted(lines, key=lambda row: row["tokens"])}
    assert {name: (row["tokens"], row["val_loss"]) for name, row in ends.items()} == {
        "inherit (target)": (2_000_000, 2.0931),
        "scratch": (1_000_000, 2.9148),
        "equal-compute": (1_705_882, 2.6214),
    }


def _flattened(synthetic: ModuleType, root: Path, scratch: float) -> tuple[RunRecord, Any]:
    """One round from 2.2 to 2.0931, and scratch that ends at a loss."""
    content = synthetic.record()
    content["rounds"] = content["rounds"][-1:]
    run = synthetic.build_run(root, content)
    for folder in (run / "variants").glob("*/*"):
        if folder.name != "6-layers" or folder.parent.name == "equal-compute":
            shutil.rmtree(folder)
    for name, start, end in (("inherit", 2.2, 2.0931), ("scratch", 7.6, scratch)):
        path = run / "variants" / name / "6-layers" / "metrics.jsonl"
        path.write_text(synthetic.metrics(1_000_000, start, end))
    record = typed(content)
    return record, read_curves(run, record)


def test_target_and_reference_have_a_chart_of_their_own_where_scratch_flattens_them(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    near = near_loss_chart(*_flattened(synthetic, tmp_path / "far", 5.0))
    assert near is not None
    values = [row["val_loss"] for row in _values(near.spec, "line")]
    assert {row["variant"] for row in _values(near.spec, "line")} == {"inherit (target)"}
    assert values[-1] == 2.0931
    assert near.caption.startswith("The same losses, enlarged. Above this frame: scratch (5.000).")
    assert near.alt.endswith("The figures are in the table before the chart.")
    encoding = next(layer["encoding"] for layer in near.spec["layer"] if "encoding" in layer)
    low, high = encoding["y"]["scale"]["domain"]
    assert 2.05 < low < 2.0931 and 2.1004 < high < 2.2  # of both, without the beginning


def test_there_is_one_chart_where_all_can_be_told_apart(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    assert near_loss_chart(*_flattened(synthetic, tmp_path / "near", 2.12)) is None
    run = synthetic.build_run(tmp_path / "two rounds")
    record = typed(synthetic.record())
    assert near_loss_chart(record, read_curves(run, record)) is None


def test_reference_loss_and_growth_are_marked(charts: list[Chart]) -> None:
    rules = _values(charts[0].spec, "rule")
    assert {row["val_loss"] for row in rules if "label" not in row} == {2.1004}
    assert [row["tokens"] for row in rules if "label" in row] == [1_000_000]


def test_no_number_of_layers_covers_the_one_before() -> None:
    marks = [{"tokens": tokens, "label": "8"} for tokens in (0, 10, 30, 60, 1000)]
    assert [mark["tokens"] for mark in _apart(marks, 1000)] == [0, 60, 1000]


def test_each_named_line_has_its_name_at_its_end(charts: list[Chart]) -> None:
    labels = {row["label"]: row for row in _values(charts[0].spec, "text") if "color" in row}
    assert list(labels) == [
        *("inherit (target)  2.093", "scratch  2.915", "equal-compute  2.621", "reference  2.100"),
    ]
    assert labels["scratch  2.915"]["tokens"] == 1_000_000
    heights = sorted(row["val_loss"] for row in labels.values())
    bottom, top = charts[0].spec["layer"][0]["encoding"]["y"]["scale"]["domain"]
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) >= 0.99 * (top - bottom) * 16 / 340  # a line of text, of the chart's height


def test_names_keep_their_order_and_their_distance() -> None:
    assert spread([1.0, 1.01, 0.0], 0.1, 0.0, 1.0) == pytest.approx([0.9, 1.0, 0.0])
    assert spread([0.0, 0.0], 0.5, 0.0, 4.0) == [0.0, 0.5]
    assert spread([2.0, 2.0], 0.5, 0.0, 4.0) == [1.75, 2.25]  # neither moves all the way
    assert spread([], 0.5, 0.0, 4.0) == []
    assert spread([1.0, 1.0, 1.0], 4.0, 0.0, 4.0) == [0.0, 2.0, 4.0]  # no room for more


def test_second_chart_adds_the_reference_on_a_logarithmic_axis(charts: list[Chart]) -> None:
    lines = _values(charts[1].spec, "line")
    reference = [row for row in lines if row["variant"] == "the reference's own training"]
    assert (reference[0]["tokens"], reference[-1]["tokens"]) == (250_000, 30_000_000)
    assert reference[-1]["val_loss"] == 2.1
    assert all(row["tokens"] > 0 for row in lines)
    scales = [layer["encoding"]["x"].get("scale") for layer in charts[1].spec["layer"][:1]]
    assert scales[0]["type"] == "log"


def test_lines_differ_by_dash_and_shape_and_not_by_colour_alone(charts: list[Chart]) -> None:
    layers = [layer for layer in charts[1].spec["layer"] if layer["mark"]["type"] == "line"]
    assert len({tuple(layer["mark"]["strokeDash"]) for layer in layers}) == 4
    assert len({row["shape"] for row in _values(charts[1].spec, "point")}) == 4


def test_alt_text_tells_where_each_line_ends(charts: list[Chart]) -> None:
    assert "inherit (target) ends at 2.093 after 2M tokens" in charts[0].alt
    assert "reference loss is drawn at 2.100" in charts[0].alt


def test_a_reference_without_a_curve_is_a_point_and_without_tokens_no_chart(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    record = synthetic.record()
    curves = read_curves(synthetic.build_run(tmp_path), typed(record))
    del record["reference"]["curve"]
    lines = _values(loss_charts(typed(record), curves)[1].spec, "line")
    assert [row["tokens"] for row in lines if "reference" in row["variant"]] == [30_000_000]
    del record["reference"]["trained_tokens"]
    assert len(loss_charts(typed(record), curves)) == 1


def test_no_measurements_make_no_chart(synthetic: ModuleType) -> None:
    assert loss_charts(typed(synthetic.record()), []) == []


def test_many_points_are_thinned(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    long = synthetic.metrics(1_000_000, 7.6, 2.2, steps=5000, evals=5000)
    (run / "variants/scratch/6-layers/metrics.jsonl").write_text(long)
    chart = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )[0]
    assert len(_values(chart.spec, "line")) <= 1_200
    assert len(_values(chart.spec, "point")) <= 4 * 24


def test_a_single_value_is_a_chart(synthetic: ModuleType, tmp_path: Path) -> None:
    run = synthetic.build_run(tmp_path)
    first = synthetic.metrics(1_000_000, 7.6, 2.2).splitlines()[0]
    for metrics in run.glob("variants/*/*/metrics.jsonl"):
        metrics.write_text(first + "\n")
    charts = loss_charts(
        typed(synthetic.record()),
        read_curves(run, typed(synthetic.record())),
    )
    assert all("<svg" in svg(chart.spec) for chart in charts)


def test_pictures_are_pictures(charts: list[Chart]) -> None:
    assert svg(charts[0].spec).startswith("<svg")
    assert svg(charts[0].spec) == svg(charts[0].spec)
    assert png(charts[0].spec).startswith(b"\x89PNG")


def test_a_short_logarithmic_axis_has_numbers(synthetic: ModuleType, tmp_path: Path) -> None:
    record = synthetic.record()
    record["reference"] |= {"curve": [[384, 7.6]], "trained_tokens": 384}
    run = synthetic.build_run(tmp_path)
    row = '{"step": 1, "tokens": 768, "val_loss": 7.5}'
    (run / "variants/scratch/6-layers/metrics.jsonl").write_text(f"{row}\n")
    curves = [curve for curve in read_curves(run, typed(record)) if curve.variant == "scratch"]
    chart = loss_charts(typed(record), curves)[1]
    ticks = chart.spec["layer"][0]["encoding"]["x"]["axis"]["values"]
    assert ticks == [400, 500, 600, 700, 800]


def _with_more_variants(synthetic: ModuleType, root: Path, number: int) -> tuple[Path, Any]:
    record = synthetic.record()
    record["variants"][1]["tokens"] = 1_000_000  # as in a run: of its last round
    run = synthetic.build_run(root)
    one = (run / "variants/scratch/6-layers/metrics.jsonl").read_bytes()
    for index in range(number):
        path = f"variants/more-{index}/6-layers"
        row = {"name": f"more-{index}", "path": path, "val_loss": 2.95 + index / 100}
        record["variants"].append(record["variants"][2] | row)
        (run / path).mkdir(parents=True)
        (run / path / "metrics.jsonl").write_bytes(one)
    return run, record


def test_of_a_dozen_variants_four_are_named_and_the_rest_is_grey(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run, record = _with_more_variants(synthetic, tmp_path, 12)
    chart = loss_charts(typed(record), read_curves(run, typed(record)))[0]
    lines = chart.spec["usermeta"]["lines"]
    named = [line["name"] for line in lines if not line["muted"]]
    assert named == ["inherit (target)", "scratch", "equal-compute"]
    grey = [y["mark"] for y in chart.spec["layer"] if y["mark"].get("color") == MUTED]
    assert len(grey) == 12 and {mark["strokeWidth"] for mark in grey} == {1}
    # Each has a look of its own for the reader who names it.
    kinds = [(line["color"], tuple(line["dash"]), line["shape"]) for line in lines]
    assert len(kinds) == len(set(kinds)) == 15


def test_a_variant_has_one_style_in_every_chart_and_in_the_table(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    run, record = _with_more_variants(synthetic, tmp_path, 6)
    styles = styles_of(typed(record), [])
    lines = val_lines(typed(record), read_curves(run, typed(record)))
    assert all(line.style == styles[line.name.removesuffix(" (target)")] for line in lines)
    assert styles["inherit"].glyph == "●" and styles["reference"].glyph == "◆"
    dots = dot_plot(typed(record))
    assert dots is not None
    colors = {row["name"]: row["color"] for row in dots.spec["layer"][0]["data"]["values"]}
    assert colors["scratch, 6 layers"] == styles["scratch"].color
    assert colors["more-3, 6 layers"] == MUTED


def test_dots_are_sorted_and_have_whiskers_of_two_errors(
    synthetic: ModuleType, tmp_path: Path
) -> None:
    _, record = _with_more_variants(synthetic, tmp_path, 3)
    dots = dot_plot(typed(record))
    assert dots is not None
    rows = dots.spec["layer"][0]["data"]["values"]
    assert [row["name"].split(",")[0] for row in rows] == [
        *("inherit", "scratch", "more-0", "more-1", "more-2"),  # equal-compute had more tokens
    ]
    assert rows[0]["high"] - rows[0]["value"] == pytest.approx(2 * 0.0307)
    assert rows[0]["label"] == "2.093 ± 0.031"
    assert dot_plot(typed(synthetic.record())) is None


def test_nothing_is_cut_from_a_figure(synthetic: ModuleType, tmp_path: Path) -> None:
    run, record = _with_more_variants(synthetic, tmp_path, 9)
    record["variants"][2]["name"] = "a scratch control of a long name"
    curves = read_curves(run, typed(record))
    dots = dot_plot(typed(record))
    assert dots is not None
    for chart in [*loss_charts(typed(record), curves), dots]:
        drawing = svg(chart.spec)
        width = float(re.search(r'<svg[^>]* width="([0-9.]+)"', drawing)[1])  # type: ignore[index]
        for right, text in _right_ends(drawing):
            assert right <= width, (chart.name, text)
        texts = [text for _, text in _right_ends(drawing)]
        assert any(text.startswith("inherit") for text in texts)
        assert any(text.startswith("reference") for text in texts)


def _right_ends(drawing: str) -> list[tuple[float, str]]:
    """Right end in pixels, about, and content of each text of a drawing that is not turned."""
    ends, offsets = [], [0.0]
    for tag in re.finditer(r"<(/?)(g|text)\b([^>]*?)(/?)>([^<]*)", drawing):
        closing, kind, attributes, empty, text = tag.groups()
        moved = re.search(r"translate\(([-0-9.]+)", attributes)
        left = offsets[-1] + (float(moved[1]) if moved else 0.0)
        if kind == "g" and closing:
            offsets.pop()
        elif kind == "g" and not empty:
            offsets.append(left)
        elif kind == "text" and not closing and "rotate" not in attributes:
            wide = 5.0 * len(text)  # of a 12 pixel font with many narrow letters
            anchor = re.search(r'text-anchor="(\w+)"', attributes)
            share = {"start": 1.0, "middle": 0.5, "end": 0.0}[anchor[1] if anchor else "start"]
            ends.append((left + share * wide, text))
    return ends
