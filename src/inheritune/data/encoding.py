"""Encode documents on all cores: worker processes, a bounded queue, results in order."""

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inheritune.data.document import Document, held_out, sampled
from inheritune.data.sources import SourcePosition
from inheritune.data.tokenizer import TextTokenizer, encode_documents
from inheritune.errors import MachineError
from inheritune.recipe.data import Data
from inheritune.system.environment import usable_cores

_BATCH_CHARACTERS = 1 << 20
_BATCH_DOCUMENTS = 1024
_BATCHES_BEFORE_WORKERS = 8  # less text than that is encoded before a worker has started


class Encoded(NamedTuple):
    """One document, encoded."""

    place: SourcePosition  # in its source, after the document
    documents: int  # read since the one before, those outside the sample included
    is_val: bool
    ids: NDArray[Any]  # (n,) uint32, with BOS where the tokenizer puts one, and EOS
    text_hash: int  # first 64 bits of SHA-256 of the text
    text_bytes: int  # size of the text in UTF-8


# Of each document in the sample: number in the batch, is_val, ids, text_hash, text_bytes.
_Batch = list[tuple[int, bool, NDArray[Any], int, int]]


@dataclass(frozen=True)
class Encoder:
    """Encodes a batch of documents, in this process or in a worker."""

    tokenizer: TextTokenizer
    data: Data  # decides what is sampled and held out

    def __call__(self, documents: list[Document], is_val: bool) -> _Batch:
        """Encode the documents in the sample; with ``is_val`` all of them, as held-out ones."""
        numbers = [i for i, d in enumerate(documents) if is_val or sampled(d, self.data.sample)]
        chosen = [documents[i] for i in numbers]
        texts = [document.text for document in chosen]
        is_rendered = any(document.is_rendered for document in chosen)  # one source, all or none
        special = self.data.special_tokens_in_text or is_rendered
        arrays = encode_documents(self.tokenizer, texts, special)
        batch: _Batch = []
        for number, document, ids in zip(numbers, chosen, arrays, strict=True):
            content = document.text.encode()
            batch.append(
                (
                    number,
                    is_val or held_out(document, self.data),
                    # Half of what goes through the pipe; an id never takes more than four bytes.
                    ids.astype(np.uint32),
                    int.from_bytes(hashlib.sha256(content).digest()[:8], "little"),
                    len(content),
                )
            )
        return batch


class Encoders:
    """A pool of encoding processes, started once there is enough to do; use it in a ``with``.

    Args:
        workers: Number of processes; 0: this process encodes. None: one for each core, where
            there are several.
        start_method: ``"spawn"``, ``"fork"`` or ``"forkserver"``; it changes no result.
    """

    def __init__(
        self, encoder: Encoder, workers: int | None = None, start_method: str = "spawn"
    ) -> None:
        cores = usable_cores()
        self._encoder = encoder
        self._patient = workers is None
        self._workers = (cores if cores > 1 else 0) if workers is None else workers
        self._context = multiprocessing.get_context(start_method)
        self._pool: ProcessPoolExecutor | None = None
        self._batches = 0

    def __enter__(self) -> "Encoders":
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def encode(
        self,
        documents: Iterator[tuple[SourcePosition, Document]],
        is_val: bool = False,
        share: float = 1.0,
        between: Callable[[], None] = lambda: None,
    ) -> Iterator[Encoded]:
        """Encode documents, and yield those in the sample, in order.

        Args:
            documents: Read a few batches ahead of what is yielded.
            is_val: All of them are held out.
            share: Share of the batches in the queue that belong to these documents, in (0, 1].
            between: Called before every batch; may raise.

        Raises:
            MachineError: A worker ended.
        """
        ahead = max(1, round(2 * self._workers * share))
        waiting: deque[tuple[list[SourcePosition], Callable[[], _Batch]]] = deque()
        try:
            for places, texts in _batches(documents):
                between()
                waiting.append((places, self._submit(texts, is_val)))
                while len(waiting) > ahead or (waiting and self._pool is None):
                    yield from _unpacked(*waiting.popleft())
            while waiting:
                between()
                yield from _unpacked(*waiting.popleft())
        except BrokenProcessPool as error:
            raise MachineError(
                "a process that encodes text ended: killed, out of memory, or started by a script "
                'that does not guard its own start with if __name__ == "__main__".',
                "Run the same command to continue, or call prepare with workers=0.",
            ) from error

    def _submit(self, documents: list[Document], is_val: bool) -> Callable[[], _Batch]:
        self._batches += 1
        few = self._patient and self._batches <= _BATCHES_BEFORE_WORKERS
        if not self._workers or (self._pool is None and few):
            return lambda: self._encoder(documents, is_val)
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, self._context, _begin, (self._encoder,))
        return self._pool.submit(_encode, documents, is_val).result


def _batches(
    documents: Iterator[tuple[SourcePosition, Document]],
) -> Iterator[tuple[list[SourcePosition], list[Document]]]:
    """Group documents into batches that are worth sending to a worker."""
    places: list[SourcePosition] = []
    batch: list[Document] = []
    characters = 0
    for place, document in documents:
        places.append(place)
        batch.append(document)
        characters += len(document.text)
        if characters >= _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS:
            yield places, batch
            places, batch, characters = [], [], 0
    if batch:
        yield places, batch


def _unpacked(places: list[SourcePosition], result: Callable[[], _Batch]) -> Iterator[Encoded]:
    before = -1
    for number, is_val, ids, text_hash, size in result():
        yield Encoded(places[number], number - before, is_val, ids, text_hash, size)
        before = number


# --- in a worker ---

_encoder: Encoder | None = None


def _begin(encoder: Encoder) -> None:
    global _encoder
    _encoder = encoder
    # The cores are taken by the other workers, and after a fork the library's threads are gone.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):  # who started it decides when to stop
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Exit when the parent has ended: killed, it closes nothing that a worker waits for."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _encode(documents: list[Document], is_val: bool) -> _Batch:
    assert _encoder is not None
    return _encoder(documents, is_val)
