"""Starts that are repaired before their training: in a whole run, killed, and refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import tiny_recipe
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from inheritune.data.calibration import WINDOWS, calibration_windows
from inheritune.data.order import sample_ids
from inheritune.data.tokens import open_tokens
from inheritune.errors import DataError, Interrupted, UnsupportedModelError
from inheritune.model_files.directory import open_model
from inheritune.planning.recipe_plan import plan_recipe
from inheritune.repair import inherit as repaired_cuts
from inheritune.reporting.run_tables import rounds_table, variants_table
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.system.progress import Progress
from inheritune.verification.directory import verify

REPAIRED = {"layers": 2, "repair": "sequential", "repair_tokens": 320}
VARIANTS = {
    "inherit": {"start": "inherit"},
    "last": {"start": "inherit", "select": "last", "repair": "sequential"},
    "plain": {"start": "inherit", "select": "first"},
}


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory) -> Path:
    """A GPT-2 of 4 layers with a tokenizer, of which layers are worth repairing."""
    return tiny_models.tiny_reference(tmp_path_factory.mktemp("gpt2") / "gpt2", "gpt2")


def recipe_of(model: Path, text: Path, **sections: Any) -> Any:
    sections = {"inherit": REPAIRED, "variants": VARIANTS, "grow": {"add": 0}} | sections
    return tiny_recipe.as_file(tiny_recipe.recipe_of(model, text, **sections))


@pytest.fixture(scope="module")
def finished(gpt2, tiny_text, tmp_path_factory) -> tuple[Path, Any]:
    root = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = recipe_of(gpt2, tiny_text)
    execute(recipe, root)
    return root, recipe


def record_of(root: Path) -> dict[str, Any]:
    return json.loads((root / "run.json").read_text())


def test_verify_says_that_a_trained_target_is_not_fitted_again(finished, gpt2):
    root, _ = finished
    trained = {f.part: f for f in verify(root, open_model(str(gpt2))).findings}
    assert "the target was trained or grown since" in trained["repair"].text


def test_a_run_has_the_losses_of_cut_and_repaired_cut_for_no_token(finished):
    root, _ = finished
    record = record_of(root)
    target = record["rounds"][0]
    plain = next(row for row in record["variants"] if row["name"] == "plain")
    # The same cut, as it is; trainings validate with another attention kernel.
    cut = target["repair"]["cut_val_loss"]
    assert cut == pytest.approx(plain["start_val_loss"], rel=1e-6)
    assert abs(target["start_val_loss"] - cut) > 1e-4
    assert plain["repair"] is None
    assert target["made_of"] == "the first 2 layers of the reference; repaired: sequential"
    last = next(row for row in record["variants"] if row["name"] == "last")
    assert last["repair"]["tokens"] == 320
    assert (target["kept"], last["kept"]) == ([0, 1], [2, 3])


def test_the_repair_is_an_entry_of_the_ledger(finished):
    record = record_of(finished[0])
    entries = {entry["item"]: entry for entry in record["ledger"]}
    target = record["rounds"][0]
    repair = entries["inherit, round 1, 2 layers: repair of the cut"]
    training = entries["inherit, round 1, 2 layers"]
    assert repair["flops"] == target["repair"]["flops"] > 0
    assert repair["flops"] + training["flops"] == pytest.approx(target["flops"], rel=1e-12)
    assert [name for name in entries if "repair" in name] == [
        "inherit, round 1, 2 layers: repair of the cut",
        "last, 2 layers: repair of the cut",
    ]


def test_a_plan_counts_the_repairs_that_the_run_then_makes(finished, gpt2, tiny_text, tmp_path):
    root, recipe = finished
    record = record_of(root)
    plan = plan_recipe(recipe.recipe, tmp_path / "planned")
    rows = {row["name"]: row for row in [*record["variants"], *record["rounds"]]}
    validation_tokens = record["benchmark"]["windows"] * recipe.recipe.train.seq_len
    for training in plan.trainings:
        row = rows[training.name]
        if row["repair"] is None:
            assert training.repair_flops is None
            continue
        # The ledger's figure holds the val_loss of the cut as well.
        cut = validation_tokens * row["flops_per_token"] / 3
        assert training.repair_flops == pytest.approx(row["repair"]["flops"] - cut, rel=1e-9)
        assert training.flops == training.repair_flops + row["flops_per_token"] * row["tokens"]


def test_tables_show_the_cut_beside_the_repaired_start(finished):
    record = RunRecord.model_validate(record_of(finished[0]))
    columns = ["val_loss of the cut (nats)", "val_loss at start (nats)"]
    for table in (rounds_table(record), variants_table(record)):
        place = table.headers.index(columns[0])
        assert table.headers[place : place + 2] == columns
    assert "repaired: sequential" in variants_table(record).markdown()
    # A run without a repair has the tables that it had.
    rows = [row.model_copy(update={"repair": None}) for row in record.rounds]
    plain = record.model_copy(update={"rounds": rows, "variants": rows})
    assert not {columns[0]} & {*rounds_table(plain).headers, *variants_table(plain).headers}


def test_the_record_of_the_target_says_what_was_repaired(finished, gpt2):
    root, _ = finished
    record = json.loads((root / "target" / "inherit.json").read_text())
    windows = calibration_windows(open_tokens(root / "tokens").train, 320, 16, seed=0)
    assert record["repair"]["tokens"] == windows.size == 320
    assert {part.part for part in verify(root).findings} >= {"digests", "class"}
    assert not list(root.rglob("cut")) and not list(root.rglob("start"))


def test_calibration_windows_are_of_the_training_split(tiny_tokens):
    """Every window stands in the training ids, and the validation ids are not even read."""
    train = tiny_tokens.train
    ids = train.ids(0, train.num_ids)
    windows = calibration_windows(train, 20 * 16, 16, seed=3)
    assert windows.shape == (20, 16)
    starts = {tuple(ids[i : i + 16]) for i in range(0, len(ids) - 16, 16)}
    assert {tuple(window) for window in windows} <= starts
    # ... the last that a training of this seed sees, but for those that a tournament compares on.
    available = train.num_samples(16)
    order = sample_ids(0, available, available, 3, epoch=0)
    last = max(20, available - WINDOWS)
    assert np.array_equal(windows, train.samples(order[last - 20 : last], 16)[:, :-1])


def test_a_repair_is_not_fitted_on_what_the_training_reads_first():
    windows = calibration_windows(np.arange(200 * 16 + 1), 20 * 16, 16, seed=3)
    first = sample_ids(0, 148, 200, 3, epoch=0)  # all but these 20, and 32 behind them
    assert not {*first.tolist()} & {*(windows[:, 0] // 16).tolist()}


def test_a_repair_may_ask_for_all_of_a_text():
    ids = np.arange(5 * 16 + 1)
    windows = calibration_windows(ids, 80, 16)
    assert sorted(windows[:, 0]) == [0, 16, 32, 48, 64]


def test_validation_text_does_not_change_a_repair(gpt2, tiny_text, tmp_path):
    weights = []
    for name in ("one", "two"):
        val = tmp_path / f"{name}.jsonl"
        val.write_text(f'{{"text": "text {name}, to be validated on, and long enough"}}\n' * 40)
        data = {"val_source": str(val), "source": str(tiny_text)}
        recipe = recipe_of(gpt2, tiny_text, data=data, variants={"inherit": {"start": "inherit"}})
        root = stopped_after(recipe, tmp_path / name, "it was repaired in")
        weights.append(load_file(start_of(root) / "model.safetensors"))
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


# --- killed and continued ---


def start_of(root: Path) -> Path:
    return root / "variants" / "inherit" / "2-layers" / "start"


class _KilledError(BaseException):
    pass


def stopped_after(recipe: Any, root: Path, message: str) -> Path:
    """Carry out a recipe until a message, as if the process was killed there."""

    def listener(event: Progress) -> None:
        if message in (event.message or "") or message in event.task:
            raise _KilledError

    with pytest.raises(_KilledError):
        execute(recipe, root, listener)
    return root


@pytest.mark.parametrize("moment", ["val_loss of the cut", "layers, repair", "it was repaired in"])
def test_a_run_that_was_killed_while_it_repaired_ends_as_one_that_was_not(
    finished, gpt2, tiny_text, tmp_path, moment
):
    root, recipe = tmp_path / "tiny", finished[1]
    stopped_after(recipe, root, moment)
    assert not (start_of(root) / "made_from.json").exists()  # never half
    execute(recipe, root)
    name = "variants/inherit/2-layers/model/model.safetensors"
    assert (root / name).read_bytes() == (finished[0] / name).read_bytes()
    assert not list(root.rglob("cut"))


def test_a_start_that_is_whole_is_not_repaired_again(finished, tmp_path):
    root, recipe = tmp_path / "tiny", finished[1]
    stopped_after(recipe, root, "step")
    messages = []
    execute(recipe, root, lambda event: messages.append(f"{event.task} {event.message}"))
    repaired = [text for text in messages if "it was repaired" in text]
    assert len(repaired) == 1 and repaired[0].startswith("last")


def test_a_start_names_everything_that_its_repair_was_made_from(finished, tmp_path):
    root = stopped_after(finished[1], tmp_path / "tiny", "step")
    stored = json.loads((start_of(root) / "made_from.json").read_text())
    tokens = open_tokens(root / "tokens").fingerprint
    calibration = [tokens, 16, 0, "last"]
    expected = {"repair": "sequential", "repair_tokens": 320, "calibration": calibration}
    assert expected.items() <= stored.items()


# --- one repair for all trainings that have the same ---

AGAIN = {"start": "inherit", "select": "first", "repair": "sequential", "lr_scale": 0.5}
SHARED = {"inherit": {"start": "inherit"}, "again": AGAIN}


def counted(recipe: Any, root: Path) -> int:
    """Carry out a recipe; returns how many repairs were fitted."""
    calls, fit = [], repaired_cuts.repair_layers

    def repair_layers(*args: Any, **options: Any) -> Any:
        calls.append(args[2])
        return fit(*args, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repaired_cuts, "repair_layers", repair_layers)
        execute(recipe, root)
    return len(calls)


@pytest.fixture(scope="module")
def shared(gpt2, tiny_text, tmp_path_factory) -> tuple[Path, Any]:
    """Two variants of one cut, each with two seeds; and how many repairs that took."""
    root = tmp_path_factory.mktemp("shared") / "tiny"
    recipe = recipe_of(gpt2, tiny_text, variants=SHARED, seeds=[0, 1])
    return root, counted(recipe, root)


def test_variants_of_one_cut_are_byte_equal_to_those_that_are_repaired_apart(
    shared, gpt2, tiny_text, tmp_path
):
    inherit = REPAIRED | {"repair": "none"}
    apart = recipe_of(gpt2, tiny_text, variants=SHARED, seeds=[0, 1], inherit=inherit)
    assert counted(apart, tmp_path / "apart") == 2  # for each seed, on other windows
    root, fits = shared
    assert fits == 2
    for name in ("2-layers", "2-layers-seed-1"):
        mine, own = (path / "variants/again" / name for path in (root, tmp_path / "apart"))
        for file in ("inherit.json", "model/model.safetensors"):
            assert (mine / file).read_bytes() == (own / file).read_bytes()
        records = [json.loads((path / "repair.json").read_text()) for path in (mine, own)]
        assert records[0]["cut_val_loss"] == records[1]["cut_val_loss"]
    assert not (root / "repairs").exists()


def test_a_shared_repair_is_counted_where_it_was_made_and_named_where_it_is_used(shared):
    record = record_of(shared[0])
    target = record["rounds"][0]
    again = next(row for row in record["variants"] if row["name"] == "again")
    assert "shared" not in target["repair"] and target["repair"]["flops"] > 0
    path = "variants/inherit/2-layers"
    assert again["repair"]["flops"] == 0
    parts = again["repair"]["shared"]
    assert {part["made_for"] for part in parts.values()} == {path}
    assert sum(part["flops"] for part in parts.values()) == target["repair"]["flops"]
    # The second seed has windows of its own; the cut is the same, and was measured.
    second = json.loads(
        (shared[0] / path.replace("2-layers", "2-layers-seed-1/repair.json")).read_text()
    )
    assert [*second["shared"]] == ["cut_val_loss"] and second["flops"] > 0
    spent = {entry["item"]: entry["flops"] for entry in record["ledger"]}
    repairs = {item: flops for item, flops in spent.items() if "repair" in item}
    assert repairs == {
        "inherit, round 1, 2 layers: repair of the cut": target["repair"]["flops"],
        f"again, 2 layers: repair of the cut, that of {path}": 0,
        "inherit, 2 layers, seed 1: repair of the cut": second["flops"],
        f"again, 2 layers, seed 1: repair of the cut, that of {path}-seed-1": 0,
    }
    assert spent["again, 2 layers"] == spent["inherit, round 1, 2 layers"]
    note = f"variants/again/2-layers starts from the repair that was made for {path}"
    assert any(text.startswith(note) for text in record["notes"])


def test_a_plan_prices_a_shared_repair_once(shared, gpt2, tiny_text, tmp_path):
    recipe = recipe_of(gpt2, tiny_text, variants=SHARED, seeds=[0, 1]).recipe
    plan = plan_recipe(recipe, tmp_path / "planned")
    rows = {(t.name, t.seed): t for t in plan.trainings}
    for seed in (None, 1):
        first, again = rows["inherit", seed], rows["again", seed]
        assert first.repair_flops and first.shared_repair_flops is None
        assert (again.repair_flops, again.shared_repair_flops) == (0.0, first.repair_flops)
        assert first.flops - again.flops == pytest.approx(first.repair_flops, rel=1e-9)
    assert any("Repairs of again are made once" in note for note in plan.notes)


@pytest.mark.parametrize(
    "change",
    [{"repair": "linear"}, {"select": "0,2"}, {"layers": 3}],
)
def test_another_repair_is_fitted_anew(gpt2, tiny_text, tmp_path, change):
    variants = {"inherit": {"start": "inherit"}, "other": AGAIN | change}
    assert counted(recipe_of(gpt2, tiny_text, variants=variants), tmp_path / "run") == 2


def test_a_repair_on_other_tokens_is_fitted_anew(finished, gpt2, tiny_text, tmp_path):
    """Of a recipe that was changed after its repair was made."""
    root = stopped_after(finished[1], tmp_path / "run", "it was repaired in")
    only = {"inherit": {"start": "inherit"}}
    inherit = REPAIRED | {"repair_tokens": 336}
    assert counted(recipe_of(gpt2, tiny_text, variants=only, inherit=inherit), root) == 1
    assert record_of(root)["rounds"][0]["repair"]["tokens"] == 336


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_fit_outlives_a_kill_with_its_cost_unless_a_bit_of_it_is_lost(
    finished, gpt2, tiny_text, tmp_path, is_damaged
):
    root = stopped_after(finished[1], tmp_path / "run", "it was repaired in")
    (fit,) = root.glob("repairs/*/repaired.safetensors")
    if is_damaged:
        data = bytearray(fit.read_bytes())
        data[-1] ^= 1
        fit.write_bytes(data)
    assert counted(finished[1], root) == 1 + is_damaged  # that of `last`, too
    name = "variants/inherit/2-layers/model/model.safetensors"
    assert (root / name).read_bytes() == (finished[0] / name).read_bytes()
    repair, expected = (record_of(path)["rounds"][0]["repair"] for path in (root, finished[0]))
    assert repair["flops"] == expected["flops"] and "shared" not in repair


# --- refused before anything is trained ---


def test_a_class_without_a_projection_is_refused_by_the_plan(tmp_path, tiny_text):
    model = tiny_models.tiny_reference(tmp_path / "gemma3", "gemma3")
    recipe = recipe_of(model, tiny_text, variants={"inherit": {"start": "inherit"}}).recipe
    with pytest.raises(UnsupportedModelError, match="has no projection that a repair can be"):
        plan_recipe(recipe, tmp_path / "run", None)
    with pytest.raises(UnsupportedModelError, match="has no projection that a repair can be"):
        execute(tiny_recipe.as_file(recipe), tmp_path / "run")
    assert not (tmp_path / "run" / "variants").exists()


def test_too_few_training_tokens_are_refused(gpt2, tiny_text, tmp_path):
    recipe = recipe_of(gpt2, tiny_text, inherit=REPAIRED | {"repair_tokens": 10**6})
    with pytest.raises(DataError, match="windows of 16 tokens, 62500 are asked for"):
        execute(recipe, tmp_path / "run")
    assert not Run(tmp_path / "run").target.exists()
    # The tokens are there now, so a plan knows as well; without them, by the bytes of the text.
    with pytest.raises(DataError, match=r"at most .* windows of 16 tokens, 62500 are asked for"):
        plan_recipe(recipe.recipe, tmp_path / "not prepared", None)
    with pytest.raises(DataError, match="windows of 16 tokens, 62500 are asked for"):
        plan_recipe(recipe.recipe, tmp_path / "run", None)


def test_too_few_tokens_for_the_repair_of_a_control_are_refused_before_a_training(
    gpt2, tiny_text, tmp_path
):
    inherit = REPAIRED | {"repair": "none", "repair_tokens": 10**6}
    with pytest.raises(DataError, match="windows of 16 tokens, 62500 are asked for"):
        execute(recipe_of(gpt2, tiny_text, inherit=inherit), tmp_path / "run")
    assert not (tmp_path / "run" / "variants").exists()


def test_a_repair_on_a_single_window_is_refused_by_the_recipe(gpt2, tiny_text):
    with pytest.raises(ValidationError, match=r"needs two windows of train\.seq_len tokens: 32"):
        recipe_of(gpt2, tiny_text, inherit=REPAIRED | {"repair_tokens": 31})
    recipe_of(gpt2, tiny_text, inherit=REPAIRED | {"repair_tokens": 32})


def test_a_repair_on_more_than_the_recipe_prepares_is_refused_by_the_recipe(gpt2, tiny_text):
    data = {"source": str(tiny_text), "val_fraction": 0.2, "tokens": 1024}
    inherit = REPAIRED | {"repair_tokens": 1024}
    with pytest.raises(ValidationError, match=r"data\.tokens 1024 has 63 whole windows of 16"):
        recipe_of(gpt2, tiny_text, inherit=inherit, data=data)
    recipe_of(gpt2, tiny_text, inherit=inherit | {"repair_tokens": 1023}, data=data)


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"variants": VARIANTS | {"s": {"start": "fresh", "repair": "linear"}}},
         "fits whole inherited layers"),
        ({"variants": VARIANTS | {"s": {"start": "inherit", "parts": "mlp", "repair": "linear"}}},
         "fits whole inherited layers"),
        ({"variants": {"inherit": {"start": "inherit", "repair": "linear"}}},
         "the target's repair belongs in inherit.repair"),
        ({"grow": {"weights": "keep", "add": 1}}, "use grow.weights: reinherit"),
        ({"variants": VARIANTS | {"g": {"start": "grown"}}}, "no variant that starts grown"),
    ],
)  # fmt: skip
def test_recipes_that_contradict_a_repair_are_refused(gpt2, tiny_text, sections, problem):
    with pytest.raises(ValidationError, match=problem):
        recipe_of(gpt2, tiny_text, **sections)


def test_a_signal_stops_a_run_in_the_middle_of_a_repair(gpt2, tiny_text, tmp_path):
    import os
    import signal

    root = tmp_path / "tiny"
    recipe = recipe_of(gpt2, tiny_text, inherit=REPAIRED | {"select": "0,2"})  # two layers of it

    def listener(event: Progress) -> None:
        if event.task.endswith("repair"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="repair is done again"):
        execute(recipe, root, listener)
    assert not start_of(root).exists()
