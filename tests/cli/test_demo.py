"""The demo, scaled down; at its own size it takes minutes and is `make demo`."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from source_documents import documents
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.data.document import held_out
from inheritune.model_files.directory import open_model
from inheritune.recipe.load import read_recipe
from inheritune.recipe.presets import preset_names, preset_path
from inheritune.surgery.cut import inherit

REFERENCE = open_model("embedded:demo").path
SMALL = [
    "--set=data.tokens=200K",
    "--set=train.tokens=16K",
    "--set=train.warmup_tokens=4K",
    "--set=data.val_fraction=0.004",
    "--set=inherit.repair_tokens=512",
    "--set=report.sample_tokens=4",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_file_of_the_embedded_reference_is_the_one_that_was_made() -> None:
    lines = (REFERENCE / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    present = {path.name for path in REFERENCE.iterdir()} - {"SHA256SUMS"}
    assert set(sums) == present
    for name, digest in sums.items():
        assert hashlib.sha256((REFERENCE / name).read_bytes()).hexdigest() == digest, name


def test_the_embedded_reference_keeps_its_limits() -> None:
    model = open_model("embedded:demo")
    assert 8 <= model.layers <= 16
    assert {tensor.dtype for tensor in model.tensors.values()} == {"BF16"}
    assert sum(path.stat().st_size for path in REFERENCE.iterdir()) <= 8_000_000
    card = (REFERENCE / "README.md").read_text()
    for word in ("PSF", "Held out", "13-grams", "Depth pays", "FLOPs"):
        assert word in card


def test_validation_modules_of_the_embedded_reference_are_held_out_by_the_demo_too() -> None:
    demo, made = (read_recipe(preset_path(name)).recipe.data for name in ("demo", "demo-reference"))
    assert (demo.source, made.source) == ("stdlib", "stdlib+tests")
    held = [
        [d.name for d in documents(data.source, max_bad_rows=50) if held_out(d, data)]
        for data in (demo, made)
    ]
    assert held[0] == held[1] != []


def test_all_layers_of_the_embedded_reference_give_its_logits_bit_for_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    inherit(open_model("embedded:demo"), 8, tmp_path / "all")
    ids = torch.arange(64).unsqueeze(0)
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(ids).logits
            for path in (REFERENCE, tmp_path / "all")
        ]
    assert torch.equal(*logits)


@pytest.mark.slow
def test_the_demo_ends_with_0_and_leaves_page_target_and_ledger() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = CliRunner().invoke(app, ["demo", *SMALL])
    assert result.exit_code == 0, result.output
    for name in ("reference", "inherit", "scratch"):
        assert f"{name} continues:" in result.stdout
    for heading in ("reference, 8 layers:", "target, ", "scratch, "):
        assert f"\n{heading}" in result.stderr
    assert "inheritune generate runs/demo 'class Queue:'" in result.stderr
    said = "Inheriting 7 layers of embedded:demo (auto), repairing the cut by least squares, "
    assert f"{said}training on stdlib and on its predictions. Ctrl-C" in result.stderr
    # Not matched in so few tokens: what is back, and the way on, which is not the reference itself.
    assert "% back: of what cutting to 7 of 8 layers lost, " in " ".join(result.stdout.split())
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("next: inheritune run demo --set data.tokens=200K ")
    assert f"\n  {last.removeprefix('next: ')}\n" in result.stderr
    run = Path("runs/demo")
    record = json.loads((run / "run.json").read_text())
    assert [r["layers"] for r in record["rounds"]] == [7]
    assert record["rounds"][0]["repair"]["method"] == "sequential"
    (control,) = [row for row in record["variants"] if row["name"] == "scratch"]
    assert control["flops"] == pytest.approx(record["rounds"][0]["flops"], rel=0.1)
    items = [entry["item"] for entry in record["ledger"]]
    assert items[:3] == ["reference training", "benchmark", "choice of layers"]
    assert record["ledger"][0]["borrowed"]
    assert record["ledger"][0]["tokens"] > 10_000_000
    page = (run / "report" / "index.html").read_text()
    assert len(page) < 1_500_000
    tokenizer = AutoTokenizer.from_pretrained(run / "target")
    model = AutoModelForCausalLM.from_pretrained(run / "target")
    ids = tokenizer("import ", return_tensors="pt")["input_ids"]
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] > ids.shape[1]


@pytest.mark.recipes
def test_the_demo_takes_text_of_ones_own() -> None:
    lines = [f"line {line}: a note to learn from" for line in range(3000)]
    Path("book.txt").write_text("\n".join(lines))  # one file: parts of it are held out
    files = ["--text", "book.txt"]
    own = ["--set=data.val_fraction=0.3", "--set=grow.max_rounds=1", "--set=analyze=null", "--json"]
    result = CliRunner().invoke(app, ["demo", *files, *SMALL, *own])
    assert result.exit_code == 0, result.output
    record = json.loads(Path("runs/demo-own-text/run.json").read_text())
    assert record["recipe"]["data"]["source"] == ["book.txt"]
    assert json.loads(result.stdout) == record["result"]


@pytest.mark.recipes
def test_the_demo_from_scratch_trains_the_reference_and_spends_as_much_on_a_control() -> None:
    small = [*SMALL, "--set=reference.train.tokens=12K", "--set=analyze=null", "--json"]
    result = CliRunner().invoke(app, ["demo", "--from-scratch", *small])
    assert result.exit_code == 0, result.output
    final = json.loads(result.stdout)
    names = [row["name"] for row in final["variants"]]
    assert names == ["reference", "inherit", "scratch", "scratch-equal-compute"]
    record = json.loads(Path("runs/demo-from-scratch/run.json").read_text())
    assert record["reference"]["trained_here"]
    assert not any(entry["borrowed"] for entry in record["ledger"])


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_a_valid_recipe_of_its_own_name(name: str) -> None:
    assert read_recipe(preset_path(name)).recipe.name == name
