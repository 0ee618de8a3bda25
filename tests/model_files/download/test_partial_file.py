"""The journal that says which ranges of a file are present."""

import itertools
import json

from hub_server import COMMIT, MODEL, SHARDS
from hypothesis import given
from hypothesis import strategies as st
from remote_model import equal, ranges_of

from inheritune.model_files.download.partial import open_partial
from inheritune.model_files.download.partial_file import PartialFile


def test_a_torn_or_foreign_journal_is_trusted_as_far_as_it_is_whole(hub, repository, tmp_path):
    remote = open_partial(MODEL, None)
    wanted = ranges_of(remote.directory, 2)
    remote.download(wanted)
    journal = tmp_path / "hf/inheritune/models--someone--model/journal" / COMMIT
    journal = journal / f"{SHARDS[0]}.jsonl"
    good = journal.read_bytes()
    journal.write_bytes(good + b"[1, 2")
    assert remote.missing_bytes(wanted) == 0
    journal.write_bytes(good[:-4])
    assert 0 < remote.missing_bytes(wanted) <= 20_000
    remote.download(wanted)
    assert json.loads(b"[" + b",".join(journal.read_bytes().splitlines()) + b"]")
    for bad in (b"", b"{}\n[0, 9]\n", b"\xff\n", good.replace(b'"size": ', b'"size": 1'), b"[]\n"):
        journal.write_bytes(bad)
        assert remote.missing_bytes(wanted) > 100_000
        remote.download(wanted)
        assert remote.missing_bytes(wanted) == 0
    for line in (b"[5, 4]\n", b"[0, 1e9]\n", b"[0, 99999999]\n", b"null\n", b"[-1, 5]\n"):
        journal.write_bytes(good.splitlines(keepends=True)[0] + line)
        assert remote.missing_bytes(wanted) > 100_000
    (remote.directory / SHARDS[0]).unlink()
    journal.write_bytes(good)
    assert remote.missing_bytes(wanted) > 100_000
    open_partial(MODEL, None).download(wanted)
    equal(remote, repository, wanted)


@given(st.lists(st.sampled_from(["[0, 9]", "[5, 99]", "[7, 3]", "{}", "\udcff", "[0", ""])))
def test_any_journal_is_read_without_an_error(tmp_path_factory, lines):
    directory = tmp_path_factory.mktemp("journal")
    (directory / "file").write_bytes(bytes(50))
    head = json.dumps({"commit": COMMIT, "etag": "e", "size": 50})
    text = "\n".join([head, *lines])
    (directory / "journal").write_bytes(text.encode("utf-8", "surrogateescape"))
    file = PartialFile("file", directory / "file", directory / "journal", 50, COMMIT)
    good = [*itertools.takewhile("[0, 9]".__eq__, lines[:-1])]
    assert file.present == ([(0, 9)] if good else [])
    with file.opened() as descriptor:
        file.claim("e")
        file.keep(descriptor, 20, 30)
    again = PartialFile("file", directory / "file", directory / "journal", 50, COMMIT)
    assert again.present == ([(0, 9)] if good else []) + [(20, 30)]
