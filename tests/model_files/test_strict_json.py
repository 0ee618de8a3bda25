"""The strict JSON reader."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inheritune.errors import SourceError
from inheritune.model_files.strict_json import parse_json, read_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), inner
    ),
    max_leaves=20,
)  # fmt: skip


@given(VALUES)
def test_what_json_writes_is_read_back(value):
    assert parse_json(json.dumps(value).encode(), "it") == value


@given(st.binary())
def test_any_bytes_are_read_or_refused(data):
    try:
        parse_json(data, "it")
    except SourceError as error:
        assert str(error).startswith("it is")


@pytest.mark.parametrize(
    "text, reason",
    [
        ('{"a": 1, "a": 2}', "'a' stands twice"),
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
def test_what_python_would_let_pass_is_refused(text, reason):
    with pytest.raises(SourceError, match=reason):
        parse_json(text.encode(), "it")


def test_infinity_is_a_number_where_a_config_may_hold_it(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"time_step_limit": [0.0, Infinity]}')
    assert read_json(path, "the config") == {"time_step_limit": [0.0, math.inf]}
