"""No secret gets into a file."""

import json

import pytest

from inheritune.cli import console
from inheritune.errors import MachineError
from inheritune.run.record import record_end
from inheritune.run.session import _with_log
from inheritune.run_directory import Run
from inheritune.system.progress import Progress, silent
from inheritune.system.secrets import mask

TEXT = "hf_abcdefgh12345678 https://me:mypassword@host WANDB_API_KEY=0123456789abcdef"
PARTS = ("abcdefgh12345678", "mypassword", "0123456789abcdef")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("token hf_abcdefgh12345678 refused", "token *** refused"),
        ("https://user:p%40ss@host.org/x?y=1", "https://***@host.org/x?y=1"),
        ("WANDB_API_KEY=0123456789abcdef is wrong", "WANDB_API_KEY=*** is wrong"),
        ("{'api_key': 'abcdef123'}", "{'api_key': '***'}"),
        ('"password": "correct-horse"', '"password": "***"'),
        ("AWS_SECRET_ACCESS_KEY = abc/def+123", "AWS_SECRET_ACCESS_KEY = ***"),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer ***"),
        ("https://s3/x?X-Amz-Signature=abcdef12&y=2", "https://s3/x?X-Amz-Signature=***&y=2"),
        ("ghp_0123456789abcdef", "***"),
        ("AKIAIOSFODNN7EXAMPLE", "***"),
    ],
)
def test_a_secret_is_masked_and_its_name_stays(text, masked):
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "tokens: 1,234,567 of 2,000,000",
        "train.tokens=1000000",
        "the tokenizer: tokenizer.json differs",
        "12,000 tokens/s, 42 s left",
        "hf_hub and hf_xet are installed",
        "https://huggingface.co/gpt2: 404 not found",
        "special_tokens_in_text=true",
        "name@host and a@b",
        "eos_token='<|endoftext|>'",
    ],
)
def test_what_is_no_secret_stays(text):
    assert mask(text) == text


def test_no_file_of_a_run_holds_the_secrets_of_a_message(tmp_path):
    run = Run.create(tmp_path / "run")
    record_end(run, "failed", 4, 1.0, str(MachineError(f"it failed: {TEXT}")))
    _with_log(run.log_file, silent)(Progress("task", message=TEXT))
    written = "".join(path.read_text() for path in run.root.iterdir())
    assert not [part for part in PARTS if part in written]
    assert "WANDB_API_KEY=***" in json.loads(run.record_file.read_text())["error"]


def test_the_log_of_a_bug_holds_none_either(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(console.typer.Exit), console.reported(as_json=False, debug=False):
        raise ValueError(TEXT)
    written = (tmp_path / "inheritune-error.log").read_text()
    assert "ValueError" in written
    assert not [part for part in PARTS if part in written]
