"""Encode probe texts as a user of transformers does. Runs in `class_process`, or where it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inheritune.errors import first_line

# Texts on which tokenizers have been seen to differ. They hold no special tokens, which stand in
# tokenizer_config.json, where sentencepiece does not look.
PROBES = (
    "The small model learned what the large one knew.",
    "It's fine; don't (really) \"quote\" – ok? WE'RE SURE, DON'T",
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
# Classes of transformers, in the order in which they are tried: what users write, and the one that
# follows tokenizer.json in everything.
LOADERS = ("AutoTokenizer", "PreTrainedTokenizerFast")


def load_tokenizer(directory: Path, loader: str, **options: Any) -> Any:
    """Load the tokenizer of a local model directory by a class of transformers, running no code."""
    import transformers

    return getattr(transformers, loader).from_pretrained(
        str(directory), local_files_only=True, trust_remote_code=False, **options
    )


def token_ids(
    directory: str, texts: Sequence[str], expected: Sequence[Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """Encode texts with each of `LOADERS` until one gives the expected ids, none of them special.

    Returns:
        By loader: ``class``, the name of the class that it chose; ``ids`` of each text; ``begins``,
        the id that the class puts before a text by itself, or None; and ``error``, why it cannot
        read the tokenizer, or an empty text.
    """
    has_json = (Path(directory) / "tokenizer.json").is_file()
    loaders = LOADERS if has_json else LOADERS[:1]
    answers: dict[str, dict[str, Any]] = {}
    for loader in loaders:
        answers[loader] = _ids(Path(directory), loader, texts)
        if answers[loader]["ids"] == expected:  # a large tokenizer takes seconds to load
            break
    return answers


def _ids(directory: Path, loader: str, texts: Sequence[str]) -> dict[str, Any]:
    try:
        tokenizer = load_tokenizer(directory, loader)
        ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
        plain, whole = tokenizer.encode("x", add_special_tokens=False), tokenizer.encode("x")
    except Exception as error:  # whatever it says, it is about these files
        return {"class": loader, "ids": [], "begins": None, "error": first_line(error)}
    begins = whole[0] if whole[:1] != plain[:1] else None
    return {"class": type(tokenizer).__name__, "ids": ids, "begins": begins, "error": ""}
