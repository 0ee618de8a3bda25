"""Compare the ids of transformers with those of a sentencepiece model, in a confined process.

Run as ``python -m`` this module by `sandbox.ask`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inheritune.conversion.confinement import serve
from inheritune.errors import first_line

# Texts on which tokenizers have been seen to differ. They hold no special tokens, which stand in
# tokenizer_config.json, where sentencepiece does not look.
_TEXTS = (
    "The small model learned what the large one knew.",
    "It's fine; don't (really) \"quote\" – ok?",
    "two  spaces,   three of them, and a tab\there",
    "1 12 123 4567 3.14159 2026-11-21",
    "line one\nline two\n\nline four\r\nend",
    "Zürich, naïve, Ελλάδα, Привет, 你好世界, こんにちは, ﬁ ½ é",
    "emoji 🙂👩‍🚀, ∑ and 𝔘",
    "def f(x):\n    return x + 1  # code",
    " a leading space",
    "   three leading spaces",
    "a trailing space ",
    "x",
)
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
        expected = [processor.encode(text) for text in _TEXTS]
    except Exception as error:  # tiktoken files are called tokenizer.model, too
        return {"check": f"not checked: it is no sentencepiece model: {first_line(error)}"}
    name, ids, failure = _ids(directory, "AutoTokenizer")
    wrong = [text for text, a, b in zip(_TEXTS, ids, expected, strict=False) if a != b]
    if not failure and not wrong:
        return {"check": f"equal: {name}"}
    differs = failure or (
        f"{name} gives other ids than sentencepiece for {len(wrong)} of {len(_TEXTS)} texts, "
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
    import transformers

    try:
        tokenizer = getattr(transformers, class_name).from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=False
        )
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in _TEXTS]
    except Exception as error:  # whatever it says, it is about these files
        return class_name, [], f"{class_name} cannot read it ({first_line(error)})"
    return type(tokenizer).__name__, ids, ""


if __name__ == "__main__":
    serve(_prepare, _check)
