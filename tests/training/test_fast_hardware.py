"""The fast setting must cost nothing but time: its val_loss is that of plain fp32, to noise."""

from pathlib import Path

import pytest

from inheritune.data.prepare_text import prepare_text
from inheritune.data.tokenizer import open_tokenizer
from inheritune.evaluation.val_loss import ValLoss, measure_val_loss
from inheritune.model_files.directory import open_model
from inheritune.recipe.load import read_recipe
from inheritune.recipe.presets import preset_path
from inheritune.surgery.cut import inherit
from inheritune.system.signals import StopFlag
from inheritune.training.hardware import choose_settings
from inheritune.training.loop import train
from inheritune.training.loop_config import LoopConfig
from inheritune.training.models import load_model

SLOW = [
    "train.precision=fp32",
    "train.attention=model",
    "train.fused_optimizer=off",
    "train.fused_gelu=off",
    "train.keep_large_blocks=off",
]


def trained(folder: Path, sets: list[str]) -> ValLoss:
    """60 steps of the first round of demo-paper, and their val_loss."""
    short = ["train.tokens=122880", "train.warmup_tokens=8K", "data.val_fraction=0.008"]
    recipe = read_recipe(preset_path("demo-paper"), [*short, *sets]).recipe
    reference = open_model("embedded:demo")
    tokenizer = open_tokenizer(reference.path)
    tokens = prepare_text(recipe.data, tokenizer, 2048, 128, folder / "tokens")
    inherit(reference, 4, folder / "start")
    model = load_model(folder / "start")
    settings = choose_settings(recipe.train, planned_flops=0)
    config = LoopConfig(
        "test", recipe.train, settings, tokens.train, recipe.train.tokens, folder, inputs={}
    )
    train(model, config, lambda model: 0.0, StopFlag())
    model.set_attn_implementation("sdpa")
    return measure_val_loss(model, tokens.val, 128, 16)


@pytest.mark.slow
@pytest.mark.skipif(
    choose_settings(read_recipe(preset_path("demo")).recipe.train, 0).precision == "fp32",
    reason="this processor has no bf16 products: the fast setting is fp32",
)
def test_the_fast_setting_trains_as_well_as_fp32_on_the_demo(tmp_path: Path) -> None:
    fast, slow = trained(tmp_path / "fast", []), trained(tmp_path / "slow", SLOW)
    assert abs(fast.mean - slow.mean) < min(0.01, slow.se)
