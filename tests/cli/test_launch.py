"""Run with `--processes N` and with plain torchrun, in real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from inheritune.cli import launch
from inheritune.recipe.load import read_recipe
from inheritune.run.execute import execute

RECIPE = """
name: tiny
reference: {{model: {model}}}
data: {{source: {text}, val_fraction: 0.2, allow_repeat: true}}
train:
  {{tokens: {tokens}, seq_len: 16, batch_tokens: 128, micro_batch: 4, learning_rate: 1.0e-3,
    min_learning_rate: 1.0e-4, precision: fp32, eval_every: 1M}}
grow: {{add: 0}}
analyze: null
evaluate: {{gains: false}}
variants: {{inherit: {{start: inherit}}}}
"""


@pytest.fixture
def recipe(tiny_reference: Path, tiny_text: Path, tmp_path: Path) -> Callable[[int], Path]:
    def write(tokens: int) -> Path:
        path = tmp_path / "recipe.yaml"
        fields = {"model": tiny_reference, "text": tiny_text, "tokens": tokens}
        path.write_text(RECIPE.format(**fields))
        return path

    return write


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


def run(recipe: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "inheritune", "run", str(recipe), "--runs", str(folder)]
    return subprocess.run(
        [*command, *more], capture_output=True, text=True, env=environment(), timeout=240
    )


def record(folder: Path) -> dict:
    return json.loads((folder / "tiny" / "run.json").read_text())


def test_two_processes_end_where_one_does(recipe: Callable[[int], Path], tmp_path: Path) -> None:
    path = recipe(1280)
    alone = execute(read_recipe(path), tmp_path / "1" / "tiny").summary
    two = run(path, tmp_path / "2", "--json", "--processes", "2")
    assert two.returncode == 0, two.stderr
    together = json.loads(two.stdout)  # one JSON value, from the first process alone
    assert together["benchmark"] == alone["benchmark"]
    assert together["val_loss"] == pytest.approx(alone["val_loss"], abs=1e-6)
    assert (record(tmp_path / "1")["processes"], record(tmp_path / "2")["processes"]) == (1, 2)
    assert two.stderr.count("at its end: val_loss") == 1


@pytest.mark.slow
def test_a_run_that_does_not_match_ends_with_6_and_has_its_report_and_card(
    recipe: Callable[[int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The report takes longer than the other process needs to end.
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(
        "import sys, time\n"
        "waits = [5]\n"
        "def hook(event, arguments):\n"
        "    if waits and event == 'os.mkdir' and str(arguments[0]).endswith('report/tables'):\n"
        "        time.sleep(waits.pop())\n"
        "sys.addaudithook(hook)\n"
    )
    search_path = filter(None, [str(tmp_path / "slow"), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(search_path))
    keys = ("grow.add=1", "grow.max_rounds=1", "inherit.layers=1", "train.learning_rate=1")
    options = [option for key in keys for option in ("--set", key)]
    done = run(recipe(640), tmp_path, "--json", "--processes", "2", *options)
    assert done.returncode == 6, done.stderr
    assert json.loads(done.stdout)["outcome"] == "not_matched"
    assert (tmp_path / "tiny" / "report" / "index.html").exists()
    assert (tmp_path / "tiny" / "target" / "README.md").exists()


def test_two_processes_save_at_a_signal_and_one_goes_on_to_where_one_alone_ends(
    recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    path = recipe(128 * 200)
    command = [sys.executable, "-m", "inheritune", "run", str(path), "--runs", str(tmp_path)]
    metrics = tmp_path / "tiny" / "variants" / "inherit" / "2-layers" / "metrics.jsonl"
    with subprocess.Popen(
        [*command, "--json", "--processes", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as started:
        deadline = time.monotonic() + 120
        while not metrics.exists() or metrics.read_text().count('"loss"') < 5:
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.1)
        started.send_signal(signal.SIGUSR1)
        told, said = started.communicate(timeout=60)
    assert started.returncode == 75, said
    # One JSON value, from the first process alone.
    assert json.loads(told)["error"] == "Interrupted"
    together = record(tmp_path)
    assert (together["status"], together["processes"]) == ("interrupted", 2)
    saved = sorted(metrics.with_name("checkpoints").iterdir())
    step = int(saved[-1].name.removeprefix("step-"))
    assert step >= 5
    assert len(list(saved[-1].glob("model-*-of-00002.safetensors"))) == 2
    # From here on by one process: the benchmark and the steps before the signal are of two.
    heard: list[str] = []
    final = execute(read_recipe(path), tmp_path / "tiny", lambda p: heard.append(p.message))
    assert f"continued from step {step} of 200" in heard
    alone = execute(read_recipe(path), tmp_path / "alone" / "tiny")
    assert final.summary["benchmark"] == alone.summary["benchmark"]
    assert final.val_loss == pytest.approx(alone.val_loss, abs=1e-6)


def processes_with(text: str) -> list[int]:
    """Numbers of the processes whose command line has a text in it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if text.encode() in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the signal at a parent's death is Linux's")
