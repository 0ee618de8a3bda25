"""Small models, samples and recipes that tests of distillation share."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from inheritune.recipe.load import RecipeFile
from inheritune.recipe.schema import Recipe

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


def recipe_of(model: Path, text: Path, **variants: dict[str, object]) -> RecipeFile:
    """One round of ten steps; `variants` beside the target."""
    train_section = {"tokens": 1280, "seq_len": 16, "batch_tokens": 128, "micro_batch": 8}
    rates = {"learning_rate": 1e-3, "min_learning_rate": 1e-4, "precision": "fp32"}
    fields = {
        "name": "tiny",
        "reference": {"model": str(model)},
        "data": {"source": str(text), "val_fraction": 0.2},
        "train": train_section | rates,
        "grow": {"add": 0},
        "variants": variants,
        "analyze": None,
        "evaluate": {"gains": False},
    }
    return RecipeFile(None, "# made by a test\n", Recipe.model_validate(fields), {})
