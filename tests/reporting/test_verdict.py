"""The sentence, and what must be read with it."""

from types import ModuleType
from typing import Any

import pytest

from inheritune.reporting.remarks import remarks
from inheritune.reporting.trust import checks
from inheritune.reporting.verdict import headline, tone, verdict
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


def test_matched_names_loss_difference_rounds_and_share_of_all_rounds(
    synthetic: ModuleType,
) -> None:
    assert verdict(typed(synthetic.record())) == (
        "Matched: the target with 6 of 8 layers reaches a validation loss of 2.093 against the "
        "reference's 2.100, a difference of −0.007 ± 0.004 nats (standard error, window by "
        "window); it took 2M training tokens in 2 rounds together, 6.7% of the 30M the reference "
        "was trained on."
    )


def test_a_verdict_says_what_was_gained_where_it_was_measured(synthetic: ModuleType) -> None:
    models = [
        {"name": "reference", "disk_bytes": 100, "decode": {"median": 10.0}},
        {"name": "target", "disk_bytes": 77, "decode": {"median": 13.1}},
    ]
    said = verdict(typed(synthetic.record(gains={"models": models})))
    gained = "1.31× as fast at generating text, 23% smaller; it took 2M training"
    assert f"(standard error, window by window); {gained}" in said


def test_cost_counts_every_round_and_never_only_the_last(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["rounds"][0]["tokens"] = 29_000_000
    assert "30M training tokens in 2 rounds together, 100% of the 30M" in verdict(typed(record))


def test_matched_within_noise_says_that_it_is_worse(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["result"] |= {"outcome": "matched_within_noise", "val_loss": 2.107}
    record["rounds"][1] |= {"val_loss": 2.107, "difference": 0.0066}
    assert verdict(typed(record)).startswith("Matched within noise: ")
    assert (
        "+0.007 ± 0.004 nats (standard error, window by window), worse by no more than two"
        in verdict(typed(record))
    )


def test_not_matched_is_said_first(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["rounds"] = record["rounds"][:1]
    record["result"] |= {"outcome": "not_matched", "layers": 4, "val_loss": 2.2131}
    assert verdict(typed(record)).startswith("Not matched: the target with 4 of 8 layers")
    assert "+0.113" in verdict(typed(record))
    assert "in 1 round," in verdict(typed(record))


def _one_size(synthetic: ModuleType) -> dict[str, Any]:
    """A run of one size, whether it matches or not: its cut lost 2 nats, of which 1.7 are back."""
    record: dict[str, Any] = synthetic.record()
    record["recipe"]["grow"] = {"add": 0}
    record["rounds"] = [
        record["rounds"][1]
        | {"start_val_loss": 3.2004, "repair": {"cut_val_loss": 4.1004}}
        | {"val_loss": 2.4004, "difference": 0.3, "difference_se": 0.004, "outcome": "not_matched"}
    ]
    record["result"] |= {"outcome": "not_matched", "val_loss": 2.4004}
    return record


def test_a_run_that_asks_for_no_match_says_how_much_is_back(synthetic: ModuleType) -> None:
    record = _one_size(synthetic)
    models = [
        {"name": "reference", "disk_bytes": 100, "decode": {"median": 10.0}},
        {"name": "target", "disk_bytes": 77, "decode": {"median": 13.1}},
    ]
    record["gains"] = {"models": models}
    assert headline(typed(record)) == "85% back"
    assert tone(typed(record)) == "recovered"
    assert verdict(typed(record)) == (
        "85% back: of what cutting to 6 of 8 layers lost, 85% is back (validation loss 4.100 cut, "
        "2.400 now, 2.100 of the reference: +0.300 ± 0.004 nats, standard error window by window); "
        "1.31× as fast at generating text, 23% smaller; it took 1M training tokens in 1 round, "
        "3.3% of the 30M the reference was trained on."
    )
    assert any("it does not match the reference loss" in said for said in remarks(typed(record)))


def test_without_measured_gains_the_size_is_that_of_the_parameters(synthetic: ModuleType) -> None:
    record = _one_size(synthetic)
    del record["rounds"][0]["repair"]  # then its start is the cut
    assert "73% is back (validation loss 3.200 cut, 2.400 now, 2.100 of" in verdict(typed(record))
    assert "window by window); 26% smaller; it took" in verdict(typed(record))
    record["rounds"][0]["difference_se"] = None  # of a single window
    assert "of the reference: +0.300 nats); 26% smaller" in verdict(typed(record))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"difference": -0.01, "outcome": "matched"}, "Matched"),
        ({"outcome": "matched_within_noise"}, "Matched within noise"),
        ({"start_val_loss": 2.1, "repair": None}, "Not matched"),  # the cut had lost nothing
        ({"start_val_loss": 2.3, "repair": None}, "Not matched"),  # and the training made it worse
        ({"start_val_loss": None, "repair": None}, "Not matched"),
    ],
)
def test_only_what_is_back_is_called_so(
    synthetic: ModuleType, changes: dict[str, Any], expected: str
) -> None:
    record = _one_size(synthetic)
    record["rounds"][0] |= changes
    record["result"]["outcome"] = record["rounds"][0]["outcome"]
    assert headline(typed(record)) == expected
    assert verdict(typed(record)).startswith(f"{expected}: the target with 6 of 8 layers")
    assert tone(typed(record)) == record["result"]["outcome"]


