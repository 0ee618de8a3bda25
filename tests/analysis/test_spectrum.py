"""Spectra of weights against numpy's singular values."""

import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file

from inheritune.analysis.spectrum import weight_spectrum
from inheritune.model_files.directory import open_model


def test_every_matrix_of_every_layer_has_its_singular_values(tiny_model):
    path = tiny_model("llama")
    weights = load_file(path / "model.safetensors")
    found = weight_spectrum(open_model(str(path)))
    assert len(found) == 4 * 7
    for row in found:
        matrix = weights[f"model.layers.{row['layer']}.{row['name']}"].numpy()
        values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
        np.testing.assert_allclose(row["largest"], values[:16], atol=1e-6)
        assert row["stable_rank"] == pytest.approx((values**2).sum() / values[0] ** 2)
        shares = values / values.sum()
        assert row["effective_rank"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))


def test_bf16_is_read_as_numbers_and_zeros_have_no_rank(tmp_path):
    model = tiny_models.build("llama").to(torch.bfloat16)
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.zero_()
    model.save_pretrained(tmp_path / "model")
    found = weight_spectrum(open_model(str(tmp_path / "model")))
    zeros = [row for row in found if row["stable_rank"] is None]
    assert [(row["layer"], row["name"]) for row in zeros] == [(1, "self_attn.q_proj.weight")]
