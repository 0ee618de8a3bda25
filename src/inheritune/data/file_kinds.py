"""Name what a file is by its first bytes, whatever its name says."""

POINTER = "a pointer of Git LFS, not the file itself"
# The first bytes of a kind of file, and what messages call it.
_SIGNATURES = {
    b"version https://git-lfs.github.com": POINTER,
    b"\xfd7zXZ\0": "an xz file",
    b"\x93NUMPY": "a NumPy file",
    b"ARROW1": "an Arrow file",
    b"LITPKDS": "a litgpt file of ids",
    b"INHTTOKS": "a shard of prepared tokens",
    b"MMIDIDX": "the index of a Megatron file of ids",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"\x04\x22\x4d\x18": "an LZ4 file",
    b"PAR1": "a parquet file",
    b"Obj\x01": "an Avro file",
    b"PK\x03\x04": "a zip file",
    b"\x7fELF": "a program",
    b"%PDF": "a PDF file",
    b"GGUF": "a GGUF file",
    b"SQLite format 3": "an SQLite file",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"7z\xbc\xaf": "a 7z file",
    b"BZh": "a bzip2 file",
    b"\x1f\x8b": "a gzip file",
    b"\x80\x02}": "a pickled file",
    b"\xff\xfe": "text in UTF-16",
    b"\xfe\xff": "text in UTF-16",
}


# Kinds of text that hold rows, whatever the name; see `text_formats.markup_kind`.
WARC, JSON_ROWS, TABLE_ROWS, JSON_OBJECT = (
    *("a WARC file", "rows of JSON", "a table", "one JSON object"),
)
# By kind: how a file becomes one that is read.
WAYS_OUT = {
    WARC: "Extract the text into .txt or .jsonl",
    JSON_ROWS: "Name it .jsonl, or set data.format: jsonl",
    TABLE_ROWS: "Name it .csv or .tsv, or set data.format: csv or tsv",
    JSON_OBJECT: "Leave it out",
    "a gzip file": "Add .gz to its name, as in .jsonl.gz",
    "a bzip2 file": "Add .bz2 to its name, as in .jsonl.bz2",
    "an xz file": "Add .xz to its name, as in .jsonl.xz",
    "an LZ4 file": "Add .lz4 to its name, as in .jsonl.lz4",
    "a Zstandard file": "Add .zst to its name, as in .jsonl.zst",
    "text in UTF-16": "Convert it: iconv -f UTF-16 -t UTF-8 FILE > NEW",
    "a parquet file": "Name it .parquet",
    "an Arrow file": "Name it .arrow",
    "an Avro file": "Rewrite it as parquet or .jsonl",
    "a zip file": "Unpack it",
    "a 7z file": "Unpack it",
    POINTER: "Run `git lfs pull` in its repository",
}


def kinds() -> list[str]:
    """List everything that a file may be called."""
    return list(dict.fromkeys([*WAYS_OUT, *_SIGNATURES.values()]))


def kind_by_signature(head: bytes) -> str | None:
    """Return what a file is called in messages; None where its first bytes are of no known kind.

    Args:
        head: Its first 64 bytes, or all it has.
    """
    return next((kind for magic, kind in _SIGNATURES.items() if head.startswith(magic)), None)
