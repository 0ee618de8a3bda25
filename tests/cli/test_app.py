import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import typer
from tiny_recipe import fields_of
from typer.testing import CliRunner, Result

from inheritune.cli.app import app
from inheritune.recipe.load import recipe_schema
from inheritune.recipe.presets import preset_names

COMMANDS = typer.main.get_command(app).commands


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture
def recipe(tiny_reference: Path, tiny_text: Path, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    samples = {"prompts": ["the small"], "sample_tokens": 4}
    fields = fields_of(tiny_reference, tiny_text, grow={"max_rounds": 1}, report=samples)
    path.write_text(json.dumps(fields))
    return path


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def assert_error(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr


def test_help_names_every_command() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    commands = ["run", "demo", "plan", "inherit", "verify", "convert", "prepare", "train"]
    for command in [*commands, "report", "doctor", "init"]:
        assert command in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_it_accepts(name: str) -> None:
    words = shlex.split(COMMANDS[name].epilog.removeprefix("Example: ").partition(" > ")[0])
    assert words[:2] == ["inheritune", name]
    assert COMMANDS[name].make_context(name, words[2:])


def test_help_loads_no_heavy_package_and_is_quick() -> None:
    program = (
        "import sys, time\n"
        "from inheritune.cli.app import app\n"
        "try:\n"
        "    app(['--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'ruamel', 'huggingface_hub'}\n"
        "    print(sorted(heavy & sys.modules.keys()), time.process_time(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded, _, seconds = done.stderr.partition("] ")
    assert loaded == "[", done.stderr
    assert float(seconds) < 1  # of processor time; 0.2 s on an idle machine


def test_version_names_the_three_that_matter() -> None:
    lines = invoke("--version").output.splitlines()
    assert [line.split()[0] for line in lines] == ["inheritune", "torch", "transformers"]


def test_run_ends_with_verdict_table_sample_and_next_step(recipe: Path) -> None:
    result = invoke("run", recipe)
    # One round: matched or not, the results are complete and say so in the exit code.
    final = json.loads(Path("runs/tiny/run.json").read_text())["result"]
    assert result.exit_code == {"not_matched": 6}.get(final["outcome"], 0), result.output
    for word in ("reference", "inherit, round 1", "scratch", "val_loss", "the small"):
        assert word in result.stdout
    assert result.stderr.strip().splitlines()[-1] == "next: inheritune report runs/tiny"
    for left in ("report/index.html", "target/model.safetensors", "run.json", "recipe.yaml"):
        assert (Path("runs/tiny") / left).is_file()


def test_run_json_is_one_object_and_report_repeats_it(recipe: Path) -> None:
    ran = json.loads(invoke("run", recipe, "--json", "--set", "grow.add=0").stdout)
    reported = json.loads(invoke("report", "runs/tiny", "--json").stdout)
    assert ran["outcome"] in {"matched", "matched_within_noise", "not_matched"}
    assert {key: reported[key] for key in ran if key != "report"} == {
        key: ran[key] for key in ran if key != "report"
    }
    assert Path(reported["report"]).is_file()


def test_a_run_that_may_not_grow_ends_with_0_whether_or_not_it_matches(recipe: Path) -> None:
    assert invoke("run", recipe, "--set", "grow.add=0").exit_code == 0


def test_prepare_and_train_do_their_step(recipe: Path) -> None:
    summary = json.loads(invoke("prepare", recipe, "--json").stdout)
    assert summary["train_tokens"] > 0
    trial = json.loads(invoke("train", recipe, "--variant", "scratch", "--json").stdout)
    assert (trial["name"], trial["layers"], trial["tokens"]) == ("scratch", 2, 1280)
    assert (Path(trial["model"]) / "model.safetensors").is_file()


def test_two_workers_prepare_what_a_run_then_trains_on(recipe: Path) -> None:
    first = json.loads(invoke("prepare", recipe, "--worker", "1/2", "--json").stdout)
    assert (len(first["missing_parts"]), first["missing_parts"][0]) == (32, 1)
    said = invoke("prepare", recipe, "--worker", "1/2").stderr
    assert "32 parts of other workers are missing" in said
    assert "if none says so, run the same command again" in said
    refused = invoke("run", recipe)
    assert (refused.exit_code, "32 of 64 parts are there" in refused.stderr) == (3, True)
    prepared = json.loads(invoke("prepare", recipe, "--worker", "2/2", "--json").stdout)
    alone = json.loads(invoke("prepare", recipe, "--runs", "alone", "--json").stdout)
    same = ("train_tokens", "val_tokens", "documents", "overlap", "taken")
    assert {key: prepared[key] for key in same} == {key: alone[key] for key in same}
    assert invoke("run", recipe, "--set", "grow.add=0").exit_code == 0


def test_workers_prepare_a_recipe_with_a_limit_as_its_refusal_says(recipe: Path) -> None:
    fields = json.loads(recipe.read_text())
    fields["data"]["tokens"] = 2000
    recipe.write_text(json.dumps(fields))
    refused = invoke("prepare", recipe, "--worker", "1/1")
    assert refused.exit_code == 2
    assert "--set data.tokens=null" in refused.stderr
    assert "--set data.sample=0.1" in refused.stderr
    options = ("--set", "data.tokens=null", "--set", "data.sample=0.9")
    prepared = invoke("prepare", recipe, "--worker", "1/1", *options)
    assert prepared.exit_code == 0, prepared.stderr
    assert f"next: inheritune run {recipe} {' '.join(options)}" in prepared.stderr
    assert invoke("run", recipe, *options, "--set", "grow.add=0").exit_code == 0


def test_prepare_ends_with_what_it_took_and_left_out(tiny_reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    texts = [f"the large one knew {i} things before it grew" for i in range(90)]
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (folder / "README.md").write_text("A card.")
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(fields_of(tiny_reference, folder)))
    taken = json.loads(invoke("prepare", path, "--json").stdout)["taken"]
    (source,) = taken["sources"]
    size = sum(len(text) for text in texts)
    assert source["files"] == {"JSON lines": 1}
    assert (source["documents"], source["bytes"], source["left_out"]) == (90, size, ["README.md"])
    assert len(taken["first_words"]) == 3
    assert all(words.startswith("the large one") for words in taken["first_words"])
    said = invoke("prepare", path).stderr
    assert f"90 documents of {size / 90:,.0f} bytes each in files: 1 JSON lines" in said
    assert "left out: 1 files: README.md" in said
    assert f"one EOS in {taken['tokens_per_eos']:,} tokens; documents begin:" in said
    assert "'the large one" in said


def test_inherit_writes_a_model_directory(tiny_reference: Path, tmp_path: Path) -> None:
    result = invoke("inherit", tiny_reference, 3, tmp_path / "out")
    assert result.exit_code == 0
    assert "layers 0-2 of 4" in result.stderr
    assert (tmp_path / "out" / "inherit.json").is_file()


@pytest.mark.parametrize("preset", preset_names())
def test_init_prints_a_commented_recipe(preset: str) -> None:
    result = invoke("init", "--preset", preset)
    assert result.exit_code == 0
    first = result.stdout.partition("\n")[0]
    schema = unquote(urlsplit(first.removeprefix("# yaml-language-server: $schema=")).path)
    assert json.loads(Path(schema).read_text()) == recipe_schema()


def test_init_prints_the_schema_and_the_names() -> None:
    assert json.loads(invoke("init", "--schema").stdout)["title"] == "Recipe"
    assert json.loads(invoke("init", "--list", "--json").stdout) == preset_names()


# -- wrong input


def test_an_unknown_key_is_met_with_the_right_one(recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("learning", "lerning", 1))
    assert_error(invoke("run", recipe), 2, "lerning_rate", "Did you mean train.learning_rate?")
    assert not Path("runs").exists()


def test_a_wrong_type_names_key_and_value(recipe: Path) -> None:
    assert_error(invoke("run", recipe, "--set", "train.tokens=many"), 2, "train.tokens", "many")


def test_layers_out_of_range_name_the_range(recipe: Path, tiny_reference: Path) -> None:
    result = invoke("run", recipe, "--set", "inherit.layers=9")
    assert_error(result, 2, "inherit.layers is 9", "between 1 and 4")
    assert_error(invoke("inherit", tiny_reference, 9, "out"), 2, "9", "between 1 and 4")
    assert not Path("out").exists()


def test_a_missing_recipe_text_and_reference_are_named(recipe: Path) -> None:
    assert_error(invoke("run", "nowhere.yaml"), 2, "nowhere.yaml")
    assert_error(invoke("run", recipe, "--set", "data.source=nowhere.txt"), 3, "nowhere.txt")
    assert_error(invoke("run", recipe, "--set", "reference.model=./nowhere"), 3, "nowhere")


def test_text_too_short_for_a_sequence_says_how_short(recipe: Path) -> None:
    Path("short.txt").write_text("too short")
    result = invoke("run", recipe, "--set", "data.source=short.txt")
    assert_error(result, 3, "tokens", "train.seq_len")


def test_a_reference_without_safetensors_is_refused(recipe: Path) -> None:
    Path("old").mkdir()
    Path("old/config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    Path("old/pytorch_model.bin").write_bytes(b"never read")
    result = invoke("run", recipe, "--set", "reference.model=old")
    assert_error(result, 3, "safetensors")


def test_an_error_is_one_json_object_where_json_was_asked_for(recipe: Path) -> None:
    result = invoke("run", recipe, "--json", "--set", "inherit.layers=9")
    assert set(json.loads(result.stdout)) == {"error", "message", "hint"}
    assert result.exit_code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_json_and_reports_usage_errors_in_it(name: str) -> None:
    result = invoke(name, "--json", "--no-such-option")
    assert result.exit_code == 2
    said = json.loads(result.stdout)
    assert said["error"] == "UsageError" and "--no-such-option" in said["message"]
    assert said["hint"] == f"See inheritune {name} --help."
    assert_error(result, 2, "--no-such-option")


@pytest.mark.parametrize(
    "line, word",
    [("run --json", "RECIPE"), ("--json", "--json"), ("rum x --json", "run"),
     ("plan x --devices two --json", "--devices"), ("push x --json", "--repo-id")],
)  # fmt: skip
def test_a_usage_error_is_reported_as_json(line: str, word: str) -> None:
    result = invoke(*line.split())
    assert result.exit_code == 2 and word in json.loads(result.stdout)["message"]


def test_json_changes_no_exit_code() -> None:
    assert invoke("init", "--list", "--json").exit_code == 0
    assert invoke("verify", "nowhere", "--json").exit_code == 3


def test_the_shell_can_complete_commands_and_options() -> None:
    for words, known in (("inheritune pu", "push"), ("inheritune push --dr", "--dry-run")):
        asked = {"_INHERITUNE_COMPLETE": "complete_bash", "COMP_WORDS": words}
        asked["COMP_CWORD"] = str(len(words.split()) - 1)
        done = subprocess.run(
            [sys.executable, "-m", "inheritune"],
            env=os.environ | asked,
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [known], done.stderr


def test_a_usage_error_is_exit_2() -> None:
    assert invoke("run").exit_code == 2
    assert invoke("rnu").exit_code == 2


def test_report_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert_error(invoke("report", tmp_path / "empty"), 3, "run.json")


# -- processes


def test_ctrl_c_saves_and_the_same_command_continues(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().replace("1280", "12800"))
    text = ["--set", "data.allow_repeat=true", "--set", "grow.add=0", "--set", "train.compile=off"]
    text += ["--set", "train.eval_every=1M", "--set", "variants={inherit: {start: inherit}}"]
    command = ["run", str(recipe), "--json", *text, "--runs"]
    metrics = tmp_path / "pieces/tiny/variants/inherit/2-layers/metrics.jsonl"
    program = [sys.executable, "-m", "inheritune"]
    with subprocess.Popen([*program, *command, "pieces"], stdout=subprocess.PIPE) as process:
        while process.poll() is None:
            if metrics.exists() and metrics.read_bytes().count(b"\n") > 20:
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.01)
        out, _ = process.communicate(timeout=120)
    assert process.returncode == 75
    assert json.loads(out)["error"] == "Interrupted"
    pieces, whole = (invoke(*command, runs) for runs in ("pieces", "whole"))
    assert (pieces.exit_code, whole.exit_code) == (0, 0)
    weights = [tmp_path / runs / "tiny/target/model.safetensors" for runs in ("pieces", "whole")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert json.loads(pieces.stdout)["val_loss"] == json.loads(whole.stdout)["val_loss"]


def test_a_second_process_on_one_run_is_refused_with_the_holders_name(
    recipe: Path, tmp_path: Path
) -> None:
    from inheritune.run_directory import Run

    program = (
        "import sys; from pathlib import Path; from inheritune.run_directory import Run\n"
        "run = Run.create(Path(sys.argv[1]))\n"
        "with run.lock():\n"
        "    print('held', flush=True); sys.stdin.read()\n"
    )
    held = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "runs" / "tiny")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with held:
        assert held.stdout is not None
        assert held.stdout.readline() == b"held\n"
        assert_error(invoke("run", recipe), 4, str(held.pid))
        assert held.stdin is not None
        held.stdin.close()
    assert Run(tmp_path / "runs" / "tiny").read()["format"] == 1


def test_stdout_closed_early_is_no_traceback() -> None:
    command = f"{sys.executable} -m inheritune init --schema | head -c 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "{"
    assert "Traceback" not in done.stderr
    assert "error" not in done.stderr


def test_a_plan_needs_no_weights_and_names_the_next_step(tiny_reference: Path) -> None:
    table = invoke("plan", tiny_reference)
    assert table.exit_code == 0, table.output
    assert "half: the paper's start" in " ".join(table.stdout.split())
    *rest, last = table.stderr.strip().splitlines()
    assert rest == ["--all explains the figures."]
    assert last == f"next: inheritune plan {tiny_reference} 2"
    detail = invoke("plan", tiny_reference, "3", "--all", "--tokens", "1B")
    assert "num_hidden_layers 4 -> 3" in detail.stdout
    found = json.loads(invoke("plan", tiny_reference, "3", "--json").stdout)
    assert found["candidates"][0]["layers"] == 3


def test_a_recipe_is_planned_too(recipe: Path) -> None:
    result = invoke("plan", recipe, "--all")
    assert result.exit_code == 0, result.output
    assert "inherit, round 1" in result.stdout and "num_hidden_layers 4 -> 2" in result.stdout
    assert result.stderr.strip() == f"next: inheritune run {recipe}"
    assert json.loads(invoke("plan", recipe, "--json").stdout)
    assert not Path("runs").exists()
    assert_error(invoke("plan", recipe, "3"), 2, "takes layers with a model", "--set")


def test_a_preset_is_planned_prepared_and_trained_as_it_is_run() -> None:
    small = ["data.tokens=20K", "data.val_fraction=0.005", "train.tokens=4K"]
    options = [word for text in small for word in ("--set", text)]
    for name in ("plan", "prepare", "train"):
        result = invoke(name, "demo-paper", *options)
        assert result.exit_code == 0, result.output
        next_step = f"next: inheritune run demo-paper {' '.join(options)}"
        assert result.stderr.strip().splitlines()[-1] == next_step


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "train.tokens=1M"], ["--set goes with a recipe"]),
        (["--scale", "0.5"], ["--scale goes with a recipe"]),
        (["9"], ["cannot keep 9", "between 1 and 4"]),
        (["3", "--tokens", "many"], ["--tokens 'many'", "500M"]),
        (["3", "--device", "abacus"], ["abacus"]),
    ],
)
def test_a_plan_of_impossible_layers_tokens_or_devices_is_refused(
    tiny_reference: Path, arguments: list[str], words: list[str]
) -> None:
    assert_error(invoke("plan", tiny_reference, *arguments), 2, *words)


