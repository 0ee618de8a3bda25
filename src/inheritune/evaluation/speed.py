"""Measure size and speed of models in turn: disk, memory, cache, prefill and decode of `generate`.

Everything is plain transformers, as a user would call it. P tokens of prompt, N new tokens.
"""

import inspect
import statistics
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers.generation.streamers import BaseStreamer

from inheritune.evaluation.samples import refused_settings
from inheritune.model_files.directory import ModelDirectory
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.signals import StopFlag
from inheritune.training.throughput import count_params

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Settings of generation_config.json that would end a text early, or write it in another way.
_UNSET = {
    **dict.fromkeys(("assistant_early_exit", "constraints", "dola_layers", "force_words_ids")),
    **dict.fromkeys(("max_time", "penalty_alpha", "prompt_lookup_num_tokens", "stop_strings")),
}


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and the lowest and highest of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Summarise measurements, at least one."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class ModelSpeed:
    """Size and speed of one model.

    Attributes:
        name: As it was given.
        layers: Transformer layers.
        params: Parameters, tied ones once.
        disk_bytes: Size of the weight files.
        peak_bytes: Most memory of its tensors at once while it generates: weights, cache and
            activations; on a GPU as torch allocates it.
        cache_bytes_per_token: What each further token adds to the cache of keys and values.
        prefill: Tokens of the prompt per second, in one forward.
        decode: New tokens per second after the first.
        first_token: Seconds from the call of `generate` to the first new token.
    """

    name: str
    layers: int
    params: int
    disk_bytes: int
    peak_bytes: int
    cache_bytes_per_token: int
    prefill: Spread
    decode: Spread
    first_token: Spread


@dataclass(frozen=True)
class LiveModel:
    """A model in memory, and the directory that it was loaded from."""

    name: str
    directory: ModelDirectory
    model: "PreTrainedModel"


def measure_speed(
    models: Sequence[LiveModel],
    prompts: Tensor,
    new_tokens: int,
    stop: StopFlag | None = None,
    on_progress: Listener = silent,
) -> list[ModelSpeed]:
    """Measure models in turn: in each repeat every model continues the same prompt, greedily.

    A model that ends its text goes on all the same, so that all write N tokens.

    Args:
        models: All of them in memory, on one device.
        prompts: (repeats, P) int64; one repeat for each.
        new_tokens: N, at least 2.

    Raises:
        UnsupportedModelError: A generation_config.json asks for what cannot be done.
        Interrupted: ``stop`` was set.
    """
    times: list[_Times] = [_Times() for _ in models]
    for repeat in range(-1, len(prompts)):  # -1 warms up
        for live, measured in zip(models, times, strict=True):
            prompt = prompts[max(repeat, 0) :][:1].to(live.model.device)
            try:
                one = _timed(live.model, prompt, new_tokens)
            except (ValueError, TypeError, ImportError) as error:
                raise refused_settings(live.name, error) from error
            if repeat >= 0:
                measured.add(*one)
            if stop is not None:
                stop.check("speed is measured again")
        on_progress(Progress("speed", repeat + 1, len(prompts), "repeats"))
    return [
        ModelSpeed(
            name=live.name,
            layers=live.directory.layers,
            params=count_params(live.model),
            disk_bytes=weight_file_bytes(live.directory),
            peak_bytes=peak_bytes(live.model, prompts[:1], new_tokens),
            cache_bytes_per_token=cache_bytes_per_token(live.model, prompts[:1]),
            prefill=Spread.of(measured.prefill),
            decode=Spread.of(measured.decode),
            first_token=Spread.of(measured.first_token),
        )
        for live, measured in zip(models, times, strict=True)
    ]


def weight_file_bytes(directory: ModelDirectory) -> int:
    """Add up the sizes of a model's weight files."""
    files: list[Path] = [directory.path / name for name in directory.metadata]
    return sum(file.stat().st_size for file in files)


# --- time ---


