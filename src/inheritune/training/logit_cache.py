"""What a reference predicts behind every training token, on disk: it runs once, for many trainings.

B samples per forward, T tokens per sample, k likeliest ids.
"""

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from inheritune.data.order import sample_ids
from inheritune.data.shards import file_sha256, id_type
from inheritune.data.tokens import TokenStream, canonical_digest
from inheritune.errors import DataError
from inheritune.recipe.schema import Train
from inheritune.system.files import published, sync_file, write_json
from inheritune.system.strict_json import read_json
from inheritune.training.batches import sample_numbers
from inheritune.training.kl_divergence import Full, ReferenceDistribution, TopK

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LogitCache", "Predicts"]

_FORMAT = 1
_SHARD_BYTES = 32 << 20  # a few minutes at most are lost where a machine is stopped
_AGAIN = "Remove this directory: what was in it is made again."

Range = tuple[int, int]


class Predicts(Protocol):
    """A reference, as far as a cache needs it."""

    def whole(self, input_ids: "Tensor", temperature: float) -> Full:
        """Its distributions behind every token."""

    def check(self, samples: "Tensor", theirs: ReferenceDistribution, temperature: float) -> None:
        """Raise where it diverges from what is said to be its own."""


@dataclass(frozen=True)
class _Shard:
    """Samples at the positions [first, stop) of the first epoch's order, memory-mapped."""

    first: int
    stop: int
    ids: NDArray[Any]  # (stop - first, T, k)
    log_p: NDArray[np.float16]  # (stop - first, T, k)
    log_rest: NDArray[np.float32]  # (stop - first, T)


