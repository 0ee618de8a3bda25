"""Compare the ids of transformers with those of a sentencepiece model, in a confined process.

Run as ``python -m`` this module by `sandbox.ask`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inheritune.conversion.confinement import serve
from inheritune.errors import first_line
from inheritune.surgery.class_check.tokenizer_ids import PROBES, load_tokenizer

# In the order in which they are proposed.
_CLASSES = ("LlamaTokenizer", "T5Tokenizer", "GemmaTokenizer", "SentencePieceBackend")


def _prepare(_: Mapping[str, Any]) -> str:
    """Import the libraries; return why that failed, or an empty text."""
    try:
        import sentencepiece  # noqa: F401 - before the guard, so that it may still open libraries
        from transformers import AutoTokenizer  # noqa: F401
    except ImportError as error:
        return first_line(error)
    return ""


def _check(request: Mapping[str, Any], reason: str) -> dict[str, str]:
    if reason:
        return {"check": f"not checked: {reason}"}
    from sentencepiece import SentencePieceProcessor

    directory = Path(request["directory"])
    try:
        processor = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
        expected = [processor.encode(text) for text in PROBES]
    except Exception as error:  # tiktoken files are called tokenizer.model, too
        return {"check": f"not checked: it is no sentencepiece model: {first_line(error)}"}
    name, ids, failure = _ids(directory, "AutoTokenizer")
    wrong = [text for text, a, b in zip(PROBES, ids, expected, strict=False) if a != b]
    if not failure and not wrong:
        return {"check": f"equal: {name}"}
    differs = failure or (
        f"{name} gives other ids than sentencepiece for {len(wrong)} of {len(PROBES)} texts, "
        f"such as {wrong[0]!r}"
    )
    equal = [c for c in _CLASSES if c != name and _ids(directory, c)[1] == expected]
    way_out = (
        f'ask for {equal[0]}, which gives its ids: "tokenizer_class": "{equal[0]}" in '
        "tokenizer_config.json"
        if equal
        else "no class of transformers that was tried gives its ids: use sentencepiece itself"
    )
    return {"check": f"differs: {differs}; {way_out}."}


def _ids(directory: Path, class_name: str) -> tuple[str, Sequence[list[int]], str]:
    """Return the name of the loaded class, the ids of each text, and the failure or ``""``."""
    try:
        tokenizer = load_tokenizer(directory, class_name)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in PROBES]
    except Exception as error:  # whatever it says, it is about these files
        return class_name, [], f"{class_name} cannot read it ({first_line(error)})"
    return type(tokenizer).__name__, ids, ""


if __name__ == "__main__":
    serve(_prepare, _check)
