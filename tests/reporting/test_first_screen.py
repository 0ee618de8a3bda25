"""The first screen: four facts, what the result rests on, and how the target is used."""

import ast
from types import ModuleType
from typing import Any

import pytest

from inheritune.reporting.remarks import remarks
from inheritune.reporting.run_tables import leading_rows, variants_table
from inheritune.reporting.summary import facts, missing
from inheritune.reporting.trust import checks
from inheritune.reporting.usage import usage
from inheritune.run_record.record import RunRecord

typed = RunRecord.model_validate


def _found(record: dict[str, object]) -> dict[str, tuple[bool, str]]:
    return {check.title: (check.holds, check.phrase) for check in checks(typed(record))}


def test_four_facts_say_what_was_kept_reached_gained_and_paid(synthetic: ModuleType) -> None:
    record = synthetic.record()
    found = {fact.title: (fact.value, *fact.details) for fact in facts(typed(record))}
    assert list(found) == ["Kept", "Loss", "Gained", "Cost"]
    assert found["Kept"][0] == "6 of 8 layers"
    assert found["Loss"] == (
        *("2.093", "nats per token; reference 2.100"),
        "difference −0.007 ± 0.004, window by window",
    )
    assert found["Gained"] == (
        *("26% smaller", "speed was not measured", "0.822 nats better than scratch"),
    )
    assert found["Cost"][:2] == ("2M tokens", "all 2 rounds, 2 min 25 s")


def test_the_layers_that_were_left_out_are_named(synthetic: ModuleType) -> None:
    def named(record: dict[str, Any]) -> str:
        return next(fact for fact in facts(typed(record)) if fact.title == "Kept").details[0]

    record = synthetic.record()
    assert named(record).endswith("parameters")  # not known
    target = {"name": "inherit", "layers": 6}
    record["selection"] = {
        "inherited": [
            {"name": "last", "layers": 6, "kept": [2, 3, 4, 5, 6, 7]},
            target | {"kept": [0, 1, 4, 5, 6, 7]},
        ]
    }
    assert named(record) == "without layers 2-3 (counted from 0)"  # by an older version
    record["rounds"][-1] |= target | {"kept": [0, 2, 3, 4, 6, 7]}
    assert named(record) == "without layers 1, 5 (counted from 0)"
    record["reference"]["layers"] = 30
    record["rounds"][-1]["kept"] = [*range(0, 30, 2)]
    assert named(record) == "without layers 1, 3, 5, 7, 9, 11, … (counted from 0)"
    record["rounds"][-1]["kept"] = [*range(30)]
    assert named(record).endswith("parameters")


def test_a_speed_that_is_still_to_be_measured_is_not_called_missing(synthetic: ModuleType) -> None:
    running = synthetic.record(status="running", result=None, stages=[{"name": "size and speed"}])
    (gained,) = (fact for fact in facts(typed(running)) if fact.title == "Gained")
    assert gained.details[0] == "speed is still to be measured"
    running["stages"][0]["seconds"] = 3.0  # measured, and not known
    (gained,) = (fact for fact in facts(typed(running)) if fact.title == "Gained")
    assert gained.details[0] == "speed was not measured"
    running["stages"][0].pop("seconds")
    running["status"] = "interrupted"
    (gained,) = (fact for fact in facts(typed(running)) if fact.title == "Gained")
    assert gained.details[0] == "speed was not measured"


def test_scratch_of_equal_compute_stands_in_for_scratch_of_equal_tokens(
    synthetic: ModuleType,
) -> None:
    record = synthetic.record()
    del record["variants"][2]
    gained = next(fact for fact in facts(typed(record)) if fact.title == "Gained")
    assert gained.details[-1] == "0.528 nats better than scratch of equal compute"
    assert not [said for said in missing(typed(record), []) if "scratch" in said]
    said = " ".join(remarks(typed(record)))
    assert "Scratch given equal compute" in said
    assert "No scratch control" not in said and "Gap closed" not in said


def test_the_gain_is_in_speed_where_that_was_measured(synthetic: ModuleType) -> None:
    models = [
        {"name": "reference", "disk_bytes": 100, "peak_bytes": 200, "decode": {"median": 10.0}},
        {"name": "target", "disk_bytes": 75, "peak_bytes": 100, "decode": {"median": 13.0}},
    ]
    record = synthetic.record(gains={"models": models})
    gained = next(fact for fact in facts(typed(record)) if fact.title == "Gained")
    assert gained.value == "1.30× as fast"
    assert gained.details[:3] == [
        *("at generating text", "75% of the bytes on disk", "50% of the memory"),
    ]


