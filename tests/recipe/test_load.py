import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import RecipeError
from inheritune.recipe.load import RecipeFile, read_recipe, recipe_schema
from inheritune.recipe.messages import REMOVED_KEYS
from inheritune.recipe.presets import preset_path
from inheritune.recipe.schema import Recipe
from inheritune.recipe.sections import recipe_with
from inheritune.recipe.variants import Grow

SMALLEST = """\
name: toy
reference:
  model: embedded:demo   # a comment
data:
  source: stdlib
train:
  tokens: 2M
"""

Read = Callable[..., RecipeFile]
Refuse = Callable[..., str]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def read(text: str, *sets: str) -> RecipeFile:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode())
        return read_recipe(path, sets)

    return read


@pytest.fixture
def refuse(read: Read, tmp_path: Path) -> Refuse:
    def refuse(text: str, *sets: str) -> str:
        with pytest.raises(RecipeError) as caught:
            read(text, *sets)
        message = str(caught.value)
        assert 1 <= len(message.splitlines()) <= 3
        return message.replace(f"{tmp_path}/", "")

    return refuse


def test_file_is_kept_as_text_and_checked(read: Read, tmp_path: Path) -> None:
    found = read(SMALLEST)
    assert found.path == tmp_path / "recipe.yaml"
    assert found.text == SMALLEST
    assert found.recipe.train.tokens == 2_000_000


def test_every_leaf_of_the_resolved_recipe_has_an_origin(read: Read) -> None:
    found = read(SMALLEST + "  betas: [0.9, 0.99]\n", "train.seed=7", "inherit={layers: 3}")
    named = {key: origin for key, origin in found.origins.items() if origin != "default"}
    assert named == {
        "name": "file",
        "reference.model": "file",
        "inherit.layers": "--set",
        "data.source": "file",
        "train.tokens": "file",
        "train.betas": "file",
        "train.seed": "--set",
    }
    assert found.origins["variants.scratch.start"] == "default"
    assert found.origins["train.learning_rate"] == "default"

    def leaves(value: object, path: str = "") -> list[str]:
        if not isinstance(value, dict) or not value:
            return [path[1:]]
        return [leaf for key, part in value.items() for leaf in leaves(part, f"{path}.{key}")]

    assert list(found.origins) == leaves(found.recipe.resolved())


def test_section_that_is_set_as_a_whole_forgets_the_file(read: Read) -> None:
    found = read(SMALLEST + "  seed: 3\n", "train={tokens: 1M}")
    assert found.recipe.train.seed == 0
    assert found.origins["train.seed"] == "default"
    assert found.origins["train.tokens"] == "--set"


def test_later_set_wins(read: Read) -> None:
    assert read(SMALLEST, "train.seed=1", "train.seed=2").recipe.train.seed == 2


def test_set_makes_the_sections_it_needs(read: Read) -> None:
    assert read(SMALLEST, "grow.max_rounds=3").recipe.grow.max_rounds == 3


