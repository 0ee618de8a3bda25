"""The strict JSON reader: any bytes are read or refused, within its limits."""

import json
import math

import pytest
from fuzzing import fuzz
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SourceError
from inheritune.system.strict_json import MODEL_FILE, UNTRUSTED, parse_json, read_json_object

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner
    ),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_written_json_is_read_back_equal(value):
    assert parse_json(json.dumps(value).encode(), "it", UNTRUSTED) == value


@fuzz(100)
@given(st.binary())
def test_any_bytes_are_read_or_refused(data):
    try:
        parse_json(data, "it", UNTRUSTED)
    except SourceError as error:
        assert str(error).startswith("it is")


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"a": 1, "a": 2}', "'a' appears twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": Infinity}', "Infinity"),
        ('{"a": 1e999}', "1e999"),
        ("[" * 100_000, "deep"),
        ("[" * 60 + "]" * 60, "50 levels"),
        ('{"a": ' * 100_000, "deep"),
        ("9" * 5000, "digits"),
        ("{}x", "JSON"),
        ("", "JSON"),
        ('{"\\ud800": 1}', "JSON"),
    ],
)
def test_text_that_python_would_accept_is_refused(text, reason):
    with pytest.raises(SourceError, match=reason):
        parse_json(text.encode(), "it", UNTRUSTED)


def test_infinity_is_a_number_where_a_config_may_hold_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json_object(path, MODEL_FILE, "the config") == {"time_step_limit": [0.0, math.inf]}


def test_limits_grow_for_a_file_that_is_known_to_be_long(tmp_path):
    path = tmp_path / "inherit.json"
    path.write_text(json.dumps({"tensors": [0] * 500_000}))
    with pytest.raises(SourceError, match="500,001 values; 500,000 are allowed"):
        read_json_object(path, MODEL_FILE)
    assert len(read_json_object(path, MODEL_FILE.times(10))["tensors"]) == 500_000
