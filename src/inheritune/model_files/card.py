"""The YAML at the head of a model card: read without trust, written so that it reads back equal.

What a reference's own card says that has to be carried over: licence, language, data.
"""

import io
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from inheritune.model_files.directory import ModelDirectory
from inheritune.system.reading import read_regular_file

__all__ = ["carried_fields", "join_front_matter", "reference_fields", "split_front_matter"]

_BLOCK = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_MOST_CHARACTERS = 4_000_000
_DEEPEST = 30


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """The fields of a card, and what follows them.

    Args:
        text: A whole README.md, of anybody.

    Returns:
        Fields and body. No fields where there is no front matter, or none that is a plain mapping:
        aliases, tags, and more than 4 million characters are not read.
    """
    found = _BLOCK.match(text)
    if found is None or len(found[1]) > _MOST_CHARACTERS:
        return {}, text
    body = text[found.end() :]
    yaml = YAML(typ="safe", pure=True)
    try:
        depth = 0
        for event in yaml.parse(io.StringIO(found[1])):
            name = type(event).__name__
            depth += name.endswith("StartEvent") - name.endswith("EndEvent")
            if isinstance(event, AliasEvent) or getattr(event, "tag", None) or depth > _DEEPEST:
                return {}, body
        fields = YAML(typ="safe", pure=True).load(found[1])
    except (YAMLError, ValueError, RecursionError):
        return {}, body
    return (fields if isinstance(fields, dict) else {}), body


def join_front_matter(fields: Mapping[str, Any], body: str) -> str:
    """A card of fields and body.

    Args:
        fields: Values as in JSON. Every text is quoted, on one line: none can end the block, and
            YAML 1.1 and 1.2 read the same.
        body: Markdown.
    """
    yaml = YAML(pure=True)
    yaml.width = 2**31
    yaml.allow_unicode = False
    out = io.StringIO()
    yaml.dump(_quoted(fields), out)
    return f"---\n{out.getvalue()}---\n{body}"


def _quoted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_key(key): _quoted(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(item) for item in value]
    if isinstance(value, str):
        # What UTF-8 has no bytes for cannot stand in a file.
        whole = value.encode("utf-8", "replace").decode("utf-8")
        return DoubleQuotedScalarString(whole)
    return value


def _key(key: object) -> str:
    text = str(key)
    plain = re.fullmatch(r"[a-z][a-z_-]*", text) and text not in {"no", "yes", "on", "off", "null"}
    return text if plain else _quoted(text)


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
