"""Read and write the YAML front matter of model cards, which may come from anybody.

Also pick the fields that the card of a reference hands on to a target: licence and language.
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

_BLOCK = re.compile(r"\A\ufeff?---[ \t]*\r?\n(.*?)^---[ \t]*\r?$\n?", re.DOTALL | re.MULTILINE)
_MAX_CHARACTERS = 4_000_000
_MAX_DEPTH = 30
_MAX_CARD_BYTES = 2_000_000
_MAX_LANGUAGES = 200
_CARRIED = ("license", "license_name", "license_link", "language")


def split_front_matter(text: str) -> tuple[dict[str, Any], str]:
    """Split a README.md into the fields of its front matter and its body.

    There are no fields if the front matter is missing, not a mapping, longer than 4 million
    characters, or has aliases or tags.
    """
    block = _BLOCK.match(text)
    if block is None or len(block[1]) > _MAX_CHARACTERS:
        return {}, text
    body = text[block.end() :]
    yaml = YAML(typ="safe", pure=True)
    try:
        # Events first: aliases can expand to gigabytes, and depth to a crash.
        depth = 0
        for event in yaml.parse(io.StringIO(block[1])):
            name = type(event).__name__
            depth += name.endswith("StartEvent") - name.endswith("EndEvent")
            if isinstance(event, AliasEvent) or getattr(event, "tag", None) or depth > _MAX_DEPTH:
                return {}, body
        fields = YAML(typ="safe", pure=True).load(block[1])
    except (YAMLError, ValueError, RecursionError):
        return {}, body
    return (fields if isinstance(fields, dict) else {}), body


def join_front_matter(fields: Mapping[str, Any], body: str) -> str:
    """Join fields with JSON values and a Markdown body into a README.md.

    Every text is quoted on one line, so that none can end the front matter, and YAML 1.1 and 1.2
    read the same.
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
        # Half a surrogate pair has no UTF-8 bytes.
        return DoubleQuotedScalarString(value.encode("utf-8", "replace").decode("utf-8"))
    return value


def _key(key: object) -> str:
    text = str(key)
    plain = re.fullmatch(r"[a-z][a-z_-]*", text) and text not in {"no", "yes", "on", "off", "null"}
    return text if plain else _quoted(text)


def carried_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Pick the fields of a model's card that also hold for models made from it.

    These are ``license``, ``license_name``, ``license_link`` and ``language``, if they are texts;
    ``language`` may also be a list of texts.
    """
    carried: dict[str, Any] = {}
    for key in _CARRIED:
        value = fields.get(key)
        if key in ("language", "license") and isinstance(value, list):
            texts = [item for item in value if isinstance(item, str)][:_MAX_LANGUAGES]
            value = texts if key == "language" else (texts[0] if len(texts) == 1 else None)
        if value and isinstance(value, str | list):
            carried[key] = value
    return carried


def reference_fields(model: ModelDirectory) -> dict[str, Any]:
    """Return the `carried_fields` of a reference's card; empty without a card.

    The card of a Hub model is downloaded at the model's commit, if the Hub can be reached.
    """
    for path in (model.path / "README.md", *_from_hub(model)):
        with suppress(OSError):
            text = read_regular_file(path, _MAX_CARD_BYTES).decode("utf-8", "replace")
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
