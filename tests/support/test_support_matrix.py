"""Every decoder type of the installed transformers, cut and run, as docs/support.md says.

A shard: ``SUPPORT_SHARD=1/2 pytest tests/support -m support``. After a change that is meant:
``python scripts/support_matrix.py``
"""

import json
import os
from pathlib import Path

import pytest
import transformers
from safetensors.torch import load_file, save_file
from support import document, matrix, proof, shrink
from support.decoder_types import decoder_types, left_out

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "support.md"
WRITTEN = DOCUMENT.read_text("utf-8") if DOCUMENT.exists() else ""
TYPES = decoder_types()
# One of each way to say what the layers are; the others are slow together.
QUICK = [
    *("bamba", "deepseek_v4", "gemma3n_text", "gemma4_text", "got_ocr2", "inkling2_text"),
    *("llama4", "longcat_flash", "nemotron_h", "opt", "qwen3_next", "smollm3", "zamba"),
]
SLOW = [name for name in TYPES if name not in QUICK]


def shard() -> list[str]:
    number, _, count = os.environ.get("SUPPORT_SHARD", "1/1").partition("/")
    return SLOW[int(number) - 1 :: int(count)]


def check(row: matrix.Row) -> None:
    assert row.result != "wrong", row.wrong
    written = document.lines_of(WRITTEN).get(row.model_type, "")
    if " | untested | " in written and row.result != "untested":
        return  # what it needs is here
    if document.version_of(WRITTEN) == transformers.__version__:
        meant = "if this is meant: python scripts/support_matrix.py"
        assert document.line(row) == written, meant


@pytest.mark.parametrize("model_type", QUICK)
def test_a_type_is_as_the_document_says(model_type, tmp_path):
    check(matrix.run(model_type, tmp_path))


@pytest.mark.support
@pytest.mark.parametrize("model_type", shard())
def test_every_other_type_is_as_the_document_says(model_type, tmp_path):
    check(matrix.run(model_type, tmp_path))


@pytest.mark.support
@pytest.mark.parametrize("model_type", shard())
def test_moved_layers_compute_the_same_or_are_refused(model_type, tmp_path):
    moved = matrix.run_moved(model_type, tmp_path)
    # A type that can be cut at all has been tried.
    assert moved or "| exact |" not in document.lines_of(WRITTEN)[model_type]


@pytest.mark.parametrize("model_type", ["gemma4_text", "llama4", "longcat_flash", "qwen3_next"])
def test_moved_layers_of_some_types_compute_the_same_or_are_refused(model_type, tmp_path):
    assert matrix.run_moved(model_type, tmp_path)


def test_the_document_holds_every_type_and_their_counts():
    if document.version_of(WRITTEN) != transformers.__version__:
        pytest.skip("the document was made with another transformers")
    lines = document.lines_of(WRITTEN)
    assert list(lines) == TYPES
    assert document.render(lines, left_out(), transformers.__version__) == WRITTEN
    assert " WRONG" not in WRITTEN


def test_most_types_are_exact():
    results = [text.split(" | ")[2] for text in document.lines_of(WRITTEN).values()]
    assert results.count("exact") >= 145


def test_a_layer_that_computes_something_else_is_noticed(tmp_path):
    found = transformers.LlamaForCausalLM
    proof.save_tiny(found, shrink.tiny_config("llama"), tmp_path)
    expected = proof.observe(proof.load(found, tmp_path), "model.layers")
    tensors = load_file(tmp_path / "model.safetensors")
    first, second = (f"model.layers.{i}.input_layernorm.weight" for i in (0, 1))
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    swapped = proof.observe(proof.load(found, tmp_path), "model.layers")
    with pytest.raises(proof.WrongError, match="layer 0 computes something else"):
        proof.prove(swapped, expected, 4)


@pytest.mark.support
@pytest.mark.shared_data
def test_released_configs_shrunk_are_exact_at_every_number_of_layers(
    shared_data, tmp_path, subtests
):
    for path in sorted((shared_data / "configs").rglob("config.json")):
        with subtests.test(path.parent.name):
            given = json.loads(path.read_text("utf-8"))
            row = matrix.run_given(given, tmp_path / path.parent.name, every=True)
            assert row.result == "exact", row
