import bz2
import csv
import gzip
import json
import lzma

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from other_tokenizer import write_tokenizer
from source_documents import documents

from inheritune.data import text_files, text_formats
from inheritune.data.calibration import text_ids
from inheritune.data.compression import zstd
from inheritune.data.input_files import input_files, left_out
from inheritune.data.prepare_text import prepare_text, training_texts
from inheritune.data.sources import open_sources
from inheritune.data.text_stream import TextStream
from inheritune.data.tokenizer import open_tokenizer
from inheritune.errors import DataError, RecipeError
from inheritune.recipe.data import Data

TEXTS = [f'story {i}, of a "dog"\nand a hill' for i in range(40)]
LINES = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in TEXTS).encode()


def table(path, delimiter):
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=delimiter)
        writer.writerows([["id", "text"], *enumerate(TEXTS)])
    return path.read_bytes()


def texts(path, column="text", **options):
    return [document.text for document in documents(str(path), column, **options)]


@pytest.mark.parametrize("pack", ["", ".gz", ".bz2", ".xz"])
@pytest.mark.parametrize(
    "ending", [".json", ".ndjson", ".jsonlines", ".JSONL", ".csv", ".TSV", "-array.json"]
)
def test_rows_are_read_whatever_the_ending_that_people_give_them(tmp_path, ending, pack):
    if ending.lower() in (".csv", ".tsv"):
        content = table(tmp_path / "plain", "," if ending == ".csv" else "\t")
        (tmp_path / "plain").unlink()
    elif "array" in ending:
        content = json.dumps([{"text": text} for text in TEXTS]).encode()
    else:
        content = LINES
    packed = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}.get(pack, bytes)
    path = tmp_path / f"a{ending}{pack}"
    path.write_bytes(packed(content))
    assert texts(path) == TEXTS
    assert texts(tmp_path) == TEXTS


@pytest.mark.parametrize("name", ["part-00000", "a.warc", "a.html", "a.dat"])
def test_markup_under_another_name_is_refused_and_never_trained_on(tmp_path, name):
    content = {"a.warc": b"WARC/1.0\r\nContent-Length: 4", "a.html": b"<!DOCTYPE html><p>x"}
    content |= {"part-00000": LINES, "a.dat": gzip.compress(LINES)}
    (tmp_path / name).write_bytes(content[name])
    with pytest.raises(
        DataError, match=r"it is (a WARC|nothing but web pages|rows of JSON|a gzip).*plain"
    ):
        texts(tmp_path / name)


def test_a_web_page_among_code_is_code_and_pages_alone_are_refused(tmp_path):
    page = "<!DOCTYPE html><p>Hello</p>"
    (tmp_path / "a.html").write_text(page)
    (tmp_path / "b").write_text(f"\n{page}")
    with pytest.raises(DataError, match="nothing but web pages"):
        texts(tmp_path, max_bad_rows=9)
    (tmp_path / "main.py").write_text("pass")
    assert texts(tmp_path) == [page, f"\n{page}", "pass"]


def test_a_file_that_cannot_be_opened_is_weighed_as_empty_and_named_when_it_is_read(
    tmp_path, monkeypatch
):
    (tmp_path / "a.py").write_text("pass")
    (tmp_path / "b.jsonl").write_text('{"text": "hello"}')
    (tmp_path / "c.json").write_text('{"text": "settings"}')

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(text_formats, "open_regular_file", refuse)
    assert texts(tmp_path) == ["hello", "settings"]


TABS = 'id\ttext\n1\t"Hello\n2\tWorld"\n3\t12" wide\n4\t"to the end\n\n5\t"five"\n'


@pytest.mark.parametrize("pack", ["", ".gz"])
def test_quotes_of_a_tsv_that_enclose_nothing_are_text_and_swallow_no_row(tmp_path, pack):
    path = tmp_path / f"a.tsv{pack}"
    path.write_bytes((gzip.compress if pack else bytes)(TABS.encode()))
    assert texts(path) == ['"Hello', 'World"', '12" wide', '"to the end', '"five"']


def test_a_tsv_with_quotes_that_enclose_values_of_a_line_is_read_as_it_was_written(tmp_path):
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"a ""dog"""\n2\tWorld\n')
    assert texts(tmp_path / "a.tsv") == ['a "dog"', "World"]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("a.csv", 'id,text\n1,one\n2,"two\n3,three\n', 3),
        ("a.csv", 'text\n"two\nlines"\n"He" said\n', 4),
        ("tsv.tsv.d/a.csv", 'id,text\n1,"one\n', 2),
        ("a.tsv", 'id\ttext\n1\t"one\ntwo\n3\tthree\n', 2),
    ],
)
def test_a_quote_that_is_not_closed_is_named_with_its_line_and_swallows_no_row(
    tmp_path, name, content, line
):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(DataError, match=rf"{name}, line {line}: the row that begins there") as e:
        texts(tmp_path)
    assert "double theirs" in e.value.hint


