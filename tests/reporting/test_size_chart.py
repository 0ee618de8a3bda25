"""The figure of quality against size."""

from typing import Any

from inheritune.reporting.size_chart import quality_against_size
from inheritune.reporting.vega import svg
from inheritune.run_record.measurements import EvaluatedModelRecord


def model(made: str, layers: int, val_loss: float | None, se: float = 0.125) -> Any:
    scores = [{"task": "val_loss", "metrics": {"val_loss": {"value": val_loss, "se": se}}}]
    fields = {"model": f"{made}-{layers}", "made": made, "layers": layers}
    fields |= {"params": 1_000_000 * layers, "scores": [] if val_loss is None else scores}
    return EvaluatedModelRecord.model_validate(fields)


WHOLE = model("whole", 8, 2.0)
MODELS = [WHOLE, model("cut", 4, 4.0), model("cut", 6, 3.0), model("repaired", 6, 2.5)]


def marks(spec: dict[str, Any], kind: str) -> list[list[dict[str, Any]]]:
    layers = [layer for layer in spec["layer"] if layer["mark"]["type"] == kind]
    return [layer["data"]["values"] for layer in layers]


def test_each_way_of_making_has_a_line_over_size_that_ends_at_the_whole_model() -> None:
    chart = quality_against_size(MODELS)
    assert chart is not None
    lines = [[(row["params"], row["value"]) for row in rows] for rows in marks(chart.spec, "line")]
    assert lines == [[(6.0, 2.5), (8.0, 2.0)], [(4.0, 4.0), (6.0, 3.0), (8.0, 2.0)]]
    assert "cut-6, 6 layers: 3.000" in chart.alt
    assert svg(chart.spec).startswith("<svg")
    kinds = [layer["mark"]["type"] for layer in chart.spec["layer"]]
    assert "line" not in kinds[kinds.index("text") :]  # no line strikes a name through


def test_whiskers_are_two_standard_errors() -> None:
    chart = quality_against_size(MODELS)
    assert chart is not None
    (rows,) = marks(chart.spec, "rule")
    assert (rows[1]["low"], rows[1]["high"]) == (3.75, 4.25)


def test_two_whole_models_are_points_and_no_line_ends_at_either() -> None:
    chart = quality_against_size([*MODELS, model("whole", 2, 5.0)])
    assert chart is not None
    assert [len(rows) for rows in marks(chart.spec, "line")] == [1, 2]


def test_less_than_two_models_with_a_loss_are_no_figure() -> None:
    assert quality_against_size([WHOLE, model("cut", 4, None)]) is None
