"""Compare the ids that train a model with those that transformers gives its users."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inheritune.data.tokenizer import TextTokenizer, open_tokenizer
from inheritune.errors import DataError, SourceError, escape
from inheritune.surgery.class_check.ask_class import ask_class
from inheritune.surgery.class_check.tokenizer_ids import (
    LOADERS,
    PROBES,
    load_tokenizer,
    token_ids,
)
from inheritune.system.files import sha256

_FAST = LOADERS[1]
_LARGEST_FILE = 64 * 2**20  # of a tokenizer; the largest known has 35 MB


@dataclass(frozen=True)
class Tokenization:
    """How transformers reads the tokenizer of a model directory, beside how text is prepared."""

    loader: str  # class of transformers by which the ids are those of the training, if one does
    # Whether BOS must be asked for or forbidden to have it as in training; None: it is by itself.
    add_bos: bool | None
    puts_bos: bool  # whether prepared documents begin with BOS
    differences: tuple[str, ...]  # sentences, each with the way out; empty: all is equal


def compare_tokenization(directory: Path) -> Tokenization | None:
    """Compare the ids of probe texts, and BOS, in a process of its own.

    None: there is no tokenizer, or it is too large to be compared.
    """
    return _compare(directory, lambda **v: ask_class("token_ids", _contents(directory), **v))


def _contents(directory: Path) -> list[list[Any]]:
    """Describe the files of a model directory by which transformers may read its tokenizer."""
    about: list[list[Any]] = []
    # It reads whatever files its class names; of weights, names and sizes suffice.
    for path in sorted(p for p in directory.iterdir() if p.is_file()):
        size = path.stat().st_size
        is_small = size <= _LARGEST_FILE and path.suffix != ".safetensors"
        about.append([path.name, sha256(path) if is_small else size])
    return about


def load_as_trained(directory: Path) -> Any:
    """Load transformers' tokenizer of a model directory, with ids and BOS as in training."""
    found = compare_here(directory)
    if found is None:
        return load_tokenizer(directory, LOADERS[0])
    options = {} if found.add_bos is None else {"add_bos_token": found.add_bos}
    return load_tokenizer(directory, found.loader, **options)


def compare_here(directory: Path) -> Tokenization | None:
    """Compare as `compare_tokenization` does, in this process, which needs transformers anyway."""
    return _compare(directory, token_ids)


def _compare(directory: Path, ask: Callable[..., Any]) -> Tokenization | None:
    try:
        tokenizer = open_tokenizer(directory)
    except DataError:  # whoever needs it says so
        return None
    expected, place = tokenizer.encode_batch(PROBES), str(directory.resolve())
    try:
        answers = ask(directory=place, texts=list(PROBES), expected=expected)
    except SourceError:  # the process needed too much memory: nothing is known
        return None
    usual = answers[LOADERS[0]]
    same = [loader for loader, answer in answers.items() if answer["ids"] == expected]
    loader = same[0] if same else LOADERS[0]
    begins = answers[loader]["begins"]
    add_bos = None if begins == tokenizer.bos else tokenizer.bos is not None
    sentences = [*_of_ids(usual, expected, loader), *_of_bos(usual, tokenizer)]
    return Tokenization(loader, add_bos, tokenizer.bos is not None, tuple(sentences))


def _of_ids(usual: dict[str, Any], expected: list[list[int]], loader: str) -> list[str]:
    if usual["ids"] == expected:
        return []
    if usual["error"]:
        what = f"AutoTokenizer of transformers cannot read the tokenizer ({usual['error']})"
    else:
        pairs = zip(PROBES, usual["ids"], expected, strict=True)
        wrong = [text for text, ids, trained in pairs if ids != trained]
        what = (
            f"{usual['class']} of transformers gives other ids than text is prepared with for "
            f"{len(wrong)} of {len(PROBES)} probe texts, such as {escape(repr(wrong[0]), 60)}"
        )
    if loader != _FAST:
        return [f"{what}. No class that was tried gives those: use the tokenizers library."]
    return [f"{what}. Load it with {_FAST}, as tasks and samples do here."]


def _of_bos(usual: dict[str, Any], tokenizer: TextTokenizer) -> list[str]:
    if usual["error"] or usual["begins"] == tokenizer.bos:
        return []
    trained = "none" if tokenizer.bos is None else f"BOS, id {tokenizer.bos},"
    users = "none" if usual["begins"] is None else f"id {usual['begins']}"
    return [
        f"Documents are prepared with {trained} before them, and {usual['class']} of transformers "
        f"puts {users} before a text: load it with add_bos_token={tokenizer.bos is not None}, as "
        "tasks and samples do here."
    ]
