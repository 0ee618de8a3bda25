"""Inject faults into recipes, command lines and run directories."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from inheritune.errors import Interrupted, RecipeError
from inheritune.recipe.load import RecipeFile, read_recipe
from inheritune.recipe.schema import Recipe
from inheritune.run.execute import execute
from inheritune.run_directory import Run
from inheritune.system.progress import Progress

SMALLEST = """\
name: toy
reference:
  model: embedded:demo
data:
  source: stdlib
train:
  tokens: 2M
"""


def write(directory: Path, text: str | bytes) -> Path:
    path = directory / "recipe.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def refused(path: Path, *sets: str) -> str:
    """The message of the refusal; exit code 2, at most three lines."""
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, sets)
    assert caught.value.exit_code == 2
    message = str(caught.value)
    assert 1 <= len(message.splitlines()) <= 3
    return message


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "---\n", "null\n", "\ufeff"])
@pytest.mark.fault("A1")
def test_empty_recipe(tmp_path: Path, text: str) -> None:
    assert "recipe.yaml: the recipe is empty." in refused(write(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "kind"), [("- a\n", "a list"), ("text\n", "text"), ("5\n", "a number")]
)
@pytest.mark.fault("A2")
def test_list_at_the_top_level(tmp_path: Path, text: str, kind: str) -> None:
    message = refused(write(tmp_path, text))
    assert f"expected a mapping at the top level, found {kind}" in message


@pytest.mark.fault("A3")
def test_unknown_key_gets_did_you_mean(tmp_path: Path) -> None:
    message = refused(write(tmp_path, SMALLEST + "  lerning_rate: 1e-4\n"))
    assert "line 8: train.lerning_rate is not a key. Did you mean train.learning_rate?" in message


@pytest.mark.parametrize(
    ("line", "path"),
    [
        ("learning_rate: 1e-4", "train.learning_rate"),
        ("  source: stdlib", "data.source"),
        ("grow: {layers: 4}", "inherit.layers or variants.<name>.layers"),
    ],
)
@pytest.mark.fault("A4")
def test_known_key_at_the_wrong_level_gets_its_path(tmp_path: Path, line: str, path: str) -> None:
    message = refused(write(tmp_path, f"{SMALLEST}{line}\n"))
    assert "line 8: " in message
    assert f"is not a key. It belongs elsewhere: {path}." in message


@pytest.mark.fault("A5")
def test_key_twice_names_both_lines(tmp_path: Path) -> None:
    text = SMALLEST + "  learning_rate: 1e-4\n  seed: 1\n  learning_rate: 1e-4\n"
    message = refused(write(tmp_path, text))
    assert "line 10: train.learning_rate stands twice, in lines 8 and 10." in message


@pytest.mark.fault("A6")
def test_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST + "  learning_rate: 1e-4\n")
    assert read_recipe(path).recipe.train.learning_rate == 0.0001


@pytest.mark.fault("A7")
def test_text_that_looks_like_something_else(tmp_path: Path) -> None:
    assert read_recipe(write(tmp_path, SMALLEST.replace("toy", "no"))).recipe.name == "no"
    revision = SMALLEST.replace("embedded:demo", "embedded:demo\n  revision: {}")
    found = read_recipe(write(tmp_path, revision.format("1:30")))
    assert found.recipe.reference.revision == "1:30"
    # A run's directory cannot have a colon on every system; what is refused is the text itself.
    assert "name is 1:30: use letters" in refused(write(tmp_path, SMALLEST.replace("toy", "1:30")))
    message = refused(write(tmp_path, revision.format("010")))
    assert 'line 4: reference.revision is 010, read as a number. Quote it: "010".' in message
    message = refused(write(tmp_path, revision.format("2024-01-01")))
    assert 'reference.revision is 2024-01-01, read as a date. Quote it: "2024-01-01".' in message
    found = read_recipe(write(tmp_path, revision.format('"2024-01-01"')))
    assert found.recipe.reference.revision == "2024-01-01"


@pytest.mark.parametrize(
    ("value", "requirement"),
    [
        *[("-1", "greater than 0"), ("0", "greater than 0")],
        *[(value, "a finite number") for value in (".nan", ".inf", "1e999")],
        *[("true", "a valid number"), ("'1'", "a valid number")],
    ],
)
@pytest.mark.fault("A8")
def test_learning_rate_is_finite_and_positive(tmp_path: Path, value: str, requirement: str) -> None:
    message = refused(write(tmp_path, f"{SMALLEST}  learning_rate: {value}\n"))
    shown = value.replace("'", '"')
    assert f"train.learning_rate is {shown}. It must be {requirement}." in message


@pytest.mark.parametrize(
    ("value", "requirement"),
    [
        *[(value, "greater than or equal to 1") for value in ("0", "-1")],
        *[(value, "a valid integer") for value in ("1.5", '"8"')],
    ],
)
@pytest.mark.fault("A9")
def test_layers_that_cannot_be(tmp_path: Path, value: str, requirement: str) -> None:
    message = refused(write(tmp_path, f"{SMALLEST}inherit:\n  layers: {value}\n"))
    start = f"line 9: inherit.layers is {value}. It must be {requirement} or be 'advice'."
    assert start in message


@pytest.mark.parametrize("value", ["[0, 0]", "[1, 0]", "[0, 99]"])
@pytest.mark.fault("A10")
def test_list_of_layers(tmp_path: Path, value: str) -> None:
    message = refused(write(tmp_path, f"{SMALLEST}inherit:\n  layers: {value}\n"))
    assert "inherit.layers is a list. It must be a valid integer or be 'advice'." in message


@pytest.mark.fault("A11")
def test_batch_that_is_no_multiple_names_the_nearest(tmp_path: Path) -> None:
    text = SMALLEST + "  seq_len: 64\n  micro_batch: 4\n  batch_tokens: 1000\n"
    assert (
        "line 6: train: batch_tokens 1000 is not a multiple of seq_len x micro_batch = 256; "
        "nearest: 768 or 1024."
    ) in refused(write(tmp_path, text))


def run_with_long_sequences(model: Path, text: Path, root: Path) -> list[str]:
    """What is said of 256 tokens per sequence, before the run is stopped there."""
    train = {"tokens": 1280, "seq_len": 256, "batch_tokens": 512, "micro_batch": 2}
    fields = {"name": "toy", "reference": {"model": str(model)}, "data": {"source": str(text)}}
    recipe = RecipeFile(None, "", Recipe.model_validate(fields | {"train": train}), {})
    said: list[str] = []

    def on_progress(progress: Progress) -> None:
        said.append(progress.message)
        if "positions" in progress.message:
            os.kill(os.getpid(), signal.SIGTERM)

    with suppress(Interrupted):
        execute(recipe, root, on_progress)
    return said


@pytest.mark.fault("A12")
def test_more_tokens_than_learned_positions_are_refused(
    tiny_model: Callable[[str], Path], tiny_text: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"seq_len is 256.* has 128 positions") as caught:
        run_with_long_sequences(tiny_model("gpt2"), tiny_text, tmp_path)
    assert "Set train.seq_len to 128 or less" in caught.value.hint
    assert not (tmp_path / "tokens").exists()


@pytest.mark.fault("A12")
def test_more_tokens_than_a_rotary_model_was_made_for_are_said(
    tiny_reference: Path, tiny_text: Path, tmp_path: Path
) -> None:
    said = run_with_long_sequences(tiny_reference, tiny_text, tmp_path)
    assert "train.seq_len 256 is above the 128 positions it was made for" in said


@pytest.mark.fault("A13")
def test_tag_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = '!!python/object/apply:os.system ["touch PWNED"]'
    message = refused(write(tmp_path, SMALLEST.replace("toy", value)))
    assert "line 1: the tag tag:yaml.org,2002:python/object/apply:os.system is not" in message
    assert "is not allowed" in refused(write(tmp_path, SMALLEST), f"name={value}")
    assert not (tmp_path / "PWNED").exists()


BOMBS = """
import json, sys, time
from pathlib import Path
from inheritune.errors import RecipeError
from inheritune.recipe.load import read_recipe
for path in sys.argv[1:]:
    started = time.process_time()
    try:
        read_recipe(Path(path))
    except RecipeError as error:
        print(json.dumps([str(error), time.process_time() - started]))