def test_set_of_one_variant_keeps_the_default_ones(read: Read) -> None:
    found = read(SMALLEST, "variants.scratch.tokens=1M")
    assert list(found.recipe.variants) == ["inherit", "scratch"]
    assert found.recipe.variants["scratch"].tokens == 1_000_000
    assert found.origins["variants.scratch.tokens"] == "--set"
    assert found.origins["variants.scratch.start"] == "default"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("name=no", "no"),
        ("name='010'", "010"),
        ("data.source=C:\\texts\\*.txt", "C:\\texts\\*.txt"),
        ("data.source=[a.txt, 'b c.txt']", ["a.txt", "b c.txt"]),
        ("data.val_source=null", None),
        ("train.min_learning_rate=1e-6", 1e-6),
        ("data.allow_repeat=true", True),
    ],
)
def test_set_reads_its_value_as_yaml(read: Read, text: str, value: object) -> None:
    found: object = read(SMALLEST, text).recipe
    for part in text.partition("=")[0].split("."):
        found = getattr(found, part)
    assert found == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.seed", "not of the form KEY=VALUE"),
        ("=", "not of the form KEY=VALUE"),
        ("train..seed=1", "not of the form KEY=VALUE"),
        ("train.seed=", "no value after '='"),
        ("train.seed= # 5", "no value after '='"),
        ("train.seed=-", "neither a scalar"),
        ("train.tokens.x=1", "train.tokens is text and has no keys. Set train.tokens as a whole."),
        ("data.source=a: b", "Quote it"),
        ("train.betas=[0.9,", "not valid YAML"),
        ("train.seed=*x", "aliases are not allowed"),
        ("train.seed=1.5", "train.seed is 1.5. It must be a valid integer."),
        ("train.sede=1", "train.sede is not a key. Did you mean train.seed?"),
        ("reference.revision=010", 'Quote it: "010".'),
    ],
)
def test_bad_set_is_named_with_the_way_out(refuse: Refuse, text: str, words: str) -> None:
    message = refuse(SMALLEST, text)
    assert message.startswith(f"--set {text}: ")
    assert words in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "  seq_len: '8'",
            '8: train.seq_len is "8". It must be a valid integer. Remove the quotes.',
        ),
        (
            "  schedule: linear",
            "8: train.schedule is linear. It must be 'cosine', 'wsd' or 'constant'.",
        ),
        ("  betas: [0.9]", "8: train.betas is a list. It must have at least 2 items"),
        ("  betas: [0.9, x]", "8: train.betas[1] is x. It must be a valid number."),
        ("  dropout: 2", "8: train.dropout is 2. It must be less than or equal to 1."),
        ("  compile: true", "8: train.compile is true. It must be 'auto', 'on' or 'off'."),
        ("grow:", "8: grow is empty. It must be a mapping."),
        ("grow: 2", "8: grow is 2. It must be a mapping."),
        ("report: {prompts: [1]}", '8: report.prompts[0] is 1, read as a number. Quote it: "1".'),
        (
            "report: {trackers: [tensorbord]}",
            "8: report.trackers[0] is tensorbord. It must be 'tensorboard', 'wandb', 'trackio' or "
            "'mlflow'.",
        ),
        ("report: {trackers: wandb}", "8: report.trackers is wandb. It must be a valid list."),
        ("variants: {a/b: {start: inherit}}", "8: variants.a/b: use letters, digits, '-', '_' and"),
        ("variants: {'': {start: inherit}}", "8: variants. has an empty or too long name."),
        (
            "variants: {a: {start: x}}",
            "8: variants.a.start is x. It must be 'inherit', 'fresh', 'stacking', "
            "'hybrid-stacking', 'half-width' or 'grown'.",
        ),
        (
            "variants: {a: {start: fresh, tokens: 2y}}",
            "8: variants.a.tokens is 2y. It must be an integer or an amount such as 500K, 2M, "
            "1.5B or 1T, be a multiple such as 2x or be 'equal_compute'.",
        ),
        ("learning-rate: 1", "8: learning-rate is not a key. It belongs elsewhere: train.lea"),
        ("1: 2", '8: the key 1 is read as a number, not text. Quote it: "1".'),
        ("grow: {add: 1, add: 2}", "8: grow.add stands twice, in lines 8 and 8. Keep one of them."),
    ],
)
def test_message_names_line_key_value_and_what_is_allowed(
    refuse: Refuse, line: str, message: str
) -> None:
    assert refuse(f"{SMALLEST}{line}\n").startswith(f"recipe.yaml, line {message}")


def test_large_whole_float_is_answered_with_the_integer(refuse: Refuse) -> None:
    text = SMALLEST.replace("2M", "2e6")
    assert refuse(text) == (
        "recipe.yaml, line 7: train.tokens is 2e6. It must be a valid integer. Write 2000000."
    )


def test_misspelt_section_is_one_problem_not_two(refuse: Refuse) -> None:
    message = refuse(SMALLEST.replace("train:", "trian:"))
    assert message == "recipe.yaml, line 6: trian is not a key. Did you mean train?"


