"""Measure what a smaller model gains and loses: size, memory and speed, and how close it stays."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from inheritune.data.tokens import TokenStream
from inheritune.errors import DataError
from inheritune.evaluation.fidelity import Fidelity, measure_fidelity
from inheritune.evaluation.samples import refused_settings
from inheritune.evaluation.speed import LiveModel, ModelSpeed, measure_speed
from inheritune.model_files.directory import ModelDirectory
from inheritune.model_files.safetensors import DTYPES, torch_name
from inheritune.system.environment import machine, usable_cores
from inheritune.system.progress import Listener, silent
from inheritune.system.rows import Rows
from inheritune.system.signals import StopFlag
from inheritune.training.hardware import choose_device
from inheritune.training.models import load_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROMPT, _NEW_TOKENS, _REPEATS = 256, 32, 5


@dataclass(frozen=True)
class Gains(Rows):
    """Size and speed of models, and how close the predictions of each are to those of the first.

    Attributes:
        device: The processor or GPU that it was measured on.
        dtype: Dtype of weights and cache during the measurement: ``fp32``, ``bf16`` or ``fp16``.
        prompt_tokens: Length of the prompts.
        new_tokens: Tokens that were generated after each.
        repeats: Prompts, each given to every model.
        models: Size and speed, in the order of the models.
        fidelity: The same for each model as fidelity to the first, in fp32; None for the first, and
            where there is no text, or the model predicts another number of ids.
    """

    device: str
    dtype: str
    prompt_tokens: int
    new_tokens: int
    repeats: int
    models: tuple[ModelSpeed, ...]
    fidelity: tuple[Fidelity | None, ...]

    @property
    def forward_tokens(self) -> int:
        """Tokens that went through each model, roughly: what measuring speed cost."""
        return (self.repeats + 3) * (2 * self.prompt_tokens + self.new_tokens)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each model, with medians."""
        rows = []
        for model, fidelity in zip(self.models, self.fidelity, strict=True):
            row = asdict(model) | {
                "prefill": model.prefill.median,
                "decode": model.decode.median,
                "first_token": model.first_token.median,
            }
            close = asdict(fidelity) if fidelity else {}
            rows.append(row | {key: close.get(key) for key in ("kl", "top1", "overlap")})
        return rows

    def as_json(self) -> dict[str, Any]:
        """JSON values."""
        fields = asdict(self)
        fidelity = fields.pop("fidelity")
        models = zip(fields["models"], fidelity, strict=True)
        return fields | {"models": [model | {"fidelity": close} for model, close in models]}


def measure_gains(
    models: Sequence[tuple[str, ModelDirectory]],
    stream: TokenStream | None = None,
    seq_len: int = 1024,
    batch_size: int = 16,
    dtype: str = "auto",
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
    known: Sequence[Fidelity] = (),
) -> Gains:
    """Measure size and speed of models in turn, and with text their fidelity to the first.

    All of them are in memory at once, so that what slows the machine down slows all of them.

    Args:
        models: Name and directory of each; the first is the reference.
        stream: Held-out tokens, the same for all; None: no fidelity, and prompts of random ids.
        seq_len: Tokens of a window of fidelity.
        batch_size: Windows in a forward.
        dtype: ``fp32``, ``bf16`` or ``fp16`` for speed and memory; auto: bf16 on a GPU, else fp32.
        known: Fidelity of all models but the first, where it is measured already.

    Raises:
        DataError: A model has too few positions, or there is less than a window of text.
        Interrupted: ``stop`` was set.
    """
    device = choose_device()
    if dtype == "auto":
        dtype = "bf16" if device == "cuda" else "fp32"
    live = [LiveModel(n, d, _load(d, dtype, device)) for n, d in models]
    prompts, new_tokens = _prompts([one.model for one in live], stream)
    speeds = measure_speed(live, prompts, new_tokens, stop, on_progress)
    fidelity: list[Fidelity | None] = [None, *known] if known else [None] * len(live)
    if stream is not None and len(live) > 1 and not known:
        loaded = [one.model for one in live]
        if dtype != "fp32":  # as val_loss is measured
            del live, loaded
            loaded = [_load(directory, "fp32", device) for _, directory in models]
        reference, *others = loaded
        rows = [_config(model).vocab_size for model in loaded]
        fidelity[1:] = [
            measure_fidelity(reference, other, stream, seq_len, batch_size, stop, on_progress)
            if rows[place] == rows[0]
            else None
            for place, other in enumerate(others, 1)
        ]
    return Gains(
        device=_device_title(device),
        dtype=dtype,
        prompt_tokens=prompts.shape[1],
        new_tokens=new_tokens,
        repeats=len(prompts),
        models=tuple(speeds),
        fidelity=tuple(fidelity),
    )


def _load(directory: ModelDirectory, dtype: str, device: str) -> "PreTrainedModel":
    try:
        model: Any = load_model(directory.path, dtype=getattr(torch, torch_name(DTYPES[dtype])))
    except ValueError as error:
        raise refused_settings(directory.name, error) from error
    return model.to(device).eval()  # type: ignore[no-any-return]


def _prompts(models: Sequence["PreTrainedModel"], stream: TokenStream | None) -> tuple[Tensor, int]:
    """Prompts that all models take, (repeats, P), and how many tokens to generate."""
    configs = [_config(model) for model in models]
    positions = min(getattr(c, "max_position_embeddings", None) or _PROMPT * 8 for c in configs)
    new_tokens = min(_NEW_TOKENS, positions // 4)
    length = min(_PROMPT, positions - new_tokens)
    if new_tokens < 2:
        raise DataError(f"a model has {positions} positions.", "Speed needs at least 8.")
    if stream is not None:
        length = min(length, stream.num_ids - 1)
        count = stream.num_samples(length)
        places = np.arange(_REPEATS) % count
        return torch.from_numpy(stream.samples(places, length))[:, :-1], new_tokens
    rows = min(config.vocab_size for config in configs)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(rows, (_REPEATS, length), generator=generator), new_tokens


def _config(model: "PreTrainedModel") -> Any:
    return model.config.get_text_config(decoder=True)


def _device_title(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cores = usable_cores()
    return f"{machine()['processor']}, {cores} core{'s' * (cores > 1)}"
