"""Hold the settings of the published experiments, as the authors printed, logged and coded them.

v1 is arXiv 2404.08634v1 (2024), v4 its version of 2026; code and logs are from the authors'
repository. Where these disagree, each source has its own setting.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Published", "Setting", "check_experiment", "experiment_names", "published"]


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment.

    Attributes:
        key: Recipe key, such as ``"train.tokens"``.
        value: The value that a recipe would have.
        source: Where it is published, such as ``"v1 prints"``.
    """

    key: str
    value: Any
    source: str


@dataclass(frozen=True)
class Published:
    """A published experiment.

    Attributes:
        settings: A key appears more than once if sources disagree.
        practices: Differences in method that no recipe key can remove.
    """

    settings: tuple[Setting, ...]
    practices: tuple[str, ...]


def experiment_names() -> list[str]:
    """List the names of all experiments, sorted."""
    return sorted(_EXPERIMENTS)


def check_experiment(name: str) -> str:
    """Return the name of a published experiment, or raise ValueError with a suggestion."""
    if name in _EXPERIMENTS:
        return name
    close = difflib.get_close_matches(name[:100].lower(), _EXPERIMENTS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(experiment_names())}"
    raise ValueError(f"there is no published experiment of this name; {hint}")


def published(name: str) -> Published:
    """Return an experiment by a name that `check_experiment` has accepted."""
    return _EXPERIMENTS[name]


def _settings(source: str, values: Mapping[str, Any]) -> tuple[Setting, ...]:
    return tuple(Setting(key, value, source) for key, value in values.items())


_GPT2_PRACTICES = (
    "embedding, positions, final norm and head are all inherited; the authors' code leaves "
    "positions and the final norm fresh (GPT-2)",
    "val_loss is measured on one fixed held-out set; the authors evaluate on 200 random batches, "
    "drawn anew each time",
    "an epoch is a permutation of the text; the authors draw sequences with replacement",
    "Hugging Face's GPT-2 has biases, which start at 0; the authors' has none",
)
_LOW_DATA_PRACTICES = (
    "embedding, final norm and head are all inherited; the authors' code leaves the input "
    "embedding and the final norm fresh (LLaMA)",
    "epochs, cosine schedule and clipping are as printed; the authors' code has one pass of 391M "
    "tokens at a constant rate, without clipping",
)
_OPTIMIZER = {
    "train.schedule": "cosine",
    "train.weight_decay": 0.1,
    "train.clip_norm": 1.0,
    "train.dropout": 0.0,
}


def _gpt2(
    layers: int,
    target: int,
    width: int,
    heads: int,
    batch: int,
    rate: float,
    betas: tuple[float, float] | None = (0.9, 0.95),
    steps: int = 100_000,
) -> tuple[Setting, ...]:
    """Give the settings of a GPT-2 run, by logs and code; what v4 prints is the same."""
    config = "reference.train.config."
    return _settings(
        "the authors' runs",
        {
            f"{config}n_layer": layers,
            f"{config}n_embd": width,
            f"{config}n_head": heads,
            f"{config}vocab_size": 50304,
            f"{config}scale_attn_by_inverse_layer_idx": True,
            "reference.train.tokens": 100_000 * batch,
            "inherit.layers": target,
            "train.tokens": steps * batch,
            "train.seq_len": 1024,
            "train.batch_tokens": batch,
            "train.learning_rate": rate,
            "train.min_learning_rate": 1e-5,
            "train.warmup_tokens": 2000 * batch,
            **({"train.betas": list(betas)} if betas else {}),
            **_OPTIMIZER,
        },
    )


_MEDIUM = _gpt2(24, 12, 1024, 16, 393_216, 3e-4)
_V1_MEDIUM = _settings("v1 prints", {"train.batch_tokens": 50_000})
_OPENWEBTEXT = _settings("the papers", {"data.source": "Skylion007/openwebtext"})


