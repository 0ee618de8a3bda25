import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from inheritune.errors import Interrupted
from inheritune.system.signals import StopFlag, catch_signals


def test_flag_is_not_set_by_itself() -> None:
    flag = StopFlag()
    flag.check("nothing to save")
    assert not flag()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_sets_the_flag_and_the_check_says_which(number: signal.Signals) -> None:
    with catch_signals() as flag:
        os.kill(os.getpid(), number)
        assert flag()
        with pytest.raises(Interrupted, match=f"stopped by {number.name}; all is saved") as error:
            flag.check("all is saved")
    assert error.value.exit_code == 75


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_signals():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_signal_passed_on_by_torchrun_is_no_second_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with catch_signals() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # would end this process
        assert flag.signal_number == signal.SIGINT


def test_flag_follows_the_request_of_another_process() -> None:
    flag = StopFlag()
    flag.heed(False)
    assert not flag()
    flag.heed(True)
    assert flag.signal_number == signal.SIGTERM


@pytest.fixture
def default_sigint() -> Iterator[None]:
    """Python's own handler: a job in the background is started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_sigint")
def test_a_second_signal_interrupts_a_library_call() -> None:
    with pytest.raises(KeyboardInterrupt), catch_signals() as flag:
        os.kill(os.getpid(), signal.SIGINT)
        assert flag()
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_ends_the_process_of_a_command_at_once(
    number: signal.Signals, code: int
) -> None:
    program = (
        "import time; from inheritune.system import signals\n"
        "from inheritune.system.signals import catch_signals\n"
        "signals.end_process_at_second_signal()\n"
        "with catch_signals() as flag:\n"
        "    print('ready', flush=True)\n"
        "    while not flag(): time.sleep(0.01)\n"
        "    print('caught', flush=True)\n"
        "    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == b"caught\n"
        time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=10) == code


_UNDER_A_TERMINAL = """
import os, sys, time
from inheritune.system.signals import catch_signals
with catch_signals() as flag:
    print("ready", flush=True)
    ends = time.monotonic() + 20
    while not flag() and time.monotonic() < ends:
        time.sleep(0.01)
    print("saving", flush=True)
    print("saving", file=sys.stderr, flush=True)
    open(sys.argv[1], "w").write(str(flag.signal_number))
"""


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals")
def test_a_closed_terminal_asks_to_stop_and_printing_does_not_fail(tmp_path: Path) -> None:
    saved = tmp_path / "saved"
    ours, theirs = os.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", _UNDER_A_TERMINAL, str(saved)],
        pass_fds=[theirs],
        preexec_fn=lambda: _take_terminal(theirs),
    )
    os.close(theirs)
    assert b"ready" in os.read(ours, 100)
    os.close(ours)
    assert program.wait(30) == 0
    assert saved.read_text() == str(int(signal.SIGHUP))


def _take_terminal(terminal: int) -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for descriptor in range(3):
        os.dup2(terminal, descriptor)


def test_an_ignored_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with catch_signals() as flag:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not flag()
    finally:
        signal.signal(signal.SIGHUP, before)