def test_a_run_that_asks_for_a_match_and_misses_says_so(synthetic: ModuleType) -> None:
    record = _one_size(synthetic)
    for grow in ({"add": 1}, {}):  # an old record does not say
        record["recipe"]["grow"] = grow
        assert headline(typed(record)) == "Not matched"


def test_unknown_reference_tokens_are_called_unknown(synthetic: ModuleType) -> None:
    record = synthetic.record(ledger=[])
    record["reference"]["trained_tokens"] = None
    assert verdict(typed(record)).endswith("the cost of the reference's own training is not known.")


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ("running", "Running: the run has not ended; 2 rounds have ended."),
        (
            "interrupted",
            "Interrupted: the run stopped after 2 rounds; run it again to continue.",
        ),
        ("done", "Unfinished: the record ends after 2 rounds and holds no result."),
        ("failed", "Failed: the run ended after 2 rounds: the loss is NaN. Lower it."),
    ],
)
def test_no_result_is_no_verdict(synthetic: ModuleType, status: str, sentence: str) -> None:
    error = {"message": "the loss is NaN.", "hint": "Lower it."}
    assert verdict(typed(synthetic.record(status=status, result=None, error=error))) == sentence


def test_an_empty_record_has_a_verdict() -> None:
    assert verdict(typed({})).startswith("Unfinished")
    assert headline(typed({})) == "Unfinished"
    assert remarks(typed({})) == []


@pytest.mark.parametrize("strange", ["x", 3, [], None, {"outcome": "great"}, {"outcome": []}])
def test_a_strange_result_is_no_match(synthetic: ModuleType, strange: object) -> None:
    assert typed(synthetic.record(result=strange)).outcome == "unfinished"


def test_remarks_define_gap_closed_and_admit_borrowing_and_the_single_seed(
    synthetic: ModuleType,
) -> None:
    said = " ".join(remarks(typed(synthetic.record())))
    assert "Gap closed: 101%" in said
    assert "(scratch − target) / (scratch − reference)" in said
    assert "The reference was not trained here: its training (30M tokens) is borrowed" in said
    assert "1 seed" in said


