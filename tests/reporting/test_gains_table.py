"""The table of gains shows medians with their spread, and fidelity where it was measured."""

import pytest

from inheritune.reporting.gains_table import gained_words, gains_sentence, gains_table
from inheritune.run_record.measurements import GainsRecord
from inheritune.run_record.record import RunRecord


def spread(median: float) -> dict[str, float]:
    return {"median": median, "low": median / 2, "high": median * 2}


def model(name: str, scale: float, fidelity: dict[str, float] | None = None) -> dict[str, object]:
    return {
        "name": name,
        "layers": 8 * scale,
        "params": 1e6 * scale,
        "disk_bytes": 4e6 * scale,
        "peak_bytes": 8e6 * scale,
        "cache_bytes_per_token": 1024 * scale,
        "prefill": spread(2000 / scale),
        "decode": spread(50 / scale),
        "first_token": spread(0.1 * scale),
        "fidelity": fidelity,
    }


CLOSE = {"kl": 0.25, "kl_se": 0.01, "top1": 0.8, "top1_se": 0.002, "overlap": 0.75, "windows": 9}
GAINS = GainsRecord.model_validate(
    {
        "device": "a processor",
        "dtype": "fp32",
        "prompt_tokens": 256,
        "new_tokens": 32,
        "repeats": 5,
        "models": [model("reference", 1.0), model("target", 0.5, CLOSE)],
    }
)


def test_cells_hold_medians_with_spread_and_fidelity_with_errors() -> None:
    table = gains_table(GAINS)
    cells = dict(zip(table.headers, table.rows[1], strict=True))
    assert cells["prefill (tokens/s)"] == "4,000 (2,000 to 8,000)"
    assert cells["first token (ms)"] == "50 (25 to 100)"
    assert cells["weights on disk"] == "2 MB"
    assert cells["KL to the first (nats/token)"] == "0.2500 ± 0.0100"
    assert cells["sum of min(p, q) (share)"] == "0.7500"  # a single window has no error
    assert table.rows[0][-3:] == ["—", "—", "—"]
    assert "a processor, fp32" in table.notes[0]
    assert "9 validation windows" in table.notes[1]


def test_a_table_can_be_written_in_full_and_turned() -> None:
    table = gains_table(GAINS)
    assert '"4000 (2000 to 8000)"' not in table.csv()
    assert "4000 (2000 to 8000)" in table.csv()
    turned = table.transposed()
    assert turned.headers == ["model", "reference", "target"]
    assert turned.rows[0] == ["layers", "8", "4"]


def test_without_fidelity_there_are_no_columns_for_it() -> None:
    models = [model("one", 1.0), model("two", 0.5)]
    table = gains_table(
        GAINS.model_copy(update={"models": GAINS.model_validate({"models": models}).models})
    )
    assert len(table.headers) == 9
    assert len(table.notes) == 1


def test_the_sentence_compares_the_target_with_the_reference() -> None:
    assert gains_sentence(GAINS) == (
        "Target against reference: 0.50 of the bytes on disk, 0.50 of the memory, 2.00 times the "
        "decode speed."
    )
    assert gains_sentence(GainsRecord()) == ""


def test_a_record_with_holes_is_shown_with_dashes() -> None:
    broken = GainsRecord.model_validate({"models": [{"name": "a", "prefill": 3}, {"params": "x"}]})
    rows = gains_table(broken).rows
    assert [row[1:] for row in rows] == [["—"] * 8] * 2
    assert gains_sentence(broken) == ""


@pytest.mark.parametrize(
    ("params", "words"), [(75, ["25% smaller"]), (125, ["25% larger"]), (100, [])]
)
def test_only_a_target_of_another_size_is_smaller_or_larger(params: int, words: list[str]) -> None:
    target = {"name": "inherit", "layers": 3, "params": params}
    record = RunRecord.model_validate({"reference": {"params": 100}, "rounds": [target]})
    assert gained_words(record) == words