def test_a_file_of_one_json_object_is_one_bad_file(tmp_path):
    (tmp_path / "a.json").write_text('{\n "a": 1,\n "b": 2\n}\n')
    (tmp_path / "b.jsonl").write_bytes(LINES)
    assert texts(tmp_path / "[ab].json*", max_bad_rows=1) == TEXTS


@pytest.mark.parametrize(
    "content, kind",
    [
        (gzip.compress(LINES), "a gzip file. Add .gz to its name"),
        (b"PK\x03\x04" + bytes(60), "a zip file. Unpack it"),
        (b"Obj\x01\x04\x14avro.codec\x08null\0", "an Avro file. Rewrite it as parquet or .jsonl"),
        (LINES.decode().encode("utf-16"), "text in UTF-16. Convert it: iconv"),
    ],
)
def test_other_files_under_the_name_of_rows_are_called_what_they_are(tmp_path, content, kind):
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=f": it is {kind}") as refused:
        texts(tmp_path)
    assert not str(refused.value).endswith("..")


def test_cards_licences_and_other_splits_beside_rows_are_no_text(tmp_path):
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "data" / "train-00000-of-1.parquet")
    pq.write_table(pa.table({"text": ["asked"]}), tmp_path / "data" / "test-00000-of-1.parquet")
    others = ["README.md", "LICENSE", "dataset_infos.json", "SHA256SUMS", "config.json"]
    for name in others:
        (tmp_path / name).write_text('{\n "features": {}}' if name.endswith("json") else "words")
    assert texts(tmp_path) == TEXTS
    assert left_out(str(tmp_path), input_files(str(tmp_path))) == sorted(
        [*others, "data/test-00000-of-1.parquet"]
    )


def test_code_is_text_beside_a_smaller_table_and_settings_which_are_left_out(tmp_path):
    code = "".join(f"value_{number} = {number}\n" for number in range(99))
    (tmp_path / "main.py").write_text(code)
    (tmp_path / "README.md").write_text("A program.")
    (tmp_path / "train.csv").write_text("a,b\n1,2\n")
    (tmp_path / "commands.json").write_text('[{"command": "cc"}]')
    (tmp_path / "package.json").write_text('{\n "name": "a"\n}')
    assert texts(tmp_path) == ["A program.", code]
    assert left_out(str(tmp_path), input_files(str(tmp_path))) == [
        "commands.json",
        "package.json",
        "train.csv",
    ]


def test_a_few_rows_of_json_beside_much_prose_are_text_and_so_is_the_prose(tmp_path):
    (tmp_path / "a.txt").write_text("word " * 1000)
    (tmp_path / "b.jsonl").write_text('{"text": "hello"}')
    assert texts(tmp_path) == ["word " * 1000, "hello"]


def test_code_beside_rows_that_are_the_bulk_or_in_the_folder_of_a_data_set_is_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "hello"}')
    (tmp_path / "load.py").write_text("pass")
    assert texts(tmp_path) == ["hello"]
    (tmp_path / "load.py").write_text("pass\n" * 99)
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert texts(tmp_path) == ["hello"]


def test_a_folder_that_save_to_disk_wrote_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(tmp_path / "a", num_shards=3)
    assert texts(tmp_path / "a") == TEXTS
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as out:
        rows = pa.table({"text": TEXTS})
        with pa.ipc.new_file(out, rows.schema) as writer:
            writer.write_table(rows, max_chunksize=7)
    assert texts(tmp_path / "b.arrow") == TEXTS


@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_texts_between_separators_are_documents_of_any_number(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(text_files, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(text_files, "_HEAD", max(piece, 60))
    path = tmp_path / "stories.txt"
    path.write_text("".join(f"{text}\n<|endoftext|>\n" for text in TEXTS))
    assert path.stat().st_size > 100 and texts(path) == TEXTS


def test_a_field_within_another_is_named_with_a_dot(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"data": {"text": "hello"}}))
    assert texts(tmp_path, "data.text") == ["hello"]
    with pytest.raises(DataError, match=r"data\.text is one within another"):
        texts(tmp_path)
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": [{"content": "hello"}]}))
    with pytest.raises(DataError, match="messages is a list: write its text into a column"):
        texts(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet", "a.csv", "a.txt", "a.jsonl.gz"])
def test_a_pointer_of_git_lfs_is_named_whatever_its_ending(tmp_path, name):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 9\n"
    (tmp_path / name).write_text(pointer)
    with pytest.raises(DataError, match=r"a pointer of Git LFS.*`git lfs pull`"):
        texts(tmp_path)


def test_parquet_of_bytes_is_told_to_be_cast(tmp_path):
    column = pa.array([text.encode() for text in TEXTS])
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"holds binary, not text.*cast it to pyarrow\.string"):
        texts(tmp_path)


