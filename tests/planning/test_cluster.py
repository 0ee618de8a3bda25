"""What a training takes on many devices: how the weights lie, what fits, hours, money, losses."""

import json
from pathlib import Path

import pytest
from sparse_model import LLAMAS, write_llama
from tiny_recipe import recipe_of

from inheritune.api import plan
from inheritune.cli.plan_answers import answers
from inheritune.cli.plan_text import recipe_tables
from inheritune.errors import RecipeError
from inheritune.model_files.training_memory import Layout, Memory, TrainedModel
from inheritune.planning.cluster import (
    Links,
    Traffic,
    best_interval,
    device_counts,
    lost_share,
    save_seconds,
)
from inheritune.planning.fitting import cheapest_change
from inheritune.planning.recipe_plan import RecipePlan, plan_recipe
from inheritune.recipe.sharding import bytes_at_rest, shard_count, sums_every_pass
from inheritune.recipe.training import Train
from inheritune.reporting.quantities import duration

GB = 10**9


def train(**more: object) -> Train:
    fields = {"tokens": "1B", "seq_len": 4096, "batch_tokens": 4_194_304, "micro_batch": 2}
    return Train.model_validate(fields | more)


@pytest.fixture
def distilled(tmp_path: Path):
    """Plan half of a reference, which learns from the whole, on H100."""

    def planned(size: str, devices: int | str, **more: object) -> RecipePlan:
        folder = tmp_path / size
        if not folder.exists():
            write_llama(folder, size)
        recipe = {
            "name": "big",
            "reference": {"model": str(folder)},
            "data": {"source": "stdlib"},
            "inherit": {"layers": LLAMAS[size][2] // 2},
            "grow": {"max_rounds": 1},
            "train": train(**more).model_dump(mode="json"),
            "variants": {"inherit": {"start": "inherit", "distill": {}}},
        }
        path = tmp_path / "big.yaml"
        path.write_text(json.dumps(recipe))
        return plan(path, device="h100", devices=devices, rate=2.5, runs=tmp_path, progress=False)

    return planned


@pytest.mark.parametrize(
    ("size", "devices", "fits", "change"),
    [
        ("3B", 1, True, None),
        ("8B", 1, False, "2 devices, train.activation_checkpointing on"),
        ("8B", 8, True, None),
        ("8B", 64, True, None),
        ("70B", 1, False, "16 devices, train.activation_checkpointing on"),
        ("70B", 8, False, "16 devices, train.activation_checkpointing on"),
        ("70B", 64, False, "train.activation_checkpointing on"),
    ],
)
def test_a_plan_says_what_fits_and_the_cheapest_change_that_does(
    size: str, devices: int, fits: bool, change: str | None, distilled
) -> None:
    made = distilled(size, devices)
    assert (made.memory.total <= made.room) is fits
    assert (made.change and made.change.text) == change
    assert made.change is None or made.change.plan.memory.total <= made.room


def test_the_cheapest_change_is_priced_as_the_same_number_of_devices_would_be(distilled) -> None:
    one, two = distilled("8B", 1), distilled("8B", 2, activation_checkpointing="on")
    changed = one.change.plan
    assert changed == two.clusters[0]
    assert changed.hours * 2 * 2.5 == changed.dollars
    price = f"{duration(3600 * changed.hours)}, ${changed.dollars:,.0f}"
    assert answers(one)[-1].endswith(f"activation_checkpointing on: 65.7 GB, {price}")
    assert distilled("8B", 8).change is None


def test_a_change_recomputes_only_where_as_many_devices_do_not_suffice_without() -> None:
    def memory(changed: Train, devices: int) -> Memory:
        return Memory(2 if devices > 1 and changed.micro_batch == 1 else 4, 0, 0, 0)

    found = cheapest_change(train(), 1, 3, memory)
    assert found is not None
    assert found.text == "2 devices, train.micro_batch 1"


def test_no_change_keeps_devices_that_cannot_divide_a_step() -> None:
    def memory(changed: Train, devices: int) -> Memory:
        return Memory(1 if changed.offload == "on" else 4, 0, 0, 0)

    of_16 = train(seq_len=32, batch_tokens=512, micro_batch=4)
    assert cheapest_change(of_16, 3, 3, memory) is None
    found = cheapest_change(of_16, 2, 3, memory)
    assert found is not None
    assert found.text.endswith("train.offload on")


def test_a_range_of_devices_is_planned_with_hours_money_and_losses(distilled) -> None:
    rows = distilled("8B", "8..64", activation_checkpointing="on").clusters
    assert [row.devices for row in rows] == [8, 16, 32, 64]
    assert [row.fits for row in rows] == [True] * 4
    for row in rows:
        assert row.device_hours == row.hours * row.devices
        assert row.dollars == pytest.approx(2.5 * row.device_hours)
        assert 0 <= row.waiting < 1
        assert 0 < row.lost < 1
    assert rows[3].hours < rows[0].hours / 4
    wide = distilled("8B", "512..1024", activation_checkpointing="on").clusters
    assert [row.change for row in wide] == ["", "train.micro_batch 1"]  # of 1,024 sequences a step


def test_numbers_of_devices_that_shard_size_does_not_divide_do_not_fit(distilled) -> None:
    asked = {"parallel": "hybrid", "shard_size": 8}
    found = distilled("3B", "4..16", **asked)
    assert [(one.devices, one.fits) for one in found.clusters] == [
        (4, False),
        (8, True),
        (16, True),
    ]
    with pytest.raises(RecipeError, match="shard_size 8 does not divide 4 processes"):
        distilled("3B", 4, **asked)


def test_a_plan_recomputes_by_auto_what_would_not_fit(distilled) -> None:
    asked = {"seq_len": 4096, "micro_batch": 8}
    rows = {
        how: distilled("8B", 64, activation_checkpointing=how, **asked).clusters[0]
        for how in ("auto", "on", "off")
    }
    assert (rows["auto"].fits, rows["on"].fits, rows["off"].fits) == (True, True, False)
    assert rows["auto"].memory == rows["on"].memory


def test_a_plan_shows_the_micro_batch_that_auto_comes_to_and_why(distilled) -> None:
    both = {"micro_batch": "auto", "activation_checkpointing": "auto"}
    rows = distilled("8B", "8..1024", **both).clusters
    assert [(row.micro_batch, row.recomputes) for row in rows][:4] == [(2, False)] * 4
    assert (rows[-1].micro_batch, rows[-1].fits, rows[-1].change) == (1, True, "")  # of one each
    large = distilled("70B", 64, **both)
    assert (large.clusters[0].micro_batch, large.clusters[0].recomputes) == (8, True)
    assert large.memory == large.clusters[0].memory
    assert large.memory.total <= large.room
    shown = " ".join(note for table in recipe_tables(large) for note in table.notes)
    assert "train.micro_batch, auto: 8 sequences for inherit, 40 layers, recomputed" in shown
    assert "(16 would take" in shown
    assert "micro-batch" in recipe_tables(large)[1].headers


def test_auto_needs_no_change_of_the_micro_batch_to_fit(distilled) -> None:
    made = distilled("70B", 64, micro_batch="auto")
    assert not made.clusters[0].fits
    assert made.change is not None
    assert made.change.text == "train.activation_checkpointing on"
    assert made.clusters[0].micro_batch == 8
    assert distilled("8B", 1, micro_batch="auto").change.text == (
        "2 devices, train.activation_checkpointing on"
    )


def test_without_a_gpu_a_plan_takes_the_micro_batch_of_a_cpu(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    automatic, stated = (
        plan_recipe(recipe_of(tiny_reference, tiny_text, train=given), tmp_path / "planned")
        for given in ({"micro_batch": "auto"}, {"micro_batch": 8})
    )
    assert automatic.memory == stated.memory


def test_a_copy_lies_on_one_machine_while_that_has_room() -> None:
    sizes = ((4 * GB, 8 * GB), (36 * GB, 70 * GB))
    eight, seventy = (bytes_at_rest(p, p, r, "bf16") for p, r in sizes)
    assert (eight, seventy) == (80 * GB, 716 * GB)
    assert bytes_at_rest(4 * GB, 4 * GB, 8 * GB, "fp32") == 96 * GB  # the reference, too
    assert shard_count(train(), 64, 8, eight, 80 * GB) == 8
    assert shard_count(train(), 64, 8, seventy, 80 * GB) == 64
    assert shard_count(train(), 64, 8, seventy, None) == 8
    assert shard_count(train(parallel="shard"), 64, 8, eight, 80 * GB) == 64
    assert shard_count(train(parallel="hybrid"), 64, 8, seventy, 80 * GB) == 8
    assert shard_count(train(parallel="hybrid", shard_size=16), 64, 8, 0, None) == 16
    with pytest.raises(RecipeError, match="shard_size 12 does not divide 64 processes"):
        shard_count(train(parallel="hybrid", shard_size=12), 64, 8, 0, None)


def test_whole_gradients_are_held_only_where_there_is_room_for_them() -> None:
    assert not sums_every_pass(4 * GB, 8, 80 * GB)
    assert sums_every_pass(8 * GB, 8, 80 * GB)
    assert not sums_every_pass(8 * GB, 1, 80 * GB)
    assert not sums_every_pass(8 * GB, 8, None)


def test_one_process_exchanges_nothing() -> None:
    model = TrainedModel({"vocab_size": 10, "hidden_size": 8}, 1000, 800, 2, False, 1000)
    assert Traffic.of(model, Layout(1), 1, 2).total == 0
    # Copies of a copy on one device each add up all gradients: 2 (C - 1) / C x 4 bytes of each.
    assert Traffic.of(model, Layout(1), 4, 2) == Traffic(0, 0, 6000, 0)


def test_more_devices_lose_more_time_and_save_more_often() -> None:
    links = Links(mtbf_hours=1000, storage=1e9)
    assert save_seconds(12 * GB, 1, links) == 40  # at 0.3 GB/s
    assert save_seconds(12 * GB, 64, links) == 12  # all that the storage takes
    assert lost_share(1, 0, 1200, links) == pytest.approx(1200 / 3_600_000)
    assert lost_share(100, 0, 1200, links) == pytest.approx(100 * 1200 / 3_600_000)
    assert best_interval(100, 12, links) == pytest.approx((2 * 12 * 36_000) ** 0.5)


def test_a_range_of_devices_doubles() -> None:
    assert device_counts("8..1024") == (8, 16, 32, 64, 128, 256, 512, 1024)
    assert device_counts(3) == (3,)
    for wrong in ("two", "0", "8..4", "8..", "1.5"):
        with pytest.raises(RecipeError, match="--devices is"):
            device_counts(wrong)


def test_a_recipe_with_a_shard_size_is_planned_where_no_device_is_named(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    given = {"parallel": "hybrid", "shard_size": 8}
    recipe = recipe_of(tiny_reference, tiny_text, train=given)
    assert plan_recipe(recipe, tmp_path / "planned").memory.total > 0
