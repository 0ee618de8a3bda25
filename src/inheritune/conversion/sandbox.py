"""Run code on a stranger's pickle in a child process that has given up all it does not need.

What each wall is for:

- **torch's restricted unpickler** (`unpickle`) is the first one: it calls no function that a pickle
  names. The others stand behind it, for the day when it has a hole.
- **A process of its own**, with a cleaned environment and a directory of its own: no token, no
  switch of torch and no open file of the parent is in reach; a crash is an error message; what it
  replies and writes is read as a stranger's.
- **Limits**: no core dump, which would hold the weights; no file beyond a sensible size.
- **Network namespace**: no network at all. **seccomp**: no new sockets, programs or
  namespaces, and no hold on other processes, also where the kernel grants no namespace.
- **Landlock**: no change to any file outside of the work directory, and no program run.
- **Audit hook**: Python's own refusal of all of that, where the system has no such walls (macOS,
  Windows, old kernels). It stops honest mistakes and simple attacks, and no attacker who runs
  machine code; the parent warns where it was the only one.
"""

import ctypes
import errno
import json
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from inheritune.errors import InherituneError, MachineError, SourceError, escape
from inheritune.system.strict_json import UNTRUSTED, parse_json

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__all__ = ["Refused", "ask", "confine", "guard", "serve"]

Prepared = TypeVar("Prepared")

# --- the parent ---

_MAX_REPLY = 64 * 2**20  # the names of a million tensors
# All that the child sees of the environment: neither tokens nor switches of torch.
_ENVIRONMENT = {
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
    *("LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
}


def ask(module: str, work: Path, request: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """Run a module of this package as a confined process, and return its reply.

    Args:
        module: Name of a module that calls `serve` when it is run.
        work: The one directory that the process can write to; it exists.
        request: JSON values; ``work`` and ``parent`` are added.
        subject: Name of what is being read, for messages.

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
    with tempfile.TemporaryFile(dir=work) as messages:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
            cwd=work,
        )
        try:
            reply = _exchange(child, text, subject)
        finally:
            child.kill()
            child.wait()
            for pipe in (cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)):
                with suppress(BrokenPipeError):
                    pipe.close()
        if not reply:
            raise _died(child.returncode, messages, subject)
    value = parse_json(reply, f"the answer of the process that read {subject}", UNTRUSTED)
    if not isinstance(value, dict):
        raise SourceError(f"the process that read {subject} gave no answer.")
    if "error" in value:
        kind = MachineError if value.get("kind") == "machine" else SourceError
        raise kind(escape(value["error"], 500), escape(value.get("hint", ""), 300))
    return value


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


def _died(code: int, messages: IO[bytes], subject: str) -> SourceError | MachineError:
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


# --- the child ---

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
    """Read a request from stdin, put up the walls, and reply on stdout, all in JSON.

    Args:
        prepare: Called with the request before the audit hook is set, to import large libraries. It
            touches no file of a stranger.
        answer: Called with the request and what ``prepare`` returned; returns the reply.
    """
    request = json.loads(sys.stdin.buffer.read())
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # what a library prints is no reply
    work = Path(request["work"])
    granted = confine(work, request["largest_file"], request["parent"])
    try:
        prepared = prepare(request)
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
        reply = {"kind": "machine", "error": f"the system refused: {error}.", "hint": ""}
    json.dump({"confinement": granted} | reply, replies)
    replies.close()


def confine(writable: Path, largest_file: int, parent: int) -> dict[str, bool]:
    """Put up the kernel's walls for this process and all that it starts.

    Called first of all: threads that exist already would go on unconfined. It never fails.

    Args:
        writable: The one directory in which files can still be made and written.
        largest_file: Bytes that a file may grow to.
        parent: Process id of the parent; when it ends, so does this process.

    Returns:
        Each wall, and whether the kernel granted it.
    """
    granted = {
        "limits": _limit(largest_file),
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
        granted["landlock"] = unprivileged and _landlock(libc, writable)
        granted["seccomp"] = unprivileged and _seccomp(libc)
    except (OSError, AttributeError):  # another C library
        pass
    return granted


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
    flags = [_CLONE_NEWNET] if os.geteuid() == 0 else []
    flags.append(_CLONE_NEWUSER | _CLONE_NEWNET)
    has_left = any(libc.unshare(flag) == 0 for flag in flags)
    # With its other powers, root could simply enter the old namespace again.
    header = struct.pack("=Ii", 0x20080522, 0)
    powers = _CAP_DAC if os.geteuid() == 0 else 0
    libc.capset(header, struct.pack("=6I", powers, powers, 0, 0, 0, 0))
    return has_left


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
        _allow(libc, rules, Path(os.devnull), _WRITE_FILE)
        is_writable = _allow(libc, rules, writable, inside)
        return is_writable and bool(libc.syscall(_LANDLOCK_RESTRICT, rules, 0) == 0)
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
    """Set a filter that answers "not permitted" to `_FORBIDDEN_CALLS`."""
    if platform.machine() not in _FORBIDDEN_CALLS or sys.maxsize < 2**32:
        return False
    architecture, calls = _FORBIDDEN_CALLS[platform.machine()]
    load, equal, at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    # BPF: (operation, lines to skip if the comparison holds, lines to skip if not, operand)
    program = [
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
    """Set the audit hook, for the rest of this process.

    It refuses sockets, programs, other processes, and changes to files outside one directory.

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
