"""Run a module on a stranger's pickle in a child process that has given up all it does not need.

Each wall and its purpose:

- **torch's restricted unpickler** (`unpickle`) comes first: it calls no function that a pickle
  names. The other walls stand behind it, for the day when it has a hole.
- **A process of its own**, with a cleaned environment and its own directory: no token, no switch
  of torch and no open file of the parent is in reach; a crash becomes an error message; replies
  and files are read like a stranger's.
- **Limits** (`confinement`): no core dump, which would hold the weights; bounded file sizes,
  memory, processor time and duration.
- **A session of its own**: no terminal to type into; its process group is killed at the end.
- **Network namespace**: no network at all. **seccomp** (`system_calls`): no new sockets, programs,
  processes or namespaces, no access to other processes, no change to modes, owners or times.
- **Landlock** (`landlock`): no change to files outside the work directory, and no program run.
- **Audit hook** (`confinement`): Python's own refusal of all of that, where the system has no such
  walls (macOS, Windows, old kernels). It stops honest mistakes and simple attacks, but nobody who
  runs machine code; the parent warns where it was the only wall.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from inheritune.conversion.confinement import Limits
from inheritune.errors import MachineError, SourceError, escape
from inheritune.system.strict_json import UNTRUSTED, parse_json

_MAX_REPLY = 64 * 2**20  # the names of a million tensors
# The variables that the child keeps: neither tokens nor switches of torch.
_ENVIRONMENT = {
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
    *("LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
}


def ask(
    module: str, work: Path, request: Mapping[str, Any], limits: Limits, subject: str
) -> dict[str, Any]:
    """Run a module in a confined process and return its reply; it leaves no process behind.

    Args:
        module: Name of a module that calls `confinement.serve` when it is run.
        work: Existing directory, the only one that the process can write to.
        request: JSON values; ``work``, ``limits`` and ``parent`` are added.
        subject: Name of the file that is read, for messages.

    Raises:
        SourceError: The process refused the file, crashed on it, or did not answer in time.
        MachineError: The disk or the memory did not suffice.
    """
    # --- start the child: a cleaned environment, its own directory and session ---
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {name: v for name, v in os.environ.items() if name in _ENVIRONMENT} | {
        **dict.fromkeys(["TMPDIR", "TEMP", "TMP", "HOME", "USERPROFILE"], str(scratch)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }
    own = {"work": str(work), "limits": asdict(limits), "parent": os.getpid()}
    with tempfile.TemporaryFile(dir=work) as question, tempfile.TemporaryFile(dir=work) as messages:
        question.write(json.dumps({**request, **own}).encode("ascii"))
        question.seek(0)
        started_at = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=question,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
            cwd=work,
            start_new_session=True,  # neither our terminal nor our process group
        )
        # --- wait for its reply, and kill whatever is left of it ---
        deadline = threading.Timer(limits.seconds, _kill, [child])
        deadline.daemon = True
        deadline.start()
        try:
            reply = _read_reply(child, subject)
        finally:
            deadline.cancel()
            _kill(child)
            child.wait()
        # --- say why there is no reply ---
        is_late = time.monotonic() - started_at >= limits.seconds
        if is_late or child.returncode == -getattr(signal, "SIGXCPU", signal.SIGTERM):
            raise SourceError(
                f"the process that read {subject} had no answer after {limits.seconds} s: it was "
                "stopped.",
                "Download the file again; do not use it if it stays so.",
            )
        if not reply:
            raise _death(child.returncode, messages, subject)
    # --- read the reply like a stranger's file: the pickle may have written it ---
    value = parse_json(reply, f"the answer of the process that read {subject}", UNTRUSTED)
    if not isinstance(value, dict):
        raise SourceError(f"the process that read {subject} gave no answer.")
    if "error" in value:
        kind = MachineError if value.get("kind") == "machine" else SourceError
        raise kind(escape(value["error"], 500), escape(value.get("hint", ""), 300))
    return value


def _read_reply(child: "subprocess.Popen[bytes]", subject: str) -> bytes:
    assert child.stdout is not None
    with child.stdout as stdout:
        reply = stdout.read(_MAX_REPLY + 1)
        if len(reply) > _MAX_REPLY:
            raise SourceError(f"the process that read {subject} answers without end.")
        child.wait()
    return reply


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill the process and all processes it started; they may have ended already."""
    if os.name != "posix":
        child.kill()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


def _death(code: int, messages: IO[bytes], subject: str) -> SourceError | MachineError:
    if code == -signal.SIGKILL:
        return MachineError(
            f"the process that read {subject} was killed, most likely for want of memory.",
            "Convert it on a machine with more memory than its largest file.",
        )
    if code < 0:
        name = signal.Signals(-code).name
        return SourceError(
            f"the process that read {subject} died of {name}: the file is broken, or was changed "
            "meanwhile.",
            "Download it again.",
        )
    messages.seek(max(0, messages.seek(0, os.SEEK_END) - 4000))
    lines = messages.read().decode("utf-8", "replace").strip().splitlines()
    last = escape(lines[-1] if lines else "it gave no message", 200)
    return SourceError(
        f"the process that read {subject} failed: {last}.", "Download it again, or report it."
    )
