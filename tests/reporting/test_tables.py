"""Tables: the same values as text, Markdown and CSV."""

import csv
import io
from types import ModuleType

import pytest
from rich.console import Console

from inheritune.reporting.run_tables import ledger_table, rounds_table, seeds_table, variants_table
from inheritune.reporting.table import Column, Mark, Table
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


def test_rounds_table_shows_losses_with_paired_error(synthetic: ModuleType) -> None:
    table = rounds_table(typed(synthetic.record()))
    assert table.headers[:7] == [
        "round",
        "layers",
        "outcome",
        "val_loss (nats)",
        "SE",
        "minus reference loss (nats)",
        "paired SE",
    ]
    assert table.rows[1] == [
        "2",
        "6",
        "matched",
        "2.093",
        "0.031",
        "−0.007",
        "0.004",
        "3.905",
        "1M",
        "0.33",
        "2.9M",
        "1.7 × 10¹³",
        "85 s",
    ]


def test_variants_table_is_sorted_by_loss(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["variants"].reverse()
    table = variants_table(typed(record))
    assert [row[0] for row in table.rows] == ["inherit", "reference", "equal-compute", "scratch"]
    assert table.rows[1][2] == "—"  # the reference is not compared with itself
    assert table.rows[3][2] == "+0.814"


def test_ledger_sums_what_was_spent_here_apart_from_what_was_borrowed(
    synthetic: ModuleType,
) -> None:
    table = ledger_table(typed(synthetic.record()))
    assert table.values[-2][:4] == ["sum of what was spent here", 4_757_465, 7.54e13, 371.0]
    assert table.values[-1][:2] == ["sum with what was borrowed", 34_757_465]


def test_ledger_says_when_its_sums_are_too_low(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["ledger"][2]["flops"] = None
    assert any("too low" in note for note in ledger_table(typed(record)).notes)


def test_csv_holds_full_numbers_and_nothing_for_the_unknown(synthetic: ModuleType) -> None:
    written = list(csv.reader(io.StringIO(variants_table(typed(synthetic.record())).csv())))
    assert written[0][-2:] == ["time (s)", "start"]
    assert written[2] == [
        "reference",
        "2.1004",
        "",
        "0.031",
        "8",
        "3900000",
        "30000000",
        "690000000000000.0",
        "",
        "trained reference",
    ]


def test_markdown_keeps_one_row_per_line_whatever_a_name_holds(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["variants"][2]["name"] = "a|b\nc <script>`x`"
    lines = variants_table(typed(record)).markdown().splitlines()
    assert lines[0].startswith("| variant | val_loss (nats) | minus reference loss (nats) |")
    assert lines[1].startswith("| --- | ---: | ---: |")
    assert lines[5].startswith(r"| a\|b c &lt;script>\`x\` | 2.915 | +0.814 |")


@pytest.mark.parametrize("make", [rounds_table, variants_table, ledger_table])
@pytest.mark.parametrize("strange", [None, "x", 3, [], [1, "x", None], [{}], [{"layers": "six"}]])
def test_tables_of_strange_records_are_tables(make, strange) -> None:  # type: ignore[no-untyped-def]
    table = make(typed({"rounds": strange, "variants": strange, "ledger": strange}))
    assert all(len(row) == len(table.headers) for row in table.rows)
    assert table.csv().startswith(table.columns[0].title)
    assert table.markdown().startswith("| ")


def test_with_several_seeds_each_has_a_row_of_its_own(synthetic: ModuleType) -> None:
    record = synthetic.record()
    assert not seeds_table(typed(record)).values
    seeds = [{"seed": n, "val_loss": 2.0 + n, "difference": n - 0.1} for n in (0, 1)]
    record["variants"][1] |= {"num_seeds": 2, "val_loss_sd": 0.7, "seeds": seeds}
    assert [row[:4] for row in seeds_table(typed(record)).rows] == [
        ["inherit", "6", "0", "2.000"],
        ["inherit", "6", "1", "3.000"],
    ]
    row = dict(
        zip(
            variants_table(typed(record)).headers,
            variants_table(typed(record)).rows[0],
            strict=True,
        )
    )
    assert (row["SD over seeds"], row["seeds"]) == ("0.700", "2")
    assert any("mean over seeds" in note for note in variants_table(typed(record)).notes)


def test_terminal_grid_shows_markup_as_text_and_aligns_numbers_right() -> None:
    table = Table("t", [Column("name"), Column("size", show=str)], [["[red]x", "7"], ["y", "12"]])
    console = Console(width=60)
    with console.capture() as shown:
        console.print(table.rich())
    assert [line.rstrip() for line in shown.get().splitlines()] == [
        "name    size",
        "[red]x     7",
        "y         12",
    ]


def test_a_table_is_parted_without_losing_a_row() -> None:
    marks = {(1, 0): Mark(bold=True), (2, 0): Mark(chance=True)}
    columns = [Column("n", show=str)]
    table = Table("t", columns, [["a"], ["b"], ["c"]], ["A note."], marks=marks)
    first, rest = table.parted([2])
    assert (first.values, first.notes) == ([["c"]], ["A note."])
    assert (rest.values, rest.notes) == ([["a"], ["b"]], ())
    assert first.marks == {(0, 0): marks[2, 0]}
    assert rest.marks == {(1, 0): marks[1, 0]}