def test_missing_key_is_described(refuse: Refuse) -> None:
    message = refuse(SMALLEST.replace("tokens: 2M", "seed: 1"))
    assert message.startswith(
        "recipe.yaml, line 6: train.tokens is missing. Add it: training tokens of"
    )


def test_many_problems_fit_three_lines(refuse: Refuse) -> None:
    lines = refuse(SMALLEST + "  a: 1\n  b: 2\n  sede: 3\n  seq_len: x\n").splitlines()
    assert lines[0].startswith("recipe.yaml, line 8: train.a is not a key. Allowed in train: ")
    assert lines[1] == "recipe.yaml, line 9: train.b is not a key."
    assert lines[2] == "... and 2 more problems."


def test_removed_key_that_is_off_is_accepted_from_older_recipes(read: Read) -> None:
    older = read(
        f"{SMALLEST}grow: {{add: 1, abandon: never, audit: false, benchmark: null}}\n"
    ).recipe
    assert older == read(f"{SMALLEST}grow: {{add: 1}}\n").recipe
    assert "abandon" not in older.resolved()["grow"]


def test_hostile_value_stays_on_its_line(refuse: Refuse) -> None:
    message = refuse(SMALLEST + '  schedule: "\\e[2J\\n' + "x" * 300 + '"\n')
    assert len(message.splitlines()) == 1
    assert "\x1b" not in message
    assert len(message) < 250


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_removed_key_is_answered_with_what_to_do_instead(refuse: Refuse, key: str) -> None:
    section, _, name = key.partition(".")
    if name in Recipe.model_fields[section].annotation.model_fields:
        pytest.skip("not removed yet")
    message = refuse(f"{SMALLEST}{section}:\n  {name}: x\n")
    assert message == f"recipe.yaml, line 9: {key} is no longer a key. {REMOVED_KEYS[key]}"


@pytest.mark.parametrize("ending", ["...", "---", "# end"])
def test_end_of_document_may_be_marked(read: Read, refuse: Refuse, ending: str) -> None:
    if ending == "---":
        assert "another document" in refuse(SMALLEST + ending + "\n")
    else:
        assert read(SMALLEST + ending + "\n").recipe.name == "toy"


def test_yaml_1_1_is_refused_because_it_reads_no_as_false(refuse: Refuse) -> None:
    assert "directives are not allowed" in refuse(f"%YAML 1.1\n---\n{SMALLEST}")


def test_number_that_does_not_exist_is_refused(refuse: Refuse) -> None:
    assert "2024-13-45 looks like" in refuse(SMALLEST + "  seed: 2024-13-45\n")
    assert "looks like a number" in refuse(SMALLEST + f"  seed: {'9' * 5000}\n")


def test_schema_is_json_and_knows_every_section() -> None:
    schema = json.loads(json.dumps(recipe_schema()))
    assert list(schema["properties"]) == list(Recipe.model_fields)
    assert schema["additionalProperties"] is False


CORPUS = SMALLEST + "  betas: [0.9, 0.95]\ngrow: {add: 2}\nreport:\n  prompts: ['a', \"b\"]\n"
FRAGMENTS = st.sampled_from(
    [
        *["train:", "  tokens: ", "- ", "&a ", "*a", "!!str ", "? ", ": ", "|\n", ">-\n"],
        *["%YAML 1.1\n", "---\n", "\t", "\r\n", "\x00", "\ufeff", "'", '"', "{", "]", "<<: "],
        *["=", "010", "0x", "1e999", "2024-13-45", ".nan", "~", "no", "[" * 60, "\u2028"],
        *['"\\ud800"', '"\\U00110000"'],
    ]
)


def only_our_error(path: Path, data: bytes, sets: list[str]) -> None:
    path.write_bytes(data)
    with contextlib.suppress(RecipeError):
        found = read_recipe(path, sets)
        assert isinstance(found.recipe, Recipe)
        json.dumps(found.recipe.resolved(), allow_nan=False).encode()


@fuzz(60)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_any_bytes_give_a_recipe_or_our_error(tmp_path: Path, data: bytes) -> None:
    only_our_error(tmp_path / "recipe.yaml", data, [])


