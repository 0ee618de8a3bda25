"""What a confined process can still do, tried in real processes."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from inheritune.conversion.system_calls import refused_calls

# Each tries something that a converter never does; what is printed is how it ended.
_ATTEMPTS = {
    "socket": "import socket; socket.socket()",
    "udp": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "connect": "import socket; socket.create_connection(('127.0.0.1', {port}), 2)",
    "local socket": "import socket; socket.socketpair()",
    "run": "import subprocess; subprocess.run(['/bin/true'])",
    "exec": "import os; os.execv('/bin/true', ['/bin/true'])",
    "signal": "import os; os.kill({parent}, 0)",
    "write": "open({outside!r} + '/PWNED', 'w')",
    "low write": "import os; os.open({outside!r} + '/PWNED', os.O_WRONLY | os.O_CREAT)",
    "change": "open({outside!r} + '/mine', 'r+')",
    "truncate": "import os; os.truncate({outside!r} + '/mine', 0)",
    "remove": "import os; os.remove({outside!r} + '/mine')",
    "move": "import os; os.rename({outside!r} + '/mine', {inside!r} + '/stolen')",
    "directory": "import os; os.mkdir({outside!r} + '/PWNED')",
    "link": "import os; os.symlink({outside!r}, {inside!r} + '/link')",
    "climb": "open({inside!r} + '/../outside/PWNED', 'w')",
    "own file": "open({inside!r} + '/fine', 'w').write('x')",
    "read": "open({outside!r} + '/mine').read()",
    "null device": "open('/dev/null', 'r+b').write(b'x')",
}
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part is Linux's")
_ALLOWED = {"own file", "read", "null device"}
# Calls of the C library, which no audit hook sees, on the user's other files and processes.
_NATIVE = {
    "mode": "libc.chmod(mine, 0o777)",
    "mode by descriptor": "libc.fchmod(descriptor, 0o777)",
    "owner": "libc.chown(mine, {uid}, {uid})",
    "time": "libc.utimes(mine, None)",
    "attribute": "libc.setxattr(mine, b'user.a', b'x', 1, 0)",
    "attribute by descriptor": "libc.fsetxattr(descriptor, b'user.a', b'x', 1, 0)",
    "no attribute": "libc.removexattr(mine, b'user.b')",
    "flags": "libc.ioctl(descriptor, 0x40086602, ctypes.byref(ctypes.c_long(0x40)))",
    "limits of the parent": "libc.prlimit({parent}, 4, ctypes.byref(pair), None)",
    "signal": "libc.kill({parent}, 0)",
    "signal to a thread": "libc.syscall({tgkill}, {parent}, {parent}, 0)",
    "signal by a pipe": "libc.fcntl(pipe, 8, {parent})",
    "priority of the parent": "libc.setpriority(0, {parent}, 1)",
    "memory of the parent": "libc.process_vm_readv({parent}, None, 0, None, 0, 0)",
    "fork": "libc.fork() or os._exit(0)",
    "clone": "libc.syscall({clone}, 17, 0, 0, 0, 0) or os._exit(0)",
    "clone3": "libc.syscall(435, (ctypes.c_uint64 * 11)(0, 0, 0, 0, 17), 88) or os._exit(0)",
    "shared memory": "libc.shmget(0, 4096, 0o1600)",
    "messages": "libc.msgget(0, 0o1600)",
    "semaphores": "libc.semget(0, 1, 0o1600)",
    "keyring": "libc.syscall({add_key}, b'user', b'a', b'x', 1, -3)",
    "typing": "libc.ioctl(tty, 0x5412, b'x')",
    "taking a terminal": "libc.ioctl(tty, 0x540E, 0)",
    "mount": "libc.mount(b'a', b'/mnt', b'tmpfs', 0, None)",
}
_PREPARE_NATIVE = """
import ctypes, os, pty
libc = ctypes.CDLL(None, use_errno=True)
mine = {mine!r}.encode()
descriptor, pair = os.open(mine, os.O_RDONLY), (ctypes.c_uint64 * 2)(2**40, 2**40)
pipe, tty = os.pipe()[0], pty.openpty()[1]
"""
_PROGRAM = """
import json, os, sys
from pathlib import Path
from inheritune.conversion.confinement import Limits, confine, guard
request = json.loads(sys.argv[1])
words = {}
exec(request["prepare"], words)
limits = Limits(10**6, 2**30, 60)
held = confine(Path(request["inside"]), limits, os.getppid()) if request["kernel"] else {}
if request["guard"]:
    guard(Path(request["inside"]))
endings = {}
for name, attempt in request["attempts"].items():
    try:
        exec(attempt, dict(words))
        endings[name] = "done"
    except BaseException as error:
        endings[name] = type(error).__name__
