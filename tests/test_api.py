"""The Python API, as scripts and notebooks call it: tiny real models, no network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_recipe import fields_of
from tiny_tasks import write_tasks

import inheritune as it

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture(scope="module")
def target(tiny_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return it.inherit(tiny_reference, 2, tmp_path_factory.mktemp("target") / "target", **QUIET)


# --- import ---


def test_importing_the_package_is_quick_and_loads_no_large_library() -> None:
    program = (
        "import sys, time; began = time.process_time(); import inheritune; dir(inheritune)\n"
        "inheritune.inherit, inheritune.InherituneError\n"
        "took = time.process_time() - began\n"
        "print(took, sorted({'torch', 'transformers', 'pydantic', 'numpy'} & sys.modules.keys()))\n"
    )
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    took = min(float(run.stdout.split()[0]) for run in runs)
    assert {run.stdout.split(maxsplit=1)[1].strip() for run in runs} == {"[]"}
    assert took < 0.05


def test_every_public_name_is_there_and_an_unknown_one_is_an_error() -> None:
    for name in it.__all__:
        assert getattr(it, name) is not None
    assert set(it.__all__) < set(dir(it))
    with pytest.raises(AttributeError, match="no attribute 'inherrit'"):
        it.inherrit  # noqa: B018


# --- surgery ---


def test_inherited_tensors_are_those_of_the_reference(tiny_reference: Path, target: Any) -> None:
    reference = it.inherit(tiny_reference, 4, target.path.parent / "whole", **QUIET).load()
    small = target.load()
    assert small.config.num_hidden_layers == target.layers == 2
    tensors = reference.state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in small.state_dict().items())


def test_layers_can_be_a_selection_or_a_list(tiny_reference: Path, tmp_path: Path) -> None:
    assert it.inherit(tiny_reference, np.int64(1), tmp_path / "one", **QUIET).layers == 1
    for number, layers in enumerate(("first+last:1+1", [0, 3], "0,3")):
        cut = it.inherit(tiny_reference, layers, tmp_path / str(number), **QUIET)
        record = json.loads((cut.path / "inherit.json").read_text("utf-8"))
        assert record["layer_map"] == [0, 3]


def test_a_model_in_memory_is_cut_with_its_tokenizer(tiny_reference: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_reference)
    with torch.no_grad():
        model.get_input_embeddings().weight[0] = 7.0  # a change that is on no disk
    cut = it.inherit(model, 3, tmp_path / "cut", **QUIET)
    assert (cut.path / "tokenizer.json").is_file()
    assert cut.load().get_input_embeddings().weight[0, 0].item() == 7.0
    findings: list[it.Finding] = []
    verification = it.verify(cut, reference=model, on_finding=findings.append, **QUIET)
    assert (verification.kind, verification.findings) == ("model", tuple(findings))
    assert "bytes" in [row["part"] for row in verification.rows()]


def test_a_grown_model_keeps_every_tensor(target: Any, tiny_reference: Path) -> None:
    grown = it.grow(target, tiny_reference, 3, target.path.parent / "grown", **QUIET)
    tensors = grown.load().state_dict()
    assert grown.layers == 3
    assert all(torch.equal(tensors[n], value) for n, value in target.load().state_dict().items())


def test_errors_are_ours_with_the_way_out(tiny_reference: Path, tmp_path: Path) -> None:
    with pytest.raises(it.RecipeError, match="between 1 and 4"):
        it.inherit(tiny_reference, 9, tmp_path / "out", **QUIET)
    with pytest.raises(it.SourceError):
        it.inherit(tmp_path, 1, tmp_path / "out", **QUIET)
    with pytest.raises(TypeError, match="expected a model, got int"):
        it.inherit(3, 1, tmp_path / "out", **QUIET)  # type: ignore[arg-type]


def test_one_value_stands_for_a_list_of_one(tiny_text: Path, tmp_path: Path) -> None:
    recipe = it.load_recipe("demo", sets="train.tokens=1M").recipe
    assert recipe.train.tokens == 1_000_000
    data = {"seq_len": 16, "val_fraction": 0.2, **QUIET}
    tokens = it.prepare(tiny_text, "embedded:demo", tmp_path / "tokens", **data)
    same = it.prepare(str(tiny_text), "embedded:demo", tmp_path / "tokens", **data)
    assert tokens.fingerprint == same.fingerprint


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            "analyze",
            {"model": "embedded:demo", "sequences": 0},
            "sequences is 0. Choose at least 1",
        ),
        ("evaluate", {"models": "embedded:demo", "batch_size": 0}, "batch_size is 0"),
        ("inspect", {"tokens": "tokens", "length": 0}, "length is 0"),
        ("compare", {"runs": []}, "no run is named"),
    ],
)
def test_numbers_that_are_too_small_are_refused(
    function: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(it.RecipeError, match=message):
        getattr(it, function)(**arguments)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("inherit", ("embedded:demo", 2.5, "out")),
        ("inherit", ("embedded:demo", None, "out")),
        ("verify", (None,)),
        ("derive", ({"name": "tiny"},)),
        ("report", (["a", "b"],)),
        ("prepare", (None, "embedded:demo", "out")),
    ],
)
def test_values_of_another_type_are_type_errors(function: str, arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        getattr(it, function)(*arguments, **QUIET)


def test_a_pytorch_checkpoint_is_converted(tiny_reference: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    source = tmp_path / "old"
    source.mkdir()
    for file in tiny_reference.iterdir():
        if file.suffix != ".safetensors":
            (source / file.name).write_bytes(file.read_bytes())
    torch.save(load_file(tiny_reference / "model.safetensors"), source / "pytorch_model.bin")
    converted = it.convert(source, tmp_path / "new", **QUIET)
    assert converted.check.startswith("complete: ")
    assert converted.model.layers == 4


# --- the method ---


def test_a_recipe_of_keyword_arguments_is_derived_resumed_and_reported(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    sections = fields_of(tiny_reference, tiny_text, grow={"add": 0, "max_rounds": 1})
    result = it.derive(runs=tmp_path, **QUIET, **sections)
    assert result.run == tmp_path / "tiny"
    assert result.layers == 2
    assert result.matched == (result.val_loss <= result.reference_loss)
    assert result.record.result.val_loss == result.val_loss
    assert [row["name"] for row in result.rows()] == ["reference", "inherit", "scratch"]
    weights = result.target / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = it.derive(it.Recipe.model_validate(sections), runs=tmp_path, **QUIET)
    assert (again.val_loss, weights.stat().st_mtime_ns) == (result.val_loss, before)
    page = it.report(result.run, **QUIET)
    assert page == result.report and "<html" in page.read_text("utf-8")
    assert it.verify(result.run, **QUIET).kind == "run"
    other = it.report(shutil.copytree(result.run, tmp_path / "copy"), **QUIET).parents[1]
    comparison = it.compare([result.run, other], tmp_path / "compared" / "index.html")
    assert comparison.page.is_file()
    assert [row["run"] for row in comparison.rows()] == [str(result.run), str(other)]
    parcel = it.push(result.run, "me/tiny", licence="mit", dry_run=True, **QUIET)
    assert parcel["private"] and "README.md" in [file["path"] for file in parcel["files"]]
    assert 'license: "mit"' in parcel["card"]


def test_a_recipe_file_takes_sections_in_place_of_its_own(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        json.dumps(fields_of(tiny_reference, tiny_text)), encoding="utf-8"
    )
    plan = it.plan(tmp_path / "recipe.yaml", runs=tmp_path, train={"tokens": "1M"}, **QUIET)
    assert 990_000 < plan.trainings[0].tokens <= 1_000_000
    with pytest.raises(it.RecipeError, match="learning_rat"):
        it.derive(tmp_path / "recipe.yaml", train={"learning_rat": 1}, runs=tmp_path, **QUIET)
    with pytest.raises(it.RecipeError, match="unknown preset 'demoo'"):
        it.derive("demoo", runs=tmp_path, **QUIET)
    assert it.plan(it.Recipe.model_validate(fields_of(tiny_reference, tiny_text)), **QUIET)


def test_a_recipe_is_loaded_with_overrides_and_scaled_down(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = it.load_recipe("demo", sets=["train.tokens=2M"], scale=1e-3, name="mine")
    assert recipe.recipe.name == "mine-scaled-0.001"
    assert recipe.recipe.train.tokens == 2000
    assert recipe.scaled.startswith("Scaled by 0.001")
    tiny = it.Recipe.model_validate(fields_of(tiny_reference, tiny_text))
    changed = it.load_recipe(tiny, sets=["train.seq_len=8"], name="mine").recipe
    assert (changed.name, changed.train.seq_len, changed.train.tokens) == (
        *("mine", 8),
        tiny.train.tokens,
    )


def test_tokens_and_one_variant_of_a_recipe_come_alone(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    recipe = it.Recipe.model_validate(fields_of(tiny_reference, tiny_text))
    tokens = it.prepare_recipe(recipe, runs=tmp_path, **QUIET)
    assert tokens.path == tmp_path / "tiny" / "tokens"
    inspection = it.inspect(tokens, windows=1, length=8)
    assert [(row["split"], len(row["ids"])) for row in inspection.rows()] == [
        ("train", 8),
        ("val", 8),
    ]
    assert inspection.tokenizer == tiny_reference
    trained = it.train_variant(recipe, "scratch", 1, runs=tmp_path, **QUIET)
    assert (trained.training.layers, trained.rows()[0]["name"]) == (1, "scratch")
    assert (trained.model / "model.safetensors").is_file()


def test_ids_of_another_program_are_imported(tiny_reference: Path, tmp_path: Path) -> None:
    ids = tmp_path / "train.bin"
    np.tile(np.arange(20, dtype=np.uint16), 200).tofile(ids)
    files = it.FlatFiles([ids], [ids])
    tokens = it.import_tokens(files, tiny_reference, tmp_path / "tokens", **QUIET)
    assert tokens.train.num_ids >= 4000


def test_text_is_prepared_and_a_model_trained_on_it(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    tokens = it.prepare(
        str(tiny_text), tiny_reference, tmp_path / "tokens", seq_len=16, val_fraction=0.2, **QUIET
    )
    assert tokens.train.num_ids > tokens.val.num_ids > 0
    settings = {"seq_len": 16, "batch_tokens": 128, "learning_rate": 1e-3}
    where = (tiny_reference, tokens, tmp_path / "out")
    planned = it.plan_training(*where, sets=["train.tokens=1280"], train=settings)
    assert planned.recipe.recipe.train.tokens == 1280
    assert not (tmp_path / "out").exists()
    trained = it.train(*where, sets=["train.tokens=1280"], train=settings, **QUIET)
    assert trained.val_loss < trained.val_loss_before
    assert Path(trained.model).is_dir() and trained.rows()[0]["tokens"] == 1280
    with pytest.raises(it.RecipeError, match="val_fractio"):
        it.prepare(str(tiny_text), tiny_reference, tmp_path / "t", val_fractio=0.2, **QUIET)


# --- measurements ---


def test_models_are_evaluated_from_disk_and_memory_alike(
    target: Any, tiny_reference: Path, tiny_tokens: Any
) -> None:
    evaluation = it.evaluate(
        [target, target.load(), str(tiny_reference)], tokens=tiny_tokens, seq_len=16, **QUIET
    )
    losses = [row["value"] for row in evaluation.rows() if row["metric"] == "val_loss"]
    assert losses[0] == losses[1] != losses[2]
    with pytest.raises(it.RecipeError, match="nothing to measure"):
        it.evaluate("no/model", **QUIET)


def test_tasks_are_asked(target: Any, tmp_path: Path) -> None:
    questions = write_tasks(tmp_path / "tasks", "piqa")
    evaluation = it.evaluate(target, tasks="piqa", task_data=questions, **QUIET)
    assert not evaluation.failures
    assert {row["task"] for row in evaluation.rows()} == {"piqa"}


def test_an_analysis_has_a_row_for_each_layer(target: Any, tiny_reference: Path) -> None:
    analysis = it.analyze(
        tiny_reference, against=target, sequences=3, tokens_per_sequence=16, **QUIET
    )
    assert [(row.role, row.layer) for row in analysis.layers] == [
        *(("reference", layer) for layer in range(4)),
        *(("target", layer) for layer in range(2)),
    ]
    assert all(row.rank >= 1 for row in analysis.layers)
    assert analysis.advice.paper == 2


def test_measurements_leave_a_model_in_memory_as_it_was(target: Any, tiny_tokens: Any) -> None:
    model = target.load().train()
    model.get_input_embeddings().eval()  # a mode of its own
    modes = {name: module.training for name, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    it.analyze(model, sequences=3, tokens_per_sequence=16, **QUIET)
    it.select(model, 1, select="influence", windows=2, tokens_per_window=16, **QUIET)
    it.evaluate([model, target], tokens=tiny_tokens, seq_len=16, speed=True, **QUIET)
    it.generate(model, "the", max_tokens=2, **QUIET)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(param.requires_grad for param in model.parameters())
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())


def test_a_plan_has_a_row_for_each_cut(tiny_reference: Path) -> None:
    table = it.plan(tiny_reference, **QUIET)
    assert [candidate.layers for candidate in table.candidates] == [1, 2, 3, 4]
    assert [row["layers"] for row in table.rows()] == [1, 2, 3, 4]
    assert it.plan(tiny_reference, "last:2", tokens="1M", device="cpu", **QUIET).kept == (2, 3)
    with pytest.raises(it.RecipeError, match="not an amount"):
        it.plan(tiny_reference, tokens="many", **QUIET)


def test_tables_show_themselves_and_become_data_frames(
    target: Any, tiny_tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = it.evaluate(target, tokens=tiny_tokens, seq_len=16, **QUIET)
    html = evaluation._repr_html_()
    assert html.count("<tr>") == 1 + len(evaluation.rows()) and "val_loss" in html
    assert "<td>2</td>" in target._repr_html_()
    frame = pytest.importorskip("pandas") and evaluation.to_frame()
    assert list(frame["metric"]) == [row["metric"] for row in evaluation.rows()]
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(it.MissingExtraError, match="pip install pandas"):
        evaluation.to_frame()


# --- progress and Ctrl-C ---


def test_progress_is_drawn_unless_it_is_silent(
    tiny_reference: Path, tmp_path: Path, tiny_tokens: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    it.inherit(tiny_reference, 1, tmp_path / "silent", **QUIET)
    assert capfd.readouterr() == ("", "")
    events: list[it.Progress] = []
    it.evaluate(tmp_path / "silent", tokens=tiny_tokens, seq_len=16, progress=events.append)
    assert events[-1].done == events[-1].total > 0


def test_ctrl_c_interrupts_a_run_which_the_same_call_continues(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    sections = fields_of(tiny_reference, tiny_text, grow={"add": 0, "max_rounds": 1})

    def press(progress: it.Progress) -> None:
        if progress.unit == "tokens" and progress.done > 300:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(it.Interrupted, match="SIGINT"):
        it.derive(runs=tmp_path / "stopped", progress=press, **sections)
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    stopped = it.derive(runs=tmp_path / "stopped", **QUIET, **sections)
    unbroken = it.derive(runs=tmp_path / "unbroken", **QUIET, **sections)
    assert stopped.val_loss == unbroken.val_loss


def test_ctrl_c_in_a_call_without_checkpoints_is_our_error(
    tiny_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)

    monkeypatch.setattr("inheritune.surgery.cut.inherit", interrupted)
    # A job in the background is started with SIGINT ignored; this is Python's own handler.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(it.Interrupted, match="stopped by SIGINT"):
            it.inherit(tiny_reference, 1, tmp_path / "out", **QUIET)
    finally:
        signal.signal(signal.SIGINT, before)


def test_calls_work_outside_of_the_main_thread(target: Any, tiny_tokens: Any) -> None:
    results: list[Any] = []

    def work() -> None:
        results.append(it.evaluate(target, tokens=tiny_tokens, seq_len=16, **QUIET))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(results) == 1


# --- the example ---


@pytest.mark.slow
def test_the_example_notebook_runs(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[1]
    (tmp_path / "recipes").symlink_to(root / "recipes", target_is_directory=True)
    done = subprocess.run(
        [sys.executable, root / "examples" / "notebook.py"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "the report: notebook/runs/tiny/report/index.html" in done.stdout
