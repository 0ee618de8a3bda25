import os
import signal
import sys
import time

import pytest

from inheritune.conversion.confinement import Limits
from inheritune.conversion.sandbox import ask
from inheritune.errors import MachineError, SourceError

_LIMITS = Limits(10**6, 2**30, 60)
_SERVE = """
from inheritune.conversion.confinement import serve
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

    def ask_it(body, program=_SERVE, limits=_LIMITS):
        (code / "answering.py").write_text(program.format(body=f"    {body}"))
        work = tmp_path / "work"
        work.mkdir()
        return ask("answering", work, {"question": "ü"}, limits, "x.bin")

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


@pytest.mark.parametrize(
    ("body", "limits"),
    [
        ("import time; time.sleep(600)", Limits(10**6, 2**30, 3)),
        ("sum(range(10**12))", Limits(10**6, 2**30, 3)),
        ("import os; os.close(1); os.close(2); import time; time.sleep(600)", Limits(9, 2**30, 3)),
    ],
    ids=["sleep", "work", "closed"],
)
def test_it_is_stopped_when_it_has_no_answer_in_time(asked, body, limits):
    began = time.monotonic()
    with pytest.raises(SourceError, match=r"x\.bin had no answer after 3 s: it was stopped"):
        asked(body, limits=limits)
    assert time.monotonic() - began < 30


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_memory_beyond_its_limit_is_refused(asked):
    with pytest.raises(MachineError, match="not enough memory"):
        asked("return {'a': len(bytearray(2**31))}")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no such call")
def test_no_process_that_it_started_outlives_it(asked, tmp_path):
    """Without confinement, as on a system that grants none: the process group is ended."""
    program = (
        "import os, sys, time\n{body}\nsys.stdin.read()\nif os.fork() == 0:\n"
        "    for descriptor in range(3): os.close(descriptor)\n    time.sleep(2)\n"
        f"    open({str(tmp_path / 'late')!r}, 'w').write('x')\n    os._exit(0)\n"
        "print('{{}}')"
    )
    asked("", program)
    time.sleep(3)
    assert not (tmp_path / "late").exists()


@pytest.mark.skipif(not hasattr(os, "getsid"), reason="no sessions")
def test_it_has_a_session_of_its_own(asked):
    reply = asked("import os; return {'session': os.getsid(0), 'pid': os.getpid()}")
    assert reply["session"] == reply["pid"] != os.getsid(0)