def test_parquet_of_the_view_type_is_text(tmp_path):
    pq.write_table(pa.table({"text": pa.array(TEXTS, pa.string_view())}), tmp_path / "a.parquet")
    assert texts(tmp_path) == TEXTS


# zstd's own frame of one stored block, with a window of 2^31 bytes, above the 2^27 of pyarrow.
LONG = b"\x28\xb5\x2f\xfd\x00" + bytes([(31 - 10) << 3])
LONG_WINDOW = LONG + (len(LINES) << 3 | 1).to_bytes(3, "little") + LINES


@pytest.mark.skipif(zstd is None, reason="needs the package backports.zstd, or Python 3.14")
def test_a_long_window_of_zstd_is_read(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(LONG_WINDOW)
    assert texts(tmp_path) == TEXTS
    limit = {zstd.CompressionParameter.window_log: 27}
    half = LINES.index(b"\n") + 1  # frames of several windows, one after the other
    frames = zstd.compress(LINES[:half], options=limit) + LONG
    frames += (len(LINES[half:]) << 3 | 1).to_bytes(3, "little") + LINES[half:]
    (tmp_path / "a.jsonl.zst").write_bytes(frames)
    assert texts(tmp_path) == TEXTS


def test_a_long_window_of_zstd_names_what_reads_it(tmp_path, monkeypatch):
    monkeypatch.setattr("inheritune.data.compression.zstd", None)
    monkeypatch.setattr("inheritune.data.text_files.zstd", None)
    (tmp_path / "a.jsonl.zst").write_bytes(LONG_WINDOW)
    with pytest.raises(DataError, match=r'file is sound.*pip install "inheritune\[data\]"'):
        texts(tmp_path)


def test_a_source_that_is_not_there_is_said_with_the_folder_and_variables_are_read(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORPUS", str(tmp_path))
    (tmp_path / "a.jsonl").write_bytes(LINES)
    assert texts("$CORPUS/*.jsonl") == TEXTS
    with pytest.raises(DataError, match=f"no file or folder 'b.jsonl' in {tmp_path}"):
        texts("b.jsonl")
    with pytest.raises(DataError, match=r"\[\[\] stands for a bracket"):
        texts("a [v2]/*.jsonl")


# --- what a key says in place of a guess ---


def test_rows_and_tables_named_txt_are_refused_and_read_in_the_given_format(tmp_path):
    (tmp_path / "rows.txt").write_bytes(LINES)
    (tmp_path / "table.txt").write_bytes(table(tmp_path / "t.csv", ","))
    (tmp_path / "tabs.txt").write_text("".join(f"{i}\tline {i}\n" for i in range(9)))
    for name, kind in (("rows", "rows of JSON"), ("tabs", "a table")):
        with pytest.raises(DataError, match=f"it is {kind}, not plain text"):
            texts(tmp_path / f"{name}.txt")
    assert texts(tmp_path / "rows.txt", format="jsonl") == TEXTS
    assert texts(tmp_path / "table.txt", format="csv") == TEXTS
    assert texts(tmp_path / "rows.txt", format="text") == [LINES.decode()]
    assert len(texts(tmp_path / "tabs.txt", "line 0", format="tsv")) == 8


def test_prose_with_commas_or_a_brace_is_no_table_and_no_rows(tmp_path):
    lines = ["Twinkle, twinkle", "Little, star", "How, I", "Wonder, what", "You, are"] * 9
    for text in ("\n".join(lines), "{ this, is\n not json", "a,b\nc,d\n", "One\tindented\nline\n"):
        (tmp_path / "a.txt").write_text(text)
        assert texts(tmp_path / "a.txt") == [text]


def test_a_folder_is_read_in_the_given_format_and_cards_stay_out(tmp_path):
    (tmp_path / "README.md").write_text("A card.")
    (tmp_path / "part-00000").write_bytes(LINES)
    (tmp_path / "_SUCCESS").write_bytes(b"")
    with pytest.raises(DataError, match="it is rows of JSON"):
        texts(tmp_path)
    assert texts(tmp_path, format="jsonl") == TEXTS
    assert texts(tmp_path, format="text") == ["A card.", LINES.decode()]


def test_pictures_archives_and_settings_among_code_are_left_out_and_named(tmp_path):
    files = {
        "logo.png": b"\x89PNG\r\n\x1a\n" + bytes(9000),
        "font.woff": b"wOFF\0\0\0" + bytes(9000),
        "old.zip": b"PK\x03\x04" + bytes(9000),
        "app.js.map": b'{"version": 3, "sources": []}',
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot read"):
        texts(tmp_path)
    (tmp_path / "a.py").write_text("import a\n")
    assert texts(tmp_path) == ["import a\n"]
    assert left_out(str(tmp_path), input_files(str(tmp_path))) == sorted(files)
    with pytest.raises(DataError, match="it is one JSON object, not plain text"):
        texts(tmp_path / "app.js.map")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("separator", ["\n\n", "<|end|>"])
def test_a_separator_of_ones_own_ends_documents_and_none_keeps_a_file_whole(
    tmp_path, monkeypatch, separator, pack
):
    monkeypatch.setattr(text_files, "_HEAD", 64)
    path = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.md")
    path.write_bytes(pack(separator.join(TEXTS).encode()))
    assert texts(path, separator=separator) == TEXTS
    (tmp_path / "b.txt").write_text("one\n<|endoftext|>\ntwo")
    assert texts(tmp_path / "b.txt") == ["one", "two"]
    assert texts(tmp_path / "b.txt", separator="") == ["one\n<|endoftext|>\ntwo"]


def test_a_stray_quote_far_down_a_tsv_swallows_no_row(tmp_path):
    rows = [f"{i}\t{'x' * 1000}" for i in range(1200)] + ['7\t"no', "8\tclosing", '9\tquote"']
    (tmp_path / "a.tsv").write_text("id\ttext\n" + "\n".join(rows) + "\n")
    assert texts(tmp_path / "a.tsv") == [row.partition("\t")[2] for row in rows]


# --- nested columns and messages ---

CHAT = [
    {"role": "user", "content": "Tell."},
    {"role": "assistant", "content": "Once upon a time."},
]
SHAREGPT = [{"from": "human", "value": "Tell."}, {"from": "gpt", "value": "Once upon a time."}]


def write_rows(path, rows):
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        made = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(path, made.schema) as writer:
            writer.write_table(made)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
def test_a_field_within_another_is_read_from_every_format(tmp_path, ending):
    rows = [{"id": i, "data": {"n": i, "more": {"text": f"story {i}"}}} for i in range(40)]
    path = write_rows(tmp_path / f"a{ending}", rows)
    assert texts(path, "data.more.text") == [f"story {i}" for i in range(40)]
    with pytest.raises(DataError, match=r"'data\.less'"):
        texts(path, "data.less")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet", ".arrow"])
@pytest.mark.parametrize("messages", [CHAT, SHAREGPT])
def test_messages_are_named_and_rendered_when_asked(tmp_path, chat_tokenizer, ending, messages):
    path = write_rows(tmp_path / f"a{ending}", [{"id": i, "chat": messages} for i in range(20)])
    with pytest.raises(DataError, match=r"Set data\.messages to chat: the model's chat template"):
        texts(path)
    data = Data(source=str(path), messages="chat")
    (source,) = open_sources(data, chat_tokenizer)
    documents = [document for _, document in source.read()]
    expected = "<|begin|>[user]Tell.\n[assistant]Once upon a time.\n<|endoftext|>"
    assert [d.text for d in documents] == [expected] * 20
    assert all(document.is_rendered for document in documents)


def test_rendered_messages_have_one_bos_and_one_eos(tmp_path, chat_tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [{"chat": CHAT, "n": i} for i in range(30)])
    tokenizer = open_tokenizer(chat_tokenizer)
    out = tmp_path / "tokens"
    data = Data(source=str(path), messages="chat", val_fraction=0.2, split_by="name")
    tokens = prepare_text(data, tokenizer, tokenizer.rows, 8, out)
    ids = tokens.train.ids(0, tokens.train.num_ids).tolist()
    assert ids.count(tokenizer.bos) == ids.count(tokenizer.eos) == tokens.manifest["documents"]
    assert tokens.manifest["policy"]["special_tokens_in_text"] is True


def test_a_template_that_asks_for_the_date_gets_the_same_one_on_any_day(tmp_path):
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "dated").mkdir()
    tokenizer = write_tokenizer(tmp_path / "dated", "llama", chat_template=template)
    path = write_rows(tmp_path / "a.jsonl", [{"chat": CHAT}] * 30)
    data = Data(source=str(path), messages="chat", val_fraction=0.2, split_by="name")
    (source,) = open_sources(data, tokenizer)
    assert next(source.read())[1].text == "26 Jul 2024Tell.Once upon a time."
    opened = open_tokenizer(tokenizer)
    tokens = prepare_text(data, opened, opened.rows, 8, tmp_path / "tokens")
    assert tokens.manifest["chat_template_date"] == "2024-07-26"
    write_tokenizer(tmp_path / "dated", "llama", chat_template="{{ strftime_now(form) }}")
    with pytest.raises(DataError, match="writes today's date, in a format that is computed"):
        open_sources(data, tokenizer)


def test_a_source_with_a_text_column_of_its_own_has_no_messages(tmp_path, chat_tokenizer):
    first = write_rows(tmp_path / "a.jsonl", [{"chat": CHAT}])
    second = write_rows(tmp_path / "b.jsonl", [{"chat": CHAT, "body": "Plain."}])
    entries = [{"source": str(first)}, {"source": str(second), "text_column": "body"}]
    sources = open_sources(Data(source=entries, messages="chat"), chat_tokenizer)
    texts_of = [[document.text for _, document in source.read()] for source in sources]
    assert texts_of[0][0].startswith("<|begin|>[user]Tell.") and texts_of[1] == ["Plain."]


def test_what_a_template_cannot_render_is_a_bad_row(tmp_path, chat_tokenizer):
    rows = [{"chat": [{"role": "system", "content": "no"}]}, {"chat": "text"}, {"chat": CHAT}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    (source,) = open_sources(Data(source=str(path), messages="chat"), chat_tokenizer)
    with pytest.raises(DataError, match=r"line 1: column 'chat' cannot be rendered.*no system"):
        list(source.read())
    data = Data(source=str(path), messages="chat", max_bad_rows=2)
    assert len(list(open_sources(data, chat_tokenizer)[0].read())) == 1


def test_messages_need_a_chat_template(tmp_path, tokenizer):
    path = write_rows(tmp_path / "a.jsonl", [{"chat": CHAT}])
    data = Data(source=str(path), messages="chat")
    with pytest.raises(DataError, match="has no chat template"):
        open_sources(data, tokenizer.directory)
    with pytest.raises(RecipeError, match="a tokenizer that is trained here has not"):
        list(training_texts(data))


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
        "{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}\n"
        "{% endfor %}{{ eos_token }}\n"
    )
    directory = tmp_path_factory.mktemp("chat")
    return write_tokenizer(directory, "llama", add_bos_token=True, chat_template=template)


def test_the_refusal_of_a_text_without_a_recipe_says_how_a_command_sets_a_key(tmp_path, tokenizer):
    data = Data(source=str(write_rows(tmp_path / "a.jsonl", [{"story": "x"}])))
    for read in (TextStream, lambda data, tokenizer: text_ids(data, tokenizer, 64)):
        with pytest.raises(DataError, match="it has no column 'text'") as caught:
            read(data, tokenizer)
        assert caught.value.hint.endswith("Without a recipe: --set data.KEY=VALUE.")


@pytest.mark.parametrize(
    "keys",
    [
        {"messages": "chat"},
        {"text_column": "story"},
        {"format": "text", "separator": "##"},
        {"text_column": "story", "special_tokens_in_text": True},
    ],
    ids=["messages", "text_column", "format", "special tokens"],
)
def test_a_text_without_a_recipe_is_read_by_the_keys_of_one(tmp_path, chat_tokenizer, keys):
    files = {"train": "Tell.", "val": "Say."}
    for name, asked in files.items():
        chat = [{"role": "user", "content": asked}, CHAT[1]]
        rows = [
            {"chat": chat, "story": f"{asked} {i} <|endoftext|> ## {asked} -{i}"} for i in range(30)
        ]
        files[name] = str(write_rows(tmp_path / f"{name}.jsonl", rows))
    data = Data(source=files["train"], **keys)
    tokenizer = open_tokenizer(chat_tokenizer)
    both = data.model_copy(update={"val_source": files["val"]})
    tokens = prepare_text(both, tokenizer, tokenizer.rows, 8, tmp_path / "tokens")
    expected = tokens.train.ids(0, tokens.train.num_ids).tolist()
    assert TextStream(data, tokenizer).ids(0, len(expected)).tolist() == expected
    assert text_ids(data, tokenizer, len(expected)).tolist() == expected