@pytest.mark.parametrize("how", ["the launcher is killed", "a second signal"])
def test_no_worker_outlives_its_launcher(
    how: str, recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    path = recipe(128 * 100_000)
    command = [sys.executable, "-m", "inheritune", "run", str(path), "--runs", str(tmp_path)]
    metrics = tmp_path / "tiny" / "variants" / "inherit" / "2-layers" / "metrics.jsonl"
    with (
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [*command, "--processes", "2"], stderr=stderr, env=environment()
        ) as started,
    ):
        try:
            wait_until(lambda: metrics.exists() and '"loss"' in metrics.read_text())
            assert len(processes_with(str(path))) == 3  # launcher and two workers
            if how == "a second signal":
                started.send_signal(signal.SIGTERM)
                started.send_signal(signal.SIGINT)
                assert started.wait(timeout=60) in {128 + signal.SIGINT, 128 + signal.SIGTERM}
        finally:
            started.kill()
    wait_until(lambda: not processes_with(str(path)))
    if how == "the launcher is killed":
        assert record(tmp_path)["status"] == "interrupted"
        assert list(metrics.parent.glob("checkpoints/step-*"))


def test_a_start_that_records_nothing_ends_with_the_code_of_the_worker_that_failed_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import os, sys, time; time.sleep(int(os.environ['RANK'])); sys.exit(3)")
    monkeypatch.setattr(launch, "worker_command", lambda arguments: [sys.executable, str(worker)])
    assert launch.launch([], 2, tmp_path / "run") == 3


@pytest.mark.parametrize("recorded", [0, 6])
def test_an_error_after_the_recorded_end_is_the_exit_code(
    recorded: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import json, os, pathlib, sys\n"
        "if os.environ['RANK'] == '0':\n"
        f"    end = {{'format': 1, 'exit_code': {recorded}, 'finished_at': 'now'}}\n"
        f"    pathlib.Path({str(tmp_path / 'run' / 'run.json')!r}).write_text(json.dumps(end))\n"
        "    sys.exit(4)\n"  # such as a full disk when the report is written
    )
    monkeypatch.setattr(launch, "worker_command", lambda arguments: [sys.executable, str(worker)])
    assert launch.launch([], 2, tmp_path / "run") == 4


def test_a_recorded_exit_code_that_is_no_number_counts_as_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"format": 1, "exit_code": "x"}')
    failing = [sys.executable, "-c", "raise SystemExit(3)"]
    monkeypatch.setattr(launch, "worker_command", lambda arguments: failing)
    assert launch.launch([], 2, tmp_path / "run") == 3