print(json.dumps({"held": held, "endings": endings}))
"""


def attempt(tmp_path, kernel, guard, attempts=_ATTEMPTS, prepare=""):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for directory in (inside, outside):
        directory.mkdir(exist_ok=True)
    (outside / "mine").write_text("mine")
    words = {"inside": str(inside), "outside": str(outside), "parent": os.getpid(), "port": 9}
    request = {
        "inside": str(inside),
        "kernel": kernel,
        "guard": guard,
        "prepare": prepare,
        "attempts": {name: text.format(**words) for name, text in attempts.items()},
    }
    command = [sys.executable, "-c", _PROGRAM, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (outside / "mine").read_text() == "mine"
    assert [path.name for path in outside.iterdir()] == ["mine"]
    result = json.loads(done.stdout)
    return result["endings"], result["held"]


def test_without_confinement_the_attempts_succeed(tmp_path):
    harmless = {k: _ATTEMPTS[k] for k in ("socket", "local socket", "run", "signal", "read")}
    endings, _ = attempt(tmp_path, kernel=False, guard=False, attempts=harmless)
    assert set(endings.values()) == {"done"}


def test_the_audit_hook_refuses_all_that_a_converter_never_does(tmp_path):
    endings, _ = attempt(tmp_path, kernel=False, guard=True)
    assert {name for name, ending in endings.items() if ending == "done"} == _ALLOWED
    assert {endings[name] for name in endings.keys() - _ALLOWED} == {"Refused"}


def test_the_kernel_refuses_all_of_that_where_it_grants_the_walls(tmp_path):
    endings, held = attempt(tmp_path, kernel=True, guard=False)
    if not all(held.values()):
        pytest.skip(f"this system does not grant {[k for k, v in held.items() if not v]}")
    assert {name for name, ending in endings.items() if ending == "done"} == _ALLOWED
    assert not (tmp_path / "inside" / "stolen").exists()


def native(tmp_path, kernel):
    """What calls of the C library return, or which errno they set, by name of the attempt."""
    words = refused_calls(platform.machine()) | {"uid": os.getuid(), "parent": os.getpid()}
    words["clone"] = {"x86_64": 56, "aarch64": 220}.get(platform.machine(), -1)
    failed = "if result < 0: raise OSError(ctypes.get_errno(), '')"
    attempts = {n: f"result = {call.format(**words)}\n{failed}" for n, call in _NATIVE.items()}
    prepare = _PREPARE_NATIVE.format(mine=str(tmp_path / "outside" / "mine"))
    return attempt(tmp_path, kernel, guard=False, attempts=attempts, prepare=prepare)


@on_linux
def test_the_kernel_refuses_what_only_the_c_library_can_ask_for(tmp_path):
    endings, held = native(tmp_path, kernel=True)
    if not held["seccomp"]:
        pytest.skip("this system grants no filter of system calls")
    assert "done" not in endings.values(), endings
    mine = tmp_path / "outside" / "mine"
    assert mine.stat().st_mode & 0o777 != 0o777
    assert not os.listxattr(mine)


@on_linux
def test_without_confinement_the_c_library_is_heard(tmp_path):
    endings, _ = native(tmp_path, kernel=False)
    done = {name for name, ending in endings.items() if ending == "done"}
    assert {"mode", "owner", "time", "limits of the parent", "signal", "fork", "clone"} <= done
    assert {"shared memory", "messages", "semaphores", "signal by a pipe"} <= done


@on_linux
def test_threads_can_still_be_started(tmp_path):
    start = "import threading; t = threading.Thread(target=print); t.start(); t.join()"
    endings, _ = attempt(tmp_path, kernel=True, guard=True, attempts={"thread": start})
    assert endings == {"thread": "done"}


def test_numbers_of_system_calls_are_those_of_the_kernels_headers():
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("the kernel's headers are not installed")
    lines = re.findall(r"#define __NR_(\w+) (\d+)", header.read_text())
    kernels = {name: int(number) for name, number in lines}
    ours = refused_calls("x86_64")
    known = {name: ours[name] for name in ours.keys() & kernels.keys()}
    assert len(known) > 70
    assert known == {name: kernels[name] for name in known}


def test_no_file_grows_beyond_the_limit(tmp_path):
    grow = "open({inside!r} + '/large', 'wb').write(bytes(2 * 10**6))"
    endings, held = attempt(tmp_path, kernel=True, guard=False, attempts={"grow": grow})
    assert endings == {"grow": "OSError" if held["limits"] else "done"}


def test_a_process_whose_parent_is_gone_ends_at_once(tmp_path):
    program = (
        "from pathlib import Path\nfrom inheritune.conversion.confinement import Limits, confine\n"
        f"confine(Path({str(tmp_path)!r}), Limits(10**6, 2**30, 60), 1)\nprint('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if sys.platform.startswith("linux"):
        assert (done.returncode, done.stdout) == (1, "")
