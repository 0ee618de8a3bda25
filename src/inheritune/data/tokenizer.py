"""Open the tokenizer of a model directory, and train a small one on the user's text."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from inheritune.data.sentencepiece_model import SentencePieceModel
from inheritune.errors import DataError, SourceError, escape, reason_of
from inheritune.model_files.config import text_config
from inheritune.model_files.refusals import MAX_TOKENIZER_BYTES
from inheritune.system.files import make_directory, write_bytes, write_json
from inheritune.system.reading import read_regular_file
from inheritune.system.strict_json import MODEL_FILE, read_json_object

END_OF_TEXT = "<|endoftext|>"
_PIECE = 1 << 20  # characters encoded at a time
# Tokenizers that only a class in Python reads; where one lies, saving again writes no other.
_UNREAD = (
    *(
        "*tiktoken*",
        "tekken.json",
        "tokenizer.jsonl",
        "rwkv_vocab*.txt",
        "spm.model",
        "spiece.model",
    ),
    *("bpe.codes", "tokenizer.model.*", "vocab.txt", "vocab.json"),
)
_CONFIG_FILE = replace(MODEL_FILE, error=DataError, hint="Fetch the file again.")


@dataclass(frozen=True)
class TextTokenizer:
    """Encodes text to ids and decodes them, adding no special token that nobody asked for."""

    directory: Path  # the model directory that it was read from
    sha256: str  # of ``tokenizer.json``, or of ``tokenizer.model`` where there is only that
    rows: int  # largest possible id, plus one
    bos: int | None  # put before every document; None where this tokenizer puts none
    eos: int  # put after every document
    _tokenizer: Tokenizer | SentencePieceModel = field(repr=False, compare=False)

    def encode_batch(
        self, texts: Sequence[str], special_tokens_in_text: bool = False
    ) -> list[list[int]]:
        """Encode texts in parallel, with neither BOS nor EOS.

        Args:
            special_tokens_in_text: Whether a literal ``<|endoftext|>`` becomes the special token,
                or is encoded as the characters that it is written with.

        Returns:
            One list of ids, each in [0, rows), for each text.
        """
        if isinstance(self._tokenizer, SentencePieceModel):
            return self._tokenizer.encode_batch(texts, special_tokens_in_text)
        self._tokenizer.encode_special_tokens = not special_tokens_in_text
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encoded]

    def encode_long(self, text: str, special_tokens_in_text: bool = False) -> NDArray[np.int64]:
        """Encode a text of any length to (n,) ids, with neither BOS nor EOS.

        Beyond 2^20 characters it is encoded piece by piece: an encoding takes a hundred times the
        memory of its ids.
        """
        pieces = _pieces(text, _PIECE)
        if isinstance(self._tokenizer, SentencePieceModel):
            parts = self._tokenizer.encode_pieces(pieces)
            if parts is None or special_tokens_in_text:
                parts = self.encode_batch([text], special_tokens_in_text)
        else:
            parts = (self.encode_batch([piece], special_tokens_in_text)[0] for piece in pieces)
        arrays = [np.array(part, dtype=np.int64) for part in parts]
        return np.concatenate([np.empty(0, dtype=np.int64), *arrays])

    def decode(self, ids: Sequence[int]) -> str:
        """Decode ids to text, special tokens left out."""
        if isinstance(self._tokenizer, SentencePieceModel):
            return self._tokenizer.decode(ids)
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text


def open_tokenizer(directory: Path) -> TextTokenizer:
    """Read the tokenizer of a Hugging Face model directory.

    Args:
        directory: Holds ``tokenizer.json``, or a sentencepiece ``tokenizer.model``;
            ``tokenizer_config.json``, ``special_tokens_map.json`` and ``config.json`` say what BOS
            and EOS are, in this order, and last the sentencepiece model itself.

    Raises:
        DataError: There is no tokenizer, it cannot be read, or it has no end-of-text token.
    """
    path, content = _tokenizer_file(directory)
    if path.name == "tokenizer.model":
        tokenizer: Tokenizer | SentencePieceModel = (pieces := SentencePieceModel(path, content))
        rows = pieces.rows
    else:
        tokenizer = _fast_tokenizer(path, content)
        rows = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    eos = _special_id(directory, tokenizer, "eos")
    if eos is None or not 0 <= eos < rows:
        raise DataError(
            f"the tokenizer in {directory} names no end-of-text token that it has.",
            "Set eos_token in tokenizer_config.json.",
        )
    bos = _special_id(directory, tokenizer, "bos")
    if bos is None or not _puts_bos(directory, tokenizer, bos):
        bos = None
    return TextTokenizer(directory, hashlib.sha256(content).hexdigest(), rows, bos, eos, tokenizer)


def embedding_rows(model: Path, tokenizer: TextTokenizer) -> int:
    """Return the rows of a model's embedding, as its config says; without one, the tokenizer's.

    Raises:
        SourceError: The config cannot be read, or its ``vocab_size`` is no number of rows.
    """
    path = model / "config.json"
    if not path.exists():
        return tokenizer.rows
    rows = text_config(read_json_object(path, MODEL_FILE)).get("vocab_size", tokenizer.rows)
    if type(rows) is not int or not 0 < rows < 2**32:  # an id has four bytes at most
        raise SourceError(
            f"{path} has the vocab_size {escape(rows, 60)}, which is no number of rows.",
            "Fetch the file again.",
        )
    return rows


def _tokenizer_file(directory: Path) -> tuple[Path, bytes]:
    for name in ("tokenizer.json", "tokenizer.model"):
        try:
            return directory / name, read_regular_file(directory / name, MAX_TOKENIZER_BYTES)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(
                f"cannot read {directory / name}: {reason_of(error)}.", "Give a model directory."
            ) from error
    if other := next((n for n in _UNREAD if any(directory.glob(n))), None):
        name = next(directory.glob(other)).name
        raise DataError(
            f"the tokenizer of {directory} is {escape(name)}; only tokenizer.json and a "
            "sentencepiece tokenizer.model are read.",
            "Put a tokenizer.json of the same tokens beside it: look for one published by others, "
            "or convert it with transformers.convert_slow_tokenizer.",
        )
    raise DataError(
        f"there is no tokenizer.json in {directory}, and no tokenizer.model.",
        "Save one beside the model: AutoTokenizer.from_pretrained(...).save_pretrained(...).",
    )


def _fast_tokenizer(path: Path, content: bytes) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises plain Exception for any fault in the file
        raise DataError(f"cannot read {path}: {error}.", "Fetch the file again.") from error
    # Both may stand in the file, and would cut or fill documents without a word.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_documents(
    tokenizer: TextTokenizer, texts: Sequence[str], special_tokens_in_text: bool = False
) -> Iterator[NDArray[np.int64]]:
    """Encode each document as ``[BOS] ids EOS``.

    Documents may have any length; see `TextTokenizer.encode_long`. Where special tokens in the text
    count, a BOS or EOS that it begins or ends with is not put again.

    Yields:
        (n,) int64 for each document, in order.
    """
    short = [text for text in texts if len(text) <= _PIECE]
    encoded = iter(tokenizer.encode_batch(short, special_tokens_in_text))
    for text in texts:
        if len(text) <= _PIECE:
            ids = np.array(next(encoded), dtype=np.int64)
        else:
            ids = tokenizer.encode_long(text, special_tokens_in_text)
        begin = [] if tokenizer.bos is None else [tokenizer.bos]
        end = [tokenizer.eos]
        if special_tokens_in_text:
            begin = [] if ids[:1].tolist() == begin else begin
            end = [] if ids[-1:].tolist() == end else end
        yield np.concatenate([np.array(begin, dtype=np.int64), ids, np.array(end, dtype=np.int64)])


def train_tokenizer(texts: Iterable[str], vocab_size: int, out: Path) -> None:
    """Train a byte-level BPE tokenizer; the same texts give the same bytes.

    Args:
        texts: Training documents, read once and one at a time; never the held-out ones.
        vocab_size: Entries, at least 257: one special token and 256 bytes come first.
        out: Directory, made if missing; ``tokenizer.json`` and ``tokenizer_config.json`` are
            written into it, in the form that transformers reads.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    make_directory(out)
    write_json(out / "tokenizer_config.json", config)
    # Last: a directory with a tokenizer.json is a finished one.
    write_bytes(out / "tokenizer.json", f"{tokenizer.to_str(pretty=True)}\n".encode())


