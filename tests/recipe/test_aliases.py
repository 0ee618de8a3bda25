"""Another program's name leads to our key; a fault of YAML is told in words, with its place."""

from pathlib import Path

import pytest

from inheritune.errors import RecipeError, first_line, reason_of
from inheritune.recipe.aliases import _KEYS
from inheritune.recipe.load import parse_recipe
from inheritune.recipe.messages import _keys
from inheritune.recipe.yaml_tree import dotted

RECIPE = """reference: {model: "embedded:demo"}
data: {source: stdlib}
train: {tokens: 1M, seq_len: 8, batch_tokens: 8, micro_batch: 1, learning_rate: 1.0e-3}
"""


def refused(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, Path("r.yaml"))
    return str(caught.value)


def test_every_alias_stands_for_a_key_and_is_none() -> None:
    keys = {dotted(key) for key in _keys()}
    assert {key for key, _ in _KEYS.values()} <= keys
    assert not {f"train.{name}" for name in _KEYS} & keys


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lr: 1e-3", "lr is not a key. Did you mean train.learning_rate?"),
        ("max_steps: 9", "Did you mean train.tokens (in tokens: steps times train.batch_tokens)?"),
        ("batch_size: 9", "Did you mean train.batch_tokens (in tokens: sequences times"),
        ("epochs: 9", "Did you mean train.tokens (in tokens: epochs times"),
        ("num_layers: 9", "Did you mean inherit.layers (a number of layers)?"),
        ("model_name_or_path: x", "Did you mean reference.model (a Hub id or a directory)?"),
        ("dataset: x", "Did you mean data.source (a Hub dataset or files)?"),
        ("variants: {s: {start: fresh, epochs: 2}}", "Did you mean variants.s.tokens (in tokens:"),
    ],
)
def test_the_usual_names_lead_to_the_key_with_its_unit(line: str, words: str) -> None:
    assert words in refused(f"{RECIPE}{line}\n")


def test_a_required_key_under_another_name_is_one_fault() -> None:
    message = refused(RECIPE.replace("learning_rate", "lr"))
    assert message == "r.yaml, line 3: train.lr is not a key. Did you mean train.learning_rate?"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "line 1, column 5: not valid YAML: a colon where no key can stand."),
        ("a:\n  b 1\n  c: 2", "line 3, column 4: not valid YAML: a colon where no key can stand."),
        ("a:\n  b: 1\n c: 2", "line 3, column 2: not valid YAML: a line that is indented unlike"),
        ("a: @x", "line 1, column 4: not valid YAML: a value that begins with a sign"),
        ("a: 1\nb: 'x\nc: 2", "line 2, column 4: not valid YAML: a quotation mark that is never"),
        ("a: [1, 2\nb: x", "line 2, column 2: not valid YAML: a list without its end."),
        ("a: {b: 1\nc: x", "line 2, column 2: not valid YAML: a mapping without its end."),
        ('a: "\\q"', "line 1, column 6: not valid YAML: a backslash that begins no known escape."),
        ("a: 1\n---\nb: 2", "line 2, column 1: not valid YAML: another document begins."),
    ],
)
def test_a_fault_of_yaml_is_told_with_line_column_and_way_out(text: str, words: str) -> None:
    message = refused(text)
    assert message.startswith(f"r.yaml, {words}")
    assert not any(word in message for word in ("block", "token", "scalar", "mapping values"))


def test_an_error_of_the_system_has_no_number() -> None:
    error = OSError(28, "No space left on device", "x")
    assert reason_of(error) == "no space left on device"
    assert reason_of(OSError("[Errno 28] No space left on device")) == "no space left on device"
    assert first_line(error) == "No space left on device: 'x'"
    assert reason_of(EOFError("It ended")) == "it ended" and reason_of(EOFError()) == "eoferror"