@fuzz(60)
@given(st.data())
def test_mutated_recipe_gives_a_recipe_or_our_error(tmp_path: Path, data: st.DataObject) -> None:
    text = CORPUS
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 12)))
        text = text[:start] + data.draw(FRAGMENTS | st.text(max_size=3)) + text[end:]
    only_our_error(tmp_path / "recipe.yaml", text.encode("utf-8", "replace"), [])


@fuzz(60)
@given(
    st.sampled_from(["train.seed", "train", "variants.a", "reference.train.config", "x.y", ""]),
    FRAGMENTS | st.text(max_size=20),
)
def test_any_set_gives_a_recipe_or_our_error(tmp_path: Path, key: str, value: str) -> None:
    only_our_error(tmp_path / "recipe.yaml", CORPUS.encode(), [f"{key}={value}"])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@fuzz(60)
@given(st.sampled_from(list(Recipe.model_fields)), VALUES)
def test_any_value_in_a_section_gives_a_recipe_or_our_error(
    tmp_path: Path, section: str, value: object
) -> None:
    # JSON with .nan for NaN is YAML, so every value can be written down.
    text = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
    others = {"name": "toy", "reference": {"model": "m"}, "data": {"source": "stdlib"}}
    sections = {**others, "train": {"tokens": 1}}
    lines = [f"{key}: {json.dumps(sections[key])}" for key in sections if key != section]
    whole = "\n".join([*lines, f"{section}: {text}"]).encode()
    only_our_error(tmp_path / "recipe.yaml", whole, [])
    only_our_error(tmp_path / "recipe.yaml", SMALLEST.encode(), [f"{section}={text}"])


def test_the_schema_beside_the_recipes_is_the_one_of_the_code() -> None:
    path = Path(__file__).parents[2] / "recipes" / "recipe.schema.json"
    assert json.loads(path.read_text()) == recipe_schema(), "inheritune init --schema > it"


NAMELESS = SMALLEST.removeprefix("name: toy\n")


def test_a_recipe_without_a_name_has_that_of_its_file(read: Read, tmp_path: Path) -> None:
    assert read(NAMELESS).recipe.name == "recipe"
    assert read(NAMELESS, "name=mine").recipe.name == "mine"
    assert read(NAMELESS).origins["name"] == "default"
    path = tmp_path / "my notes.yaml"
    path.write_text(NAMELESS)
    assert read_recipe(path).recipe.name == "my-notes"


def test_the_copy_in_a_run_has_the_name_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(NAMELESS)
    (run / "run.json").write_text("{}")
    assert read_recipe(run / "recipe.yaml").recipe.name == "mine"


def test_a_name_that_is_given_must_be_one(refuse: Refuse) -> None:
    assert "name is empty" in refuse(f"name:\n{NAMELESS}")


@pytest.mark.parametrize(
    ("sections", "value"),
    [
        ({"report": {"prompts": ["🙂 é\x7f\n", "\\ud83d"]}}, ["🙂 é\x7f\n", "\\ud83d"]),
        ({"variants": {"v1.5": {"start": "fresh"}}}, "fresh"),
    ],
)
def test_sections_of_a_call_replace_those_of_a_file(sections: dict, value: object) -> None:
    recipe = recipe_with("demo", sections).recipe
    variant = recipe.variants.get("v1.5")
    assert value == (variant.start if variant else recipe.report.prompts)
    assert recipe.train == recipe_with("demo", {}).recipe.train


@pytest.mark.parametrize("recipe", ["demo", read_recipe(preset_path("demo")).recipe])
def test_sections_of_a_call_may_hold_what_python_has(recipe: str | Recipe) -> None:
    sections = {"data": {"source": Path("x.txt")}, "seeds": (1, 2), "grow": Grow(add=3)}
    made = recipe_with(recipe, sections).recipe
    assert (made.data.source, made.seeds, made.grow.add) == ("x.txt", [1, 2], 3)
    with pytest.raises(RecipeError, match=r"train.learning_rate is (inf|Infinity)\."):
        recipe_with(recipe, {"train": {"learning_rate": math.inf}})
