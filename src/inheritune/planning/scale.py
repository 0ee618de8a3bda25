"""Shrink a recipe to try it out: the same trainings and numbers of layers, less of all else."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from inheritune.errors import RecipeError, escape
from inheritune.model_files.directory import open_model
from inheritune.recipe.known_configs import known_config
from inheritune.recipe.load import RecipeFile, leaves
from inheritune.recipe.schema import Recipe

_LEAST_STEPS = 2
_LEAST_SEQ_LEN = 16
_LEAST_POSITIONS = 32  # a distillation checks the reference on this many tokens first
_LEAST_HEAD = 8
_VALIDATION_TOKENS = 8192  # per forward: small models are as fast on 512 windows as on 64
_TOKENIZER = "embedded:demo"
_STDLIB_TOKENS = 3_000_000  # roughly, with that tokenizer
_LEAST_SAMPLE = 0.05  # holds out three modules
_ROWS = 2048
_FEW_STEPS = 50

# By model type: config keys of width, heads, positions, and width inside the MLP.
_SIZE_KEYS = {"gpt2": ("n_embd", "n_head", "n_positions", "n_inner")} | dict.fromkeys(
    ("llama", "mistral", "qwen2", "qwen3"),
    ("hidden_size", "num_attention_heads", "max_position_embeddings", "intermediate_size"),
)


def scale_file(given: RecipeFile, factor: float) -> RecipeFile:
    """Scale the recipe of a file as `scale_recipe` does, with the shape of its reference.

    ``"--scale"`` becomes the origin of every value that changed.

    Raises:
        SourceError: The reference is a broken local directory.
    """
    model = given.recipe.reference.model
    config = None if model is None else known_config(model)
    if model is not None and config is None:
        config = dict(open_model(model, whole=False).config)
    recipe = scale_recipe(given.recipe, factor, config)
    before, after = (
        {".".join(map(str, path)): value for path, value in leaves(r.resolved())}
        for r in (given.recipe, recipe)
    )
    origins = {
        key: given.origins.get(key, "default") if before.get(key, ...) == value else "--scale"
        for key, value in after.items()
    }
    note = (
        f"Scaled by {factor:g}: tokens x {factor:g}; widths, sequence lengths and batches x "
        f"{factor**0.25:.2g}, within limits; the reference has this shape and all its layers, and "
        "is trained here for as long as its target, on Python's standard library. This shows that "
        "the recipe runs; it is not a result of the method."
    )
    return replace(given, recipe=recipe, origins=origins, scaled=note)


def scale_recipe(recipe: Recipe, factor: float, config: Mapping[str, Any] | None = None) -> Recipe:
    """Return a recipe with the same rounds and variants that takes a small fraction of the time.

    Tokens are multiplied by the factor, but every training keeps at least two steps. Widths,
    sequence length and sequences per step are multiplied by its fourth root, down to two heads of
    eight channels and sequences of 16 tokens. A reference that would be downloaded is replaced by
    one of its shape that is trained here. The text is Python's standard library, and no tasks run.
    The scaled recipe has another name, so that the two never share a directory.

    Args:
        factor: Factor on the tokens, above 0 and below 1.
        config: The reference's config; needed unless the recipe trains the reference.

    Raises:
        RecipeError: The factor is out of range, or a reference of this kind cannot be scaled.
    """
    if not 0 < factor < 1:
        raise RecipeError(f"--scale is {factor:g}.", "Choose a factor above 0 and below 1.")
    values = recipe.resolved()
    train = values["train"] = _scaled_training(recipe, factor)
    tokens = partial(_amount, factor=factor, train=train)
    values["name"] = f"{recipe.name[:60]}-scaled-{factor:g}"
    values["reproduces"] = None
    values["reference"] = _scaled_reference(recipe, config, train, tokens)
    longest = max(
        [train["tokens"], values["reference"]["train"]["tokens"]]
        + [tokens(recipe.tokens_of(name) or 0) for name in recipe.variants]
    )
    values["data"] = _scaled_data(recipe, tokens, 2 * longest)
    repairs = [recipe.inherit.repair, *(v.repair for v in recipe.variants.values())]
    if any(
        repair not in (None, "none") for repair in repairs
    ):  # which needs as many tokens of text
        inherit = values["inherit"]
        inherit["repair_tokens"] = min(inherit["repair_tokens"], longest)
    for variant in values["variants"].values():
        _scale_variant(variant, factor, train)
    windows = max(1, _VALIDATION_TOKENS // train["seq_len"])
    values["evaluate"] |= {"tasks": [], "at": [], "batch_size": windows}
    if values["analyze"] is not None:
        analyze = values["analyze"]
        length = min(analyze["tokens_per_sequence"], train["seq_len"])
        analyze |= {"sequences": min(analyze["sequences"], 4), "tokens_per_sequence": length}
    values["report"] |= {"prompts": [], "trackers": []}
    return Recipe.model_validate(values)


def _amount(tokens: int, factor: float, train: Mapping[str, Any]) -> int:
    least: int = _LEAST_STEPS * train["batch_tokens"]
    return max(least, round(tokens * factor))


def _scale_variant(variant: dict[str, Any], factor: float, train: Mapping[str, Any]) -> None:
    if isinstance(variant["tokens"], int):
        variant["tokens"] = _amount(variant["tokens"], factor, train)
    if variant["warmup_tokens"] is not None:
        variant["warmup_tokens"] = _warmup(variant["warmup_tokens"], factor, train)
    if variant["distill"] is not None and variant["distill"]["top_k"] is not None:
        variant["distill"]["top_k"] = min(variant["distill"]["top_k"], _ROWS // 32)


def _scaled_training(recipe: Recipe, factor: float) -> dict[str, Any]:
    train, root = recipe.train, factor**0.25
    seq_len = min(train.seq_len, max(_LEAST_SEQ_LEN, round(train.seq_len * root / 8) * 8))
    sequences = max(2, round(train.batch_tokens // train.seq_len * root / 2) * 2)
    batch = sequences * seq_len
    tokens = max(_LEAST_STEPS * batch, round(train.tokens * factor))
    values: dict[str, Any] = train.model_dump(mode="json")
    values |= {
        "tokens": tokens,
        "seq_len": seq_len,
        "batch_tokens": batch,
        # With few steps, ten validations would be most of the work.
        "eval_every": tokens if tokens < _FEW_STEPS * batch else None,
    }
    if train.micro_batch != "auto":
        values["micro_batch"] = math.gcd(sequences, train.micro_batch)
    values["warmup_tokens"] = _warmup(train.warmup_tokens, factor, values)
    return values


def _warmup(amount: int, factor: float, train: Mapping[str, Any]) -> int:
    return min(round(amount * factor), int(train["tokens"]) // 2)


def _scaled_reference(
    recipe: Recipe,
    config: Mapping[str, Any] | None,
    train: Mapping[str, Any],
    tokens: Callable[[int], int],
) -> dict[str, Any]:
    trained = recipe.reference.train
    config = config if trained is None else trained.config
    if config is None:
        raise RecipeError(
            f"the shape of {escape(recipe.reference.model)} is not known, so it cannot be scaled.",
            "Scale a recipe that trains its reference or names a local model directory.",
        )
    return {
        "model": None,
        "revision": None,
        "train": {
            "config": _narrow(config, recipe, train),
            "tokenizer": _TOKENIZER,
            "tokens": train["tokens"] if trained is None else tokens(trained.tokens),
        },
    }


def _narrow(config: Mapping[str, Any], recipe: Recipe, train: Mapping[str, Any]) -> dict[str, Any]:
    """Return a narrower config of the same family, with as many layers.

    Widths shrink by the ratio of the sequence lengths. The number of heads stays even, so that a
    half-width variant can halve it.
    """
    kind = str(config.get("model_type"))
    if kind not in _SIZE_KEYS:
        raise RecipeError(
            f"a reference of the type {escape(kind)} cannot be scaled.",
            f"Supported types: {', '.join(_SIZE_KEYS)}.",
        )
    width_key, heads_key, positions_key, inner_key = _SIZE_KEYS[kind]
    width, heads = config.get(width_key), config.get(heads_key)
    if not isinstance(width, int) or not isinstance(heads, int):
        raise RecipeError(
            f"the reference's config does not give {width_key} and {heads_key}.",
            "Add both, or run without --scale.",
        )
    share = train["seq_len"] / recipe.train.seq_len
    new_heads = max(2, round(heads * share / 2) * 2)
    head_dim = max(_LEAST_HEAD, round(width * share / new_heads / 8) * 8)
    new_width = new_heads * head_dim
    narrow = dict(config) | {width_key: new_width, heads_key: new_heads}
    narrow |= {positions_key: max(train["seq_len"], _LEAST_POSITIONS)}
    if isinstance(inner := config.get(inner_key), int):
        narrow[inner_key] = max(4, round(inner * new_width / width / 4) * 4)
    if isinstance(groups := config.get("num_key_value_heads"), int):
        narrow["num_key_value_heads"] = max(1, new_heads * groups // heads)
    if config.get("head_dim") is not None:
        narrow["head_dim"] = head_dim
    # The scaled run uses another tokenizer, with another vocabulary and special ids.
    for key in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id"):
        narrow.pop(key, None)
    return narrow


def _scaled_data(recipe: Recipe, tokens: Callable[[int], int], needed: int) -> dict[str, Any]:
    unique = recipe.data.tokens
    return {
        "source": "stdlib",
        "val_fraction": 0.04,
        "split_by": "name",  # the same modules on every machine
        "sample": min(1.0, max(_LEAST_SAMPLE, needed / _STDLIB_TOKENS)),
        "tokens": needed if unique is None else tokens(unique),
        "allow_repeat": True,
    }
