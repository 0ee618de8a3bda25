"""What a reference's own card says that has to be carried over: licence, language, data."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from inheritune.model_files.card import split_front_matter
from inheritune.model_files.directory import ModelDirectory
from inheritune.system.reading import read_regular_file

__all__ = ["carried_fields", "reference_fields"]

_CARRIED = ("license", "license_name", "license_link", "language")
_MOST_BYTES = 2_000_000
_MOST_LANGUAGES = 200


def carried_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Those fields of a card that hold for what is made of its model, where they make sense.

    Args:
        fields: The front matter of a card, of anybody.

    Returns:
        ``license``, ``license_name``, ``license_link`` and ``language``; texts, or for a language
        a list of texts.
    """
    found: dict[str, Any] = {}
    for key in _CARRIED:
        value = fields.get(key)
        if key in ("language", "license") and isinstance(value, list):
            texts = [item for item in value if isinstance(item, str)][:_MOST_LANGUAGES]
            value = texts if key == "language" else (texts[0] if len(texts) == 1 else None)
        if value and isinstance(value, str | list):
            found[key] = value
    return found


def reference_fields(model: ModelDirectory) -> dict[str, Any]:
    """The fields of a reference's card that are carried over; none where there is no card.

    Args:
        model: The reference. The card of a Hub model is looked up at its commit; where that is
            not possible, nothing is known of it.
    """
    for path in (model.path / "README.md", *_from_hub(model)):
        with suppress(OSError):
            text = read_regular_file(path, _MOST_BYTES).decode("utf-8", "replace")
            return carried_fields(split_front_matter(text)[0])
    return {}


def _from_hub(model: ModelDirectory) -> list[Path]:
    if model.revision is None or (model.path / "README.md").is_file():
        return []
    from huggingface_hub import hf_hub_download

    try:
        return [Path(hf_hub_download(model.name, "README.md", revision=model.revision))]
    except Exception:  # a card is an extra: no network, or none there
        return []
