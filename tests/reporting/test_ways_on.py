"""What a run that missed says about the ways on follows from its own numbers."""

import pytest

from inheritune.reporting.curves import Curve
from inheritune.reporting.ways_on import describe_way, gap_to_match, ways_on
from inheritune.run_record.record import RunRecord


@pytest.fixture
def missed(synthetic):
    """Make the record of a run whose rounds missed; the second of two has 6 of 8 layers."""

    def record(count=1, **grow):
        content = synthetic.record()
        content["rounds"] = content["rounds"][:count]
        content["rounds"][-1] |= {"outcome": "not_matched", "difference": 0.1127 / count}
        content["recipe"]["grow"] |= grow
        return RunRecord.model_validate(content)

    return record


def curve(*points, number=1):
    return Curve("inherit", "inherit", 4, number, points)


def named(record, *curves):
    return {way.name.split(",")[0]: way for way in ways_on(record, curves)}


def test_one_round_has_the_reference_as_the_other_end_of_the_line(missed):
    way = named(missed(max_rounds=1))["more layers"]
    assert way.name == "more layers, 6 of 8"
    assert way.sets == ["grow.max_layers=6", "grow.max_rounds=2"]
    assert way.gain == pytest.approx(0.1127 / 2)
    assert way.flops == pytest.approx(1.2e13 * 6 / 4)
    assert "straight line to the reference" in way.basis


def test_two_rounds_tell_what_a_layer_brought(missed):
    way = named(missed(2, max_layers=6))["more layers"]
    assert way.name == "more layers, 7 of 8"  # two more are the reference itself
    assert way.sets == ["grow.max_layers=7", "grow.max_rounds=3"]
    assert way.gain == pytest.approx(0.1127 / 4)
    assert way.basis == "as the last round brought per layer"


@pytest.mark.parametrize(
    ("safe", "size"),
    [([4, 6, 8], 6), ([4, 5, 8], 5), ([4, 5, 7, 8], 7), ([4, 8], None), ([4], None)],
)
def test_layers_are_offered_where_the_reference_is_safe_to_cut(missed, safe, size):
    content = missed().model_dump()
    content["reference"]["safe_layers"] = safe
    way = named(RunRecord.model_validate(content)).get("more layers")
    assert (way and way.name) == (size and f"more layers, {size} of 8")


def test_a_target_of_fixed_size_is_offered_growth(missed):
    way = named(missed(add=0))["more layers"]
    assert way.name == "more layers, 5 of 8"
    assert way.sets == ["grow.add=1", "grow.max_layers=5", "grow.max_rounds=2"]


def test_more_layers_after_a_bisection_are_a_run_of_their_own(missed):
    way = named(missed(search="bisect"))["more layers"]
    assert way.sets == ["name=demo-6-layers", "inherit.layers=6"]


@pytest.mark.parametrize(
    ("select", "rounds", "sets"),
    [
        ("last", 1, ["inherit.layers=4"]),
        ("last:4", 1, []),
        ("last:4", 2, ["inherit.select=last", "inherit.layers=6"]),
        ("0-2,7", 2, []),  # it grows again
    ],
)
def test_a_run_of_its_own_begins_with_layers_that_its_selection_can_have(
    missed, select, rounds, sets
):
    content = missed(rounds).model_dump()
    content["recipe"]["inherit"] = {"layers": None, "select": select}
    ways = named(RunRecord.model_validate(content))
    assert ways["distillation from the reference"].sets[2:] == sets


def test_weights_that_rounding_alone_keeps_from_matching_are_published_in_fp32(missed):
    content = missed().model_dump()
    content["rounds"][-1] |= {"val_loss": 2.2, "fp32_val_loss": 2.1, "val_loss_se": 0.02}
    content["rounds"][-1] |= {"difference": 0.05}
    record = RunRecord.model_validate(content)
    (way,) = ways_on(record, [])
    assert way.sets == ["target.dtype=fp32", "name=demo-fp32", "inherit.layers=4"]
    assert "match before rounding, which adds 0.1000 nats" in describe_way(way, 0.05)
    content["rounds"][-1] |= {"difference": 0.15}
    assert "more layers" in named(RunRecord.model_validate(content))


def test_more_tokens_bring_what_the_second_half_brought(missed):
    ended = curve((0, 5.0), (480_000, 2.4), (1_000_000, 2.2131))
    way = named(missed(), ended)["more tokens"]
    assert way.gain == pytest.approx(2.4 - 2.2131) and way.flops == 2.4e13
    assert way.sets == ["train.tokens=2000000", "name=demo-2x-tokens", "inherit.layers=4"]
    assert describe_way(way, gap_to_match(missed())).startswith(
        "more tokens, 2M instead of 1M: closes about 100% of the gap for about 2.4 × 10¹³ FLOPs"
    )


def test_a_way_that_nothing_tells_the_worth_of_says_what_is_lacking_and_comes_last(missed):
    ways = ways_on(missed(max_rounds=1), [curve((0, 5.0), (1_000_000, 2.2131))])
    assert [way.gain is None for way in ways] == [False, True, True]
    assert "lower train.eval_every" in describe_way(ways[1], 0.1)
    assert ways[2].sets[0] == "variants.inherit.distill={}"
    # A forward pass of the reference, 8 layers, is a third of its training.
    assert ways[2].flops == pytest.approx(1.2e13 + 1.2e13 * 8 / 4 / 3)


def test_a_distilled_variant_tells_what_distillation_brings(missed):
    record = missed(max_rounds=1)
    content = record.model_dump()
    row = {"name": "taught", "start": "inherit", "layers": 4, "tokens": 1_000_000}
    content["variants"].append(row | {"val_loss": 2.1131, "distill": {"alpha": 0.6}})
    way = named(RunRecord.model_validate(content))["distillation from the reference"]
    assert way.gain == pytest.approx(0.1)
    assert way.basis == "as taught of this run shows"


def test_text_that_is_too_short_is_repeated(missed):
    content = missed().model_dump()
    content["tokens"]["train_tokens"] = 1_000_000
    content["recipe"]["data"]["tokens"] = 1_000_000
    way = named(RunRecord.model_validate(content))["more tokens"]
    assert way.sets[-2:] == ["data.tokens=2000000", "data.allow_repeat=true"]


@pytest.mark.parametrize("val_loss", [None, 1.0])
def test_where_another_criterion_missed_the_fall_of_val_loss_is_told(missed, val_loss):
    content = missed().model_dump()
    content["recipe"]["grow"]["match"] = {"val_loss": val_loss, "kl": 0.1}
    content["rounds"][-1] |= {"criteria": {"val_loss": "matched", "kl": "not_matched"}}
    record = RunRecord.model_validate(content)
    way = named(record)["more layers"]
    said = describe_way(way, gap_to_match(record))
    assert "more layers, 6 of 8 for about" in said and "lowers val_loss by about 0.056, on" in said
    content["rounds"][-1] |= {"val_loss": 2.2, "fp32_val_loss": 2.1, "val_loss_se": 0.02}
    assert "more layers" in named(RunRecord.model_validate(content))


def test_a_run_without_rounds_has_no_ways():
    assert ways_on(RunRecord(), []) == []
