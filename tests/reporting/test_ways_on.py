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
    assert (way.name, way.sets) == ("more layers, 6 of 8", ["grow.max_rounds=2"])
    assert way.gain == pytest.approx(0.1127 / 2)
    assert way.flops == pytest.approx(1.2e13 * 6 / 4)
    assert "straight line to the reference" in way.basis


def test_two_rounds_tell_what_a_layer_brought(missed):
    way = named(missed(2, max_layers=6))["more layers"]
    assert (way.name, way.sets) == ("more layers, 8 of 8", ["grow.max_layers=8"])
    assert way.gain == pytest.approx(0.1127 / 2)
    assert way.basis == "as the last round brought per layer"


def test_no_layers_are_offered_where_no_limit_ended_growth(missed):
    assert "more layers" not in named(missed())


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


def test_a_run_without_rounds_has_no_ways():
    assert ways_on(RunRecord(), []) == []
