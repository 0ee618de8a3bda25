"""The head of a card: what is written reads back equal, what is read is not trusted."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inheritune.model_files.card import join_front_matter, split_front_matter

HOSTILE = [
    "---", "a\n---\nb", "{{ x }}", "a: b", "\"'", "no", "1:30", "2024-01-01", "~", "", "- a",
    " lead ", "a # b", "\x00\x07\x85\u2028\ufeff", "😀", "<script>", "x" * 20_000, "!!python/x",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:12]))
def test_a_field_reads_back_equal(value):
    fields = {"name": value, "many": [value, 1, None, True], "inner": {value: 1.5}}
    text = join_front_matter(fields, "# body\n---\nmore\n")
    assert split_front_matter(text) == (fields, "# body\n---\nmore\n")
    # And so it does for the YAML 1.1 of the Hub's own library.
    assert yaml.safe_load(text.split("---\n", 1)[1].split("\n---\n# body")[0]) == fields


@given(st.text(max_size=40))
def test_any_text_reads_back_equal(value):
    assert split_front_matter(join_front_matter({"name": value}, "body"))[0] == {"name": value}


def test_half_surrogate_pairs_are_replaced():
    assert split_front_matter(join_front_matter({"a": "\ud800"}, ""))[0] == {"a": "?"}


@pytest.mark.parametrize(
    "text",
    ["", "# no front matter", "---\nnever ended", "---\n- a list\n---\n", "---\na: [\n---\n",
     "---\na: &x [1]\nb: *x\n---\n", "---\na: !!python/object/apply:os.system [x]\n---\n",
     "---\na: " + "[" * 5000 + "\n---\n", "---\n? \n: x\n\t\n---\n"],
    ids=range(9),
)  # fmt: skip
def test_front_matter_other_than_a_plain_mapping_has_no_fields(text):
    assert split_front_matter(text)[0] in ({}, {None: "x"})


def test_a_card_with_windows_line_ends_is_read():
    assert split_front_matter("---\r\nlicense: mit\r\n---\r\nbody") == ({"license": "mit"}, "body")
