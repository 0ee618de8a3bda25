"""Turn text into token shards, or open those that are there and fit the recipe."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from inheritune.data.document import held_out, sampled
from inheritune.data.encoding import Encoder, Encoders
from inheritune.data.import_tokens import IMPORTED
from inheritune.data.input_files import STDLIB
from inheritune.data.journal import Journal, make_token_directory
from inheritune.data.shards import SHARD_IDS
from inheritune.data.sources import held_out_sources, open_sources
from inheritune.data.token_builder import TokenBuilder
from inheritune.data.tokenizer import TextTokenizer
from inheritune.data.tokens import TokenDirectory, canonical_digest, check_length, open_tokens
from inheritune.errors import DataError, RecipeError
from inheritune.recipe.data import Data
from inheritune.system.inputs import describe_differences
from inheritune.system.progress import Listener, silent

_TEXT = "the text itself"
# Younger than the first prepared tokens, which do not name them.
_NEW_KEYS = {
    *("config", "split", "revision", "sample", "val_sample"),
    *("messages", "format", "separator"),
}


def training_texts(data: Data) -> Iterator[str]:
    """Yield the texts of the documents that are not held out, source after source."""
    for source in open_sources(data):
        for _, document in source.read():
            if sampled(document, data.sample) and not held_out(document, data):
                yield document.text


def prepare_text(
    data: Data,
    tokenizer: TextTokenizer,
    embedding_rows: int,
    seq_len: int,
    out: Path,
    on_progress: Listener = silent,
    stop: Callable[[], bool] = lambda: False,
    shard_ids: int = SHARD_IDS,
    workers: int | None = None,
    start_method: str = "spawn",
) -> TokenDirectory:
    """Turn text into token shards, or open them where they are already there.

    Documents are joined as ``[BOS] ids EOS`` in source order, or mixed by weight. The directory
    appears complete, by one rename, or not at all; the same input gives the same bytes, however
    many processes work and however often they are killed. What is interrupted goes on after the
    last complete shard.

    Args:
        tokenizer: All of its ids must have a row in the embedding.
        embedding_rows: Rows of the model's embedding; decides the width of an id.
        seq_len: Tokens per sequence; each split must hold one sequence at least.
        on_progress: Receives the documents read, then the tokens compared.
        stop: Stop flag, read before every batch.
        shard_ids: Ids in a full shard; decides memory: 2 or 4 bytes each.
        workers: Processes that encode; 0: this one. None: one for each core, where there is
            enough text to be worth it.
        start_method: How workers are started: ``"spawn"``, ``"fork"`` or ``"forkserver"``.

    Raises:
        DataError: The text is missing, broken or too short, or ``out`` was prepared from other
            files or for another tokenizer.
        RecipeError: ``out`` was prepared with other values of the recipe's section.
        Interrupted: ``stop`` returned true.
        MachineError: The disk is full, a worker ended, or another process prepares the same tokens.
        MissingExtraError: A source needs a package that is not installed.
    """
    request = request_of(data, tokenizer, embedding_rows, shard_ids)

    def build(journal: Journal) -> dict[str, Any]:
        with Encoders(Encoder(tokenizer, data), workers, start_method) as encoders:
            builder = TokenBuilder(
                data=data,
                tokenizer=tokenizer,
                rows=embedding_rows,
                seq_len=seq_len,
                shard_ids=shard_ids,
                request=request,
                journal=journal,
                on_progress=on_progress,
                stop=stop,
            )
            return builder.build(encoders) | {"request": request}

    make_token_directory(out, build)
    return open_prepared(out, request, seq_len, data)


def open_prepared(out: Path, request: dict[str, Any], seq_len: int, data: Data) -> TokenDirectory:
    """Open finished tokens, and refuse those that were made otherwise or are too few.

    Args:
        request: What decides the tokens, made by `request_of`.
    """
    tokens = open_tokens(out)
    check_request(out, tokens.manifest["request"], request)
    check_length(tokens.train.num_ids, tokens.val.num_ids, seq_len, data)
    return tokens


def request_of(
    data: Data, tokenizer: TextTokenizer, embedding_rows: int, shard_ids: int
) -> dict[str, Any]:
    """Describe everything that decides the tokens, to compare it with finished ones.

    Raises:
        DataError: The tokenizer has an id without a row in the embedding.
    """
    if tokenizer.rows > embedding_rows:
        raise DataError(
            f"the tokenizer in {tokenizer.directory} has ids up to {tokenizer.rows - 1}, the "
            f"embedding has {embedding_rows} rows.",
            "Use the tokenizer that belongs to the model.",
        )
    settings = data.model_dump(mode="json", exclude={"allow_repeat"})
    return {
        f"data.{key}": value
        for key, value in settings.items()
        if key not in _NEW_KEYS or value is not None
    } | {
        "the tokenizer": [tokenizer.sha256, tokenizer.bos, tokenizer.eos],
        "embedding rows": embedding_rows,
        "ids in a shard": shard_ids,
        _TEXT: _listing(data),
    }


def _listing(data: Data) -> str | None:
    """Digest the names and sizes of the input files; None where they say nothing.

    A run that is copied elsewhere goes on with its tokens: there, the library of another Python
    or the absence of the files is no sign that they are out of date.
    """
    sources = [s for s in open_sources(data) + held_out_sources(data) if not s.is_remote]
    try:
        files = [f for s in sources if s.part.source not in STDLIB for f in s.files]
        sizes = [[file.name, file.path.stat().st_size] for file in files]
    except (DataError, OSError):
        return None
    return canonical_digest(sizes) if sizes else None


def check_request(path: Path, before: dict[str, Any], request: dict[str, Any]) -> None:
    """Refuse tokens in ``path`` that were made for another request than this one."""
    if IMPORTED in before:  # what a recipe would have read says nothing of these
        request = {key: request[key] for key in ("the tokenizer", "embedding rows")}
        before = {key: before.get(key) for key in request} | {_TEXT: None}
    changed = [key for key in {**request, **before} if before.get(key) != request.get(key)]
    if None in (request.get(_TEXT), before.get(_TEXT)):
        changed = [key for key in changed if key != _TEXT]
    settings = [(k, before.get(k), request.get(k)) for k in changed if k.startswith("data.")]
    if settings:  # the recipe, and not what it names, has changed
        raise RecipeError(
            f"the tokens in {path} were prepared with {describe_differences(settings)}.",
            "Put it back, or give the run another name: --set name=...",
        )
    if changed:
        raise DataError(
            f"the tokens in {path} were prepared otherwise: {', '.join(changed)} changed.",
            "Delete that directory to prepare them again, or choose another run.",
        )
