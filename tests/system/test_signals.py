import os
import signal
import subprocess
import sys
import time

import pytest

from inheritune.errors import Interrupted
from inheritune.system.signals import StopFlag, catch_signals


def test_flag_is_not_set_by_itself() -> None:
    flag = StopFlag()
    flag.check("nothing to save")
    assert not flag()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
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
