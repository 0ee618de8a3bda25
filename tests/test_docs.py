"""The documentation knows every command, flag, recipe key and error, and its commands are real."""

import importlib.util
import json
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
import typer

from inheritune import errors
from inheritune.cli.app import app
from inheritune.recipe.schema import Recipe

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = [p for p in sorted(DOCS.rglob("*.md")) if "_build" not in p.parts]
ERRORS = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.InherituneError)
}
COMMANDS = typer.main.get_command(app).commands


def docs_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    return docs_module("generate").pages()


def models_of(annotation):
    found = [annotation] if hasattr(annotation, "model_fields") else []
    return found + [m for part in getattr(annotation, "__args__", ()) for m in models_of(part)]


def keys(model, prefix=""):
    """Dotted keys of a model: what stands below a mapping of names has NAME in its place."""
    for name, field in model.model_fields.items():
        yield prefix + name
        text = str(field.annotation)
        middle = f"{name}.NAME." if text.startswith("dict[") else f"{name}."
        for inner in models_of(field.annotation):
            yield from keys(inner, prefix + middle)


def test_every_recipe_key_has_a_row_that_says_what_it_is(pages):
    wanted = set(keys(Recipe))
    rows = dict(re.findall(r"^\| `([\w.]+)` \|.*\| (.*) \|$", pages["recipe.md"], re.MULTILINE))
    sections = set(re.findall(r"^## `(\w+)`", pages["recipe.md"], re.MULTILINE))
    assert wanted - rows.keys() - sections == set()
    assert [key for key, said in rows.items() if not said.strip()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_flag_is_there_with_help(name, pages):
    part = pages["commands.md"].partition(f"## `inheritune {name}`\n")[2].partition("\n## ")[0]
    for parameter in COMMANDS[name].params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        shown = parameter.opts[0] if parameter.opts[0].startswith("-") else "`"
        assert shown in part and parameter.help, f"{name} {parameter.name}"


def test_every_error_has_its_exit_code(pages):
    for name in ERRORS - {"InherituneError"}:
        code = getattr(errors, name).exit_code
        assert re.search(rf"^\| {code} \| `{name}` \| \S", pages["errors.md"], re.MULTILINE), name


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("DataError", "there is no file in SOURCE. *Give files, globs or folders.*"),
        ("RecipeError", "cannot put a run into ROOT: it WHY. *Name a new or empty directory.*"),
        ("DataError", "INDEX is missing or has changed. *Prepare the tokens again.*"),
        (
            "RecipeError",
            "--out cannot be combined with a recipe. *Leave it out: the tokens go into the run's "
            "directory.*",
        ),
    ],
)
def test_error_messages_stand_under_their_class(name, line, pages):
    part = pages["messages.md"].partition(f"## `{name}`")[2].partition("\n## ")[0]
    assert f"- {line}" in part.splitlines()