def _replaced(settings: tuple[Setting, ...], **values: Any) -> tuple[Setting, ...]:
    """Return the settings with some values replaced; ``__`` in a name stands for the dot."""
    replaced = {key.replace("__", "."): value for key, value in values.items()}
    return tuple(Setting(s.key, replaced.get(s.key, s.value), s.source) for s in settings)


def _fineweb(layers: int, width: int, heads: int) -> Published:
    settings = (
        *_gpt2(layers, 16, width, heads, 61_440, 2e-4, (0.9, 0.999)),
        *_settings("v4 prints", {"train.tokens": 10_000_000_000, "train.betas": [0.9, 0.95]}),
        *_settings("the papers", {"data.source": "HuggingFaceFW/fineweb-edu"}),
    )
    return Published(settings, _GPT2_PRACTICES)


def _low_data(tokens: int | None, unique: int | None, steps: int | None) -> Published:
    values = {
        "inherit.layers": 13,
        "grow.add": 0,
        "train.seq_len": 2048,
        "train.batch_tokens": 131_072,
        "train.learning_rate": 3e-4,
        "train.warmup_tokens": 131_072_000,
        **_OPTIMIZER,
    }
    values |= {} if tokens is None else {"train.tokens": tokens}
    values |= {} if unique is None else {"data.tokens": unique}
    # The paper prints steps; these are the tokens of that many steps of the printed batch.
    by_steps = {} if steps is None else {"train.tokens": steps * 131_072}
    code = {"train.batch_tokens": 16_384, "train.weight_decay": 0.01, "train.schedule": "constant"}
    settings = (
        *_settings("v1 prints", values),
        *_settings(f"v1's {(steps or 0) // 1000}K steps", by_steps),
        *_settings("the authors' code", code),
    )
    return Published(settings, _LOW_DATA_PRACTICES)


_EXPERIMENTS = {
    "low-data-1b": _low_data(8_000_000_000, 1_000_000_000, 64_000),
    "low-data-50b": _low_data(50_000_000_000, None, 191_000),
    "low-data-repetition": _low_data(None, 1_000_000_000, None),
    "low-data-layers": _low_data(None, 1_000_000_000, None),
    "gpt2-medium-openwebtext": Published((*_MEDIUM, *_V1_MEDIUM, *_OPENWEBTEXT), _GPT2_PRACTICES),
    "gpt2-large-openwebtext": Published(
        (
            *_gpt2(36, 18, 1280, 20, 131_072, 2e-4),
            *_settings(
                "v1 prints",
                {
                    "train.batch_tokens": 16_000,
                    "train.learning_rate": 3e-4,
                    "train.warmup_tokens": 16_000_000,
                },
            ),
            *_OPENWEBTEXT,
        ),
        _GPT2_PRACTICES,
    ),
    "gpt2-xlarge-openwebtext": Published(
        (*_gpt2(48, 24, 1600, 25, 131_072, 1.5e-4), *_OPENWEBTEXT), _GPT2_PRACTICES
    ),
    "fineweb-edu-medium": _fineweb(24, 1024, 16),
    "fineweb-edu-large": _fineweb(32, 1280, 20),
    "gpt2-small-layers": Published(
        (*_gpt2(12, 4, 768, 12, 393_216, 3e-4), *_OPENWEBTEXT),
        (
            *_GPT2_PRACTICES,
            "batch and learning rate of this experiment are not printed; those of GPT-2 medium are "
            "used",
        ),
    ),
    "submodules": Published(
        (*_replaced(_MEDIUM, inherit__layers=16), *_V1_MEDIUM, *_OPENWEBTEXT),
        (
            *_GPT2_PRACTICES,
            'a norm belongs to what it normalises; the papers say "with layernorm" and no more',
        ),
    ),
    "distillation": Published(
        (
            *_replaced(
                _MEDIUM,
                inherit__layers=16,
                train__tokens=50_000 * 393_216,
                train__min_learning_rate=3e-5,
            ),
            *_OPENWEBTEXT,
        ),
        (
            *_GPT2_PRACTICES,
            "the KL is summed over the vocabulary; in the authors' logs it is about 0 throughout, "
            "as if it had been averaged over it",
        ),
    ),
}
