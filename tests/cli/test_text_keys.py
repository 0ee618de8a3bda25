"""Commands read --text by the keys of a recipe's data section."""

import json

import pytest
from typer.testing import CliRunner

from inheritune import api
from inheritune.cli.app import app
from inheritune.errors import RecipeError

WORDS = "the small model learns what the large one knew and forgets what it did not "
KEY = "data.text_column=story"


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A table whose text is in the column story, and the same text as plain documents."""
    directory = tmp_path_factory.mktemp("table")
    stories = [f"{i} {WORDS * 8}" for i in range(12)]
    rows = "".join(f'{i},"{story}"\n' for i, story in enumerate(stories))
    (directory / "a.csv").write_text("id,story\n" + rows)
    lines = "".join(json.dumps({"text": story}) + "\n" for story in stories)
    (directory / "plain.jsonl").write_text(lines)
    return directory


def answer(*words):
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    return json.loads(done.stdout) | {"exit": done.exit_code}


# Words of each command that measures on a text, and where its answer says what was measured.
WINDOWS = "--layers 2 --select influence --windows 4 --tokens-per-window 16"
COMMANDS = {
    "evaluate": ("--seq-len 32 --out OUT/e", "models"),
    "select": (WINDOWS, "layers"),
    "analyze": ("--sequences 4 --tokens-per-sequence 16 --out OUT/a.json", "models"),
    "inherit": ("0,1,3 OUT/cut --repair scale --repair-tokens 256", "repair"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_on_a_text_takes_the_keys_that_say_how_it_is_read(
    tiny_reference, table, tmp_path, name
):
    found = []
    for place, text in (("keys", ["a.csv", "--set", KEY]), ("plain", ["plain.jsonl"])):
        (tmp_path / place).mkdir()
        options, key = COMMANDS[name]
        words = options.replace("OUT", str(tmp_path / place)).split()
        given = answer(name, tiny_reference, *words, "--text", table / text[0], *text[1:])
        assert given["exit"] == 0, given
        found.append(_without_times(given[key]))
    assert found[0] == found[1]


def _without_times(value):
    if isinstance(value, list):
        return [_without_times(item) for item in value]
    if isinstance(value, dict):
        passing = ("seconds", "time", "text", "source", "file")
        return {k: _without_times(v) for k, v in value.items() if k not in passing}
    return value


def test_patch_reads_its_text_by_keys_and_repeats_them(tiny_reference, table, tmp_path):
    api.inherit(tiny_reference, 2, tmp_path / "target", progress=False)
    words = ["patch", tmp_path / "target", tiny_reference, "--text", table / "a.csv", "--set", KEY]
    words += ["--windows", 2, "--tokens-per-window", 16]
    done = CliRunner().invoke(app, list(map(str, words)))
    assert done.exit_code == 0, done.output
    assert f"--text {table / 'a.csv'}" in done.output and f"--set {KEY}" in done.output


@pytest.mark.parametrize(
    ("text", "sets", "match"),
    [
        ([], [KEY], "here it says how --text is read"),
        (["a.csv"], ["train.seq_len=8"], "here it says how --text is read"),
        (["a.csv"], ["data.source=b.csv"], "here it says how --text is read"),
        (["a.csv"], ["data=story"], "here it says how --text is read"),
        (["a.csv"], ["data=null"], "here it says how --text is read"),
        (["a.csv"], ["data.val_fraction=0.5"], "data.val_fraction does not say how a text is"),
        (["a.csv"], ["data.text_colum=story"], "data.text_colum does not say how a text is"),
        (["a.csv"], ["data.format=word"], "format is word"),
        (["a.csv"], [], "no column 'text'"),
    ],
)
def test_other_keys_are_refused(tiny_reference, table, text, sets, match):
    words = ["select", tiny_reference, "--layers", 2]
    words += [word for name in text for word in ("--text", table / name)]
    given = answer(*words, *(word for key in sets for word in ("--set", key)))
    assert given["exit"] == (2 if sets else 3)
    assert match in given["message"]


def test_in_python_a_text_is_a_mapping_with_the_same_keys(tiny_reference, table):
    text = {"source": table / "a.csv", "text_column": "story"}
    settings = {"windows": 4, "tokens_per_window": 16, "progress": False}
    found = api.select(tiny_reference, 2, select="influence", text=text, **settings)
    plain = api.select(
        tiny_reference, 2, select="influence", text=str(table / "plain.jsonl"), **settings
    )
    assert [row["kl"] for row in found.rows()] == [row["kl"] for row in plain.rows()]
    assert found.sequences.source == f"{table / 'a.csv'} (text_column: story)"
    with pytest.raises(RecipeError, match=r"data\.tokens does not say how a text is read"):
        api.select(tiny_reference, 2, text=text | {"tokens": 5}, **settings)
    with pytest.raises(RecipeError, match="a text is given without its source"):
        api.select(tiny_reference, 2, text={"text_column": "story"}, **settings)
    parts = [{"source": str(table / "a.csv"), "text_column": "story"}]
    found = api.select(tiny_reference, 2, select="influence", text={"source": parts}, **settings)
    assert [row["kl"] for row in found.rows()] == [row["kl"] for row in plain.rows()]
    with pytest.raises(RecipeError, match="weight does not say how a text is read"):
        api.select(tiny_reference, 2, text={"source": [parts[0] | {"weight": 2}]}, **settings)