def test_undefined_gap_is_explained(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["result"]["gap_closed"] = None
    assert any(s.startswith("Gap closed: not defined here") for s in remarks(typed(record)))


@pytest.mark.parametrize(
    ("val_loss", "ending"),
    [
        (2.05, "reaches 2.050: it beats the target by 0.043 nats."),
        (2.6214, "reaches 2.621: the target is better by 0.528 nats."),
        (2.0933, "reaches 2.093, the same as the target."),
    ],
)
def test_equal_compute_is_compared_honestly(
    synthetic: ModuleType, val_loss: float, ending: str
) -> None:
    record = synthetic.record()
    record["variants"][3]["val_loss"] = val_loss
    assert any(sentence.endswith(ending) for sentence in remarks(typed(record)))


def test_missing_equal_compute_is_said(synthetic: ModuleType) -> None:
    record = synthetic.record()
    del record["variants"][3]
    assert any(s.startswith("No equal-compute control") for s in remarks(typed(record)))


def test_a_reference_no_better_than_scratch_is_called_undertrained(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["variants"][2]["val_loss"] = 2.09
    assert any("the reference is undertrained" in sentence for sentence in remarks(typed(record)))


def test_a_tolerance_is_named(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["recipe"]["grow"]["tolerance"] = 0.05  # as earlier versions call it
    named = "Matched means here: at most 0.050 nats above the reference loss."
    assert named in remarks(typed(record))
    record["recipe"]["grow"] = {"match": {"val_loss": 0.05, "kl": None}}
    assert named in remarks(typed(record))


def test_several_criteria_are_named_with_those_that_were_not_met(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["recipe"]["grow"] = {"match": {"val_loss": None, "kl": 0.1, "top1": 0.9, "tasks": 0.01}}
    for row in record["rounds"]:
        row["criteria"] = {"kl": "not_matched", "top1": "matched", "tasks": "matched_within_noise"}
    (sentence,) = [text for text in remarks(typed(record)) if "Matched means" in text]
    assert sentence == (
        "Matched means here: KL divergence at most 0.100 nats; the same likeliest token at 90% of "
        "tokens or more; tasks at most 1.0% below the reference's, in the mean. Not met: kl, tasks."
    )
    for row in record["rounds"]:
        row["criteria"] = dict.fromkeys(row["criteria"], "matched")
    assert any(text.endswith("All are met.") for text in remarks(typed(record)))


def test_a_target_of_full_depth_is_said_to_save_nothing(synthetic: ModuleType) -> None:
    record = synthetic.record()
    assert not [remark for remark in remarks(typed(record)) if "nothing was removed" in remark]
    record["result"] |= {"layers": 8, "reference_layers": 8}
    assert [remark for remark in remarks(typed(record)) if "nothing was removed" in remark]


def test_a_scaled_run_says_first_that_it_is_no_result(synthetic: ModuleType) -> None:
    said = "Scaled by 0.001: it is no result of the method."
    assert remarks(typed(synthetic.RECORD | {"scaled": said}))[0] == said


# -- the reference, trained on the same tokens


def _with_trained_reference(synthetic: ModuleType, val_loss: float, **found: Any) -> dict[str, Any]:
    """A run with a control that is the whole reference, trained as the target was."""
    record: dict[str, Any] = synthetic.record()
    row = {"name": "whole", "start": "inherit", "layers": 8, "tokens": 1_000_000}
    record["variants"].append(row | {"val_loss": val_loss})
    record["result"]["trained_reference"] = {"name": "whole"} | found
    return record


def test_the_verdict_names_the_reference_trained_on_the_same_tokens(synthetic: ModuleType) -> None:
    paired = {"difference": 0.0431, "difference_se": 0.0021}
    record = typed(_with_trained_reference(synthetic, 2.05, **paired))
    assert (
        "(standard error, window by window); the reference itself, trained on the same tokens "
        "(whole), reaches 2.050, and the target is +0.043 ± 0.002 from that; it took 2M training "
        "tokens" in verdict(record)
    )
    assert any("has learnt this text" in said for said in remarks(record))


def test_a_target_below_the_trained_reference_is_called_that(synthetic: ModuleType) -> None:
    record = typed(_with_trained_reference(synthetic, 2.0951, difference=-0.002))  # one window
    assert "(whole), reaches 2.095, and the target is −0.002 from that; it took" in verdict(record)
    assert not any("has learnt this text" in said for said in remarks(record))


def test_the_share_that_is_back_stands_beside_the_trained_reference(synthetic: ModuleType) -> None:
    record, other = _one_size(synthetic), _with_trained_reference(synthetic, 2.0, difference=0.4)
    record["variants"] = other["variants"]
    record["result"]["trained_reference"] = other["result"]["trained_reference"]
    assert "(whole), reaches 2.000, and the target is +0.400 from that; it" in (
        verdict(typed(record))
    )


@pytest.mark.parametrize(("error", "is_said"), [(0.010, False), (0.0004, True)])
def test_a_difference_within_its_noise_does_not_make_the_target_the_worse_model(
    synthetic: ModuleType, error: float, is_said: bool
) -> None:
    paired = {"difference": 0.001, "difference_se": error}
    record = typed(_with_trained_reference(synthetic, 2.092, **paired))
    assert any("has learnt this text" in said for said in remarks(record)) == is_said
    check = next(check for check in checks(record) if check.title == "Reference")
    assert check.holds != is_said


def test_a_match_without_that_control_says_what_is_not_known(synthetic: ModuleType) -> None:
    begins = "The reference was not trained on the target's tokens, so"
    assert any(said.startswith(begins) for said in remarks(typed(synthetic.record())))
    trained = synthetic.record()  # on this very text: nothing is said of it
    trained["reference"]["trained_here"] = True
    assert not any("text" in said for said in remarks(typed(trained)) if said.startswith(begins))
    missed = synthetic.record()
    missed["result"] |= {"outcome": "not_matched", "val_loss": 2.2}
    assert not any(said.startswith(begins) for said in remarks(typed(missed)))
