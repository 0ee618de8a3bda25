import signal

import pytest

from inheritune.conversion.sandbox import ask
from inheritune.errors import MachineError, SourceError

_SERVE = """
from inheritune.conversion.sandbox import serve
def answer(request, _):
{body}
serve(lambda request: None, answer)
"""


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """A function that asks a process which does what it is told in Python."""
    code = tmp_path / "code"
    code.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(code), prepend=":")

    def ask_it(body, program=_SERVE):
        (code / "answering.py").write_text(program.format(body=f"    {body}"))
        work = tmp_path / "work"
        work.mkdir()
        return ask("answering", work, {"largest_file": 10**6, "question": "ü"}, "x.bin")

    return ask_it


def test_reply_comes_back_with_the_walls_that_were_granted(asked):
    reply = asked("print('a library speaks'); return {{'heard': request['question']}}".format())
    assert reply["heard"] == "ü"
    assert reply["confinement"]["audit hook"] is True


@pytest.mark.parametrize(
    ("body", "kind", "match"),
    [
        ("import os; os.kill(os.getpid(), 9)", SourceError, "no conversion does this: os.kill"),
        ("import ctypes; ctypes.string_at(0)", SourceError, "x.bin died of SIGSEGV"),
        ("import os; os._exit(7)", SourceError, "x.bin failed: it gave no message"),
        ("raise ValueError('so it is')", SourceError, "x.bin failed: ValueError: so it is"),
        ("raise MemoryError", MachineError, "not enough memory"),
        ("return {'error': 'a\\nb', 'kind': 'source'}", SourceError, r"^a\\nb$"),
        ("return {'a': chr(7) * 70_000_000}", SourceError, "answers without end"),
    ],
    ids=["signal", "crash", "exit", "raise", "memory", "lines", "flood"],
)
def test_any_failure_of_the_child_is_one_line(asked, body, kind, match):
    with pytest.raises(kind, match=match) as error:
        asked(body)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["[]", "nonsense", '{"a": 1, "a": 2}', ""])
def test_a_reply_that_is_no_object_is_refused(asked, text):
    with pytest.raises(SourceError, match=r"x\.bin"):
        asked(f"sys.stdout.write({text!r})", "import sys; sys.stdin.read();{body}")


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal")
def test_a_process_that_the_system_kills_is_said_to_lack_memory(asked):
    program = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)#{body}"
    with pytest.raises(MachineError, match="killed, most likely for want of memory"):
        asked("", program)


def test_child_sees_no_secret_of_the_environment(asked, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    seen = asked("import os; return {'seen': sorted(os.environ)}")["seen"]
    assert not {"HF_TOKEN", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"} & set(seen)
