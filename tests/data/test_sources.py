import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
from source_documents import documents

from inheritune.data import input_files as finding
from inheritune.data import text_files
from inheritune.data.document import Document, held_out
from inheritune.data.input_files import input_files
from inheritune.errors import DataError
from inheritune.recipe.data import Data


def names(source, **options):
    return [document.name for document in documents(source, **options)]


def test_stdlib_is_the_library_without_tests_tables_and_installed_packages():
    found = names("stdlib")
    assert {"json/decoder.py", "argparse.py", "unittest/mock.py"} <= set(found)
    assert found == sorted(found, key=str.encode)
    parts = {part for name in found for part in name.split("/")}
    unwanted = {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages"}
    assert not parts & (unwanted | {"dist-packages", "__pycache__"})
    assert not [name for name in found if "sysconfigdata" in name or name.startswith("config-")]


def test_names_in_stdlib_do_not_depend_on_where_python_is_installed(tmp_path, monkeypatch):
    first = tmp_path / "usr" / "lib" / "python3.11"
    for name in ("json/decoder.py", "abc.py", "test/test_abc.py", "json/tests/x.py"):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text("x = 1\n")
    for name in ("site-packages/p/a.py", "encodings/cp437.py", "_sysconfigdata__x.py", "b.pyc"):
        (first / name).parent.mkdir(parents=True, exist_ok=True)
        (first / name).write_text("x = 1\n")
    second = tmp_path / "test" / "site-packages" / "elsewhere"
    shutil.copytree(first, second)
    found = []
    for root in (first, second):
        monkeypatch.setattr(finding.sysconfig, "get_path", lambda name, root=root: str(root))
        found.append(list(documents("stdlib")))
    assert found[0] == found[1]
    assert [document.name for document in found[0]] == ["abc.py", "json/decoder.py"]


def test_stdlib_with_its_tests_holds_out_the_same_modules_and_never_a_test():
    plain, whole = (
        list(documents(source, max_bad_rows=50)) for source in ("stdlib", "stdlib+tests")
    )
    tests = {document.name for document in whole if document.train_only}
    assert {document.name for document in whole} - tests == {d.name for d in plain}
    assert all({"test", "tests", "idle_test"} & set(name.split("/")) for name in tests)
    data = Data(source="stdlib+tests", val_fraction=0.5, split_by="name")
    held = [[d.name for d in found if held_out(d, data)] for found in (plain, whole)]
    assert held[0] == held[1] != []


def test_a_folder_gives_one_document_for_each_file_in_byte_order(tmp_path):
    for name in ("b.txt", "a/z.py", "B.md", "ä.txt", ".git/config", "a/__pycache__/z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert names(str(tmp_path)) == ["B.md", "a/z.py", "b.txt", "ä.txt"]


def test_names_are_relative_to_what_the_sources_have_in_common(tmp_path, monkeypatch):
    for name in ("one/a.txt", "two/b.txt", "two/c.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("text")
    assert names(str(tmp_path / "one" / "a.txt")) == ["a.txt"]
    assert names([str(tmp_path / "two"), str(tmp_path / "one" / "a.txt")]) == [
        "one/a.txt",
        "two/b.txt",
        "two/c.md",
    ]
    assert names(str(tmp_path / "*" / "*.txt")) == ["one/a.txt", "two/b.txt"]
    monkeypatch.chdir(tmp_path)
    assert names("two") == ["b.txt", "c.md"]
    assert names("**/*.txt") == ["one/a.txt", "two/b.txt"]


def test_a_file_that_two_entries_match_is_read_once(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    assert names([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "a.txt")]) == ["a.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_taken_as_it_is(tmp_path):
    (tmp_path / "a[1].txt").write_text("text")
    assert names(str(tmp_path / "a[1].txt")) == ["a[1].txt"]


def test_rows_are_named_by_file_and_line_and_blank_text_is_left_out(tmp_path):
    rows = [{"text": "one"}, {"text": None}, {"text": " \n"}, {"text": "two\r\nlines"}]
    body = "\n".join(map(json.dumps, rows)) + "\r\n\r\n" + json.dumps({"text": "last"})
    (tmp_path / "rows.jsonl").write_bytes(b"\xef\xbb\xbf" + body.encode())
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb") as stream:
        stream.write(body.encode())
    expected = [("1", "one"), ("4", "two\r\nlines"), ("6", "last")]
    assert list(documents(str(tmp_path / "rows.jsonl"))) == [
        Document(f"rows.jsonl:{line}", text) for line, text in expected
    ]
    assert list(documents(str(tmp_path / "rows.jsonl.gz"))) == [
        Document(f"rows.jsonl.gz:{line}", text) for line, text in expected
    ]


def test_another_text_column_can_be_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"id": 1, "body": "hello"}\n')
    assert [d.text for d in documents(str(tmp_path / "rows.jsonl"), "body")] == ["hello"]


def test_a_folder_that_must_not_be_entered_is_named(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()

    def identity(folder):
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return 1, 2

    monkeypatch.setattr(finding, "_identity", identity)
    with pytest.raises(DataError, match=r"cannot list .*closed: permission denied"):
        list(documents(str(tmp_path)))


def test_an_empty_file_among_others_is_left_out(tmp_path):
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "a.py").write_text("x = 1\n")
    assert names(str(tmp_path)) == ["a.py"]


def test_text_keeps_its_line_ends(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\rthree\n")
    assert next(documents(str(tmp_path))).text == "one\r\ntwo\rthree\n"


@pytest.mark.parametrize("suffix", [".xml.gz", ".tar.zst", ".zip"])
def test_a_format_that_cannot_be_read_is_refused_by_name(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"format is not supported.*Convert it"):
        list(documents(str(path)))


def test_a_cut_gzip_file_is_one_error_that_names_it(tmp_path):
    whole = gzip.compress(b'{"text": "a"}\n' * 10_000)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"cut\.jsonl\.gz"):
        list(documents(str(tmp_path / "cut.jsonl.gz")))
    (tmp_path / "not.jsonl.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match=r"not\.jsonl\.gz"):
        list(documents(str(tmp_path / "not.jsonl.gz")))


def test_linked_folders_are_entered_once_and_circles_end(tmp_path):
    (tmp_path / "in" / "b").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("text")
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "c.txt").write_text("text")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "far")
    (tmp_path / "in" / "link-again").symlink_to(tmp_path / "far")
    assert names(str(tmp_path / "in")) == ["a.txt", "link/c.txt"]


def test_a_file_that_is_too_large_for_one_document_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 64)
    (tmp_path / "a.txt").write_text("x" * 65)
    with pytest.raises(DataError, match=r"a\.txt: it is above"):
        list(documents(str(tmp_path / "a.txt")))
    rows = ['{"text": "short"}', json.dumps({"text": "x" * 3_000_000}), '{"text": "after"}']
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    kept = list(documents(str(tmp_path / "rows.jsonl"), max_bad_rows=1))
    assert [(d.name, d.text) for d in kept] == [
        ("rows.jsonl:1", "short"),
        ("rows.jsonl:3", "after"),
    ]


def test_input_files_lists_paths_that_exist(tmp_path):
    (tmp_path / "a.txt").write_text("text")
    files = input_files(str(tmp_path))
    assert [file.path for file in files] == [tmp_path / "a.txt"]
    assert all(isinstance(file.path, Path) and file.path.is_file() for file in files)


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX only")
def test_a_file_name_that_is_not_utf8_is_still_a_name(tmp_path):
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("text")
    assert names(str(tmp_path)) == [os.fsdecode(b"\xff.txt")]
