"""Clean run.json for embedding in a page: nothing private, nothing that runs."""

import json
import math
import re
from typing import Any

from inheritune.system.secrets import mask

_MAX_TEXT = 2_000
_MAX_LIST = 400
_MAX_DEPTH = 30
_ABSOLUTE_PATH = re.compile(
    r"(?:file://|(?<![\w.\\/]))(?:/(?:[^\s/\\'\"<>|:]+/)+|[A-Za-z]:[\\/](?:[^\s/\\'\"<>|:]+[\\/])*)"
)
# Prompts and generated text are shown as they are: they hold no path of this machine.
_VERBATIM = {"samples", "prompts"}


def presentable(value: Any, depth: int = 0, verbatim: bool = False) -> Any:
    """Copy JSON without absolute paths, credentials and numbers that JSON does not know.

    ``/home/someone/runs/demo`` becomes ``…/demo``; NaN, Inf and what is nested more than 30 deep
    become None. ``verbatim`` text keeps its paths and credentials.
    """
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {
            _clean(str(key), verbatim): presentable(item, depth + 1, verbatim or key in _VERBATIM)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [presentable(item, depth + 1, verbatim) for item in value]
    if isinstance(value, str):
        return _clean(value, verbatim)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shortened(value: Any) -> Any:
    """Copy JSON with long lists and long texts cut; a mark shows where."""
    if isinstance(value, dict):
        return {key[:200]: shortened(item) for key, item in list(value.items())[:_MAX_LIST]}
    if isinstance(value, list):
        cut = [shortened(item) for item in value[:_MAX_LIST]]
        return cut if len(value) <= _MAX_LIST else [*cut, f"… {len(value)} in all"]
    if isinstance(value, str) and len(value) > _MAX_TEXT:
        return f"{value[:_MAX_TEXT]}… ({len(value)} characters)"
    return value


def as_data_script(value: Any) -> str:
    """Write JSON for the inside of a script element: no text in it can end the element."""
    written = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # "</script" ends the element, "<!--" changes how the rest of it is read.
    return written.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _clean(text: str, verbatim: bool) -> str:
    # A lone surrogate cannot be written as UTF-8.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text if verbatim else _ABSOLUTE_PATH.sub("…/", mask(text))
