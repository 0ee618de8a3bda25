"""Write docs/support.md: try every decoder type of the installed transformers, and say what holds.

Takes two minutes on two cores. With names of types, only their lines are made again.
"""

import sys
import tempfile
from pathlib import Path

HOME = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HOME / "tests"))

import transformers  # noqa: E402
from support import document, matrix  # noqa: E402
from support.decoder_types import decoder_types, left_out  # noqa: E402

OUT = HOME / "docs" / "support.md"


def main(names: list[str]) -> int:
    types = decoder_types()
    lines = document.lines_of(OUT.read_text("utf-8")) if names else {}
    if unknown := set(names) - set(types):
        sys.exit(f"no decoder type of transformers: {', '.join(sorted(unknown))}")
    wrong = []
    for model_type in names or types:
        with tempfile.TemporaryDirectory() as work:
            row = matrix.run(model_type, Path(work))
        lines[model_type] = document.line(row)
        wrong += [f"{model_type}: {row.wrong}"] if row.wrong else []
        sys.stderr.write(f"{model_type}: {row.result}\n")
    OUT.write_text(document.render(lines, left_out(), transformers.__version__), "utf-8")
    sys.stderr.write(document.summary(lines.values()) + "\n" + "".join(f"{w}\n" for w in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
