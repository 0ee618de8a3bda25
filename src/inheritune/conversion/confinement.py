"""What a process gives up before it touches a stranger's pickle: the network, programs, writing.

The kernel's part holds whatever the process does. The audit hook is Python's own: it stops honest
mistakes and simple attacks everywhere, and no attacker who runs machine code.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from inheritune.errors import InherituneError, MachineError

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Refused", "confine", "guard", "serve"]

Prepared = TypeVar("Prepared")

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
# The same numbers on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
# Rights of Landlock, by the ABI that brought them. Reading is not restricted.
_EXECUTE, _WRITE_FILE, _REFER, _TRUNCATE, _IOCTL_DEV = 1, 2, 1 << 13, 1 << 14, 1 << 15
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_BIND_AND_CONNECT_TCP, _ABSTRACT_SOCKETS_AND_SIGNALS = 3, 3
_CAP_DAC = 0b110  # root must still be able to read the files of others
# socket, socketpair, execve, execveat, ptrace, process_vm_writev, setns, unshare, io_uring_setup,
# pidfd_getfd
_FORBIDDEN_CALLS = {
    "x86_64": (0xC000003E, (41, 53, 59, 322, 101, 311, 308, 272, 425, 438)),
    "aarch64": (0xC00000B7, (198, 199, 221, 281, 117, 271, 268, 97, 425, 438)),
}

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


class Refused(PermissionError):
    """The audit hook stopped something that no conversion does."""


def serve(
    prepare: Callable[[Mapping[str, Any]], Prepared],
    answer: Callable[[Mapping[str, Any], Prepared], dict[str, Any]],
) -> None:
    """Read a request from stdin, give up what it does not need, and reply on stdout, all in JSON.

    Args:
        prepare: Gets the request, before the audit hook is set: imports of large libraries. It
            touches no file of a stranger.
        answer: Gets the request and what was prepared; returns the reply.
    """
    request = json.loads(sys.stdin.buffer.read())
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    work = Path(request["work"])
    held = confine(work, request["largest_file"], request["parent"])
    try:
        prepared = prepare(request)
        guard(work)
        held["audit hook"] = True
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
        reply = {"kind": "machine", "error": f"the system refused: {error}.", "hint": ""}
    json.dump({"confinement": held} | reply, replies)
    replies.close()


def confine(writable: Path, largest_file: int, parent: int) -> dict[str, bool]:
    """Give up, for this process and all that it starts, what the kernel can take away.

    Called first of all: threads that exist already would go on unconfined. Never fails; it says
    what held.

    Args:
        writable: The one directory in which files can still be made and written.
        largest_file: Bytes that a file may grow to.
        parent: Process id of whoever started this one; with it, this one ends.

    Returns:
        What was tried, and whether the kernel granted it.
    """
    held = {
        "limits": _limit(largest_file),
        "network namespace": False,
        "landlock": False,
        "seccomp": False,
    }
    if not sys.platform.startswith("linux"):
        return held
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        _prctl(libc, _PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)
        held["network namespace"] = _leave_network(libc)
        unprivileged = _prctl(libc, _PR_SET_NO_NEW_PRIVS, 1)
        held["landlock"] = unprivileged and _landlock(libc, writable)
        held["seccomp"] = unprivileged and _seccomp(libc)
    except (OSError, AttributeError):  # another C library
        pass
    return held


def _prctl(libc: ctypes.CDLL, *arguments: Any) -> bool:
    # It takes whole registers, of which ctypes would fill the lower half.
    wide = [ctypes.c_ulong(a) if isinstance(a, int) else a for a in arguments]
    rest = [ctypes.c_ulong(0)] * (5 - len(wide))
    return bool(libc.prctl(*wide, *rest) == 0)


def _limit(largest_file: int) -> bool:
    if resource is None:
        return False
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        size = largest_file if hard == resource.RLIM_INFINITY else min(hard, largest_file)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    except (OSError, ValueError):
        return False
    return True


def _leave_network(libc: ctypes.CDLL) -> bool:
    # Root does without a user namespace of its own: there it could not read the files of others.
    ways = [_CLONE_NEWNET] if os.geteuid() == 0 else []
    left = any(libc.unshare(flags) == 0 for flags in [*ways, _CLONE_NEWUSER | _CLONE_NEWNET])
    # With its other powers, root could simply enter the old namespace again.
    header = struct.pack("=Ii", 0x20080522, 0)
    kept = _CAP_DAC if os.geteuid() == 0 else 0
    libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0))
    return left


def _landlock(libc: ctypes.CDLL, writable: Path) -> bool:
    abi = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = _EXECUTE | _WRITE_FILE | _REMOVE_AND_MAKE
    rights |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    rights |= _IOCTL_DEV if abi >= 5 else 0
    network = _BIND_AND_CONNECT_TCP if abi >= 4 else 0
    scoped = _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("=QQQ", rights, network, scoped)[:size]
    rules = libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    inside = _WRITE_FILE | _REMOVE_FILE | _REMOVE_DIR | _MAKE_DIR | _MAKE_REG
    inside |= _TRUNCATE if abi >= 3 else 0
    try:
        # Libraries that torch imports where they are there (dill) open the null device to write.
        added = [
            _allow(libc, rules, path, granted)
            for path, granted in ((writable, inside), (Path(os.devnull), _WRITE_FILE))
        ]
        return bool(added[0] and libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        return bool(libc.syscall(_LANDLOCK_ADD, rules, 1, rule, 0) == 0)
    finally:
        os.close(descriptor)


def _seccomp(libc: ctypes.CDLL) -> bool:
    """A filter that answers "not permitted" to new sockets, new programs and old namespaces."""
    if platform.machine() not in _FORBIDDEN_CALLS or sys.maxsize < 2**32:
        return False
    architecture, calls = _FORBIDDEN_CALLS[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    program = [  # of the two distances in a line, the first is taken when its comparison holds
        (load, 0, 0, 4),  # which architecture the call is of
        (equal, 0, len(calls) + 3, architecture),
        (load, 0, 0, 0),  # its number
        (at_least, len(calls) + 1, 0, 0x40000000),  # x86_64: the same calls in their x32 form
        *((equal, len(calls) - i, 0, number) for i, number in enumerate(calls)),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    return _prctl(libc, _PR_SET_SECCOMP, 2, ctypes.c_char_p(header))


def guard(writable: Path) -> None:
    """Refuse, for the rest of this process, what a converter never does.

    Sockets, programs, other processes, and every change to a file outside one directory.

    Args:
        writable: The directory; files in it are opened by their full path.
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
