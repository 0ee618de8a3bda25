"""Run code on a stranger's pickle in a child process that has given up all it does not need.

What each wall is for:

- **torch's restricted unpickler** (`unpickle`) is the first one: it calls no function that a pickle
  names. The others stand behind it, for the day when it has a hole.
- **A process of its own**, with a cleaned environment and a directory of its own: no token, no
  switch of torch and no open file of the parent is in reach; a crash is an error message; what it
  replies and writes is read as a stranger's.
- **Limits**: no core dump, which would hold the weights; no file beyond a sensible size; memory,
  processor time and a deadline, against files that would take all of them.
- **A session of its own**: no terminal to type into; its process group is killed at the end.
- **Network namespace**: no network at all. **seccomp** (`system_calls`): no new sockets, programs,
  processes or namespaces, no hold on other processes, no change to modes, owners or times of files.
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
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from inheritune.conversion.system_calls import seccomp_filter
from inheritune.errors import InherituneError, MachineError, SourceError, escape
from inheritune.system.strict_json import UNTRUSTED, parse_json

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


Prepared = TypeVar("Prepared")


@dataclass(frozen=True)
class Limits:
    """What a confined process may use.

    Attributes:
        file_bytes: Size that a file may grow to.
        memory_bytes: Address space beyond what its libraries take.
        seconds: Time until its answer.
    """

    file_bytes: int
    memory_bytes: int
    seconds: int


# --- the parent ---

_MAX_REPLY = 64 * 2**20  # the names of a million tensors
# All that the child sees of the environment: neither tokens nor switches of torch.
_ENVIRONMENT = {
    *("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT"),
    *("LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS"),
}


def ask(
    module: str, work: Path, request: Mapping[str, Any], limits: Limits, subject: str
) -> dict[str, Any]:
    """Run a module of this package as a confined process, and return its reply.

    Neither it nor a process that it started lives on afterwards.

    Args:
        module: Name of a module that calls `serve` when it is run.
        work: The one directory that the process can write to; it exists.
        request: JSON values; ``work``, ``limits`` and ``parent`` are added.
        limits: What it may use.
        subject: Name of what is being read, for messages.

    Raises:
        SourceError: The process refused what it read, died of it, or had no answer in time.
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
    own = {"work": str(work), "limits": asdict(limits), "parent": os.getpid()}
    text = json.dumps({**request, **own}).encode("ascii")
    with tempfile.TemporaryFile(dir=work) as messages:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=messages,
            env=environment,
            cwd=work,
            start_new_session=True,  # neither our terminal nor our process group
        )
        late = threading.Event()

        def expire() -> None:
            late.set()
            _kill(child)

        deadline = threading.Timer(limits.seconds, expire)
        deadline.daemon = True
        deadline.start()
        try:
            reply = _exchange(child, text, subject)
        finally:
            deadline.cancel()
            _kill(child)
            child.wait()
            for pipe in (cast(IO[bytes], child.stdin), cast(IO[bytes], child.stdout)):
                with suppress(BrokenPipeError):
                    pipe.close()
        if late.is_set() or child.returncode == -getattr(signal, "SIGXCPU", signal.SIGTERM):
            raise SourceError(
                f"the process that read {subject} had no answer after {limits.seconds} s: it was "
                "stopped.",
                "Download the file again; do not use it if it stays so.",
            )
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


def _kill(child: "subprocess.Popen[bytes]") -> None:
    """Kill the process with all that it started; both may have ended already."""
    if os.name != "posix":
        child.kill()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)


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
        reply = {"kind": "machine", "error": f"the system refused: {error}.", "hint": ""}
    json.dump({"confinement": granted} | reply, replies)
    replies.close()


def confine(writable: Path, limits: Limits, parent: int) -> dict[str, bool]:
    """Put up the kernel's walls for this process and all that it starts.

    Called first of all: threads that exist already would go on unconfined. It never fails.

    Args:
        writable: The one directory in which files can still be made and written.
        limits: Limits of the child; `serve` sets the one of memory, after libraries are mapped.
        parent: Process id of the parent; when it ends, so does this process.

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
    """Let the address space grow by so much from now on."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError):  # not Linux
        return False
    return _set_limit(resource.RLIMIT_AS, pages * resource.getpagesize() + more_bytes)


def _set_limit(kind: int, soft: int, hard: int | None = None) -> bool:
    """Lower one limit; one that is lower already stays."""
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
    """Set the filter of `system_calls`."""
    program = seccomp_filter(platform.machine()) if sys.maxsize > 2**32 else None
    if program is None:
        return False
    code = ctypes.create_string_buffer(program)
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(code))
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
