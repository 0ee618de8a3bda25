"""The card of a cut model: parses, says what is fresh, and cannot be taken over."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from inheritune.model_files.directory import open_model
from inheritune.surgery.cut import Options, inherit
from inheritune.surgery.record import target_card

RECORD = {
    "reference": {"name": "org/model", "revision": "1" * 40, "layers": 4},
    "layers": 2,
    "layer_map": [0, 1],
    "dtype": None,
    "parts": "all",
    "seed": None,
    "fresh_tensors": [],
}


def split(text):
    start, front, body = text.split("---\n", 2)
    assert start == ""
    return YAML(typ="safe", pure=True).load(front), body


def test_the_card_names_the_base_model_and_what_was_kept():
    front, body = split(target_card(RECORD, is_hub_model=True))
    assert front == {
        "base_model": "org/model",
        "base_model_relation": "finetune",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["inheritune"],
    }
    assert "layers 0-1 (counted from 0) of `org/model`" in body
    assert "not trained since" in body and "Not everything" not in body


@given(st.text(st.characters(max_codepoint=0xFFFF), max_size=60))
def test_no_name_ends_the_front_matter_or_becomes_markup(name):
    record = RECORD | {"reference": RECORD["reference"] | {"name": name}}
    front, body = split(target_card(record, is_hub_model=True))
    assert front["base_model"] == name.encode("utf-8", "replace").decode()
    outside_code = body.split("`")[0::2]
    assert not any(mark in piece for piece in outside_code for mark in ("<", "{{", "\n---\n"))


@pytest.mark.parametrize(
    "parts, said",
    [("attention", "the MLPs"), ("mlp", "the attention"), ("outer-only", "all of its layers"),
     ("layers-only", "everything outside")],
)  # fmt: skip
def test_the_card_says_what_is_fresh(tiny_reference, tmp_path, parts, said):
    out = tmp_path / "out"
    inherit(open_model(str(tiny_reference)), 2, out, Options(parts=parts, seed=5, dtype="bf16"))
    front, body = split((out / "README.md").read_text())
    assert "base_model" not in front
    assert f"**Not everything is inherited**: {said}" in body
    assert "seed 5" in body and "cast to BF16" in body
