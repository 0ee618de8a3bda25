"""What a model's class answered is asked once, until something that decided it changes."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import inheritune
from inheritune.errors import SourceError
from inheritune.model_files.directory import open_model
from inheritune.surgery.class_check import ask_class as room
from inheritune.surgery.class_check import remembered
from inheritune.surgery.class_check.ask_class import ask_class, check_whole
from inheritune.training.tokenization import compare_tokenization


@pytest.fixture(autouse=True)
def answers(monkeypatch, tmp_path):
    """An empty cache; returns its directory."""
    monkeypatch.setenv("INHERITUNE_CACHE", str(tmp_path / "cache"))
    remembered._installed.cache_clear()
    yield tmp_path / "cache" / "class-answers"
    remembered._installed.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """The questions that reach the child process, which here calls every model complete."""
    questions = []

    def answer(line):
        questions.append(json.loads(line)["question"])
        return {"summary": "complete: LlamaForCausalLM", "tied": False, "unused": []}

    monkeypatch.setattr(room, "_answer_of_child", answer)
    return questions


def check(directory):
    return check_whole(open_model(str(directory)))


def change(directory, **fields):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | fields))


def test_the_class_gives_the_answer_that_is_remembered(tiny_reference, monkeypatch):
    first = check(tiny_reference)
    monkeypatch.setattr(room, "_answer_of_child", None)
    assert check(tiny_reference) == first
    assert first.summary == "complete: LlamaForCausalLM"


def test_another_config_is_asked_about(reference, asked):
    check(reference)
    check(reference)
    change(reference, rms_norm_eps=1e-3)
    check(reference)
    assert asked == ["compare_cut", "compare_cut"]


def test_a_refusal_is_not_remembered(reference, answers):
    change(reference, intermediate_size=48)
    with pytest.raises(SourceError, match="makes it 32 x 48"):
        check(reference)
    assert not answers.exists()


def test_an_installed_package_makes_answers_old(tiny_reference, tmp_path, monkeypatch, asked):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.setattr(sys, "path", [*sys.path, str(packages)])
    check(tiny_reference)
    check(tiny_reference)
    assert len(asked) == 1
    os.utime(packages, (0, 0))
    remembered._installed.cache_clear()
    check(tiny_reference)
    assert len(asked) == 2


def test_another_version_is_asked_whatever_the_times_of_its_files(
    tiny_reference, tmp_path, monkeypatch, asked
):
    """Of packages in a directory on PYTHONPATH, and of images whose files all have one time."""
    for name in ("torch", "transformers"):
        (tmp_path / f"{name}-5.0.0.dist-info").mkdir()
    found = type("Spec", (), {"origin": str(tmp_path / "transformers" / "__init__.py")})
    monkeypatch.setattr(remembered, "find_spec", lambda name: found)
    for version in ("5.0.0", "5.0.0", "5.1.0"):
        (old,) = tmp_path.glob("transformers-*.dist-info")
        old.rename(tmp_path / f"transformers-{version}.dist-info")
        os.utime(tmp_path, (0, 0))
        remembered._installed.cache_clear()
        check(tiny_reference)
    assert len(asked) == 2


def test_without_a_home_nothing_is_remembered(tiny_reference, monkeypatch, asked):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("INHERITUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert check(tiny_reference) == check(tiny_reference)
    assert len(asked) == 2


def test_a_link_to_nothing_in_the_package_is_no_error(tiny_reference, tmp_path, monkeypatch, asked):
    """Editors leave such locks beside a file that is being edited."""
    (tmp_path / ".#errors.py").symlink_to("user@host.1")
    monkeypatch.setattr(inheritune, "__file__", str(tmp_path / "__init__.py"))
    check(tiny_reference)
    assert len(asked) == 1


def test_libraries_that_are_being_edited_are_asked_each_time(tiny_reference, monkeypatch, asked):
    edited = type("Spec", (), {"origin": "/home/user/transformers/src/transformers/__init__.py"})
    monkeypatch.setattr(remembered, "find_spec", lambda name: edited)
    check(tiny_reference)
    check(tiny_reference)
    assert len(asked) == 2


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b'{"answer": NaN}', b"\xff"])
def test_a_damaged_answer_is_asked_for_again(tiny_reference, answers, asked, damage):
    first = check(tiny_reference)
    (file,) = answers.iterdir()
    file.write_bytes(damage)
    assert check(tiny_reference) == first
    assert len(asked) == 2


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tiny_reference, answers, asked):
    answers.parent.write_text("a file in the directory's place")
    assert check(tiny_reference) == check(tiny_reference)
    assert len(asked) == 2


def test_answers_of_more_than_a_month_are_dropped(reference, answers, asked):
    check(reference)
    (old,) = answers.iterdir()
    os.utime(old, (0, 0))
    change(reference, rms_norm_eps=1e-3)
    check(reference)
    assert len(list(answers.iterdir())) == 1
    assert not old.exists()


def test_an_answer_about_a_directory_is_not_remembered_by_its_path(reference, asked):
    for _ in range(2):
        ask_class("reload", directory=str(reference))
    assert asked == ["reload", "reload"]


def test_a_tokenizer_is_remembered_by_its_files(tiny_reference, tmp_path, asked, monkeypatch):
    answers = {"AutoTokenizer": {"class": "X", "ids": [], "begins": None, "error": "why"}}
    monkeypatch.setattr(room, "_answer_of_child", lambda line: asked.append(line) or answers)
    copy = shutil.copytree(tiny_reference, tmp_path / "copy")
    assert compare_tokenization(tiny_reference) == compare_tokenization(copy)
    assert len(asked) == 1
    change(copy, eos_token_id=2)
    compare_tokenization(copy)
    assert len(asked) == 2


def test_weights_of_other_programs_are_not_read_for_a_tokenizer(
    tiny_reference, tmp_path, monkeypatch, asked
):
    answers = {"AutoTokenizer": {"class": "X", "ids": [], "begins": None, "error": "why"}}
    monkeypatch.setattr(room, "_answer_of_child", lambda line: asked.append(line) or answers)
    copy = shutil.copytree(tiny_reference, tmp_path / "copy")
    with (copy / "rust_model.ot").open("wb") as file:
        file.truncate(2**40)  # a hole; to read it takes an hour
    compare_tokenization(copy)
    compare_tokenization(copy)
    assert len(asked) == 1
