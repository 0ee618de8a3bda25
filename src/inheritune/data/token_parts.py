"""Prepare tokens on several machines: each worker makes parts of the text, the last joins them.

The text is cut into `NUM_PARTS` parts of equal bytes, whatever the number of workers. Worker i of n
makes the parts i, i + n, ... in directories of their own within the token directory. Where all are
there, a manifest that names their shards makes them one.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from inheritune.data.compression import readers
from inheritune.data.encoding import Encoder, Encoders
from inheritune.data.journal import (
    MANIFEST,
    NUM_PARTS,
    Journal,
    make_token_directory,
    missing_parts,
    part_path,
    remove_working_directory,
    working_directory,
    write_manifest,
)
from inheritune.data.overlap import DocumentHashes
from inheritune.data.prepare_text import check_request, open_prepared, request_of
from inheritune.data.shards import SHARD_IDS
from inheritune.data.sources import held_out_sources, open_sources
from inheritune.data.token_builder import TokenBuilder
from inheritune.data.token_manifest import PreparedText
from inheritune.data.token_writer import TokenWriter
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, Interrupted, RecipeError, escape
from inheritune.recipe.data import Data
from inheritune.system.inputs import describe_differences, differences
from inheritune.system.locks import patiently
from inheritune.system.progress import Listener, Progress, silent
from inheritune.system.strict_json import OWN_FILE, read_json_object

_READERS = "what reads the files"  # how far at a time: that decides in which part a document lies
_PART_FILE = replace(OWN_FILE, max_bytes=64 << 20, hint="Delete its directory to make it again.")


@dataclass(frozen=True)
class Worker:
    """One of several independent processes, usually on as many machines."""

    number: int  # from 0
    count: int

    @classmethod
    def of(cls, text: str) -> "Worker":
        """Read ``2/8``, the second of eight.

        Raises:
            RecipeError: It is nothing of that kind.
        """
        match = re.fullmatch(r"([0-9]{1,3})/([0-9]{1,3})", text)
        number, count = (int(match[1]), int(match[2])) if match else (0, 0)
        if not 1 <= number <= count <= NUM_PARTS:
            raise RecipeError(
                f"--worker {escape(repr(text), 40)} is no worker: I/N with 1 <= I <= N <= "
                f"{NUM_PARTS}.",
                "Write 2/8 for the second of eight.",
            )
        return cls(number - 1, count)


@dataclass(frozen=True)
class TokenParts:
    """What a worker leaves behind."""

    path: Path  # the token directory
    tokens: TokenDirectory | None  # None: other workers have yet to make parts
    missing: list[int]  # numbers of these parts, from 0


def prepare_parts(
    data: Data,
    tokenizer: TextTokenizer,
    embedding_rows: int,
    seq_len: int,
    out: Path,
    worker: Worker,
    on_progress: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    shard_ids: int = SHARD_IDS,
    workers: int | None = None,
) -> TokenParts:
    """Make a worker's parts of the tokens, and join all parts if no other is missing.

    The bytes do not depend on the number of workers. A worker that was killed goes on after its
    last complete shard. Arguments, and errors, are those of `prepare_text`, but for one.

    Raises:
        RecipeError: The text cannot be cut: it is a stream of the Hub, a mixture or has a limit.
    """
    _check_divisible(data)
    request = request_of(data, tokenizer, embedding_rows, shard_ids)
    if not (out / MANIFEST).exists():
        parts = _Parts(data, tokenizer, embedding_rows, seq_len, out, shard_ids, on_progress, stop)
        with Encoders(Encoder(tokenizer, data), workers) as encoders:
            for number in range(worker.number, NUM_PARTS, worker.count):
                parts.make(number, encoders, request)
        if missing := missing_parts(out):
            return TokenParts(out, None, missing)
        parts.join(request)
    remove_working_directory(out)
    return TokenParts(out, open_prepared(out, request, seq_len, data), [])


def _check_divisible(data: Data) -> None:
    """Refuse a text of which no worker knows what is to be taken of its part."""
    sources = open_sources(data)
    if data.tokens is not None:
        raise RecipeError(
            f"data.tokens is {data.tokens:,}; where that many end, no worker knows.",
            "Give all workers and the run --set data.tokens=null: train.tokens says how many are "
            "trained on, --set data.sample=0.1 takes a tenth of the documents. Or prepare without "
            "--worker.",
        )
    if len(sources) > 1:
        raise RecipeError(
            f"data.source has {len(sources)} sources with weights; where the first of them runs "
            "out, no worker knows.",
            "Prepare without --worker.",
        )
    for source in sources + held_out_sources(data):
        if not source.files and source.is_remote:
            name = source.part.source
            raise RecipeError(
                f"{name} is a stream of the Hub, which workers cannot cut into parts.",
                f"Download it once: hf download --repo-type dataset {name} --local-dir DIR; "
                "then set data.source to DIR.",
            )


@dataclass(frozen=True)
class _Parts:
    """The parts of one text, which have the same settings; see `prepare_parts`."""

    data: Data
    tokenizer: TextTokenizer
    rows: int
    seq_len: int
    out: Path
    shard_ids: int
    on_progress: Listener
    stop: Callable[[], bool]

    def make(self, number: int, encoders: Encoders, request: dict[str, Any]) -> None:
        """Make one part, or find it made."""
        own_request = request | {_READERS: readers()}

        def build(journal: Journal) -> dict[str, Any]:
            builder = TokenBuilder(
                data=self.data,
                tokenizer=self.tokenizer,
                rows=self.rows,
                seq_len=self.seq_len,
                shard_ids=self.shard_ids,
                request=own_request,
                journal=journal,
                on_progress=self.on_progress,
                stop=self.stop,
                share=(number, NUM_PARTS),
            )
            return builder.build_part(encoders) | {"request": own_request}

        message = f"part {number + 1} of {NUM_PARTS}"
        self.on_progress(Progress("preparing tokens", message=message))
        make_token_directory(part_path(self.out, number), build)
        self._made(number, own_request)

    def join(self, request: dict[str, Any]) -> None:
        """Write the manifest of all parts, unless another worker does."""

        def check() -> None:
            if self.stop():
                raise Interrupted("another worker joins the parts.", "Run the same command again.")

        wait = patiently(self.out, self.on_progress, check)
        with working_directory(self.out, wait) as journal:
            if (self.out / MANIFEST).exists():
                return
            journal.clear()  # of a single process that was stopped: nothing here is gone on with
            own_request = request | {_READERS: readers()}
            parts = [self._made(number, own_request) for number in range(NUM_PARTS)]
            writer = TokenWriter(
                self.out, journal.directory, self.tokenizer, self.rows, shard_ids=1
            )
            _take_shards(writer, self.out, parts)
            val_sources = held_out_sources(self.data, self.tokenizer.directory)
            text = PreparedText(
                self.data,
                self.tokenizer,
                val_sources + open_sources(self.data, self.tokenizer.directory),
                len(val_sources),
                writer,
                _added_up([part["state"] for part in parts]),
                self.on_progress,
                self.stop,
            )
            manifest = text.manifest(self.seq_len)
            write_manifest(self.out, manifest | {"request": request})

    def _made(self, number: int, own_request: dict[str, Any]) -> dict[str, Any]:
        """Read what is known of a finished part, made for the same request."""
        path = part_path(self.out, number)
        part = read_json_object(path / MANIFEST, _PART_FILE)
        before = part["request"].get(_READERS, {})
        if changes := differences(before, own_request[_READERS]):
            raise DataError(
                f"the tokens in {path} were prepared with {describe_differences(changes)}.",
                "All workers need the same versions: install them, or delete that directory and "
                "start its worker again.",
            )
        check_request(path, part["request"], own_request)
        return part


def _take_shards(writer: TokenWriter, out: Path, parts: list[dict[str, Any]]) -> None:
    """Let a writer go on where the parts, one after the other, have ended."""
    for split, shards in writer.splits.items():
        states = [part["splits"][split] for part in parts]
        entries = [
            entry | {"name": f"{part_path(out, number).name}/{entry['name']}"}
            for number, state in enumerate(states)
            for entry in state["entries"]
        ]
        totals = {key: sum(state[key] for state in states) for key in ("num_ids", "documents")}
        shards.restore({"entries": entries, "starts": [], **totals}, b"")
        for number in range(NUM_PARTS):
            writer.hashes[split].take(DocumentHashes(part_path(out, number) / f"hashes-{split}"))


def _added_up(states: list[dict[str, Any]]) -> dict[str, Any]:
    """Add up what the parts have counted, each of their lists source by source."""
    total = dict(states[0])
    for key in ("tokens", "taken", "text_bytes"):
        total[key] = [sum(counts) for counts in zip(*(s[key] for s in states), strict=True)]
    return total | {"val_bytes": sum(state["val_bytes"] for state in states)}