class _Times:
    """The measurements of one model."""

    def __init__(self) -> None:
        self.prefill: list[float] = []
        self.decode: list[float] = []
        self.first_token: list[float] = []

    def add(self, prefill: float, decode: float, first_token: float) -> None:
        """Add those of one repeat."""
        self.prefill.append(prefill)
        self.decode.append(decode)
        self.first_token.append(first_token)


def _timed(model: "PreTrainedModel", prompt: Tensor, new_tokens: int) -> tuple[float, float, float]:
    """Tokens per second of prefill and decode, and seconds to the first token, of one prompt."""
    _wait_for(model)
    began = time.perf_counter()
    _prefill(model, prompt)
    _wait_for(model)
    prefill = prompt.shape[1] / (time.perf_counter() - began)
    clock = _Clock()
    began = time.perf_counter()
    _generate(model, prompt, new_tokens, clock)
    first, *_, last = clock.times
    # N - 1 tokens come after the first
    return prefill, (new_tokens - 1) / (last - first), first - began


class _Clock(BaseStreamer):
    """Note when each new token is there; `generate` has fetched it from the device by then."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._has_prompt = False

    def put(self, value: Tensor) -> None:
        """Take the prompt first, then each new token."""
        if self._has_prompt:
            self.times.append(time.perf_counter())
        self._has_prompt = True

    def end(self) -> None:
        """Take the end of the text."""


def _prefill(model: "PreTrainedModel", prompt: Tensor) -> Any:
    # As `generate` does: only the last logits, where the class can.
    can_keep = "logits_to_keep" in inspect.signature(model.forward).parameters
    last_only = {"logits_to_keep": 1} if can_keep else {}
    with torch.no_grad():
        return model(input_ids=prompt, use_cache=True, **last_only)


def _generate(
    model: "PreTrainedModel", prompt: Tensor, new_tokens: int, streamer: BaseStreamer | None = None
) -> None:
    generate: Any = model.generate
    with torch.no_grad():
        generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            do_sample=False,
            num_beams=1,
            use_cache=True,
            pad_token_id=0,
            streamer=streamer,
            **_UNSET,
        )


def _wait_for(model: "PreTrainedModel") -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


# --- memory ---


def cache_bytes_per_token(model: "PreTrainedModel", prompt: Tensor) -> int:
    """Count what each token in the second half of a prompt adds to the cache.

    2 x layers x heads of keys x their width x bytes per value, where no layer has a window.
    """
    prompt = prompt.to(model.device)
    length, half = prompt.shape[1], prompt.shape[1] // 2
    sizes = [
        _tensor_bytes(getattr(_prefill(model, prompt[:, :count]), "past_key_values", None))
        for count in (length, half)
    ]
    return (sizes[0] - sizes[1]) // (length - half)


def _tensor_bytes(cache: Any) -> int:
    """Add up the bytes of all tensors in an object, its attributes and lists."""
    total, visited, waiting = 0, set[int](), [cache]
    while waiting:
        value = waiting.pop()
        if id(value) in visited:
            continue
        visited.add(id(value))
        if isinstance(value, Tensor):
            total += value.nbytes
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
        elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
            waiting += vars(value).values()
    return total


def peak_bytes(model: "PreTrainedModel", prompt: Tensor, new_tokens: int) -> int:
    """Measure the most memory of a model's tensors at once while it generates."""
    tensors = [*model.parameters(), *model.buffers()]
    weights = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}
    prompt = prompt.to(model.device)
    with _peak(model.device.type, weights) as added:
        _generate(model, prompt, new_tokens)
    return sum(weights.values()) + added()


@contextmanager
def _peak(device: str, known: Sequence[int] | dict[int, int]) -> Iterator[Callable[[], int]]:
    """Yield a function that tells the most memory that was added in the block."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield lambda: torch.cuda.max_memory_allocated() - before
        return
    # The resident memory of a process says more about its libraries than about a small model.
    with LiveTensors(known) as live:
        yield lambda: live.peak


class LiveTensors(TorchDispatchMode):
    """Add up the memory of the tensors that operations make, for as long as each lives.

    Args:
        known: Addresses of storages that do not count.
    """

    def __init__(self, known: Any = ()) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._seen = set(known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation, and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return
        self._seen.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self._now -= size
