"""Small models, samples and recipes that tests of distillation share."""

from pathlib import Path
from typing import Any

import tiny_recipe
import torch
from tiny_recipe import as_file
from transformers import AutoModelForCausalLM, LlamaConfig

from inheritune.recipe.load import RecipeFile

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
LONG = {"vocab_size": 320, "max_position_embeddings": 64}


def llama(seed: int, layers: int, **changes: object) -> torch.nn.Module:
    """Random weights, large enough that distributions are far from uniform."""
    torch.manual_seed(seed)
    config = LlamaConfig(**(SMALL | LONG | changes), num_hidden_layers=layers)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


X = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 320, (3, 16), generator=torch.Generator().manual_seed(1))
SAMPLES = torch.cat((X, Y[:, :1]), 1)
Y[0, :5] = Y[2, 9:] = -100


def recipe_of(
    model: Path, text: Path, sections: dict[str, Any] | None = None, /, **variants: object
) -> RecipeFile:
    """One round of ten steps, with further values of some sections."""
    changes = {"grow": {"add": 0}} | (sections or {})
    return as_file(tiny_recipe.recipe_of(model, text, variants=variants, **changes))
