"""`run MODEL --text PATH` and `init --reference MODEL`: a first run without YAML."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from inheritune.cli.app import app
from inheritune.errors import Interrupted
from inheritune.recipe.load import read_recipe
from inheritune.recipe.presets import preset_names

QUICK = [
    *("--method", "paper", "--set", "analyze=null"),
    *("--set", "evaluate.gains=false", "--set", "train.seq_len=16"),
    *("--set", "train.eval_every=640"),
]


def invoke(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def first(tiny_reference: Path, tiny_text: Path) -> list[object]:
    return ["run", tiny_reference, "--text", tiny_text, "--tokens", "1280", *QUICK]


def outputs(run: Path) -> dict[str, Any]:
    """What a run computed, without times."""
    rows = [
        json.loads(line)
        for path in sorted(run.glob("variants/*/*/metrics.jsonl"))
        for line in path.read_text().splitlines()
    ]
    losses = [(row["step"], row.get("loss"), row.get("val_loss")) for row in rows]
    return {"target": (run / "target" / "model.safetensors").read_bytes(), "losses": losses}


def test_a_model_and_a_text_are_run_by_a_recipe_that_is_written(first: list[object]) -> None:
    result = invoke(*first)
    assert result.exit_code in (0, 6), result.output
    path = Path("tiny-reference.yaml")
    assert "to continue: inheritune run tiny-reference.yaml" in result.stderr
    assert Path("runs/tiny-reference/recipe.yaml").read_bytes() == path.read_bytes()
    recipe = read_recipe(path).recipe
    assert recipe.inherit.layers is None  # half
    assert (recipe.grow.add, recipe.grow.max_rounds) == (2, 2)
    assert (recipe.train.tokens, recipe.train.seq_len) == (1280, 16)
    assert recipe.train.learning_rate == 2e-3
    assert [*recipe.variants] == ["inherit"]


def test_the_written_recipe_gives_the_same_run_to_the_bit(first: list[object]) -> None:
    invoke(*first)
    Path("elsewhere").mkdir()
    result = invoke("run", "tiny-reference.yaml", "--runs", "elsewhere")
    assert result.exit_code in (0, 6), result.output
    assert outputs(Path("elsewhere/tiny-reference")) == outputs(Path("runs/tiny-reference"))


def test_the_same_command_continues_and_measures_nothing_again(
    first: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = [word for word in first if word not in ("--tokens", "1280")] + ["--minutes", "0.1"]
    speeds = iter([1e-3])
    monkeypatch.setattr("inheritune.run.first_recipe.seconds_per_token", lambda *args: next(speeds))
    ran = invoke(*timed, "--json")
    assert ran.exit_code in (0, 6), ran.output
    written = Path("tiny-reference.yaml").read_bytes()
    again = invoke(*timed, "--json")  # a second measurement would end the iterator
    assert json.loads(again.stdout) == json.loads(ran.stdout)

    # --- the run alone is enough: its copy of the recipe is taken ---
    Path("tiny-reference.yaml").unlink()
    assert json.loads(invoke(*timed, "--json").stdout) == json.loads(ran.stdout)
    assert Path("tiny-reference.yaml").read_bytes() == written


@pytest.mark.parametrize("kept", ["tiny-reference.yaml", "runs/tiny-reference/recipe.yaml"])
def test_another_command_does_not_take_over_a_recipe_of_that_name(
    first: list[object], kept: str
) -> None:
    invoke(*first)
    for path in ("tiny-reference.yaml", "runs/tiny-reference/recipe.yaml"):
        if path != kept:
            Path(path).unlink()
    result = invoke(*first, "--layers", 3)
    refused(result, 2, "tiny-reference", "not made by this command", "--name NAME")
    assert f"inheritune run {kept}" in result.stderr
    assert read_recipe(Path(kept)).recipe.inherit.layers is None


def test_a_name_and_a_number_of_layers_are_taken(first: list[object]) -> None:
    result = invoke(*first, "--layers", 3, "--name", "mine")
    # This size was asked for, whether it matches or not.
    assert result.exit_code == 0, result.output
    record = json.loads(Path("runs/mine/run.json").read_text())
    assert (record["result"]["layers"], record["recipe"]["grow"]["add"]) == (3, 0)
    if record["result"]["outcome"] == "not_matched":
        assert "3 layers were asked for, whether they match or not: val_loss is +" in result.stderr
        assert "more tokens, 2.56K instead of 1.28K" in result.stderr
        assert "\nnext: inheritune run mine.yaml --set " in result.stderr
    assert record["result"]["method"] == "paper"
    assert Path("mine.yaml").is_file()


def test_the_default_method_is_best_and_every_result_says_so(first: list[object]) -> None:
    best = [word for word in first if word not in ("--method", "paper")]
    ran = invoke(*best, "--layers", 3, "--set", "inherit.repair_tokens=128")
    assert ran.exit_code == 0, ran.output
    run = Path("runs/tiny-reference")
    record = json.loads((run / "run.json").read_text())
    assert record["result"]["method"] == "best"
    target = record["rounds"][0]
    assert (target["repair"]["method"], target["distill"]["alpha"]) == ("sequential", 0.1)
    assert target["distill"]["hidden"]["loss"] == "cosine"
    for text in (ran.stdout, (run / "target" / "README.md").read_text()):
        assert "Method: best," in " ".join(text.split())
    assert "Method: best," in (run / "report" / "index.html").read_text()


def test_any_selection_of_layers_is_taken(first: list[object]) -> None:
    result = invoke(*first, "--layers", "0,2-3")
    assert result.exit_code == 0, result.output
    recipe = read_recipe(Path("tiny-reference.yaml")).recipe
    assert (recipe.inherit.layers, recipe.inherit.select, recipe.grow.add) == (None, "0,2-3", 0)
    cut = next(Path("runs/tiny-reference/variants/inherit").glob("3-layers/inherit.json"))
    assert json.loads(cut.read_text())["layer_map"] == [0, 2, 3]


def test_init_prints_the_recipe_that_run_would_write(
    first: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise Interrupted("stopped before it began; a test.")

    model, text = first[1], first[3]
    asked = ["--text", text, "--tokens", 1280, "--layers", 3]
    printed = invoke("init", "--reference", model, *asked)
    assert printed.exit_code == 0, printed.output
    monkeypatch.setattr("inheritune.run.execute.execute", stopped)
    assert invoke("run", model, *asked).exit_code == 75
    assert Path("tiny-reference.yaml").read_text() == printed.stdout
    as_json = json.loads(invoke("init", "--reference", model, *asked, "--json").stdout)
    assert as_json == {"reference": str(model), "recipe": printed.stdout}


def test_a_preset_runs_by_its_name() -> None:
    small = ["data.tokens=200K", "train.tokens=16K", "train.warmup_tokens=4K", "analyze=null"]
    sets = [word for text in small for word in ("--set", text)]
    refused(invoke("run", "demo", *sets, "--set", "data.source=nowhere.txt"), 3, "nowhere.txt")
    assert not Path("runs").exists()


def test_init_lists_each_preset_in_a_line_with_text_tokens_and_time() -> None:
    lines = invoke("init", "--list").stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == preset_names()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= 80
    demo = next(line for line in lines if line.startswith("demo "))
    assert demo.split()[1:3] == ["stdlib", "737K"]


# -- wrong input: one to three lines, and nothing is left behind


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code, result.output
    error = result.stderr[result.stderr.index("error: ") :]
    assert len(error.strip().splitlines()) <= 3
    for word in words:
        assert word in error


@pytest.fixture
def nothing_is_left(tmp_path: Path) -> Any:
    yield
    assert [path.name for path in tmp_path.iterdir() if path.name != "input"] == []


@pytest.mark.usefixtures("nothing_is_left")
class TestRefusals:
    @pytest.mark.parametrize("options", [["--tokens", "1280"], ["--minutes", "1"]])
    def test_text_that_is_missing_blank_or_too_short(
        self, options: list[str], tiny_reference: Path
    ) -> None:
        Path("input").mkdir()
        Path("input/blank.txt").write_text("\n")
        Path("input/short.txt").write_text("a few words")
        start = ["run", tiny_reference, *options, "--text"]
        refused(invoke(*start, "nowhere"), 3, "there is no file or folder 'nowhere'")
        refused(invoke(*start, "input/blank.txt"), 3, "there is no text in input/blank.txt")
        refused(invoke(*start, "input/short.txt"), 3, "too short", "1 document", "Add text")

    def test_a_model_that_is_not_there_or_has_no_tokenizer(
        self, tiny_reference: Path, tiny_text: Path
    ) -> None:
        model = shutil.copytree(tiny_reference, "input/model")
        Path(model, "tokenizer.json").unlink()
        asked = ["--text", tiny_text, "--tokens", 1280]
        refused(invoke("run", "./nowhere", *asked), 3, "nowhere")
        refused(invoke("run", "embedded:other", *asked), 3, "embedded:demo")
        refused(invoke("run", model, *asked), 3, "there is no tokenizer.json")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--minutes", "0"], ["--minutes is 0", "more than 0"]),
            (["--minutes", "nan"], ["--minutes is nan"]),
            (["--minutes", "-3"], ["--minutes is -3"]),
            (["--minutes", "1", "--tokens", "1K"], ["--tokens and --minutes"]),
            (["--tokens", "many"], ["--tokens 'many'", "500M, 1B or 1.5T"]),
            (["--tokens", "0"], ["--tokens '0'"]),
            (["--tokens", "1K", "--layers", "9"], ["9", "between 1 and 4"]),
            (["--tokens", "1K", "--layers", "0"], ["between 1 and 4"]),
            (["--tokens", "1K", "--layers", "all"], ["all"]),
            (["--tokens", "1K", "--layers", "3-9"], ["no layer 4", "0 to 3"]),
            (["--tokens", "1K", "--layers", "last"], ["last"]),
            (["--tokens", "1K", "--name", "a/b"], ["a/b is no name", "--name a-b"]),
            (["--tokens", "1K", "--set", "name=a b"], ["a b is no name", "--name a-b"]),
            (["--tokens", "1K", "--set", "train.lerning_rate=1"], ["train.learning_rate?"]),
            (["--tokens", "1K", "--method", "worst"], ["no method 'worst'", "paper or best"]),
            (["--tokens", "1K", "--set", "train.tokens=many"], ["train.tokens=many"]),
            (["--tokens", "1K", "--scale", "0.1"], ["--scale goes with a recipe"]),
        ],
    )
    def test_a_wrong_value(
        self, options: list[str], words: list[str], tiny_reference: Path, tiny_text: Path
    ) -> None:
        refused(invoke("run", tiny_reference, "--text", tiny_text, *options), 2, *words)

    def test_too_few_minutes(
        self, tiny_reference: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("inheritune.run.first_recipe.seconds_per_token", lambda *args: 1.0)
        start = ["run", tiny_reference, "--text", tiny_text]
        refused(invoke(*start, "--minutes", 1), 2, "--minutes 1 is too short", "Give --minutes")

    @pytest.mark.parametrize(
        ("option", "key"),
        [
            (["--text", "x.txt"], "data.source"),
            (["--layers", "3"], "inherit.layers"),
            (["--tokens", "1K"], "train.tokens"),
            (["--minutes", "1"], "train.tokens"),
            (["--name", "mine"], "name"),
            (["--method", "best"], "inherit.select"),
        ],
    )
    def test_a_recipe_with_an_option_of_a_model(self, option: list[str], key: str) -> None:
        refused(invoke("run", "demo", *option), 2, "demo is a recipe", f"--set {key}=...")

    def test_a_model_without_its_text(self, tiny_reference: Path) -> None:
        refused(invoke("run", tiny_reference), 2, "--text PATH")
        refused(
            invoke("run", "dmeo"), 2, "neither a recipe file nor a preset", "Did you mean demo?"
        )

    def test_init_with_half_of_what_it_needs(self, tiny_reference: Path) -> None:
        refused(invoke("init", "--reference", tiny_reference), 2, "no text is named")
        refused(invoke("init", "--text", "x.txt"), 2, "--reference MODEL")

    def test_several_processes_that_torchrun_has_started(
        self, tiny_reference: Path, tiny_text: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setattr("inheritune.cli.console._end", _end)
        refused(invoke("run", tiny_reference, "--text", tiny_text), 2, "inheritune init")


def _end(code: int) -> None:
    raise SystemExit(code)
