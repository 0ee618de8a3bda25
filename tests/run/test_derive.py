import json
import os
import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import tiny_recipe

from inheritune.data.token_parts import Worker
from inheritune.errors import DataError, Interrupted, RecipeError
from inheritune.recipe.load import RecipeFile
from inheritune.recipe.variants import Match
from inheritune.reporting.live_text import status_of
from inheritune.reporting.provenance import provenance
from inheritune.reporting.verdict import verdict
from inheritune.run.derive import judge
from inheritune.run.execute import execute as execute_recipe
from inheritune.run.listing import list_runs
from inheritune.run.one_step import prepare_one_worker, prepare_only, train_only
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.steps.result import TrainingResult
from inheritune.system.environment import machine
from inheritune.system.progress import Progress

typed = RunRecord.model_validate


def recipe_of(model: Path, text: Path, **sections: dict[str, Any]) -> RecipeFile:
    """Two rounds of ten steps on the tiny reference; `sections` are merged in."""
    report = {"prompts": ["the small"], "sample_tokens": 4} | sections.pop("report", {})
    return tiny_recipe.as_file(tiny_recipe.recipe_of(model, text, report=report, **sections))


def execute(*args: Any) -> dict[str, Any]:
    return execute_recipe(*args).summary


def snapshot(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.suffix in {".safetensors", ".bin"}
    }


@pytest.fixture(scope="module")
def finished(
    tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any], RecipeFile]:
    root = tmp_path_factory.mktemp("runs") / "tiny"
    recipe = recipe_of(tiny_reference, tiny_text)
    return root, execute(recipe, root), recipe


def test_the_summary_has_every_promised_key(
    finished: tuple[Path, dict[str, Any], RecipeFile],
) -> None:
    root, final, _ = finished
    promised = (
        "outcome method layers reference_layers rounds benchmark val_loss val_loss_se gap_closed"
    )
    promised = promised.replace("gap_closed", "seeds seeds_matched gap_closed trained_reference")
    promised += " tokens flops seconds device_hours price variants run target report"
    assert list(final) == promised.split()
    keys = ["name", "start", "layers", "params", "tokens", "val_loss", "val_loss_se"]
    keys += ["val_loss_sd", "num_seeds"]
    assert all(list(row) == keys for row in final["variants"])
    assert [row["name"] for row in final["variants"]] == ["reference", "inherit", "scratch"]
    assert final["reference_layers"] == 4
    assert Run(root).read()["result"] == final


def test_a_flipped_byte_of_the_target_is_mended_when_the_run_is_given_again(
    finished: tuple[Path, dict[str, Any], RecipeFile], tmp_path: Path
) -> None:
    root, _, recipe = finished
    copy = tmp_path / root.name
    shutil.copytree(root, copy)
    weights = copy / "target" / "model.safetensors"
    whole, times = weights.read_bytes(), weights.stat()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))  # same size, same time
    execute(recipe, copy)
    assert weights.read_bytes() == whole


