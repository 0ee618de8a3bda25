"""A confined process that is asked one thing, in JSON, and whose answer is not trusted either."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

from inheritune.errors import MachineError, SourceError, escape
from inheritune.system.strict_json import UNTRUSTED, parse_json

__all__ = ["ask"]

_MAX_REPLY = 64 * 2**20  # the names of a million tensors
# All that the child sees of the environment: neither tokens nor switches of torch.
_ENVIRONMENT = {
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
    *("LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
}


def ask(module: str, work: Path, request: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Run a module of this room in a process of its own, and wait for its reply.

    Args:
        module: Calls `inheritune.conversion.confinement.serve`.
        work: The one directory that the process can write to; exists.
        request: JSON values; ``work`` and ``parent`` are added.
        subject: What is being read, for messages.

    Returns:
        The reply.

    Raises:
        SourceError: The process refused what it read, or died of it.
        MachineError: The disk or the memory did not suffice.
    """
    scratch = work / "tmp"
    scratch.mkdir()
    environment = {name: v for name, v in os.environ.items() if name in _ENVIRONMENT} | {
        **dict.fromkeys(["TMPDIR", "TEMP", "TMP", "HOME", "USERPROFILE"], str(scratch)),
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1",
    }
    text = json.dumps({**request, "work": str(work), "parent": os.getpid()}).encode("ascii")
    with tempfile.TemporaryFile(dir=work) as words:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            env=environment,
            cwd=work,
        )
        try:
            reply = _exchange(child, text, subject)
        finally:
            child.kill()
            child.wait()
            _close(child)
        if not reply:
            raise _died(child.returncode, words, subject)
    return _understood(reply, subject)


def _exchange(child: "subprocess.Popen[bytes]", text: bytes, subject: str) -> bytes:
    stdin, stdout = cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)
    with suppress(BrokenPipeError):  # it died before it read anything; its end says why
        stdin.write(text)
        stdin.close()
    reply = stdout.read(_MAX_REPLY + 1)
    if len(reply) > _MAX_REPLY:
        raise SourceError(f"the process that read {subject} answers without end.")
    child.wait()
    return reply


def _close(child: "subprocess.Popen[bytes]") -> None:
    for pipe in (child.stdin, child.stdout):
        if pipe is not None and not pipe.closed:
            with suppress(BrokenPipeError):
                pipe.close()


def _died(code: int, words: IO[bytes], subject: str) -> SourceError | MachineError:
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
    words.seek(max(0, words.seek(0, os.SEEK_END) - 4000))
    lines = words.read().decode("utf-8", "replace").strip().splitlines()
    last = escape(lines[-1] if lines else "it said nothing", 200)
    return SourceError(
        f"the process that read {subject} failed: {last}.", "Download it again, or report it."
    )


def _understood(reply: bytes, subject: str) -> dict[str, Any]:
    value = parse_json(reply, f"the answer of the process that read {subject}", UNTRUSTED)
    if not isinstance(value, dict):
        raise SourceError(f"the process that read {subject} gave no answer.")
    if "error" in value:
        kind = MachineError if value.get("kind") == "machine" else SourceError
        raise kind(escape(value["error"], 500), escape(value.get("hint", ""), 300))
    return value
