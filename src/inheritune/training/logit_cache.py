"""Store a reference's predictions of the training tokens, so that it runs once for many trainings.

B samples per forward, T tokens per sample, k likeliest ids.
"""

import re
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inheritune.data.order import sample_ids
from inheritune.data.shards import id_type
from inheritune.data.tokens import TokenStream, canonical_digest
from inheritune.errors import DataError
from inheritune.recipe.training import Train
from inheritune.system.files import make_directory, new_directory, sha256, sync_file, write_json
from inheritune.system.strict_json import read_json
from inheritune.training.batches import sample_numbers
from inheritune.training.distillation import FrozenReference, StoredDistribution
from inheritune.training.kl_divergence import TopK

_FORMAT = 1
_SHARD_BYTES = 32 << 20  # a few minutes at most are lost where a machine is stopped
_REMOVE = "Remove this directory: its contents are made again."

Range = tuple[int, int]


class LogitCache:
    """The k largest log-probabilities of every token, their ids, and the mass of all other ids.

    Log-probabilities are stored in fp16; read again, they are made to add up to 1. A shard is a
    directory, there completely or not at all. Samples lie in the order of the first epoch: a
    sample's index there is its place, and a longer training adds to what is stored.

    Args:
        folder: Parent directory of the run's caches; this cache gets a subdirectory.
        made_from: JSON values that decide the distributions, such as the reference's digest.
        k: Ids stored for each token, fewer than the vocabulary has.
        temperature: Of the distributions that are looked up; see `kl_divergence.TopK`.
        vocab_size: Ids that the reference predicts.
    """

    def __init__(
        self,
        folder: Path,
        made_from: dict[str, Any],
        stream: TokenStream,
        train: Train,
        k: int,
        temperature: float,
        vocab_size: int,
    ) -> None:
        order = {"seq_len": train.seq_len, "seed": train.seed}
        # Predictions are stored at temperature 1, whatever the loss makes of them.
        sizes = {"top_k": k, "temperature": 1.0, "vocab_size": vocab_size}
        self.made_from = {"format": _FORMAT} | made_from | order | sizes
        self.path = folder / f"top-{k}-{canonical_digest(self.made_from)[:12]}"
        self.vocab_size = vocab_size
        self._temperature = temperature
        self._stream, self._train, self._k = stream, train, k
        self._num_samples = stream.num_samples(train.seq_len)
        self._stored: list[Range] = []
        self._mapped: dict[Range, dict[str, NDArray[Any]]] = {}
        self._places: NDArray[np.int64] | None = None  # of samples in the first epoch's order

    def missing(self, samples: int) -> list[Range]:
        """List the shards that are still to be made for the first samples, as ranges of places."""
        needed = min(samples, self._num_samples)
        id_bytes = id_type(self.vocab_size).itemsize
        bytes_per_sample = self._train.seq_len * self._k * (2 + id_bytes)
        each = max(1, _SHARD_BYTES // bytes_per_sample)
        ranges, begin = [], 0
        for first, stop in [*self._ranges(), (needed, needed)]:
            while begin < min(first, needed):
                end = min(begin + each, first, needed)
                ranges.append((begin, end))
                begin = end
            begin = max(begin, stop)
        return ranges

    def write(
        self,
        places: Range,
        reference: FrozenReference,
        paid_by: str,
        on_batch: Callable[[int], None],
    ) -> None:
        """Make one shard, and publish it by one rename.

        Args:
            places: One of `missing`.
            paid_by: Name of the training that the shard is made for; see `cost`.
            on_batch: Called with the number of samples done, after every batch; may raise.
        """
        began_s, (first, stop) = time.monotonic(), places
        make_directory(self.path)
        if not (self.path / "manifest.json").exists():
            write_json(self.path / "manifest.json", self.made_from)
        with new_directory(self._folder(places)) as staging:
            # --- predictions, a micro-batch at a time; the first one is checked ---
            arrays = self._map(places, staging, "w+")
            for done, samples in self._batches(first, stop):
                top = self._top_k(samples, reference, check=done == 0)
                for name, array in arrays.items():
                    rows = getattr(top, name).cpu().numpy().reshape(-1, *array.shape[1:])
                    array[done : done + len(samples)] = rows
                on_batch(done + len(samples))
            del arrays, array  # unmapped: all of it is in the files

            # --- digests, by which a reader knows that the files are whole ---
            files = {}
            for path in sorted(staging.iterdir()):
                sync_file(path)
                files[path.name] = sha256(path)
            cost = {"paid_by": paid_by, "seconds": time.monotonic() - began_s}
            write_json(staging / "shard.json", {"files": files, **cost})

    def distribution(self, input_ids: Tensor, position: int) -> TopK:
        """Look up the predictions of a micro-batch; see `kl_divergence.ReferenceSource`.

        Args:
            input_ids: (B, T) int64; only their number and device matter.
            position: Place of the first sample in the order, over all epochs.

        Raises:
            DataError: A shard is missing or is not what was written.
        """
        places = self._places_of(position, position + len(input_ids))
        samples = [self._read(place) for place in places]

        def batch(name: str, dtype: type[np.generic]) -> Tensor:
            rows = np.concatenate([sample[name] for sample in samples])
            return torch.from_numpy(rows.astype(dtype)).to(input_ids.device)

        return TopK(
            ids=batch("ids", np.int64),
            log_p=batch("log_p", np.float32),
            log_rest=batch("log_rest", np.float32),
            temperature=self._temperature,
        )

    def cost(self, paid_by: str) -> tuple[int, float]:
        """Return the tokens that the reference was run on for a training, and the seconds."""
        tokens, seconds = 0, 0.0
        for first, stop in self._ranges():
            shard = read_json(self._folder((first, stop)) / "shard.json")
            if shard["paid_by"] == paid_by:
                tokens += (stop - first) * self._train.seq_len
                seconds += shard["seconds"]
        return tokens, seconds

    def _folder(self, places: Range) -> Path:
        return self.path / f"shard-{places[0]:010d}-{places[1]:010d}"

    def _ranges(self) -> list[Range]:
        """List the places of the shards on disk, ascending."""
        names = sorted(path.name for path in self.path.glob("shard-*"))
        # A copy that somebody made, such as shard-0000000000-0000000040-old, is none of ours.
        matches = [re.fullmatch(r"shard-(\d{10,})-(\d{10,})", name) for name in names]
        return [(int(match[1]), int(match[2])) for match in matches if match]

    def _map(self, places: Range, folder: Path, mode: Any) -> dict[str, NDArray[Any]]:
        """Map a shard's files: the fields of `TopK`, (samples, T, k) and (samples, T)."""
        samples, k = (places[1] - places[0], self._train.seq_len), self._k
        shapes = {"ids": (*samples, k), "log_p": (*samples, k), "log_rest": samples}
        dtypes: dict[str, Any] = {
            "ids": id_type(self.vocab_size),
            "log_p": np.float16,
            "log_rest": np.float32,
        }
        return {
            name: np.memmap(folder / f"{name}.bin", dtypes[name], mode, shape=shape)
            for name, shape in shapes.items()
        }

    def _batches(self, first: int, stop: int) -> Iterator[tuple[int, Tensor]]:
        for begin in range(first, stop, self._train.resolved_micro_batch):
            end = min(begin + self._train.resolved_micro_batch, stop)
            ids = sample_numbers(self._num_samples, self._train, begin, end)
            samples = self._stream.samples(ids, self._train.seq_len)
            yield begin - first, torch.from_numpy(samples)

    def _top_k(self, samples: Tensor, reference: FrozenReference, check: bool) -> TopK:
        logits = reference.distribution(samples[:, :-1]).logits
        with torch.no_grad():
            parts = [TopK.of(logits.rows(part), self._k) for part in logits.chunks()]
        top = TopK(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.log_p for part in parts]),
            torch.cat([part.log_rest for part in parts]),
        )
        if check:
            rounded = TopK(top.ids, top.log_p.half().float(), top.log_rest)
            source = StoredDistribution(rounded, self.vocab_size)
            reference.check_self_divergence(samples, source)
        return top

    def _places_of(self, first: int, stop: int) -> list[int]:
        """Find the samples at positions [first, stop), of any epoch, in the first epoch's order."""
        if stop <= self._num_samples:
            return list(range(first, stop))
        if self._places is None:
            order = sample_ids(0, self._num_samples, self._num_samples, self._train.seed, 0)
            self._places = np.empty(self._num_samples, dtype=np.int64)
            self._places[order] = np.arange(self._num_samples)
        numbers = sample_numbers(self._num_samples, self._train, first, stop)
        return [int(place) for place in self._places[numbers]]

    def _read(self, place: int) -> dict[str, NDArray[Any]]:
        """Return what is stored of one sample, (T, k) or (T,)."""
        self._stored = self._stored or self._ranges()
        index = bisect_right(self._stored, place, key=lambda places: places[0]) - 1
        if index < 0 or place >= self._stored[index][1]:
            raise DataError(f"{self.path} lacks the sample at {place}.", _REMOVE)
        shard = self._shard(self._stored[index])
        return {name: array[place - self._stored[index][0]] for name, array in shard.items()}

    def _shard(self, places: Range) -> dict[str, NDArray[Any]]:
        """Map a shard when it is first read, after comparing its files with their digests."""
        if places not in self._mapped:
            folder = self._folder(places)
            for name, digest in read_json(folder / "shard.json")["files"].items():
                if not (folder / name).exists() or sha256(folder / name) != digest:
                    raise DataError(f"{folder / name} is not what was written.", _REMOVE)
            self._mapped[places] = self._map(places, folder, "r")
        return self._mapped[places]
