"""`train MODEL TOKENS OUT`: continued pretraining without a recipe."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import build, train_tokenizer
from typer.testing import CliRunner, Result

from inheritune.cli.app import app
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, Interrupted, RecipeError, SourceError
from inheritune.run.pretraining import plan_pretraining, pretrain
from inheritune.run_directory import Run
from inheritune.run_record.record import RunRecord
from inheritune.system.progress import Progress, silent

SETS = ["train.tokens=1280", "train.seq_len=16", "train.batch_tokens=128", "train.precision=fp32"]
SETS += ["train.learning_rate=1e-3", "train.warmup_tokens=0"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def train(model: Path, tokens: TokenDirectory, out: Path, *sets: str, **more: Any) -> Any:
    plan = plan_pretraining(str(model), tokens.path, out, [*SETS, *sets])
    return asdict(pretrain(plan, out, more.pop("on_progress", silent), **more))


def interrupted(model: Path, tokens: TokenDirectory, out: Path, at: int, *sets: str) -> None:
    def on_progress(progress: Progress) -> None:
        if progress.unit == "tokens" and progress.done == at:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(model, tokens, out, *sets, on_progress=on_progress)


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def files_of(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*"))


@pytest.fixture(scope="module")
def done(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("done") / "out"
    return out, train(tiny_reference, tiny_tokens, out)


def test_transformers_loads_the_trained_model_and_its_val_loss_is_lower(
    done: tuple[Path, dict[str, Any]], tiny_reference: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, final = done
    assert final["model"] == str(out / "model")
    assert (final["layers"], final["tokens"]) == (4, 1280)
    assert final["val_loss"] < final["val_loss_before"]
    change = final["val_loss"] - final["val_loss_before"]
    assert final["difference"] == pytest.approx(change, abs=1e-6)
    AutoModelForCausalLM.from_pretrained(out / "model")
    AutoTokenizer.from_pretrained(out / "model")
    tokenizer = (tiny_reference / "tokenizer.json").read_bytes()
    assert (out / "model" / "tokenizer.json").read_bytes() == tokenizer


def test_the_record_holds_cost_and_settings(
    done: tuple[Path, dict[str, Any]], tiny_tokens: TokenDirectory
) -> None:
    out, final = done
    record = Run(out).read()
    assert record["result"] == final
    assert (record["command"], record["status"], record["exit_code"]) == ("train", "done", 0)
    assert record["tokens"]["fingerprint"] == tiny_tokens.fingerprint
    assert record["origins"]["train.seq_len"] == "--set"
    before, training = final["ledger"]
    assert (before["item"], training["item"]) == ("val_loss before", "train, 4 layers")
    assert final["flops"] == before["flops"] + training["flops"]
    rows = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 11))
    assert not list((out / "checkpoints").iterdir())


@pytest.mark.parametrize("at", [128, 640, 1280])
def test_a_training_stopped_anywhere_ends_with_the_same_bits(
    at: int,
    done: tuple[Path, dict[str, Any]],
    tiny_reference: Path,
    tiny_tokens: TokenDirectory,
    tmp_path: Path,
) -> None:
    out = tmp_path / "out"
    interrupted(tiny_reference, tiny_tokens, out, at)
    assert (Run(out).read()["status"], Run(out).read()["exit_code"]) == ("interrupted", 75)
    final = train(tiny_reference, tiny_tokens, out)
    ours, whole = (load_file(o / "model" / "model.safetensors") for o in (out, done[0]))
    assert all(torch.equal(ours[name], whole[name]) for name in whole)
    assert final["val_loss"] == done[1]["val_loss"]


def test_a_finished_training_is_not_repeated(
    done: tuple[Path, dict[str, Any]], tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    before = (done[0] / "model" / "model.safetensors").stat().st_mtime_ns
    assert train(tiny_reference, tiny_tokens, done[0]) == done[1]
    assert (done[0] / "model" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_another_model_and_other_tokens_are_refused_with_the_difference(
    reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    interrupted(reference, tiny_tokens, out, 640)
    with pytest.raises(RecipeError, match=r"train\.learning_rate = 0\.001; now it is 0\.002"):
        train(reference, tiny_tokens, out, "train.learning_rate=2e-3")
    build("llama", vocab_size=320, tie_word_embeddings=True).save_pretrained(reference)
    with pytest.raises(RecipeError, match=r"reference = '.*'; now it is '"):
        train(reference, tiny_tokens, out)


def test_other_tokens_for_the_same_out_are_refused(
    tiny_reference: Path, tiny_text: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    from inheritune.data.prepare_text import prepare_text
    from inheritune.data.tokenizer import open_tokenizer
    from inheritune.recipe.data import Data

    data = Data(source=str(tiny_text), val_fraction=0.3)
    other = prepare_text(data, open_tokenizer(tiny_reference), 320, 16, tmp_path / "other")
    interrupted(tiny_reference, tiny_tokens, tmp_path / "out", 640)
    with pytest.raises(RecipeError, match=rf"tokens = '{tiny_tokens.fingerprint}'; now it is"):
        train(tiny_reference, other, tmp_path / "out")


def test_an_allowed_change_is_recorded(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    interrupted(tiny_reference, tiny_tokens, out, 640)
    key = "train.learning_rate"
    final = train(tiny_reference, tiny_tokens, out, f"{key}=2e-3", allowed=[key])
    assert f"allowed: {key} was 0.001, now it is 0.002" in final["notes"]
    assert Run(out).read()["allowed_changes"] == [key]


def test_a_moved_directory_continues(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    interrupted(tiny_reference, tiny_tokens, tmp_path / "out", 640)
    (tmp_path / "out").rename(tmp_path / "moved")
    assert train(tiny_reference, tiny_tokens, tmp_path / "moved")["restarts"] == 1


# -- what does not fit


def test_ids_without_rows_are_refused_with_both_numbers(
    tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    train_tokenizer(small)
    build("llama", vocab_size=100).save_pretrained(small)
    (small / "tokenizer.json").write_text(
        '{"model": {"type": "WordLevel", "vocab": {"<|endoftext|>": 0}, '
        '"unk_token": "<|endoftext|>"}}'
    )
    largest = max(entry["max_id"] for entry in tiny_tokens.manifest["files"])
    with pytest.raises(DataError, match=f"up to {largest}, the embedding of small has 100 rows"):
        train(small, tiny_tokens, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_c13_tokens_of_another_tokenizer_are_refused_with_both(
    reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    content = json.loads((reference / "tokenizer.json").read_text())
    (reference / "tokenizer.json").write_text(json.dumps(content, indent=1))
    ours = tiny_tokens.manifest["tokenizer"]["sha256"][:12]
    with pytest.raises(DataError, match=f"made by tokenizer {ours}, reference has") as error:
        train(reference, tiny_tokens, tmp_path / "out")
    assert error.value.exit_code == 3


def test_a_broken_token_directory_stays_an_error_of_the_data(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    copy = tmp_path / "tokens"
    shutil.copytree(tiny_tokens.path, copy)
    os.truncate(copy / "train-00000.bin", 100)
    for broken in (copy, tmp_path / "nowhere"):
        with pytest.raises(DataError) as error:
            plan_pretraining(str(tiny_reference), broken, tmp_path / "out", SETS)
        assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("inherit.layers=2", "inherit.layers has no meaning in a training without a recipe"),
        ("data.source=x.txt", "data.source has no meaning"),
        ("reference.model=x", "reference.model has no meaning"),
        ("data={allow_repeat: true, tokens: 5}", "data.tokens has no meaning"),
        ("train=3", "train has no meaning"),
        ("train.lerning_rate=1", "Did you mean train.learning_rate"),
        ("train.learning_rate=abc", "train.learning_rate is abc"),
        ("train.tokens=many", "train.tokens is many"),
        ("train.seq_len=100", "batch_tokens 128 is not a multiple"),
        ("reference.revision=12", "reference.revision is 12"),
        ("nokey", "not of the form KEY=VALUE"),
    ],
)
def test_keys_without_meaning_are_refused_before_anything_is_written(
    text: str, words: str, tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError) as error:
        train(tiny_reference, tiny_tokens, tmp_path / "out", text)
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()


def test_more_than_an_epoch_is_asked_for_by_name(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"data\.allow_repeat"):
        train(tiny_reference, tiny_tokens, tmp_path / "out", "train.tokens=1M")
    sets = ["train.tokens=1M", "data.allow_repeat=true"]
    plan = plan_pretraining(str(tiny_reference), tiny_tokens.path, tmp_path / "out", sets)
    assert plan.recipe.recipe.train.tokens == 10**6


def test_a_foreign_directory_and_the_run_of_a_recipe_are_no_out(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(RecipeError, match="holds 1 files that are no run"):
        train(tiny_reference, tiny_tokens, foreign)
    run = Run.create(tmp_path / "run")
    run.update(RunRecord(started_at="2026-01-01T00:00:00Z"))
    before = run.read(), files_of(run.root)
    with pytest.raises(RecipeError, match="the run of a recipe, not a training without"):
        train(tiny_reference, tiny_tokens, run.root)
    run.update(RunRecord())
    assert run.read() == before[0]
    assert set(files_of(run.root)) == set(before[1])
    with pytest.raises(SourceError):
        train(tmp_path / "nowhere", tiny_tokens, tmp_path / "out")


# -- what was not set


def chosen(model: Path, tokens: TokenDirectory, *sets: str, processes: int = 1) -> Any:
    plan = plan_pretraining(str(model), tokens.path, Path("out"), sets, processes)
    return plan.recipe.recipe.train


def test_the_default_is_one_epoch_in_sequences_that_the_tokens_hold(
    tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    found = chosen(tiny_reference, tiny_tokens)
    assert found.seq_len == 128  # as many positions as the model has
    assert tiny_tokens.val.num_samples(found.seq_len) >= 8
    samples = tiny_tokens.train.num_samples(128)
    assert found.tokens == samples * 128
    assert found.batch_tokens == 128  # one sequence: there are not 200 steps in this text
    assert found.warmup_tokens == found.tokens // 20


def test_a_batch_divides_among_the_processes_and_does_not_depend_on_them(
    tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    sets = ["train.seq_len=16", "data.allow_repeat=true", "train.tokens=100K"]
    one, two, four = (chosen(tiny_reference, tiny_tokens, *sets, processes=n) for n in (1, 2, 4))
    assert one.batch_tokens == two.batch_tokens == four.batch_tokens == 16 * 16
    assert [t.micro_batch for t in (one, two, four)] == [8, 8, 4]
    large = chosen(tiny_reference, tiny_tokens, *sets[:2], "train.tokens=1B")
    assert large.batch_tokens == 262_144
    assert chosen(tiny_reference, tiny_tokens, *sets, "train.micro_batch=3").batch_tokens == 384
    assert chosen(tiny_reference, tiny_tokens, *sets, "train.batch_tokens=96").micro_batch == 2


def test_a_rate_below_the_default_minimum_lowers_the_minimum(
    tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    assert chosen(tiny_reference, tiny_tokens, "train.learning_rate=1e-6").min_learning_rate == 1e-6


# -- the command


def test_the_command_says_before_and_after_and_the_next_step(
    tiny_reference: Path, tiny_tokens: TokenDirectory
) -> None:
    sets = [o for text in SETS for o in ("--set", text)]
    result = invoke("train", tiny_reference, tiny_tokens.path, "out", *sets)
    assert result.exit_code == 0, result.output
    last = result.stderr.strip().splitlines()[-2:]
    assert last[0].startswith("out/model: val_loss ") and ", before " in last[0]
    assert last[1] == "next: inheritune plan out/model"
    found = json.loads(
        invoke("train", tiny_reference, tiny_tokens.path, "out", *sets, "--json").stdout
    )
    assert found == Run(Path("out")).read()["result"]
    assert not Path("out/recipe.yaml").exists()
    assert not Path("runs").exists()
    refused = invoke("report", "out")
    assert refused.exit_code == 3
    assert "a training without a recipe, which has no report" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embedded:demo", "tokens"], "train was given two arguments"),
        (["embedded:demo", "tokens", "out", "--layers", "2"], "--layers need a recipe"),
        (["nowhere.yaml"], "cannot read the recipe nowhere.yaml"),
    ],
)
def test_arguments_that_do_not_go_together_are_exit_2(arguments: list[str], words: str) -> None:
    result = invoke("train", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.slow
def test_one_process_continues_a_training_of_two(
    tiny_reference: Path, tiny_tokens: TokenDirectory, tmp_path: Path
) -> None:
    sets = [o for text in [*SETS, "train.micro_batch=4"] for o in ("--set", text)]
    command = [sys.executable, "-m", "inheritune", "train", str(tiny_reference)]
    command += [str(tiny_tokens.path), "out", "--json", *sets]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    both = subprocess.run(
        [*command, "--processes", "2"], capture_output=True, text=True, env=environment, timeout=240
    )
    assert both.returncode == 0, both.stderr
    final = json.loads(both.stdout)
    assert Run(tmp_path / "out").read()["processes"] == 2
    alone = train(tiny_reference, tiny_tokens, tmp_path / "alone", "train.micro_batch=4")
    assert final["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-5)
    assert final["val_loss_before"] == pytest.approx(alone["val_loss_before"], abs=1e-6)
