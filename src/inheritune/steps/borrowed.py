"""A benchmark of another run: read, and taken only where it was measured on the same."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inheritune.data.tokens import TokenDirectory
from inheritune.errors import DataError, RecipeError, escape
from inheritune.system.files import read_json_file

if TYPE_CHECKING:
    from inheritune.steps.reference import Benchmark

__all__ = ["borrow_benchmark", "measured_on", "read_benchmark"]

_WORDS = {
    "reference": "reference",
    "tokenizer": "tokenizer",
    "validation": "validation set",
    "seq_len": "sequence length",
}
_MEASURE = "Set grow.benchmark to null: it is measured then."


def measured_on(reference: str, tokens: TokenDirectory, seq_len: int) -> dict[str, Any]:
    """What two benchmarks must share to mean the same.

    Args:
        reference: Digest of its model directory.
        tokens: Whose validation split it is measured on.
        seq_len: Tokens per window.
    """
    return {
        "reference": reference,
        "tokenizer": tokens.manifest["tokenizer"]["sha256"],
        "validation": tokens.val_fingerprint,
        "seq_len": seq_len,
    }


def read_benchmark(path: Path) -> "Benchmark":
    """Read ``benchmark.json`` of a run.

    Raises:
        DataError: It is missing or broken, or of an inheritune that did not write what it was
            measured on.
    """
    from inheritune.steps.reference import Benchmark

    stored = read_json_file(path)
    try:
        found = Benchmark(**stored["result"])
        numbers = [found.val_loss, found.bits_per_byte, found.flops, found.seconds, *found.windows]
        sound = bool(found.windows) and all(isinstance(n, int | float) for n in numbers)
        known = dict(found.measured_on)
    except (KeyError, TypeError, ValueError) as error:
        raise _no_benchmark(path, "is no benchmark") from error
    if not sound:
        raise _no_benchmark(path, "is no benchmark: its losses are no numbers")
    if known.keys() != _WORDS.keys():
        raise _no_benchmark(path, "does not say what it was measured on")
    return found


def _no_benchmark(path: Path, why: str) -> DataError:
    return DataError(
        f"grow.benchmark: {escape(path)} {why}.",
        "Name the benchmark.json of a run, written by this inheritune, or set grow.benchmark to "
        "null: it is measured then.",
    )


def borrow_benchmark(path: Path, wanted: dict[str, Any], windows: int) -> "Benchmark":
    """The benchmark of another run, for this one.

    Args:
        path: Its ``benchmark.json``.
        wanted: What this run would measure it on, see `measured_on`.
        windows: Validation windows of this run.

    Raises:
        RecipeError: It was measured on something else; what differs is named.
        DataError: It is missing or broken.
    """
    found = read_benchmark(path)
    differ = [key for key in wanted if found.measured_on[key] != wanted[key]]
    if "tokenizer" in differ and "validation" in differ:
        differ.remove("validation")  # of other ids, it cannot be the same
    if differ:
        told = "; ".join(
            f"{_WORDS[key]} {_short(found.measured_on[key])}, here it is {_short(wanted[key])}"
            for key in differ
        )
        raise RecipeError(f"grow.benchmark: {escape(path)} was measured with {told}.", _MEASURE)
    if len(found.windows) != windows:
        raise _no_benchmark(path, f"has {len(found.windows)} windows, not {windows}")
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 16 else f"{text[:12]}..."
