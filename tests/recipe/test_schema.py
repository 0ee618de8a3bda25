import copy
import datetime
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from inheritune.recipe.schema import Recipe
from inheritune.recipe.values import Name, amount_of_tokens, parse_amount, safe_name
from inheritune.recipe.written import written_recipe

SMALLEST: dict[str, Any] = {
    "name": "toy",
    "reference": {"model": "embedded:demo"},
    "data": {"source": "stdlib"},
    "train": {"tokens": "2M"},
}


def recipe(**sections: Any) -> Recipe:
    values = copy.deepcopy(SMALLEST)
    for section, value in sections.items():
        values[section] = values.get(section, {}) | value if isinstance(value, dict) else value
    return Recipe.model_validate(values)


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2M", 2_000_000),
        ("1.5B", 1_500_000_000),
        ("600K", 600_000),
        ("2.01m", 2_010_000),
        ("1T", 10**12),
        ("0.5t", 5 * 10**11),
    ],
)
def test_amounts_with_a_letter_become_integers(text: str, amount: int) -> None:
    assert parse_amount(text) == amount


@given(st.integers(0, 10**9), st.sampled_from("KMBTkmbt"))
def test_every_amount_of_a_thousandth_is_exact(thousandths: int, letter: str) -> None:
    multiple = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}[letter.upper()]
    text = f"{thousandths // 1000}.{thousandths % 1000:03d}{letter}"
    assert parse_amount(text) == thousandths * multiple // 1000


@pytest.mark.parametrize(
    "value", ["", "M", "2M\n", "0.0001K", "-2M", "nanB", "infB", "1e400B", "abc", 5, 1.5, None]
)
def test_text_that_is_no_amount_stays_unchanged(value: object) -> None:
    assert parse_amount(value) == value


def test_a_trillion_is_read_wherever_tokens_are_read() -> None:
    big = recipe(
        train={"tokens": "1T", "eval_every": "0.1T"},
        data={"tokens": "1.2T"},
        variants={"mine": {"start": "inherit"}, "long": {"start": "fresh", "tokens": "2T"}},
    )
    assert (big.train.tokens, big.train.eval_every) == (10**12, 10**11)
    assert (big.data.tokens, big.tokens_of("long")) == (12 * 10**11, 2 * 10**12)
    assert amount_of_tokens("1T") == 10**12
    assert "tokens: 3T\n" in written_recipe({"train": {"tokens": 3 * 10**12}}, {}, [])


def test_defaults_fill_the_smallest_recipe() -> None:
    smallest = recipe()
    assert smallest.train.tokens == 2_000_000
    assert smallest.target_name == "inherit"
    assert [v.start for v in smallest.variants.values()] == ["inherit", "fresh"]


def test_resolved_recipe_is_json_and_reads_back_equal() -> None:
    first = recipe(variants={"mine": {"start": "inherit"}, "same": {"start": "fresh", "layers": 3}})
    assert Recipe.model_validate(json.loads(json.dumps(first.resolved()))) == first


def test_batch_that_is_no_multiple_names_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"batch_tokens 100 is not a multiple .* 96 or 112"):
        recipe(train={"tokens": 1, "seq_len": 8, "micro_batch": 2, "batch_tokens": 100})


def test_a_micro_batch_may_be_left_to_the_memory_of_the_device() -> None:
    automatic = {"seq_len": 8, "micro_batch": "auto", "batch_tokens": 96}
    assert recipe(train=automatic).train.micro_batch == "auto"
    with pytest.raises(ValidationError, match=r"batch_tokens 100 is not a multiple of seq_len = 8"):
        recipe(train=automatic | {"batch_tokens": 100})
    # Masks are drawn for each forward pass: they would depend on the device.
    with pytest.raises(ValidationError, match=r"micro_batch: auto goes with dropout 0 alone"):
        recipe(train=automatic | {"dropout": 0.1})


def test_warmup_takes_amounts_and_zero() -> None:
    assert recipe(train={"warmup_tokens": "100K"}).train.warmup_tokens == 100_000
    assert recipe(train={"warmup_tokens": 0}).train.warmup_tokens == 0


@pytest.mark.parametrize(
    "name",
    [
        *["", ".", "..", "a/b", "a\\b", "CON", "nul.txt", "com1", "a b", "a\n", "x.", "<b>", "😀"],
        *["a" * 101, "\U00020000" * 60],
    ],
)
def test_name_that_some_file_system_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        recipe(name=name)


