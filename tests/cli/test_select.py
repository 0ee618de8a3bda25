"""The command select, and inherit with ways that choose by scores."""

import json

import pytest
from typer.testing import CliRunner

import inheritune
from inheritune.cli.app import app
from inheritune.data.calibration import MOST_TOKENS, WINDOWS, window_tokens


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"def function_{i}(a, b):\n    return a * {i} + b\n" for i in range(1500))
    path.write_text("\n".join(lines), "utf-8")
    return path


def call(*arguments):
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.stdout, result.stderr


SMALL = ("--windows", 4, "--tokens-per-window", 32)


def test_select_names_the_layers_and_inherit_takes_them(tiny_reference, text, tmp_path):
    out = tmp_path / "selection.json"
    arguments = ("select", tiny_reference, "--layers", 2, "--text", text, *SMALL)
    code, stdout, _ = call(*arguments, "--out", out, "--json")
    assert code == 0
    chosen = json.loads(stdout)
    choices = {row["select"]: row for row in chosen["choices"]}
    assert choices["auto"]["kl"] == min(row["kl"] for row in choices.values())
    assert [row["layer"] for row in chosen["scores"] if row["kept"]] == chosen["layers"]
    stored = json.loads(out.read_text("utf-8"))
    assert stored["chosen"] == chosen and stored["inputs"]["text"]["seed"] == 0
    assert {"influence", "angles", "cuts"} <= set(stored["result"])

    # The same command goes on from the file, and prints the next one.
    seconds = stored["result"]["seconds"]
    code, _, stderr = call(*arguments, "--out", out)
    assert code == 0 and json.loads(out.read_text("utf-8"))["result"]["seconds"] == seconds
    line = next(line for line in stderr.splitlines() if line.startswith("next: "))
    command = line.removeprefix("next: inheritune ").replace(" OUT", f" {tmp_path / 'cut'}")
    assert call(*command.split())[0] == 0
    record = json.loads((tmp_path / "cut" / "inherit.json").read_text("utf-8"))
    assert record["layer_map"] == chosen["layers"]


def test_another_seed_draws_other_windows(tiny_reference, text):
    rows = []
    for seed in (0, 1):
        arguments = ("--select", "block:3", "--text", text, *SMALL, "--seed", seed, "--json")
        code, stdout, _ = call("select", tiny_reference, *arguments)
        assert code == 0
        rows.append(json.loads(stdout)["scores"])
    assert rows[0] != rows[1]


def test_inherit_chooses_by_scores_where_it_is_given_text(tiny_reference, text, tmp_path):
    code, stdout, _ = call(
        "inherit", tiny_reference, "block:3", tmp_path / "cut", "--text", text, "--json"
    )
    assert code == 0
    layer_map = json.loads(stdout)["layer_map"]
    assert len(layer_map) == 3 and layer_map[0] == 0 and layer_map[-1] == 3


def test_select_reads_as_much_text_as_inherit_does_by_default(tiny_reference, text, tmp_path):
    out = tmp_path / "selection.json"
    inheritune.select(
        tiny_reference, 2, select="influence", text=str(text), out=out, progress=False
    )
    stored = json.loads(out.read_text("utf-8"))["inputs"]["text"]
    config = json.loads((tiny_reference / "config.json").read_text("utf-8"))
    assert stored["sequences"] == WINDOWS
    assert stored["tokens_per_sequence"] == window_tokens(config) < MOST_TOKENS


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--layers", 4), "all 4 layers"),
        (("--layers", 5), "cannot keep 5 layers"),
        (("--layers", 1), "auto needs two layers"),
        (("--select", "block"), "block does not say how many layers of"),
        ((), "to keep. Give their number: --layers 2"),
        (("--select", "bloc:2"), "does not say which layers"),
        (("--layers", 2, "--windows", 4000), "ask for fewer or shorter sequences"),
        (("--select", "lazy:2"), "Use it in a recipe, or choose"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_the_way_out(tiny_reference, text, arguments, said):
    code, stdout, stderr = call("select", tiny_reference, "--text", text, *arguments)
    assert code in (2, 3) and said in stderr and not stdout
    assert len(stderr.strip().splitlines()) <= 3


def test_inherit_without_text_says_what_it_needs(tiny_reference, tmp_path):
    code, _, stderr = call("inherit", tiny_reference, "block:2", tmp_path / "cut")
    assert code == 2 and "--text" in stderr and not (tmp_path / "cut").exists()


def test_scores_are_not_written_over_another_file(tiny_reference, text, tmp_path):
    notes, arguments = tmp_path / "notes.txt", ("--select", "block:3", "--text", text, *SMALL)
    notes.write_text("mine", "utf-8")
    for out, said in (
        (notes, "is no file of scores"),
        (tmp_path, "is a directory"),
        (tmp_path / "none" / "selection.json", "lies in a directory that does not exist"),
    ):
        code, _, stderr = call("select", tiny_reference, *arguments, "--out", out)
        assert code == 2 and said in stderr
    assert notes.read_text("utf-8") == "mine"


def test_inherit_measures_nothing_where_it_could_not_write(
    tiny_reference, text, tmp_path, monkeypatch
):
    def measure(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.setattr("inheritune.analysis.select.select_layers", measure)
    (tmp_path / "file").write_text("mine", "utf-8")
    arguments = ("inherit", tiny_reference, "block:3", tmp_path, "--text", text)
    code, _, stderr = call(*arguments)
    assert code == 2 and "already exists" in stderr
    code, _, stderr = call(*arguments[:3], tmp_path / "new", *arguments[4:], "--dtype", "fp7")
    assert code == 2 and "unknown dtype" in stderr
