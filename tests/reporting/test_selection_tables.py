"""Tables of how layers were chosen: what each layer is worth, and what each cut costs."""

from types import ModuleType

import pytest

from inheritune.reporting.block_charts import block_charts
from inheritune.reporting.selection_tables import (
    inherited_table,
    removal_table,
    selection_section,
    zero_token_table,
)
from inheritune.reporting.vega import svg
from inheritune.run_record.measurements import BlockScoreRecord, SelectionRecord
from inheritune.run_record.record import RunRecord

pytestmark = pytest.mark.drawn


def layer(number: int, kl: float | None, loss: float | None) -> dict[str, object]:
    return {"layer": number, "kl": kl, "loss": loss, "influence": 0.25, "norm_ratio": 1.5}


SELECTION = SelectionRecord.model_validate(
    {
        "text": {"sequences": 32, "asked": 32, "tokens_per_sequence": 256, "seed": 0}
        | {"bos": True, "source": "the run's training text"},
        "loss": 3.5,
        "layers": [layer(0, 2.0, 2.5), layer(1, 0.5, -0.25), layer(2, None, None)],
        "inherited": [
            {"name": "target", "select": "block", "layers": 3, "kept": [0, 1, 3], "kl": 0.25}
            | {"loss": 0.5, "start_val_loss": 3.75, "val_loss": 3.625},
            {"name": "last", "select": "last", "layers": 1, "kept": [3], "kl": None}
            | {"loss": None, "start_val_loss": None, "val_loss": 9.0},
        ],
        "seconds": 1.5,
    }
)


def test_a_row_says_what_a_cut_keeps_and_costs() -> None:
    table = inherited_table(SELECTION)
    assert table.headers == [
        "model",
        "select",
        "layers",
        "inherited",
        "KL of the cut (nats/token)",
        "val_loss at zero tokens (nats/token)",
        "val_loss trained (nats/token)",
    ]
    assert table.rows == [
        ["target", "block", "3", "0-1, 3", "0.2500", "3.7500", "3.6250"],
        ["last", "last", "1", "3", "—", "—", "9.0000"],
    ]


def test_bars_are_as_long_as_the_divergence_without_the_layer() -> None:
    table = removal_table(SELECTION)
    assert table.rows == [
        ["0", "2.0000", "█" * 20, "+2.5000", "0.250", "1.500"],
        ["1", "0.5000", "█" * 5, "-0.2500", "0.250", "1.500"],
        ["2", "—", "", "—", "0.250", "1.500"],
    ]


def test_layers_that_cost_nothing_have_no_bar() -> None:
    layers = [row.model_copy(update={"kl": 0.0, "loss": 0.0}) for row in SELECTION.layers]
    free = SELECTION.model_copy(update={"layers": layers})
    assert [row[2] for row in removal_table(free).rows] == ["", "", ""]


def test_removals_that_were_not_measured_have_no_columns() -> None:
    unmeasured = SELECTION.model_copy(update={"layers": SELECTION.layers[2:]})
    table = removal_table(unmeasured)
    assert table.headers == ["layer", "influence", "norm ratio"]
    assert table.rows == [["2", "0.250", "1.500"]]


def test_the_section_says_what_the_scores_were_measured_on(synthetic: ModuleType) -> None:
    record = RunRecord.model_validate(synthetic.record())
    assert selection_section(record) is None  # nothing was chosen by scores
    section = selection_section(record.model_copy(update={"selection": SELECTION}))
    assert section is not None
    assert "32 windows of 256 tokens of the training text" in section.text[0]
    assert [table.name for table in section.tables] == ["inherited-layers", "removal-of-layers"]


def test_the_cut_the_repaired_cut_and_the_trained_model_stand_in_one_row() -> None:
    rows = [
        {"name": "target", "start": "inherit", "layers": 2, "start_val_loss": 4.0, "val_loss": 3.0}
        | {"tokens": 1000, "repair": {"cut_val_loss": 5.0}},
    ]
    others = [
        {"name": "first", "start": "inherit", "layers": 2, "start_val_loss": 6.0, "val_loss": 3.5}
        | {"tokens": 1000},
        {"name": "scratch", "start": "fresh", "layers": 2, "start_val_loss": 8.0, "val_loss": 4.0},
    ]
    recipe = {"variants": {"target": {"start": "inherit"}}}
    fields = {"rounds": rows, "variants": [*rows, *others], "recipe": recipe}
    record = RunRecord.model_validate(fields)
    table = zero_token_table(record)
    assert table.rows == [
        ["target", "2", "5.000", "4.000", "3.000", "1K"],
        ["first", "2", "6.000", "—", "3.500", "1K"],
    ]
    section = selection_section(record)
    assert section is not None and section.title == "Before any training"
    assert [table.name for table in section.tables] == ["zero-tokens"]


def test_blocks_become_a_map_of_what_was_measured_of_them() -> None:
    blocks = [
        {"start": s, "length": n, "angle": 0.1 * n + 0.01 * s, "kl": 0.5 * (s + 1)}
        for n in (1, 2, 3)
        for s in range(4 - n + 1)
    ]
    for block in blocks:
        if block["length"] == 2:
            block["kl"] = None  # no way of choosing asked for these
    selection = SELECTION.model_copy(
        update={"blocks": [BlockScoreRecord.model_validate(block) for block in blocks]}
    )
    kl, angle = block_charts(selection)
    rows = kl.spec["data"]["values"]
    assert {(row["start"], row["length"]) for row in rows} == {
        *((start, 1) for start in range(4)),
        *((start, 3) for start in range(2)),
    }
    assert next(row for row in rows if row["length"] == 3)["layers"] == "layers 0-2"
    assert len(angle.spec["data"]["values"]) == 9
    assert "from 0.5 (layer 0) to 2" in kl.alt
    assert svg(kl.spec).startswith("<svg") and svg(angle.spec).startswith("<svg")


def test_a_run_that_scored_no_block_has_no_map() -> None:
    assert block_charts(SELECTION) == []
