"""Let atheris search, guided by coverage, for bytes that a reader does not read or refuse properly.

    pip install atheris
    python tests/coverage_fuzzing.py recipe [-max_total_time=600] [DIRECTORY OF EXAMPLES]

Nothing else needs atheris, which has no wheels for every system; `make fuzz` draws blindly, but
knows what a sound file looks like.
"""

import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["inheritune"]):
    from inheritune.data.bad_rows import BadRows
    from inheritune.data.flat_files import open_flat_file
    from inheritune.data.input_files import InputFile
    from inheritune.data.text_column import TextColumn
    from inheritune.data.text_files import read_documents
    from inheritune.errors import InherituneError
    from inheritune.model_files.safetensors import read_header
    from inheritune.recipe.load import read_recipe
    from inheritune.reporting.embed import presentable
    from inheritune.reporting.metrics_file import read_metrics
    from inheritune.run_record.record import RunRecord, read_run_json
    from inheritune.system.strict_json import UNTRUSTED, parse_json


def _rows(path: Path) -> None:
    list(read_documents(InputFile(path.name, path), TextColumn("text"), BadRows(5)))


# The name of the file that a reader is given, and the reader.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "header": ("model.safetensors", read_header),
    "json": ("config.json", lambda path: parse_json(path.read_bytes(), "it", UNTRUSTED)),
    "recipe": ("recipe.yaml", read_recipe),
    "ids": ("tokens.bin", lambda path: open_flat_file(path, 300)),
    "datatrove": ("tokens.ds", lambda path: open_flat_file(path, 300)),
    "rows": ("rows.jsonl", _rows),
    "zst": ("rows.jsonl.zst", _rows),
    "parquet": ("rows.parquet", _rows),
    "metrics": ("metrics.jsonl", read_metrics),
    "record": (
        "run.json",
        lambda path: RunRecord.model_validate(presentable(read_run_json(path.parent))),
    ),
}


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in READERS:
        sys.exit(f"{__doc__}\nreaders: {', '.join(READERS)}")
    name, reader = READERS[sys.argv.pop(1)]
    path = Path(tempfile.mkdtemp()) / name
    warnings.simplefilter("ignore")

    def try_bytes(data: bytes) -> None:
        path.write_bytes(data)
        try:
            reader(path)
        except InherituneError as error:
            assert 1 <= len(str(error).splitlines()) <= 3

    atheris.Setup(sys.argv, try_bytes)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
