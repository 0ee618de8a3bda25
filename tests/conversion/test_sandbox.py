"""What a confined process can still do, tried in real processes."""

import json
import os
import subprocess
import sys

import pytest

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
_ALLOWED = {"own file", "read", "null device"}
_PROGRAM = """
import json, os, sys
from pathlib import Path
from inheritune.conversion.sandbox import confine, guard
request = json.loads(sys.argv[1])
held = confine(Path(request["inside"]), 10**6, os.getppid()) if request["kernel"] else {}
if request["guard"]:
    guard(Path(request["inside"]))
endings = {}
for name, attempt in request["attempts"].items():
    try:
        exec(attempt, {})
        endings[name] = "done"
    except BaseException as error:
        endings[name] = type(error).__name__
print(json.dumps({"held": held, "endings": endings}))
"""


def attempt(tmp_path, kernel, guard, attempts=_ATTEMPTS):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for directory in (inside, outside):
        directory.mkdir(exist_ok=True)
    (outside / "mine").write_text("mine")
    words = {"inside": str(inside), "outside": str(outside), "parent": os.getpid(), "port": 9}
    request = {
        "inside": str(inside),
        "kernel": kernel,
        "guard": guard,
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
    # Signals are confined by a newer Landlock only; a link leads nowhere that can be written.
    allowed = {name for name, ending in endings.items() if ending == "done"}
    assert _ALLOWED <= allowed <= _ALLOWED | {"signal"}
    assert not (tmp_path / "inside" / "stolen").exists()


def test_no_file_grows_beyond_the_limit(tmp_path):
    grow = "open({inside!r} + '/large', 'wb').write(bytes(2 * 10**6))"
    endings, held = attempt(tmp_path, kernel=True, guard=False, attempts={"grow": grow})
    assert endings == {"grow": "OSError" if held["limits"] else "done"}


def test_a_process_whose_parent_is_gone_ends_at_once(tmp_path):
    program = (
        "from pathlib import Path\nfrom inheritune.conversion.sandbox import confine\n"
        f"confine(Path({str(tmp_path)!r}), 10**6, 1)\nprint('still here')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if sys.platform.startswith("linux"):
        assert (done.returncode, done.stdout) == (1, "")
