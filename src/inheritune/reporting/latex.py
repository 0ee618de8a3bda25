"""A table as LaTeX, to be put into a paper; plain tabular, no package needed."""

from inheritune.reporting.tables import Table

__all__ = ["latex"]

_SIGNS = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "†": r"$^\dagger$",
    "×": r"$\times$",
    "−": "$-$",
    "—": "--",
}
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-", strict=True))


def latex(table: Table) -> str:
    """The table as LaTeX; notes stand below as comments."""
    shape = "".join("r" if column.show else "l" for column in table.columns)
    bold = getattr(table, "is_bold", lambda row, column: False)
    lines = [f"\\begin{{tabular}}{{{shape}}}", "\\hline", _line(table.headers), "\\hline"]
    for r, row in enumerate(table.rows):
        cells = [_cell(text) for text in row]
        cells = [f"\\textbf{{{t}}}" if bold(r, c) else t for c, t in enumerate(cells)]
        lines.append(" & ".join(cells) + r" \\")
    lines += ["\\hline", "\\end{tabular}"]
    lines += [f"% {' '.join(note.split())}" for note in table.notes]
    return "\n".join(lines) + "\n"


def _line(texts: list[str]) -> str:
    return " & ".join(map(_cell, texts)) + r" \\"


def _cell(text: str) -> str:
    flat = " ".join(text.split())
    out, power = "", ""
    for sign in f"{flat}\0":
        if sign in _SUPERSCRIPTS:
            power += _SUPERSCRIPTS[sign]
            continue
        if power:
            out, power = f"{out}$^{{{power}}}$", ""
        out += _SIGNS.get(sign, sign)
    return out.removesuffix("\0")
