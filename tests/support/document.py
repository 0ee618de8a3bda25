"""docs/support.md: what the matrix found, one line for each model type."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from support.matrix import Row

__all__ = ["line", "lines_of", "render", "summary", "version_of"]

_HEAD = """\
# Model types

Every decoder-only type of transformers, as its own class builds it with small sizes and random
weights, written to disk, cut to its first n layers, loaded again and run. Made by
`python scripts/support_matrix.py`, checked by `tests/support`; transformers {version}.

{summary}

- **exact**: at every n listed, the target loads with no weight missing, each of its layers gives
  what it gives in the reference, bit for bit, its logits are finite, generation with the cache
  gives what it gives without, and with all layers the logits are the reference's. Other n are
  refused, for the reason that is said.
- **refused**: `inherit` says why, and writes nothing.
- **untested**: the class cannot be built where this was made.

Models with towers are tested whole, with small towers. A released model can still differ from its
class's defaults; the check after every `inherit` looks at the model itself.

| type | class | result | layers kept | changed in config.json | refused, and notes |
|---|---|---|---|---|---|
"""
_LEFT_OUT = """
## Left out

{count} types of transformers' causal language models are not decoder-only models.

| type | because it is |
|---|---|
"""
_SUMMARY = re.compile(r"^\*\*(\d+) types: .*\*\*$", re.MULTILINE)


def line(row: Row) -> str:
    """One line of the table."""
    right = [str(cut.layers) for cut in row.cuts if not cut.refusal]
    layers = f"{', '.join(right)} of {row.total}" if right else ""
    edits = sorted({edit for cut in row.cuts for edit in cut.edits})
    cells = [
        row.model_type,
        row.architecture,
        row.result,
        layers,
        ", ".join(f"`{edit}`" for edit in edits),
        " ".join([*_refusals(row), *(f"{_sentence(note)}." for note in row.notes)]),
    ]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _refusals(row: Row) -> list[str]:
    if row.untested or row.wrong:
        return [f"{_sentence(row.untested or row.wrong)}."]
    refused = [cut for cut in row.cuts if cut.refusal]
    if not refused:
        return []
    if refused[0].layers == 0:
        return [_sentence(refused[0].refusal)]
    numbers = ", ".join(str(cut.layers) for cut in refused)
    return [f"n = {numbers}: {refused[-1].refusal}"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def summary(lines: Iterable[str]) -> str:
    """The counts, from the lines of the table."""
    counts = Counter(text.split(" | ")[2] for text in lines)
    known = ", ".join(f"{counts[name]} {name}" for name in ("exact", "refused", "untested"))
    wrong = f", {counts['wrong']} WRONG" if counts["wrong"] else ""
    return f"**{counts.total()} types: {known}{wrong}.**"


def render(lines: Mapping[str, str], left_out: Mapping[str, str], version: str) -> str:
    """The whole document."""
    text = _HEAD.format(version=version, summary=summary(lines.values()))
    text += "".join(f"{lines[name]}\n" for name in sorted(lines))
    text += _LEFT_OUT.format(count=len(left_out))
    return text + "".join(f"| {name} | {why} |\n" for name, why in sorted(left_out.items()))


def lines_of(document: str) -> dict[str, str]:
    """The lines of a document's table, by type."""
    table = document.partition("\n## Left out")[0]
    found = [text for text in table.splitlines() if text.startswith("| ") and " | " in text]
    return {text.split(" | ")[0].removeprefix("| "): text for text in found[1:]}


def version_of(document: str) -> str:
    """The transformers that a document was made with."""
    found = re.search(r"transformers (\S+)\.$", document, re.MULTILINE)
    return found.group(1) if found else ""
