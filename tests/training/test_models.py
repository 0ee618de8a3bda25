"""Loading model directories as live models."""

import json

import pytest

from inheritune.errors import UnsupportedModelError
from inheritune.training.models import load_model


def test_a_value_of_a_wrong_type_in_the_config_is_named(reference):
    path = reference / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_act": 5}))
    with pytest.raises(UnsupportedModelError, match="'hidden_act' expected str, got int"):
        load_model(reference)