@pytest.mark.parametrize("name", ["gpt2-medium-12l", "no", "v1.5", "naïve", "console"])
def test_plain_name_is_kept(name: str) -> None:
    assert recipe(name=name).name == name


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"variants": {"scratch": {"start": "fresh"}}}, "here: none"),
        (
            {"variants": {"a": {"start": "inherit"}, "b": {"start": "inherit"}}},
            "exactly one variant, the target, starts with inherit; here: a, b",
        ),
        ({"variants": {"a": {"start": "inherit", "layers": 3}}}, "inherit.layers"),
        (
            {"variants": {"a": {"start": "inherit", "tokens": "equal_compute"}}},
            "equal_compute is for controls",
        ),
        (
            {"variants": {"a": {"start": "inherit"}, "b": {"start": "fresh", "select": "last"}}},
            "select chooses what to inherit; it needs start: inherit",
        ),
        (
            {"variants": {"a": {"start": "inherit"}, "b": {"start": "stacking", "parts": "mlp"}}},
            "parts chooses what to inherit",
        ),
        (
            {"variants": {"a": {"start": "inherit"}, "b": {"start": "half-width", "layers": 3}}},
            "half-width always has all layers",
        ),
        (
            {"variants": {"a": {"start": "inherit", "lr_scale": 1e-3}}},
            r"variants\.a\.lr_scale 0\.001 puts the peak at 3e-07, below min_learning_rate 1e-05",
        ),
        ({"inherit": {"layers": 4}, "grow": {"max_layers": 2}}, "max_layers 2 is below"),
        ({"train": {"min_learning_rate": 1.0}}, "min_learning_rate 1.0 is above"),
        ({"train": {"betas": [0.9, 1.0]}}, "betas"),
        ({"reference": {"model": None}}, "give either model"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(
    sections: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        recipe(**sections)


def test_tokens_of_a_variant_are_its_own_or_a_multiple() -> None:
    tokens = {"a": None, "b": "3x", "c": "500K", "d": "equal_compute"}
    variants = {name: {"start": "fresh", "tokens": value} for name, value in tokens.items()}
    found = recipe(variants=variants | {"inherit": {"start": "inherit"}})
    assert [found.tokens_of(n) for n in "abcd"] == [2_000_000, 6_000_000, 500_000, None]
    for wrong in ("0x", "1.5x", "x", "2 x", "2X", "1000x", "-1x"):
        with pytest.raises(ValidationError):
            recipe(variants=variants | {"b": {"start": "fresh", "tokens": wrong}})


def test_the_target_is_the_variant_that_inherits_whole_first_layers() -> None:
    variants = {
        "gentle": {"start": "inherit", "select": "first", "lr_scale": 0.5},
        "mlps": {"start": "inherit", "parts": "mlp"},
        "it": {"start": "inherit", "lr_scale": 0.5},
    }
    assert recipe(variants=variants).target_name == "it"


@pytest.mark.parametrize("value", [float("nan"), [{"deep": float("inf")}], datetime.date.today()])
def test_config_of_a_reference_holds_json_only(value: object) -> None:
    config = {"model_type": "gpt2", "key": value}
    with pytest.raises(ValidationError):
        recipe(reference={"model": None, "train": {"config": config, "tokens": "1M"}})


def test_config_of_a_reference_needs_a_model_type() -> None:
    with pytest.raises(ValidationError, match="model_type"):
        recipe(reference={"model": None, "train": {"config": {"n_layer": 2}, "tokens": "1M"}})


# -- names that are not given


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen-Qwen3-0.6B"),
        ("my notes (2)", "my-notes-2"),
        ("..", "run"),
        ("", "run"),
        ("CON.yaml", "run-CON.yaml"),
        ("größer", "größer"),
        ("a" * 300, "a" * 100),
        ("漢" * 100, "漢" * 66),
        ("half \ud83d", "half"),
    ],
)
def test_any_text_becomes_a_name_that_every_file_system_accepts(text: str, name: str) -> None:
    assert safe_name(text) == name
    assert TypeAdapter(Name).validate_python(safe_name(text)) == name


@given(st.text(max_size=300))
def test_no_text_becomes_a_name_that_is_refused(text: str) -> None:
    assert TypeAdapter(Name).validate_python(safe_name(text)) == safe_name(text)


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-0.6B", "Qwen3-0.6B"),
        ("embedded:demo", "embedded-demo"),
        ("./models/my model/", "my-model"),
        ("gpt2", "gpt2"),
    ],
)
def test_a_recipe_without_a_name_has_that_of_its_model(model: str, name: str) -> None:
    recipe = Recipe.model_validate(
        {"reference": {"model": model}, "data": {"source": "stdlib"}, "train": {"tokens": 1}}
    )
    assert recipe.name == name
