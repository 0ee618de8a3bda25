import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from inheritune.data import encoding
from inheritune.data.encoding import Encoder, Encoders
from inheritune.data.sources import open_sources
from inheritune.errors import MachineError
from inheritune.recipe.data import Data

KILLED = """
import multiprocessing, os, signal, sys
from pathlib import Path
from inheritune.data import encoding
from inheritune.data.prepare_text import prepare_text
from inheritune.data.tokenizer import open_tokenizer
from inheritune.recipe.data import Data
encoding._BATCH_DOCUMENTS = 4
def stop():
    children = multiprocessing.active_children()
    if len(children) == 2:
        print(*[child.pid for child in children], flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    return False
data = Data(source=sys.argv[1], val_fraction=0.2)
prepare_text(data, open_tokenizer(Path(sys.argv[2])), 300, 16, Path(sys.argv[3]), stop=stop,
    workers=2)
"""


def encoded(data, tokenizer, workers, **options):
    (source,) = open_sources(data)
    with Encoders(Encoder(tokenizer, data), workers, **options) as encoders:
        return [
            (e.place, e.documents, e.is_val, e.ids.tolist(), e.text_hash, e.text_bytes)
            for e in encoders.encode(source.read())
        ]


def test_documents_come_out_in_order_and_only_those_of_the_sample(
    text_folder, tokenizer, monkeypatch
):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 4)
    data = Data(source=str(text_folder), val_fraction=0.2, sample=0.5)
    found = encoded(data, tokenizer, 0)
    files = [item[0].position["file"] for item in found]
    assert files == sorted(files) and 15 < len(files) < 45
    assert encoded(data, tokenizer, 2, start_method="fork") == found
    whole = encoded(data.model_copy(update={"sample": None}), tokenizer, 0)
    assert [item[3] for item in whole if item[0].position["file"] in files] == [
        item[3] for item in found
    ]
    assert sum(item[1] for item in whole) == 60


def test_little_text_starts_no_process(text_folder, tokenizer, monkeypatch):
    def fail(*_):
        raise AssertionError

    monkeypatch.setattr(encoding, "ProcessPoolExecutor", fail)
    assert len(encoded(Data(source=str(text_folder)), tokenizer, None)) == 60


def test_only_a_few_batches_are_read_ahead(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    rows = [json.dumps({"text": f"the of {i}"}) for i in range(200)]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    data = Data(source=str(tmp_path / "rows.jsonl"))
    read = []

    def reading(source):
        for item in source.read():
            read.append(item)
            yield item

    (source,) = open_sources(data)
    with Encoders(Encoder(tokenizer, data), 2, "fork") as encoders:
        for number, _ in enumerate(encoders.encode(reading(source))):
            assert len(read) <= number + 2 * (2 * 2 + 2)


@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX")
def test_a_killed_worker_is_an_error_and_not_a_hang(text_folder, tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "_BATCH_DOCUMENTS", 2)
    data = Data(source=str(text_folder))

    def kill():
        for child in multiprocessing.active_children():
            os.kill(child.pid, signal.SIGKILL)

    (source,) = open_sources(data)
    with (
        pytest.raises(MachineError, match="a process that encodes text ended"),
        Encoders(Encoder(tokenizer, data), 2, "fork") as encoders,
    ):
        list(encoders.encode(source.read(), between=kill))


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks at processes in /proc")  # noqa: PTH112
def test_workers_end_with_a_parent_that_is_killed(text_folder, tokenizer, tmp_path):
    arguments = [str(text_folder), str(tokenizer.directory), str(tmp_path / "tokens")]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    end = time.monotonic() + 20
    while [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < end
        time.sleep(0.05)


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:  # noqa: PTH123
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