def test_each_check_is_a_tick_or_a_cross_with_one_phrase(synthetic: ModuleType) -> None:
    assert _found(synthetic.record()) == {
        "Held-out text": (False, "200 validation windows: the difference lies within its noise"),
        "Seeds": (False, "one seed, so the spread over seeds is not known"),
        "Equal compute": (True, "scratch with the same FLOPs is 0.528 worse"),
        "Reference": (
            False,
            "not trained on the target's tokens, which may explain a gain",
        ),
        "Texts apart": (
            True,
            "2.1% of held-out 13-token sequences are in the training text (limit 10%)",
        ),
    }


@pytest.mark.parametrize(
    ("windows", "error", "expected"),
    [
        (200, 0.0018, (True, "200 validation windows: the difference is 4.1 standard errors")),
        (7, 0.0018, (False, "only 7 validation windows: too few for a standard error")),
        (None, 0.0018, (False, "the standard error of the difference is not known")),
        (200, None, (False, "the standard error of the difference is not known")),
    ],
)
def test_few_windows_or_a_difference_within_its_noise_is_a_cross(
    synthetic: ModuleType, windows: int | None, error: float | None, expected: tuple[bool, str]
) -> None:
    record = synthetic.record()
    record["benchmark"]["windows"] = windows
    record["rounds"][1]["difference_se"] = error
    assert _found(record)["Held-out text"] == expected


@pytest.mark.parametrize(
    ("difference", "expected"),
    [
        (-0.007, (True, "trained on the same tokens it is 0.007 worse than the target")),
        (
            0.003,
            (True, "trained on the same tokens it is 0.003 better than the target, within noise"),
        ),
        (0.093, (False, "trained on the same tokens it is 0.093 better than the target")),
    ],
)
def test_a_reference_trained_on_the_same_text_tells_whether_the_text_explains_the_gain(
    synthetic: ModuleType, difference: float, expected: tuple[bool, str]
) -> None:
    record = synthetic.record()
    known = {"name": "whole", "difference": difference, "difference_se": 0.002}
    record["result"]["trained_reference"] = known
    assert _found(record)["Reference"] == expected


def test_a_doubt_is_a_cross(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["variants"][2]["val_loss"] = 2.05  # scratch beats the reference
    record["variants"][3]["val_loss"] = 2.0  # and with equal compute the target
    record["tokens"]["overlap"]["duplicate_documents"] = 0.25
    assert [holds for holds, _ in _found(record).values()] == [False] * 5
    assert _found(record)["Texts apart"][1] == "25% of held-out documents are in the training text"
    record["variants"] = record["variants"][:2]
    record["reference"]["trained_here"] = True
    del record["tokens"]["overlap"]
    assert _found(record)["Reference"] == (
        *(False, "trained in this run on 30M tokens: a weak one is easy to match"),
    )
    assert not any(holds for holds, _ in _found(record).values())


def test_a_reference_of_another_run_was_trained_on_this_text_too(synthetic: ModuleType) -> None:
    record = synthetic.record()
    record["reference"]["taken_from"] = "references/demo-12345678"
    assert _found(record)["Reference"] == (
        *(False, "trained by another run on 30M tokens: a weak one is easy to match"),
    )


def test_before_there_is_a_result_nothing_is_checked_or_used(synthetic: ModuleType) -> None:
    record = typed(synthetic.record(result=None))
    assert checks(record) == [] and usage(record) is None


@pytest.mark.parametrize(
    ("recorded", "run"),
    [("runs/demo", "runs/demo"), ("…/demo", "demo"), ("it's", '"it\'"\'"\'s"'), ("", ".")],
)
def test_the_code_and_the_commands_name_the_target(
    synthetic: ModuleType, recorded: str, run: str
) -> None:
    record = synthetic.record()
    record["result"]["run"] = recorded
    use = usage(typed(record))
    assert use is not None
    ast.parse(use.code)
    assert f'path = "{use.path}"' in use.code and use.path.endswith("target")
    commands = dict(use.commands)
    assert list(commands) == ["publish", "evaluate", "llama.cpp"]
    if recorded != "it's":
        assert commands["publish"] == f"inheritune push {run} --repo-id OWNER/NAME"
    else:
        assert "'it'\"'\"'s'" in commands["publish"]


def test_whatever_beats_the_target_is_shown_first_and_the_rest_is_folded(
    synthetic: ModuleType,
) -> None:
    record = synthetic.record()
    one = record["variants"][2]
    better = [one | {"name": f"b{n}", "val_loss": 2.0 + n / 1e3} for n in range(9)]
    worse = [one | {"name": f"w{n}", "val_loss": 2.5 + n / 1e3} for n in range(9)]
    record["variants"] += [*better, *worse]
    table = variants_table(typed(record))
    shown = [table.values[index][0] for index in leading_rows(typed(record), table)]
    assert shown == [*(f"b{n}" for n in range(9)), "inherit", "reference", "scratch"]
    record["variants"] = [*record["variants"][:4], *worse]
    table = variants_table(typed(record))
    shown = [table.values[index][0] for index in leading_rows(typed(record), table)]
    assert shown == ["inherit", "reference", *(f"w{n}" for n in range(5)), "scratch"]
