"""The YAML at the head of a model card: read without trust, written so that it reads back equal."""

import io
import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

__all__ = ["join_front_matter", "split_front_matter"]

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
