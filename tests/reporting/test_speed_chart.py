"""The figure of quality against generation speed."""

from typing import Any

from inheritune.reporting.gains_table import gains_section
from inheritune.reporting.speed_chart import quality_against_speed
from inheritune.reporting.styles import REFERENCE, SCRATCH, TARGET
from inheritune.reporting.vega import svg
from inheritune.run_record.record import RunRecord


def model(name: str, layers: int, decode: float | None) -> dict[str, Any]:
    spread = None if decode is None else {"median": decode, "low": decode - 2, "high": decode + 4}
    return {"name": name, "layers": layers, "decode": spread}


def record_of(models: list[dict[str, Any]], **more: Any) -> RunRecord:
    fields: dict[str, Any] = {
        "benchmark": {"val_loss": 2.0, "val_loss_se": 0.0625},
        "rounds": [{"name": "inherit", "layers": 6, "val_loss": 2.25, "val_loss_se": 0.125}],
        "variants": [
            {"name": "inherit", "start": "inherit", "val_loss": 2.25, "val_loss_se": 0.125},
            {"name": "scratch", "start": "fresh", "val_loss": 4.5},
        ],
        "gains": {"device": "a processor", "new_tokens": 32, "repeats": 5, "models": models},
    }
    return RunRecord.model_validate(fields | more)


REFERENCE_MODEL, TARGET_MODEL = model("reference", 8, 40.0), model("target", 6, 50.0)


def points(spec: dict[str, Any]) -> list[dict[str, Any]]:
    (layer,) = [layer for layer in spec["layer"] if layer["mark"]["type"] == "point"]
    return list(layer["data"]["values"])


def test_each_model_stands_at_its_speed_and_loss_in_the_colour_of_every_figure() -> None:
    chart = quality_against_speed(
        record_of([REFERENCE_MODEL, TARGET_MODEL, model("scratch", 6, 52.0)])
    )
    assert chart is not None
    rows = points(chart.spec)
    assert [(row["speed"], row["value"]) for row in rows] == [(40, 2.0), (50, 2.25), (52, 4.5)]
    styles = [REFERENCE, TARGET, SCRATCH]
    assert [(row["color"], row["shape"]) for row in rows] == [(s.color, s.shape) for s in styles]
    assert [row["label"] for row in rows] == [
        "reference, 8 layers",
        "target, 6 layers",
        "scratch, 6 layers",
    ]
    assert svg(chart.spec).startswith("<svg")


def test_whiskers_are_the_spread_of_speed_and_two_standard_errors_of_loss() -> None:
    chart = quality_against_speed(record_of([REFERENCE_MODEL, TARGET_MODEL]))
    assert chart is not None
    target = points(chart.spec)[1]
    assert [target[key] for key in ("slow", "fast", "low", "high")] == [48, 54, 2.0, 2.5]


def test_the_figure_is_in_the_section_on_speed_with_a_table_of_its_data() -> None:
    section = gains_section(record_of([REFERENCE_MODEL, TARGET_MODEL]))
    assert section is not None
    (chart,) = section.charts
    assert chart.name == "quality-speed"
    assert chart.table is not None
    assert chart.table.rows[1] == ["target", "6", "50", "48", "54", "2.250", "0.125"]


def test_fewer_than_two_models_with_a_speed_and_a_loss_make_no_figure() -> None:
    assert quality_against_speed(record_of([REFERENCE_MODEL])) is None
    assert quality_against_speed(record_of([REFERENCE_MODEL, model("target", 6, None)])) is None
    assert quality_against_speed(record_of([REFERENCE_MODEL, model("stranger", 6, 50.0)])) is None
    assert quality_against_speed(RunRecord()) is None