def test_the_other_workers_are_asked_to_save_when_one_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, pathlib, signal, sys, time\n"
        "ready, saved = pathlib.Path('ready'), pathlib.Path('saved')\n"
        "if os.environ['RANK'] == '0':\n"
        "    signal.signal(signal.SIGTERM, lambda *_: (saved.touch(), sys.exit(75)))\n"
        "    ready.touch()\n"
        "    time.sleep(600)\n"
        "while not ready.exists():\n"
        "    time.sleep(0.05)\n"
        "sys.exit(4)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "worker_command", lambda arguments: [sys.executable, str(worker)])
    assert launch.launch([], 2, tmp_path / "run") == 4
    assert (tmp_path / "saved").exists()
    assert not list(tmp_path.glob(".processes.*"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net/tcp")
def test_workers_listen_on_loopback_only_and_unpickle_nothing(
    recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    path = recipe(128 * 100_000)
    audit = tmp_path / "audit"
    audit.mkdir()
    (audit / "sitecustomize.py").write_text(
        "import sys\n"
        f"log = open({str(tmp_path / 'unpickled')!r}, 'a')\n"
        "def hook(event, arguments):\n"
        "    if event == 'pickle.find_class':\n"
        "        print(arguments, file=log, flush=True)\n"
        "sys.addaudithook(hook)\n"
    )
    search_path = os.pathsep.join([str(audit), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "inheritune", "run", str(path), "--runs", str(tmp_path)]
    metrics = tmp_path / "tiny" / "variants" / "inherit" / "2-layers" / "metrics.jsonl"
    with (
        (tmp_path / "stderr").open("wb") as stderr,
        subprocess.Popen(
            [*command, "--processes", "2"],
            stderr=stderr,
            env=environment() | {"PYTHONPATH": search_path},
        ) as started,
    ):
        try:
            wait_until(lambda: metrics.exists() and metrics.read_text().count('"loss"') > 2)
            workers = processes_with(str(path))
            assert len(workers) == 3
            addresses = [address for worker in workers for address in listening(worker)]
            modes = [folder.stat().st_mode & 0o777 for folder in tmp_path.glob(".processes.*")]
        finally:
            started.send_signal(signal.SIGTERM)
            started.wait(timeout=120)
    assert set(addresses) <= {"0100007F", "00000000000000000000000001000000"}, addresses
    assert modes == [0o700]
    assert (tmp_path / "unpickled").read_text() == ""


def listening(process: int) -> list[str]:
    """Local addresses, as /proc writes them, of the TCP sockets on which a process listens."""
    inodes = set()
    for descriptor in Path(f"/proc/{process}/fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    addresses = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:  # 0A: LISTEN
                addresses.append(fields[1].split(":")[0])
    return addresses


def test_a_signal_that_comes_while_it_starts_is_passed_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Popen(subprocess.Popen):
        def __init__(self, *arguments: object, **more: Any) -> None:
            if more["env"]["RANK"] == "0":
                os.kill(os.getpid(), signal.SIGTERM)  # would end this process
            super().__init__(*arguments, **more)

    sleeping = [sys.executable, "-c", "import time; time.sleep(60)"]
    monkeypatch.setattr(launch, "worker_command", lambda arguments: sleeping)
    monkeypatch.setattr(subprocess, "Popen", Popen)
    assert launch.launch([], 2, tmp_path / "run") == 75
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_plain_torchrun_works_and_a_refusal_ends_all_processes(
    recipe: Callable[[int], Path], tmp_path: Path
) -> None:
    path = recipe(1280)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    command = [*torchrun, "-m", "inheritune", "run", str(path), "--runs", str(tmp_path)]
    # 64 tokens do not divide by 16 x 4 x 2; found before anything is prepared.
    uneven = [*command, "--set", "train.batch_tokens=64", "--set", "train.micro_batch=4"]
    done = subprocess.run(uneven, capture_output=True, text=True, env=environment(), timeout=120)
    assert done.returncode == 1  # torchrun's own
    assert "x processes = 128" in done.stderr
    assert done.stderr.count("error: train.batch_tokens 64 is not") == 1
    assert not (tmp_path / "tiny").exists()
