import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_tasks import write_tasks
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.errors import DataError, Interrupted, RecipeError, SourceError
from inheritune.evaluation.evaluate import evaluate, fetch_tasks
from inheritune.evaluation.request import EvaluationRequest as Request
from inheritune.recipe.data import Data
from inheritune.surgery.cut import Options, inherit
from inheritune.system.progress import Progress


@pytest.fixture(scope="module")
def target(tiny_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from inheritune.model_files.directory import open_model

    out = tmp_path_factory.mktemp("target") / "target"
    inherit(open_model(str(tiny_reference)), (0, 1), out, Options(class_check=False))
    return out


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def measure(models: list[str], request: Request, out: Path, *listener: Any) -> Any:
    return evaluate(models, request, out, *listener).as_json()


def heard(into: list[str]) -> Callable[[Progress], None]:
    return lambda progress: into.append(f"{progress.task}: {progress.message}")


def by_task(model: dict[str, Any]) -> dict[str, Any]:
    return {score["task"]: score for score in model["scores"]}


def test_several_models_are_asked_alike_and_a_second_time_nothing_is_asked(
    tiny_reference: Path, target: Path, questions: Path, tmp_path: Path
) -> None:
    models = [str(tiny_reference), str(target)]
    request = Request(tasks=["piqa", "arc_easy"], task_data=questions, batch_size=4)
    found = measure(models, request, tmp_path / "out")
    assert [model["layers"] for model in found["models"]] == [4, 2]
    assert not found["failures"]
    for model in found["models"]:
        score = by_task(model)["piqa"]
        assert (score["items"], score["shots"]) == (6, 0)
        assert 0 <= score["metrics"]["acc"]["value"] <= 1
        assert score["facts"]["begins_with_bos"] is False
    first, second = (by_task(model)["piqa"]["key"] for model in found["models"])
    assert {k for k in first if first[k] != second[k]} == {"model"}
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(files) == 8  # of each answer, ours and lm-eval's own
    said: list[str] = []
    assert measure(models, request, tmp_path / "out", heard(said)) == found
    assert said == []
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == files


def test_an_answer_that_no_window_holds_is_told_with_its_length_and_harms_no_other_task(
    tiny_reference: Path, tmp_path: Path
) -> None:
    questions = write_tasks(tmp_path / "tasks", "piqa", "arc_easy")
    rows = (questions / "piqa.jsonl").read_text().splitlines()
    long = json.loads(rows[3]) | {"sol1": "the " * 3000}
    (questions / "piqa.jsonl").write_text("\n".join([*rows[:3], json.dumps(long), *rows[4:]]))
    request = Request(tasks=["piqa", "arc_easy"], task_data=questions, batch_size=4)
    found = measure([str(tiny_reference)], request, tmp_path / "out")
    assert list(by_task(found["models"][0])) == ["arc_easy"]
    (failure,) = found["failures"]
    assert failure["task"] == "piqa"
    assert "1 of 12 answers are longer than the" in failure["message"]


def test_lm_evals_own_result_lies_beside_ours(
    tiny_reference: Path, questions: Path, tmp_path: Path
) -> None:
    request = Request(tasks=["piqa"], task_data=questions, limit=3)
    found = measure([str(tiny_reference)], request, tmp_path)
    own = json.loads(next(tmp_path.glob("piqa-*.lm-eval.json")).read_text())
    score = found["models"][0]["scores"][0]
    assert own["results"]["piqa"]["acc,none"] == score["metrics"]["acc"]["value"]
    assert (score["items"], score["items_in_all"]) == (3, 6)
    assert own["configs"]["piqa"]["doc_to_text"] == "Question: {{goal}}\nAnswer:"


def test_an_evaluation_stopped_between_two_tasks_continues_with_the_second(
    tiny_reference: Path, questions: Path, tmp_path: Path
) -> None:
    request = Request(tasks=["piqa", "arc_easy"], task_data=questions, batch_size=2)

    def stop(progress: Progress) -> None:
        if "arc_easy" in progress.task and progress.done:
            os.kill(os.getpid(), 2)

    with pytest.raises(Interrupted) as stopped:
        evaluate([str(tiny_reference)], request, tmp_path, stop)
    assert stopped.value.exit_code == 75
    assert len(list(tmp_path.glob("piqa-*"))) == 2
    assert not list(tmp_path.glob("arc_easy-*"))
    said: list[str] = []
    evaluate([str(tiny_reference)], request, tmp_path, heard(said))
    assert not any("piqa" in line for line in said)
    assert not list(tmp_path.glob(".tasks.*"))


def test_bos_and_shots_are_parts_of_the_settings(
    tiny_reference: Path, questions: Path, tmp_path: Path
) -> None:
    plain = Request(tasks=["piqa"], task_data=questions)
    evaluate([str(tiny_reference)], plain, tmp_path)
    begun = Request(tasks=["piqa"], task_data=questions, add_bos="yes")
    found = measure([str(tiny_reference)], begun, tmp_path)
    assert found["models"][0]["scores"][0]["facts"]["begins_with_bos"] is True
    with pytest.raises(RecipeError, match=r"piqa\.examples\.jsonl"):
        evaluate(
            [str(tiny_reference)],
            Request(["piqa"], shots=2, task_data=questions),
            tmp_path,
        )
    data = write_tasks(tmp_path / "more", "piqa")
    (data / "piqa.examples.jsonl").write_text((data / "piqa.jsonl").read_text())
    shown = measure([str(tiny_reference)], Request(["piqa"], shots=2, task_data=data), tmp_path)
    assert shown["models"][0]["scores"][0]["shots"] == 2


def test_val_loss_of_tokens_and_of_the_same_text_is_that_of_the_training(
    tiny_reference: Path, target: Path, tiny_tokens: Any, tmp_path: Path
) -> None:
    from inheritune.evaluation.val_loss import measure_val_loss
    from inheritune.training.models import load_model

    models = [str(tiny_reference), str(target)]
    found = measure(models, Request(tokens=tiny_tokens.path, seq_len=16), tmp_path)
    values = [model["scores"][0]["metrics"]["val_loss"]["value"] for model in found["models"]]
    assert values[0] == measure_val_loss(load_model(tiny_reference), tiny_tokens.val, 16, 16).mean
    assert values[1] != values[0]
    metrics = found["models"][0]["scores"][0]["metrics"]
    assert metrics["bits_per_byte"]["value"] > 0 and metrics["val_loss"]["se"] > 0


def test_val_loss_of_a_text_reads_all_of_it(tiny_reference: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the small model learns what the large one knew " * 20)
    found = measure(
        [str(tiny_reference)], Request(text=Data(source=str(text)), seq_len=16), tmp_path / "out"
    )
    score = found["models"][0]["scores"][0]
    assert score["facts"]["tokens"] == 16 * score["items"]
    assert score["metrics"]["bits_per_byte"]["lower"]
    text.write_text("the")
    with pytest.raises(DataError, match="one window needs 17"):
        evaluate(
            [str(tiny_reference)],
            Request(text=Data(source=str(text)), seq_len=16),
            tmp_path / "out",
        )


def test_evaluate_refuses_requests_that_measure_nothing(
    tmp_path: Path, tiny_reference: Path
) -> None:
    for request, said in (
        (Request(), "nothing to measure"),
        (Request(tasks=["full-data"]), "val_loss needs held-out tokens"),
        (Request(tokens=tmp_path, text=Data(source="stdlib")), "both given"),
    ):
        with pytest.raises(RecipeError, match=said):
            evaluate([str(tiny_reference)], request, tmp_path)
    with pytest.raises(RecipeError, match="no task is named"):
        fetch_tasks(Request(), tmp_path)


def test_the_evaluate_command_prints_one_json_value(
    tiny_reference: Path, questions: Path, tmp_path: Path
) -> None:
    options = ["--tasks", "piqa", "--task-data", str(questions), "--out", str(tmp_path)]
    done = CliRunner().invoke(app, ["evaluate", str(tiny_reference), *options, "--json"])
    assert done.exit_code == 0, done.stderr
    assert [m["model"] for m in json.loads(done.stdout)["models"]] == [str(tiny_reference)]
    wide = {"COLUMNS": "200"}  # the path of the model is a column's title
    shown = CliRunner(env=wide).invoke(app, ["evaluate", str(tiny_reference), *options])
    assert "piqa, acc (%)" in shown.stdout
    wrong = CliRunner().invoke(app, ["evaluate", str(tiny_reference), *options, "--dtype", "fp8"])
    assert (wrong.exit_code, "Choose auto, fp32" in wrong.stderr) == (2, True)
    none = CliRunner().invoke(app, ["evaluate", "--tasks", "piqa"])
    assert (none.exit_code, "no model is given" in none.stderr) == (2, True)


def test_evaluate_draws_quality_against_size_of_what_was_cut(
    tiny_reference: Path, target: Path, tiny_tokens: Any, tmp_path: Path
) -> None:
    models, figure = [str(tiny_reference), str(target)], tmp_path / "size.svg"
    options = ["--out", str(tmp_path / "out"), "--figure", str(figure)]
    measured = ["--tokens", str(tiny_tokens.path), "--seq-len", "16"]
    done = CliRunner().invoke(app, ["evaluate", *models, *measured, *options, "--json"])
    assert done.exit_code == 0, done.stderr
    assert [model["made"] for model in json.loads(done.stdout)["models"]] == ["whole", "cut"]
    assert figure.read_text("utf-8").startswith("<svg")
    metrics = [model["scores"][0]["metrics"] for model in json.loads(done.stdout)["models"]]
    apart = metrics[1]["val_loss"]["value"] - metrics[0]["val_loss"]["value"]
    above = metrics[1]["above_first"]  # paired by window, and no more certain than that
    assert above["value"] == pytest.approx(apart) and above["se"] > 0
    assert "above_first" not in metrics[0] and "windows" not in done.stdout
    for wrong, said in (
        ([*models, *options], "nothing to measure"),
        ([models[0], *measured, *options], "one model"),
        ([*models, *measured, "--figure", str(tmp_path / "size.gif")], ".png or .svg"),
    ):
        refused = CliRunner().invoke(app, ["evaluate", *wrong])
        assert (refused.exit_code, said in " ".join(refused.stderr.split())) == (2, True), wrong


def test_losses_of_two_tokenizers_are_no_figure_and_nothing_is_measured(
    tiny_reference: Path, tmp_path: Path
) -> None:
    models, out = ["embedded:demo", str(tiny_reference)], tmp_path / "out"
    text = tmp_path / "a.txt"
    text.write_text("the small model learns what the large one knew " * 20)
    options = ["--text", str(text), "--out", str(out), "--figure", str(tmp_path / "size.svg")]
    refused = CliRunner().invoke(app, ["evaluate", *models, *options])
    said = " ".join(refused.stderr.split())
    assert refused.exit_code == 2, refused.stderr
    assert "the first model has another tokenizer than" in said and tiny_reference.name in said
    assert "leave --figure out" in said
    assert not out.exists()


def test_a_garbled_record_is_refused_before_anything_is_measured(
    tiny_reference: Path, reference: Path, tiny_tokens: Any, tmp_path: Path
) -> None:
    model = reference.rename(tmp_path / "model")  # of a training, whose record lies beside it
    (tmp_path / "inherit.json").write_text("{")
    request, said = Request(tokens=tiny_tokens.path, seq_len=16), list[str]()
    with pytest.raises(SourceError, match=r"inherit\.json"):
        measure([str(tiny_reference), str(model)], request, tmp_path / "out", heard(said))
    assert said == [] and not (tmp_path / "out").exists()


def test_a_val_loss_of_an_earlier_version_is_measured_again_with_its_windows(
    tiny_reference: Path, target: Path, tiny_tokens: Any, tmp_path: Path
) -> None:
    models = [str(tiny_reference), str(target)]
    request = Request(tokens=tiny_tokens.path, seq_len=16)
    whole = measure(models[:1], request, tmp_path)["models"][0]
    (file,) = tmp_path.glob("val_loss-*.json")
    kept = json.loads(file.read_text())
    windows = kept["score"].pop("windows")
    file.write_text(json.dumps(kept))
    found = measure(models, request, tmp_path)["models"]
    assert found[0]["scores"][0]["metrics"] == whole["scores"][0]["metrics"]
    assert "above_first" in found[1]["scores"][0]["metrics"]
    assert json.loads(file.read_text())["score"]["windows"] == windows


@pytest.mark.shared_data
@pytest.mark.slow
def test_the_numbers_are_those_of_plain_lm_eval(shared_data: Path, tmp_path: Path) -> None:
    from inheritune.evaluation.task_files import stock_file
    from inheritune.model_files.directory import open_model

    model = shared_data / "checkpoints" / "stories260K"
    out = tmp_path / "target"
    inherit(open_model(str(model)), (0, 1, 2), out, Options(class_check=False))
    kinds = {"piqa": "validation", "winogrande": "validation"}
    tasks = ["piqa", "winogrande", "arc_easy", "lambada_openai", "wikitext"]
    for task in tasks:  # written here, not by what is tested
        split = kinds.get(task, "test")
        named = "wikitext2_test_pages" if task == "wikitext" else task
        file = {split: str(shared_data / "tasks" / f"{named}.jsonl")}
        unused = dict.fromkeys(
            f"{k}_split" for k in ("training", "validation", "test") if k != split
        )
        written = {"include": str(stock_file(task)), "task": f"plain_{task}", "tag": None}
        written |= {"dataset_path": "json", "dataset_name": None}
        written |= {"dataset_kwargs": {"data_files": file}} | unused
        (tmp_path / f"{task}.yaml").write_text(json.dumps(written))
    for directory in (model, out):
        for task in tasks:
            limit = 2 if task == "wikitext" else 50
            request = Request([task], limit=limit, task_data=shared_data / "tasks", dtype="fp32")
            ours = measure([str(directory)], request, tmp_path / "ours")["models"][0]["scores"][0]
            theirs = _plain(directory, f"plain_{task}", limit, tmp_path)
            for name, metric in ours["metrics"].items():
                assert metric["value"] == theirs[f"{name},none"], (task, name)
                error = theirs[f"{name}_stderr,none"]
                if name in ("acc", "acc_norm"):
                    assert metric["se"] == error


def _plain(model: Path, task: str, limit: int, folder: Path) -> dict[str, Any]:
    out = folder / "plain" / model.name / task
    command = [sys.executable, "-m", "lm_eval", "--model", "hf", "--tasks", task]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--batch_size", "16"]
    command += ["--include_path", str(folder), "--limit", str(limit), "--output_path", str(out)]
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "--device", "cpu"], check=True, capture_output=True, env=offline)
    file = next(out.rglob("results_*.json"))
    found: dict[str, Any] = json.loads(file.read_text())["results"][task]
    return found