def _pieces(text: str, length: int) -> Iterator[str]:
    """Cut a long text into pieces, at line ends between two visible characters.

    There a byte-level BPE tokenizer begins a new word in any case, so that its ids stay the same.
    Where no such place is found, the cut falls after ``length`` characters.
    """
    start = 0
    while start < len(text):
        stop = min(start + length, len(text))
        cut = stop
        while stop < len(text) and (cut := text.rfind("\n", start + 1, cut)) >= 0:
            if not text[cut - 1].isspace() and not text[cut + 1].isspace():
                stop = cut + 1
                break
        yield text[start:stop]
        start = stop


def _special_id(
    directory: Path, tokenizer: Tokenizer | SentencePieceModel, name: str
) -> int | None:
    """Find the id of BOS or EOS in the first file that names it."""
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        token = _read(directory / file).get(f"{name}_token")
        content = token.get("content") if isinstance(token, dict) else token
        if isinstance(content, str) and (token_id := tokenizer.token_to_id(content)) is not None:
            return int(token_id)
    ids = _read(directory / "config.json").get(f"{name}_token_id")
    first = ids[0] if isinstance(ids, list) and ids else ids
    if isinstance(first, int):
        return first
    return tokenizer.special_id(name) if isinstance(tokenizer, SentencePieceModel) else None


def _puts_bos(directory: Path, tokenizer: Tokenizer | SentencePieceModel, bos: int) -> bool:
    config = _read(directory / "tokenizer_config.json")
    if isinstance(puts_bos := config.get("add_bos_token"), bool):
        return puts_bos
    if isinstance(tokenizer, SentencePieceModel):
        # sentencepiece says nothing of it; T5's class is the one that puts none.
        return not str(config.get("tokenizer_class", "")).startswith(("T5", "MT5", "UMT5"))
    ids: list[int] = tokenizer.encode("a", add_special_tokens=True).ids  # what its template does
    return ids[:1] == [bos]


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, _CONFIG_FILE) if path.exists() else {}
