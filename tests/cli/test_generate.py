"""The command generate: what it takes for a prompt, what it shows, and what it refuses."""

import json
from pathlib import Path

import pytest
from tiny_recipe import recipe_of
from typer.testing import CliRunner, Result

import inheritune
from inheritune.cli.app import app
from inheritune.errors import visible


def generate(*args: object, stdin: str | bytes | None = None) -> Result:
    words = ["generate", *map(str, args), "--max-tokens", "4"]
    return CliRunner().invoke(app, words, input=stdin)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    recipe = recipe_of(tiny_reference, tiny_text, grow={"add": 0})
    inheritune.derive(recipe, runs=runs, progress=False)
    return runs / "tiny"


def test_a_run_stands_for_its_reference_target_and_control(run: Path, tiny_reference: Path) -> None:
    result = generate(run, "the small")
    assert result.exit_code == 0, result.output
    names = ["reference, 4 layers", "target, 2 layers", "scratch, 2 layers"]
    assert result.stderr.splitlines() == [f"{name}:" for name in names]
    models = json.loads(generate(run, "the small", "--json").stdout)["models"]
    assert [model["model"] for model in models] == names
    assert result.stdout == visible("\n\n".join(model["text"] for model in models)) + "\n"
    alone = json.loads(generate(tiny_reference, "the small", "--json").stdout)["models"]
    assert alone[0]["text"] == models[0]["text"]


def test_several_arguments_name_the_run_of_each_model(run: Path, tiny_reference: Path) -> None:
    models = json.loads(generate(run, tiny_reference, "the", "--json").stdout)["models"]
    assert [model["model"] for model in models] == [
        *("tiny: reference, 4 layers", "tiny: target, 2 layers", "tiny: scratch, 2 layers"),
        str(tiny_reference),
    ]


def test_the_prompt_can_come_from_stdin(tiny_reference: Path) -> None:
    texts = [
        json.loads(generate(*args, "--json", stdin=stdin).stdout)["models"][0]["text"]
        for args, stdin in (
            ((tiny_reference, "the small"), None),
            ((tiny_reference,), "the small\n"),
            ((tiny_reference, "-"), "the small"),
        )
    ]
    assert texts[0] == texts[1] == texts[2]


def test_a_prompt_may_look_like_a_model_or_a_directory(
    tiny_reference: Path, tmp_path: Path
) -> None:
    (tmp_path / "docs").mkdir()
    for args in ((tiny_reference, "docs"), (tiny_reference, "--prompt", "and/or")):
        models = json.loads(generate(*args, "--json").stdout)["models"]
        assert [model["model"] for model in models] == [str(tiny_reference)]


@pytest.mark.parametrize("args", [("embedded:demo", "and/or"), ("Once upon a time",)])
def test_an_argument_that_is_taken_for_a_model_is_named(args: tuple[str, ...]) -> None:
    result = generate(*args, stdin="")
    assert result.exit_code == 2
    assert f"stdin is empty, and '{args[-1]}' is taken for a model" in result.stderr
    assert "--prompt" in result.stderr
    assert len(result.stderr.strip().splitlines()) <= 3


def test_a_model_of_too_long_a_name_is_refused() -> None:
    result = generate("a" * 300, "the")
    assert result.exit_code == 3
    assert "too long a name" in result.stderr


def test_a_run_without_a_target_says_so(run: Path, tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished/run.json").write_bytes((run / "run.json").read_bytes())
    result = generate("unfinished", "the")
    assert result.exit_code == 3
    assert "has no target yet" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("./missing", "the"), 3, "there is no model directory"),
        (("MODEL", ""), 2, "the prompt is empty"),
        (("MODEL", "  "), 2, "the prompt is empty"),
        (("MODEL", "a b " * 80), 2, "has 128 positions"),
        (("MODEL", "the", "--temperature", "-1"), 2, "--temperature is -1"),
        (("MODEL", "the", "--temperature", "nan"), 2, "--temperature is nan"),
        (("MODEL", "the", "--max-tokens", "0"), 2, "--max-tokens is 0"),
        (("MODEL", "the", "--seed", "-1"), 2, "--seed is -1"),
        (("MODEL", "the", "--chat"), 2, "no chat template"),
        (("-",), 2, "no model is given"),
    ],
)
def test_wrong_input_is_one_line_and_its_exit_code(
    args: tuple[str, ...], code: int, words: str, tiny_reference: Path
) -> None:
    given = [str(tiny_reference) if arg == "MODEL" else arg for arg in args]
    result = CliRunner().invoke(app, ["generate", *given], input="the")
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.strip().splitlines()) <= 3
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("stdin", "words"),
    [(b"", "is empty"), (b"\xff", "byte 0xff"), (b"a" * (4 * 2**20 + 1), "larger than 4 MiB")],
)
def test_a_prompt_on_stdin_that_is_none_is_refused(
    stdin: bytes, words: str, tiny_reference: Path
) -> None:
    result = generate(tiny_reference, stdin=stdin)
    assert result.exit_code == 2
    assert words in result.stderr
