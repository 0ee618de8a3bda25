"""Encode with a ``tokenizer.model`` through sentencepiece itself: exactly its ids."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from inheritune.errors import DataError, RecipeError


class SentencePieceModel:
    """An opened sentencepiece model.

    Args:
        path: The ``tokenizer.model``, for messages.
        content: Bytes of the file.

    Attributes:
        rows: Number of pieces; each has an id.

    Raises:
        DataError: The file is no sentencepiece model; tiktoken files have that name, too.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._path = path
        try:
            self._model: Any = SentencePieceProcessor(model_proto=content)
            self.rows: int = self._model.get_piece_size()
        except Exception as error:  # the library raises RuntimeError and more
            raise DataError(
                f"cannot read {path}: it is no sentencepiece model.",
                "Save a tokenizer.json beside the model.",
            ) from error

    def encode_batch(self, texts: Sequence[str], special_tokens_in_text: bool) -> list[list[int]]:
        """Encode each text to a list of ids.

        Raises:
            RecipeError: ``special_tokens_in_text`` is true, which sentencepiece cannot do.
        """
        if special_tokens_in_text:
            raise RecipeError(
                f"data.special_tokens_in_text is true, and {self._path} is a sentencepiece model, "
                "which takes all text as text.",
                "Set it to false.",
            )
        ids: list[list[int]] = self._model.encode(list(texts), num_threads=1)
        return ids

    def encode_pieces(self, pieces: Iterable[str]) -> Iterable[list[int]] | None:
        """Encode a long text that was cut after line ends, to the same ids as the whole.

        Returns:
            None where this model does not allow a cut: then the whole text has to be encoded.
        """
        return self._joined(pieces) if self._can_be_cut else None

    def _joined(self, pieces: Iterable[str]) -> Iterable[list[int]]:
        line_end: list[int] = self._model.encode("\n")
        part, is_first = "", True
        for piece in chain(pieces, [""]):
            part += piece
            if piece and not piece.endswith("\n"):
                continue  # the cut is within a line, where it would change ids
            # Alone, what follows would begin with a space of its own, as a text does.
            ids: list[int] = self._model.encode(part if is_first else "\n" + part)
            yield ids if is_first else ids[len(line_end) :]
            part, is_first = "", False

    @cached_property
    def _can_be_cut(self) -> bool:
        model = self._model
        line_end = model.encode("\n")
        # A line end that is a byte of its own belongs to no longer piece and is merged with none.
        alone = bool(line_end) and model.is_byte(line_end[-1])
        if not alone or any("\n" in model.id_to_piece(i) for i in range(self.rows)):
            return False
        whole, second = model.encode("a\nb"), model.encode("\nb")
        return bool(whole == model.encode("a\n") + second[len(line_end) :])

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text; control pieces such as BOS and EOS have none."""
        text: str = self._model.decode([i for i in ids if not self._model.is_control(i)])
        return text

    def token_to_id(self, piece: str) -> int | None:
        """Return the id of a piece; None where there is no such piece."""
        token_id: int = self._model.piece_to_id(piece)
        return token_id if self._model.id_to_piece(token_id) == piece else None

    def special_id(self, name: str) -> int | None:
        """Return the model's own ``"bos"`` or ``"eos"``; None where it has none."""
        token_id: int = self._model.bos_id() if name == "bos" else self._model.eos_id()
        return token_id if token_id >= 0 else None