class LogitCache:
    """The k largest log-probabilities of every sample, their ids, and the mass of all others.

    Log-probabilities are kept in fp16; they are made to add up to 1 again when they are read. A
    shard is a directory, there completely or not at all; samples lie in the order of the first
    epoch, so that a training that is longer adds to what there is.

    Args:
        folder: Of all caches of a run; each has a directory of its own in it.
        made_from: What decides the distributions, such as the reference's digest; JSON values.
        stream: Training tokens.
        recipe: Seed and sequence length.
        k: Ids kept, fewer than the vocabulary has.
        temperature: Of the distributions.
        vocab_size: Ids that the reference predicts.

    Raises:
        DataError: What is there is not what was written.
    """

    def __init__(
        self,
        folder: Path,
        made_from: dict[str, Any],
        stream: TokenStream,
        recipe: Train,
        k: int,
        temperature: float,
        vocab_size: int,
    ) -> None:
        order = {"seq_len": recipe.seq_len, "seed": recipe.seed}
        kept = {"top_k": k, "temperature": temperature, "vocab_size": vocab_size}
        self.made_from = {"format": _FORMAT} | made_from | order | kept
        self.path = folder / f"top-{k}-{canonical_digest(self.made_from)[:12]}"
        self.vocab_size = vocab_size
        self._stream, self._recipe, self._k, self._temperature = stream, recipe, k, temperature
        self._samples = stream.num_samples(recipe.seq_len)
        self._known: list[Range] = []
        self._mapped: dict[Range, _Shard] = {}
        self._places: NDArray[np.int64] | None = None  # of samples in the first epoch's order

    def missing(self, samples: int) -> list[Range]:
        """Ranges of positions that are not there yet, each a shard.

        Args:
            samples: Of the order, from its beginning, over all epochs.
        """
        needed = min(samples, self._samples)
        each = max(1, _SHARD_BYTES // (self._recipe.seq_len * self._k * (2 + self._item)))
        found, begin = [], 0
        for first, stop in [*self._ranges(), (needed, needed)]:
            while begin < min(first, needed):
                end = min(begin + each, first, needed)
                found.append((begin, end))
                begin = end
            begin = max(begin, stop)
        return found

    def write(
        self,
        wanted: Range,
        reference: Predicts,
        paid_by: str,
        on_batch: Callable[[int], None],
    ) -> None:
        """Make one shard, and publish it by one rename.

        Args:
            wanted: Positions of its samples.
            reference: Whose distributions they are.
            paid_by: The training that it is made for, as `cost` asks for it.
            on_batch: Told the number of samples done, after every batch; may raise.

        Raises:
            AssertionError: What is stored is not what the reference predicts: the mistake is ours.
            MachineError: The disk is full.
        """
        began, (first, stop) = time.monotonic(), wanted
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "manifest.json").exists():
            write_json(self.path / "manifest.json", self.made_from)
        shape = (stop - first, self._recipe.seq_len, self._k)
        with published(self.path / f"shard-{first:010d}-{stop:010d}") as staging:
            shard = _Shard(first, stop, *self._arrays(staging, shape, "w+"))
            for done, samples in self._batches(first, stop):
                top = self._top_k(samples, reference, checked=done == 0)
                part = slice(done, done + len(samples))
                shard.ids[part] = top.ids.cpu().numpy().reshape(-1, *shape[1:])
                shard.log_p[part] = top.log_p.cpu().numpy().reshape(-1, *shape[1:])
                shard.log_rest[part] = top.log_rest.cpu().numpy().reshape(-1, shape[1])
                on_batch(done + len(samples))
            del shard
            files = {}
            for name in sorted(p.name for p in staging.iterdir()):
                sync_file(staging / name)
                files[name] = file_sha256(staging / name)
            cost = {"paid_by": paid_by, "seconds": time.monotonic() - began}
            write_json(staging / "shard.json", {"files": files, **cost})

    def look_up(self, position: int, count: int, device: torch.device) -> TopK:
        """What the reference predicts for the samples at [position, position + count).

        Args:
            position: In the order of samples, over all epochs.
            count: B.
            device: Where it is wanted.

        Raises:
            DataError: A shard is missing or is not what was written.
        """
        found = [self._at(place) for place in self._places_of(position, position + count)]
        arrays = [np.concatenate(parts) for parts in zip(*found, strict=True)]
        kinds = (torch.int64, torch.float32, torch.float32)
        tensors = (
            torch.from_numpy(array).to(device=device, dtype=kind)
            for array, kind in zip(arrays, kinds, strict=True)
        )
        return TopK(*tensors)

    def cost(self, paid_by: str) -> tuple[int, float]:
        """Tokens that the reference was run on for a training, and the seconds it took."""
        tokens, seconds = 0, 0.0
        for first, stop in self._ranges():
            said = read_json(self._folder((first, stop)) / "shard.json")
            if said["paid_by"] == paid_by:
                tokens += (stop - first) * self._recipe.seq_len
                seconds += said["seconds"]
        return tokens, seconds

    @property
    def _item(self) -> int:
        return id_type(self.vocab_size).itemsize

    def _folder(self, place: Range) -> Path:
        return self.path / f"shard-{place[0]:010d}-{place[1]:010d}"

    def _ranges(self) -> list[Range]:
        names = sorted(p.name.split("-") for p in self.path.glob("shard-*"))
        return [(int(first), int(stop)) for _, first, stop in names]

    def _arrays(self, folder: Path, shape: tuple[int, ...], mode: Any) -> tuple[Any, ...]:
        kinds: dict[str, Any] = {
            "ids": id_type(self.vocab_size),
            "log_p": np.float16,
            "log_rest": np.float32,
        }
        return tuple(
            np.memmap(
                folder / f"{name}.bin", kind, mode, shape=shape[:2] if "rest" in name else shape
            )
            for name, kind in kinds.items()
        )

    def _batches(self, first: int, stop: int) -> "Iterator[tuple[int, Tensor]]":
        for begin in range(first, stop, self._recipe.micro_batch):
            end = min(begin + self._recipe.micro_batch, stop)
            ids = sample_numbers(self._samples, self._recipe, begin, end)
            samples = self._stream.samples(ids, self._recipe.seq_len)
            yield begin - first, torch.from_numpy(samples)

    def _top_k(self, samples: "Tensor", reference: Predicts, checked: bool) -> TopK:
        scores = reference.whole(samples[:, :-1], self._temperature).scores
        with torch.no_grad():
            parts = [
                TopK.of(scores.rows(part), self._k, self._temperature) for part in scores.chunks()
            ]
        columns = ("ids", "log_p", "log_rest")
        top = TopK(*(torch.cat([getattr(part, name) for part in parts]) for name in columns))
        if checked:
            stored = TopK(top.ids, top.log_p.half().float(), top.log_rest)
            reference.check(samples, stored, self._temperature)
        return top

    def _places_of(self, first: int, stop: int) -> list[int]:
        """Where the samples at some positions of the order were in its first epoch."""
        if stop <= self._samples:
            return list(range(first, stop))
        if self._places is None:
            order = sample_ids(0, self._samples, self._samples, self._recipe.seed, 0)
            self._places = np.empty(self._samples, dtype=np.int64)
            self._places[order] = np.arange(self._samples)
        numbers = sample_numbers(self._samples, self._recipe, first, stop)
        return [int(place) for place in self._places[numbers]]

    def _at(self, place: int) -> tuple[NDArray[Any], ...]:
        """Ids, log-probabilities and rest of one sample, (T, k), (T, k), (T,)."""
        self._known = self._known or self._ranges()
        index = bisect_right(self._known, place, key=lambda known: known[0]) - 1
        if index < 0 or place >= self._known[index][1]:
            raise DataError(f"{self.path} lacks the sample at {place}.", _AGAIN)
        shard = self._shard(self._known[index])
        row = place - shard.first
        return shard.ids[row].astype(np.int64), shard.log_p[row], shard.log_rest[row]

    def _shard(self, place: Range) -> _Shard:
        if place not in self._mapped:
            folder, (first, stop) = self._folder(place), place
            for name, digest in read_json(folder / "shard.json")["files"].items():
                if not (folder / name).exists() or file_sha256(folder / name) != digest:
                    raise DataError(f"{folder / name} is not what was written.", _AGAIN)
            shape = (stop - first, self._recipe.seq_len, self._k)
            self._mapped[place] = _Shard(first, stop, *self._arrays(folder, shape, "r"))
        return self._mapped[place]