def test_a_target_that_never_matches_grows_to_the_limit(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    # Trained for one step at next to no rate, a cut model stays worse than the whole one...
    frozen = {"tokens": 128, "learning_rate": 1e-12, "min_learning_rate": 0.0}
    good = trained_reference(tiny_reference, tiny_text, tmp_path)
    grow = {"add": 1, "max_rounds": 3}
    recipe = recipe_of(good, tiny_text, train=frozen, inherit={"layers": 1}, grow=grow)
    result = execute_recipe(recipe, tmp_path / "run")
    record = result.record.as_json()
    rounds = [(r["round"], r["layers"], r["outcome"]) for r in record["rounds"]]
    assert [r[:2] for r in rounds] == [(1, 1), (2, 2), (3, 3)]
    assert (result.verdict, result.is_missed) == ("not_matched", True)
    assert record["exit_code"] == 6
    # ...until all of its layers are there: then nothing is missing.
    whole = recipe_of(good, tiny_text, train=frozen, inherit={"layers": 4})
    result = execute_recipe(whole, tmp_path / "whole")
    assert result.val_loss == pytest.approx(result.reference_loss, abs=1e-6)


def test_growth_stops_at_the_first_round_that_matches(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, grow={"tolerance": 100.0})
    result = execute_recipe(recipe, tmp_path / "run")
    assert (result.layers, result.verdict, result.is_missed) == (2, "matched", False)
    assert result.summary["rounds"] == 1


def trained_reference(model: Path, text: Path, folder: Path) -> Path:
    """The tiny reference after 60 steps, so that its layers are worth something."""
    recipe = recipe_of(
        model,
        text,
        inherit={"layers": 4},
        train={"tokens": 7680, "learning_rate": 1e-2},
        data={"allow_repeat": True},
        variants={"inherit": {"start": "inherit"}},
        grow={"add": 0},
    )
    execute(recipe, folder / "training")
    return folder / "training" / "target"


def test_a_control_has_the_targets_size_and_tokens(
    finished: tuple[Path, dict[str, Any], RecipeFile],
) -> None:
    rows = {row["name"]: row for row in finished[1]["variants"]}
    for same in ("layers", "params", "tokens"):
        assert rows["scratch"][same] == rows["inherit"][same]


def test_the_totals_count_every_round_and_control_and_nothing_borrowed(
    finished: tuple[Path, dict[str, Any], RecipeFile],
) -> None:
    root, final, _ = finished
    record = Run(root).read()
    paid = [entry for entry in record["ledger"] if not entry["borrowed"]]
    assert [entry["item"] for entry in record["ledger"] if entry["borrowed"]] == [
        "reference training"
    ]
    assert final["tokens"] == sum(entry["tokens"] for entry in paid)
    assert final["tokens"] == 1280 * (final["rounds"] + 1)
    assert final["flops"] == sum(entry["flops"] for entry in paid)


def test_the_published_model_has_the_measured_val_loss(
    finished: tuple[Path, dict[str, Any], RecipeFile],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from inheritune.data.tokens import open_tokens
    from inheritune.evaluation.val_loss import measure_val_loss

    root, final, _ = finished
    model, info = AutoModelForCausalLM.from_pretrained(
        root / "target", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    loss = measure_val_loss(model, open_tokens(root / "tokens").val, 16, 16)
    assert loss.mean == final["val_loss"]
    last = (root / "variants/inherit" / f"{final['layers']}-layers/metrics.jsonl").read_text()
    assert json.loads(last.splitlines()[-1])["val_loss"] == loss.mean


def test_the_targets_config_is_the_references_with_the_edits_of_inherit_json(
    finished: tuple[Path, dict[str, Any], RecipeFile], tiny_reference: Path
) -> None:
    target = finished[0] / "target"
    before = json.loads((tiny_reference / "config.json").read_text())
    after = json.loads((target / "config.json").read_text())
    edits = json.loads((target / "inherit.json").read_text())["config_edits"]
    changed = {key for key in before | after if before.get(key) != after.get(key)}
    assert changed - {"dtype"} == {edit["key"] for edit in edits}
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (target / name).read_bytes() == (tiny_reference / name).read_bytes()


def test_a_finished_run_trains_nothing_again(
    finished: tuple[Path, dict[str, Any], RecipeFile],
) -> None:
    root, final, recipe = finished
    before = snapshot(root)
    heard: list[Progress] = []
    assert execute(recipe, root, heard.append) == final
    assert snapshot(root) == before
    assert not [progress for progress in heard if progress.unit == "tokens"]


def test_environments_of_earlier_starts_stay_in_the_record(
    finished: tuple[Path, dict[str, Any], RecipeFile], tmp_path: Path
) -> None:
    root, _, recipe = finished
    copy = Path(shutil.copytree(root, tmp_path / "run"))
    was = json.loads((copy / "run.json").read_text())
    assert was["earlier"] == []
    was["versions"] |= {"torch": "2.0.1"}
    (copy / "run.json").write_text(json.dumps(was))
    for _ in range(2):
        execute(recipe, copy)
        record = json.loads((copy / "run.json").read_text())
        assert [start["versions"]["torch"] for start in record["earlier"]] == ["2.0.1"]
        assert record["versions"]["torch"] != "2.0.1"
    assert provenance(typed(record))[-1] == (
        "earlier starts, with other",
        "torch 2.0.1",
    )


def test_a_changed_recipe_is_refused_with_key_and_values(
    finished: tuple[Path, dict[str, Any], RecipeFile], tiny_reference: Path, tiny_text: Path
) -> None:
    root = finished[0]
    before = snapshot(root)
    record = (root / "run.json").read_bytes(), (root / "recipe.yaml").read_bytes()
    changed = recipe_of(tiny_reference, tiny_text, train={"learning_rate": 2e-3})
    with pytest.raises(RecipeError, match=r"train.learning_rate = 0.001; now it is 0.002"):
        execute(changed, root)
    assert snapshot(root) == before
    assert ((root / "run.json").read_bytes(), (root / "recipe.yaml").read_bytes()) == record


def test_keys_that_change_no_result_may_change(
    finished: tuple[Path, dict[str, Any], RecipeFile], tiny_reference: Path, tiny_text: Path
) -> None:
    root, final, _ = finished
    train, tasks = {"save_minutes": 1.0, "keep": 7}, {"add_bos": "no", "limit": 3}
    free = recipe_of(tiny_reference, tiny_text, train=train, evaluate=tasks)
    assert execute(free, root)["val_loss"] == final["val_loss"]


def test_a_run_stopped_anywhere_ends_with_the_same_bits(
    finished: tuple[Path, dict[str, Any], RecipeFile], tmp_path: Path
) -> None:
    root, final, recipe = finished
    again = tmp_path / "tiny"
    stops = 0
    for allowed in (3, 9, 14, 40, 71, 10_000):
        heard = 0

        def on_progress(progress: Progress, allowed: int = allowed) -> None:
            nonlocal heard
            heard += 1
            if heard == allowed:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGTERM)

        try:
            ended = execute(recipe, again, on_progress)
            break
        except Interrupted as error:
            stops += 1
            assert error.exit_code == 75
            assert Run(again).read()["status"] == "interrupted"
    assert stops >= 3
    for key in ("outcome", "layers", "benchmark", "val_loss", "gap_closed", "tokens", "flops"):
        assert ended[key] == final[key]
    assert snapshot(again) == snapshot(root)


def test_a_reference_is_trained_first_where_the_recipe_says_so(
    tiny_text: Path, tiny_reference: Path, tmp_path: Path
) -> None:
    config = json.loads((tiny_reference / "config.json").read_text())
    wanted = {"config": config, "tokenizer": str(tiny_reference), "tokens": 1280}
    recipe = recipe_of(
        tiny_reference,
        tiny_text,
        reference={"model": None, "train": wanted},
        variants={
            "inherit": {"start": "inherit"},
            "scratch": {"start": "fresh"},
            "longer": {"start": "fresh", "tokens": "equal_compute"},
        },
        data={"allow_repeat": True},
    )
    final = execute(recipe, tmp_path / "tiny")
    record = Run(tmp_path / "tiny").read()
    assert record["reference"]["trained_here"]
    assert not any(entry["borrowed"] for entry in record["ledger"])
    assert record["ledger"][0]["tokens"] == 1280
    # As many training FLOPs as the reference and every round together, to within a step.
    rows = {row["name"]: row for row in record["variants"]}
    cost = {r["layers"]: r["flops_per_token"] for r in record["rounds"]}
    cost[4] = rows["reference"]["flops_per_token"]
    together = 1280 * (cost[4] + sum(cost[r["layers"]] for r in record["rounds"]))
    assert rows["longer"]["tokens"] == pytest.approx(
        together / rows["longer"]["flops_per_token"], abs=128
    )
    assert final["tokens"] == sum(entry["tokens"] for entry in record["ledger"])


def test_more_layers_than_the_reference_has_are_refused_before_anything_is_prepared(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, inherit={"layers": 5})
    with pytest.raises(RecipeError, match=r"inherit.layers is 5.*Choose between 1 and 4"):
        execute(recipe, tmp_path / "tiny")
    assert not (tmp_path / "tiny" / "tokens").exists()


def test_repeated_text_must_be_allowed(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tiny_reference, tiny_text, train={"tokens": 10_000_000})
    with pytest.raises(DataError, match=r"data\.allow_repeat"):
        execute(recipe, tmp_path / "tiny")


def test_tokens_can_be_prepared_alone(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    tokens = prepare_only(recipe_of(tiny_reference, tiny_text), tmp_path / "tiny")
    assert tokens.train.num_ids > tokens.val.num_ids > 0
    assert Run(tmp_path / "tiny").read()["status"] == "done"


def test_a_worker_that_waits_for_another_to_open_the_reference_says_so(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    root, said, other = tmp_path / "tiny", [], ExitStack()
    other.enter_context(Run.hold(root))

    def listen(event: Progress) -> None:
        if event.task == "waiting":
            said.append(event.message)
            other.close()

    recipe = recipe_of(tiny_reference, tiny_text)
    parts = prepare_one_worker(recipe, root, Worker(0, 64), listen)
    assert said == [f"another process works on {root}: waiting for it"]
    assert len(parts.missing) == 63


def test_workers_record_where_and_by_what_they_prepare(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "tiny"
    prepare_one_worker(recipe, root, Worker(0, 64))
    first = Run(root).read()
    assert (first["status"], first["error"]) == ("preparing", None)
    assert [entry.state for entry in list_runs(tmp_path).runs] == ["preparing"]
    assert (first["machine"], first["earlier"]) == (machine(), [])
    elsewhere = machine() | {"processor": "another one"}
    monkeypatch.setattr("inheritune.run.record.machine", lambda: elsewhere)
    for _ in range(2):  # once is enough
        prepare_one_worker(recipe, root, Worker(1, 64))
    second = Run(root).read()
    assert [start["machine"] for start in second["earlier"]] == [elsewhere]
    assert second["machine"] == machine()
    assert second["started_at"] == first["started_at"]
    assert prepare_one_worker(recipe, root, Worker(0, 1)).tokens is not None
    assert (Run(root).read()["status"], Run(root).read()["error"]) == ("done", None)


def test_a_run_given_before_all_parts_are_there_leaves_the_record_of_the_workers(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe, root = recipe_of(tiny_reference, tiny_text), tmp_path / "tiny"
    prepare_one_worker(recipe, root, Worker(0, 2))
    before = Run(root).read()
    with pytest.raises(DataError, match="32 of 64 parts are there"):
        execute(recipe_of(tiny_reference, tiny_text, train={"tokens": 640}), root)
    assert Run(root).read() == before
    assert not Run(root).recipe_file.exists()
    said = "Preparing: workers prepare the text; the run can begin when all parts are there."
    assert verdict(Run(root).record()) == said
    assert status_of(root).lines[:3] == ["tiny: preparing", "", said]
    prepare_one_worker(recipe, root, Worker(1, 2))
    assert (Run(root).read()["status"], Run(root).read()["error"]) == ("done", None)


def test_a_worker_leaves_the_end_of_a_run_as_it_was(
    finished: tuple[Path, dict[str, Any], RecipeFile], tmp_path: Path
) -> None:
    before, _, recipe = finished
    root = Path(shutil.copytree(before, tmp_path / "tiny"))
    shutil.rmtree(root / "tokens")
    prepare_one_worker(recipe, root, Worker(0, 1))
    assert Run(root).read() == Run(before).read()


def test_one_variant_can_be_trained_alone_and_the_run_goes_on_from_it(
    finished: tuple[Path, dict[str, Any], RecipeFile], tmp_path: Path
) -> None:
    _, final, recipe = finished
    trained = train_only(recipe, tmp_path / "tiny")
    assert trained is not None
    assert (trained.training.name, trained.training.layers) == ("inherit", 2)
    assert execute(recipe, tmp_path / "tiny")["val_loss"] == final["val_loss"]
    with pytest.raises(RecipeError, match=r"no variant 'wide'.*inherit, scratch"):
        train_only(recipe, tmp_path / "tiny", variant="wide")


@pytest.mark.parametrize(
    ("difference", "tolerance", "verdict"),
    [
        (-0.1, 0.0, "matched"),
        (0.0, 0.0, "matched"),
        (0.019, 0.0, "matched_within_noise"),
        (0.021, 0.0, "not_matched"),
        (0.1, 0.1, "matched"),
        (0.119, 0.1, "matched_within_noise"),
    ],
)
def test_matched_within_noise_is_two_standard_errors_above(
    difference: float, tolerance: float, verdict: str
) -> None:
    fields = dict.fromkeys(TrainingResult.__dataclass_fields__)
    trial = TrainingResult(**(fields | {"difference": difference, "difference_se": 0.01}))
    assert judge(trial, Match(val_loss=tolerance)) == verdict
