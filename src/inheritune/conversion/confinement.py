"""Confine this process before it reads a stranger's pickle: the child's side of `sandbox`."""

import ctypes
import errno
import json
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from inheritune.conversion.landlock import restrict_writing
from inheritune.conversion.system_calls import seccomp_filter
from inheritune.errors import InherituneError, MachineError, reason_of

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


Prepared = TypeVar("Prepared")

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAP_DAC = 0b110  # root must still be able to read the files of others

_FORBIDDEN_EVENTS = (
    *("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system"),
    *("os.startfile", "os.symlink", "os.kill", "pty.", "signal.pthread_kill", "ctypes.dlopen"),
    *("urllib.", "http.", "ftplib.", "smtplib.", "webbrowser.", "winreg.", "syslog."),
)
_EVENTS_WITH_PATHS = {
    **dict.fromkeys(["os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.chmod"], 1),
    **dict.fromkeys(["os.chown", "os.utime", "os.setxattr", "os.removexattr", "os.chflags"], 1),
    **dict.fromkeys(["os.rename", "os.link"], 2),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


@dataclass(frozen=True)
class Limits:
    """Limits of a confined process."""

    file_bytes: int  # size of one file
    memory_bytes: int  # address space beyond what its libraries take
    seconds: int  # time until its answer


class Refused(PermissionError):
    """The audit hook stopped something that no conversion does."""


def serve(
    prepare: Callable[[Mapping[str, Any]], Prepared],
    answer: Callable[[Mapping[str, Any], Prepared], dict[str, Any]],
) -> None:
    """Read a request from stdin, confine this process, and reply on stdout, all in JSON.

    Args:
        prepare: Called with the request before the audit hook is set, to import large libraries; it
            must not open a stranger's file.
        answer: Called with the request and the result of ``prepare``; returns the reply.
    """
    request = json.loads(sys.stdin.buffer.read())
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    work = Path(request["work"])
    limits = Limits(**request["limits"])
    granted = confine(work, limits, request["parent"])
    try:
        prepared = prepare(request)
        granted["memory limit"] = _limit_memory(limits.memory_bytes)
        guard(work)
        granted["audit hook"] = True
        reply = answer(request, prepared)
    except InherituneError as error:
        kind = "machine" if isinstance(error, MachineError) else "source"
        reply = {"kind": kind, "error": error.message, "hint": error.hint}
    except Refused as error:
        message = f"it was stopped when it was read, since {error.strerror}."
        hint = "Do not use this copy of the model."
        reply = {"kind": "source", "error": message, "hint": hint}
    except MemoryError:
        reply = {"kind": "machine", "error": "there is not enough memory.", "hint": ""}
    except OSError as error:
        reply = {"kind": "machine", "error": f"the system refused: {reason_of(error)}.", "hint": ""}
    json.dump({"confinement": granted} | reply, replies)
    replies.close()


def confine(writable: Path, limits: Limits, parent: int) -> dict[str, bool]:
    """Put up the kernel's walls around this process and every process it starts.

    Call it before anything else: threads that exist already would stay unconfined. It never fails.

    Args:
        writable: The only directory that can still be written to.
        limits: All but the memory limit, which `serve` sets after libraries are mapped.
        parent: Process id of the parent; this process ends with it.

    Returns:
        Each wall, and whether the kernel granted it.
    """
    granted = {
        "limits": _limit_files_and_time(limits),
        "network namespace": False,
        "landlock": False,
        "seccomp": False,
    }
    if not sys.platform.startswith("linux"):
        return granted
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _prctl(libc, _PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        granted["network namespace"] = _leave_network(libc)
        unprivileged = _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
        granted["landlock"] = unprivileged and restrict_writing(libc, writable)
        granted["seccomp"] = unprivileged and _seccomp(libc)
    except (OSError, AttributeError):  # another C library
        pass
    return granted


def _prctl(libc: ctypes.CDLL, *arguments: Any) -> bool:
    # prctl reads whole registers; a plain int of ctypes fills only their lower half.
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    rest = [ctypes.c_ulong(0)] * (5 - len(wide))
    return bool(libc.prctl(*wide, *rest) == 0)


def _limit_files_and_time(limits: Limits) -> bool:
    if resource is None:
        return False
    # Seconds of all processors together. The hard limit kills even what the soft one does not.
    cpu_s = limits.seconds * (os.cpu_count() or 1)
    return (
        _set_limit(resource.RLIMIT_CORE, 0)
        and _set_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
        and _set_limit(resource.RLIMIT_CPU, cpu_s, cpu_s + 5)
    )


def _limit_memory(more_bytes: int) -> bool:
    """Let the address space grow by this many bytes from now on."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):  # not Linux
        return False
    return _set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def _set_limit(kind: int, soft: int, hard: int | None = None) -> bool:
    """Lower a limit; keep one that is already lower."""
    try:
        now = resource.getrlimit(kind)[1]
        pair = [soft, soft if hard is None else hard]
        if now != resource.RLIM_INFINITY:
            pair = [min(now, value) for value in pair]
        resource.setrlimit(kind, (pair[0], pair[1]))
    except (OSError, ValueError):
        return False
    return True


def _leave_network(libc: ctypes.CDLL) -> bool:
    # Root does without a user namespace of its own: there it could not read the files of others.
    flags = [_CLONE_NEWNET] if os.geteuid() == 0 else []
    flags.append(_CLONE_NEWUSER | _CLONE_NEWNET)
    has_left = any(libc.unshare(flag) == 0 for flag in flags)
    # With its other powers, root could simply enter the old namespace again.
    header = struct.pack("=Ii", 0x20080522, 0)
    powers = _CAP_DAC if os.geteuid() == 0 else 0
    libc.capset(header, struct.pack("=6I", powers, powers, 0, 0, 0, 0))
    return has_left


def _seccomp(libc: ctypes.CDLL) -> bool:
    """Install the filter of `system_calls`."""
    program = seccomp_filter(platform.machine()) if sys.maxsize > 2**32 else None
    if program is None:
        return False
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
    return _prctl(libc, _PR_SET_SECCOMP, 2, ctypes.c_char_p(header))


def guard(writable: Path) -> None:
    """Let Python refuse sockets, programs, other processes, and writing outside one directory.

    The audit hook cannot be removed. Files in ``writable`` must be opened by their full path.
    """
    root = os.path.join(os.path.realpath(writable), "")  # noqa: PTH118

    def inside(path: Any) -> bool:
        if isinstance(path, int):  # a descriptor that is open already
            return True
        name = os.fsdecode(path)
        if name == os.devnull:
            return True
        return os.path.isabs(name) and os.path.realpath(name).startswith(root)  # noqa: PTH117

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            refused = bool((flags or 0) & _WRITING) and not inside(path)
        elif event in _EVENTS_WITH_PATHS:
            refused = not all(inside(path) for path in arguments[: _EVENTS_WITH_PATHS[event]])
        else:
            refused = event.startswith(_FORBIDDEN_EVENTS)
        if refused:
            raise Refused(errno.EPERM, f"no conversion does this: {event}")

    sys.addaudithook(hook)