# Not getrusage: its peak is inherited from the process that started this one.
status = dict(line.split(':') for line in open('/proc/self/status') if line.startswith('VmHWM'))
print(status['VmHWM'].split()[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux counts it")
@pytest.mark.fault("A14")
def test_bombs_are_refused_while_they_are_small(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    bombs = {
        "anchors and aliases are not allowed": "\n".join(lines),
        "larger than 1,000,000 bytes": "a: b\n" * 10_000_000,
        "nested more than 50 deep": "a: " + "[" * 10_000,
        "nested more than 50 deep.": "- " * 10_000,
        "more than 20,000 values": "- a\n" * 200_000,
    }
    paths = []
    for index, text in enumerate(bombs.values()):
        (tmp_path / f"{index}.yaml").write_text(text)
        paths.append(str(tmp_path / f"{index}.yaml"))
    command = [sys.executable, "-c", BOMBS, *paths]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    *reports, memory_kib = answer.stdout.splitlines()
    for words, report in zip(bombs, reports, strict=True):
        message, seconds = json.loads(report)
        assert words in message
        assert seconds < 10  # read whole, they take minutes and all memory
    assert int(memory_kib) < 300 * 1024


@pytest.mark.fault("A15")
def test_byte_order_mark_and_line_ends_are_fine(tmp_path: Path) -> None:
    plain = read_recipe(write(tmp_path, SMALLEST)).recipe
    marked = read_recipe(write(tmp_path, "\ufeff" + SMALLEST))
    assert marked.recipe == plain
    assert marked.text == SMALLEST
    windows = SMALLEST.replace("\n", "\r\n")
    assert read_recipe(write(tmp_path, windows)).recipe == plain
    message = refused(write(tmp_path, windows + "  sede: 1\r\n"))
    assert "line 8: train.sede" in message


@pytest.mark.fault("A15")
def test_tabs_and_other_encodings_are_named_with_their_line(tmp_path: Path) -> None:
    message = refused(write(tmp_path, SMALLEST.replace("  tokens", "\ttokens")))
    assert "line 7, column 1: not valid YAML: a tab where spaces were expected." in message
    assert "Indent with spaces instead of tabs." in message
    message = refused(write(tmp_path, SMALLEST.encode() + b"# caf\xe9\n"))
    assert "line 8: not UTF-8 text: byte 0xe9. Save the file as UTF-8." in message
    assert "line 1: not UTF-8 text" in refused(write(tmp_path, SMALLEST.encode("utf-16")))
    assert "line 8: a control character" in refused(write(tmp_path, SMALLEST + "# \x00\n"))


@pytest.mark.fault("A16")
def test_path_that_is_no_file(tmp_path: Path) -> None:
    assert "it is a directory" in refused(tmp_path)
    assert "no such file or directory" in refused(tmp_path / "missing.yaml")
    assert "NUL" in refused(Path(f"{tmp_path}/a\0b"))
    assert "cannot read the recipe" in refused(tmp_path / ("x" * 5000))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert "cannot read the recipe" in refused(tmp_path / "loop")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.fault("A16")
def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "it is not a regular file" in refused(tmp_path / "pipe")


READ = """
import sys
import time
from pathlib import Path
from inheritune.recipe.load import read_recipe
from inheritune.errors import RecipeError
import os
import signal
if os.geteuid() == 0:
    os.seteuid(65534)
try:
    read_recipe(Path(sys.argv[1]))
except RecipeError as error:
    print(error)
"""


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.fault("A16")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write(tmp_path, SMALLEST)
    path.chmod(0)
    command = [sys.executable, "-c", READ, str(path)]  # another process: root may read all
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout == (
        f"cannot read the recipe {path}: permission denied. Name a readable YAML file.\n"
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate=abc", "train.learning_rate is abc. It must be a valid number."),
        ("nokey=1", "nokey is not a key"),
        ("=", "not of the form KEY=VALUE"),
        ("a.b", "not of the form KEY=VALUE"),
    ],
)
@pytest.mark.fault("A17")
def test_bad_set(tmp_path: Path, text: str, words: str) -> None:
    message = refused(write(tmp_path, SMALLEST), text)
    assert message.startswith(f"--set {text}: ")
    assert words in message


@pytest.mark.fault("A18")
def test_run_directory_that_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work, foreign = tmp_path / "home", tmp_path / "work", tmp_path / "foreign"
    for directory in (home, work, foreign):
        directory.mkdir()
    (foreign / "thesis.txt").write_text("mine")
    (foreign / "run.json").write_text('{"tool": "another"}')
    (tmp_path / "link").symlink_to(foreign)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    before = sorted(tmp_path.rglob("*"))
    paths = [Path("/"), Path("~"), Path("~/runs/x"), home, Path(), work, Path("../work")]
    paths += [foreign, tmp_path / "link", foreign / "thesis.txt", foreign / "thesis.txt" / "x"]
    paths += [tmp_path / "dangling", Path(f"{tmp_path}/a\0b"), tmp_path / ("x" * 300)]
    for path in paths:
        with pytest.raises(RecipeError, match="cannot put a run into") as caught:
            Run.create(path)
        assert len(str(caught.value).splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before
    assert (foreign / "run.json").read_text() == '{"tool": "another"}'


@pytest.mark.parametrize(
    "name", ["../../x", "a/b", "CON", "x" * 300, "😀", '"a\\nb"', "<script>", '""', "..", "'a\\b'"]
)
@pytest.mark.fault("A19")
def test_name_that_is_no_directory(tmp_path: Path, name: str) -> None:
    assert "line 1: name is " in refused(write(tmp_path, SMALLEST.replace("toy", name)))


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "embedded:demo"]])
@pytest.mark.fault("A20")
def test_ctrl_c_and_a_closed_pipe_leave_no_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "inheritune", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    # The first moments are Python's own: only then is there a handler of ours.
    for wait_s in (0.12, 0.2, 0.3):
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            time.sleep(wait_s)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate()
        assert process.returncode in (0, 130, -signal.SIGINT)
        assert b"inheritune/cli" not in said  # as it would stand in a traceback
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() in (0, 1)
    assert said == b""
