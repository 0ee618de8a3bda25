"""Draw the token sequences that models are analysed on, the same ones for every model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from inheritune.data.calibration import text_ids
from inheritune.data.sources import describe_text
from inheritune.data.tokenizer import TextTokenizer, open_tokenizer
from inheritune.data.tokens import TokenStream, open_tokens
from inheritune.errors import DataError, RecipeError
from inheritune.model_files.config import max_positions, text_config
from inheritune.recipe.data import Data

if TYPE_CHECKING:
    from inheritune.model_files.directory import ModelDirectory


SEED = 0
BOS_CHOICES = ("auto", "yes", "no")
_DEFAULT_TEXT = Data(source="stdlib")


@dataclass(frozen=True)
class Sequences:
    """Token sequences drawn from a text."""

    ids: NDArray[np.int64]  # (N, T)
    asked: int  # number that was requested; N may be less
    bos: int | None  # first id of each sequence; None: they begin in the middle of the text
    source: str  # token directory or text, in words
    seed: int = SEED  # of the choice of windows

    def as_json(self) -> dict[str, Any]:
        """Return the description that analysis.json and run.json keep."""
        return {
            "sequences": len(self.ids),
            "asked": self.asked,
            "tokens_per_sequence": self.ids.shape[1],
            "seed": self.seed,
            "bos": self.bos is not None,
            "source": self.source,
        }


def sequences_for(
    models: "Sequence[ModelDirectory]",
    count: int,
    length: int,
    *,
    tokens: Path | None = None,
    text: Data | None = None,
    bos: str = "auto",
    seed: int = SEED,
) -> Sequences:
    """Draw sequences with the tokenizer that all models share.

    Args:
        count: N, number of sequences.
        length: T, tokens of each sequence, BOS included.
        tokens: Token directory whose validation set to use.
        text: Text to use instead; None: Python's standard library.
        bos: ``"yes"``: begin each with BOS; ``"no"``: without; ``"auto"``: as the tokenizer does.
        seed: Seed of the choice of windows.

    Raises:
        RecipeError: Both tokens and text are given, or ``bos`` is none of the three.
        DataError: The tokenizers differ, the model has no BOS token, or the text is too short.
    """
    if tokens is not None and text is not None:
        raise RecipeError("--tokens and --text are both given.", "Give one of them.")
    if count < 1 or length < 2:
        raise RecipeError(
            f"{count} sequences of {length} tokens cannot be analysed.",
            "Choose at least one sequence of two tokens.",
        )
    if bos not in BOS_CHOICES:
        raise RecipeError(f"--bos is {bos!r}.", f"Choose {', '.join(BOS_CHOICES)}.")

    # --- BOS, and the text in ids of the models' tokenizer ---
    tokenizer = _shared_tokenizer(models)
    first_id = None if bos == "no" else tokenizer.bos
    if bos == "yes" and first_id is None:
        first_id = _configured_bos(models[0])
    if tokens is not None:
        directory = open_tokens(tokens)
        if directory.manifest["tokenizer"]["sha256"] != tokenizer.sha256:
            raise DataError(
                f"{tokens} was prepared with another tokenizer than that of {models[0].name}.",
                "Prepare tokens with the model's own, or give --text FILE.",
            )
        sequences = draw_sequences(directory.val, count, length, first_id, str(tokens), seed)
    else:
        data = text or _DEFAULT_TEXT
        ids = text_ids(data, tokenizer, count * length)
        sequences = draw_sequences(ids, count, length, first_id, describe_text(data), seed)

    # --- fewer sequences than requested would be another measurement ---
    if len(sequences.ids) < count:
        raise DataError(
            f"{sequences.source} has {len(sequences.ids)} sequences of {length} tokens, "
            f"{count} are asked for.",
            "Give more text, or ask for fewer or shorter sequences.",
        )
    return sequences


def _shared_tokenizer(models: "Sequence[ModelDirectory]") -> TextTokenizer:
    tokenizers = [open_tokenizer(model.path) for model in models]
    for model, tokenizer in zip(models, tokenizers, strict=True):
        if tokenizer.sha256 != tokenizers[0].sha256:
            raise DataError(
                f"{model.name} has another tokenizer than {models[0].name}.",
                "Compare a reference with a target that was made from it.",
            )
    return tokenizers[0]


def _configured_bos(model: "ModelDirectory") -> int:
    bos = text_config(model.config).get("bos_token_id")
    if not isinstance(bos, int):
        raise DataError(f"{model.name} names no BOS token.", "Leave --bos out.")
    return bos


def draw_sequences(
    stream: TokenStream | NDArray[np.int64],
    count: int,
    length: int,
    bos: int | None,
    source: str,
    seed: int = SEED,
) -> Sequences:
    """Draw windows that do not overlap, by a seed, in the order of the text.

    Args:
        count: Number of windows; fewer are returned where the stream is too short.
        length: T, tokens of each window, BOS included.
        bos: First id of each window; None: text only.
        source: Name of the stream, for the record.
        seed: Seed of the choice of windows.
    """
    text_length = length - (bos is not None)
    total = (len(stream) if isinstance(stream, np.ndarray) else stream.num_ids) // text_length
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    ids = np.empty((len(chosen), length), dtype=np.int64)
    for row, window in zip(ids, np.sort(chosen), strict=True):
        start = int(window) * text_length
        stop = start + text_length
        row[length - text_length :] = (
            stream[start:stop] if isinstance(stream, np.ndarray) else stream.ids(start, stop)
        )
        if bos is not None:
            row[0] = bos
    return Sequences(ids, count, bos, source, seed)


def refuse_long_sequences(model: "ModelDirectory", sequences: Sequences) -> None:
    """Refuse sequences that are longer than the positions of a model."""
    length, limit = sequences.ids.shape[1], max_positions(model.config)
    if limit is not None and length > limit:
        raise DataError(
            f"sequences of {length} tokens are asked for, but {model.name} has {limit} positions.",
            f"Ask for {limit} tokens per sequence, or less.",
        )