@pytest.mark.usefixtures("quick_gains")
def test_speed_alone_can_be_measured_and_stands_beside_scores(
    tiny_reference: Path, tiny_tokens: Any, tmp_path: Path
) -> None:
    from inheritune.model_files.directory import open_model

    model = str(tiny_reference)
    alone = evaluate([model], Request(speed=True), tmp_path / "alone")
    assert alone.gains is not None
    assert alone.models[0].scores == ()
    assert alone.as_json()["gains"]["models"][0]["fidelity"] is None

    request = Request(speed=True, tokens=tiny_tokens.path, seq_len=16)
    both = evaluate([model, open_model(model)], request, tmp_path / "both")
    assert [one.name for one in both.gains.models] == [one.name for one in both.models]
    assert both.gains.fidelity[1].kl == 0.0
    without = evaluate([model], Request(tokens=tiny_tokens.path, seq_len=16), tmp_path)
    assert "gains" not in without.as_json()


@pytest.mark.parametrize(
    ("option", "number"),
    [("batch_size", 0), ("seq_len", 1), ("seq_len", 0), ("limit", 0), ("shots", -1)],
)
def test_numbers_that_measure_nothing_are_refused(option: str, number: int, tmp_path: Path) -> None:
    request = Request(tasks=["piqa"], **{option: number})
    with pytest.raises(RecipeError, match=rf"--{option.replace('_', '-')} is {number}\."):
        evaluate(["embedded:demo"], request, tmp_path)


def test_windows_longer_than_learned_positions_are_refused(
    tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    text = tmp_path / "held-out.txt"
    text.write_text("a held-out text. " * 200)
    request = Request(text=Data(source=str(text)), seq_len=129)
    with pytest.raises(RecipeError, match=r"--seq-len is 129, but .* has 128 positions"):
        evaluate([str(tiny_model("gpt2"))], request, tmp_path / "scores")