def test_every_error_that_is_raised_with_a_text_is_there(pages):
    names = "|".join(ERRORS - {"InherituneError"})
    source = Path(errors.__file__).parent
    texts = [
        re.sub(r"[\W_]+", " ", start).strip()
        for path in source.rglob("*.py")
        for start in re.findall(
            rf"\b(?:{names})\(\s*f?\"((?:[^\"{{\\]){{12,}})", path.read_text("utf-8")
        )
    ]
    page = re.sub(r"[\W_]+", " ", pages["messages.md"])
    assert len(texts) > 50
    assert [text for text in texts if text not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_commands_on_a_page_exist_with_their_options(page):
    if page.parent == DOCS:
        return  # the log tells of commands as they were
    for line in re.findall(r"^\s*\$ inheritune (.+)$", page.read_text("utf-8"), re.MULTILINE):
        name, *arguments = shlex.split(line, comments=True)
        known = {option for p in COMMANDS[name].params for option in p.opts}
        given = {a.partition("=")[0] for a in arguments if a.startswith("--")}
        assert given <= known, line


def test_every_page_but_the_lab_log_is_in_the_table_of_contents():
    index = (DOCS / "index.md").read_text("utf-8")
    names = {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} - {"index"}
    assert {name for name in names if f"\n{name}\n" not in index} == {"log"}
    assert (DOCS / "log.md").read_text("utf-8").startswith("---\norphan: true\n---\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example_that_was_run(name, pages):
    ran = (DOCS / "reference" / "examples" / f"{name}.txt").read_text("utf-8")
    first, _, output = ran.partition("\n")
    assert first.startswith(f"$ inheritune {name}") and output.strip()
    assert f"```console\n{ran}```\n" in pages["commands.md"]
    assert not re.search(r"(?<![\w.])/(?:work|home|tmp|root|dev)/", ran)


def test_the_terminal_of_the_readme_shows_examples_that_were_run():
    examples = docs_module("examples")
    assert (DOCS / "terminal.svg").read_text("utf-8") == examples.terminal()
    rows = [json.loads(row) for row in (DOCS / "terminal.cast").read_text("utf-8").splitlines()]
    assert rows[0]["version"] == 2 and rows[0]["height"] == len(rows) - 1
    assert [at for at, _, _ in rows[1:]] == sorted(at for at, _, _ in rows[1:])
    ran = [(DOCS / "reference/examples" / f"{name}.txt").read_text() for name in examples.TERMINAL]
    assert "".join(text for _, _, text in rows[1:]).replace("\r", "") == "".join(ran)


def test_the_plan_in_the_readme_is_what_the_command_printed():
    ran = (DOCS / "reference" / "examples" / "plan.txt").read_text("utf-8")
    readme = (DOCS.parent / "README.md").read_text("utf-8")
    command, *lines = ran.splitlines()
    shown = readme.partition(f"```console\n{command}\n```\n\n```\n")[2].partition("```")[0]
    assert shown and shown.splitlines() == lines[: len(shown.splitlines())]


GALLERY = docs_module("gallery")


def test_the_gallery_says_what_the_code_says_of_its_records():
    assert (DOCS / "gallery.md").read_text("utf-8") == GALLERY.gallery()


def test_the_results_show_the_sizes_that_their_record_has():
    chart = GALLERY.size_chart()
    assert f"({GALLERY.SIZES}.png)" in (DOCS / "results.md").read_text("utf-8")
    assert (DOCS / f"{GALLERY.SIZES}.png").is_file()
    assert "smollm2, 30 layers" in chart.alt


@pytest.mark.parametrize("name", [*GALLERY.FIGURES, GALLERY.SIZES])
def test_the_text_of_a_figure_can_be_read_on_a_phone(name):
    """At 390 pixels 12-pixel text keeps 8 of them, where the PNG has twice its size in pixels."""
    for ending in ("", "-dark"):
        width = int.from_bytes((DOCS / f"{name}{ending}.png").read_bytes()[16:20], "big") / 2
        assert 12 * 350 / width >= 8


@pytest.mark.parametrize("record", GALLERY.records(), ids=lambda path: path.name)
def test_every_page_of_the_gallery_is_written_from_its_record(record):
    from inheritune.reporting.page import page_content, read_report

    report = read_report(record)
    page = page_content(report, {})
    assert not report.problems
    assert GALLERY.loss_chart(record).spec["layer"]
    assert 'id="results"' in page
    assert (DOCS / "pictures" / f"page-{record.name}.png").is_file()


def test_the_glossary_has_every_word_that_the_project_keeps_to():
    agents = (DOCS.parent / "AGENTS.md").read_text("utf-8")
    words = re.search(r"^Words: (.+?)\. Not: (.+?)\.$", agents, re.MULTILINE | re.DOTALL)
    kept, avoided = (re.split(r",\s+", group.replace("`", "")) for group in words.groups())
    rows = re.findall(r"^\| ([^|]+) \|", (DOCS / "glossary.md").read_text("utf-8"), re.MULTILINE)
    known = {word.strip(" `") for row in rows for word in row.split(",")}
    assert [word for word in map(" ".join, map(str.split, kept)) if word not in known] == []
    assert not known & set(avoided)


def test_every_name_in_metrics_jsonl_has_a_row():
    from inheritune.training.checkpoint import Position
    from inheritune.training.metrics import continued_row, step_row, val_row

    place = Position(step=1, tokens=8, elapsed_s=0.5)
    rows = [
        step_row(
            place,
            0.1,
            loss=float("nan"),
            grad_norm=1.0,
            learning_rate=1e-3,
            tokens_per_s=9.0,
            mfu=0.4,
            parts=[1.0, 2.0],
        ),
        val_row(place, 0.1, 2.0),
        continued_row(place, 0.1),
        {"spike": 7.0},
    ]
    said = (DOCS / "reference" / "metrics.md").read_text("utf-8")
    assert [name for row in rows for name in row if f"`{name}`" not in said] == []
