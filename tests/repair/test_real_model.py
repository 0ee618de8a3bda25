"""Repairing cuts of a real model, the one in the package: val_loss falls with no training."""

import numpy as np
import pytest
import torch

from inheritune.data.calibration import calibration_windows, text_ids
from inheritune.data.tokenizer import open_tokenizer
from inheritune.model_files.directory import open_model
from inheritune.recipe.data import Data
from inheritune.repair.repair import repair_layers
from inheritune.training.models import load_model

TOKENS, SEQ_LEN, TOTAL = 8192, 128, 8


@pytest.fixture(scope="module")
def text() -> tuple[np.ndarray, np.ndarray]:
    """Windows of Python's standard library to fit on, and later ones to validate on."""
    reference = open_model("embedded:demo")
    ids = text_ids(Data(source="stdlib"), open_tokenizer(reference.path), 4_000)
    windows = calibration_windows(ids[:150_000], TOKENS, SEQ_LEN)
    return windows, ids[150_000 : 150_000 + 32 * SEQ_LEN].reshape(32, SEQ_LEN)


def val_loss(layers: list[int], text, method: str) -> float:
    model = load_model(open_model("embedded:demo").path)
    if method != "none":
        repair_layers(model, TOTAL, layers, text[0], method)
    model.model.layers = torch.nn.ModuleList([model.model.layers[i] for i in layers])
    model.config.num_hidden_layers = len(layers)
    ids = torch.from_numpy(text[1])
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([0, 1, 2, 5, 6, 7], id="block"),
        pytest.param([0, 1, 2, 3, 4, 5], id="prefix", marks=pytest.mark.slow),
    ],
)
def test_a_cut_of_a_trained_model_is_nearer_to_it_after_each_repair(layers, text):
    whole = val_loss([*range(TOTAL)], text, "none")
    cut, scale, linear, sequential = (
        val_loss(layers, text, method) for method in ("none", "scale", "linear", "sequential")
    )
    assert whole < sequential < linear < min(cut, scale)
    assert cut - sequential > 0.1 * (cut - whole)
