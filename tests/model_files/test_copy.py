"""Copying ranges, with and without the kernel's help."""

import errno
import os

import pytest

from inheritune.errors import SourceError
from inheritune.model_files import copy as room
from inheritune.model_files.copy import copy_range, copy_side_files, is_side_file, side_files

CONTENT = bytes(range(256)) * 1000


def refuse(*arguments):
    raise OSError(errno.EXDEV, "cross-device link")


def copied(tmp_path, offset, size):
    (tmp_path / "in").write_bytes(CONTENT)
    with (tmp_path / "out").open("xb", 0) as target:
        room.write_all(target.fileno(), b"header")
        copy_range(tmp_path / "in", target.fileno(), offset, size)
    return (tmp_path / "out").read_bytes()


@pytest.mark.parametrize("broken", [(), ("copy_file_range",)])
@pytest.mark.parametrize("chunk", [7_000, 2**30])
@pytest.mark.parametrize("offset, size", [(0, 256_000), (3, 100_001), (255_999, 1), (5, 0)])
def test_every_way_of_copying_gives_the_same_bytes(
    tmp_path, monkeypatch, broken, chunk, offset, size
):
    for name in broken:
        monkeypatch.setattr(os, name, refuse, raising=False)
    monkeypatch.setattr(room, "_KERNEL_CHUNK", chunk)
    monkeypatch.setattr(room, "_CHUNK", chunk)
    assert copied(tmp_path, offset, size) == b"header" + CONTENT[offset : offset + size]


@pytest.mark.parametrize("broken", [(), ("copy_file_range",)])
def test_a_source_that_ends_early_is_named(tmp_path, monkeypatch, broken):
    for name in broken:
        monkeypatch.setattr(os, name, refuse, raising=False)
    with pytest.raises(SourceError, match=r"in ended at byte 256,000 .* 256,010 were expected"):
        copied(tmp_path, 10, 256_000)


def test_side_files_replace_older_ones_and_weights_are_not_among_them(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for name in ("tokenizer.json", "LICENSE", "model.safetensors", "training.json", "config.json"):
        (tmp_path / "a" / name).write_text(name)
    (tmp_path / "b" / "tokenizer.json").write_text("old")
    copy_side_files(tmp_path / "a", tmp_path / "b")
    assert {p.name: p.read_text() for p in (tmp_path / "b").iterdir()} == {
        "tokenizer.json": "tokenizer.json",
        "LICENSE": "LICENSE",
    }


@pytest.mark.parametrize(
    "name",
    [
        *(
            "tiktoken.model",
            "tekken.json",
            "tokenizer.jsonl",
            "rwkv_vocab_v20230424.txt",
            "spm.model",
        ),
        *("bpe.codes", "tokenizer.model.v3", "tokenization_kimi.py", "anything.else", "LICENSE.md"),
        *("notice.txt", "additional_chat_templates/tools.jinja", "generation_config.json"),
    ],
)
def test_whatever_is_not_known_for_something_else_goes_with_the_model(name):
    assert is_side_file(name)


@pytest.mark.parametrize(
    "name",
    [
        *(
            "config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "consolidated.00.pth",
            "tf_model.h5",
        ),
        *(
            "pytorch_model.bin.index.json",
            "flax_model.msgpack",
            "model.Q4_K_M.gguf",
            "rng_state_0.pth",
        ),
        *("training_args.bin", "trainer_state.json", "optimizer.pt", "README.md", "figure.png"),
        *(
            "inherit.json",
            "training.json",
            "made_from.json",
            ".gitattributes",
            "original/params.json",
        ),
        *("adapter_config.json", "additional_chat_templates/.hidden.jinja", "onnx/tokenizer.json"),
    ],
)
def test_weights_states_cards_and_records_do_not_go_with_the_model(name):
    assert not is_side_file(name)


def test_a_file_of_more_than_64_mib_is_no_side_file(tmp_path):
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    (tmp_path / "small.txt").write_text("")
    assert [path.name for path in side_files(tmp_path)] == ["small.txt"]


def test_a_side_file_that_leads_out_is_refused(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "tokenizer.json").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="leads out"):
        side_files(tmp_path / "a")