def test_inherit_and_verify_end_with_the_next_step(tiny_reference: Path) -> None:
    made = invoke("inherit", tiny_reference, "last:2", "cut", "--dtype", "bf16")
    assert made.exit_code == 0, made.output
    lines = made.stderr.strip().splitlines()
    assert lines[-2].startswith("cut: layers 2-3 of 4, ")
    assert lines[-1] == f"next: inheritune verify cut --reference {tiny_reference}"
    proof = invoke("verify", "cut", "--reference", tiny_reference)
    assert proof.exit_code == 0, proof.output
    assert "cast to BF16" in proof.stderr
    findings = json.loads(invoke("verify", "cut", "--json").stdout)
    assert {finding["part"] for finding in findings} >= {"names", "digests", "class", "reload"}


def test_verify_ends_with_3_and_the_first_difference(tiny_reference: Path) -> None:
    invoke("inherit", tiny_reference, "2", "cut")
    weights = Path("cut/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    result = invoke("verify", "cut")
    assert result.exit_code == 3
    assert "has the xxh3 digest" in result.stderr.strip().splitlines()[-1]


def test_an_invalid_selection_of_layers_is_refused(tiny_reference: Path) -> None:
    assert_error(invoke("inherit", tiny_reference, "most", "cut"), 2, "'most'", "last:13")
    assert_error(invoke("inherit", tiny_reference, "0,0", "cut"), 2, "layer 0 stands twice")
    assert_error(invoke("inherit", tiny_reference, "2", "cut", "--dtype", "int4"), 2, "int4")
    assert not Path("cut").exists()


def test_convert_reads_a_pickled_checkpoint_and_names_the_next_step(tiny_reference: Path) -> None:
    import shutil

    import torch
    from safetensors.torch import load_file

    old = Path("old")
    shutil.copytree(tiny_reference, old)
    torch.save(load_file(old / "model.safetensors"), old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    assert_error(invoke("inherit", old, "2", "cut"), 3, "inheritune convert")
    result = invoke("convert", old, "new")
    assert result.exit_code == 0, result.output
    assert result.stderr.strip().splitlines()[-1] == "next: inheritune plan new"
    assert invoke("inherit", "new", "2", "cut").exit_code == 0
