"""Read addresses of models that are neither directories nor Hub ids, to name the right words."""

import re

from inheritune.errors import SourceError, escape

# A slash may have been lost: paths have no empty parts.
_SITE = re.compile(r"(https?:/+)?(www\.)?(huggingface\.co|hf\.co)/(models/)?|hf:/+(models/)?")
_ID = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?"
_REVISION = re.compile(rf"({_ID})(?:[@:]|/(?:tree|resolve|blob|commit)/)([\w.-]+)(?:/.*)?")
_SUBFOLDER = re.compile(r"(\w[\w.-]*/\w[\w.-]*)/(.+)")


def missing_directory(model: str) -> SourceError:
    """Word that there is no such directory; an address is answered with the Hub id in it."""
    shown = escape(model, 200)
    site = _SITE.match(model)
    rest = model[site.end() :] if site else model
    if found := _REVISION.fullmatch(rest):
        way_out = f"For the Hub, write {found[1]} and --revision {found[2]} (in a recipe, revision)"
    elif found := _SUBFOLDER.fullmatch(rest):
        way_out = f"The Hub's id is {found[1]}; a folder below it, download and name as a directory"
    elif site or rest.endswith("/"):
        way_out = f"For the Hub, write its id alone: {rest.rstrip('/')}"
    elif re.fullmatch(_ID, rest):
        return SourceError(f"there is no model directory {shown}.", "Check its name.")
    else:
        return SourceError(f"there is no model directory {shown}.")
    return SourceError(f"there is no model directory {shown}.", f"{way_out}.")
